"""The pure parts of a lab: its plan, the switch's rules, the capture file, the map."""

import io
import json
import struct
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from labs.course.lesson import load
from labs.drawing import lab_map, print_status
from labs.experiment import print_table
from labs.faults import FAULTS
from labs.pcapng import Writer
from labs.plan import build
from labs.runs.bulk import interval
from labs.snooping import group_mac, memberships
from labs.snooping import ruleset as snooping_ruleset
from labs.switch import PortFaults, bridge_lines, fault_ruleset, trunk_lines
from labs.topology import CLIENT_POOL, LabSpec
from modes.plan import Mode
from softnlb.errors import UsageError
from tests.netns import Namespace, wait_for


@pytest.mark.parametrize(
    ("choices", "word"),
    [
        ({"hosts": 0}, "--hosts 0"),
        ({"hosts": 33}, "1 to 32"),
        ({"timers": "slow"}, "nlb, fast"),
        ({"switch": "hub"}, "dumb, linux, mac"),
        ({"data_plane": "xdp"}, "auto, nfqueue, ebpf"),
        ({"name": "../x"}, "--name"),
        ({"name": ""}, "--name"),
    ],
)
def test_a_wrong_choice_names_the_option_and_what_was_expected(choices, word):
    with pytest.raises(UsageError, match=word.replace("(", "\\(")):
        LabSpec(**choices)


def test_a_spec_survives_its_way_to_the_supervisor():
    spec = LabSpec(name="a", hosts=7, mode=Mode.IGMP, timers="fast", switch="mac")
    assert LabSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_names_and_addresses_of_the_nodes():
    plan = {node.name: node for node in build(LabSpec(hosts=32).complete_document()).nodes}
    assert list(plan)[:5] == ["switch", "router", "client1", "client2", "bystander"]
    assert str(plan["host32"].address) == "10.1.0.32"
    assert plan["host32"].host_id == 32
    addresses = [node.address for node in plan.values() if node.address is not None]
    assert len(set(addresses)) == len(addresses)
    assert not any(address in CLIENT_POOL for address in addresses)
    assert all(len(node.port or "") <= 15 for node in plan.values()), "interface names are short"
    assert plan["client1"].port is None, "the client sits behind the router"


def test_the_configuration_of_a_host_is_valid(tmp_path):
    from softnlb.config import load

    path = tmp_path / "cluster.toml"
    document = LabSpec(timers="fast", mode=Mode.IGMP).complete_document()
    path.write_text(build(document).nodes[-2].config)
    config = load(path)
    assert config.host_id == 3
    assert config.mode == Mode.IGMP
    assert (config.alive_message_period_ms, config.alive_message_tolerance) == (100, 5)
    assert str(config.dedicated_ip_address) == "10.1.0.3/24"


def test_fault_rules_say_what_is_in_force_and_nothing_else():
    faults = PortFaults()
    assert faults.describe() == {}
    assert "numgen" not in fault_ruleset(faults)
    faults.mute.add("host1")
    faults.loss = {"host2": 2.5, "host3": 100.0}
    faults.partition = (frozenset({"host1"}), frozenset({"host2", "router"}))
    text = fault_ruleset(faults)
    assert 'set mute { type ifname; elements = { "host1" }; }' in text
    assert 'iifname "host2" numgen random mod 10000 < 250 drop' in text
    assert 'oifname "host3" drop' in text
    assert 'set one { type ifname; elements = { "host1" }; }' in text
    assert 'set other { type ifname; elements = { "host2", "router" }; }' in text
    faults.forget("host2")
    assert faults.loss == {"host3": 100.0}
    faults.forget()
    assert faults.describe() == {}


def test_snooping_by_mac_takes_the_lower_23_bits():
    assert group_mac("239.255.0.100") == "01:00:5e:7f:00:64"
    assert group_mac("224.128.1.2") == "01:00:5e:00:01:02"
    assert group_mac("ff05::efff:cb8") == "33:33:ef:ff:0c:b8", "of an IPv6 group the lower 32"


def test_memberships_come_from_the_mdb():
    mdb = [
        {
            "mdb": [
                {"dev": "br0", "port": "host1", "grp": "239.255.0.100", "state": "temp"},
                {"dev": "br0", "port": "br0", "grp": "239.255.0.100", "state": "temp"},
                {"dev": "br0", "port": "host1", "grp": "ff02::6a", "state": "temp"},
                {"dev": "br0", "port": "host2", "grp": "03:bf:0a:01:00:64", "state": "perm"},
            ],
            "router": {},
        }
    ]
    found = memberships(json.dumps(mdb), ["br0"])
    assert found == [
        ("br0", "01:00:5e:7f:00:64", "host1"),
        ("br0", "03:bf:0a:01:00:64", "host2"),
        ("br0", "33:33:00:00:00:6a", "host1"),
    ]
    assert memberships(json.dumps(mdb), ["br1"]) == []
    rules = snooping_ruleset(found, [("br0", "host1"), ("br0", "x"), ("br1", "y")])
    groups = [line for line in rules.splitlines() if "set groups" in line]
    assert '"x" . 01:00:5e:7f:00:64' in groups[0]
    assert '"y"' not in groups[0], "another switch, which may flood"
    assert '01:00:5e:7f:00:64 . "host1"' in snooping_ruleset(found, [])


def test_a_capture_file_is_pcapng_with_port_names_and_directions(tmp_path):
    file = io.BytesIO()
    writer = Writer(file, ["host1", "router"], ["the switch", "its own"])
    frame = bytes.fromhex("ffffffffffff 020100000001 0800".replace(" ", "")) + bytes(47)
    writer.frame(0, 1_700_000_000_123_456_789, frame, len(frame), to_switch=True)
    writer.frame(1, 1_700_000_001_000_000_000, frame, len(frame), to_switch=False)
    assert struct.unpack_from("<I", file.getvalue())[0] == 0x0A0D0D0A
    path = tmp_path / "x.pcapng"
    path.write_bytes(file.getvalue())
    fields = ["frame.interface_name", "frame.time_epoch", "frame.len"]
    options = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", path, "-T", "fields", *options], capture_output=True, text=True, check=True
    )
    first, second = (line.split("\t") for line in done.stdout.splitlines())
    assert first[0] == "host1"
    assert float(first[1]) == pytest.approx(1_700_000_000.123456789)
    assert first[2] == "61"
    assert second[0] == "router"


def test_the_map_shows_every_node_of_a_small_lab_and_shortens_a_large_one():
    def status(hosts):
        plan = build(LabSpec(hosts=hosts).complete_document())
        described = [
            {
                "name": node.name,
                "kind": node.kind,
                "address": f"{node.address}/24",
                "port": node.port,
                "bridge": node.bridge or None,
                "router": "router" if node.name == "client1" else None,
            }
            for node in plan.nodes
        ]
        return {
            "name": "lab",
            "mode": "unicast",
            "cluster_ip_address": "10.1.0.100",
            "nodes": described,
            "switches": [{"name": "switch", "bridge": "br0", "personality": "dumb"}],
        }

    small = lab_map(status(4))
    for name in ("client1", "client2", "bystander", "router", "switch", "host1", "host4"):
        assert name in small
    assert "26 more" in lab_map(status(32))
    assert "host32" in lab_map(status(32))
    assert "host1 " in lab_map(status(1))


def test_the_interval_of_a_median_holds_it():
    low, high = interval([0.9, 0.95, 1.0, 1.05, 0.97, 0.99, 1.01])
    assert 0.9 <= low <= 0.99 <= high <= 1.05
    assert interval([0.5] * 7) == (0.5, 0.5)


def test_two_switches_that_snoop_have_a_querier_that_goes_on_asking():
    plan = build(load(3, 0, "lab").spec.complete_document())
    (trunk,) = plan.trunks
    personalities = {switch.bridge: switch.personality for switch in plan.switches}
    assert sorted(personalities.values()) == ["linux", "mac"]
    lines = [line for switch in plan.switches for line in bridge_lines(switch)]
    switch = Namespace("switch")
    switch.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")  # nothing but queries is sent
    switch.run("ip -batch -", input="\n".join([*lines, *trunk_lines(trunk, personalities)]))

    def queries():
        shown = json.loads(switch.run("ip -j -s link show type veth"))
        return max(link["stats64"]["tx"]["packets"] for link in shown)

    # One each second; what is learned lasts for four.
    wait_for(lambda: queries() >= 7, timeout_s=20.0)
    switch.close()


def test_a_table_gives_up_its_lines_before_its_words(monkeypatch, capsys):
    monkeypatch.setattr("labs.experiment.console", lambda width: Console(width=67))
    heads = ["mode", "requests", "bystander", "frames per port", "theory", "per frame", "seconds"]
    print_table("Cost", heads, [["multicast", *"123456"]], "A sentence that is too long. " * 4)
    told = capsys.readouterr().out
    assert all(head in told for head in ("mode", "multicast", "requests", "bystander", "seconds"))
    assert max(map(len, told.splitlines())) <= 67


def test_faults_are_told_in_words(capsys):
    sides = [["host1", "host2"], ["host3", "router"]]
    status = {"nodes": [], "switches": [], "hosts": [], "name": "lab", "mode": "unicast"}
    status |= {"faults": {"partition": sides, "killed": ["host1"], "unplugged": []}}
    status |= {"cluster_ip_address": "10.1.0.100"}
    print_status(status)
    told = capsys.readouterr().out
    assert "in force: partition host1, host2 | host3, router\n" in told
    assert "in force: killed host1\n" in told
    assert "unplugged" not in told
    print_status(status | {"faults": {"unplugged": [], "hidden": "find it"}})
    assert "in force: a fault that you have to find\n" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "then"), [("on", "off"), ("off", "on")])
def test_switches_of_two_kinds_snoop_as_before_when_the_fault_is_undone(first, then):
    done = []
    lab: Any = SimpleNamespace(personalities={"br0": "dumb", "br1": "mac"}, querier="br1")
    lab.switched, lab.switch_ports = {}, done.append
    assert FAULTS["snooping"](lab, [first]) == f"IGMP snooping is {first}"
    asks = int(first == "on")
    assert done[0] == [
        f"link set br0 type bridge mcast_snooping {asks} mcast_querier 0",
        f"link set br1 type bridge mcast_snooping {asks} mcast_querier {asks}",
    ]
    assert lab.switched == {"snooping": first}
    assert FAULTS["snooping"](lab, [then]) == "IGMP snooping is as it was"
    assert done[1] == [
        "link set br0 type bridge mcast_snooping 0 mcast_querier 0",
        "link set br1 type bridge mcast_snooping 1 mcast_querier 1",
    ]
    assert not lab.switched
