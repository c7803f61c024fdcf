"""Chaos: the series of acts, and what its judgement accepts and what it does not."""

import json
from itertools import islice

import pytest

from labs.chaos import FAULTS, PLANNED, Act, Played, judge, plan
from labs.load import Connection, Held
from labs.switch import PortFaults
from labs.witness import Answered
from tests.labs import lab

HOSTS = [1, 2, 3, 4]


def test_a_seed_is_one_series_in_which_every_kind_comes_up() -> None:
    count = len(PLANNED) + len(FAULTS)
    series = list(islice(plan(HOSTS, 7), count))
    assert series == list(islice(plan(HOSTS, 7), count))
    assert series != list(islice(plan(HOSTS, 8), count))
    assert {act.kind for act in series} == {*PLANNED, *FAULTS}
    for act in islice(plan(HOSTS, 7), 20 * count):
        assert set(act.victims) <= set(HOSTS)
        # Somebody is always left to serve.
        assert 0 < len(act.victims) < len(HOSTS)


def played(kind: str, began_s: float = 10.0) -> Played:
    """An act on host 2: undone after 2 s, converged after another 0.5."""
    return Played(Act(kind, (2,), 2.0), began_s, began_s + 2.0, began_s + 2.5)


def good(
    act: Played,
    new: tuple[Connection, ...] = (),
    held: tuple[Held, ...] = (),
    records: tuple[Answered, ...] = (),
) -> bool:
    return judge([act], new, held, records, slack_s=0.7, silence_s=4.0, merge_s=0.25).good


@pytest.mark.parametrize(
    ("kind", "host_id", "broken_s", "accepted"),
    [
        ("kill", 2, 11.0, True),
        ("kill", 3, 11.0, False),
        ("kill", 2, 9.0, False),
        # Noticed when it had been silent for 4 s.
        ("kill", 2, 16.0, True),
        ("kill", 2, 18.0, False),
        ("stop", 2, 11.0, False),
        ("agent-kill", 2, 11.0, False),
        ("drainstop", 2, 11.0, False),
        ("weight", 2, 11.0, False),
        # The halves of a partition meet; a single host that was cut off knows better.
        ("partition", 3, 11.0, False),
        ("partition", 3, 12.1, True),
        ("partition", 3, 14.0, False),
        ("deaf", 3, 12.1, False),
    ],
)
def test_only_victims_may_lose_connections(
    kind: str, host_id: int, broken_s: float, accepted: bool
) -> None:
    held = Held("10.2.64.1", 5000, 1.0, host_id, broken_s, "ConnectionResetError")
    assert good(played(kind), held=(held,)) is accepted


@pytest.mark.parametrize(
    ("began_s", "accepted"), [(8.0, False), (9.8, True), (11.0, True), (13.0, True), (14.0, False)]
)
def test_a_failure_needs_an_act_that_it_fell_into(began_s: float, accepted: bool) -> None:
    failed = Connection("10.2.64.1", 5000, began_s, 0.5, None, "TimeoutError")
    answered = Connection("10.2.64.1", 5001, began_s, 0.5, 2, None)
    assert good(played("kill"), new=(failed, answered)) is accepted


@pytest.mark.parametrize(
    ("kind", "at_s", "accepted"),
    [
        ("kill", 11.0, False),
        ("mute", 12.1, False),
        ("partition", 11.0, True),
        ("partition", 12.2, True),
        ("partition", 12.3, False),
        ("deaf", 12.2, True),
        ("unplug", 12.4, False),
    ],
)
def test_two_owners_only_while_a_split_heals(kind: str, at_s: float, accepted: bool) -> None:
    record = Answered("10.2.64.1", 5000, ("host2", "host3"), at_s)
    once = Answered("10.2.64.1", 5001, ("host2",), at_s)
    assert good(played(kind), records=(record, once)) is accepted


@pytest.mark.parametrize("kind", ["new", "held"])
@pytest.mark.parametrize(("asked_s", "accepted"), [(11.9, True), (12.1, True), (12.3, False)])
def test_an_answer_may_wait_for_the_address_of_the_router(
    asked_s: float, accepted: bool, kind: str
) -> None:
    """Two hosts decided while the split healed, and one could not send before it knew where to."""
    record = Answered("10.2.64.1", 5000, ("host2", "host3"), 12.6)
    before = Connection("10.2.64.1", 5000, 1.0, 0.1, 2, None)
    asked = Connection("10.2.64.1", 5000, asked_s, 0.1, 2, None)
    new = (before, asked) if kind == "new" else (before,)
    held = () if kind == "new" else (Held("10.2.64.1", 5000, asked_s, 2),)
    assert good(played("unplug"), new, held, (record,)) is accepted


def test_some_chaos_keeps_the_guarantees() -> None:
    done = lab("run", "chaos", "--hosts", "3", "--minutes", "0.05", "--seed", "52", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert result["good"] is True
    assert sum(row["acts"] for row in result["acts"]) >= 2
    assert result["new_connections"] > 100


def test_who_heals_a_node_ends_the_partition_that_cuts_it_off() -> None:
    faults = PortFaults(partition=(frozenset(("host1",)), frozenset(("host2", "router"))))
    faults.forget("host2")
    assert faults.partition is not None
    faults.forget("host1")
    assert faults.partition is None
