"""As many port rules as NLB allows, each with real connections, and what equal load means there."""

import signal
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.netns import Segment, wait_for
from tests.test_agent import VIP, Host
from tests.test_port_rules import with_rules
from tests.test_rules_on_the_wire import Cluster

RULES, WIDTH, FIRST = 32, 10, 8000
EQUAL, UNEQUAL, BEHIND = FIRST + 30 * WIDTH, FIRST + 31 * WIDTH, FIRST + 32 * WIDTH
ENDS = [FIRST + rule * WIDTH + end for rule in range(30) for end in (0, WIDTH - 1)]
CLIENTS = [f"10.9.{number}.7" for number in range(240)]


def rules(host_id: int) -> str:
    """30 for a single host, who is another one by turns, and two for both, by load."""
    written = [
        f'filtering_mode = "single"\nhandling_priority = {1 + (rule + host_id) % 2}'
        for rule in range(30)
    ]
    equal = 'load_weight = "equal"'
    written += [equal, equal if host_id == 1 else "load_weight = 100"]
    ranges = [f"{at}-{at + WIDTH - 1}" for at in range(FIRST, BEHIND, WIDTH)]
    return "".join(
        f'[[port_rule]]\nports = "{ports}"\n{rule}\n'
        for ports, rule in zip(ranges, written, strict=True)
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    segment = Segment()
    directory = tmp_path_factory.mktemp("rules")
    hosts = [Host(segment, host_id, directory) for host_id in (1, 2)]
    client = segment.node("client", "10.1.0.200/24")
    client.run("ip route add local 10.9.0.0/16 dev lo")
    listeners = []
    try:
        for host in hosts:
            host.node.run("ip route add 10.9.0.0/16 via 10.1.0.200")
            with_rules(host, rules(host.host_id))
            ports = (*ENDS, EQUAL, UNEQUAL, BEHIND)
            listeners.append(
                {port: host.node.call(socket.create_server, ("0.0.0.0", port)) for port in ports}
            )
            host.start()
        for host in hosts:
            host.wait_state("converged")
            wait_for(lambda: host.ask("query")["members"] == [1, 2])  # noqa: B023
        yield Cluster(hosts, client, listeners)
    finally:
        for host in hosts:
            host.end(signal.SIGKILL)
        for each in listeners:
            for listener in each.values():
                listener.close()
        segment.close()


def test_each_of_32_rules_goes_its_own_way_from_its_first_port_to_its_last(
    cluster: Cluster,
) -> None:
    assert len(cluster.hosts[0].ask("display")["rules"]) == RULES + 1, "and the default rule"
    wanted = {port: {2 - (port - FIRST) // WIDTH % 2} for port in ENDS}
    assert {port: set(cluster.takers(port, CLIENTS[:2])) for port in ENDS} == wanted
    assert set(cluster.takers(BEHIND, CLIENTS[:8])) == {1}, "no rule, so the default host"


@pytest.mark.parametrize(("port", "buckets"), [(EQUAL, [30, 30]), (UNEQUAL, [20, 40])])
def test_equal_load_is_half_beside_equal_load_and_a_third_beside_a_weight_of_100(
    cluster: Cluster, port: int, buckets: list[int]
) -> None:
    owned = [host.ask("queryport", port=port)["buckets"] for host in cluster.hosts]
    assert owned == buckets
    took = Counter(cluster.takers(port, CLIENTS))
    # 240 addresses: within three standard deviations of the share that the buckets are.
    assert took[1] / len(CLIENTS) == pytest.approx(buckets[0] / 60, abs=0.09)
    explained = [
        cluster.hosts[0].ask("explain", client=f"{each}:1", server=f"{VIP}:{port}", protocol="tcp")
        for each in CLIENTS
    ]
    assert Counter(one["owner"] for one in explained) == took
