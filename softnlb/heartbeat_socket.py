"""Heartbeats on the wire: ethertype 0x886F, sent and received on the cluster interface."""

import array
import errno
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address

from convergence.change_frame import CHANGE_SIGNATURE
from convergence.clients import SIGNATURE_BYTES as LIST_SIGNATURE
from convergence.heartbeat import CLUSTER_IP_OFFSET, ETHERTYPE, FRAME_BYTES, SIGNATURE

RECEIVE_BUFFER_BYTES = 8 << 20
"""The kernel's default holds about 90 frames; this some thousand, so that a flood of bad ones while
the agent is not given the processor does not cost the good ones."""

_SO_RCVBUFFORCE = 33
_SO_ATTACH_FILTER = 26
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")
_TRANSIENT = (errno.ENETDOWN, errno.ENOBUFS, errno.ENXIO, errno.ENODEV, errno.EAGAIN)


@dataclass(frozen=True, slots=True)
class Frame:
    """A heartbeat without its Ethernet header."""

    payload: bytes
    source_mac: bytes
    age_ms: int
    """Since the kernel took it from the interface; never negative."""


class HeartbeatSocket:
    """Raises OSError when the interface is missing or the privilege is."""

    def __init__(self, interface: str, cluster_ip_address: IPv4Address, destination: bytes) -> None:
        """``destination``: the 6 bytes that the operation mode sends heartbeats to."""
        # Protocol 0 until the filter is in place: nothing foreign gets into the buffer before.
        self._socket = socket.socket(
            socket.AF_PACKET,
            socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            0,
        )
        self._destination = (interface, ETHERTYPE, 0, 0, destination)
        try:
            attach_filter(self._socket, _cluster_filter(cluster_ip_address))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            enlarge(self._socket, RECEIVE_BUFFER_BYTES)
            self._socket.bind((interface, ETHERTYPE))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def send(self, payload: bytes) -> bool:
        """False when the interface could not take the frame: the same as a frame lost."""
        try:
            self._socket.sendto(payload, self._destination)
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            return False
        return True

    def receive(self) -> Frame | None:
        """The next heartbeat of this cluster, or None when there is none now."""
        try:
            payload, ancillary, _flags, address = self._socket.recvmsg(
                FRAME_BYTES, socket.CMSG_SPACE(_TIMESPEC.size)
            )
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            return None
        return Frame(payload, address[4], _age_ms(ancillary))

    def close(self) -> None:
        """No error when called twice."""
        self._socket.close()


def _age_ms(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(data[: _TIMESPEC.size])
            received_ns: int = seconds * 1_000_000_000 + nanoseconds
            return max(0, (time.time_ns() - received_ns) // 1_000_000)
    return 0


def _cluster_filter(address: IPv4Address) -> list[tuple[int, int, int, int]]:
    """Keeps what has the length, a signature and the cluster of our frames.

    Everything else, also with a VLAN tag, costs the agent nothing: it is dropped in the kernel.
    """
    load_length, load_word_at, load_byte_at = 0x80, 0x20, 0x30
    if_equal, give = 0x15, 0x06
    packet_type = 0xFFFF_F004  # SKF_AD_OFF + SKF_AD_PKTTYPE
    other_host = 3
    everything = 0xFFFF_FFFF
    return [
        (load_byte_at, 0, 0, packet_type),
        (if_equal, 9, 0, other_host),
        (load_length, 0, 0, 0),
        (if_equal, 0, 7, FRAME_BYTES),
        (load_word_at, 0, 0, 0),
        (if_equal, 2, 0, int.from_bytes(SIGNATURE.to_bytes(4, "little"))),
        (if_equal, 1, 0, int.from_bytes(CHANGE_SIGNATURE)),
        (if_equal, 0, 3, int.from_bytes(LIST_SIGNATURE)),
        (load_word_at, 0, 0, CLUSTER_IP_OFFSET),
        (if_equal, 0, 1, int(address)),
        (give, 0, 0, everything),
        (give, 0, 0, 0),
    ]


def enlarge(opened: socket.socket, buffer_bytes: int) -> None:
    """Room for what comes while nobody reads."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
    except PermissionError:
        # In a user namespace only as far as net.core.rmem_max allows.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)


def attach_filter(opened: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    """Classic BPF (linux/filter.h): (code, jump if true, jump if false, constant)."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    instructions = array.array("B", code)
    address, _length = instructions.buffer_info()
    fprog = struct.pack("@HP", len(program), address)
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
