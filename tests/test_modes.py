"""What each operation mode computes: addresses, plans and nft text."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modes import arp, mac
from modes.plan import LinkChoices, Mode
from modes.planner import plan_link

PRIMARY = IPv4Address("192.168.100.80")
VIPS = (IPv4Interface("192.168.100.80/24"), IPv4Interface("192.168.100.81/24"))
addresses = st.ip_addresses(v=4)
host_ids = st.integers(1, 32)


def test_the_example_of_the_documentation() -> None:
    # Microsoft KB4494444; the capture that tcpdump tests with shows hosts 1 and 2 of this cluster.
    assert mac.ip2mac(PRIMARY) == {
        "cluster_ip_address": "192.168.100.80",
        "unicast": "02-BF-C0-A8-64-50",
        "multicast": "03-BF-C0-A8-64-50",
        "igmp_multicast": "01-00-5E-7F-64-50",
        "igmp_group": "239.255.100.80",
    }
    assert mac.colon_mac(mac.host_mac(1, PRIMARY)) == "02:01:c0:a8:64:50"
    assert mac.colon_mac(mac.host_mac(2, PRIMARY)) == "02:02:c0:a8:64:50"


@given(addresses)
def test_group_and_individual_bits(address: IPv4Address) -> None:
    # IEEE 802: bit 0 of the first byte is the group bit, bit 1 "locally administered".
    assert mac.unicast_mac(address)[0] & 3 == 2
    assert mac.multicast_mac(address)[0] & 3 == 3
    group = mac.group(address)
    assert group.is_multicast
    # RFC 1112: the low 23 bits of the group in the MAC address.
    low = int(group) & 0x7F_FFFF
    assert int.from_bytes(mac.group_mac(address)) == 0x01_00_5E_00_00_00 | low


@given(addresses, host_ids)
def test_a_host_mac_is_no_cluster_mac(address: IPv4Address, host_id: int) -> None:
    own = mac.host_mac(host_id, address)
    assert own[0] & 3 == 2
    assert own[1] == host_id
    assert own != mac.unicast_mac(address)


@pytest.mark.parametrize("host_id", [0, 33, -1, 0xBF])
def test_host_ids_outside_1_to_32_have_no_mac(host_id: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.32"):
        mac.host_mac(host_id, PRIMARY)


@given(st.binary(min_size=6, max_size=6))
def test_a_mac_survives_both_notations(address: bytes) -> None:
    assert mac.parse_mac(mac.format_mac(address)) == address
    assert mac.parse_mac(mac.colon_mac(address)) == address


@pytest.mark.parametrize("text", ["", "02-bf-c0-a8-64", "02bf.c0a8.6450", "02-bf-c0-a8-64-5", "x"])
def test_what_is_not_a_mac(text: str) -> None:
    with pytest.raises(ValueError):
        mac.parse_mac(text)


def test_unicast_plan() -> None:
    plan = plan_link(Mode.UNICAST, "eth0", 7, VIPS)
    assert plan.cluster_mac == bytes.fromhex("02bfc0a86450")
    assert plan.interface_mac == bytes.fromhex("0207c0a86450")
    assert plan.secondary_mac
    assert not plan.join_mac
    assert plan.group is None
    assert plan.heartbeat_destination == b"\xff" * 6
    assert ("net/ipv4/conf/eth0/arp_notify", "1") in plan.sysctls


def test_the_example_of_an_ipv6_cluster() -> None:
    """Get-NlbClusterDriverInfo's documentation; the group is built as IGMP mode's."""
    assert mac.ip2mac(IPv6Address("2001:4898:e8:3018:bd82:dde1:6615:7b0")) == {
        "cluster_ip_address": "2001:4898:e8:3018:bd82:dde1:6615:7b0",
        "unicast": "02-BF-FB-7E-A2-D1",
        "multicast": "03-BF-FB-7E-A2-D1",
        "mld_multicast": "33-33-EF-FF-A2-D1",
        "mld_group": "ff05::efff:a2d1",
    }


@pytest.mark.parametrize("mode", Mode)
def test_a_cluster_with_both_ip_versions_has_rules_for_both(mode: Mode) -> None:
    both = (*VIPS, IPv6Interface("2001:db8::100/64"))
    plan = plan_link(mode, "eth0", 1, both)
    assert [family for family, _ in plan.nft_tables] == ["netdev", "arp", "ip", "ip6"]
    assert "ip6 daddr { 2001:db8::100 } meta pkttype set host" in plan.nft_ruleset
    assert plan.cluster_mac == plan_link(mode, "eth0", 1, VIPS).cluster_mac
    only = plan_link(mode, "eth0", 1, both[2:])
    assert [family for family, _ in only.nft_tables] == ["netdev", "ip6"]
    assert not any("ipv4/conf/all" in name for name, _ in only.sysctls)


def test_what_an_operator_chooses() -> None:
    by_hand = bytes.fromhex("02bfc0ffee01")
    plan = plan_link(Mode.UNICAST, "eth0", 7, VIPS, choices=LinkChoices(cluster_mac=by_hand))
    assert (plan.cluster_mac, plan.secondary_mac) == (by_hand, True)
    assert plan.interface_mac == bytes.fromhex("0207c0a86450")
    bare = plan_link(Mode.UNICAST, "eth0", 7, VIPS, choices=LinkChoices(mask_source_mac=False))
    assert bare.interface_mac == bare.cluster_mac
    assert not bare.secondary_mac
    silent = plan_link(Mode.IGMP, "eth0", 7, VIPS, choices=LinkChoices(arp_for_vip=False))
    assert not silent.announces
    assert "arp operation reply drop" in silent.nft_ruleset


def test_multicast_plan() -> None:
    plan = plan_link(Mode.MULTICAST, "eth0", 7, VIPS)
    assert plan.cluster_mac == bytes.fromhex("03bfc0a86450")
    assert plan.interface_mac is None
    assert not plan.secondary_mac
    assert plan.join_mac
    assert plan.group is None
    assert plan.heartbeat_destination == plan.cluster_mac


def test_igmp_plan() -> None:
    plan = plan_link(Mode.IGMP, "eth0", 7, VIPS)
    assert plan.cluster_mac == bytes.fromhex("01005e7f6450")
    assert plan.interface_mac is None
    assert not plan.secondary_mac
    assert plan.group == IPv4Address("239.255.100.80")
    assert plan.heartbeat_destination == plan.cluster_mac


@pytest.mark.parametrize("mode", Mode)
def test_every_mode_has_the_same_rules_but_for_the_cluster_mac(mode: Mode) -> None:
    plan = plan_link(mode, "eth0", 1, VIPS)
    reference = plan_link(Mode.UNICAST, "eth0", 1, VIPS)
    cluster, other = mac.colon_mac(plan.cluster_mac), mac.colon_mac(reference.cluster_mac)
    assert plan.nft_ruleset.replace(cluster, other) == reference.nft_ruleset
    # The MAC address of every cluster IP address is that of the primary.
    assert "192.168.100.80, 192.168.100.81" in plan.nft_ruleset
    assert set(plan.sysctls) >= {
        ("net/ipv4/conf/all/arp_ignore", "1"),
        ("net/ipv4/conf/all/arp_announce", "2"),
        ("net/ipv4/conf/all/drop_unicast_in_l2_multicast", "1"),
    }


def test_table_names_are_nft_identifiers() -> None:
    plan = plan_link(Mode.UNICAST, "eth0:a@b", 1, VIPS)
    assert {name for _family, name in plan.nft_tables} == {"softnlb_eth0_3aa_40b"}
    assert 'device "eth0:a@b"' in plan.nft_ruleset


@given(addresses, addresses)
def test_only_an_answer_of_the_asked_address_is_an_answer(
    asked: IPv4Address, other: IPv4Address
) -> None:
    answer = arp.announcement(bytes(6), bytes(6), asked)[14:]
    assert arp.is_answer(answer, asked)
    assert arp.is_answer(answer, other) == (asked == other)
    assert not arp.is_answer(arp.probe(bytes(6), asked), asked)


@given(st.binary(max_size=64), addresses)
def test_garbage_is_no_answer_and_no_error(payload: bytes, address: IPv4Address) -> None:
    assert not arp.is_answer(payload, address) or payload[14:18] == address.packed


@pytest.mark.parametrize("mode", Mode)
def test_a_plane_that_sets_the_packet_type_leaves_it_to_no_rule_but_that_of_late_drivers(
    mode: Mode,
) -> None:
    """What is still addressed to the cluster MAC gets its type from the data plane alone."""
    plan = plan_link(mode, "eth0", 1, VIPS, plane_sets_packet_type=True)
    assert plan.nft_tables == plan_link(mode, "eth0", 1, VIPS).nft_tables
    (setting,) = (line for line in plan.nft_ruleset.splitlines() if "pkttype set host" in line)
    assert mac.colon_mac(plan.cluster_mac) not in setting
    if plan.interface_mac:
        assert f"ether daddr {mac.colon_mac(plan.interface_mac)} meta" in setting
    else:
        assert "== 0 meta pkttype multicast" in setting
    assert "fib daddr type unicast drop" in plan.nft_ruleset
