"""`softnlb bench`: every figure is there, means what it says, and nothing outlives it.

No test says how fast anything is.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from labs.bench import live as live_module
from labs.bench.apart import apart
from labs.bench.compare import ratio, turn
from labs.bench.filters import FILTERS, Filtered, none
from labs.bench.flood import FRAMES, Flood
from labs.bench.live import live
from softnlb.cli import run
from softnlb.errors import MachineError, SoftnlbError
from tests.netns import wait_for

pytestmark = pytest.mark.bpf

ROOT = Path(__file__).parent.parent
BENCH = [sys.executable, "-c", "from softnlb.cli import main; main()", "bench"]
PLANES = tuple(FILTERS)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """One whole run, as short as it can be."""
    options = ["--json", "--hosts", "2,3", "--seconds", "0.01", "--pairs", "7"]
    done = subprocess.run(
        [*BENCH, *options], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def rows(document: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [row for row in document["rows"] if row["what"] == what]


def test_the_machine_is_described(document: dict[str, Any]) -> None:
    machine = document["machine"]
    assert machine["kernel"] == os.uname().release
    assert machine["cores"] == os.cpu_count()
    assert machine["cpu"]


def test_a_program_costs_more_than_an_empty_one(document: dict[str, Any]) -> None:
    found = [row for row in document["rows"] if "empty_ns" in row]
    kinds = {row["what"] for row in found}
    assert {"foreign SYN dropped", "owner's SYN kept", "segment kept by its socket"} < kinds
    assert {"SYN of a client remembered", "SYN of a client left to another"} < kinds
    assert {(row["what"], row["plane"]) for row in found} == {
        (kind, plane) for kind in kinds for plane in ("ebpf tc", "ebpf xdp")
    }
    six = {kind for kind in kinds if kind.endswith(", IPv6")}
    assert six == {f"{kind}, IPv6" for kind in kinds - six}, "the same kinds in either family"
    for row in found:
        assert len(row["samples"]) == 5
        assert row["value"] == min(row["samples"])
        assert row["over_empty_ns"] == row["value"] - row["empty_ns"] > 0


def test_many_rules_stand_beside_one_in_both_programs(document: dict[str, Any]) -> None:
    found = [row for row in document["rows"] if "32 rules beside 1" in row["what"]]
    assert len(found) == 6, found
    for row in found:
        one_ns, many_ns = map(min, row["samples"])
        assert row["hosts"] == 32
        assert row["value"] == pytest.approx(many_ns / one_ns, abs=0.001)


@pytest.mark.parametrize("what", ["SYN flood", "datagram flood"])
def test_a_flood_is_measured_for_every_filter_and_size(document: dict[str, Any], what: str) -> None:
    found = rows(document, what)
    assert {(row["hosts"], row["plane"]) for row in found} == {
        (hosts, plane) for hosts in (2, 3) for plane in PLANES
    }
    for row in found:
        assert len(row["samples"]) == 7
        assert min(row["samples"]) > 0
        assert row["cpu_us_per_frame"] > 0
        assert set(row["beside"]) == {"no filter", "xt_cluster", "nft jhash"} - {row["plane"]}
        assert row["beside_cpu"].keys() == row["beside"].keys()


def test_connections_are_answered_through_every_filter(document: dict[str, Any]) -> None:
    found = rows(document, "connections")
    assert sorted({row["plane"] for row in found}) == sorted(PLANES)
    for row in found:
        assert row["hosts"] == (1 if row["plane"] == "no filter" else row["hosts"])
        assert row["value"] > 0, row
        assert row["failed"] == 0, row


def test_bulk_is_measured_beside_no_filter(document: dict[str, Any]) -> None:
    found = rows(document, "bulk TCP")
    assert [row["plane"] for row in found] == ["no filter", "ebpf tc", "no filter", "nfqueue"]
    for row in found[1::2]:
        low, high = row["beside"]["no filter"]["interval_95"]
        assert low <= row["beside"]["no filter"]["median"] <= high


def test_ahead_means_that_the_interval_lies_above_1() -> None:
    beside = [1.0] * 7
    assert ratio([1.1, 1.2, 1.1, 1.3, 1.2, 1.1, 1.2], beside)["says"] == "ahead"
    assert ratio([0.9, 0.8, 0.9, 0.8, 0.9, 0.8, 0.9], beside)["says"] == "behind"
    # Most are faster, and yet the middle may be anywhere.
    mixed = ratio([1.1, 0.9, 1.2, 0.8, 1.1, 0.9, 1.1], beside)
    assert mixed["says"] == "even"
    assert mixed["median"] == 1.1


def test_every_round_begins_with_another_one() -> None:
    names = ["a", "b", "c"]
    orders = [turn(names, number) for number in range(6)]
    assert all(sorted(order) == names for order in orders)
    assert len({tuple(order) for order in orders}) == 6


@pytest.mark.parametrize("name", PLANES)
def test_each_frame_is_kept_by_exactly_one_host(name: str) -> None:
    def body() -> bool:
        rig = Filtered(name, 3)
        for connections in (False, True):
            flood = Flood(rig, connections)
            flood.check()
            flood.close()
        return True

    assert apart(body)


@pytest.mark.parametrize(("connections", "frames"), [(False, "datagrams"), (True, "SYNs")])
def test_a_filter_that_lets_everything_through_is_found_out(
    monkeypatch: pytest.MonkeyPatch, connections: bool, frames: str
) -> None:
    monkeypatch.setitem(FILTERS, "xt_cluster", none)

    def body() -> None:
        Flood(Filtered("xt_cluster", 3), connections).check()

    with pytest.raises(SoftnlbError, match=f"xt_cluster on 3 hosts: 360 {frames} kept of 120"):
        apart(body)


def test_what_is_missing_becomes_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, hosts: int) -> None:
        raise SoftnlbError("iptables: no such match")

    monkeypatch.setitem(FILTERS, "xt_cluster", refuse)
    monkeypatch.setattr(live_module, "WARM_UP", 0.01)
    found = apart(lambda: live(2, 0.01, 7))
    gone = [row for row in found if row["plane"] == "xt_cluster"]
    assert [(row["what"], row["reason"]) for row in gone] == [
        ("SYN flood", "iptables: no such match"),
        ("datagram flood", "iptables: no such match"),
        ("connections", "iptables: no such match"),
    ]
    others = [row for row in found if row["plane"] != "xt_cluster"]
    assert {row["plane"] for row in others} == set(PLANES) - {"xt_cluster"}
    assert not any("xt_cluster" in row["beside"] for row in others)


def test_a_machine_that_can_measure_nothing_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(body: object) -> None:
        raise MachineError("no namespaces here")

    monkeypatch.setattr("labs.bench.command.apart", refuse)
    assert run(["bench", "--json", "--hosts", "2"]) == 5
    found = json.loads(capsys.readouterr().out)["rows"]
    assert {row["reason"] for row in found} == {"no namespaces here"}


@pytest.mark.parametrize(
    "words", [["--hosts", "0"], ["--hosts", "2,33"], ["--hosts", "two"], ["--pairs", "6"]]
)
def test_bad_options_are_usage_errors(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *words]) == 2
    assert words[1] in capsys.readouterr().err


def descendants(pid: int) -> Iterator[int]:
    """Every process below this one, as long as they are there."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from descendants(int(child))


def network_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def test_nothing_is_left_after_sigkill() -> None:
    bench = subprocess.Popen(
        [*BENCH, "--hosts", "3", "--seconds", "5"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert bench.stderr is not None
        progress = bench.stderr
        wait_for(lambda: "flood" in progress.readline(), 30)
        # Three processes lead there, and each of three nfqueue hosts has one for its verdicts.
        below = wait_for(lambda: found if len(found := list(descendants(bench.pid))) >= 6 else [])
        assert network_of(below[-1]) != network_of(os.getpid())
    finally:
        bench.kill()
        bench.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def test_a_flood_uses_many_clients() -> None:
    def body() -> int:
        flood = Flood(Filtered("no filter", 1))
        return len({frame[26:30] for frame in flood._frames})

    assert apart(body) == FRAMES
