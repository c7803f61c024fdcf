"""The comment on each captured frame: which bucket, which host, kept or dropped, and why.

The verdicts are those of ``softnlb.filter.decide`` with the maps that each host announces in its
heartbeats and the connections that were seen at the switch.  A host installs a map that releases
buckets before it announces it, and one that takes buckets when it announces it, so for a frame in
flight at that moment the comment may be some milliseconds off.
"""

from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, NamedTuple

from convergence import clients
from convergence.clients import SIGNATURE_BYTES
from convergence.events import MapsChanged
from convergence.heartbeat import (
    DRAINING,
    ETHERTYPE,
    Foreign,
    Heartbeat,
    HeartbeatError,
    address,
    decode,
)
from convergence.rules import ALL_BUCKETS, BUCKETS
from labs.listed import ClientLists
from modes.mac import w_x_y_z
from softnlb.filter import Decision, FilterTable, Reason, Verdict, decide
from softnlb.heartbeat_words import list_facts, list_words, words
from softnlb.known_clients import NO_CLIENTS, Clients
from softnlb.packet import ARP, RST, TCP, UDP, Flow, parse
from softnlb.serving import table_of

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

FLOWS_MAX = 200_000
ETHERNET_BYTES = 14
SYN_ACK = 0x12
_ARP = b"\x08\x06"
_IGMP, _HOP_BY_HOP, _ICMPV6 = 2, 0, 58
_SOLICITATION, _ADVERTISEMENT = 135, 136
_HEARTBEAT = ETHERTYPE.to_bytes(2, "big")
_FOR_EVER_MS = 1 << 62

WHY = {
    Reason.OWNER: "it owns the bucket",
    Reason.SECOND_CHANCE: "its connection",
    Reason.AFFINITY: "it remembers the client",
    Reason.EXCEPTION: "another host remembers the client",
    Reason.NOT_MINE: "not mine",
    Reason.NO_SOCKET: "its bucket, no such connection",
    Reason.STOPPED: "it is stopped, or has not been heard yet",
    Reason.DRAINING: "it takes nothing new",
    Reason.EVERY_HOST: "every host takes it",
    Reason.ADDRESS_RESOLUTION: "every host hears it",
}


class Layout(NamedTuple):
    """Where things are in a frame whose IP header has nothing optional."""

    kind: bytes
    protocol: int
    source: slice
    destination: slice
    ports: int


LAYOUTS = {
    4: Layout(b"\x08\x00", 23, slice(26, 30), slice(30, 34), 34),
    6: Layout(b"\x86\xdd", 20, slice(22, 38), slice(38, 54), 54),
}
"""By IP version."""


@dataclass(slots=True)
class Known:
    """A host as the wire shows it."""

    table: FilterTable
    heartbeat: Heartbeat | None = None


@dataclass(slots=True)
class Seen:
    """A flow of a client: its bucket, who answered it, and the comments made so far."""

    answered: set[int] = field(default_factory=set)
    comments: dict[tuple[int, bool, int], str] = field(default_factory=dict)
    generation: int = 0


class Answered:
    """The sockets of a host, as far as its answers show them."""

    def __init__(self, connected: bool) -> None:
        self._connected = connected

    def tcp_state(self, flow: Flow) -> str | None:
        return "ESTABLISHED" if self._connected else None

    def acknowledges_syn_ack(self, flow: Flow) -> bool:
        return self._connected

    def conntracked(self, flow: Flow) -> bool:
        return False

    def udp_connected(self, flow: Flow) -> bool:
        return False


class Commentator:
    """Comments on the frames of a lab.  Feed it every frame at every port, in order."""

    def __init__(
        self,
        config: "ClusterConfig | None",
        vip: str,
        hosts: dict[int, str],
        ports: list[int | None],
    ) -> None:
        """``hosts``: dedicated IP address by host id.  ``ports``: the host id behind each port
        index, None where no host is.

        Without a configuration (a lab without agents) only addresses are explained.
        """
        self._config = config
        cluster_ip_address = ip_address(vip)
        self._vip = cluster_ip_address.packed
        self._four_bytes = w_x_y_z(cluster_ip_address).packed
        self._at = LAYOUTS[cluster_ip_address.version]
        self._ports = ports
        self._hosts: dict[int, Known] = {}
        if config is not None:
            for host_id, dedicated in hosts.items():
                own = replace(config, host_id=host_id, dedicated_ip_address=ip_interface(dedicated))
                self._hosts[host_id] = Known(table_of(own, None))
        self._flows: dict[bytes, Seen] = {}
        self._generation = 0
        self._lists = ClientLists()
        self._heartbeats: dict[bytes, str] = {}

    def announced(self, host_id: int, maps: list[int], draining: bool) -> None:
        """What a host announced before the capture began: the buckets that it accepts per slot."""
        host = self._hosts.get(host_id)
        if host is not None and host.heartbeat is None:
            host.table = self._table(host_id, tuple(maps), draining)
            self._generation += 1

    def comment(self, port: int, to_switch: bool, data: bytes) -> str:
        """The comment; "" for what is not the cluster's."""
        kind, at = data[12:14], self._at
        if kind == at.kind and len(data) >= at.ports:
            if data[at.protocol] == _ICMPV6 and data[62:78] == self._vip:  # of 16 bytes
                return self._neighbour(port, to_switch, data)
            if data[at.destination] == self._vip:
                return self._to_cluster(port, to_switch, data)
            if data[at.source] == self._vip:
                return self._from_cluster(port, to_switch, data)
            return _membership(data, at)
        if kind == _HEARTBEAT:
            return self._heartbeat(data[ETHERNET_BYTES:])
        if kind == _ARP and self._vip in (data[28:32], data[38:42]):
            return self._arp(port, to_switch, data)
        return ""

    # ------------------------------------------------------------ what hosts say

    def _heartbeat(self, payload: bytes) -> str:
        known = self._heartbeats.get(payload)
        if known is not None:
            return known
        host = self._hosts.get(payload[8]) if len(payload) > 8 else None
        try:
            if payload[:4] == SIGNATURE_BYTES:
                return self._client_list(payload)
            heartbeat = decode(payload, host.heartbeat if host else None)
        except HeartbeatError as error:
            return f"no heartbeat: {error}"
        if isinstance(heartbeat, Foreign):
            return f"heartbeat of host {heartbeat.host_id} of NLB itself"
        said, before = heartbeat.statement, host.heartbeat if host else None
        if host is not None and address(said.cluster_ip_address).packed == self._four_bytes:
            host.heartbeat = heartbeat
            if before is None or before.statement.current != said.current:
                draining = bool(said.flags & DRAINING)
                host.table = self._table(said.host_id, said.current, draining)
                self._generation += 1
        text = words(heartbeat)
        if len(self._heartbeats) > 64:
            self._heartbeats.clear()
        self._heartbeats[payload] = text
        return text

    def _client_list(self, payload: bytes) -> str:
        self._lists.heard(clients.decode(payload))
        self._generation += 1
        return list_words(list_facts(payload))

    def _table(self, host_id: int, current: tuple[int, ...], draining: bool) -> FilterTable:
        before = self._hosts[host_id].table
        if self._config is None or len(current) != len(before.rules):
            return before
        # Whom a host keeps in other hosts' buckets its list tells.
        claimed = (ALL_BUCKETS,) * len(current)
        maps = MapsChanged(current, (0,) * len(current), draining, _FOR_EVER_MS, claimed)
        fresh = table_of(self._config, maps)
        return replace(fresh, local_ip_addresses=before.local_ip_addresses)

    # ------------------------------------------------------------ frames of clients

    def _flow(self, key: bytes) -> Seen:
        seen = self._flows.get(key)
        if seen is None:
            if len(self._flows) >= FLOWS_MAX:
                self._flows.clear()
            seen = self._flows[key] = Seen(generation=self._generation)
        elif seen.generation != self._generation:
            seen.comments.clear()
            seen.generation = self._generation
        return seen

    def _to_cluster(self, port: int, to_switch: bool, data: bytes) -> str:
        # Protocol, client address, client port, server port; options and fragments go the long way.
        if not self._is_plain(data):
            return self._explain(port, to_switch, data, Seen())
        at = self._at
        client = data[at.source] + data[at.ports : at.ports + 4]
        seen = self._flow(data[at.protocol : at.protocol + 1] + client)
        flags = data[at.ports + 13] & 0x17 if _has_flags(data, at) else 0
        key = (port, to_switch, flags)
        text = seen.comments.get(key)
        if text is None:
            text = seen.comments[key] = self._explain(port, to_switch, data, seen)
        if flags & RST and seen.answered:
            seen.answered.clear()
            seen.comments.clear()
        return text

    def _is_plain(self, data: bytes) -> bool:
        """Whether the ports are where they usually are."""
        if data[self._at.protocol] not in (TCP, UDP):
            return False
        return len(self._vip) == 16 or (data[14] == 0x45 and not (data[20] & 0x3F or data[21]))

    def _from_cluster(self, port: int, to_switch: bool, data: bytes) -> str:
        host_id, at = self._ports[port], self._at
        if not self._is_plain(data):
            return f"answer of host {host_id}" if to_switch and host_id else "answer of the cluster"
        ports = data[at.ports + 2 : at.ports + 4] + data[at.ports : at.ports + 2]
        protocol = data[at.protocol : at.protocol + 1]
        seen = self._flow(protocol + data[at.destination] + ports)
        if to_switch and host_id and host_id not in seen.answered:
            if _has_flags(data, at) and data[at.ports + 13] & SYN_ACK == SYN_ACK:
                seen.answered.clear()  # a new connection of the same address and port
            seen.answered.add(host_id)
            seen.comments.clear()
        who = " and ".join(f"host {each}" for each in sorted(seen.answered)) or "the cluster"
        text = f"answer of {who}"
        return text if len(seen.answered) < 2 else f"{text}: ANSWERED TWICE"

    def _explain(self, port: int, to_switch: bool, data: bytes, seen: Seen) -> str:
        host_id = self._ports[port]
        if not self._hosts:
            return "to the cluster IP address"
        flow = parse(data[ETHERNET_BYTES:], "", data[:6])
        decisions = {each: self._decide(each, flow, seen) for each in sorted(self._hosts)}
        some = next(iter(decisions.values()))
        bucket = "" if some.bucket is None else f"bucket {some.bucket} of {BUCKETS}, "
        takers = [each for each, made in decisions.items() if made.verdict is Verdict.KEEP]
        whose = " and ".join(f"host {each}" for each in takers) or "nobody"
        if to_switch:
            return f"{bucket}for {whose}"
        if host_id is None:
            return f"{bucket}for {whose}: flooded here, wasted"
        made = decisions[host_id]
        reason = WHY.get(made.reason, str(made.reason))
        if made.verdict is Verdict.KEEP:
            return f"{bucket}host {host_id}: kept ({made.reason}: {reason})"
        text = f"{bucket}host {host_id}: {reason}, dropped ({made.reason})"
        return text if host_id in takers else f"{text}; {whose} keeps it"

    def _decide(self, host_id: int, flow: Flow, seen: Seen) -> Decision:
        table = self._hosts[host_id].table
        here = flow._replace(interface=table.interface)
        known: Clients = NO_CLIENTS
        if any(rule.rule.remembers_clients for rule in table.rules):
            heartbeat = self._hosts[host_id].heartbeat
            known = self._lists.of(host_id, heartbeat.statement.view if heartbeat else 0)
        return decide(table, here, Answered(host_id in seen.answered), lambda: 0, known)

    # ------------------------------------------------------------ address resolution

    def _arp(self, port: int, to_switch: bool, data: bytes) -> str:
        if data[20:22] != b"\0\1" or data[28:32] == self._vip:
            return self._located(port, to_switch, data[22:28])
        return self._asked(port, to_switch, Flow("", data[:6], 0, data[28:32], self._vip, ARP))

    def _neighbour(self, port: int, to_switch: bool, data: bytes) -> str:
        if data[54] == _ADVERTISEMENT:
            return self._located(port, to_switch, data[80:86])
        if data[54] != _SOLICITATION:
            return ""
        flow = Flow("", data[:6], 0, data[22:38], self._vip, _ICMPV6, icmp_type=_SOLICITATION)
        return self._asked(port, to_switch, flow)

    def _located(self, port: int, to_switch: bool, mac: bytes) -> str:
        host_id = self._ports[port]
        who = f"host {host_id}: " if to_switch and host_id else ""
        return f"{who}the cluster IP address is at {mac.hex('-').upper()}"

    def _asked(self, port: int, to_switch: bool, flow: Flow) -> str:
        host_id = self._ports[port]
        text = f"{ip_address(flow.source)} asks for the cluster's MAC address"
        if host_id is None or to_switch or host_id not in self._hosts:
            return text
        table = self._hosts[host_id].table
        here = flow._replace(interface=table.interface)
        made = decide(table, here, Answered(False), lambda: 0)
        return f"{text}: host {host_id} {made.verdict}s it"


def _has_flags(data: bytes, at: Layout) -> bool:
    return data[at.protocol] == TCP and len(data) > at.ports + 13


def _membership(data: bytes, at: Layout) -> str:
    """What hosts and switch tell each other of groups; "" for any other packet."""
    if data[12] == 8 and data[at.protocol] == _IGMP:
        return f"IGMP: {_igmp(data)}"
    if data[12] == 0x86 and data[at.protocol] == _HOP_BY_HOP and data[54:55] == b"\x3a":
        return f"MLD: {_mld(data)}"
    return ""


def _igmp(data: bytes) -> str:
    at = ETHERNET_BYTES + (data[14] & 0x0F) * 4
    kinds = {0x11: "query", 0x12: "report", 0x16: "report", 0x17: "leave", 0x22: "report"}
    kind = kinds.get(data[at], "message") if len(data) > at else "message"
    if len(data) >= at + 16 and data[at] == 0x22:
        return f"{kind} for {ip_address(data[at + 12 : at + 16])}"
    if len(data) >= at + 8 and any(data[at + 4 : at + 8]):
        return f"{kind} for {ip_address(data[at + 4 : at + 8])}"
    return f"general {kind}"


def _mld(data: bytes) -> str:
    """Behind a hop-by-hop header of 8 bytes (RFC 3810)."""
    kinds = {130: "query", 131: "report", 132: "leave", 143: "report"}
    kind = kinds.get(data[62], "message") if len(data) > 62 else "message"
    group = data[74:90] if kind == "report" and data[62] == 143 else data[70:86]
    return (
        f"{kind} for {ip_address(group)}" if len(group) == 16 and any(group) else f"general {kind}"
    )
