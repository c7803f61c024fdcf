"""What each field of a port rule does to real connections, at two hosts."""

import select
import signal
import socket
import statistics
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from convergence.heartbeat import ETHERTYPE
from tests.netns import Namespace, Segment, wait_for
from tests.test_agent import VIP, Host
from tests.test_port_rules import with_rules

OTHER_VIP = "10.1.0.101"
PORTS = (22, 53, 80, 443, 445, 446, 8080)
PERIOD_MS = 150
SO_TIMESTAMPNS = 35
RULES = """
[[port_rule]]
cluster_ip_address = "10.1.0.101"
ports = "80"
filtering_mode = "disabled"
[[port_rule]]
ports = "80"
protocol = "tcp"
affinity = "none"
[[port_rule]]
ports = "443-445"
filtering_mode = "single"
handling_priority = {priority}
[[port_rule]]
ports = "53"
protocol = "udp"
filtering_mode = "disabled"
[[port_rule]]
ports = "8080"
affinity = "network"
"""


class Cluster(NamedTuple):
    """``listeners``: of each host, by port."""

    hosts: list[Host]
    client: Namespace
    listeners: list[dict[int, socket.socket]]

    def takers(self, port: int, clients: list[str], vip: str = VIP) -> list[int]:
        """Id of the host that took the connection of each client address."""
        found = []
        for address in clients:
            with self.client.call(socket.socket) as opened:
                opened.settimeout(5)
                opened.bind((address, 0))
                opened.connect((vip, port))
                ready = [each[port] for each in self.listeners]
                (listener, *others), _, _ = select.select(ready, [], [], 5)
                assert not others
                accepted, end = listener.accept()
                accepted.close()
                assert end == opened.getsockname()
                found.append(1 + ready.index(listener))
        return found


@contextmanager
def two_hosts(
    directory: Path, ports: Collection[int], prepare: Callable[[Host], None]
) -> Iterator[Cluster]:
    """Converged, with a listener at each port; ``prepare`` writes the rules of a host."""
    segment = Segment()
    hosts = [Host(segment, host_id, directory) for host_id in (1, 2)]
    client = segment.node("client", "10.1.0.200/24")
    client.run("ip route add local 10.1.0.204/30 dev lo; ip route add local 10.9.0.0/16 dev lo")
    listeners = []
    try:
        for host in hosts:
            host.node.run("ip route add 10.9.0.0/16 via 10.1.0.200")
            prepare(host)
            opened = {
                port: host.node.call(socket.create_server, ("0.0.0.0", port)) for port in ports
            }
            listeners.append(opened)
            host.start()
        wait_for(lambda: [each.state() for each in hosts] == ["converged"] * 2, timeout_s=30)
        wait_for(
            lambda: all(each.ask("query")["members"] == [1, 2] for each in hosts), timeout_s=30
        )
        yield Cluster(hosts, client, listeners)
    finally:
        for host in hosts:
            host.end(signal.SIGKILL)
        for each in listeners:
            for listener in each.values():
                listener.close()
        segment.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    def prepare(host: Host) -> None:
        with_rules(host, RULES.format(priority=3 - host.host_id))
        text = host.config.read_text()
        period = f'timers = "fast"\nalive_message_period_ms = {PERIOD_MS}'
        host.config.write_text(text.replace('timers = "fast"', period))

    with two_hosts(tmp_path_factory.mktemp("wire"), PORTS, prepare) as made:
        yield made


def test_multiple_hosts_share_what_has_no_affinity(cluster: Cluster) -> None:
    assert set(cluster.takers(80, ["10.1.0.200"] * 30)) == {1, 2}


def test_affinity_network_keeps_neighbours_together_and_parts_others(cluster: Cluster) -> None:
    neighbours = [f"10.9.7.{number}" for number in (1, 2, 90, 254)]
    assert len(set(cluster.takers(8080, neighbours))) == 1
    assert set(cluster.takers(8080, [f"10.9.{number}.1" for number in range(20)])) == {1, 2}


def test_a_single_host_rule_goes_to_the_best_handling_priority(cluster: Cluster) -> None:
    for port in (443, 445):
        assert set(cluster.takers(port, ["10.1.0.200"] * 10)) == {2}


def test_a_rule_for_one_address_beats_one_for_all(cluster: Cluster) -> None:
    with cluster.client.call(socket.socket) as opened:
        opened.settimeout(0.3)
        with pytest.raises(TimeoutError):
            opened.connect((OTHER_VIP, 80))
    assert cluster.takers(80, ["10.1.0.200"])


def test_further_addresses_have_the_mac_address_of_the_primary(cluster: Cluster) -> None:
    assert set(cluster.takers(8080, ["10.9.1.1", "10.9.2.1", "10.9.5.1"], OTHER_VIP)) <= {1, 2}
    assert "02:bf:0a:01:00:64" in cluster.client.run(f"ip neighbour show {OTHER_VIP}")


def test_a_rule_holds_for_its_protocol_alone_and_what_has_none_has_the_default_host(
    cluster: Cluster,
) -> None:
    with cluster.client.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.sendto(b"", (VIP, 53))

    def dropped() -> bool:
        return all(host.ask("queryport", port=53)["dropped"] for host in cluster.hosts)

    wait_for(dropped)
    clients = ["10.1.0.200", "10.9.1.1", "10.9.2.2", "10.9.3.3"]
    assert {port: set(cluster.takers(port, clients)) for port in (53, 446)} == {53: {1}, 446: {1}}


def test_heartbeats_come_in_the_period_that_was_set(cluster: Cluster) -> None:
    wire = cluster.client.call(
        socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)
    )
    beats: list[float] = []
    with wire:
        wire.bind(("eth0", ETHERTYPE))
        wire.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        wire.settimeout(10)
        while len(beats) < 7:
            data, ancillary, _, _ = wire.recvmsg(2000, 64)
            (stamp,) = (value for _, kind, value in ancillary if kind == SO_TIMESTAMPNS)
            seconds, nanoseconds = struct.unpack("@qq", stamp[:16])
            if data[14 + 8] == 1:  # of host 1
                beats.append(seconds + nanoseconds / 1e9)
    gaps_s = [later - earlier for earlier, later in pairwise(beats)]
    assert statistics.median(gaps_s) > 0.75 * PERIOD_MS / 1000


def test_the_next_default_host_takes_over_what_has_no_rule(cluster: Cluster) -> None:
    """The last test: host 1 is stopped."""
    cluster.hosts[0].ask("stop")
    wait_for(lambda: cluster.hosts[1].ask("query")["members"] == [2])
    assert set(cluster.takers(446, ["10.1.0.200", "10.9.1.1"])) == {2}
