"""Two real agents change the cluster together: their files, their disks, and who refuses."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.netns import Segment, wait_for
from tests.test_agent import Host, start_all

ADD = {"do": "add", "rule": {"ports": "443", "affinity": "none"}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Two hosts that have converged; each test leaves them so."""
    segment = Segment()
    directory = tmp_path_factory.mktemp("change")
    hosts = [Host(segment, host_id, directory) for host_id in (1, 2)]
    try:
        for host in hosts:
            host.configure()
        start_all(hosts)
        yield hosts
    finally:
        for host in hosts:
            host.end()
        segment.close()


def change(host: Host, wanted: dict[str, Any]) -> dict[str, Any]:
    """Ask for a change of the whole cluster; how it ended."""
    host.ask("change", change=wanted, timeout_s=30.0)
    wait_for(lambda: host.ask("change_state")["state"] != "staging", 60.0)
    return host.ask("change_state")


def rules(host: Host) -> list[str]:
    """What a host serves by."""
    return [rule["rule"] for rule in host.ask("display")["rules"]]


def settled(hosts: list[Host]) -> bool:
    """Both are one cluster."""
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
    wait_for(lambda: all('ports = "443"' in host.config.read_text() for host in pair))
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
