"""What a packet costs in the eBPF programs, in ns: BPF_PROG_TEST_RUN, the least of several runs.

Beside each stands the empty program of the same type.  The caches are warm and the branches learnt,
so these are lower bounds; what a cluster carries is measured live.
"""

import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from convergence.rules import ALL_BUCKETS, DEFAULT_RULE, Affinity, IPAddress, PortRule, Protocol
from labs.bench.filters import LEASE_MS
from labs.node import run_batch
from softnlb import ebpf_clients, libbpf
from softnlb.ebpf_attach import TC_PROGRAM, XDP_PROGRAM
from softnlb.ebpf_program import OBJECT, Program
from softnlb.errors import SoftnlbError
from softnlb.filter import FilterRule, FilterTable, Reason, default_hash_seed
from softnlb.known_clients import Known
from softnlb.packet import ACK, ICMP, ICMPV6, SYN, TCP, UDP
from softnlb.verdicts import now_ms

RUNS, REPEAT = 5, 100_000
PLANES = {TC_PROGRAM: "ebpf tc", XDP_PROGRAM: "ebpf xdp"}


class Ends(NamedTuple):
    """Who sends and who is asked: four cluster IP addresses, of which the last one is."""

    vips: tuple[IPAddress, ...]
    client: IPAddress
    host: IPAddress
    """A dedicated one."""


IPV4 = Ends(
    tuple(IPv4Address("10.1.0.100") + number for number in range(4)),
    IPv4Address("10.1.0.201"),
    IPv4Address("10.1.0.1"),
)
IPV6 = Ends(
    tuple(IPv6Address("2001:db8:1::100") + number for number in range(4)),
    IPv6Address("2001:db8:1::201"),
    IPv6Address("2001:db8:1::1"),
)
FAMILIES = {"": IPV4, ", IPv6": IPV6}
"""By what stands behind the kind of packet."""

CLUSTER_MAC, MAC = bytes.fromhex("02bf0a010064"), bytes.fromhex("02010a010064")
FIRST_PORT, _CONNECTED_PORT = 8000, 40_000
_LEFT_SLOT, _KNOWN_SLOT = 30, 31
"""Of the rules with extended affinity: of clients left to another host, of those remembered."""


def costs() -> list[dict[str, Any]]:
    """A row for each kind of packet in the tc and in the XDP program; in fresh namespaces.

    Raises DataPlaneUnavailable where eBPF cannot work.
    """
    addresses = [address for ends in FAMILIES.values() for address in (*ends.vips, ends.client)]
    own = [f"addr add {address}/{address.max_prefixlen} dev lo" for address in addresses]
    run_batch("ip", ["link set lo up", *own])
    rows = []
    with ExitStack() as open_things:
        for ends in FAMILIES.values():
            _sockets(open_things, ends)
        for name, plane in PLANES.items():
            program = Program(name)
            _clients(program)
            nothing = libbpf.BpfObject(OBJECT, (f"{name}_none",))
            empty = nothing.program(f"{name}_none")
            for family, ends in FAMILIES.items():
                for packet, table, frame, reason in _frames(ends):
                    program.write(table, MAC)
                    expect(program, packet + family, frame, reason)
                    row = _least(program.descriptor, empty, frame)
                    rows.append({"what": packet + family, "hosts": None, "plane": plane, **row})
            os.close(empty)
            nothing.close()
            program.close()
    return rows


def expect(program: Program, packet: str, frame: bytes, reason: Reason) -> None:
    """Raises SoftnlbError when the program decides for another reason than the row claims."""
    before = program.counters()
    libbpf.run(program.descriptor, frame)
    counted = [
        name
        for old, new in zip(before, program.counters(), strict=True)
        for name, packets in new.items()
        if packets != old.get(name, 0)
    ]
    if counted != [str(reason)]:
        raise SoftnlbError(f"{packet}: the program says {', '.join(counted)}, not {reason}")


def _least(descriptor: int, empty: int, frame: bytes) -> dict[str, Any]:
    """By turns with the empty program, so that both see the processor at the same speed."""
    ours, none = [], []
    for _ in range(RUNS):
        none.append(round(libbpf.run(empty, frame, REPEAT)[1]))
        ours.append(round(libbpf.run(descriptor, frame, REPEAT)[1]))
    return {
        "value": min(ours),
        "unit": "ns",
        "empty_ns": min(none),
        "over_empty_ns": min(ours) - min(none),
        "samples": ours,
        "beside": {},
    }


def _sockets(open_things: ExitStack, ends: Ends) -> None:
    """A listener on the first port, and a connection from the client to it."""
    family = socket.AF_INET if ends.client.version == 4 else socket.AF_INET6
    server = (str(ends.vips[-1]), FIRST_PORT)
    listener = open_things.enter_context(socket.socket(family))
    listener.bind(server)
    listener.listen()
    client = open_things.enter_context(socket.socket(family))
    client.bind((str(ends.client), _CONNECTED_PORT))
    client.connect(server)
    open_things.enter_context(listener.accept()[0])


def _frames(ends: Ends) -> list[tuple[str, FilterTable, bytes, Reason]]:
    """(kind of packet, table, frame, reason): 32 rules, four addresses, and the last is asked."""
    rules = tuple(
        PortRule(None, FIRST_PORT + n, FIRST_PORT + n, Protocol.BOTH, affinity=Affinity.NONE)
        for n in range(32)
    )
    mine = FilterTable(
        "eth0",
        CLUSTER_MAC,
        ends.vips,
        ends.vips,
        default_hash_seed(ends.vips[0]),
        tuple(FilterRule(rule, ALL_BUCKETS) for rule in (*rules, DEFAULT_RULE)),
        valid_until_ms=now_ms() + LEASE_MS,
    )
    sticky = _with_extended_affinity(mine)
    none, foreign = _owning(mine, 0), _owning(sticky, 0)
    moved = _owning(sticky, 0, claimed=ALL_BUCKETS)
    last = FIRST_PORT + 31
    beside = ends._replace(vips=(ends.host,))
    echo = (ICMP, 8) if ends.client.version == 4 else (ICMPV6, 128)

    def segment(flags: int, source_port: int, port: int) -> bytes:
        return tcp(flags, source_port, port, ends)

    syn, left = segment(SYN, 50_000, last), segment(SYN, 50_000, last - 1)
    datagram, kept = udp(50_000, last, ends), Reason.SECOND_CHANCE
    return [
        ("foreign SYN dropped", none, syn, Reason.NOT_MINE),
        ("owner's SYN kept", mine, syn, Reason.OWNER),
        ("foreign SYN, extended affinity", foreign, syn, Reason.NOT_MINE),
        ("owner's SYN, extended affinity", sticky, syn, Reason.OWNER),
        ("SYN of a client remembered", moved, syn, Reason.AFFINITY),
        ("SYN of a client left to another", sticky, left, Reason.EXCEPTION),
        ("segment kept by its socket", none, segment(ACK, _CONNECTED_PORT, FIRST_PORT), kept),
        ("foreign segment dropped", none, segment(ACK, 50_000, last), Reason.NOT_MINE),
        ("same, past a listener", none, segment(ACK, 50_000, FIRST_PORT), Reason.NOT_MINE),
        ("foreign datagram dropped", none, datagram, Reason.NOT_MINE),
        ("owner's datagram kept", mine, datagram, Reason.OWNER),
        ("echo kept", none, _ip(echo[0], bytes((echo[1], *bytes(7))), ends), Reason.EVERY_HOST),
        ("not for the cluster", none, tcp(SYN, 50_000, last, beside), Reason.NOT_CLUSTER),
    ]


def _clients(program: Program) -> None:
    """Those that this host remembers, and those that it leaves to host 2."""
    clients = [ends.client.packed for ends in FAMILIES.values()]
    known = [Known(bytes((_KNOWN_SLOT,)) + client, 0, 0) for client in clients]
    ebpf_clients.heard(program.clients, known, now_ms(), add=True)
    ebpf_clients.put(program.exceptions, {bytes((_LEFT_SLOT,)) + client: 2 for client in clients})


def _owning(table: FilterTable, current: int, claimed: int = 0) -> FilterTable:
    rules = (replace(rule, current=current, claimed=claimed) for rule in table.rules)
    return replace(table, rules=tuple(rules))


def _with_extended_affinity(table: FilterTable) -> FilterTable:
    rules = list(table.rules)
    for slot in (_LEFT_SLOT, _KNOWN_SLOT):
        sticky = replace(rules[slot].rule, affinity=Affinity.SINGLE, timeout_min=20)
        rules[slot] = replace(rules[slot], rule=sticky)
    return replace(table, rules=tuple(rules))


def _ip(protocol: int, payload: bytes, ends: Ends) -> bytes:
    if ends.client.version == 4:
        ethertype, length = b"\x08\x00", 20 + len(payload)
        head = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0, 64, protocol, 0)
    else:
        ethertype = b"\x86\xdd"
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    addresses = ends.client.packed + ends.vips[-1].packed
    return CLUSTER_MAC + MAC + ethertype + head + addresses + payload


def tcp(flags: int, source_port: int, port: int, ends: Ends = IPV4) -> bytes:
    """The frame of a segment from the client to the last address."""
    segment = struct.pack("!HHIIBBHI", source_port, port, 1, 1, 0x50, flags, 65535, 0)
    return _ip(TCP, segment, ends)


def udp(source_port: int, port: int, ends: Ends = IPV4) -> bytes:
    """The frame of a datagram from the client to the last address."""
    return _ip(UDP, struct.pack("!HHHH18x", source_port, port, 26, 0), ends)
