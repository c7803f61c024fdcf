"""Neighbour discovery: advertisements for IPv6 cluster addresses, judged by another
implementation, and solicitations of members."""

from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from modes import mac, ndp
from softnlb import arp_probe

VIP = IPv6Address("2001:db8::100")
CLUSTER_MAC = mac.unicast_mac(VIP)
OWN, ASKER = bytes.fromhex("02010a010064"), bytes.fromhex("020000000007")


def solicitation(source: str = "2001:db8::7", target: str = str(VIP), **fields: int) -> bytes:
    packet = IPv6(src=source, dst="ff02::1:ff00:100", hlim=255) / ICMPv6ND_NS(tgt=target)
    if source != "::":
        packet /= ICMPv6NDOptSrcLLAddr(lladdr=mac.colon_mac(ASKER))
    for name, value in fields.items():
        setattr(packet if name == "hlim" else packet[ICMPv6ND_NS], name, value)
    return bytes(packet)


def test_an_advertisement_leads_to_the_cluster_mac() -> None:
    reply = ndp.answer(solicitation(), ASKER, CLUSTER_MAC, {VIP})
    assert reply is not None
    destination, packet = reply
    found = IPv6(packet)
    assert destination == ASKER
    assert (found.src, found.dst, found.hlim) == (str(VIP), "2001:db8::7", 255)
    assert (found[ICMPv6ND_NA].S, found[ICMPv6ND_NA].O, found[ICMPv6ND_NA].R) == (1, 1, 0)
    assert found[ICMPv6NDOptDstLLAddr].lladdr == mac.colon_mac(CLUSTER_MAC)
    given_sum = found[ICMPv6ND_NA].cksum
    del found[ICMPv6ND_NA].cksum
    assert IPv6(bytes(found))[ICMPv6ND_NA].cksum == given_sum


def test_who_wants_the_address_for_itself_is_told_before_everybody() -> None:
    reply = ndp.answer(solicitation("::"), ASKER, CLUSTER_MAC, {VIP})
    assert reply is not None
    assert reply[0] == bytes.fromhex("333300000001")
    found = IPv6(reply[1])
    assert (found.dst, found[ICMPv6ND_NA].S) == ("ff02::1", 0)


def test_an_announcement_is_a_frame_from_the_hosts_own_mac() -> None:
    found = Ether(ndp.announcement(OWN, CLUSTER_MAC, VIP))
    assert (found.src, found.dst) == (mac.colon_mac(OWN), "33:33:00:00:00:01")
    assert found[ICMPv6ND_NA].tgt == str(VIP)
    assert found[ICMPv6NDOptDstLLAddr].lladdr == mac.colon_mac(CLUSTER_MAC)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        solicitation(target="2001:db8::1"),
        solicitation(hlim=254),  # came from beyond a router
        solicitation(code=1),
        solicitation(source="ff02::7"),
        solicitation()[:60],
        bytes(IPv6(src="2001:db8::7", hlim=255) / ICMPv6ND_NA(tgt=str(VIP))),
    ],
)
def test_what_is_no_solicitation_of_ours_is_not_answered(packet: bytes) -> None:
    assert ndp.answer(packet, ASKER, CLUSTER_MAC, {VIP}) is None


@given(st.binary(max_size=120))
def test_garbage_is_not_answered_and_no_error(packet: bytes) -> None:
    assert ndp.answer(packet, ASKER, CLUSTER_MAC, {VIP}) is None


def test_a_host_asks_in_the_name_of_its_dedicated_address_or_not_at_all() -> None:
    """Compare Microsoft KB960916: a request that carried the cluster IP address as its sender."""
    assert "ip6 saddr set 2001:db8::1" in ndp.output_chain([VIP], IPv6Address("2001:db8::1"))
    assert "nd-neighbor-solicit drop" in ndp.output_chain([VIP], None)


def test_a_member_that_does_not_answer_is_asked_again_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine three answers may be late; for a minute nothing could be proven then."""
    asked_ms: list[int] = []

    class Unanswered:
        host_code, answered_from = 77, None

        def __init__(self, _interface: str, _own: IPv6Address, _who: object, now_ms: int) -> None:
            asked_ms.append(now_ms)

        def advance(self, now_ms: int) -> bool | None:
            return True if now_ms >= asked_ms[-1] + 300 else None

        def close(self) -> None:
            pass

    monkeypatch.setattr(arp_probe, "_asked", Unanswered)
    member = SimpleNamespace(
        host_id=2, host_code=77, dedicated_ip_address=IPv4Address("32.1.13.186")
    )
    machine: Any = SimpleNamespace(status=lambda _now_ms: SimpleNamespace(members=[member]))
    own = SimpleNamespace(ip=IPv6Address("2001:db8::1"))
    config: Any = SimpleNamespace(
        interface="eth0", host_id=1, probes_prove=True, dedicated_ip_address=own
    )
    probes = arp_probe.Probes()
    for now_ms in range(0, 300_000, 100):
        assert probes.advance(now_ms) == []
        probes.meet(config, machine, now_ms)
    waits = [later - earlier for earlier, later in pairwise(asked_ms)]
    assert waits[:7] == [1300, 2300, 4300, 8300, 16300, 32300, 60300]
    assert set(waits[7:]) == {60300}
