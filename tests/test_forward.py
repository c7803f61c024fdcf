"""Ports of the cluster address that are forwarded to a container, as container engines do it."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from convergence.rules import ALL_BUCKETS
from softnlb import sockdiag
from softnlb.filter import NoSockets, decide
from softnlb.packet import flow_from_text
from tests.netns import wait_for
from tests.plane import CLIENT, PORT, VIP, Bench, inside

CONTAINER = "172.16.0.2"
NAT = f"""
table ip container {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {VIP} tcp dport {PORT} dnat to {CONTAINER}:8080
        ip daddr {VIP} udp dport 53 dnat to {CONTAINER}:5353
    }}
}}
"""


both = pytest.mark.parametrize("bench", ["nfqueue", "tc", "xdp"], indirect=True)
nfqueue = pytest.mark.parametrize("bench", ["nfqueue"], indirect=True)


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    container = made.segment.namespace("container")
    target = f"/proc/{os.getpid()}/fd/{container.descriptor}"
    made.host.run(f"ip link add inner0 type veth peer name eth0 netns {target}")
    made.host.run("ip address add 172.16.0.1/24 dev inner0 && ip link set inner0 up")
    container.run(f"ip address add {CONTAINER}/24 dev eth0 && ip link set eth0 up")
    container.run("ip route add default via 172.16.0.1")
    made.host.run("sysctl -w net.ipv4.ip_forward=1")
    assert made.intact()
    made.host.run("nft -f -", input=NAT)
    if request.param == "nfqueue":
        # Other rules are needed now.
        assert not made.intact()
        with inside(made.host):
            made.plane.attach("eth0")
    assert made.intact()
    made.install()
    made.listen(8080, CONTAINER, container)
    made.datagrams = made.open(container, socket.SOCK_DGRAM)
    made.datagrams.bind((CONTAINER, 5353))
    yield made
    made.close()


@both
def test_a_forwarded_port_is_kept_by_the_owner_and_its_connections_for_good(bench: Bench) -> None:
    connection, accepted = bench.connection()
    bench.install(0)
    connection.send(b"still here")
    assert accepted.recv(20) == b"still here"
    accepted.send(b"so am I")
    assert connection.recv(20) == b"so am I"
    assert not bench.answers()
    assert bench.counters()["conntrack"] >= 2
    bench.install()
    assert bench.answers()


@both
@pytest.mark.parametrize("flags", ["A", "PA", "FA", "SA", "R"])
def test_segments_of_other_hosts_connections_are_met_with_silence(bench: Bench, flags: str) -> None:
    before = bench.counters().get("no-socket", 0)
    bench.wire.tcp(flags, 5001, seq=100, ack=200)
    assert bench.wire.answer(5001) is None
    assert bench.counters()["no-socket"] == before + 1
    # Nor did connection tracking take it for a connection that goes on.
    bench.wire.tcp("A", 5001, seq=101, ack=200)
    assert bench.wire.answer(5001) is None


@nfqueue
def test_forwarded_datagrams_are_decided_until_a_connection_is_known(bench: Bench) -> None:
    client = bench.open(bench.client, socket.SOCK_DGRAM)
    client.connect((VIP, 53))
    client.send(b"mine")
    data, peer = bench.datagrams.recvfrom(10)
    assert data == b"mine"
    bench.datagrams.sendto(b"answer", peer)
    assert client.recv(10) == b"answer"
    bench.install(0)
    client.send(b"known")
    assert bench.datagrams.recv(10) == b"known"
    stranger = bench.open(bench.client, socket.SOCK_DGRAM)
    stranger.sendto(b"new", (VIP, 53))
    wait_for(lambda: bench.counters().get("not-mine") == 1)
    bench.datagrams.settimeout(0.1)
    with pytest.raises(TimeoutError):
        bench.datagrams.recv(10)


@both
def test_local_ports_work_beside_forwarded_ones(bench: Bench) -> None:
    bench.listen(81)
    connection = bench.connect(port=81)
    accepted = bench.accept()
    bench.install(0)
    connection.send(b"still here")
    assert accepted.recv(20) == b"still here"
    assert not bench.answers(port=81)
    bench.wire.tcp("PA", 5002, dport=81, seq=100, ack=200)
    assert bench.wire.answer(5002) is None


@nfqueue
def test_a_killed_verdict_process_forwards_nothing_new(bench: Bench) -> None:
    connection, accepted = bench.connection()
    os.kill(bench.plane.process_id, signal.SIGKILL)
    wait_for(lambda: not bench.intact())
    assert not bench.answers()
    connection.send(b"still here")
    assert accepted.recv(20) == b"still here"


@both
def test_forwarded_connections_count_and_keep_their_bucket_busy(bench: Bench) -> None:
    def counted() -> int:
        with inside(bench.host):
            return sockdiag.count_connections(bench.table.cluster_ip_addresses)[0]

    def busy() -> int:
        with inside(bench.host):
            return ALL_BUCKETS ^ sockdiag.connected(bench.table)[0][0]

    assert (counted(), busy()) == (0, 0)
    connection, accepted = bench.connection()
    assert counted() == 1
    port = connection.getsockname()[1]
    flow = flow_from_text(f"{CLIENT}:{port}", f"{VIP}:{PORT}", "tcp", "eth0")
    bucket = decide(bench.table, flow, NoSockets(), lambda: 0).bucket
    assert bucket is not None and busy() == 1 << bucket
    connection.close()
    accepted.close()
    wait_for(lambda: (counted(), busy()) == (0, 0))
