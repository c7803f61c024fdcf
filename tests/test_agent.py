"""A real agent process on a real interface: its states, its restarts, its ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softnlb import ebpf
from softnlb.control import call
from softnlb.errors import SoftnlbError
from tests.netns import Namespace, Segment, wait_for

SOFTNLB = Path(sys.executable).with_name("softnlb")
VIP = "10.1.0.100"
CONFIG = """
[cluster]
ip_address = "10.1.0.100/24"
mode = "unicast"
timers = "fast"
{cluster}
[host]
id = {host_id}
interface = "eth0"
dedicated_ip_address = "10.1.0.{host_id}/24"
{host}
[[port_rule]]
ports = "80"
protocol = "tcp"
load_weight = {load_weight}
"""


class Host:
    """One host on the segment, with its configuration file, control socket and log."""

    def __init__(self, segment: Segment, host_id: int, directory: Path) -> None:
        self.host_id = host_id
        self.directory = directory / f"host{host_id}"
        self.directory.mkdir()
        self.config = self.directory / "cluster.toml"
        self.node: Namespace = segment.node(f"host{host_id}", f"10.1.0.{host_id}/24")
        self.socket = self.directory / "run" / f"{VIP}:{host_id}.sock"
        self.process: subprocess.Popen[str] | None = None
        self.configure()

    def configure(self, cluster: str = "", host: str = "", load_weight: int = 50) -> None:
        """Write the configuration file."""
        text = CONFIG.format(
            host_id=self.host_id, cluster=cluster, host=host, load_weight=load_weight
        )
        self.config.write_text(text)

    def start(self, *wrapper: str) -> None:
        """Start the agent, under a wrapper command if given; its log goes to agent.log."""
        environment = {
            **os.environ,
            "SOFTNLB_RUN_DIR": str(self.directory / "run"),
            "SOFTNLB_STATE_DIR": str(self.directory / "state"),
        }
        with (self.directory / "agent.log").open("a") as log:
            self.process = self.node.start(
                [*wrapper, str(SOFTNLB), "agent", "--config", str(self.config)],
                env=environment,
                stderr=log,
            )

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """A verb to the agent."""
        return call(self.socket, verb, **arguments)

    def state(self) -> str | None:
        """The state, None while the agent does not answer."""
        try:
            return str(self.ask("query")["state"])
        except SoftnlbError:
            return None

    def wait_state(self, wanted: str) -> None:
        """Wait for a state."""
        wait_for(lambda: self.state() == wanted, timeout_s=10)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and the exit status."""
        process = self.process
        if process is None:
            return 0
        process.send_signal(number)
        self.process = None
        return process.wait(10)

    def network(self) -> str:
        """Everything that an agent may change on the host; the order of tables means nothing."""
        shown = self.node.run(
            "ip -o address show; ip -o link show; bridge fdb show dev eth0; nft -s list ruleset; "
            "sysctl -a 2>/dev/null | grep -E 'ipv4.conf.*(arp_|l2_multicast)'"
        )
        return "\n".join(sorted(shown.splitlines()))

    def log(self) -> str:
        """All that the agents of this host have logged."""
        return (self.directory / "agent.log").read_text()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Three hosts, no agent running."""
    segment = Segment()
    made = [Host(segment, host_id, tmp_path) for host_id in (1, 2, 3)]
    try:
        yield made
    finally:
        for host in made:
            host.end(signal.SIGKILL)
        segment.close()


def start_all(hosts: list[Host]) -> None:
    """Start the agents and wait until they are one cluster."""
    for host in hosts:
        host.start()
    wanted = sorted(host.host_id for host in hosts)

    def one_cluster() -> bool:
        return all(
            host.state() == "converged" and host.ask("query")["members"] == wanted for host in hosts
        )

    wait_for(one_cluster, timeout_s=30)


def test_query_has_exactly_the_documented_keys(hosts: list[Host]) -> None:
    start_all(hosts)
    answer = hosts[2].ask("query")
    assert list(answer) == [
        "cluster_ip_address",
        "host_id",
        "state",
        "default_host",
        "members",
        "convergence_count",
        "last_converged_s_ago",
    ]
    assert (answer["host_id"], answer["default_host"], answer["members"]) == (3, 1, [1, 2, 3])


def test_sigterm_hands_over_and_leaves_nothing_behind(hosts: list[Host]) -> None:
    before = hosts[0].network()
    start_all(hosts)
    assert hosts[0].network() != before
    assert hosts[0].end() == 0
    assert hosts[0].network() == before
    assert not hosts[0].socket.exists()
    wait_for(lambda: hosts[1].ask("query")["members"] == [2, 3])
    assert "leaves the cluster" in hosts[1].log()


def test_a_crash_is_repaired_by_the_next_start(hosts: list[Host]) -> None:
    host = hosts[0]
    before = host.network()
    host.start()
    host.wait_state("converged")
    assert host.end(signal.SIGKILL) == -signal.SIGKILL
    host.start()
    host.wait_state("converged")
    assert host.end() == 0
    assert host.network() == before


def test_a_second_agent_on_the_interface_is_refused(hosts: list[Host]) -> None:
    host = hosts[0]
    host.start()
    host.wait_state("converged")
    first = host.process
    host.start()
    second = host.process
    assert second is not None
    assert second.wait(10) == 1
    host.process = first
    assert host.state() == "converged"


def test_without_privileges_one_sentence_names_the_remedy(hosts: list[Host]) -> None:
    host = hosts[0]
    before = host.network()
    host.start("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert host.process is not None
    assert host.process.wait(10) == 5
    assert "sudo" in host.log()
    assert "Traceback" not in host.log()
    assert host.network() == before


def test_garbage_on_the_wire_is_counted_and_changes_nothing(hosts: list[Host]) -> None:
    start_all(hosts)
    before = [host.ask("query") for host in hosts]

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sender:
            header = bytes.fromhex("bf01dec0 06020000 02000000 0a010064 0a010002")
            whole = header + bytes(1476)
            for payload in (
                b"",
                b"x" * 60,
                header,
                whole[:1400],
                whole,
                whole[:8] + b"\xff" * 1488,
            ):
                sender.sendto(payload, ("eth0", 0x886F, 0, 0, b"\xff" * 6))

    hosts[2].node.call(send)
    wait_for(lambda: sum(hosts[0].ask("display")["heartbeats_ignored"].values()) >= 1)
    after = [host.ask("query") for host in hosts]
    for was, now in zip(before, after, strict=True):
        del was["last_converged_s_ago"], now["last_converged_s_ago"]
        assert was == now


def test_a_cluster_key_keeps_out_who_has_another_one(hosts: list[Host]) -> None:
    """convergence.md: a key here and another there never affects a running member."""
    for host, secret in zip(hosts, ("11" * 32, "11" * 32, "22" * 32), strict=True):
        key = host.directory / "cluster.key"
        key.write_text(f"1 {secret}\n")
        key.chmod(0o600)
        host.configure(cluster='key_file = "cluster.key"')
    start_all(hosts[:2])
    assert hosts[0].ask("params")["authentication"] == "enforce"
    hosts[2].start()
    wait_for(lambda: "cannot verify" in hosts[2].log(), timeout_s=10)
    assert hosts[2].ask("maps")["buckets"] == 0
    assert [host.ask("query")["members"] for host in hosts[:2]] == [[1, 2], [1, 2]]
    wait_for(lambda: "key 1 of this host is another one" in hosts[0].log(), timeout_s=10)


def test_a_signal_reloads_the_keys_and_a_key_file_that_others_may_read_changes_nothing(
    hosts: list[Host],
) -> None:
    host = hosts[0]
    key = host.directory / "cluster.key"
    key.write_text(f"1 {'11' * 32}\n")
    key.chmod(0o600)
    host.configure(cluster='key_file = "cluster.key"')
    start_all([host])
    assert host.process is not None
    key.write_text(f"2 {'22' * 32}\n1 {'11' * 32}\n")
    host.process.send_signal(signal.SIGHUP)
    wait_for(lambda: host.ask("params")["key_ids"] == [2, 1], timeout_s=10)
    key.write_text(f"3 {'33' * 32}\n")
    key.chmod(0o640)
    host.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "only its owner may read" in host.log(), timeout_s=10)
    assert "33333333" not in host.log()
    assert host.ask("params")["key_ids"] == [2, 1]
    assert host.ask("query")["convergence_count"] == 1


def test_an_address_that_something_else_configured_is_refused(hosts: list[Host]) -> None:
    host = hosts[0]
    host.node.run(f"ip address add {VIP}/32 dev lo")
    before = host.network()
    host.start()
    assert host.process is not None
    assert host.process.wait(10) == 1
    assert VIP in host.log()
    assert host.network() == before


def test_a_bad_configuration_is_a_usage_error_and_changes_nothing(hosts: list[Host]) -> None:
    host = hosts[0]
    before = host.network()
    host.configure(host='initial_state = "asleep"\nretain_suspended = 7', load_weight=101)
    host.start()
    assert host.process is not None
    assert host.process.wait(10) == 2
    for key in ("initial_state", "retain_suspended", "load_weight"):
        assert key in host.log()
    assert host.network() == before


def test_initial_state_stopped_joins_only_when_told(hosts: list[Host]) -> None:
    host = hosts[0]
    before = host.network()
    host.configure(host='initial_state = "stopped"')
    host.start()
    host.wait_state("stopped")
    assert host.network() == before
    host.ask("start")
    host.wait_state("converged")


@pytest.mark.parametrize(("retain", "after"), [("true", "suspended"), ("false", "converged")])
def test_suspended_survives_a_restart_where_it_is_retained(
    hosts: list[Host], retain: str, after: str
) -> None:
    """NLB: a host suspended at shutdown stays suspended, whatever the initial state."""
    host = hosts[0]
    host.configure(host=f"retain_suspended = {retain}")
    host.start()
    host.wait_state("converged")
    host.ask("suspend")
    host.wait_state("suspended")
    with pytest.raises(SoftnlbError, match="suspended"):
        host.ask("start")
    assert host.end() == 0
    host.start()
    host.wait_state(after)


def test_resume_does_not_start(hosts: list[Host]) -> None:
    """NLB: resume undoes suspend; start is needed."""
    host = hosts[0]
    host.configure(host='initial_state = "suspended"')
    host.start()
    host.wait_state("suspended")
    host.ask("resume")
    assert host.state() == "stopped"
    host.ask("start")
    host.wait_state("converged")


def test_drainstop_without_connections_stops_by_itself(hosts: list[Host]) -> None:
    start_all(hosts)
    hosts[1].ask("drainstop", timeout_s=None)
    hosts[1].wait_state("stopped")
    wait_for(lambda: hosts[0].ask("query")["members"] == [1, 3])
    owners = hosts[0].ask("maps")["slots"][0]["owners"]
    assert sorted(set(owners.values())) == [1, 3]
    assert len(owners) == 60


def test_reload_of_a_load_weight_moves_buckets(hosts: list[Host]) -> None:
    """NLB: weights 30 and 60 mean one third and two thirds."""
    pair = hosts[:2]
    start_all(pair)
    pair[0].configure(load_weight=30)
    pair[1].configure(load_weight=60)
    for host in pair:
        assert "load weights changed" in host.ask("reload")["message"]
    wait_for(lambda: [host.ask("maps")["buckets"] for host in pair] == [20, 40])


def test_reload_of_a_bad_file_is_refused_and_changes_nothing(hosts: list[Host]) -> None:
    host = hosts[0]
    host.start()
    host.wait_state("converged")
    host.configure(load_weight=1000)
    with pytest.raises(SoftnlbError, match="load_weight") as refused:
        host.ask("reload")
    assert refused.value.exit_code == 2
    assert host.state() == "converged"


def test_reload_of_what_all_must_share_joins_again(hosts: list[Host]) -> None:
    host = hosts[0]
    host.start()
    host.wait_state("converged")
    before = host.ask("params")["configuration_digest"]
    host.configure(cluster="filter_icmp = true")
    host.ask("reload")
    host.wait_state("converged")
    assert host.ask("params")["filter_icmp"] is True
    assert host.ask("params")["configuration_digest"] != before


def test_what_cannot_start_after_a_reload_stays_stopped_and_takes_orders(hosts: list[Host]) -> None:
    """The file names a cluster address that something else has configured here."""
    host = hosts[0]
    host.start()
    host.wait_state("converged")
    host.node.run("ip address add 10.1.0.101/24 dev eth0")
    host.configure(cluster='additional_ip_addresses = ["10.1.0.101/24"]')
    assert "the host left and cannot join again" in host.ask("reload")["message"]
    assert host.state() == "stopped"
    (why,) = [one for one in host.ask("display")["events"] if one["name"] == "restart-failed"]
    assert "10.1.0.101 is already configured" in why["text"]
    host.node.run("ip address del 10.1.0.101/24 dev eth0")
    host.ask("start")
    host.wait_state("converged")
    assert host.ask("params")["cluster_ip_addresses"] == ["10.1.0.100/24", "10.1.0.101/24"]


def test_a_reload_does_not_end_a_drainstop(hosts: list[Host]) -> None:
    """What is open stays open, and the host stops after it: it does not join again."""
    host = hosts[0]
    host.start()
    host.wait_state("converged")
    with (
        host.node.call(socket.create_server, (VIP, 80)) as listener,
        host.node.call(socket.create_connection, (VIP, 80)) as client,
    ):
        host.ask("drainstop")
        host.configure(cluster="filter_icmp = true")
        for told in ("in force when the host has stopped", "nothing changed"):
            assert told in host.ask("reload")["message"]
        assert host.state() == "draining"
        assert host.ask("params")["filter_icmp"] is False
        client.close()
        listener.accept()[0].close()
        host.wait_state("stopped")
    assert host.ask("params")["filter_icmp"] is True
    host.ask("start")
    host.wait_state("converged")
    host.configure()
    assert "joins again" in host.ask("reload")["message"]


def test_a_reload_while_the_host_leaves_does_not_make_it_join_again(hosts: list[Host]) -> None:
    """It takes a while, for the other one does not answer."""
    host, other = hosts[:2]
    start_all([host, other])
    assert other.process is not None
    other.process.send_signal(signal.SIGSTOP)
    host.ask("stop")
    assert host.state() == "draining"
    host.configure(cluster="filter_icmp = true")
    assert "in force when the host has stopped" in host.ask("reload")["message"]
    host.wait_state("stopped")
    assert host.ask("params")["filter_icmp"] is True
    assert host.ask("reload")["message"].endswith("nothing changed")
    assert host.state() == "stopped"


def test_a_stop_while_the_host_leaves_to_join_again_is_obeyed(hosts: list[Host]) -> None:
    """It takes a while, for the other one does not answer."""
    host, other = hosts[:2]
    start_all([host, other])
    host.configure(cluster="filter_icmp = true")
    assert other.process is not None
    other.process.send_signal(signal.SIGSTOP)
    host.ask("reload")
    assert host.ask("display")["query"]["state"] == "draining"
    assert host.ask("params")["filter_icmp"] is False, "it serves by the former rules still"
    host.ask("stop")
    host.wait_state("stopped")
    names = [event["name"] for event in host.ask("display")["events"]]
    assert (names.count("started"), names[-1]) == (1, "stopped")
    assert host.ask("params")["filter_icmp"] is True


@pytest.mark.parametrize(
    "deed",
    [
        "nft flush ruleset",
        "nft delete table arp softnlb_eth0",
        f"ip address del {VIP}/32 dev eth0",
        "ip link set eth0 address 02:11:22:33:44:55",
        "bridge fdb del 02:bf:0a:01:00:64 dev eth0 self",
        "sysctl -w net.ipv4.conf.all.arp_ignore=0",
    ],
)
def test_what_others_take_away_is_put_back(hosts: list[Host], deed: str) -> None:
    host = hosts[0]
    host.start()
    host.wait_state("converged")
    before = host.network()
    host.node.run(deed)
    wait_for(lambda: "repair" in host.log())
    wait_for(lambda: host.network() == before)
    assert host.state() == "converged"


@pytest.mark.parametrize("data_plane", ["nfqueue", pytest.param("ebpf", marks=pytest.mark.bpf)])
def test_a_data_plane_that_others_take_away_is_put_back(hosts: list[Host], data_plane: str) -> None:
    host = hosts[0]
    host.configure(host=f'data_plane = "{data_plane}"')
    host.start()
    host.wait_state("converged")
    assert host.ask("params")["data_plane"] == data_plane
    before = host.network()
    if data_plane == "nfqueue":
        host.node.run("nft delete table inet softnlb_queue_eth0")
    else:
        assert host.node.call(ebpf.cleanup, "eth0")
    wait_for(lambda: "repair" in host.log())
    wait_for(lambda: host.network() == before)
    host.wait_state("converged")


def test_a_dead_verdict_process_is_replaced(hosts: list[Host]) -> None:
    host = hosts[0]
    host.configure(host='data_plane = "nfqueue"')
    host.start()
    host.wait_state("converged")
    assert host.process is not None
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children")
    (verdicts,) = children.read_text().split()
    os.kill(int(verdicts), signal.SIGKILL)
    wait_for(lambda: children.read_text().split() not in ([], [verdicts]))
    wait_for(lambda: VIP in host.node.run("ip -o address show dev eth0"))
    assert "repair" in host.log()


@pytest.mark.parametrize("verb", ["", "__init__", "do_query", "answer", "halt"])
def test_an_unknown_verb_is_refused(hosts: list[Host], verb: str) -> None:
    host = hosts[0]
    host.start()
    host.wait_state("converged")
    with pytest.raises(SoftnlbError) as refused:
        host.ask(verb)
    assert refused.value.exit_code == 1


def test_rule_commands(hosts: list[Host]) -> None:
    start_all(hosts)
    hosts[0].ask("disable", cluster_ip_address="all", port=80)
    wait_for(lambda: hosts[0].ask("maps")["buckets"] == 0)
    assert hosts[0].ask("queryport", port=80)["state"] == "disabled"
    wait_for(lambda: len(hosts[1].ask("maps")["slots"][0]["owners"]) == 60)
    hosts[0].ask("enable", cluster_ip_address="all", port="all")
    wait_for(lambda: hosts[0].ask("maps")["buckets"] == 20)
    with pytest.raises(SoftnlbError, match="no port rule"):
        hosts[0].ask("drain", cluster_ip_address="all", port=81)


def test_explain_names_the_host_that_owns(hosts: list[Host]) -> None:
    start_all(hosts)
    asked = {"client": "10.9.8.7:40000", "server": f"{VIP}:80", "protocol": "tcp"}
    answers = [host.ask("explain", **asked) for host in hosts]
    (owner,) = {answer["owner"] for answer in answers}
    verdicts = {host.host_id: a["verdict"] for host, a in zip(hosts, answers, strict=True)}
    assert verdicts == {h: "keep" if h == owner else "drop" for h in (1, 2, 3)}
    assert json.dumps(answers[0]["hash"]).isdigit()
