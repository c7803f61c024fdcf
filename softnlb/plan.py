"""Planning without a cluster: what a configuration would do with clients that a file tells of.

A capture is read in a stream and every packet meets the rules of ``softnlb/filter.py``; what is
remembered is bounded, whatever the size of the file.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from struct import Struct
from typing import Any, TextIO

from convergence.rules import BUCKETS, Affinity, FilteringMode
from softnlb.capture_file import ETHERNET, LINKS, CutOff, Link, Packet
from softnlb.config import ClusterConfig
from softnlb.errors import bad_params
from softnlb.explain import table_of_file
from softnlb.filter import FilterTable, NoSockets, decide, hash_key, hash_of, match_rule
from softnlb.packet import TCP, UDP, Flow, parse

CLIENTS_MAX = 100_000
"""Clients that are told one by one; those beyond count in the loads only."""

_FLOWS_MAX = 1 << 16
Entry = list[Any]
"""Index of slot and bucket or one of the negative ones, source, packets, bytes.  A list, because
it is counted up for every packet."""

_PORTS = Struct("!HH").unpack_from
EVERY_HOST, NOBODY, NOT_CLUSTER = -1, -2, -3


@dataclass
class Load:
    """What came in, by slot and bucket (index = 60 x slot + bucket), and from whom."""

    packets: int = 0
    clients: dict[tuple[int, bytes], Entry] = field(default_factory=dict)
    beyond: dict[int, Entry] = field(default_factory=dict)
    """Per index, of clients beyond CLIENTS_MAX."""
    replies: dict[int, Entry] = field(default_factory=dict)
    """Per index, what the capture holds of answers."""
    others: dict[int, Entry] = field(default_factory=dict)
    """EVERY_HOST, NOBODY and NOT_CLUSTER."""
    first_second: int | None = None
    last_second: int = 0
    cut_off: bool = False
    """Whether the capture ended in the middle of a packet."""
    peak: tuple[int, int] = (0, 0)
    """Packets and bytes to the cluster in the busiest second."""

    @property
    def entries(self) -> list[Entry]:
        """Everything to the cluster that one host would take."""
        return [*self.clients.values(), *self.beyond.values()]

    def count(self, name: int) -> list[int]:
        """Packets and bytes of EVERY_HOST, NOBODY or NOT_CLUSTER."""
        return list(self.others[name][2:]) if name in self.others else [0, 0]


class Reader:
    """Counts packets into a Load.  ``server``: the address whose clients are meant, in place of
    the cluster IP addresses, where the cluster is still to come."""

    def __init__(self, config: ClusterConfig, server: str | None = None) -> None:
        self.load = Load()
        self._table = _table(config, server)
        self._cluster = self._table.index.cluster
        self._flows: dict[bytes, Entry] = {}
        self._slots: dict[tuple[bytes, int, int], tuple[int, Affinity, bool]] = {}

    def read(self, packets: Iterable[Packet]) -> None:
        """Count the packets of a capture."""
        load, flows, came_in, now = self.load, self._flows, None, -1
        link, skip, back, ipv4 = LINKS[ETHERNET], 0, 0, b""
        in_second, bytes_in_second = 0, 0
        try:
            for data, at, end, wire, at_ns, interface in packets:
                if interface is not came_in:
                    came_in, link = interface, _link(interface.link_type)
                    skip, back, ipv4 = link.skip, len(link.ipv4), link.ipv4 + b"\x45"
                second = at_ns // 1_000_000_000
                if second != now:
                    self._second(now, in_second, bytes_in_second)
                    now, in_second, bytes_in_second = second, 0, 0
                ip = at + skip
                # IPv4 without options: protocol, fragment and addresses with ports tell the flow.
                if data[ip - back : ip + 1] == ipv4 and end - ip >= 24:
                    key = data[ip + 6 : ip + 10] + data[ip + 12 : ip + 24]
                    entry = flows.get(key)
                    if entry is None:
                        entry = self._meet_ipv4(data[ip:end])
                        if len(flows) >= _FLOWS_MAX:
                            flows.clear()
                        flows[key] = entry
                else:
                    entry = self._meet_other(data[at:end], link)
                entry[2] += 1
                entry[3] += wire
                if entry[0] >= NOBODY:
                    in_second += 1
                    bytes_in_second += wire
                load.packets += 1
        except CutOff:
            load.cut_off = True
        self._second(now, in_second, bytes_in_second)

    def read_flows(self, flows: Iterable[tuple[Flow, int, int]]) -> None:
        """Count flows, each with its packets and bytes."""
        for flow, packets, size in flows:
            entry = self._entry(flow)
            entry[2] += packets
            entry[3] += size
            self.load.packets += packets

    def _second(self, second: int, packets: int, size: int) -> None:
        load = self.load
        if second < 0:
            return
        load.first_second = second if load.first_second is None else load.first_second
        load.last_second = second
        load.peak = max(load.peak, (packets, size))

    def _meet_other(self, frame: bytes, link: Link) -> Entry:
        """Anything but the usual: VLAN tags, IPv6, options, no IP at all."""
        at = link.skip
        while link.ipv4 and frame[at - 2 : at] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
        if link.ipv4 and frame[at - 2 : at] not in (link.ipv4, link.ipv6):
            return self._other(NOT_CLUSTER)
        return self._meet(frame[at:])

    def _meet_ipv4(self, packet: bytes) -> Entry:
        """As ``_meet``, and quick for what a capture is full of: TCP and UDP to the cluster."""
        protocol, destination = packet[9], packet[16:20]
        whole = len(packet) >= 40 and not (packet[6] & 0x1F or packet[7])
        if whole and protocol in (TCP, UDP) and destination in self._cluster:
            source_port, port = _PORTS(packet, 20)
            met = self._slots.get((destination, protocol, port))
            if met is None:
                slot = match_rule(self._table, destination, protocol, port)
                rule = self._table.rules[slot].rule
                met = slot, rule.affinity, rule.filtering_mode == FilteringMode.DISABLED
                self._slots[destination, protocol, port] = met
            slot, affinity, disabled = met
            if not disabled:
                source = packet[12:16]
                hashed = hash_of(hash_key(affinity, source, source_port), self._table.hash_seed)
                return self._client(slot, hashed % BUCKETS, source)
        return self._meet(packet)

    def _meet(self, packet: bytes) -> Entry:
        """The entry for a packet that begins with its IP header and may be cut short."""
        return self._entry(parse(packet, ""))

    def _entry(self, flow: Flow) -> Entry:
        if flow.destination in self._cluster:
            return self._towards(flow)
        if flow.source in self._cluster:
            return self._reply(flow)
        return self._other(NOT_CLUSTER)

    def _towards(self, flow: Flow) -> Entry:
        if flow.protocol in (TCP, UDP) and not flow.fragment_offset and not flow.malformed:
            slot, bucket = self._bucket(flow.source, flow.source_port, flow)
            disabled = self._table.rules[slot].rule.filtering_mode == FilteringMode.DISABLED
            return self._other(NOBODY) if disabled else self._client(slot, bucket, flow.source)
        decision = decide(self._table, flow, NoSockets(), lambda: 0)
        if decision.slot is None or decision.bucket is None:
            return self._other(EVERY_HOST if decision.verdict == "keep" else NOBODY)
        return self._client(decision.slot, decision.bucket, flow.source)

    def _reply(self, flow: Flow) -> Entry:
        turned = flow._replace(destination=flow.source, destination_port=flow.source_port)
        slot, bucket = self._bucket(flow.destination, flow.destination_port, turned)
        return self.load.replies.setdefault(slot * BUCKETS + bucket, [NOT_CLUSTER, b"", 0, 0])

    def _bucket(self, client: bytes, client_port: int, flow: Flow) -> tuple[int, int]:
        table = self._table
        slot = match_rule(table, flow.destination, flow.protocol, flow.destination_port)
        key = hash_key(table.rules[slot].rule.affinity, client, client_port)
        return slot, hash_of(key, table.hash_seed) % BUCKETS

    def _client(self, slot: int, bucket: int, source: bytes) -> Entry:
        load, index = self.load, slot * BUCKETS + bucket
        entry = load.clients.get((index, source))
        if entry is None:
            if len(load.clients) >= CLIENTS_MAX:
                return load.beyond.setdefault(index, [index, b"", 0, 0])
            entry = load.clients[index, source] = [index, source, 0, 0]
        return entry

    def _other(self, name: int) -> Entry:
        return self.load.others.setdefault(name, [name, b"", 0, 0])


def _link(kind: int) -> Link:
    if kind not in LINKS:
        known = "Ethernet, raw IP, Linux cooked or BSD loopback"
        raise bad_params(f"link type {kind}: expected {known}")
    return LINKS[kind]


def _table(config: ClusterConfig, server: str | None) -> FilterTable:
    table = table_of_file(config)
    if server is None:
        return table
    try:
        address = ip_address(server)
    except ValueError:
        raise bad_params(f"--server {server}: expected an IP address") from None
    primary = config.cluster_ip_addresses[0].ip
    rules = tuple(
        replace(each, rule=replace(each.rule, cluster_ip_address=address))
        if each.rule.cluster_ip_address == primary
        else each
        for each in table.rules
    )
    return replace(
        table, cluster_ip_addresses=(address,), local_ip_addresses=(address,), rules=rules
    )


# ---------------------------------------------------------------- clients from a table

COLUMNS = ("client", "client_port", "port", "protocol", "packets", "bytes")
_NUMBERS = {"tcp": TCP, "udp": UDP}
_COUNT_MAX = (1 << 53) - 1
"""Of packets and bytes in one line: what every reader of JSON takes."""


def flows_of_csv(file: TextIO, server: bytes, port: int) -> Iterator[tuple[Flow, int, int]]:
    """Flows, packets and bytes of a table with the columns of COLUMNS, in that order or as its
    head names them; only the client must be there.

    ``server``: the address that all go to; ``port``: where the table names none.  Raises
    UsageError with the line of the first value that is none.
    """
    columns: tuple[str, ...] = COLUMNS
    reader = csv.reader(file)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if reader.line_num == 1 and "client" in [cell.lower() for cell in cells]:
                columns = tuple(cell.lower() for cell in cells)
                continue
            yield _flow(dict(zip(columns, cells, strict=False)), server, port)
    except UnicodeDecodeError:
        raise
    except (ValueError, csv.Error) as error:
        sentence = f"line {reader.line_num}: {error}; the columns are {', '.join(COLUMNS)}"
        raise bad_params(sentence) from None


def _flow(cells: Mapping[str, str], server: bytes, port: int) -> tuple[Flow, int, int]:
    source = ip_address(cells.get("client", "")).packed
    if len(source) != len(server):
        raise ValueError(f"client {cells['client']} is of another IP version than the cluster")
    name = cells.get("protocol", "").lower() or "tcp"
    if name not in _NUMBERS:
        raise ValueError(f"protocol {name!r}: expected {' or '.join(_NUMBERS)}")
    client_port = _whole(cells, "client_port", 0, 65535)
    port = _whole(cells, "port", port, 65535)
    packets, size = _whole(cells, "packets", 1, _COUNT_MAX), _whole(cells, "bytes", 0, _COUNT_MAX)
    return Flow("", None, 0, source, server, _NUMBERS[name], client_port, port), packets, size


def _whole(cells: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = cells.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise ValueError(f"{name} {text[:40]!r}: expected a whole number from 0 to {most}")
    return int(text)
