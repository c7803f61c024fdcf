"""Every data plane on real packets: a host, a client whose kernel is real, and a bare wire."""

import errno
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from convergence.rules import ALL_BUCKETS, BUCKETS, FilteringMode, PortRule, Protocol
from softnlb.filter import NoSockets, decide
from softnlb.packet import flow_from_text
from tests.netns import wait_for
from tests.plane import PORT, STRANGER, VIP, Bench, handshake

RST = 0x04
IP_RECVERR = 11


@pytest.fixture(params=["nfqueue", "tc", "xdp"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


# ---------------------------------------------------------------- new connections


def test_attach_keeps_nothing_and_the_owner_answers_after_install(bench: Bench) -> None:
    bench.listen()
    bench.install(started=False)
    assert not bench.answers()
    bench.install(started=True)
    # A stopped host may not even tell its MAC address: then the client asks again, after a second.
    wait_for(bench.answers)
    counters = bench.counters()
    assert counters["owner"] >= 1 and counters["stopped"] >= 1


def test_each_connection_is_kept_exactly_when_its_bucket_is_mine(bench: Bench) -> None:
    bench.listen()
    mine = sum(1 << bucket for bucket in range(0, BUCKETS, 2))
    bench.install(mine)
    for sport in range(20000, 20030):
        bench.wire.tcp("S", sport, seq=1)
        flow = flow_from_text(f"{STRANGER}:{sport}", f"{VIP}:{PORT}", "tcp", "eth0")
        bucket = decide(bench.table, flow, NoSockets(), lambda: 0).bucket
        assert bucket is not None
        answer = bench.wire.answer(sport, 1.0 if mine >> bucket & 1 else 0.02)
        assert (answer is not None) == bool(mine >> bucket & 1), bucket


def test_what_is_not_mine_is_met_with_silence(bench: Bench) -> None:
    bench.listen()
    bench.install(0)
    for flags in ("S", "A", "PA", "FA", "R", "SA"):
        bench.wire.tcp(flags, seq=1, ack=1)
    assert bench.wire.answer() is None
    assert bench.counters()["not-mine"] >= 3


def test_a_closed_port_of_mine_is_refused_by_the_kernel(bench: Bench) -> None:
    with pytest.raises(ConnectionRefusedError):
        bench.connect(port=81)


def test_the_lease_ends_new_connections_and_no_old_one(bench: Bench) -> None:
    bench.listen()
    old, accepted = bench.connection()
    bench.install(lease_ms=0)
    assert not bench.answers()
    old.send(b"still here")
    assert accepted.recv(20) == b"still here"
    assert bench.counters()["no-lease"] >= 1
    bench.plane.renew(bench.table.valid_until_ms + 60_000)
    assert bench.answers()


def test_draining_ends_new_connections_and_no_old_one(bench: Bench) -> None:
    bench.listen()
    old, accepted = bench.connection()
    bench.install(draining=True)
    assert not bench.answers()
    accepted.send(b"still here")
    assert old.recv(20) == b"still here"


# ---------------------------------------------------------------- second chance


def test_a_connection_survives_the_loss_of_its_bucket_to_its_last_byte(bench: Bench) -> None:
    bench.listen()
    connection, accepted = bench.connection()
    bench.install(0)
    # Closed with most of it unsent: the kernel goes on alone, in FIN_WAIT1 without an owner.
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    accepted.setblocking(False)
    sent = accepted.send(bytes(400_000))
    accepted.close()
    received = 0
    while data := connection.recv(65536):
        received += len(data)
    assert received == sent
    assert sent > 100_000
    connection.close()
    counters = bench.counters()
    assert counters["second-chance"] > 3
    # The acknowledgments went by the kernel's own way, not through the queue.
    assert "no-socket" not in counters


def test_a_connection_that_waits_to_be_accepted_is_kept(bench: Bench) -> None:
    bench.listen()
    connection = bench.connect()
    bench.install(0)
    connection.send(b"early")
    accepted = bench.accept()
    accepted.settimeout(3)
    assert accepted.recv(10) == b"early"


def test_the_ack_of_another_owners_syn_ack_gets_no_reset(bench: Bench) -> None:
    bench.listen()
    bench.wire.tcp("S", 5001, seq=100)
    mine = bench.wire.answer(5001)
    assert mine is not None
    bench.install(0)
    bench.wire.tcp("A", 5001, seq=101, ack=mine[TCP].seq + 77)
    answer = bench.wire.answer(5001)
    assert answer is None or answer[TCP].flags == "SA"
    assert bench.counters()["half-open"] == 1
    bench.wire.tcp("A", 5001, seq=101, ack=mine[TCP].seq + 1)
    assert bench.accept().getpeername() == (STRANGER, 5001)


def test_a_half_open_connection_can_be_reset_by_the_client(bench: Bench) -> None:
    bench.listen()
    bench.wire.tcp("S", 5002, seq=100)
    assert bench.wire.answer(5002) is not None
    bench.install(0)
    bench.wire.tcp("R", 5002, seq=101)
    wait_for(lambda: "SYN-RECV" not in bench.host.run("ss -tan"))


def test_time_wait_answers_a_fin_and_nothing_else(bench: Bench) -> None:
    bench.listen()
    accepted, acknowledgment = handshake(bench, 5010)
    accepted.close()
    fin = bench.wire.answer(5010)
    assert fin is not None and fin[TCP].flags == "FA"
    bench.wire.tcp("FA", 5010, seq=101, ack=acknowledgment + 1)
    assert bench.wire.answer(5010) is not None
    assert "TIME-WAIT" in bench.host.run("ss -tan")
    bench.wire.tcp("A", 5010, seq=77777, ack=88888)
    assert bench.wire.answer(5010) is None
    bench.wire.tcp("FA", 5010, seq=101, ack=acknowledgment + 1)
    answer = bench.wire.answer(5010)
    assert answer is not None and answer[TCP].flags == "A"


def test_syn_cookies_are_kept_and_those_of_others_get_no_reset(bench: Bench) -> None:
    bench.host.run("sysctl -w net.ipv4.tcp_syncookies=2")
    bench.listen()
    bench.wire.tcp("S", 5003, seq=100)
    cookie = bench.wire.answer(5003)
    assert cookie is not None
    bench.install(0)
    bench.wire.tcp("A", 5003, seq=101, ack=cookie[TCP].seq + 5)
    assert bench.wire.answer(5003) is None
    bench.wire.tcp("A", 5003, seq=101, ack=cookie[TCP].seq + 1)
    assert bench.accept().getpeername() == (STRANGER, 5003)
    assert bench.counters()["syn-cookie"] == 1


def test_an_orphan_is_reset_only_where_that_is_proven(bench: Bench) -> None:
    bench.listen()
    bench.wire.tcp("PA", 5004, seq=100, ack=200)
    assert bench.wire.answer(5004) is None
    bench.install(orphan=ALL_BUCKETS)
    bench.wire.tcp("PA", 5005, seq=100, ack=200)
    answer = bench.wire.answer(5005)
    assert answer is not None and int(answer[TCP].flags) & RST
    bench.install(orphan=ALL_BUCKETS, lease_ms=0)
    bench.wire.tcp("PA", 5006, seq=100, ack=200)
    assert bench.wire.answer(5006) is None
    assert bench.counters()["orphan-reset"] == 1


# ---------------------------------------------------------------- other protocols


def test_udp_is_decided_per_datagram_unless_connected(bench: Bench) -> None:
    def server() -> socket.socket:
        made = bench.open(bench.host, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((VIP, 53))
        made.settimeout(0.3)
        return made

    listener = server()
    client = bench.open(bench.client, socket.SOCK_DGRAM)
    client.connect((VIP, 53))
    client.send(b"mine")
    assert listener.recv(10) == b"mine"
    bench.install(0)
    client.send(b"not mine")
    with pytest.raises(TimeoutError):
        listener.recv(10)
    connected = server()
    connected.connect(client.getsockname())
    client.send(b"connected")
    assert connected.recv(10) == b"connected"
    counters = bench.counters()
    assert (counters["owner"], counters["not-mine"], counters["second-chance"]) == (1, 1, 1)


def test_echo_is_answered_by_every_host_or_by_the_owner(bench: Bench) -> None:
    bench.install(0)
    bench.wire.echo()
    answer = bench.wire.answer()
    assert answer is not None and answer[ICMP].type == 0
    bench.install(0, filter_icmp=True)
    bench.wire.echo()
    assert bench.wire.answer() is None
    bench.install(filter_icmp=True)
    bench.wire.echo()
    assert bench.wire.answer() is not None


def test_icmp_errors_reach_the_socket_wherever_the_bucket_is(bench: Bench) -> None:
    bench.listen()
    accepted, acknowledgment = handshake(bench, 5008)
    bench.install(0)
    accepted.send(b"lost")
    quoted = IP(src=VIP, dst=STRANGER) / TCP(sport=PORT, dport=5008, seq=acknowledgment)
    accepted.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    bench.wire.send(IP(src=STRANGER, dst=VIP) / ICMP(type=3, code=1) / quoted)
    wait_for(lambda: bench.counters().get("icmp-error") == 1)
    error = wait_for(lambda: accepted.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    assert error == errno.EHOSTUNREACH


def test_fragments_are_put_together_before_the_decision(bench: Bench) -> None:
    listener = bench.open(bench.host, socket.SOCK_DGRAM)
    listener.bind((VIP, 53))
    listener.settimeout(3)
    client = bench.open(bench.client, socket.SOCK_DGRAM)
    client.sendto(bytes(9000), (VIP, 53))
    assert len(listener.recv(10_000)) == 9000
    bench.install(0)
    client.sendto(bytes(9000), (VIP, 53))
    wait_for(lambda: bench.counters().get("not-mine") == 1)


def test_a_disabled_rule_ends_even_old_connections(bench: Bench) -> None:
    bench.listen()
    connection, accepted = bench.connection()
    accepted.settimeout(0.3)
    bench.install(rule=PortRule(None, 80, 90, Protocol.TCP, FilteringMode.DISABLED))
    connection.send(b"?")
    with pytest.raises(TimeoutError):
        accepted.recv(1)
    assert not bench.answers()
    bench.install()
    wait_for(lambda: accepted.recv(1) == b"?")


def test_a_malformed_segment_is_dropped(bench: Bench) -> None:
    bench.wire.send(IP(src=STRANGER, dst=VIP, proto=6) / Raw(bytes(10)))
    wait_for(lambda: bench.counters().get("malformed") == 1)


def test_this_host_reaches_its_own_cluster_address_always(bench: Bench) -> None:
    bench.listen()
    bench.install(0, lease_ms=0)
    bench.host.call(socket.create_connection, (VIP, PORT), 3).close()


def test_other_addresses_of_the_host_are_left_alone(bench: Bench) -> None:
    bench.listen(port=22, address="10.1.0.1")
    bench.install(0, lease_ms=0)
    bench.client.call(socket.create_connection, ("10.1.0.1", 22), 3).close()


def test_counters_of_one_rule(bench: Bench) -> None:
    bench.listen()
    bench.install(0)
    bench.wire.tcp("S", 5009)
    bench.wire.send(IP(src=STRANGER, dst=VIP) / UDP(dport=53))
    wait_for(lambda: bench.counters().get("not-mine") == 2)
    assert bench.plane.slot_counters(0) == {"not-mine": 1}
    assert bench.plane.slot_counters(1) == {"not-mine": 1}
