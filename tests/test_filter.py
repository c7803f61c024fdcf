"""The decision, step by step, in the order and with the numbers of its definition."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convergence.rules import (
    ALL_BUCKETS,
    BUCKETS,
    DEFAULT_RULE,
    Affinity,
    FilteringMode,
    PortRule,
    Protocol,
)
from softnlb.filter import (
    Decision,
    FilterRule,
    FilterTable,
    NoSockets,
    Reason,
    Verdict,
    decide,
    default_hash_seed,
    hash_key,
    hash_of,
    match_rule,
)
from softnlb.packet import ACK, ARP, FIN, ICMPV6, PSH, RST, SYN, TCP, UDP, Flow, flow_from_text

VIP, OTHER_VIP = ip_address("10.1.0.100"), ip_address("10.1.0.101")
VIP_V6 = ip_address("2001:db8::100")
CLUSTER_MAC = bytes.fromhex("02bf0a010064")
NOW_MS = 1_000_000
WEB = PortRule(None, 80, 80, Protocol.TCP, affinity=Affinity.NONE)
DISABLED = PortRule(None, 23, 23, Protocol.BOTH, FilteringMode.DISABLED)


def table(*rules: FilterRule, **changes: object) -> FilterTable:
    """A started host that owns everything, but for the rules given."""
    built = FilterTable(
        interface="eth0",
        cluster_mac=CLUSTER_MAC,
        cluster_ip_addresses=(VIP, OTHER_VIP, VIP_V6),
        local_ip_addresses=(ip_address("10.1.0.1"), VIP, OTHER_VIP, VIP_V6),
        hash_seed=default_hash_seed(VIP),
        rules=(*rules, FilterRule(DEFAULT_RULE, current=ALL_BUCKETS)),
        valid_until_ms=NOW_MS + 1,
    )
    return replace(built, **changes)  # type: ignore[arg-type]


OWNS = table(FilterRule(WEB, current=ALL_BUCKETS))
OWNS_NOTHING = table(FilterRule(WEB), rules=(FilterRule(WEB), FilterRule(DEFAULT_RULE)))
ORPHANS = table(FilterRule(WEB, current=ALL_BUCKETS, orphan=ALL_BUCKETS))
LAPSED = {"valid_until_ms": NOW_MS}


class Stack(NoSockets):
    """A host with one answer to every question."""

    def __init__(
        self, state: str | None = None, ours: bool = False, ct: bool = False, udp: bool = False
    ) -> None:
        self.state, self.ours, self.ct, self.udp = state, ours, ct, udp

    def tcp_state(self, flow: Flow) -> str | None:
        return self.state

    def acknowledges_syn_ack(self, flow: Flow) -> bool:
        return self.ours

    def conntracked(self, flow: Flow) -> bool:
        return self.ct

    def udp_connected(self, flow: Flow) -> bool:
        return self.udp


def tcp(
    flags: int = SYN, port: int = 80, client: str = "10.0.0.7:40000", vip: object = VIP
) -> Flow:
    return flow_from_text(client, f"{vip}:{port}", "tcp", "eth0")._replace(flags=flags)


def udp(port: int = 53) -> Flow:
    return flow_from_text("10.0.0.7:40000", f"{VIP}:{port}", "udp", "eth0")


def icmp(kind: int) -> Flow:
    return flow_from_text("10.0.0.7", str(VIP), "icmp", "eth0")._replace(icmp_type=kind)


def icmp_v6(kind: int) -> Flow:
    return flow_from_text("2001:db8::7", str(VIP_V6), "icmp", "eth0")._replace(icmp_type=kind)


def other(protocol: int) -> Flow:
    return udp()._replace(protocol=protocol, source_port=0, destination_port=0)


ARP_REQUEST = other(ARP)
TO_NEIGHBOUR = tcp()._replace(destination=bytes((10, 1, 0, 2)), destination_mac=CLUSTER_MAC)
TO_MYSELF = tcp()._replace(destination=bytes((10, 1, 0, 1)), destination_mac=CLUSTER_MAC)
GROUP_QUERY = other(2)._replace(destination=bytes((239, 255, 0, 100)), destination_mac=CLUSTER_MAC)
LATER_FRAGMENT = Flow("eth0", None, 0, b"\n\0\0\7", VIP.packed, UDP, fragment_offset=1480)
CUT_OFF = Flow("eth0", None, 0, b"\n\0\0\7", VIP.packed, TCP, malformed=True)
STOPPED = replace(OWNS, started=False)
WITH_DISABLED = table(FilterRule(DISABLED, current=ALL_BUCKETS))
SWITCHED_OFF = table(FilterRule(WEB, current=ALL_BUCKETS, enabled=False))
NONE, LISTEN = Stack(), Stack("LISTEN")

CASES: list[tuple[str, FilterTable, Flow, NoSockets, str]] = [
    ("0 tagged", OWNS, tcp()._replace(vlan_id=12), NONE, "untouched tagged"),
    ("0 tagged, another interface", OWNS, tcp()._replace(vlan_id=12, interface="eth1"), NONE,
     "drop wrong-interface"),
    ("0 priority tag only", OWNS, tcp()._replace(vlan_id=0), NONE, "keep owner"),
    ("1 through another interface", OWNS, tcp()._replace(interface="eth1"), NONE,
     "drop wrong-interface"),
    ("1 from this host itself", OWNS_NOTHING, tcp()._replace(interface="lo"), NONE,
     "keep every-host"),
    ("1 flooded, for a neighbour", OWNS, TO_NEIGHBOUR, NONE, "drop never-forward"),
    ("1 for a neighbour, from elsewhere", OWNS, TO_NEIGHBOUR._replace(interface="eth1"), NONE,
     "untouched not-cluster"),
    ("1 for a neighbour, other MAC", OWNS, TO_NEIGHBOUR._replace(destination_mac=bytes(6)), NONE,
     "untouched not-cluster"),
    ("1 flooded, for my own address", OWNS, TO_MYSELF, NONE, "untouched not-cluster"),
    ("1 IGMP query at the cluster MAC", OWNS, GROUP_QUERY, NONE, "untouched not-cluster"),
    ("2 ARP", OWNS_NOTHING, ARP_REQUEST, NONE, "keep address-resolution"),
    ("2 ARP, stopped", STOPPED, ARP_REQUEST, NONE, "drop stopped"),
    ("2 neighbour solicitation", OWNS_NOTHING, icmp_v6(135), NONE, "keep address-resolution"),
    ("2 router advertisement", STOPPED, icmp_v6(134), NONE, "keep address-resolution"),
    ("2 listener report", OWNS_NOTHING, icmp_v6(143), NONE, "keep address-resolution"),
    ("3 stopped", STOPPED, tcp(), NONE, "drop stopped"),
    ("3 stopped, established", STOPPED, tcp(ACK), Stack("ESTABLISHED"), "drop stopped"),
    ("3 draining", replace(OWNS, draining=True), tcp(), NONE, "drop draining"),
    ("3 lease over", replace(OWNS, **LAPSED), tcp(), NONE, "drop no-lease"),
    ("3 not mine and lease over", replace(OWNS_NOTHING, **LAPSED), tcp(), NONE, "drop not-mine"),
    ("4 unreachable", OWNS_NOTHING, icmp(3), NONE, "keep icmp-error"),
    ("4 time exceeded", OWNS_NOTHING, icmp(11), NONE, "keep icmp-error"),
    ("4 parameter problem", OWNS_NOTHING, icmp(12), NONE, "keep icmp-error"),
    ("4 packet too big", OWNS_NOTHING, icmp_v6(2), NONE, "keep icmp-error"),
    ("4 IPv4 type 2 is no error", OWNS_NOTHING, icmp(2), NONE, "drop not-mine"),
    ("4 echo", OWNS_NOTHING, icmp(8), NONE, "keep every-host"),
    ("4 echo v6", OWNS_NOTHING, icmp_v6(128), NONE, "keep every-host"),
    ("4 echo filtered, not mine", replace(OWNS_NOTHING, filter_icmp=True), icmp(8), NONE,
     "drop not-mine"),
    ("4 echo filtered, mine", replace(OWNS, filter_icmp=True), icmp(8), NONE, "keep owner"),
    ("4 timestamp, default host", OWNS, icmp(13), NONE, "keep owner"),
    ("4 timestamp, elsewhere", OWNS_NOTHING, icmp(13), NONE, "drop not-mine"),
    ("5 remote control", replace(OWNS_NOTHING, remote_control_port=2504), udp(2504), NONE,
     "keep remote-control"),
    ("5 remote control is off", OWNS_NOTHING, udp(2504), NONE, "drop not-mine"),
    ("5 remote control is UDP", replace(OWNS_NOTHING, remote_control_port=80), tcp(), NONE,
     "drop not-mine"),
    ("6 later fragment", OWNS_NOTHING, LATER_FRAGMENT, NONE, "keep fragment"),
    ("6 header cut off", OWNS, CUT_OFF, NONE, "drop malformed"),
    ("6 ICMP header cut off", OWNS, CUT_OFF._replace(protocol=1), NONE, "drop malformed"),
    ("7 disabled", WITH_DISABLED, tcp(port=23), NONE, "drop disabled"),
    ("7 disabled, established", WITH_DISABLED, tcp(ACK, 23), Stack("ESTABLISHED"),
     "drop disabled"),
    ("7 switched off on this host", SWITCHED_OFF, tcp(), NONE, "drop disabled"),
    ("7 no rule, default host", OWNS, tcp(port=81), NONE, "keep owner"),
    ("7 no rule, elsewhere", OWNS_NOTHING, tcp(port=81), NONE, "drop not-mine"),
    ("9a SYN, mine", OWNS, tcp(SYN), NONE, "keep owner"),
    ("9a SYN, elsewhere", OWNS_NOTHING, tcp(SYN), NONE, "drop not-mine"),
    ("9a SYN, elsewhere, old socket", OWNS_NOTHING, tcp(SYN), Stack("TIME_WAIT"),
     "drop not-mine"),
    ("9a SYN with ECN and data", OWNS, tcp(SYN | PSH | 0xC0), NONE, "keep owner"),
    ("9b answer to my own SYN", OWNS_NOTHING, tcp(SYN | ACK), Stack("SYN_SENT"),
     "keep second-chance"),
    *(
        (f"9b {state}", OWNS_NOTHING, tcp(ACK), Stack(state), "keep second-chance")
        for state in ("ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "CLOSING", "LAST_ACK")
    ),
    ("9b lease over", replace(OWNS, **LAPSED), tcp(ACK), Stack("ESTABLISHED"),
     "keep second-chance"),
    ("9b draining", replace(OWNS, draining=True), tcp(ACK), Stack("ESTABLISHED"),
     "keep second-chance"),
    ("9c ACK of my SYN-ACK", OWNS_NOTHING, tcp(ACK), Stack("SYN_RECV", ours=True),
     "keep second-chance"),
    ("9c ACK of another's SYN-ACK", OWNS, tcp(ACK), Stack("SYN_RECV"), "drop half-open"),
    ("9c RST", OWNS_NOTHING, tcp(RST), Stack("SYN_RECV"), "keep second-chance"),
    ("9d FIN", OWNS_NOTHING, tcp(FIN | ACK), Stack("TIME_WAIT"), "keep time-wait"),
    ("9d ACK", OWNS, tcp(ACK), Stack("TIME_WAIT"), "drop time-wait"),
    ("9e forwarded port", OWNS_NOTHING, tcp(ACK), Stack(ct=True), "keep conntrack"),
    ("9e forwarded port, listener", OWNS_NOTHING, tcp(ACK), Stack("LISTEN", ct=True),
     "keep conntrack"),
    ("9f SYN cookie", OWNS_NOTHING, tcp(ACK | PSH), Stack("LISTEN", ours=True), "keep syn-cookie"),
    ("9f SYN cookie, no listener", OWNS_NOTHING, tcp(ACK), Stack(ours=True), "drop not-mine"),
    ("9f not a cookie of mine", OWNS, tcp(ACK), LISTEN, "drop no-socket"),
    ("9f a cookie with FIN", OWNS, tcp(ACK | FIN), Stack("LISTEN", ours=True), "drop no-socket"),
    ("9g orphan", ORPHANS, tcp(ACK), NONE, "keep orphan-reset"),
    ("9g orphan, a listener is there", ORPHANS, tcp(ACK), LISTEN, "keep orphan-reset"),
    ("9g orphan, lease over", replace(ORPHANS, **LAPSED), tcp(ACK), NONE, "drop no-lease"),
    ("9g SYN is no orphan", replace(ORPHANS, **LAPSED), tcp(SYN), NONE, "drop no-lease"),
    ("9h mine, no socket", OWNS, tcp(ACK), NONE, "drop no-socket"),
    ("9h elsewhere, no socket", OWNS_NOTHING, tcp(ACK), LISTEN, "drop not-mine"),
    ("9h RST without a socket", OWNS, tcp(RST), NONE, "drop no-socket"),
    ("10 connected to this peer", OWNS_NOTHING, udp(), Stack(udp=True), "keep second-chance"),
    ("10 mine", OWNS, udp(), NONE, "keep owner"),
    ("10 elsewhere", OWNS_NOTHING, udp(), NONE, "drop not-mine"),
    ("11 GRE, default host", OWNS, other(47), NONE, "keep owner"),
    ("11 GRE, elsewhere", OWNS_NOTHING, other(47), NONE, "drop not-mine"),
]  # fmt: skip


@pytest.mark.parametrize(("built", "flow", "stack", "expected"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])  # fmt: skip
def test_step(built: FilterTable, flow: Flow, stack: NoSockets, expected: str) -> None:
    decision = decide(built, flow, stack, lambda: NOW_MS)
    assert f"{decision.verdict} {decision.reason}" == expected


def test_an_icmp_v6_type_is_none_of_icmp() -> None:
    assert icmp_v6(3).protocol == ICMPV6
    assert decide(OWNS_NOTHING, icmp_v6(3), NONE, lambda: 0).reason is Reason.ICMP_ERROR


def test_a_decision_tells_slot_key_hash_and_bucket() -> None:
    decision = decide(OWNS, tcp(), NONE, lambda: 0)
    key = bytes((10, 0, 0, 7)) + (40000).to_bytes(2, "big")
    hashed = mmh3.hash(key, 0x0A010064, signed=False)
    assert decision == Decision(Verdict.KEEP, Reason.OWNER, 0, key, hashed, hashed % 60)


def test_the_clock_is_read_for_an_owner_keep_only() -> None:
    def broken_clock() -> int:
        raise AssertionError("nobody needs the time")

    for built, flow, stack, expected in (case[1:] for case in CASES):
        needs_time = expected in ("keep owner", "keep orphan-reset") or "lease" in expected
        if not needs_time:
            decide(built, flow, stack, broken_clock)


def test_the_socket_is_not_looked_up_for_a_syn() -> None:
    class Broken(NoSockets):
        def tcp_state(self, flow: Flow) -> str | None:
            raise AssertionError("a flood of SYNs must not cost look-ups")

    assert decide(OWNS, tcp(SYN), Broken(), lambda: NOW_MS).verdict is Verdict.KEEP


# ---------------------------------------------------------------- rules, keys, hash


def test_a_rule_for_the_address_beats_one_for_all() -> None:
    rules = (
        PortRule(None, 0, 1000, Protocol.BOTH),
        PortRule(OTHER_VIP, 80, 90, Protocol.TCP),
        PortRule(None, 2000, 2000, Protocol.UDP),
    )
    built = table(*(FilterRule(rule) for rule in rules))
    slots = {
        (vip, protocol, port): match_rule(built, ip_address(vip).packed, protocol, port)
        for vip in (str(VIP), str(OTHER_VIP))
        for protocol in (TCP, UDP)
        for port in (0, 79, 80, 90, 91, 1000, 1001, 2000)
    }
    specific = {key for key, slot in slots.items() if slot == 1}
    assert specific == {(str(OTHER_VIP), TCP, 80), (str(OTHER_VIP), TCP, 90)}
    assert {key for key, slot in slots.items() if slot == 2} == {
        (str(VIP), UDP, 2000),
        (str(OTHER_VIP), UDP, 2000),
    }
    assert slots[str(VIP), TCP, 1001] == 3 and slots[str(VIP), TCP, 2000] == 3
    assert slots[str(VIP), TCP, 1000] == 0 and slots[str(OTHER_VIP), UDP, 80] == 0


@pytest.mark.parametrize(
    ("affinity", "source", "port", "key"),
    [
        (Affinity.NONE, "10.0.0.7", 40000, "0a0000079c40"),
        (Affinity.SINGLE, "10.0.0.7", 40000, "0a000007"),
        (Affinity.NETWORK, "10.0.0.7", 40000, "0a000000"),
        (Affinity.NONE, "2001:db8::7", 1, "20010db80000000000000000000000070001"),
        (Affinity.SINGLE, "2001:db8::7", 1, "20010db8000000000000000000000007"),
        (Affinity.NETWORK, "2001:db8:1:2:3:4:5:6", 1, "20010db8000100020000000000000000"),
    ],
)
def test_key(affinity: Affinity, source: str, port: int, key: str) -> None:
    assert hash_key(affinity, ip_address(source).packed, port).hex() == key


@pytest.mark.parametrize(
    ("key", "seed", "hashed"),
    # The first six are the published test vectors of MurmurHash3_x86_32.
    [
        ("", 0, 0),
        ("", 1, 0x514E28B7),
        ("", 0xFFFFFFFF, 0x81F16F39),
        ("21436587", 0, 0xF55B516B),
        ("21436587", 0x5082EDEE, 0x2362F9DE),
        ("214365", 0, 0x7E4A8634),
        ("0a000007", 0x0A010064, 3493637500),
    ],
)
def test_hash(key: str, seed: int, hashed: int) -> None:
    assert hash_of(bytes.fromhex(key), seed) == hashed


def test_seed() -> None:
    assert default_hash_seed(VIP) == 0x0A010064
    assert default_hash_seed(VIP_V6) == 0x20010DB8 ^ 0x100


def verdicts(hosts: Iterable[FilterTable], flow: Flow) -> list[Decision]:
    return [decide(host, flow, NONE, lambda: NOW_MS) for host in hosts]


flows = st.builds(
    lambda ip, port, to: tcp()._replace(
        source=ip.to_bytes(4, "big"), source_port=port, destination_port=to
    ),
    st.integers(0, 2**32 - 1),
    st.integers(0, 65535),
    st.sampled_from([80, 443, 8080]),
)
owner_lists = st.lists(st.integers(0, 3), min_size=BUCKETS, max_size=BUCKETS)


@given(flows, owner_lists, st.sampled_from(list(Affinity)))
def test_of_hosts_with_complementary_maps_exactly_one_keeps_a_syn(
    flow: Flow, owners: list[int], affinity: Affinity
) -> None:
    maps = [sum(1 << b for b, owner in enumerate(owners) if owner == host) for host in range(4)]
    rule = PortRule(None, 80, 443, affinity=affinity)
    hosts = [replace(OWNS, rules=(FilterRule(rule, m), FilterRule(DEFAULT_RULE, m))) for m in maps]
    decisions = verdicts(hosts, flow)
    keepers = [host for host, d in enumerate(decisions) if d.verdict is Verdict.KEEP]
    assert keepers == [owners[decisions[0].bucket or 0]]


@given(flows, st.integers(0, 255), st.integers(0, 65535))
def test_clients_of_one_network_share_a_bucket(flow: Flow, last: int, port: int) -> None:
    rule = PortRule(None, 0, 65535, affinity=Affinity.NETWORK)
    host = table(FilterRule(rule, current=ALL_BUCKETS))
    neighbour = flow._replace(source=flow.source[:3] + bytes((last,)), source_port=port)
    one, other_one = verdicts([host], flow)[0], verdicts([host], neighbour)[0]
    assert (one.key, one.bucket) == (other_one.key, other_one.bucket)


@given(flows, st.integers(0, 65535))
def test_single_affinity_ignores_the_client_port(flow: Flow, port: int) -> None:
    host = table(FilterRule(PortRule(None, 0, 65535), current=ALL_BUCKETS))
    one, other_one = verdicts([host], flow) + verdicts([host], flow._replace(source_port=port))
    assert one == other_one


@given(st.integers(0, 2**60 - 1), flows)
def test_a_map_bit_decides(current: int, flow: Flow) -> None:
    host = table(FilterRule(PortRule(None, 0, 65535, affinity=Affinity.NONE), current=current))
    decision = verdicts([host], flow)[0]
    assert decision.bucket is not None
    assert (decision.verdict is Verdict.KEEP) == bool(current >> decision.bucket & 1)
