"""What a packet costs in the eBPF programs, in ns: BPF_PROG_TEST_RUN, the least of several runs.

Beside each stands the empty program of the same type.  The caches are warm and the branches learnt,
so these are lower bounds; what a cluster carries is measured live.
"""

import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from convergence.rules import ALL_BUCKETS, DEFAULT_RULE, Affinity, PortRule, Protocol
from labs.bench.filters import LEASE_MS
from labs.node import run_batch
from softnlb import ebpf_clients, libbpf
from softnlb.ebpf_attach import TC_PROGRAM, XDP_PROGRAM
from softnlb.ebpf_program import OBJECT, Program
from softnlb.errors import SoftnlbError
from softnlb.filter import FilterRule, FilterTable, Reason
from softnlb.known_clients import Known
from softnlb.packet import ACK, ICMP, SYN, TCP, UDP
from softnlb.verdicts import now_ms

RUNS, REPEAT = 5, 100_000
PLANES = {TC_PROGRAM: "ebpf tc", XDP_PROGRAM: "ebpf xdp"}
VIPS = tuple(IPv4Address("10.1.0.100") + number for number in range(4))
CLIENT, HOST = IPv4Address("10.1.0.201"), IPv4Address("10.1.0.1")
CLUSTER_MAC, MAC = bytes.fromhex("02bf0a010064"), bytes.fromhex("02010a010064")
FIRST_PORT, _CONNECTED_PORT = 8000, 40_000
_LEFT_SLOT, _KNOWN_SLOT = 30, 31
"""Of the rules with extended affinity that leave CLIENT to another host, and that remember it."""


def costs() -> list[dict[str, Any]]:
    """A row for each kind of packet in the tc and in the XDP program; in fresh namespaces.

    Raises DataPlaneUnavailable where eBPF cannot work.
    """
    addresses = [f"addr add {address}/32 dev lo" for address in (*VIPS, CLIENT)]
    run_batch("ip", ["link set lo up", *addresses])
    rows = []
    with ExitStack() as open_things:
        _sockets(open_things)
        for name, plane in PLANES.items():
            program = Program(name)
            _clients(program)
            nothing = libbpf.BpfObject(OBJECT, (f"{name}_none",))
            empty = nothing.program(f"{name}_none")
            for packet, table, frame, reason in _frames():
                program.write(table, MAC)
                expect(program, packet, frame, reason)
                row = _least(program.descriptor, empty, frame)
                rows.append({"what": packet, "hosts": None, "plane": plane, **row})
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


def _sockets(open_things: ExitStack) -> None:
    """A listener on the first port, and a connection from CLIENT to it."""
    listener = open_things.enter_context(socket.socket())
    listener.bind((str(VIPS[-1]), FIRST_PORT))
    listener.listen()
    client = open_things.enter_context(socket.socket())
    client.bind((str(CLIENT), _CONNECTED_PORT))
    client.connect((str(VIPS[-1]), FIRST_PORT))
    open_things.enter_context(listener.accept()[0])


def _frames() -> list[tuple[str, FilterTable, bytes, Reason]]:
    """(kind of packet, table, frame, reason): 32 rules, four addresses, and the last is asked."""
    rules = tuple(
        PortRule(None, FIRST_PORT + n, FIRST_PORT + n, Protocol.BOTH, affinity=Affinity.NONE)
        for n in range(32)
    )
    mine = FilterTable(
        "eth0",
        CLUSTER_MAC,
        VIPS,
        VIPS,
        int(VIPS[0]),
        tuple(FilterRule(rule, ALL_BUCKETS) for rule in (*rules, DEFAULT_RULE)),
        valid_until_ms=now_ms() + LEASE_MS,
    )
    sticky = _with_extended_affinity(mine)
    none, foreign = _owning(mine, 0), _owning(sticky, 0)
    moved = _owning(sticky, 0, claimed=ALL_BUCKETS)
    last = FIRST_PORT + 31
    syn, kept = tcp(SYN, 50_000, last), Reason.SECOND_CHANCE
    return [
        ("foreign SYN dropped", none, syn, Reason.NOT_MINE),
        ("owner's SYN kept", mine, syn, Reason.OWNER),
        ("foreign SYN, extended affinity", foreign, syn, Reason.NOT_MINE),
        ("owner's SYN, extended affinity", sticky, syn, Reason.OWNER),
        ("SYN of a client remembered", moved, syn, Reason.AFFINITY),
        ("SYN of a client left to another", sticky, tcp(SYN, 50_000, last - 1), Reason.EXCEPTION),
        ("segment kept by its socket", none, tcp(ACK, _CONNECTED_PORT, FIRST_PORT), kept),
        ("foreign segment dropped", none, tcp(ACK, 50_000, last), Reason.NOT_MINE),
        ("same, past a listener", none, tcp(ACK, 50_000, FIRST_PORT), Reason.NOT_MINE),
        ("foreign datagram dropped", none, udp(50_000, last), Reason.NOT_MINE),
        ("owner's datagram kept", mine, udp(50_000, last), Reason.OWNER),
        ("echo kept", none, _ip(ICMP, bytes((8, 0, 0, 0, 0, 0, 0, 0))), Reason.EVERY_HOST),
        ("not for the cluster", none, tcp(SYN, 50_000, last, HOST), Reason.NOT_CLUSTER),
    ]


def _clients(program: Program) -> None:
    """One that this host remembers, and one that it leaves to host 2."""
    known = Known(bytes((_KNOWN_SLOT,)) + CLIENT.packed, 0, 0)
    ebpf_clients.heard(program.clients, [known], now_ms(), add=True)
    ebpf_clients.put(program.exceptions, {bytes((_LEFT_SLOT,)) + CLIENT.packed: 2})


def _owning(table: FilterTable, current: int, claimed: int = 0) -> FilterTable:
    rules = (replace(rule, current=current, claimed=claimed) for rule in table.rules)
    return replace(table, rules=tuple(rules))


def _with_extended_affinity(table: FilterTable) -> FilterTable:
    rules = list(table.rules)
    for slot in (_LEFT_SLOT, _KNOWN_SLOT):
        sticky = replace(rules[slot].rule, affinity=Affinity.SINGLE, timeout_min=20)
        rules[slot] = replace(rules[slot], rule=sticky)
    return replace(table, rules=tuple(rules))


def _ip(protocol: int, payload: bytes, destination: IPv4Address = VIPS[-1]) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        1,
        0,
        64,
        protocol,
        0,
        CLIENT.packed,
        destination.packed,
    )
    return CLUSTER_MAC + MAC + b"\x08\x00" + head + payload


def tcp(flags: int, source_port: int, port: int, destination: IPv4Address = VIPS[-1]) -> bytes:
    """The frame of a segment from CLIENT."""
    segment = struct.pack("!HHIIBBHI", source_port, port, 1, 1, 0x50, flags, 65535, 0)
    return _ip(TCP, segment, destination)


def udp(source_port: int, port: int) -> bytes:
    """The frame of a datagram from CLIENT to the last address."""
    return _ip(UDP, struct.pack("!HHHH18x", source_port, port, 26, 0))
