"""Every packet case of tests/packets, through the definition and through every data plane."""

from collections.abc import Iterator

import pytest

from softnlb.filter import Verdict, decide
from softnlb.verdicts import now_ms
from tests.netns import wait_for
from tests.packets import (
    CLUSTER_MAC,
    HOST_MAC,
    Case,
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
    assert len({(case.packet, case.table, case.sockets) for case in CASES}) == len(CASES)


@every_case
def test_definition(case: Case) -> None:
    table = table_of(case.table, HOUR_MS)
    decision = decide(table, flow_of(build(case.layers)), FakeSockets(case.sockets), lambda: 1)
    assert (decision.verdict, decision.reason) == (case.verdict, case.reason)
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
        runner.program.ask_conntrack(case.sockets.startswith("conntrack"))
        with inside(stage.host):
            verdict, reason, _ = runner.run(frame)
        assert (kind, verdict, reason) == (kind, case.verdict, case.reason)
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
    before = queue.counters().get(case.reason, 0)
    head, rest = build(case.layers)[:12], build(case.layers)[12:]
    assert len(head) == 12
    queue.wire.send_bytes(queue.wire.addresses + rest)
    wait_for(lambda: queue.counters().get(case.reason, 0) == before + 1)
