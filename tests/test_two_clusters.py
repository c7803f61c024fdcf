"""Two clusters on one machine: each has its interface, its agent, and nothing of the other."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from softnlb.control import call
from tests.netns import Namespace, Segment, wait_for

SOFTNLB = Path(sys.executable).with_name("softnlb")
CONFIG = """
[cluster]
ip_address = "{vip}/24"
mode = "{mode}"
timers = "fast"
[host]
id = {host_id}
interface = "{interface}"
dedicated_ip_address = "{network}.{host_id}/24"
data_plane = "nfqueue"
"""
SHARED = "sysctl -n net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce"


class Cluster(NamedTuple):
    """One of them: the client on its segment, and the agent of the machine."""

    vip: str
    client: Namespace
    agent: "subprocess.Popen[str]"

    def end(self) -> int:
        self.agent.terminate()
        return self.agent.wait(30)


class Machine:
    """A machine with a leg in each of two segments."""

    def __init__(self, directory: Path) -> None:
        self.segments = Segment(), Segment()
        self.directory = directory
        self.environment = os.environ | {
            "SOFTNLB_RUN_DIR": str(directory / "run"),
            "SOFTNLB_STATE_DIR": str(directory / "state"),
        }
        self.node = self.segments[0].node("host", "10.1.0.1/24")
        self.segments[1].plug(self.node, "eth1", "host")
        self.node.run("ip address add 10.2.0.2/24 dev eth1 && ip link set eth1 up")
        self.listener = self.node.call(socket.create_server, ("0.0.0.0", 80))
        self.before = self.node.run(SHARED)
        self.clusters = [
            self.start("10.1.0", "eth0", 1, "unicast"),
            self.start("10.2.0", "eth1", 2, "multicast"),
        ]

    def start(self, network: str, interface: str, host_id: int, mode: str) -> Cluster:
        vip = f"{network}.100"
        number = int(network[3]) - 1
        agent = self.agent(vip, interface, host_id, mode)
        return Cluster(vip, self.segments[number].node("client", f"{network}.200/24"), agent)

    def agent(self, vip: str, interface: str, host_id: int, mode: str) -> "subprocess.Popen[str]":
        """An agent, whose log is in agent-VIP.log."""
        path = self.directory / f"{vip}.toml"
        network = vip.rpartition(".")[0]
        path.write_text(
            CONFIG.format(vip=vip, interface=interface, host_id=host_id, mode=mode, network=network)
        )
        with (self.directory / f"{vip}.log").open("w") as log:
            command = [str(SOFTNLB), "agent", "--config", str(path)]
            return self.node.start(command, env=self.environment, stderr=log)

    def softnlb(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [SOFTNLB, *words], env=self.environment, text=True, capture_output=True, check=False
        )

    def state(self, cluster: Cluster) -> str:
        (path,) = (self.directory / "run").glob(f"{cluster.vip}:*.sock")
        return str(call(path, "query")["state"])

    def log(self, cluster: Cluster) -> str:
        return (self.directory / f"{cluster.vip}.log").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        for cluster in made.clusters:
            wait_for(lambda: " converged" in made.log(cluster), timeout_s=30)  # noqa: B023
        yield made
    finally:
        for cluster in made.clusters:
            if cluster.agent.poll() is None:
                cluster.agent.send_signal(signal.SIGKILL)
            cluster.agent.wait(10)
        made.listener.close()
        for segment in made.segments:
            segment.close()


def connects(cluster: Cluster, timeout_s: float = 5.0) -> bool:
    opened = cluster.client.call(socket.socket)
    with opened:
        opened.settimeout(timeout_s)
        try:
            opened.connect((cluster.vip, 80))
        except TimeoutError:
            return False
    return True


def test_each_cluster_has_its_own_and_leaves_the_other_alone(machine: Machine) -> None:
    first, second = machine.clusters
    assert connects(first)
    assert connects(second)
    # Through the interface of the other one nobody gets in.
    first.client.run(f"ip route add {second.vip}/32 via 10.1.0.1")
    assert not connects(second._replace(client=first.client), timeout_s=0.5)

    several = machine.softnlb("query")
    assert several.returncode == 2
    assert "10.1.0.100:1, 10.2.0.100:2" in several.stderr
    named = json.loads(machine.softnlb("query", second.vip, "--json").stdout)
    assert (named["host_id"], named["members"]) == (2, [2])
    assert len(json.loads(machine.softnlb("query", "all", "--json").stdout)) == 2

    # An interface has one cluster; whoever comes second is told who was first.
    third = machine.agent("10.1.0.101", "eth0", 3, "unicast")
    machine.clusters.append(Cluster("10.1.0.101", first.client, third))
    told = "10.1.0.100:1: an interface has one cluster"
    wait_for(lambda: told in machine.log(machine.clusters[2]), timeout_s=30)
    third.kill()
    assert connects(first)

    # Whoever leaves first leaves the settings that both need to the other one.
    assert machine.node.run(SHARED) == "1\n2\n"
    assert first.end() == 0
    assert machine.node.run(SHARED) == "1\n2\n"
    assert machine.softnlb("cleanup").returncode == 0
    assert machine.state(second) == "converged"
    assert connects(second)
    assert "repair" not in machine.log(second)
    assert second.end() == 0
    assert machine.node.run(SHARED) == machine.before
    assert not list((machine.directory / "run").glob("*.sysctls"))
