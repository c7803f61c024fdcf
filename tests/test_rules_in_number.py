"""As many port rules as NLB allows, each with real connections, and what equal load means there."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.test_agent import VIP
from tests.test_port_rules import with_rules
from tests.test_rules_on_the_wire import Cluster, two_hosts

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
    ports = (*ENDS, EQUAL, UNEQUAL, BEHIND)
    directory = tmp_path_factory.mktemp("rules")
    with two_hosts(directory, ports, lambda host: with_rules(host, rules(host.host_id))) as made:
        yield made


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
