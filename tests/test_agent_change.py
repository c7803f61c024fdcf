"""Two real agents: they change the cluster together, reload what concerns nobody else, and one
takes over.  Each test goes on from where the one before it ended."""

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.links import Sniffer
from tests.netns import Segment, wait_for
from tests.test_agent import VIP, Host, start_all

CLUSTER_MAC = "02:bf:0a:01:00:64"

OWN = 'additional_dedicated_ip_addresses = ["10.9.9.9/32"]'

ADD = {"do": "add", "rule": {"ports": "443", "affinity": "none"}}


@pytest.fixture(scope="module")
def segment() -> Iterator[Segment]:
    """A client is there; two hosts will be."""
    made = Segment()
    made.node("client", "10.1.0.200/24")
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair(segment: Segment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Two hosts that have converged; each test leaves them so."""
    directory = tmp_path_factory.mktemp("change")
    hosts = [Host(segment, host_id, directory) for host_id in (1, 2)]
    try:
        start_all(hosts)
        yield hosts
    finally:
        for host in hosts:
            host.end(signal.SIGKILL)


def change(host: Host, wanted: dict[str, Any]) -> dict[str, Any]:
    """Ask for a change of the whole cluster; how it ended."""
    host.ask("change", change=wanted, timeout_s=30.0)
    wait_for(lambda: host.ask("change_state")["state"] != "staging", 60.0)
    return host.ask("change_state")


def rules(host: Host) -> list[str]:
    """What a host serves by."""
    return [rule["rule"] for rule in host.ask("display")["rules"]]


def settled(hosts: list[Host]) -> bool:
    """Both are one cluster, and their files say what they serve by."""
    if not all(host.ask("change_state")["saved"] for host in hosts):
        return False
    return all(host.state() == "converged" for host in hosts) and all(
        host.ask("query")["members"] == [1, 2] for host in hosts
    )


def test_both_files_change_and_both_configurations_lie_on_the_disk(pair: list[Host]) -> None:
    """Asked at the second host; what each file says of its own host stays."""
    before = [host.ask("params")["configuration_digest"] for host in pair]
    assert change(pair[1], ADD)["state"] == "done"
    wait_for(lambda: settled(pair), 30.0)
    after = [host.ask("params")["configuration_digest"] for host in pair]
    assert len({*before}) == len({*after}) == 1
    assert before != after
    assert all('ports = "443"' in host.config.read_text() for host in pair)
    for host in pair:
        assert f"id = {host.host_id}" in host.config.read_text()
        assert len(rules(host)) == 3
        record = host.directory / "state" / f"10.1.0.100:{host.host_id}" / "staged.json"
        assert {before[0], after[0]} == {*json.loads(record.read_text())["configurations"]}
        assert record.stat().st_mode & 0o077 == 0
        assert host.ask("reload")["message"] == "nothing changed"
    owners = [len(host.ask("maps")["slots"][1]["owners"]) for host in pair]
    assert owners == [60, 60]


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (lambda host: host.config.parent.chmod(0o555), "Permission denied (IO_ERROR)"),
        (
            lambda host: host.config.write_text(host.config.read_text().replace("443", "444")),
            "reload it first (BAD_PARAMS)",
        ),
        (lambda host: host.config.write_text("["), "expected a TOML file"),
    ],
    ids=["read-only", "edited", "broken"],
)
def test_a_host_that_cannot_keep_it_ends_it_everywhere(
    pair: list[Host], deed: Callable[[Host], object], reason: str
) -> None:
    coordinator, other = pair
    before, rules_before = other.config.read_text(), rules(other)
    deed(other)
    try:
        ended = change(coordinator, {"do": "cluster", "keys": {"filter_icmp": True}})
    finally:
        other.config.parent.chmod(0o755)
        other.config.write_text(before)
    assert ended["state"] == "aborted"
    assert ended["reason"].startswith("host 2 refuses: ")
    assert reason in ended["reason"]
    assert rules(coordinator) == rules_before
    assert [host.ask("params")["filter_icmp"] for host in pair] == [False, False]
    assert settled(pair)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"do": "add", "rule": {"ports": "80"}}, 'port_rule[3].ports = "80-80"'),
        ({"do": "cluster", "keys": {"timers": "nlb"}}, "alive_message_period_ms"),
        ({"do": "cluster", "keys": {"filter_icmp": False}}, "(ALREADY)"),
        ({"do": "nothing"}, "(BAD_PARAMS)"),
    ],
)
def test_what_the_coordinator_itself_refuses_nobody_stages(
    pair: list[Host], wanted: dict[str, Any], reason: str
) -> None:
    ended = change(pair[0], wanted)
    assert ended["state"] == "aborted"
    assert reason in ended["reason"]


def convergences(hosts: list[Host]) -> list[int]:
    """How often each host has converged."""
    return [host.ask("query")["convergence_count"] for host in hosts]


@pytest.mark.parametrize(
    ("line", "done"),
    [
        ("# a comment", "nothing changed"),
        ('initial_state = "stopped"', "in force from the next start on"),
        ("retain_suspended = true", "in force from the next start on"),
        (OWN, "dedicated IP addresses changed"),
    ],
)
def test_a_reload_that_changes_nothing_shared_is_no_convergence(
    pair: list[Host], line: str, done: str
) -> None:
    before = convergences(pair)
    for host in pair:
        text = host.config.read_text()
        host.config.write_text(text.replace("[host]", f"[host]\n{line}"))
        assert host.ask("reload")["message"] == done
        shown = host.ask("params")["additional_dedicated_ip_addresses"]
        assert shown == (["10.9.9.9/32"] if line == OWN else [])
        assert host.state() == "converged"
        host.config.write_text(text)
        host.ask("reload")
    assert convergences(pair) == before
    assert not any(host.ask("display")["heartbeats_ignored"] for host in pair)


def test_another_handling_priority_moves_the_rule_and_nobody_leaves(pair: list[Host]) -> None:
    first, second = pair
    at = {"cluster_ip_address": "all", "ports": "80", "protocol": None}
    single = {"do": "set", "at": at, "rule": {"filtering_mode": "single"}}
    assert change(second, single)["state"] == "done"
    wait_for(lambda: settled(pair) and first.ask("maps")["buckets"] == 60, 30.0)
    text = first.config.read_text()
    first.config.write_text(text.replace('ports = "80"', 'ports = "80"\nhandling_priority = 9'))
    assert first.ask("reload")["message"] == "handling priorities changed"
    wait_for(lambda: second.ask("maps")["buckets"] == 60, 30.0)
    assert "stopped" not in [event["name"] for event in first.ask("display")["events"]]
    assert first.ask("queryport", port=80)["handling_priority"] == 9


def test_after_a_take_over_the_neighbours_learn_the_cluster_mac(
    segment: Segment, pair: list[Host]
) -> None:
    """Whatever somebody else had told them meanwhile."""
    client = segment.nodes["client"]
    first, second = pair
    with Sniffer(client) as sniffer:
        client.run(f"ip neigh replace {VIP} lladdr 02:00:00:00:00:99 dev eth0 nud stale")
        first.end(signal.SIGKILL)
        wait_for(lambda: second.ask("query")["default_host"] == 2, 30.0)
        wait_for(lambda: CLUSTER_MAC in client.run(f"ip neigh show {VIP}"), 10.0)
        told = [one for one in map(Ether, sniffer.read()) if ARP in one and one[ARP].psrc == VIP]
    assert {(one.src, one[ARP].hwsrc) for one in told} == {("02:02:0a:01:00:64", CLUSTER_MAC)}
