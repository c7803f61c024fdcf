"""What sock_diag tells of real sockets, in a namespace with a client on a cable."""

import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from convergence.rules import ALL_BUCKETS
from softnlb import sockdiag
from softnlb.filter import NoSockets, decide
from softnlb.packet import ACK, Flow, flow_from_text
from tests.netns import wait_for
from tests.plane import PORT, STRANGER, VIP, Bench, handshake, inside

VIPS = (ip_address(VIP),)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    made.listen()
    yield made
    made.close()


@pytest.fixture
def diag(bench: Bench) -> Iterator[sockdiag.SockDiag]:
    with inside(bench.host):
        made = sockdiag.SockDiag("eth0")
    yield made
    made.close()


def segment(client: str, port: int = PORT) -> Flow:
    return flow_from_text(client, f"{VIP}:{port}", "tcp", "eth0")._replace(flags=ACK)


def flow_to(accepted: socket.socket) -> Flow:
    address, port = accepted.getpeername()[:2]
    return segment(f"{address.removeprefix('::ffff:')}:{port}")


def scan(bench: Bench, **options: bool) -> list[sockdiag.TcpSocket]:
    with inside(bench.host):
        return list(sockdiag.scan(VIPS, **options))


def test_states_of_a_connection(bench: Bench, diag: sockdiag.SockDiag) -> None:
    bench.wire.tcp("S", 5001, seq=100)
    assert bench.wire.answer(5001) is not None
    assert diag.tcp_state(segment(f"{STRANGER}:5001")) == "SYN_RECV"

    connection, accepted = bench.connection()
    flow = flow_to(accepted)
    assert diag.tcp_state(flow) == "ESTABLISHED"
    connection.close()
    assert wait_for(lambda: diag.tcp_state(flow) == "CLOSE_WAIT")
    accepted.close()
    assert wait_for(lambda: diag.tcp_state(flow) == "LISTEN")


def test_states_after_closing_first(bench: Bench, diag: sockdiag.SockDiag) -> None:
    connection, accepted = bench.connection()
    flow = flow_to(accepted)
    accepted.close()
    assert wait_for(lambda: diag.tcp_state(flow) == "FIN_WAIT2")
    connection.close()
    assert wait_for(lambda: diag.tcp_state(flow) == "TIME_WAIT")


def test_a_listener_alone_and_nothing_at_all(diag: sockdiag.SockDiag) -> None:
    assert diag.tcp_state(segment(f"{STRANGER}:6000")) == "LISTEN"
    assert diag.tcp_state(segment(f"{STRANGER}:6000", port=81)) is None


def test_a_connection_of_the_same_ports_from_elsewhere_is_another(
    bench: Bench, diag: sockdiag.SockDiag
) -> None:
    _connection, accepted = bench.connection()
    port = accepted.getpeername()[1]
    assert diag.tcp_state(segment(f"{STRANGER}:{port}")) == "LISTEN"


def test_ipv4_clients_of_an_ipv6_listener_are_found(bench: Bench, diag: sockdiag.SockDiag) -> None:
    bench.listener.close()
    bench.listen_dual_stack()
    _connection, accepted = bench.connection()
    assert diag.tcp_state(flow_to(accepted)) == "ESTABLISHED"
    (found,) = scan(bench)
    assert found.local == VIPS[0].packed and found.local_port == PORT
    assert found.remote_port == accepted.getpeername()[1]


def test_udp(bench: Bench, diag: sockdiag.SockDiag) -> None:
    flow = flow_from_text(f"{STRANGER}:4000", f"{VIP}:53", "udp", "eth0")
    assert not diag.udp_connected(flow)
    server = bench.open(bench.host, socket.SOCK_DGRAM)
    server.bind((VIP, 53))
    assert not diag.udp_connected(flow)
    server.connect((STRANGER, 4000))
    assert diag.udp_connected(flow)
    assert not diag.udp_connected(flow._replace(source_port=4001))


def test_scan_finds_the_connections_of_the_cluster_address_only(bench: Bench) -> None:
    listener = bench.open(bench.host)
    listener.bind(("10.1.0.1", PORT))
    listener.listen()
    elsewhere = bench.open(bench.client)
    elsewhere.connect(("10.1.0.1", PORT))
    connection, accepted = bench.connection()
    assert scan(bench) == [
        sockdiag.TcpSocket(
            "ESTABLISHED",
            VIPS[0].packed,
            PORT,
            socket.inet_aton(connection.getsockname()[0]),
            connection.getsockname()[1],
            None,
            scan(bench)[0].inode,
        )
    ]
    assert scan(bench)[0].inode == os.fstat(accepted.fileno()).st_ino


def test_count_leaves_out_what_no_client_waits_for(bench: Bench) -> None:
    with inside(bench.host):
        assert sockdiag.count_connections(VIPS) == (0, 0.0)
    ends = [bench.connection() for _ in range(4)]
    with inside(bench.host):
        assert sockdiag.count_connections(VIPS)[0] == 4
    ends[0][1].close()  # FIN_WAIT2: the client has our FIN and all data
    ends[1][0].close()  # CLOSE_WAIT: the client waits for the rest
    for end in ends[2]:
        end.close()
    bench.wire.tcp("S", 5001, seq=100)
    assert bench.wire.answer(5001) is not None

    def states() -> list[str]:
        return sorted(found.state for found in scan(bench))

    wait_for(lambda: "FIN_WAIT2" in states() and "CLOSE_WAIT" in states())
    with inside(bench.host):
        counted, _ = sockdiag.count_connections(VIPS)
    assert counted == sum(state != "FIN_WAIT2" for state in states())
    assert "SYN_RECV" in states()


def test_the_longest_idle_time_is_of_the_quietest_connection(bench: Bench) -> None:
    bench.connection()

    def longest_s() -> float:
        with inside(bench.host):
            return sockdiag.count_connections(VIPS)[1]

    wait_for(lambda: longest_s() >= 0.4)
    connection, accepted = bench.connection()
    connection.send(b"x")
    assert accepted.recv(1) == b"x"
    assert longest_s() >= 0.4
    youngest = min(found.idle_ms or 0 for found in scan(bench, with_idle_time=True))
    assert youngest < 300


def test_idle_maps_lack_exactly_the_buckets_of_live_connections(bench: Bench) -> None:
    def idle() -> tuple[int, ...]:
        with inside(bench.host):
            return sockdiag.connected(bench.table)[0]

    assert idle() == (ALL_BUCKETS, ALL_BUCKETS)
    accepted = [handshake(bench, sport)[0] for sport in (5101, 5102, 5103)]
    busy = 0
    for sport in (5101, 5102, 5103):
        decision = decide(bench.table, segment(f"{STRANGER}:{sport}"), NoSockets(), lambda: 0)
        assert decision.bucket is not None
        busy |= 1 << decision.bucket
    assert idle() == (ALL_BUCKETS & ~busy, ALL_BUCKETS)
    for end in accepted:
        end.close()
    bench.wire.tcp("R", 5101, seq=101)
    assert idle()[0] & busy != busy


def test_a_connection_that_no_rule_covers_is_busy_in_the_default_slot(bench: Bench) -> None:
    bench.listen(port=81)
    bench.connect(port=81)
    bench.accept()
    with inside(bench.host):
        idle = sockdiag.connected(bench.table)[0]
    assert idle[0] == ALL_BUCKETS
    assert (ALL_BUCKETS ^ idle[1]).bit_count() == 1


def test_many_sockets_in_one_scan(bench: Bench) -> None:
    ends = [bench.connection() for _ in range(300)]
    found = scan(bench, with_idle_time=True)
    assert sorted(s.remote_port for s in found) == sorted(e[0].getsockname()[1] for e in ends)
    assert all(s.idle_ms is not None for s in found)


def test_syn_cookies_are_counted(bench: Bench) -> None:
    def sent() -> int:
        with inside(bench.host):
            return sockdiag.syn_cookies_sent()

    assert sent() == 0
    bench.host.run("sysctl -w net.ipv4.tcp_syncookies=2")
    bench.wire.tcp("S", 5001, seq=100)
    assert bench.wire.answer(5001) is not None
    assert sent() == 1
