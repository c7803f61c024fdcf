"""Chaos: the series of acts, and what its judgement accepts and what it does not."""

import json
from itertools import islice

import pytest

from labs.chaos import FAULTS, PLANNED, Act, Judgement, Played, judge, plan
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
    marks_s = (began_s, began_s, began_s + 2.0, began_s + 2.0, began_s + 2.5)
    return Played(Act(kind, (2,), 2.0), *marks_s)


def good(
    act: Played,
    new: tuple[Connection, ...] = (),
    held: tuple[Held, ...] = (),
    records: tuple[Answered, ...] = (),
) -> bool:
    return judged(act, new, held, records).good


def judged(
    act: Played,
    new: tuple[Connection, ...] = (),
    held: tuple[Held, ...] = (),
    records: tuple[Answered, ...] = (),
) -> Judgement:
    limits_s = {"detection_s": 0.5, "slack_s": 0.7, "silence_s": 4.0, "merge_s": 0.25}
    return judge([act], new, held, records, **limits_s)


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
    ("kind", "began_s", "accepted"),
    [
        ("kill", 9.5, False),
        # Its SYN was answered, and then its host was dead.
        ("kill", 9.95, True),
        # Others have had 0.5 s to notice, and some rounds to take over.
        ("kill", 11.1, True),
        ("kill", 11.3, False),
        # It comes back at 12, takes its buckets until 12.5.
        ("kill", 12.0, True),
        ("kill", 13.1, True),
        ("kill", 13.3, False),
        ("weight", 10.6, True),
        ("weight", 10.8, False),
        ("join", 11.5, False),
        ("join", 12.1, True),
        ("loss", 11.5, True),
        ("crash-loop", 11.5, True),
        ("crash-loop", 13.3, False),
    ],
)
def test_a_new_connection_may_fail_only_while_buckets_change_hands(
    kind: str, began_s: float, accepted: bool
) -> None:
    answered = Connection("10.2.64.1", 5001, began_s, 0.5, 2, None)
    assert good(played(kind), new=(failed(began_s), answered)) is accepted


def failed(began_s: float) -> Connection:
    return Connection("10.2.64.1", 5000, began_s, 0.5, None, "TimeoutError")


@pytest.mark.parametrize(("hold_s", "longest_s"), [(2.0, 0.8), (0.3, 0.5)])
def test_a_gap_is_one_change_of_hands(hold_s: float, longest_s: float) -> None:
    """Short after each other, but twice: when the fault strikes and when it is undone."""
    marks_s = (10.0, 10.0, 10.0 + hold_s, 10.0 + hold_s, 12.5)
    failing = (10.0, 10.1, 10.3, 10.5, 10.7)
    new = [
        failed(at_s) if at_s in failing else Connection("10.2.64.1", 5001, at_s, 0.1, 2, None)
        for at_s in (10.0, 10.1, 10.2, 10.3, 10.4, 10.5, 10.6, 10.7, 10.8)
    ]
    seen = judged(Played(Act("kill", (2,), hold_s), *marks_s), tuple(new))
    assert (seen.failed, seen.gap_s) == ({"kill": 5}, {"kill": longest_s})


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
