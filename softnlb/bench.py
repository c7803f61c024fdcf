"""What a packet costs in the eBPF programs, in ns: BPF_PROG_TEST_RUN, the least of several runs.

Beside each stands the empty program of the same type.  The caches are warm and the branches learnt,
so these are lower bounds; what a cluster carries is for the labs to measure.
"""

import ctypes
import fcntl
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from convergence.rules import ALL_BUCKETS, DEFAULT_RULE, Affinity, PortRule, Protocol
from softnlb import libbpf
from softnlb.ebpf_attach import TC_PROGRAM, XDP_PROGRAM
from softnlb.ebpf_program import OBJECT, Program
from softnlb.errors import MachineError
from softnlb.filter import FilterRule, FilterTable
from softnlb.packet import ACK, ICMP, SYN, TCP, UDP

RUNS = 5
VIPS = tuple(IPv4Address("10.1.0.100") + number for number in range(4))
CLIENT = IPv4Address("10.1.0.201")
CLUSTER_MAC, MAC = bytes.fromhex("02bf0a010064"), bytes.fromhex("02010a010064")
_CLONE_NEWNET = 0x4000_0000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8914
_IFF_UP_LOOPBACK_RUNNING = 0x49
_FIRST_PORT, _CONNECTED_PORT = 8000, 40_000


class Cost(NamedTuple):
    """``ns``: of one packet, the empty program's own cost included."""

    packet: str
    program: str
    ns: int
    empty_ns: int
    reason: str


def measure(repeat: int) -> list[Cost]:
    """The cost of each kind of packet in the tc and in the XDP program.

    In a child process with a network namespace of its own.  Raises MachineError.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _report(writer, repeat)
    os.close(writer)
    with os.fdopen(reader) as answer:
        lines = answer.read().splitlines()
    os.waitpid(child, 0)
    if not lines or lines[0] != "measured":
        raise MachineError(lines[0] if lines else "the measurement ended without a word")
    return [_cost(line.split("\t")) for line in lines[1:]]


def _report(writer: int, repeat: int) -> NoReturn:
    text = "the measurement failed"
    try:
        costs = _measure_here(repeat)
        text = "\n".join(("measured", *("\t".join(map(str, cost)) for cost in costs)))
    except (OSError, MachineError) as error:
        text = str(error)
    finally:
        os.write(writer, text.encode())
        os._exit(0)


def _cost(words: list[str]) -> Cost:
    return Cost(words[0], words[1], int(words[2]), int(words[3]), words[4])


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    system = os.uname()
    return {
        "processor": names[0] if names else system.machine,
        "processors": os.cpu_count(),
        "kernel": system.release,
    }


# ---------------------------------------------------------------- in the child


def _measure_here(repeat: int) -> list[Cost]:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise MachineError("a network namespace of its own takes root")
    costs = []
    with ExitStack() as open_things:
        _loopback_up()
        _sockets(open_things)
        frames = _frames()
        for name in (TC_PROGRAM, XDP_PROGRAM):
            program = Program(name)
            nothing = libbpf.BpfObject(OBJECT, (f"{name}_none",))
            empty = nothing.program(f"{name}_none")
            syn = frames[0][2]
            empty_ns = _least(empty, syn, repeat)
            for packet, table, frame in frames:
                program.write(table, MAC)
                before = program.counters()
                ns = _least(program.descriptor, frame, repeat)
                reason = _counted(before, program.counters())
                costs.append(Cost(packet, name.removeprefix("softnlb_"), ns, empty_ns, reason))
            os.close(empty)
            nothing.close()
            program.close()
    return costs


def _least(descriptor: int, frame: bytes, repeat: int) -> int:
    return min(round(libbpf.run(descriptor, frame, repeat)[1]) for _ in range(RUNS))


def _counted(before: list[dict[str, int]], after: list[dict[str, int]]) -> str:
    for old, new in zip(before, after, strict=True):
        for reason, packets in new.items():
            if packets != old.get(reason, 0):
                return reason
    return ""


def _loopback_up() -> None:
    """All of 10.1.0.0/24 on lo: a connection within needs both its ends here."""
    address = struct.pack("=16sHH4s8x", b"lo:0", socket.AF_INET, 0, CLIENT.packed)
    mask = struct.pack("=16sHH4s8x", b"lo:0", socket.AF_INET, 0, b"\xff\xff\xff\0")
    up = struct.pack("=16sH14x", b"lo", _IFF_UP_LOOPBACK_RUNNING)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for request, argument in (
            (_SIOCSIFADDR, address),
            (_SIOCSIFNETMASK, mask),
            (_SIOCSIFFLAGS, up),
        ):
            fcntl.ioctl(asked, request, argument)


def _sockets(open_things: ExitStack) -> None:
    """A listener on the first port, and a connection from CLIENT to it."""
    listener = open_things.enter_context(socket.socket())
    listener.bind((str(VIPS[-1]), _FIRST_PORT))
    listener.listen()
    client = open_things.enter_context(socket.socket())
    client.bind((str(CLIENT), _CONNECTED_PORT))
    client.connect((str(VIPS[-1]), _FIRST_PORT))
    open_things.enter_context(listener.accept()[0])


def _frames() -> list[tuple[str, FilterTable, bytes]]:
    """(kind of packet, table, frame): 32 rules and four addresses, and the last address asked."""
    rules = tuple(
        PortRule(None, _FIRST_PORT + n, _FIRST_PORT + n, Protocol.BOTH, affinity=Affinity.NONE)
        for n in range(32)
    )
    mine = FilterTable(
        "eth0",
        CLUSTER_MAC,
        VIPS,
        VIPS,
        int(VIPS[0]),
        tuple(FilterRule(rule, ALL_BUCKETS) for rule in (*rules, DEFAULT_RULE)),
        valid_until_ms=1 << 43,
    )
    none = replace(mine, rules=tuple(replace(rule, current=0) for rule in mine.rules))
    last = _FIRST_PORT + 31
    syn = _tcp(SYN, 50_000, last)
    return [
        ("foreign SYN dropped", none, syn),
        ("owner's SYN kept, clock included", mine, syn),
        ("segment of a connection kept", none, _tcp(ACK, _CONNECTED_PORT, _FIRST_PORT)),
        ("segment of another host dropped", none, _tcp(ACK, 50_000, last)),
        ("the same where a listener is", none, _tcp(ACK, 50_000, _FIRST_PORT)),
        ("foreign datagram dropped", none, _udp(50_000, last)),
        ("owner's datagram kept", mine, _udp(50_000, last)),
        ("echo kept", none, _ip(ICMP, bytes((8, 0, 0, 0, 0, 0, 0, 0)))),
        ("not for the cluster", none, _ip(TCP, bytes(40), IPv4Address("10.1.0.1"))),
    ]


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


def _tcp(flags: int, source_port: int, port: int) -> bytes:
    return _ip(TCP, struct.pack("!HHIIBBHI", source_port, port, 1, 1, 0x50, flags, 65535, 0))


def _udp(source_port: int, port: int) -> bytes:
    return _ip(UDP, struct.pack("!HHHH18x", source_port, port, 26, 0))
