"""Every packet case of tests/packets, through the definition and through every data plane."""

from collections.abc import Iterator

import pytest

from softnlb.filter import Decision, NoSockets, Reason, Verdict, decide
from softnlb.verdicts import now_ms
from tests.netns import wait_for
from tests.packets import (
    CLUSTER_MAC,
    HOST_MAC,
    Case,
    FakeClients,
    FakeSockets,
    build,
    flow_of,
    load,
    table_of,
)
from tests.plane import Bench, inside
from tests.programs import Runner, runners
from tests.stage import Stage

CASES = load()
HOUR_MS = 3_600_000

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({(c.packet, c.table, c.sockets, c.clients) for c in CASES}) == len(CASES)


def is_remembered_anew(case: Case, decision: Decision) -> bool:
    """The owner of a bucket remembers whom it accepts, where the rule has a time-out."""
    if decision.slot is None or case.reason != Reason.OWNER:
        return False
    return table_of(case.table, HOUR_MS).rules[decision.slot].rule.remembers_clients


@every_case
def test_definition(case: Case) -> None:
    table = table_of(case.table, HOUR_MS)
    clients = FakeClients(case.clients)
    flow = flow_of(build(case.layers))
    decision = decide(table, flow, FakeSockets(case.sockets), lambda: 1, clients)
    assert (decision.verdict, decision.reason) == (case.verdict, case.reason)
    assert bool(clients.remembered) == is_remembered_anew(case, decision)
    if case.bucket is not None:
        assert decision.bucket == case.bucket


@pytest.fixture(scope="module")
def programs() -> Iterator[list[Runner]]:
    made = runners()
    yield made
    for runner in made:
        runner.close()


@pytest.fixture(scope="module")
def stages() -> Iterator[dict[str, Stage]]:
    """Where there are no sockets at all, where there are some, where SYNs get cookies."""
    made = {"none": Stage(), "some": Stage(), "cookie": Stage(syn_cookies=True)}
    yield made
    for stage in made.values():
        stage.close()


@every_case
def test_programs(case: Case, programs: list[Runner], stages: dict[str, Stage]) -> None:
    stage = stages.get(case.sockets, stages["some"])
    ours = stage.prepare(case)
    frame = build(case.layers, ours)
    for runner in programs:
        kind = runner.name.removeprefix("softnlb_")
        if kind not in case.planes:
            continue
        runner.install(table_of(case.table, now_ms() + HOUR_MS))
        decision = decide(table_of(case.table, HOUR_MS), flow_of(frame), NoSockets(), lambda: 1)
        key = None if decision.key is None else bytes((decision.slot or 0,)) + decision.key
        runner.know(case.clients, key, decision.bucket)
        runner.program.ask_conntrack(case.sockets.startswith("conntrack"))
        with inside(stage.host):
            verdict, reason, _ = runner.run(frame)
        assert (kind, verdict, reason) == (kind, case.verdict, case.reason)
        if is_remembered_anew(case, decision) or case.clients.startswith("known"):
            assert [(one.key, one.bucket) for one in runner.known()] == [(key, decision.bucket)]
        else:
            assert runner.known() == []
        # XDP gives what it keeps the host's own MAC address, where it was the cluster's.
        rewritten = kind == "xdp" and verdict is Verdict.KEEP and frame[:6] == CLUSTER_MAC
        assert runner.frame == (HOST_MAC if rewritten else frame[:6]) + frame[6:]


@pytest.fixture(scope="module")
def queue() -> Iterator[Bench]:
    bench = Bench("nfqueue")
    yield bench
    bench.close()


@pytest.mark.parametrize("case", [c for c in CASES if c.live], ids=lambda case: case.name)
def test_nfqueue(case: Case, queue: Bench) -> None:
    with inside(queue.host):
        queue.plane.install(table_of(case.table, now_ms() + HOUR_MS))
    shared = queue.plane._attached().shared
    table = table_of(case.table, HOUR_MS)
    decision = decide(table, flow_of(build(case.layers)), NoSockets(), lambda: 1)
    key = None if decision.key is None else bytes((decision.slot or 0,)) + decision.key
    shared.clients.forget([one.key for one in shared.clients.known()])
    if key is not None and case.clients.startswith("known"):
        shared.clients.remember(key[0], key[1:], decision.bucket)
    excepted = {key: 7} if key is not None and "excepted" in case.clients else {}
    shared.clients.put(excepted)
    before = queue.counters().get(case.reason, 0)
    head, rest = build(case.layers)[:12], build(case.layers)[12:]
    assert len(head) == 12
    queue.wire.send_bytes(queue.wire.addresses + rest)
    wait_for(lambda: queue.counters().get(case.reason, 0) == before + 1)
    shared.clients.take_back(excepted)
    known = [(one.key, one.bucket) for one in shared.clients.known()]
    kept = is_remembered_anew(case, decision) or case.clients.startswith("known")
    assert known == ([(key, decision.bucket)] if kept else [])
