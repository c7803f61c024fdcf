"""Packets into flows: every field, every place where a packet can be cut, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.packet import Packet, Raw

from softnlb import packet
from softnlb.errors import UsageError
from softnlb.packet import Flow, flow_from_text, parse

CLIENT, VIP = "10.0.0.7", "10.1.0.100"
CLIENT_V6, VIP_V6 = "2001:db8::7", "2001:db8::100"
V4 = IP(src=CLIENT, dst=VIP)
V6 = IPv6(src=CLIENT_V6, dst=VIP_V6)
SEGMENT = TCP(sport=40000, dport=80, flags="SA", seq=0xFFFFFFFE, ack=0x01020304)


def flow_of(built: Packet) -> Flow:
    return parse(bytes(built), "eth0")


@pytest.mark.parametrize("network", [V4, V6], ids=["IPv4", "IPv6"])
def test_a_tcp_segment_gives_ports_flags_and_numbers(network: Packet) -> None:
    flow = flow_of(network / SEGMENT / Raw(b"data"))
    assert str(flow.source_ip_address) == network.src
    assert str(flow.destination_ip_address) == network.dst
    assert flow[5:] == (6, 40000, 80, 0x12, 0xFFFFFFFE, 0x01020304, -1, -1, 0, False, False)


def test_interface_mac_and_vlan_are_passed_on() -> None:
    mac = bytes.fromhex("02bf0a010064")
    flow = parse(bytes(V4 / SEGMENT), "eth7", mac, 12)
    assert (flow.interface, flow.destination_mac, flow.vlan_id) == ("eth7", mac, 12)


def test_ip_and_tcp_options_are_stepped_over() -> None:
    built = IP(src=CLIENT, dst=VIP, options=b"\x01" * 39 + b"\x00") / TCP(
        sport=1, dport=65535, flags="S", options=[("MSS", 1460), ("Timestamp", (1, 2))]
    )
    flow = flow_of(built)
    assert (flow.source_port, flow.destination_port, flow.flags) == (1, 65535, packet.SYN)
    assert not flow.malformed


def test_udp_and_icmp() -> None:
    udp = flow_of(V4 / UDP(sport=53, dport=5353))
    assert (udp.protocol, udp.source_port, udp.destination_port) == (17, 53, 5353)
    echo = flow_of(V4 / ICMP(type=8, code=0))
    assert (echo.protocol, echo.icmp_type, echo.icmp_code) == (1, 8, 0)
    unreachable = flow_of(V4 / ICMP(type=3, code=4) / IP() / UDP())
    assert (unreachable.icmp_type, unreachable.icmp_code) == (3, 4)
    assert flow_of(V6 / ICMPv6EchoRequest()).icmp_type == 128
    assert flow_of(V6 / ICMPv6ND_NS()).icmp_type == 135


@pytest.mark.parametrize(("protocol", "port"), [(2, 0), (89, 0), (132, 0), (47, 1723), (50, 500)])
def test_other_protocols_have_no_ports_but_borrowed_ones(protocol: int, port: int) -> None:
    flow = flow_of(IP(src=CLIENT, dst=VIP, proto=protocol) / Raw(b"\x12\x34\x56\x78"))
    assert flow[5:8] == (protocol, port, port)
    assert not flow.malformed


def test_fragments() -> None:
    first, *later = fragment(V4 / UDP(sport=1, dport=2) / Raw(bytes(3000)), fragsize=1480)
    flow = flow_of(first)
    assert (flow.destination_port, flow.fragment_offset, flow.more_fragments) == (2, 0, True)
    flows = [flow_of(part) for part in later]
    assert [flow.fragment_offset for flow in flows] == [1480, 2960]
    assert [flow.more_fragments for flow in flows] == [True, False]
    assert all(flow.destination_port == 0 and not flow.malformed for flow in flows)


def test_ipv6_extension_headers_are_stepped_over() -> None:
    authentication = AH(nh=60, payloadlen=4, icv=bytes(12))
    extensions = IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(nh=51) / authentication
    built = V6 / extensions / IPv6ExtHdrDestOpt() / SEGMENT
    flow = flow_of(built)
    assert (flow.protocol, flow.source_port, flow.destination_port) == (6, 40000, 80)


def test_ipv6_fragments() -> None:
    first = flow_of(V6 / IPv6ExtHdrFragment(offset=0, m=1) / UDP(sport=1, dport=2) / Raw(bytes(16)))
    assert (first.destination_port, first.fragment_offset, first.more_fragments) == (2, 0, True)
    later = flow_of(V6 / IPv6ExtHdrFragment(offset=5, m=0, nh=17) / Raw(bytes(16)))
    assert (later.protocol, later.destination_port, later.fragment_offset) == (17, 0, 40)
    assert not later.malformed


@pytest.mark.parametrize(
    "built",
    [V4 / SEGMENT, V4 / UDP() / Raw(b"x"), V4 / ICMP(), V6 / IPv6ExtHdrHopByHop() / SEGMENT],
    ids=["TCP", "UDP", "ICMP", "IPv6 with a hop-by-hop header"],
)
def test_a_packet_cut_before_the_end_of_its_headers_is_malformed(built: Packet) -> None:
    data = bytes(built)
    headers = len(data) - (1 if Raw in built else 0)
    for length in range(headers):
        flow = parse(data[:length], "eth0")
        assert flow.malformed, length
        assert (flow.source_port, flow.destination_port, flow.icmp_type) == (0, 0, -1)
    assert not parse(data[:headers], "eth0").malformed


def test_the_addresses_of_a_cut_packet_are_told_when_they_are_there() -> None:
    data = bytes(V4 / SEGMENT)
    assert parse(data[:19], "eth0").destination == b""
    assert parse(data[:20], "eth0").destination == bytes((10, 1, 0, 100))


@pytest.mark.parametrize(
    "built",
    [
        IP(src=CLIENT, dst=VIP, ihl=4) / SEGMENT,
        IP(src=CLIENT, dst=VIP, len=19) / SEGMENT,
        IP(src=CLIENT, dst=VIP, len=39) / SEGMENT,
        V4 / TCP(dataofs=4),
        V4 / TCP(dataofs=15),
        IPv6(src=CLIENT_V6, dst=VIP_V6, plen=19) / SEGMENT,
        IP(version=5) / SEGMENT,
    ],
    ids=["ihl", "length<ihl", "length<tcp", "offset<5", "offset>length", "plen", "version"],
)
def test_headers_that_contradict_themselves_are_malformed(built: Packet) -> None:
    assert flow_of(built).malformed


def test_bytes_behind_the_length_in_the_ip_header_do_not_count() -> None:
    padded = bytes(IP(src=CLIENT, dst=VIP, len=20, proto=6)) + bytes(26)
    assert parse(padded, "eth0").malformed


@given(st.binary(max_size=200))
def test_any_bytes_parse(data: bytes) -> None:
    flow = parse(data, "eth0")
    assert len(flow.destination) in (0, 4, 16)


@given(st.sampled_from([0x45, 0x46, 0x4F, 0x60]), st.binary(min_size=39, max_size=160))
def test_any_bytes_behind_a_good_first_byte_parse(first: int, data: bytes) -> None:
    flow = parse(bytes((first,)) + data, "eth0")
    assert len(flow.source) == (4 if first >> 4 == 4 else 16)
    assert 0 <= flow.source_port <= 65535 and flow.fragment_offset % 8 == 0


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255))
def test_a_built_segment_comes_back(source: int, destination: int, flags: int) -> None:
    flow = flow_of(V4 / TCP(sport=source, dport=destination, flags=flags))
    assert (flow.source_port, flow.destination_port, flow.flags) == (source, destination, flags)


def test_a_flow_from_text_is_the_flow_of_the_packet() -> None:
    syn = V4 / TCP(sport=40000, dport=80, flags="S", seq=0)
    assert flow_from_text("10.0.0.7:40000", "10.1.0.100:80", "tcp", "eth0") == flow_of(syn)
    datagram = V6 / UDP(sport=40000, dport=53)
    assert flow_from_text("[2001:db8::7]:40000", "[2001:db8::100]:53", "UDP", "eth0") == flow_of(
        datagram
    )
    assert flow_from_text(CLIENT, VIP, "icmp", "eth0") == flow_of(V4 / ICMP(type=8))
    assert flow_from_text(CLIENT_V6, VIP_V6, "icmp", "eth0").icmp_type == 128


@pytest.mark.parametrize(
    ("client", "server", "protocol"),
    [
        ("10.0.0.7", "10.1.0.100:80", "tcp"),
        ("10.0.0.7:40000", "10.1.0.100", "udp"),
        ("10.0.0.7:65536", "10.1.0.100:80", "tcp"),
        ("10.0.0.7:-1", "10.1.0.100:80", "tcp"),
        ("10.0.0.7:http", "10.1.0.100:80", "tcp"),
        ("10.0.0:40000", "10.1.0.100:80", "tcp"),
        ("", "10.1.0.100:80", "tcp"),
        ("10.0.0.7:40000", "[2001:db8::1]:80", "tcp"),
        ("10.0.0.7:40000", "10.1.0.100:80", "sctp"),
    ],
)
def test_a_wrong_text_is_refused_by_name(client: str, server: str, protocol: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        flow_from_text(client, server, protocol)
