"""A host with a data plane and a client on one cable, for tests of planes and of sock_diag.

The cluster IP address is simply added to the host's interface; what layer 2 does is not here.
The client's kernel speaks for CLIENT; STRANGER is an address on the same cable for which nobody
speaks, so that a test alone decides what a peer answers.
"""

import ctypes
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from convergence.rules import ALL_BUCKETS, DEFAULT_RULE, Affinity, PortRule
from softnlb.ebpf import EbpfPlane
from softnlb.filter import FilterRule, FilterTable, default_hash_seed
from softnlb.nfqueue import NfqueuePlane
from softnlb.verdicts import now_ms
from tests.netns import Namespace, Segment

VIP, CLIENT, STRANGER = "10.1.0.100", "10.1.0.200", "10.1.0.201"
PORT = 80
WEB = PortRule(None, PORT, PORT, affinity=Affinity.NONE)
_SILENCE_S = 0.3
_CLONE_NEWNET = 0x4000_0000
_ETH_P_ALL = 3
_OUTGOING = 4


@contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """This very thread inside: a plane's process dies with the thread that forked it."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.setns(namespace.descriptor, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(before, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(before)


def mac_of(namespace: Namespace) -> str:
    """The MAC address of a node's eth0, as text."""
    (link,) = json.loads(namespace.run("ip -json link show eth0"))
    return str(link["address"])


class Bench:
    """The host, its plane (attached), the client and a raw wire on the client's side."""

    def __init__(self, plane: str = "nfqueue") -> None:
        """``plane``: nfqueue, or where ebpf hooks in (tc, xdp, xdp-generic)."""
        self.segment = Segment()
        self._sockets: list[socket.socket] = []
        self.host = self.segment.node("host", "10.1.0.1/24")
        self.client = self.segment.node("client", f"{CLIENT}/24")
        neighbour = f"{STRANGER} lladdr {mac_of(self.client)} dev eth0 nud permanent"
        self.host.run(f"ip neighbour add {neighbour}")
        self.plane: Any = NfqueuePlane() if plane == "nfqueue" else EbpfPlane(plane)
        with inside(self.host):
            self.plane.attach("eth0")
        self.table = FilterTable(
            interface="eth0",
            cluster_mac=bytes.fromhex("02bf0a010064"),
            cluster_ip_addresses=(ip_address(VIP),),
            local_ip_addresses=(ip_address("10.1.0.1"), ip_address(VIP)),
            hash_seed=default_hash_seed(ip_address(VIP)),
            rules=(),
            valid_until_ms=0,
        )
        self.install()
        self.host.run(f"ip address add {VIP}/32 dev eth0")
        self.wire = Wire(self.client, self.host)

    def install(
        self,
        current: int = ALL_BUCKETS,
        orphan: int = 0,
        lease_ms: int = 60_000,
        rule: PortRule = WEB,
        **changes: object,
    ) -> None:
        """A table with one rule and the default rule, both with these maps."""
        self.table = replace(
            self.table,
            rules=(FilterRule(rule, current, orphan), FilterRule(DEFAULT_RULE, current, orphan)),
            valid_until_ms=now_ms() + lease_ms,
            **changes,  # type: ignore[arg-type]
        )
        with inside(self.host):
            self.plane.install(self.table)

    def counters(self) -> dict[str, int]:
        with inside(self.host):
            return self.plane.counters()

    def intact(self) -> bool:
        with inside(self.host):
            return self.plane.intact()

    def open(self, node: Namespace, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket on either side with a time-out of 5 s; closed with the bench."""
        made = node.call(socket.socket, socket.AF_INET, kind)
        made.settimeout(5)
        self._sockets.append(made)
        return made

    def listen(self, port: int = PORT, address: str = VIP, node: Namespace | None = None) -> None:
        """A server on the host or on another node; ``accept`` takes its connections."""
        self.listener = self.open(node or self.host)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, port))
        self.listener.listen()

    def listen_dual_stack(self, port: int = PORT) -> None:
        """As ``listen``, on an IPv6 socket that takes IPv4 clients."""
        self.listener = self.host.call(socket.socket, socket.AF_INET6)
        self.listener.settimeout(5)
        self._sockets.append(self.listener)
        self.listener.bind(("::", port))
        self.listener.listen()

    def accept(self) -> socket.socket:
        accepted, _ = self.listener.accept()
        accepted.settimeout(5)
        self._sockets.append(accepted)
        return accepted

    def connect(self, timeout_s: float = 5.0, port: int = PORT) -> socket.socket:
        """A connection from the client's kernel; TimeoutError when nobody answers."""
        connection = self.open(self.client)
        connection.settimeout(timeout_s)
        connection.connect((VIP, port))
        return connection

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """An established connection: the client's end and the host's."""
        connection = self.connect()
        return connection, self.accept()

    def answers(self, port: int = PORT) -> bool:
        """Whether a new connection is answered at all."""
        try:
            self.connect(_SILENCE_S, port).close()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        with inside(self.host):
            self.plane.detach()
        for opened in self._sockets:
            opened.close()
        self.wire.close()
        self.segment.close()


class Wire:
    """The stranger's mouth and ear."""

    def __init__(self, client: Namespace, host: Namespace) -> None:
        def open_socket() -> socket.socket:
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            raw.bind(("eth0", 0))
            return raw

        self._socket = client.call(open_socket)
        self._mac, self._host_mac = mac_of(client), mac_of(host)
        self.addresses = bytes.fromhex((self._host_mac + self._mac).replace(":", ""))

    def send(self, packet: Packet) -> None:
        self.send_bytes(bytes(Ether(src=self._mac, dst=self._host_mac) / packet))

    def send_bytes(self, frame: bytes) -> None:
        self._socket.send(frame)

    def tcp(self, flags: str, sport: int = 5000, dport: int = PORT, **fields: object) -> None:
        """One segment from the stranger to the cluster IP address."""
        self.send(IP(src=STRANGER, dst=VIP) / TCP(sport=sport, dport=dport, flags=flags, **fields))

    def echo(self) -> None:
        self.send(IP(src=STRANGER, dst=VIP) / ICMP(type=8))

    def answer(self, sport: int | None = None, timeout_s: float = _SILENCE_S) -> Packet | None:
        """The next packet from the cluster IP address to the stranger, None for silence.

        ``sport``: only one for this port of the stranger's.
        """
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                return None
            data, sender = self._socket.recvfrom(2048)
            packet = Ether(data)
            if sender[2] == _OUTGOING or IP not in packet or packet[IP].dst != STRANGER:
                continue
            if sport is None or (TCP in packet and packet[TCP].dport == sport):
                return packet[IP]
        return None

    def close(self) -> None:
        self._socket.close()


def handshake(bench: Bench, sport: int) -> tuple[socket.socket, int]:
    """A connection of the stranger's: the host's end, and what the stranger has to acknowledge.

    The stranger's next sequence number is 101.
    """
    bench.wire.tcp("S", sport, seq=100)
    syn_ack = bench.wire.answer(sport)
    assert syn_ack is not None
    acknowledgment = syn_ack[TCP].seq + 1
    bench.wire.tcp("A", sport, seq=101, ack=acknowledgment)
    return bench.accept(), acknowledgment
