"""A cluster of bare links for tests: hosts whose interface is a cluster's, but without any filter,
so that every host answers, and a sniffer to count the answers with."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from pathlib import Path

from modes.plan import AS_NLB_DOES, LinkChoices, Mode
from modes.planner import plan_link
from softnlb.link import Link
from tests.netns import Namespace, Segment, wait_for

VIP = IPv4Interface("10.1.0.100/24")
CLIENT_IP = "10.1.0.200"
ETH_P_ALL = 3
ETH_P_IP = 0x0800
OUTGOING = socket.PACKET_OUTGOING

MARKER_PORT = 4000


class Cluster:
    """``hosts`` hosts (10.1.0.1 onwards) and a client on one segment."""

    def __init__(
        self, mode: Mode, hosts: int, directory: Path, choices: LinkChoices = AS_NLB_DOES
    ) -> None:
        self.mode = mode
        self.choices = choices
        self.segment = Segment()
        self.directory = directory
        self.client = self.segment.node("client", f"{CLIENT_IP}/24")
        self.hosts = [
            self.segment.node(f"host{host_id}", f"10.1.0.{host_id}/24")
            for host_id in range(1, hosts + 1)
        ]
        self.links = [self.link(host_id) for host_id in range(1, hosts + 1)]

    def link(self, host_id: int, interface: str = "eth0") -> Link:
        """A Link as an agent of that host would make it."""
        plan = plan_link(self.mode, interface, host_id, (VIP,), choices=self.choices)
        return Link(plan, self.directory / f"{self.mode}-{host_id}" / "link.json")

    @property
    def pairs(self) -> list[tuple[Namespace, Link]]:
        """Each host with its link."""
        return list(zip(self.hosts, self.links, strict=True))

    def start(self) -> None:
        """Apply everywhere, then add the cluster IP address."""
        for host, link in self.pairs:
            host.call(link.apply)
        for link in self.links:
            link.add_cluster_ip_addresses()

    def close(self) -> None:
        """Also after a test that failed half way."""
        for host, link in self.pairs:
            host.call(link.restore)
        self.segment.close()


@contextmanager
def cluster(
    mode: Mode, hosts: int, directory: Path, choices: LinkChoices = AS_NLB_DOES
) -> Iterator[Cluster]:
    """A cluster that is gone afterwards."""
    made = Cluster(mode, hosts, directory, choices)
    try:
        yield made
    finally:
        made.close()


class Sniffer:
    """Every frame on an interface of a namespace, also outgoing ones."""

    def __init__(self, node: Namespace, interface: str = "eth0", protocol: int = ETH_P_ALL) -> None:
        def make() -> socket.socket:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            opened.bind((interface, protocol))
            opened.setblocking(False)
            return opened

        self.socket = node.call(make)
        self.frames: list[tuple[int, bytes]] = []
        """(packet type, frame)."""

    def read(self) -> list[bytes]:
        """What has come in so far."""
        while True:
            try:
                frame, address = self.socket.recvfrom(1 << 16)
            except BlockingIOError:
                return [frame for kind, frame in self.frames if kind != OUTGOING]
            self.frames.append((address[2], frame))

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire."""
        self.socket.send(frame)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Sniffer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Markers:
    """UDP to the dedicated IP addresses, in order behind what was sent before.

    When every host has received the marker, it has also handled whatever came over the same cable
    ahead of it: so a test can say "nothing came" without waiting for nothing.
    """

    def __init__(self, made: Cluster) -> None:
        self._client = made.client.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._hosts = []
        for host_id, host in enumerate(made.hosts, 1):
            listener = host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
            listener.bind((f"10.1.0.{host_id}", MARKER_PORT))
            listener.setblocking(False)
            self._hosts.append((f"10.1.0.{host_id}", listener))
        self.pass_()

    def pass_(self) -> None:
        """Returns when every host has handled what was sent before."""
        for address, listener in self._hosts:
            self._client.sendto(b"marker", (address, MARKER_PORT))
            wait_for(lambda listener=listener: _received(listener))
            # And back: whatever it answered before is at the client by now.
            listener.sendto(b"marker", self._client_address())
            wait_for(lambda: _received(self._client))

    def _client_address(self) -> tuple[str, int]:
        return CLIENT_IP, self._client.getsockname()[1]

    def close(self) -> None:
        self._client.close()
        for _address, listener in self._hosts:
            listener.close()

    def __enter__(self) -> "Markers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _received(listener: socket.socket) -> bytes:
    try:
        return listener.recv(100, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
