"""A tap on every port of the switch: frames with their port and direction, in the order seen."""

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
PACKET_STATISTICS = 6
SOL_PACKET = 263

BUFFER_BYTES = 32 << 20

# Classic BPF (linux/filter.h): opcode, jump if true, jump if false, operand.
Instruction = tuple[int, int, int, int]
LOAD_HALF, LOAD_BYTE, LOAD_WORD = 0x28, 0x30, 0x20
JUMP_EQUAL, AND, RETURN = 0x15, 0x54, 0x06
PACKET_TYPE = 0xFFFF_F000 + 4
"""Ancillary offset SKF_AD_PKTTYPE."""


class Frame(NamedTuple):
    """A frame at a port.  ``to_switch``: it came in from the node."""

    port: str
    to_switch: bool
    at_ns: int
    data: bytes
    length_bytes: int


def syn_ack_filter(address: bytes) -> list[Instruction]:
    """Frames that come in from a node with a TCP segment, SYN and ACK set, from ``address``.

    ``address`` is 4 or 16 bytes; IPv4 with options and IPv6 with extensions do not match.
    """
    ipv6 = len(address) == 16
    ethertype, protocol, source, flags = (0x86DD, 20, 22, 67) if ipv6 else (0x0800, 23, 26, 47)
    tests = [(LOAD_HALF, 12, ethertype), (LOAD_BYTE, protocol, socket.IPPROTO_TCP)]
    words = struct.iter_unpack("!I", address)
    tests += [(LOAD_WORD, source + 4 * number, word) for number, (word,) in enumerate(words)]
    rest = 2 * len(tests) + 4  # to the last instruction, behind the two before the tests
    steps = [(LOAD_WORD, 0, 0, PACKET_TYPE), (JUMP_EQUAL, rest, 0, PACKET_OUTGOING)]
    for number, (load, at, value) in enumerate(tests, 1):
        steps += [(load, 0, 0, at), (JUMP_EQUAL, 0, rest - 2 * number, value)]
    return [
        *steps,
        (LOAD_BYTE, 0, 0, flags),
        (AND, 0, 0, 0x12),
        (JUMP_EQUAL, 0, 1, 0x12),
        (RETURN, 0, 0, 0x4_0000),
        (RETURN, 0, 0, 0),
    ]


class Tap:
    """Listens on all ports of the switch it was made in.  Close it after use."""

    def __init__(self, program: Sequence[Instruction] = ()) -> None:
        everything = socket.htons(ETH_P_ALL)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, everything)
        self._socket.setblocking(False)
        if program:
            self._attach(program)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def _attach(self, program: Sequence[Instruction]) -> None:
        code = b"".join(struct.pack("=HBBI", *step) for step in program)
        memory = ctypes.create_string_buffer(code, len(code))
        option = struct.pack("@HP", len(program), ctypes.addressof(memory))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)
        while self.receive() is not None:
            pass  # what came before the filter

    def fileno(self) -> int:
        """Readable when there is a frame."""
        return self._socket.fileno()

    def receive(self) -> Frame | None:
        """The next frame; None when there is none now."""
        try:
            data, ancillary, _, address = self._socket.recvmsg(1 << 17, 64)
        except BlockingIOError:
            return None
        at_ns = 0
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack("@qq", value[:16])
                at_ns = seconds * 1_000_000_000 + nanoseconds
        return Frame(address[0], address[2] != PACKET_OUTGOING, at_ns, data, len(data))

    def lost(self) -> int:
        """Frames that did not fit into the buffer since the last call."""
        value = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", value)[1])

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
