"""What the host's stack knows of its connections, by raw NETLINK_SOCK_DIAG (linux/inet_diag.h).

Raw, because a general library takes 1.5 s for a dump of 20,000 sockets, and an agent wants one
every period.
"""

import socket
import struct
from collections.abc import Collection, Generator, Iterator
from typing import NamedTuple

from convergence.rules import ALL_BUCKETS, BUCKETS, IPAddress
from softnlb.conntrack import Forwarded, forwarded
from softnlb.filter import FilterTable, hash_key, hash_of, match_rule
from softnlb.packet import TCP, UDP, Flow

_SOCK_DIAG = 4
_BY_FAMILY = 20
_ERROR = 2
_REQUEST, _DUMP = 0x001, 0x301
_NLMSG = struct.Struct("=IHHII")
# inet_diag_req_v2: family, protocol, extensions, pad, states; then the socket id.
_REQUEST_HEAD = struct.Struct("=BBBxI")
_NO_COOKIE = b"\xff" * 8
# nlmsghdr with its length and type, inet_diag_msg with state, ports, addresses and inode.
_MESSAGE = struct.Struct("=IH11xB2xHH16s16s28xI")
_STATE_AT = _NLMSG.size + 1
_ID = struct.Struct("!HH16s16s")
_ATTRIBUTE = struct.Struct("=HH")
_INFO = 2
_INFO_EXTENSION = 1 << (_INFO - 1)
# tcp_info: last_data_sent at 44, last_data_recv at 52, both in ms before now.
_IDLE = struct.Struct("=44xI4xI")
_MAPPED = bytes(10) + b"\xff\xff"
_BUFFER_BYTES = 1 << 18

TCP_STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "SYN_RECV",
)
"""Names by the kernel's number (net/tcp_states.h); 12 is SYN_RECV without a socket of its own."""

_COUNTED = ("SYN_RECV", "ESTABLISHED", "FIN_WAIT1", "CLOSE_WAIT", "CLOSING", "LAST_ACK")
"""States that keep a host draining: the client still waits for something of ours."""

_ALIVE = ("SYN_SENT", "FIN_WAIT2", *_COUNTED)
"""States that make a bucket busy: all but LISTEN, CLOSE and TIME_WAIT."""


class TcpSocket(NamedTuple):
    """One socket of a dump; addresses are 4 or 16 bytes, ``idle_ms`` is None where not asked."""

    state: str
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    idle_ms: int | None
    inode: int


class SockDiag:
    """Exact look-ups of one flow's socket; each is one system call out and one back."""

    def __init__(self, interface: str = "") -> None:
        """``interface``: where the flows arrive, so that sockets bound to it are found too."""
        try:
            index = socket.if_nametoindex(interface)
        except OSError:
            index = 0
        self._socket = _open()
        self._tail = struct.pack("=I", index) + _NO_COOKIE

    def tcp_state(self, flow: Flow) -> str | None:
        """The kernel's name of the state; LISTEN when only a listener is there, None without."""
        ends = (flow.destination_port, flow.source_port, flow.destination, flow.source)
        number = self._state(TCP, ends)
        return None if number is None else TCP_STATES[number]

    def udp_connected(self, flow: Flow) -> bool:
        """True when the datagram's socket is connected to its sender."""
        # udp_diag takes the ends the other way round, as they stand in the packet.
        ends = (flow.source_port, flow.destination_port, flow.source, flow.destination)
        number = self._state(UDP, ends)
        return number is not None and TCP_STATES[number] == "ESTABLISHED"

    def acknowledges_syn_ack(self, flow: Flow) -> bool:
        """Never known here: sock_diag tells no initial sequence number."""
        return False

    def conntracked(self, flow: Flow) -> bool:
        """Connections that are only forwarded have no socket to be found."""
        return False

    def close(self) -> None:
        self._socket.close()

    def _state(self, protocol: int, ends: tuple[int, int, bytes, bytes]) -> int | None:
        family = socket.AF_INET if len(ends[2]) == 4 else socket.AF_INET6
        self._socket.send(
            _NLMSG.pack(72, _BY_FAMILY, _REQUEST, 0, 0)
            + _REQUEST_HEAD.pack(family, protocol, 0, 0xFFFF_FFFF)
            + _ID.pack(*ends)
            + self._tail
        )
        answer = self._socket.recv(4096)
        kind = int.from_bytes(answer[4:6], "little")
        return answer[_STATE_AT] if kind == _BY_FAMILY else None


def scan(
    cluster_ip_addresses: Collection[IPAddress],
    states: Collection[str] = _ALIVE,
    with_idle_time: bool = False,
) -> Iterator[TcpSocket]:
    """The TCP sockets whose local address is a cluster IP address, from one dump.

    Raises OSError when the kernel refuses.
    """
    wanted = frozenset(ip.packed for ip in cluster_ip_addresses)
    mask = sum(1 << number for number, name in enumerate(TCP_STATES) if name in states)
    extensions = _INFO_EXTENSION if with_idle_time else 0
    # Sockets that accept IPv4 clients on an IPv6 listener appear among the IPv6 ones only.
    for family in (socket.AF_INET, socket.AF_INET6):
        with _open() as dump:
            dump.send(
                _NLMSG.pack(72, _BY_FAMILY, _DUMP, 0, 0)
                + _REQUEST_HEAD.pack(family, TCP, extensions, mask)
                + bytes(48)
            )
            done = False
            while not done:
                data = dump.recv(_BUFFER_BYTES)
                done = yield from _sockets(data, family == socket.AF_INET, wanted, with_idle_time)


def _sockets(
    data: bytes, ipv4: bool, wanted: frozenset[bytes], with_idle_time: bool
) -> Generator[TcpSocket, None, bool]:
    """Yield the sockets of one answer; returns True when it was the last."""
    at, end = 0, len(data)
    unpack, port = _MESSAGE.unpack_from, socket.ntohs
    while at + _NLMSG.size <= end:
        kind = data[at + 4]
        if kind != _BY_FAMILY:
            if kind == _ERROR:
                error = -int.from_bytes(data[at + 16 : at + 20], "little", signed=True)
                raise OSError(error, "sock_diag")
            return True
        length, _, state, local_port, remote_port, local, remote, inode = unpack(data, at)
        if ipv4:
            local, remote = local[:4], remote[:4]
        elif local[:12] == _MAPPED:
            local, remote = local[12:], remote[12:]
        if local in wanted:
            idle_ms = _idle_ms(data, at + _MESSAGE.size, at + length) if with_idle_time else None
            ends = (local, port(local_port), remote, port(remote_port))
            yield TcpSocket(TCP_STATES[state], *ends, idle_ms, inode)
        at += (length + 3) & ~3
    return False


def _idle_ms(data: bytes, at: int, end: int) -> int | None:
    """Time since data last went either way, from the tcp_info attribute if there is one."""
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind == _INFO and length >= 4 + _IDLE.size:
            sent, received = _IDLE.unpack_from(data, at + 4)
            return int(min(sent, received))
        if length < 4:
            return None
        at += (length + 3) & ~3
    return None


def count_connections(cluster_ip_addresses: Collection[IPAddress]) -> tuple[int, float]:
    """(connections that a draining host waits for, longest time one of them was idle in s).

    Forwarded connections count, but nothing tells how long they have been idle.
    """
    sockets = list(scan(cluster_ip_addresses, _COUNTED, with_idle_time=True))
    longest_ms = max((found.idle_ms or 0 for found in sockets), default=0)
    others = sum(found.state in _COUNTED for found in forwarded(cluster_ip_addresses))
    return len(sockets) + others, longest_ms / 1000


def connected(table: FilterTable) -> tuple[tuple[int, ...], frozenset[bytes]]:
    """Per slot the map of buckets in which no TCP connection to a cluster IP address lives; and
    the clients, slot and key, that have one and that extended affinity remembers."""
    idle = [ALL_BUCKETS] * len(table.rules)
    clients: set[bytes] = set()
    addresses = table.cluster_ip_addresses
    live: list[TcpSocket | Forwarded] = list(scan(addresses))
    live += [found for found in forwarded(addresses) if found.state in _ALIVE]
    slots: dict[tuple[bytes, int], int] = {}
    for found in live:
        server = (found.local, found.local_port)
        slot = slots.get(server)
        if slot is None:
            slot = slots[server] = match_rule(table, found.local, TCP, found.local_port)
        rule = table.rules[slot].rule
        key = hash_key(rule.affinity, found.remote, found.remote_port)
        idle[slot] &= ~(1 << hash_of(key, table.hash_seed) % BUCKETS)
        if rule.remembers_clients:
            clients.add(bytes((slot,)) + key)
    return tuple(idle), frozenset(clients)


def syn_cookies_sent() -> int:
    """How many SYN cookies this network namespace has sent since it exists."""
    with open("/proc/net/netstat", encoding="ascii") as netstat:
        for names in netstat:
            values = next(netstat)
            if names.startswith("TcpExt:"):
                return int(dict(zip(names.split(), values.split(), strict=True))["SyncookiesSent"])
    return 0


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)
