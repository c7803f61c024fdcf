"""A FilterTable as the eBPF program reads it: softnlb/bpf/filter.h in ctypes.

The names are those of the C structures, which a test compares with these field by field.
"""

import ctypes
from itertools import pairwise

from convergence.rules import SLOTS_MAX, FilteringMode
from softnlb.errors import SoftnlbError
from softnlb.filter import FilterTable, Reason, match_rule
from softnlb.packet import IKE_NAT_PORT, TCP, UDP

CLUSTER_IP_ADDRESSES_MAX = 64
PLACES = 128
CLUSTER_IPV6_ADDRESSES_MAX = 16
PLACES_IPV6 = 32
PORT_TABLES_MAX = 2 * SLOTS_MAX
PORT_PAGES_MAX = 1216
REASONS = tuple(Reason)
_PAGE = 256


class Rule(ctypes.Structure):
    """struct rule."""

    _fields_ = (
        ("current", ctypes.c_uint64),
        ("orphan", ctypes.c_uint64),
        ("claimed", ctypes.c_uint64),
        ("affinity", ctypes.c_uint8),
        ("disabled", ctypes.c_uint8),
        ("remembers", ctypes.c_uint8),
        ("special", ctypes.c_uint8),
        ("unused", ctypes.c_uint8 * 4),
    )


class ClusterIpAddress(ctypes.Structure):
    """struct cluster_ip_address."""

    _fields_ = (
        ("address", ctypes.c_uint8 * 4),
        ("tcp_ports", ctypes.c_uint16),
        ("udp_ports", ctypes.c_uint16),
    )


class ClusterIpv6Address(ctypes.Structure):
    """struct cluster_ipv6_address."""

    _fields_ = (("address", ctypes.c_uint8 * 16), ("ports", ClusterIpAddress))


class Table(ctypes.Structure):
    """struct table."""

    _fields_ = (
        ("valid_until_ns", ctypes.c_uint64),
        ("hash_seed", ctypes.c_uint32),
        ("remote_control_port", ctypes.c_int32),
        ("started", ctypes.c_uint8),
        ("draining", ctypes.c_uint8),
        ("filter_icmp", ctypes.c_uint8),
        ("default_slot", ctypes.c_uint8),
        ("cluster_mac", ctypes.c_uint8 * 6),
        ("interface_mac", ctypes.c_uint8 * 6),
        ("cluster", ClusterIpAddress * PLACES),
        ("cluster6", ClusterIpv6Address * PLACES_IPV6),
        ("rules", Rule * SLOTS_MAX),
        ("port_pages", ctypes.c_uint16 * _PAGE * PORT_TABLES_MAX),
        ("page_slots", ctypes.c_uint8 * _PAGE * PORT_PAGES_MAX),
    )


class State(ctypes.Structure):
    """struct state."""

    _fields_ = (
        ("active", ctypes.c_uint32),
        ("translates", ctypes.c_uint32),
        ("not_remembered", ctypes.c_uint64),
        ("tables", Table * 2),
    )


COUNTERS_BYTES = (SLOTS_MAX + 1) * len(REASONS) * 8


def lease_ns(valid_until_ms: int) -> int:
    """The lease as the program compares it with its clock."""
    return max(0, valid_until_ms) * 1_000_000


class Ports:
    """Which slot each port of each cluster IP address leads to; the same for all maps, so that it
    is worth keeping between tables."""

    def __init__(self, table: FilterTable) -> None:
        """Raises SoftnlbError when the cluster has more addresses than the program knows."""
        addresses = table.cluster_ip_addresses
        six = sum(ip.version == 6 for ip in addresses)
        if len(addresses) > CLUSTER_IP_ADDRESSES_MAX or six > CLUSTER_IPV6_ADDRESSES_MAX:
            raise SoftnlbError(
                f"{len(addresses)} cluster IP addresses, {six} of them of IPv6, and the ebpf data "
                f"plane knows {CLUSTER_IP_ADDRESSES_MAX} at most, {CLUSTER_IPV6_ADDRESSES_MAX} of "
                "IPv6: use --data-plane nfqueue"
            )
        self.key = ports_key(table)
        self._pages: dict[bytes, int] = {}
        self._tables: dict[tuple[int, ...], int] = {}
        self.addresses = [
            (ip.packed, self._table(table, ip.packed, TCP), self._table(table, ip.packed, UDP))
            for ip in addresses
        ]

    def _table(self, table: FilterTable, address: bytes, protocol: int) -> int:
        pages = []
        slots = _slots(table, address, protocol)
        for at in range(0, len(slots), _PAGE):
            page = bytes(slots[at : at + _PAGE])
            pages.append(self._pages.setdefault(page, len(self._pages)))
        return self._tables.setdefault(tuple(pages), len(self._tables))

    def write(self, into: Table) -> None:
        """Into a table that nobody obeys."""
        for place in (*into.cluster, *(six.ports for six in into.cluster6)):
            place.address[:] = bytes(4)
        for address, tcp, udp in self.addresses:
            place = _place(into, address)
            place.tcp_ports = tcp
            place.udp_ports = udp
        for number, pages in enumerate(self._tables):
            into.port_pages[number][:] = pages
        for number, page in enumerate(self._pages):
            into.page_slots[number][:] = page


def _place(into: Table, address: bytes) -> ClusterIpAddress:
    """The free place of an address, taken; the program looks from the same place on."""
    at = address[-2] + address[-1]
    if len(address) == 4:
        while any(into.cluster[at % PLACES].address):
            at += 1
        place: ClusterIpAddress = into.cluster[at % PLACES]
        place.address[:] = address
        return place
    while any(into.cluster6[at % PLACES_IPV6].ports.address):
        at += 1
    six: ClusterIpv6Address = into.cluster6[at % PLACES_IPV6]
    six.address[:] = address
    six.ports.address[:] = bytes((1, 0, 0, 0))
    ports: ClusterIpAddress = six.ports
    return ports


def ports_key(table: FilterTable) -> object:
    """Equal for tables with equal ``Ports``."""
    return table.cluster_ip_addresses, tuple(rule.rule for rule in table.rules)


def _slots(table: FilterTable, address: bytes, protocol: int) -> bytearray:
    """The slot of each of the 65,536 ports."""
    edges = {0, IKE_NAT_PORT, IKE_NAT_PORT + 1, 65536}
    for rule in table.rules:
        edges |= {rule.rule.start_port, rule.rule.end_port + 1}
    slots = bytearray(65536)
    ordered = sorted(edges)
    for start, end in pairwise(ordered):
        slot = match_rule(table, address, protocol, start)
        slots[start:end] = bytes((slot,)) * (end - start)
    return slots


def write(table: FilterTable, interface_mac: bytes, into: Table) -> None:
    """Everything but ``Ports``, into a table that nobody obeys."""
    into.valid_until_ns = lease_ns(table.valid_until_ms)
    into.hash_seed = table.hash_seed
    port = table.remote_control_port
    into.remote_control_port = -1 if port is None else port
    into.started = table.started
    into.draining = table.draining
    into.filter_icmp = table.filter_icmp
    into.default_slot = len(table.rules) - 1
    into.cluster_mac[:] = table.cluster_mac
    into.interface_mac[:] = interface_mac
    for slot, rule in enumerate(table.rules):
        row = into.rules[slot]
        row.current = rule.current
        row.orphan = rule.orphan
        row.claimed = rule.claimed
        row.affinity = rule.rule.affinity
        row.disabled = rule.rule.filtering_mode == FilteringMode.DISABLED or not rule.enabled
        row.remembers = rule.rule.remembers_clients
        row.special = row.disabled or row.remembers
