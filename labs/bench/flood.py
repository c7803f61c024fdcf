"""How many frames a client can send to the cluster while every host looks at each of them.

The kernel carries a frame through the bridge and all hosts before the client's system call
returns, so that the client's rate tells the cost of all hosts together.
"""

import ctypes
import errno
import os
import select
import socket
import struct
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from labs.bench.filters import Filtered
from labs.bench.machine import cpu_s, settled_cpu_s
from labs.bench.rig import CLIENT_MAC, CLIENT_POOL, CLUSTER_MAC
from labs.topology import CLUSTER_IP_ADDRESS
from softnlb.errors import SoftnlbError

PORT = 80
FRAMES = 1024
BATCH = 32
"""Frames per system call."""

CHECK_FRAMES = 120
CHECK_WITHIN_S = 3.0

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


def datagram(client: IPv4Address, port: int) -> bytes:
    """A frame of the smallest size with a UDP datagram to the cluster, without UDP checksum."""
    payload = bytes(18)
    udp = struct.pack("!4H", port, PORT, 8 + len(payload), 0) + payload
    addresses = client.packed + CLUSTER_IP_ADDRESS.packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    checksum = struct.pack("!H", _checksum(ip + addresses))
    macs = bytes.fromhex((CLUSTER_MAC + CLIENT_MAC).replace(":", ""))
    return macs + struct.pack("!H", _ETH_P_IP) + ip[:-2] + checksum + addresses + udp


class Flood:
    """A client's raw socket, and on each host a UDP socket that nobody reads during a flood."""

    def __init__(self, rig: Filtered) -> None:
        self._rig = rig
        self._libc = ctypes.CDLL(None, use_errno=True)
        with rig.inside(rig.client):
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._wire.bind(("eth0", 0))
        self._servers = []
        for host in rig.hosts:
            with rig.inside(host):
                server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.bind((str(CLUSTER_IP_ADDRESS), PORT))
            server.setblocking(False)
            self._servers.append(server)
        step = CLIENT_POOL.num_addresses // FRAMES
        self._frames = [datagram(CLIENT_POOL[n * step + 1], 1024 + n) for n in range(FRAMES)]
        vectors = (_Vector * FRAMES)(*(_Vector(frame, len(frame)) for frame in self._frames))
        self._messages = (_Message * FRAMES)()
        for message, vector in zip(self._messages, vectors, strict=True):
            message.vectors = ctypes.pointer(vector)
            message.vector_count = 1

    def check(self) -> None:
        """Raises SoftnlbError unless exactly one host keeps each datagram; without a filter, all.

        A filter that lets everything through, or nothing, would make a fine figure.
        """
        wanted = CHECK_FRAMES * (len(self._servers) if self._rig.name == "no filter" else 1)
        for frame in self._frames[:: FRAMES // CHECK_FRAMES][:CHECK_FRAMES]:
            self._wire.send(frame)
        kept, deadline = 0, time.monotonic() + CHECK_WITHIN_S
        while (left := deadline - time.monotonic()) > 0:
            # Once all have come, a short while for those that should not.
            readable = select.select(self._servers, [], [], left if kept < wanted else 0.1)[0]
            if not readable:
                break
            kept += sum(_drained(server) for server in readable)
        if kept != wanted:
            who = f"{self._rig.name} on {len(self._servers)} hosts"
            raise SoftnlbError(f"{who}: {kept} datagrams kept of {wanted}")

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


def _backlog_drops() -> int:
    """Frames that the kernel threw away between two interfaces for want of time."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)
