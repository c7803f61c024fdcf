"""Captured frames through memory shared with the kernel (PACKET_MMAP, TPACKET_V3).

A socket buffer is limited for the root of a user namespace and costs a system call per frame; a
ring is neither.  Layouts: linux/if_packet.h.
"""

import ctypes
import mmap
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from labs.tap import ETH_P_ALL, PACKET_OUTGOING, SO_ATTACH_FILTER, SOL_PACKET

PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, TPACKET_V3 = 5, 6, 10, 2
TP_STATUS_KERNEL, TP_STATUS_USER = 0, 1
TP_STATUS_VLAN_VALID = 1 << 4

BLOCK_BYTES = 1 << 20
BLOCKS = 64
FRAME_BYTES = 1 << 11
RETIRE_MS = 20
"""A block that is not full is handed over after this long."""

_BLOCK_STATUS = struct.Struct("=I")
_BLOCK = struct.Struct("=III")
_FRAME = struct.Struct("=IIIIIIHHIIHHQHHiHBB")
"""struct tpacket3_hdr and the beginning of the struct sockaddr_ll behind it."""

_STATUS_OFFSET = 8


class RingFrame(NamedTuple):
    """``interface``: its index.  ``outgoing``: it left there.  ``length_bytes``: on the wire."""

    interface: int
    outgoing: bool
    at_ns: int
    data: bytes
    length_bytes: int


class Ring:
    """All frames at all interfaces of the network namespace that it was made in."""

    def __init__(self, unwanted: list[int]) -> None:
        """``unwanted``: indexes of interfaces to leave out."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_ALL))
        try:
            self._leave_out(unwanted)
            self._socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
            frames = BLOCK_BYTES // FRAME_BYTES * BLOCKS
            # The kernel throws away what came before the ring.
            wanted = (BLOCK_BYTES, BLOCKS, FRAME_BYTES, frames, RETIRE_MS, 0, 0)
            self._socket.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("=7I", *wanted))
            self._memory = mmap.mmap(self._socket.fileno(), BLOCK_BYTES * BLOCKS)
        except BaseException:
            self._socket.close()
            raise
        self._next = 0

    def _leave_out(self, unwanted: list[int]) -> None:
        interface_index = 0xFFFF_F000 + 8
        steps = [(0x20, 0, 0, interface_index)]
        for left, index in zip(range(len(unwanted), 0, -1), unwanted, strict=True):
            steps.append((0x15, left, 0, index))
        steps += [(0x06, 0, 0, 0x4_0000), (0x06, 0, 0, 0)]
        code = b"".join(struct.pack("=HBBI", *step) for step in steps)
        memory = ctypes.create_string_buffer(code, len(code))
        option = struct.pack("@HP", len(steps), ctypes.addressof(memory))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)

    def fileno(self) -> int:
        """Readable when there are frames."""
        return self._socket.fileno()

    def frames(self) -> Iterator[RingFrame]:
        """The frames of one block, none when no block is ready."""
        memory, base = self._memory, self._next * BLOCK_BYTES
        (status,) = _BLOCK_STATUS.unpack_from(memory, base + _STATUS_OFFSET)
        if not status & TP_STATUS_USER:
            return
        _status, count, first = _BLOCK.unpack_from(memory, base + _STATUS_OFFSET)
        at = base + first
        for _ in range(count):
            head = _FRAME.unpack_from(memory, at)
            following, seconds, nanoseconds, caught, length, flags, begin = head[:7]
            data = memory[at + begin : at + begin + caught]
            if flags & TP_STATUS_VLAN_VALID:  # the kernel took the tag out of the frame
                data = data[:12] + struct.pack("!HH", head[10] or 0x8100, head[9]) + data[12:]
                length += 4
            moment_ns = seconds * 1_000_000_000 + nanoseconds
            yield RingFrame(head[15], head[17] == PACKET_OUTGOING, moment_ns, data, length)
            at += following
        _BLOCK_STATUS.pack_into(memory, base + _STATUS_OFFSET, TP_STATUS_KERNEL)
        self._next = (self._next + 1) % BLOCKS

    def lost(self) -> int:
        """Frames that found no room since the last call."""
        value = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12)
        return int(struct.unpack("=III", value)[1])

    def close(self) -> None:
        """Stop listening."""
        self._memory.close()
        self._socket.close()
