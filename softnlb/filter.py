"""The decision: which packets a host keeps.  Pure, and the reference for every data plane."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol as TypingProtocol

import mmh3

from convergence.rules import (
    BUCKETS,
    Affinity,
    FilteringMode,
    IPAddress,
    PortRule,
    Protocol,
)
from modes.mac import w_x_y_z
from softnlb.known_clients import NO_CLIENTS, Clients
from softnlb.packet import (
    ACK,
    AH,
    ARP,
    ESP,
    FIN,
    GRE,
    ICMP,
    ICMPV6,
    IKE_NAT_PORT,
    IKE_PORT,
    RST,
    SYN,
    TCP,
    UDP,
    Flow,
)


class Verdict(StrEnum):
    """KEEP: up to the stack.  DROP: gone without an answer.  UNTOUCHED: not the cluster's."""

    KEEP = "keep"
    DROP = "drop"
    UNTOUCHED = "untouched"


class Reason(StrEnum):
    """Why; counted per reason and printed by `softnlb explain`."""

    OWNER = "owner"
    SECOND_CHANCE = "second-chance"
    NOT_MINE = "not-mine"
    NO_LEASE = "no-lease"
    DISABLED = "disabled"
    ORPHAN_RESET = "orphan-reset"
    STOPPED = "stopped"
    DRAINING = "draining"
    WRONG_INTERFACE = "wrong-interface"
    NEVER_FORWARD = "never-forward"
    ADDRESS_RESOLUTION = "address-resolution"
    ICMP_ERROR = "icmp-error"
    EVERY_HOST = "every-host"
    FRAGMENT = "fragment"
    MALFORMED = "malformed"
    REMOTE_CONTROL = "remote-control"
    SYN_COOKIE = "syn-cookie"
    CONNTRACK = "conntrack"
    HALF_OPEN = "half-open"
    TIME_WAIT = "time-wait"
    NO_SOCKET = "no-socket"
    TAGGED = "tagged"
    NOT_CLUSTER = "not-cluster"
    AFFINITY = "affinity"
    EXCEPTION = "exception"


KEPT = (
    Reason.OWNER,
    Reason.AFFINITY,
    Reason.SECOND_CHANCE,
    Reason.CONNTRACK,
    Reason.SYN_COOKIE,
    Reason.ORPHAN_RESET,
)
"""The reasons to keep a packet that has met a port rule; a FIN to TIME_WAIT is not counted."""


@dataclass(frozen=True, slots=True)
class FilterRule:
    """A slot as the filter sees it: the rule and this host's buckets in it.

    ``claimed``: other hosts' buckets in which this one goes on accepting the clients that it
    remembers, for rules with extended affinity.
    """

    rule: PortRule
    current: int = 0
    orphan: int = 0
    enabled: bool = True
    claimed: int = 0


@dataclass(frozen=True, slots=True)
class FilterTable:
    """Everything that a verdict depends on, but the packet, the sockets and the clock.

    ``rules``: the port rules in order, the default rule last, as in the heartbeat's slots.
    ``valid_until_ms``: boot-time clock; past it the host acts as if it owned no bucket.
    """

    interface: str
    cluster_mac: bytes
    cluster_ip_addresses: tuple[IPAddress, ...]
    local_ip_addresses: tuple[IPAddress, ...]
    hash_seed: int
    rules: tuple[FilterRule, ...]
    valid_until_ms: int
    started: bool = True
    draining: bool = False
    filter_icmp: bool = False
    remote_control_port: int | None = None
    index: "_Index" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", _Index(self))


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with everything that led to it; None where the rule never got that far."""

    verdict: Verdict
    reason: Reason
    slot: int | None = None
    key: bytes | None = None
    hash: int | None = None
    bucket: int | None = None


class Sockets(TypingProtocol):
    """What the host's stack knows of a connection; a fake in tests, sock_diag in real life."""

    def tcp_state(self, flow: Flow) -> str | None:
        """The kernel's name of the TCP state ("ESTABLISHED", "SYN_RECV", ...), LISTEN or None."""

    def acknowledges_syn_ack(self, flow: Flow) -> bool:
        """True when the segment's acknowledgment is one above the initial sequence number of a
        SYN-ACK that this host sent in this flow, be it a SYN cookie; False when nobody knows."""

    def conntracked(self, flow: Flow) -> bool:
        """True when connection tracking has seen this host accept the SYN (forwarded ports)."""

    def udp_connected(self, flow: Flow) -> bool:
        """True when a UDP socket is connected to this very peer."""


class NoSockets:
    """A host without any connection."""

    def tcp_state(self, flow: Flow) -> str | None:
        return None

    def acknowledges_syn_ack(self, flow: Flow) -> bool:
        return False

    def conntracked(self, flow: Flow) -> bool:
        return False

    def udp_connected(self, flow: Flow) -> bool:
        return False


Clock = Callable[[], int]
"""Boot-time clock in ms; read last, and only before an OWNER keep."""

# ---------------------------------------------------------------- tables in the shape of packets

_LOOPBACK = "lo"
_ICMP_ERRORS = {ICMP: frozenset((3, 11, 12)), ICMPV6: frozenset((1, 2, 3, 4))}
_ECHO = {ICMP: frozenset((0, 8)), ICMPV6: frozenset((128, 129))}
_RULE_PROTOCOLS = {TCP: Protocol.TCP, UDP: Protocol.UDP}
_COMPANIONS = {GRE: TCP, ESP: UDP, AH: UDP}

# Multicast listener discovery (130-132, 143), router and neighbour discovery (133-137).
_ADDRESS_RESOLUTION_V6 = frozenset((*range(130, 138), 143))

_OPENING = SYN | ACK | RST | FIN
"""Of these flags the first segment of a connection carries SYN alone."""

_SYNCHRONIZED = frozenset(
    (
        "SYN_SENT",
        "ESTABLISHED",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "CLOSE_WAIT",
        "CLOSING",
        "LAST_ACK",
    )
)


class _Index:
    """A table's addresses as bytes, and the port ranges to try for each address, in order."""

    __slots__ = ("cluster", "local", "ranges")

    def __init__(self, table: FilterTable) -> None:
        self.cluster = frozenset(ip.packed for ip in table.cluster_ip_addresses)
        self.local = frozenset(ip.packed for ip in table.local_ip_addresses)
        self.ranges: dict[tuple[bytes, int], tuple[tuple[int, int, int], ...]] = {}
        for ip in table.cluster_ip_addresses:
            for number, protocol in _RULE_PROTOCOLS.items():
                # A rule for this very address goes before the rules for All.
                candidates = [
                    (rule.cluster_ip_address is None, rule.start_port, rule.end_port, slot)
                    for slot, rule in enumerate(r.rule for r in table.rules[:-1])
                    if rule.cluster_ip_address in (None, ip) and rule.protocol & protocol
                ]
                candidates.sort(key=lambda candidate: candidate[0])
                self.ranges[ip.packed, number] = tuple(c[1:] for c in candidates)


def match_rule(table: FilterTable, destination: bytes, protocol: int, port: int) -> int:
    """The slot of the rule for a cluster IP address (4 or 16 bytes), an IP protocol number and a
    destination port: a rule for the address beats one for All, the default rule takes the rest.

    GRE goes with PPTP, ESP and AH go with IKE, whose ports ``Flow`` gives them; and IKE itself
    changes its port in the middle where it finds that addresses are translated (RFC 3947).
    """
    if protocol != TCP:
        protocol = _COMPANIONS.get(protocol, protocol)
        if port == IKE_NAT_PORT and protocol == UDP:
            port = IKE_PORT
    for start, end, slot in table.index.ranges.get((destination, protocol), ()):
        if start <= port <= end:
            return slot
    return len(table.rules) - 1


def hash_key(affinity: Affinity, source: bytes, source_port: int) -> bytes:
    """What is hashed of a client: address and port, address, or its network of /24 or /64."""
    if affinity == Affinity.SINGLE:
        return source
    if affinity == Affinity.NONE:
        return source + source_port.to_bytes(2, "big")
    return source[:3] + b"\0" if len(source) == 4 else source[:8] + bytes(8)


def hash_of(key: bytes, seed: int) -> int:
    """murmur3, 32 bits, unsigned; the bucket is this modulo 60."""
    return mmh3.hash(key, seed, signed=False)


def default_hash_seed(primary: IPAddress) -> int:
    """The seed where none is configured: the primary address as a big-endian number, for IPv6 the
    XOR of its four 32-bit words."""
    return int(w_x_y_z(primary))


# ---------------------------------------------------------------- the decision


def decide(
    table: FilterTable,
    flow: Flow,
    sockets: Sockets,
    now_ms: Clock,
    clients: Clients = NO_CLIENTS,
) -> Decision:
    """Whether this host keeps the packet, and why: steps 0 to 11 of the decision, in order.

    An address resolution packet is a flow whose protocol is ``ARP``, its destination the address
    that is asked for.
    """
    if flow.vlan_id and flow.interface == table.interface:
        return Decision(Verdict.UNTOUCHED, Reason.TAGGED)
    if flow.destination not in table.index.cluster:
        return _not_to_the_cluster(table, flow)
    if flow.interface == _LOOPBACK:
        return Decision(Verdict.KEEP, Reason.EVERY_HOST)
    if flow.interface != table.interface:
        return Decision(Verdict.DROP, Reason.WRONG_INTERFACE)

    protocol, icmp_type = flow.protocol, flow.icmp_type
    if protocol == ICMPV6 and icmp_type in _ADDRESS_RESOLUTION_V6:
        return Decision(Verdict.KEEP, Reason.ADDRESS_RESOLUTION)
    if not table.started:
        return Decision(Verdict.DROP, Reason.STOPPED)
    if protocol == ARP:
        return Decision(Verdict.KEEP, Reason.ADDRESS_RESOLUTION)

    if icmp_type >= 0:
        if icmp_type in _ICMP_ERRORS[protocol]:
            return Decision(Verdict.KEEP, Reason.ICMP_ERROR)
        if icmp_type in _ECHO[protocol] and not table.filter_icmp:
            return Decision(Verdict.KEEP, Reason.EVERY_HOST)
    if flow.fragment_offset:
        return Decision(Verdict.KEEP, Reason.FRAGMENT)
    if flow.malformed:
        return Decision(Verdict.DROP, Reason.MALFORMED)
    if protocol == UDP and flow.destination_port == table.remote_control_port:
        return Decision(Verdict.KEEP, Reason.REMOTE_CONTROL)

    slot = match_rule(table, flow.destination, protocol, flow.destination_port)
    rule = table.rules[slot]
    if rule.rule.filtering_mode == FilteringMode.DISABLED or not rule.enabled:
        return Decision(Verdict.DROP, Reason.DISABLED, slot)
    key = hash_key(rule.rule.affinity, flow.source, flow.source_port)
    hashed = hash_of(key, table.hash_seed)
    bucket = hashed % BUCKETS

    verdict, reason = None, None
    if protocol == TCP:
        if flow.flags & _OPENING != SYN:
            verdict, reason = _without_opening(rule, bucket, flow, sockets)
            if reason is Reason.ORPHAN_RESET and now_ms() >= table.valid_until_ms:
                # What was proven of the bucket holds only while nobody else may take it.
                verdict, reason = Verdict.DROP, Reason.NO_LEASE
    elif protocol == UDP and sockets.udp_connected(flow):
        verdict, reason = Verdict.KEEP, Reason.SECOND_CHANCE
    if verdict is None or reason is None:
        if rule.rule.remembers_clients:
            verdict, reason = _by_affinity(table, slot, key, bucket, now_ms, clients)
        else:
            verdict, reason = _owner(table, rule, bucket, now_ms)
    return Decision(verdict, reason, slot, key, hashed, bucket)


def _not_to_the_cluster(table: FilterTable, flow: Flow) -> Decision:
    """Frames flooded for others must not be forwarded; multicast never is, and IGMP mode uses a
    group's MAC address as the cluster's, so queries for the group have to pass."""
    destination = flow.destination
    if (
        flow.destination_mac == table.cluster_mac
        and flow.interface == table.interface
        and destination not in table.index.local
        and destination
        and not flow.destination_ip_address.is_multicast
    ):
        return Decision(Verdict.DROP, Reason.NEVER_FORWARD)
    return Decision(Verdict.UNTOUCHED, Reason.NOT_CLUSTER)


def _owner(
    table: FilterTable, rule: FilterRule, bucket: int, now_ms: Clock
) -> tuple[Verdict, Reason]:
    """Step OWNER: the clock comes last, so that a decision that was delayed meets a late clock."""
    if not rule.current >> bucket & 1:
        return Verdict.DROP, Reason.NOT_MINE
    if table.draining:
        return Verdict.DROP, Reason.DRAINING
    if now_ms() >= table.valid_until_ms:
        return Verdict.DROP, Reason.NO_LEASE
    return Verdict.KEEP, Reason.OWNER


def _by_affinity(
    table: FilterTable, slot: int, key: bytes, bucket: int, now_ms: Clock, clients: Clients
) -> tuple[Verdict, Reason]:
    """Step OWNER, extended affinity: who remembers the client comes before who owns it."""
    rule = table.rules[slot]
    mine = rule.current >> bucket & 1
    if not mine and not rule.claimed >> bucket & 1:
        return Verdict.DROP, Reason.NOT_MINE
    if clients.is_excepted(slot, key):
        return Verdict.DROP, Reason.EXCEPTION
    if (mine and not table.draining) or not clients.recall(slot, key):
        verdict, reason = _owner(table, rule, bucket, now_ms)
        if verdict is Verdict.KEEP:
            clients.remember(slot, key, bucket)
        return verdict, reason
    late = now_ms() >= table.valid_until_ms
    return (Verdict.DROP, Reason.NO_LEASE) if late else (Verdict.KEEP, Reason.AFFINITY)


def _without_opening(
    rule: FilterRule, bucket: int, flow: Flow, sockets: Sockets
) -> tuple[Verdict, Reason]:
    """Steps 9b to 9h: the segment of a connection of this host, of another one, of nobody."""
    state, flags = sockets.tcp_state(flow), flow.flags
    if state in _SYNCHRONIZED:
        return Verdict.KEEP, Reason.SECOND_CHANCE
    if state == "SYN_RECV":
        # The same SYN may have met another owner too, and the client took that one's SYN-ACK:
        # its ACK would be answered with a RST that ends the good connection.
        if flags & RST or sockets.acknowledges_syn_ack(flow):
            return Verdict.KEEP, Reason.SECOND_CHANCE
        return Verdict.DROP, Reason.HALF_OPEN
    if state == "TIME_WAIT":
        # Anything but a FIN may be of a new connection that another host accepted since.
        return (Verdict.KEEP if flags & FIN else Verdict.DROP), Reason.TIME_WAIT
    if sockets.conntracked(flow):
        return Verdict.KEEP, Reason.CONNTRACK
    if state == "LISTEN" and flags & _OPENING == ACK and sockets.acknowledges_syn_ack(flow):
        return Verdict.KEEP, Reason.SYN_COOKIE
    if rule.orphan >> bucket & 1:
        return Verdict.KEEP, Reason.ORPHAN_RESET
    mine = rule.current >> bucket & 1
    return Verdict.DROP, Reason.NO_SOCKET if mine else Reason.NOT_MINE
