"""IPv6 clusters on real interfaces with real agents: one owner per client in every mode."""

import select
import signal
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import Ether

from modes.mac import colon_mac, group_mac, multicast_mac, unicast_mac
from modes.plan import Mode
from softnlb.errors import SoftnlbError
from tests.links import Sniffer
from tests.netns import Namespace, Segment, wait_for
from tests.test_agent import Host

VIP6 = "2001:db8::100"
CLIENT6 = "2001:db8::200"
CONFIG = """
[cluster]
ip_address = "2001:db8::100/64"
mode = "{mode}"
timers = "fast"
[host]
id = {host_id}
interface = "eth0"
dedicated_ip_address = "2001:db8::{host_id}/64"
data_plane = "{plane}"
[[port_rule]]
ports = "80"
affinity = "none"
"""
MACS = {Mode.UNICAST: unicast_mac, Mode.MULTICAST: multicast_mac, Mode.IGMP: group_mac}


class Host6(Host):
    """A host with an IPv6 address, and a listener on port 80."""

    def __init__(
        self, segment: Segment, host_id: int, directory: Path, mode: Mode, plane: str
    ) -> None:
        super().__init__(segment, host_id, directory)
        self.node.run(f"ip address add 2001:db8::{host_id}/64 dev eth0 nodad")
        self.config.write_text(CONFIG.format(mode=mode, plane=plane, host_id=host_id))
        self.socket = self.socket.with_name(f"{VIP6}:{host_id}.sock")
        self.listener = self.node.call(socket.socket, socket.AF_INET6, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("::", 80))
        self.listener.listen(128)
        self.listener.setblocking(False)
        self.clients: list[tuple[str, int]] = []
        self.connections: list[socket.socket] = []

    def accepted(self) -> list[tuple[str, int]]:
        """The clients that have come so far."""
        while select.select([self.listener], [], [], 0)[0]:
            connection, address = self.listener.accept()
            self.connections.append(connection)
            self.clients.append(address[:2])
        return self.clients


def ebpf(mode: Mode) -> object:
    """A mode with the plane that root alone may load."""
    return pytest.param((mode, "ebpf"), marks=pytest.mark.bpf, id=f"{mode}-ebpf")


@pytest.fixture(
    params=[
        pytest.param((Mode.UNICAST, "nfqueue"), id="unicast-nfqueue"),
        pytest.param((Mode.IGMP, "nfqueue"), id="igmp-nfqueue"),
        *map(ebpf, Mode),
    ]
)
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Mode, list[Host6], Namespace, Segment]]:
    """Two converged hosts and a client."""
    segment = Segment()
    mode, plane = request.param
    hosts = [Host6(segment, host_id, tmp_path, mode, plane) for host_id in (1, 2)]
    client = segment.node("client", "10.1.0.200/24")
    client.run(f"ip address add {CLIENT6}/64 dev eth0 nodad")
    try:
        for host in hosts:
            host.start()
        for host in hosts:
            wait_for(lambda: members(host) == [1, 2], timeout_s=30)  # noqa: B023
        yield mode, hosts, client, segment
    finally:
        for host in hosts:
            host.end(signal.SIGKILL)
            for opened in (host.listener, *host.connections):
                opened.close()
        segment.close()


def members(host: Host6) -> list[int]:
    """Of a converged cluster; none while it converges."""
    try:
        answer = host.ask("query")
    except SoftnlbError:
        return []
    return list(answer["members"]) if answer["state"] == "converged" else []


def opened_by(client: Namespace, count: int) -> list[socket.socket]:
    """So many connections, one after the other; who cannot connect raises."""
    made = []
    for _ in range(count):
        opened = client.call(socket.socket, socket.AF_INET6, socket.SOCK_STREAM)
        opened.settimeout(5)
        opened.connect((VIP6, 80))
        made.append(opened)
    return made


def connect(client: Namespace, count: int) -> set[tuple[str, int]]:
    """The client's ends of so many connections, which are closed again."""
    made = opened_by(client, count)
    ends = {opened.getsockname()[:2] for opened in made}
    for opened in made:
        opened.close()
    return ends


def test_each_connection_has_one_host_and_neighbours_learn_the_cluster_mac(cluster) -> None:
    mode, hosts, client, segment = cluster
    cluster_mac = colon_mac(MACS[mode](ip_address(VIP6)))
    with Sniffer(client) as sniffer:
        made = connect(client, 40)
        wait_for(lambda: sum(len(host.accepted()) for host in hosts) >= len(made))
        taken = [list(host.accepted()) for host in hosts]
        advertised = [
            packet
            for packet in map(Ether, sniffer.read())
            if ICMPv6ND_NA in packet and packet[ICMPv6ND_NA].tgt == VIP6
        ]
    assert sorted(taken[0] + taken[1]) == sorted(made), "each exactly once"
    assert all(taken), "each host has a share"
    assert cluster_mac in client.run(f"ip -6 neighbour show {VIP6}")
    assert advertised
    assert {packet[ICMPv6NDOptDstLLAddr].lladdr for packet in advertised} == {cluster_mac}
    assert all(packet[IPv6].hlim == 255 for packet in advertised)
    assert cluster_mac not in segment.switch.run("bridge fdb show br br0 | grep -v permanent")
    # Whoever leaves hands over, and the other one serves everybody and says where, unasked.
    client.run(f"ip -6 neighbour replace {VIP6} lladdr 02:00:00:00:00:99 dev eth0 nud stale")
    hosts[0].ask("stop")
    wait_for(lambda: members(hosts[1]) == [2], timeout_s=10)
    wait_for(lambda: cluster_mac in client.run(f"ip -6 neighbour show {VIP6}"), timeout_s=10)
    more = connect(client, 10)
    wait_for(lambda: len(hosts[1].accepted()) == len(taken[1]) + len(more))
    assert set(hosts[1].accepted()) == more | set(taken[1])
    assert hosts[0].accepted() == taken[0]


@pytest.mark.parametrize(
    "cluster", [(mode, "nfqueue") for mode in Mode], indirect=True, ids=lambda choice: choice[0]
)
def test_nothing_is_accepted_without_our_rules(cluster) -> None:
    _, hosts, client, _ = cluster
    connect(client, 1)
    wait_for(lambda: any(host.accepted() for host in hosts))
    before = [list(host.accepted()) for host in hosts]
    for host in hosts:
        assert host.process is not None
        host.process.send_signal(signal.SIGSTOP)
        host.node.run("nft flush ruleset")
        address = host.node.run(f"ip -6 address show dev eth0 to {VIP6}")
        assert "nodad" in address and "deprecated" in address
    opened = client.call(socket.socket, socket.AF_INET6, socket.SOCK_STREAM)
    with opened:
        opened.settimeout(0.5)
        with pytest.raises(TimeoutError):
            opened.connect((VIP6, 80))
    assert [host.accepted() for host in hosts] == before


def test_connections_stay_where_they_are_when_their_buckets_move(cluster) -> None:
    _, hosts, client, _ = cluster
    ours = {opened.getsockname()[:2]: opened for opened in opened_by(client, 20)}
    wait_for(lambda: sum(len(host.accepted()) for host in hosts) == 20)
    assert hosts[0].clients
    hosts[0].ask("drain", cluster_ip_address="all", port=80)
    wait_for(lambda: hosts[1].ask("maps")["buckets"] == 60)
    for host in hosts:
        for end, connection in zip(host.clients, host.connections, strict=True):
            ours[end].sendall(b"ask")
            connection.settimeout(5)
            assert connection.recv(10) == b"ask"
            connection.sendall(b"answer")
            assert ours[end].recv(10) == b"answer"
    before = len(hosts[0].clients)
    connect(client, 5)
    wait_for(lambda: sum(len(host.accepted()) for host in hosts) == 25)
    assert len(hosts[0].clients) == before, "nothing new on the drained rule"
    for opened in ours.values():
        opened.close()
