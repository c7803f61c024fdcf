"""Your own lab from TOML: what a file may say, every error at once, and the lab that it makes."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from labs.capture import find_ports, start_capture
from labs.drawing import next_steps
from labs.experiment import burst, witness
from labs.handle import LabHandle
from labs.lab_file import check, load
from labs.lab_schema import json_schema
from labs.load import Traffic
from labs.plan import build
from labs.runs.flooding import flooding
from labs.topology import LabSpec
from labs.witness import FrameCounters, answered, twice
from softnlb.config import ConfigError
from softnlb.errors import SoftnlbError
from tests.labs import ROOT, lab, lab_json, lab_name
from tests.netns import wait_for

NGINX = shutil.which("nginx")
EXAMPLE = ROOT / "labs" / "example.toml"
SMALL = {"lab": {"hosts": 2}, "cluster": {"ip_address": "10.1.0.100/24"}}


def problems(raw: dict) -> list[str]:
    """What is wrong with a file, one line each."""
    with pytest.raises(ConfigError) as caught:
        check(raw, "x.toml")
    return str(caught.value).splitlines()


def test_the_smallest_file_makes_the_usual_lab():
    usual = build(LabSpec(hosts=2).complete_document())
    spec = check(SMALL, "x.toml")
    own = build(spec.complete_document())
    assert [n.name for n in own.nodes] == [n.name for n in usual.nodes]
    assert [(n.address, n.setup, n.services) for n in own.nodes] == [
        (n.address, n.setup, n.services) for n in usual.nodes
    ]
    assert (spec.timers, spec.switch, spec.hosts) == ("nlb", "dumb", 2)
    elsewhere = check(
        {"lab": {"hosts": 2}, "cluster": {"ip_address": "10.2.4.9/22", "mode": "igmp"}}, "x"
    )
    assert elsewhere.switch == "mac", "IGMP wants a switch that snoops"
    assert str(elsewhere.client_pool("client1")) == "172.16.64.0/18"
    assert LabSpec.from_json(json.loads(json.dumps(elsewhere.to_json()))) == elsewhere


def test_the_usual_places_in_an_ipv6_network_of_ones_own():
    usual = LabSpec(ipv6=True, hosts=2).complete_document()
    same = {"lab": {"hosts": 2}, "cluster": {"ip_address": "2001:db8:1::100/64"}}
    assert build(check(same, "x").complete_document()).nodes[:3] == build(usual).nodes[:3]
    near = check(same | {"cluster": {"ip_address": "2001:db8:2::9/64"}}, "x")
    table = {table["name"]: table["address"] for table in near.complete_document()["client"]}
    assert table == {"client1": "fd00:db8:2::2/64", "client2": "2001:db8:2::200/64"}
    assert str(near.client_pool("client1")) == "fd00:db8:4000::/34"
    assert str(near.cluster_ip_address) == "2001:db8:2::9"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"swich": []}, "swich = []: expected a known key, did you mean switch?"),
        ({"lab": {"hosts": 33}}, "lab.hosts = 33: expected a whole number from 1 to 32"),
        ({"lab": {}}, "lab.hosts: missing, expected a whole number from 1 to 32"),
        ({"cluster": {}}, "cluster.ip_address: missing, expected an"),
        ({"cluster": {"ip_address": "10.1.0.100/24", "mode": "anycast"}}, 'cluster.mode = "any'),
        ({"cluster": {"ip_address": "2001:db8::100/125"}}, "so small a network has no usual ones"),
        ({"bystander": [{"name": "b", "address": "2001:db8::2/64"}]}, "an IPv4 address, as the"),
        ({"host": [{"id": 1, "address": "10.1.0.1/24"}]}, "lab.hosts = 2: expected either"),
        ({"port_rule": [{"ports": "9-1"}]}, 'port_rule[1].ports = "9-1": expected a port'),
        ({"switch": [{"name": "a switch"}]}, 'switch[1].name = "a switch": expected a name'),
        ({"router": [{"name": "r", "address": "10.1.0.2/24"}]}, "that of r"),
        ({"client": [{"name": "c", "router": "r", "address": "10.9.0.2/24"}]}, "a table of that"),
        ({"service": [{"hosts": ["host7"]}]}, "expected one of host1, host2"),
        ({"service": [{}, {"kind": "nginx"}]}, "expected a port that is free on host1"),
        ({"trunk": [{"between": ["switch", "switch"]}]}, "closes no loop"),
        ({"client": [{"name": "all", "address": "10.1.0.9/24"}]}, "a name that is not taken"),
        ({"client": [{"name": "br0", "address": "10.1.0.9/24"}]}, "a name that is not taken"),
        ({"course": [{}]}, "course = [{}]: expected a table, [course]"),
        ({"course": {}, "step": 1}, "step = 1: expected tables, [[step]]"),
    ],
)
def test_an_error_names_the_key_the_value_and_what_was_expected(change, line):
    assert line in "\n".join(problems(SMALL | change))


def test_every_error_is_told_at_once():
    lines = problems({"lab": {"hosts": 0}, "cluster": {"ip_address": 5}, "switch": [{}], "x": 1})
    keys = [line.split(": ")[1].split(" ")[0].rstrip(":") for line in lines]
    assert keys == ["x", "lab.hosts", "switch[1].name"]


def test_a_host_is_checked_as_on_a_real_machine():
    hosts = [
        {"id": 1, "address": "10.1.0.1/24", "load_weights": [10, 20]},
        {"id": 2, "address": "10.1.0.2/24", "load_weights": [200]},
    ]
    lines = problems(SMALL | {"lab": {}, "port_rule": [{}], "host": hosts})
    assert len(lines) == 2
    assert "load_weight = 200: expected a whole number from 0 to 100" in lines[0]
    assert "host[1].load_weights = [10, 20]: expected a list with one number" in lines[1]
    hosts[1] = {"id": 2, "address": "10.1.0.2/24", "initial_state": "asleep"}
    lines = problems(SMALL | {"lab": {}, "host": hosts[1:]})
    assert [line for line in lines if 'host[1].initial_state = "asleep"' in line]


def test_load_weights_reach_each_hosts_own_file():
    raw = SMALL | {
        "lab": {},
        "port_rule": [{"ports": "80"}, {"ports": "81", "filtering_mode": "single"}],
        "host": [
            {"id": 1, "address": "10.1.0.1/24", "load_weights": [30, 50]},
            {"id": 4, "address": "10.1.0.4/24", "handling_priorities": [2, 1]},
        ],
    }
    files = [tomllib.loads(n.config) for n in build(check(raw, "x").complete_document()).nodes]
    one, four = (file for file in files if file)
    assert [rule.get("load_weight") for rule in one["port_rule"]] == [30, 50]
    assert [rule.get("handling_priority") for rule in four["port_rule"]] == [2, 1]
    assert one["cluster"] == four["cluster"]
    assert (four["host"]["id"], four["host"]["dedicated_ip_address"]) == (4, "10.1.0.4/24")


def test_init_writes_an_example_that_is_right_and_never_overwrites(tmp_path):
    path = tmp_path / "my.toml"
    assert lab("init", str(path)).returncode == 0
    assert path.read_text() == EXAMPLE.read_text() == lab("init").stdout
    assert load(path).name == "mylab"
    again = lab("init", str(path))
    assert again.returncode == 1
    assert "File exists" in again.stderr
    assert lab("up", str(path), "--hosts", "3").returncode == 2


def test_the_schema_knows_every_table_of_the_example():
    schema = json_schema()
    assert set(tomllib.loads(EXAMPLE.read_text())) <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_a_wrong_file_starts_nothing(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[lab]\nhosts = 2\n[cluster]\nip_address = 7\n")
    done = lab("up", "--json", str(path))
    assert done.returncode == 2
    assert json.loads(done.stdout)["problems"][0]["key"] == "cluster.ip_address"


@pytest.fixture(scope="module")
def two_switches(tmp_path_factory):
    """Other addresses, two switches with a trunk, a strict router and one that translates."""
    text = EXAMPLE.read_text().replace("10.1.0.", "10.77.5.").replace("10.2.", "10.88.")
    text = text.replace("hosts = 4 ", "# ").replace("# arp = ", "arp = 'strict' # ")
    text += """
[[host]]
id = 3
address = "10.77.5.3/24"
[[host]]
id = 9
switch = "switch2"
address = "10.77.5.9/24"
[[router]]
name = "office"
address = "10.77.5.253/24"
nat = true
[[client]]
name = "client3"
router = "office"
address = "192.168.7.2/24"
pool = "192.168.7.128/25"
"""
    if NGINX:
        text += '[[service]]\nkind = "nginx"\nport = 8081\nhosts = ["host9"]\n'
    path = Path(tmp_path_factory.mktemp("own"), "own.toml")
    path.write_text(text)
    name = lab_name("own")
    lab_json("up", str(path), "--name", name)
    handle = LabHandle(name)
    yield handle
    handle.down()


def test_two_switches_carry_one_cluster(two_switches):
    for node in ("client1", "client2"):
        result = burst(two_switches, Traffic(burst=40, timeout_s=5.0), node=node)
        assert not result.failed()
        assert set(result.served()) == {3, 9}, "hosts on both switches answer"
    shown = lab("status", "--name", two_switches.name).stdout
    assert "over a trunk, switch2 (br1):" in shown
    assert "client3" in shown


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
def test_nginx_answers_as_the_built_in_service_does(two_switches):
    def answer() -> str:
        words = ["curl", "-s", "-m", "1", "http://10.77.5.9:8081/"]
        return str(two_switches.complete("client2", words)["stdout"])

    assert json.loads(answer())["host_id"] == 9
    two_switches.fault("app-down", "host9")
    assert answer() == ""
    two_switches.fault("app-up", "host9")
    assert json.loads(answer())["client"].startswith("10.77.5.200:")


def test_the_floods_of_a_cluster_cross_the_trunk(two_switches):
    counters = FrameCounters(two_switches)
    burst(two_switches, Traffic(burst=20, timeout_s=5.0))
    counts = counters.read()
    assert counts["bystander"]["out"] == counts["router"]["in"] > 0
    fdb = two_switches.output("switch2", ["bridge", "fdb", "show", "br", "br1"])
    assert "02:03:0a:4d:05:64 dev trunk1b" in fdb, "host3 is behind the trunk"


def test_trunk_ends_and_bridges_are_nobodys_ports(two_switches, tmp_path):
    nodes = {node["port"] for node in two_switches.ask("nodes")["nodes"] if node["port"]}
    with witness(two_switches) as watching:
        captured = start_capture(two_switches, find_ports(two_switches, []), str(tmp_path / "c"))
        with captured:
            assert not burst(two_switches, Traffic(burst=30, timeout_s=5.0)).failed()
            assert captured.stop()[1] == 0
        records = answered(watching.stop())
    assert {port for record in records for port in record.hosts} == {"host3", "host9"}
    assert not twice(records), "an answer that crosses the trunk has one sender"
    assert {port.interface for port in find_ports(two_switches, [])} == nodes
    logged = [json.loads(line) for line in two_switches.events().splitlines()]
    assert {port for e in logged if e["event"] == "frames" for port in e["ports"]} == nodes
    assert {e["port"] for e in logged if e["event"] == "cable"} <= nodes
    learned = [(e["port"], e["change"]) for e in logged if e.get("mac") == "02-03-0A-4D-05-64"]
    assert sorted(learned) == [("host3", "learned"), ("trunk1b", "learned")], "once by each switch"


def test_a_router_that_translates_makes_one_client_of_many(two_switches):
    result = burst(two_switches, Traffic(burst=20, timeout_s=5.0), node="client3")
    assert not result.failed()
    curl = ["curl", "-s", "--interface", "192.168.7.200", "http://10.77.5.100/"]
    answer = json.loads(two_switches.output("client3", curl))
    assert answer["client"].startswith("10.77.5.253:")


def test_a_partition_cuts_through_a_trunk(two_switches):
    def reaches(one: str, other: str) -> bool:
        words = ["curl", "-s", "-m", "1", f"http://10.77.5.{other}/"]
        return two_switches.complete(one, words)["exit_status"] == 0

    assert reaches("client2", "3")
    two_switches.fault("partition", "host3,bystander")
    assert not reaches("client2", "3")
    assert reaches("bystander", "3"), "on one side, over the trunk"
    assert reaches("client2", "9")
    two_switches.fault("heal")
    wait_for(lambda: reaches("client2", "3"))


def test_a_lab_in_which_everybody_has_a_name_of_their_own(tmp_path):
    name, path = lab_name("names"), tmp_path / "own.toml"
    path.write_text("""
[cluster]
ip_address = "10.1.0.100/24"
timers = "fast"
[[port_rule]]
affinity = "none"
[[host]]
id = 5
name = "alpha"
address = "10.1.0.5/24"
[[host]]
id = 3
name = "beta"
address = "10.1.0.3/24"
[[client]]
name = "b"
address = "10.1.0.9/24"
[[router]]
name = "gate"
address = "10.1.0.254/24"
[[client]]
name = "pc"
router = "gate"
address = "10.9.0.2/24"
""")
    status = lab_json("up", str(path), "--name", name)
    handle = LabHandle(name)
    try:
        assert [host["host_id"] for host in status["hosts"]] == [3, 5], "not as in the file"
        assert handle.client()["name"] == "pc", "behind a router"
        [result] = flooding(name, requests=20)
        assert result["answered"] == 20
        assert result["received_percent"] == {"alpha": 100, "beta": 100, "b": 100}
        assert result["bystander_percent"] is None
        for verb in ("unplug", "replug"):
            handle.fault(verb, "b")
        for verb in ("kill", "start"):
            handle.fault(verb, "beta")
        steps = next_steps(status)
        assert f"exec --name {name} pc -- curl" in steps
        assert f"exec --name {name} alpha -- softnlb query" in steps
        assert f"fault --name {name} kill beta" in steps
    finally:
        handle.down()


FAULTS = [
    (("kill", "host3"), ("start", "host3"), "killed"),
    (("agent-kill", "host3"), ("start", "host3"), "agent_killed"),
    (("stop", "host3"), ("cont", "host3"), "agent_stopped"),
    (("freeze", "host3"), ("thaw", "host3"), "frozen"),
    (("unplug", "host3"), ("replug", "host3"), "unplugged"),
    (("loss", "30", "host3"), ("heal", "host3"), "loss_percent"),
    (("loss-from", "30", "host3"), ("heal", "host3"), "loss_from_percent"),
    (("loss-to", "100", "host3"), ("loss-to", "0", "host3"), "loss_to_percent"),
    (("mute", "host3"), ("heal", "host3"), "mute"),
    (("deaf", "host3"), ("heal", "host3"), "deaf"),
    (("partition", "host3"), ("heal",), "partition"),
    (("app-down", "host3"), ("app-up", "host3"), "app_down"),
    (("leak-mac", "host3"), ("mask-mac", "host3"), "leaking_mac"),
    (("snooping", "on"), ("snooping", "off"), "snooping"),
]


def test_every_fault_shows_in_status_and_log_and_is_undone_by_its_opposite(two_switches):
    for fault, opposite, name in FAULTS:
        two_switches.fault(*fault)
        wait_for(lambda name=name: two_switches.status()["faults"].get(name))
        two_switches.fault(*opposite)
        wait_for(lambda: not any(two_switches.status()["faults"].values()))
    logged = [json.loads(line) for line in two_switches.events().splitlines()]
    told = [e["fault"] for e in logged if e["event"] == "fault"]
    for fault, opposite, _ in FAULTS:
        assert fault[0] in told
        assert opposite[0] in told
    for words in (("querier", "off"), ("mask-mac", "host3")):
        with pytest.raises(SoftnlbError):
            two_switches.fault(*words)


def test_the_cable_of_a_killed_host_is_gone_and_no_other_is_pulled(two_switches):
    two_switches.fault("kill", "host3")
    for verb in ("unplug", "replug"):
        with pytest.raises(SoftnlbError, match="host3 was killed"):
            two_switches.fault(verb, "bystander", "host3")
    assert not two_switches.status()["faults"]["unplugged"]
    two_switches.fault("start", "host3")
    wait_for(lambda: not any(two_switches.status()["faults"].values()))


def test_the_querier_comes_and_goes_with_the_snooping(two_switches):
    def asks() -> bool:
        shown = json.loads(two_switches.output("switch", ["ip", "-d", "-j", "link", "show", "br0"]))
        return bool(shown[0]["linkinfo"]["info_data"]["mcast_querier"])

    two_switches.fault("snooping", "on")
    assert asks()
    two_switches.fault("querier", "off")
    assert not asks()
    assert two_switches.status()["faults"]["querier"] == "off"
    two_switches.fault("snooping", "off")
    assert not any(two_switches.status()["faults"].values())
    two_switches.fault("snooping", "on")
    assert asks()
    assert "querier" not in two_switches.status()["faults"]
    two_switches.fault("snooping", "off")


def test_a_leaked_cluster_mac_ends_the_flood_and_starves_the_others(two_switches):
    two_switches.fault("leak-mac", "host9")
    counters = FrameCounters(two_switches)

    def leaked():
        before = counters.read()
        burst(two_switches, Traffic(burst=10))
        after = counters.read()
        return after["bystander"]["out"] == before["bystander"]["out"]

    wait_for(leaked, 10.0)
    assert burst(two_switches, Traffic(burst=20)).served().keys() <= {9}
    two_switches.fault("mask-mac", "host9")
    wait_for(lambda: not leaked(), 10.0)
