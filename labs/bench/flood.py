"""How many frames a client can send to the cluster while every host looks at each of them.

The kernel carries a frame through the bridge and all hosts before the client's system call
returns, so that the client's rate tells the cost of all hosts together.  What a host keeps it
throws away as early as a stack can, so that the comparison with no filter is the hardest there is.
"""

import ctypes
import errno
import os
import socket
import struct
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from labs.bench.filters import Filtered
from labs.bench.machine import cpu_s, settled_cpu_s
from labs.bench.rig import CLIENT_MAC, CLUSTER_MAC, FLOOD_POOL
from labs.experiment import pause
from labs.node import write_sysctls
from labs.topology import CLUSTER_IP_ADDRESS
from softnlb.errors import SoftnlbError
from softnlb.packet import SYN, TCP, UDP

PORT = 80
FRAMES = 1024
BATCH = 32
"""Frames per system call."""

CHECK_FRAMES = 120
CHECK_WITHIN_S = 3.0
CHECK_EVERY_S = 0.01
CHECK_AFTERWARDS_S = 0.1

_ETH_P_IP = 0x0800


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint32),
    )


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _frame(client: IPv4Address, protocol: int, payload: bytes) -> bytes:
    """An IPv4 packet to the cluster in an Ethernet frame."""
    addresses = client.packed + CLUSTER_IP_ADDRESS.packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    checksum = struct.pack("!H", _checksum(ip + addresses))
    macs = bytes.fromhex((CLUSTER_MAC + CLIENT_MAC).replace(":", ""))
    return macs + struct.pack("!H", _ETH_P_IP) + ip[:-2] + checksum + addresses + payload


def datagram(client: IPv4Address, port: int) -> bytes:
    """A frame of the smallest size with a UDP datagram to the cluster, without UDP checksum."""
    payload = bytes(18)
    return _frame(client, UDP, struct.pack("!4H", port, PORT, 8 + len(payload), 0) + payload)


def syn(client: IPv4Address, port: int) -> bytes:
    """The first segment of a connection to the cluster."""
    tcp = struct.pack("!HHIIBBHHH", port, PORT, 1, 0, 0x50, SYN, 65535, 0, 0)
    pseudo = client.packed + CLUSTER_IP_ADDRESS.packed + struct.pack("!HH", TCP, len(tcp))
    return _frame(client, TCP, tcp[:16] + struct.pack("!H", _checksum(pseudo + tcp)) + tcp[18:])


class Flood:
    """A client's raw socket, and a socket on each host.

    ``connections``: SYNs to a listener with a backlog of 0, which answers the first of all and then
    none, since the client is silent; else datagrams to a UDP socket that nobody reads.
    """

    def __init__(self, rig: Filtered, connections: bool = False) -> None:
        self._rig = rig
        self._connections = connections
        self._read = 0
        self._libc = ctypes.CDLL(None, use_errno=True)
        with rig.inside(rig.client):
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._wire.bind(("eth0", 0))
        self._servers = [self._server(host) for host in rig.hosts]
        step = FLOOD_POOL.num_addresses // FRAMES
        make = syn if connections else datagram
        self._frames = [make(FLOOD_POOL[n * step + 1], 1024 + n) for n in range(FRAMES)]
        vectors = (_Vector * FRAMES)(*(_Vector(frame, len(frame)) for frame in self._frames))
        self._messages = (_Message * FRAMES)()
        for message, vector in zip(self._messages, vectors, strict=True):
            message.vectors = ctypes.pointer(vector)
            message.vector_count = 1

    def _server(self, host: int) -> socket.socket:
        kind = socket.SOCK_STREAM if self._connections else socket.SOCK_DGRAM
        with self._rig.inside(host):
            server = socket.socket(socket.AF_INET, kind)
            if self._connections:
                # A full listener would answer with cookies.
                write_sysctls((("net/ipv4/tcp_syncookies", "0"),))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((str(CLUSTER_IP_ADDRESS), PORT))
        server.setblocking(False)
        if self._connections:
            server.listen(0)
        return server

    def check(self) -> None:
        """Raises SoftnlbError unless exactly one host keeps each frame; without a filter, all.

        A filter that lets everything through, or nothing, would make a fine figure.
        """
        wanted = CHECK_FRAMES * (len(self._servers) if self._rig.name == "no filter" else 1)
        before = self._kept()
        for frame in self._frames[:: FRAMES // CHECK_FRAMES][:CHECK_FRAMES]:
            self._wire.send(frame)
        deadline = time.monotonic() + CHECK_WITHIN_S
        while self._kept() - before < wanted and time.monotonic() < deadline:
            pause(CHECK_EVERY_S)
        # A short while for those that should not come.
        pause(CHECK_AFTERWARDS_S)
        kept = self._kept() - before
        if kept != wanted:
            what = "SYNs" if self._connections else "datagrams"
            who = f"{self._rig.name} on {len(self._servers)} hosts"
            raise SoftnlbError(f"{who}: {kept} {what} kept of {wanted}")

    def _kept(self) -> int:
        """Frames kept by all hosts together, ever."""
        if not self._connections:
            self._read += sum(_drained(server) for server in self._servers)
            return self._read
        kept = 0
        for host in self._rig.hosts:
            with self._rig.inside(host):
                kept += _segments()
        return kept

    def run(self, seconds: float) -> dict[str, Any]:
        """Flood for a while: frames per second, CPU time per frame, share lost.

        The CPU time is that of the client with all that the kernel does on its account, and of
        the processes that give verdicts until they have caught up.
        """
        size, fd = ctypes.sizeof(_Message), self._wire.fileno()
        send = self._libc.sendmmsg
        batches = [
            ctypes.c_void_p(ctypes.addressof(self._messages) + at * size)
            for at in range(0, FRAMES, BATCH)
        ]
        sent, number = 0, 0
        lost_before, cpu_before = _backlog_drops(), cpu_s()
        began = time.perf_counter()
        until = began + seconds
        while (now := time.perf_counter()) < until:
            done = send(fd, batches[number % len(batches)], BATCH, 0)
            if done < 0 and ctypes.get_errno() not in (errno.ENOBUFS, errno.EAGAIN):
                code = ctypes.get_errno()
                raise OSError(code, f"sendmmsg: {os.strerror(code)}")
            sent += max(done, 0)
            number += 1
        cpu = settled_cpu_s() - cpu_before
        lost = _backlog_drops() - lost_before
        return {
            "frames_per_s": sent / (now - began),
            "cpu_us_per_frame": cpu / max(1, sent) * 1e6,
            "lost_share": lost / max(1, sent * len(self._servers)),
        }

    def close(self) -> None:
        """The sockets; the rig stays."""
        for opened in (self._wire, *self._servers):
            opened.close()


def _drained(server: socket.socket) -> int:
    count = 0
    while True:
        try:
            server.recv(64)
        except BlockingIOError:
            return count
        count += 1


def _segments() -> int:
    """TCP segments that have come through to the stack of this network namespace."""
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("InSegs")])


def _backlog_drops() -> int:
    """Frames that the kernel threw away between two interfaces for want of time."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)
