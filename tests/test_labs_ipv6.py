"""A lab whose every address is IPv6: the experiments of IPv4 with the same outcome."""

import json
import socket

import click
import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrRouting
from scapy.layers.l2 import Ether

from labs import experiment
from labs.cli import Runs
from labs.commentary import Commentator
from labs.runs import bulk, capture, connections, flooding, forwarding, many, scale, timing
from labs.up import start_lab
from modes.mac import group, group_mac
from modes.plan import Mode
from softnlb.config import load
from tests.labs import running
from tests.netns import wait_for

EVERYBODY = [1, 2, 3]
ROUTER = "02:00:00:00:00:01"


@pytest.fixture(scope="module")
def lab6():
    """Three hosts in IGMP mode, at a switch that snoops by MAC address."""
    choices = {"mode": Mode.IGMP, "switch": "mac", "affinity": "none", "ipv6": True}
    with running("ipv6", hosts=3, **choices) as handle:
        yield handle


def test_every_connection_is_answered_by_the_one_host_that_explain_names(lab6):
    result = connections.measure(lab6, 150)
    assert result["source_addresses"] > 140
    assert (result["unanswered"], result["seen_by_the_witness"]) == (0, 150)
    assert result["answered_by_two_hosts"] == 0
    assert result["answered_by_another_host_than_explain_names"] == 0
    assert set(result["per_host"]) == set(EVERYBODY), "everybody has a share"


def test_frames_reach_the_members_of_the_group_and_nobody_else(lab6):
    vip = lab6.spec().cluster_ip_address
    (table,) = json.loads(lab6.output("switch", ["bridge", "-j", "mdb", "show"]))
    ports = {entry["port"] for entry in table["mdb"] if entry["grp"] == str(group(vip))}
    assert ports == {"host1", "host2", "host3"}, "by MLD"
    assert group_mac(vip).hex("-").upper() == "33-33-EF-FF-0C-B8"
    result = flooding.measure(lab6, 20)
    assert result["answered"] == 20
    shares = {port: result["received_percent"][port] for port in ports}
    assert set(shares.values()) == {100.0}, shares
    assert result["bystander_percent"] == 0
    assert not result["cluster_mac_learned"]
    joined = [json.loads(line) for line in lab6.events().splitlines() if b'"mdb"' in line]
    assert {entry["port"] for entry in joined if entry["group"] == str(group(vip))} == ports


def test_one_datagram_to_a_dedicated_ip_address_stays_one_frame(lab6):
    assert forwarding.measure(lab6)["frames"] == 1


def test_open_connections_cost_the_data_plane_no_memory(lab6):
    result = many.measure(lab6, count=200, rounds=1)
    assert result["connections"] == 200
    assert result["with"]["maps_kib"] == result["without"]["maps_kib"]


def test_every_packet_in_a_capture_has_a_comment(lab6, tmp_path):
    result = capture.measure(lab6, 4000, 8000.0, tmp_path / "lab.pcapng")
    assert (result["frames"], result["lost"]) == (4000, 0)
    assert result["opens_in_tshark"]
    assert 3000 < result["cluster_packets"] <= 4000
    assert result["without_comment"] == 0


def test_every_experiment_but_the_comparison_takes_ipv6():
    runs = Runs()
    context = click.Context(runs)
    names = runs.list_commands(context)
    without = [
        name
        for name in names
        if not any(
            "--ipv6" in parameter.opts for parameter in runs.get_command(context, name).params
        )
    ]
    assert without == ["compare"], "docs/comparison.md says why"


@pytest.fixture
def started(monkeypatch):
    """What labs experiments have started."""
    specs = []
    monkeypatch.setattr(experiment, "start_lab", lambda spec: start_lab(specs.append(spec) or spec))
    return specs


def test_bulk_is_measured_in_labs_of_ipv6(started):
    with bulk.command.make_context("bulk", ["--ipv6"]):
        result = bulk.measure(2, 0.1, "nfqueue")
    assert [spec.ipv6 for spec in started] == [True, True]
    assert min(result["filter_gbit_s"] + result["no_filter_gbit_s"]) > 0.05


def test_scale_counts_what_ports_and_filters_do(started):
    with scale.command.make_context("scale", ["--ipv6"]):
        row = scale.measure(2, Mode.IGMP, per_host=10)
    assert [spec.ipv6 for spec in started] == [True]
    assert (row["requests"], row["answered"]) == (20, 20)
    assert row["client_frames"] >= 20 * 4, "SYN, ACK, request, FIN"
    assert row["frames_per_port_min"] == row["frames_per_port_max"] == row["client_frames"]
    assert row["bystander_frames"] == 0


def test_timing_starts_a_lab_of_ipv6(monkeypatch):
    commands = []
    monkeypatch.setattr(timing, "_timed", lambda *words: commands.append(words) or 1.0)
    with timing.command.make_context("timing", ["--ipv6"]):
        timing.measure((4,))
    assert [(words[0], "--ipv6" in words) for words in commands] == [("up", True), ("down", False)]


def test_a_dead_hosts_clients_are_reset_and_no_other_connection_breaks(lab6):
    """The heirs may answer for it once neighbour solicitations have proven it gone."""
    server = (str(lab6.spec().cluster_ip_address), 80, 0, 0)

    def alive(connection: socket.socket) -> bool:
        try:
            connection.sendall(b".")
            return connection.recv(1) == b"."
        except ConnectionError:
            return False
        except TimeoutError:
            return True

    def clients(channel):
        opened = []
        for number in range(1, 25):
            connection = socket.socket(socket.AF_INET6)
            connection.settimeout(0.05)
            connection.bind((f"2001:db8:4000:{number:x}::1", 0))
            connection.settimeout(5)
            connection.connect(server)
            connection.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
            head = b""
            while not head.endswith(b"\n") or b"host_id" not in head:
                head += connection.recv(4096)
            connection.settimeout(0.05)
            opened.append((json.loads(head.partition(b"\r\n\r\n")[2])["host_id"], connection))
        channel.send({"hosts": [host_id for host_id, _ in opened]})
        channel.receive()
        dead = [connection for host_id, connection in opened if host_id == 2]
        wait_for(lambda: not [c for c in dead if alive(c)], timeout_s=40)
        return [alive(connection) for host_id, connection in opened if host_id != 2]

    def asked_by_both() -> bool:
        """Only a host that answered while it was heard can be proven gone."""
        known = lab6.output("host2", ["ip", "-6", "neighbour"])
        return all(f"2001:db8:1::{host_id} " in known for host_id in (1, 3))

    wait_for(asked_by_both, timeout_s=20)
    with lab6.start("client1", clients) as task:
        assert set(task.expect()["hosts"]) == set(EVERYBODY)
        lab6.fault("kill", "host2")
        assert task.stop().count(False) == 0


def test_comments_on_captured_frames(lab6, tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_text(lab6.output("host1", ["cat", "/etc/softnlb/cluster.toml"]))
    config = load(path)
    dedicated = {host_id: f"2001:db8:1::{host_id}/64" for host_id in (1, 2)}
    commentator = Commentator(config, "2001:db8:1::100", dedicated, [1, 2, None])
    slots = len(config.port_rules) + 1
    commentator.announced(1, [(1 << 60) - 1] * slots, False)
    commentator.announced(2, [0] * slots, False)
    frame = Ether(dst=ROUTER) / IPv6(src="2001:db8:4000::7", dst="2001:db8:1::100")
    syn = bytes(frame / TCP(sport=1025, dport=80, flags="S"))
    assert commentator.comment(0, False, syn).endswith("host 1: kept (owner: it owns the bucket)")
    assert "not mine, dropped" in commentator.comment(1, False, syn)
    assert commentator.comment(2, False, syn).endswith("flooded here, wasted")
    answer = Ether(dst=ROUTER) / IPv6(src="2001:db8:1::100", dst="2001:db8:4000::7")
    answer /= TCP(sport=80, dport=1025, flags="SA")
    assert commentator.comment(0, True, bytes(answer)) == "answer of host 1"
    answer[TCP].flags = "A"
    assert commentator.comment(1, True, bytes(answer)).endswith("ANSWERED TWICE")
    later = bytes(frame / IPv6ExtHdrRouting() / TCP(sport=1025, dport=80, flags="S"))
    assert "host 1: kept (owner" in commentator.comment(0, False, later)
    asked = Ether(dst=ROUTER) / IPv6(src="2001:db8:1::254", dst="ff02::1:ff00:100", hlim=255)
    asked /= ICMPv6ND_NS(tgt="2001:db8:1::100")
    text = "2001:db8:1::254 asks for the cluster's MAC address"
    assert commentator.comment(1, False, bytes(asked)) == f"{text}: host 2 keeps it"
