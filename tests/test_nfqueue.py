"""The nfqueue plane on real packets: a host, a client whose kernel is real, and a bare wire."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from softnlb import nfqueue
from softnlb.errors import DataPlaneUnavailable, SoftnlbError
from tests.netns import wait_for
from tests.plane import VIP, Bench, inside

RST = 0x04
IP_RECVERR = 11


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_an_upload_to_another_host_does_not_flood_the_queue(bench: Bench) -> None:
    bench.listen()
    bench.install(0)
    for number in range(200):
        bench.wire.tcp("A", 5007, seq=number, ack=1)
    wait_for(lambda: sum(bench.counters().values()) >= 200)
    counters = bench.counters()
    assert counters["not-mine"] <= 10
    assert counters["no-socket"] >= 190


def test_another_interface_does_not_lead_to_the_cluster_address(bench: Bench) -> None:
    bench.listen()
    bench.segment.plug(bench.host, "eth1", "second")
    bench.host.run("ip link set eth1 up && ip address add 10.2.0.1/24 dev eth1")
    bench.client.run(f"ip address add 10.2.0.7/24 dev eth0 && ip route add {VIP}/32 via 10.2.0.1")
    assert not bench.answers()
    assert bench.counters()["wrong-interface"] >= 1


# ---------------------------------------------------------------- faults and traces


def test_a_killed_verdict_process_keeps_nothing_new(bench: Bench) -> None:
    bench.listen()
    old, accepted = bench.connection()
    assert bench.intact()
    os.kill(bench.plane.process_id, signal.SIGKILL)
    wait_for(lambda: not bench.intact())
    assert not bench.answers()
    old.send(b"still here")
    assert accepted.recv(20) == b"still here"
    with inside(bench.host):
        bench.plane.attach("eth0")
    assert bench.intact()
    bench.install()
    assert bench.answers()


def test_a_stopped_verdict_process_decides_by_the_newest_table_when_it_wakes(
    bench: Bench,
) -> None:
    bench.listen()
    os.kill(bench.plane.process_id, signal.SIGSTOP)
    bench.install(0)
    assert bench.intact()
    assert not bench.answers()
    os.kill(bench.plane.process_id, signal.SIGCONT)
    wait_for(lambda: bench.counters().get("not-mine", 0) >= 1)
    assert "owner" not in bench.counters()


@pytest.mark.parametrize(
    "damage", ["nft flush ruleset", "nft delete rule inet {table} input handle {handle}"]
)
def test_somebody_elses_hand_in_the_rules_is_noticed(bench: Bench, damage: str) -> None:
    assert bench.intact()
    listing = bench.host.run("nft -a list chain inet softnlb_queue_eth0 input")
    handle = next(
        line.split()[-1] for line in listing.splitlines() if "@cluster_ip_addresses" in line
    )
    bench.host.run(damage.format(table="softnlb_queue_eth0", handle=handle))
    assert not bench.intact()
    with inside(bench.host):
        bench.plane.attach("eth0")
        assert bench.plane.intact()


def test_nothing_is_left_after_detach(bench: Bench) -> None:
    pid = bench.plane.process_id
    with inside(bench.host):
        bench.plane.detach()
        bench.plane.detach()
        nfqueue.cleanup("eth0")
    assert bench.host.run("nft list ruleset") == ""
    assert not os.path.exists(f"/proc/{pid}")
    with pytest.raises(SoftnlbError, match="not attached"):
        bench.plane.install(bench.table)


AGENT = """
import os, sys
from softnlb.nfqueue import NfqueuePlane
plane = NfqueuePlane()
plane.attach("eth0")
print(plane.process_id, flush=True)
sys.stdin.read()
"""


def test_the_verdict_process_dies_with_the_agent_and_the_next_attach_cleans_up(
    bench: Bench,
) -> None:
    bench.listen()
    with inside(bench.host):
        bench.plane.detach()
    agent = bench.host.start(
        [sys.executable, "-c", AGENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert agent.stdout is not None and agent.stdin is not None
    pid = int(agent.stdout.readline())
    agent.kill()
    agent.wait()
    agent.stdin.close()
    agent.stdout.close()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}") or "Z" in open_stat(pid))
    assert "softnlb_queue_eth0" in bench.host.run("nft list tables")
    with inside(bench.host):
        bench.plane.attach("eth0")
    bench.install()
    assert bench.answers()


def open_stat(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().split()[2]


def test_two_planes_in_one_namespace_have_queues_of_their_own(bench: Bench) -> None:
    other = nfqueue.NfqueuePlane()
    with inside(bench.host):
        other.attach("lo")
        assert bench.plane.intact() and other.intact()
        other.detach()
        assert bench.plane.intact()
    bench.listen()
    assert bench.answers()


def test_probe_finds_nothing_missing_and_leaves_nothing(bench: Bench) -> None:
    with inside(bench.host):
        bench.plane.detach()
        assert nfqueue.probe() is None
    assert bench.host.run("nft list ruleset") == ""


def test_without_early_demultiplexing_the_plane_refuses_with_the_remedy(bench: Bench) -> None:
    bench.host.run("sysctl -w net.ipv4.tcp_early_demux=0")
    plane = nfqueue.NfqueuePlane()
    with inside(bench.host), pytest.raises(DataPlaneUnavailable, match="sysctl -w"):
        plane.attach("eth0")


def test_a_queue_that_is_taken_is_refused_in_one_sentence(bench: Bench) -> None:
    first = nfqueue.NfqueuePlane(777)
    second = nfqueue.NfqueuePlane(777)
    with inside(bench.host):
        first.attach("lo")
        with pytest.raises(DataPlaneUnavailable, match="none of the queues 777 to 777"):
            second.attach("other")
        assert "other" not in bench.host.run("nft list tables")
        first.detach()
