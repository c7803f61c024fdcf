"""The commands `nlb` and `wlbs`: NLB's grammar (Microsoft cc754596, cc772833), and the output."""

import tomllib
from pathlib import Path

import pytest

from softnlb.control import split_address
from softnlb.errors import SoftnlbError
from softnlb.nlb import COMMANDS, Request, Target, parse, run
from tests.fake_agent import QUERY, FakeAgent, serving

ROOT = Path(__file__).parent.parent
RULE = {
    "rule": "all:80/tcp multiple hosts, affinity none",
    "cluster_ip_address": "all",
    "start_port": 80,
    "end_port": 80,
    "protocol": "tcp",
    "filtering_mode": "multiple",
    "affinity": "none",
    "timeout": 0,
    "state": "enabled",
    "load_weight": 50,
    "handling_priority": 2,
    "buckets": 20,
}
SINGLE = {
    **RULE,
    "cluster_ip_address": "10.1.0.101",
    "filtering_mode": "single",
    "protocol": "both",
}
DISABLED = {**RULE, "filtering_mode": "disabled", "load_weight": 70}
DEFAULT = {"rule": "default rule", "state": "enabled", "load_weight": None, "buckets": 0}
PARAMS = {
    "cluster_ip_address": "10.1.0.100",
    "cluster_ip_addresses": ["10.1.0.100/24"],
    "cluster_mac": "03-BF-0A-01-00-64",
    "cluster_mac_by_hand": True,
    "mask_source_mac": True,
    "arp_for_vip": False,
    "mode": "multicast",
    "host_id": 2,
    "dedicated_ip_address": "10.1.0.2/26",
    "interface": "lo",
    "alive_message_period_ms": 1000,
    "alive_message_tolerance": 5,
    "filter_icmp": True,
    "initial_state": "stopped",
    "retain_suspended": True,
}
DISPLAY = {
    "params": PARAMS,
    "query": QUERY,
    "rules": [RULE, SINGLE, DISABLED, DEFAULT],
    "history": [],
    "events": [{"time": 0.0, "name": "x", "severity": "info", "text": "Host 4 joined."}],
    "counters": {},
}


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Host 2 of one cluster and host 7 of another, both on this computer."""
    monkeypatch.setenv("SOFTNLB_RUN_DIR", str(tmp_path))
    done = {"state": "converging", "message": "the host joins the cluster"}
    answers = {
        **dict.fromkeys(("start", "stop", "disable", "drainstop"), done),
        "queryport": {**RULE, "accepted": 17, "dropped": 3},
        "params": PARAMS,
        "display": DISPLAY,
    }
    first, second = FakeAgent(**answers), FakeAgent(**answers)
    one, other = tmp_path / "10.1.0.100:2.sock", tmp_path / "10.9.0.100:7.sock"
    with serving(one, first.handle), serving(other, second.handle):
        yield first, second


def orders(agent: FakeAgent) -> list[tuple[str, dict]]:
    """What was asked, but for how the host can be reached."""
    return [asked for asked in agent.asked if asked[0] != "params"]


CLUSTER = Target("10.1.0.100", None, True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("query", Request("query")),
        ("QUERY All Local", Request("query")),
        ("query all global", Request("query", None, Target(everywhere=True))),
        ("query all global /local", Request("query")),
        ("start 10.1.0.100", Request("start", None, CLUSTER)),
        ("start 10.1.0.100:all", Request("start", None, CLUSTER)),
        ("start 10.1.0.100:3", Request("start", None, Target("10.1.0.100", "3", True))),
        ("stop 10.1.0.100:3 /LOCAL", Request("stop", None, Target("10.1.0.100", "3"))),
        ("stop [2001:db8::1]:3", Request("stop", None, Target("2001:db8::1", "3", True))),
        ("stop 2001:db8::1", Request("stop", None, Target("2001:db8::1", None, True))),
        ("disable all:80 all local", Request("disable", "all:80")),
        ("drain all all global", Request("drain", "all", Target(everywhere=True))),
        ("enable 10.1.0.101:all 10.1.0.100", Request("enable", "10.1.0.101:all", CLUSTER)),
        ("queryport 80", Request("queryport", "80")),
        ("query 10.1.0.100 /PASSW s3 /PORT 99", Request("query", None, CLUSTER, "s3", 99)),
        ("query /passw s3 10.1.0.100", Request("query", None, CLUSTER, "s3")),
        ("query 10.1.0.100 /PASSW", Request("query", None, CLUSTER, "")),
        (
            "query /PASSW /PORT 99 all global",
            Request("query", None, Target(None, None, True), "", 99),
        ),
        ("reload 10.1.0.100", Request("reload", None, Target("10.1.0.100"))),
        ("display all local", Request("display")),
        ("ip2mac 10.1.0.100", Request("ip2mac", "10.1.0.100")),
        ("", Request("help", "help")),
        ("help query", Request("help", "query")),
        ("query /h", Request("help", "query")),
    ],
)
def test_the_grammar(line: str, expected: Request) -> None:
    assert parse(line.split()) == expected


@pytest.mark.parametrize(
    "line",
    [
        "launch",
        "query all",
        "query all hosts",
        "query 10.1.0.100 10.1.0.101",
        "query 10.1.0.100 /PORT",
        "query 10.1.0.100 /PORT 0",
        "query 10.1.0.100 /DEST x",
        "disable",
        "queryport",
        "reload all global",
        "display 10.1.0.100:3",
        "ip2mac 10.1.0.100 10.1.0.101",
        "ip2mac here",
        "queryport 70000",
        "drain all:http",
        "help launch",
        "query 10.1.0.100:no.such.name.invalid",
    ],
)
def test_what_the_grammar_does_not_know_is_wrong_usage(line: str, capsys) -> None:
    assert run(line.split()) == 2
    told = capsys.readouterr().err
    assert "nlb help" in told
    assert "(BAD_PARAMS)" in told


def test_a_cluster_and_a_host_may_be_named() -> None:
    target = parse(["query", "localhost:localhost"]).target
    assert target.cluster in ("127.0.0.1", "::1")
    assert target.host == target.cluster


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.1.0.100:80", ("10.1.0.100", ":", "80")),
        ("10.1.0.100:", ("10.1.0.100", ":", "")),
        ("all", ("all", "", "")),
        ("::1", ("::1", "", "")),
        ("[::1]:80", ("::1", ":", "80")),
        ("[::1]", ("::1", "", "")),
    ],
)
def test_an_address_and_what_follows_it(text: str, parts: tuple[str, str, str]) -> None:
    assert split_address(text) == parts


def test_without_a_target_every_cluster_of_the_computer_is_asked(agents, capsys) -> None:
    assert run(["start"]) == 0
    assert [agent.asked for agent in agents] == [[("start", {})]] * 2
    shown = capsys.readouterr().out
    assert shown.count("The host joins the cluster.") == 2
    assert "Cluster 10.1.0.100" in shown and "Cluster 10.9.0.100" in shown


def test_a_cluster_and_a_port_rule_are_named(agents) -> None:
    assert run(["disable", "all:80", "10.9.0.100"]) == 0
    assert run(["disable", "10.9.0.100", "10.9.0.100:7"]) == 0
    assert orders(agents[0]) == []
    assert orders(agents[1]) == [
        ("disable", {"cluster_ip_address": "all", "port": 80}),
        ("disable", {"cluster_ip_address": "10.9.0.100", "port": "all"}),
    ]


def test_one_host_that_refuses_does_not_keep_the_others_from_answering(agents, capsys) -> None:
    agents[0].answers["stop"] = SoftnlbError("not now")
    assert run(["stop", "all", "local"]) == 1
    assert "Host 2: not now" in capsys.readouterr().out
    assert agents[1].asked == [("stop", {})]


def test_query_tells_convergence_state_and_members(agents, capsys) -> None:
    assert run(["query", "10.1.0.100", "/LOCAL"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Cluster 10.1.0.100"
    assert lines[2].startswith("Converged 3 time(s), the last time at 20")
    assert lines[3:] == ["Host 2 has converged. Members of the cluster:", "1, 2, 4"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"default_host": 2}, "Host 2 has converged as DEFAULT."),
        ({"state": "converging"}, "Host 2 is converging."),
        ({"state": "draining"}, "Host 2 is draining."),
        ({"state": "stopped"}, "Host 2 is stopped."),
        ({"state": "suspended"}, "Host 2 is suspended."),
    ],
)
def test_the_states_of_a_host(agents, capsys, changes: dict, line: str) -> None:
    agents[0].answers["query"] = {**QUERY, **changes}
    assert run(["query", "10.1.0.100:2"]) == 0
    assert line in capsys.readouterr().out


def test_queryport_tells_state_and_packets(agents, capsys) -> None:
    assert run(["queryport", "10.1.0.100:80", "10.1.0.100"]) == 0
    shown = capsys.readouterr().out
    assert "is enabled." in shown and "Accepted=17, Dropped=3" in shown
    assert orders(agents[0]) == [("queryport", {"cluster_ip_address": "10.1.0.100", "port": 80})]


def test_display_has_the_shape_of_nlb_exe(agents, capsys) -> None:
    assert run(["display", "10.1.0.100"]) == 0
    shown = capsys.readouterr().out
    sections = ("Configuration", "Event messages", "IP configuration", "Current state")
    places = [shown.index(f"=== {section} ===") for section in sections]
    assert places == sorted(places)
    values = dict(line.split(" = ") for line in shown.splitlines() if " = " in line)
    values = {name.strip(): value for name, value in values.items()}
    assert values["AliveMsgPeriod"] == "1000"
    assert values["ClusterNetworkAddress"] == "03-bf-0a-01-00-64"
    assert values["ClusterNetworkMask"] == "255.255.255.0"
    assert values["DedicatedNetworkMask"] == "255.255.255.192"
    assert (values["MulticastSupportEnable"], values["IGMPSupport"]) == ("ENABLED", "DISABLED")
    assert (values["IPToMACEnable"], values["MaskSourceMAC"]) == ("DISABLED", "ENABLED")
    assert values["MulticastARPEnable"] == "DISABLED"
    assert (values["ClusterModeOnStart"], values["PersistedStates"]) == ("STOPPED", "SUSPENDED")
    assert values["NumberOfRules"] == "3"
    table = [line.split() for line in shown.splitlines() if " 80 " in line]
    assert table == [
        ["All", "80", "80", "TCP", "Multiple", "Equal", "None", "0"],
        ["10.1.0.101", "80", "80", "Both", "Single", "2"],
        ["All", "80", "80", "TCP", "Disabled"],
    ]
    assert "Host 4 joined." in shown
    assert "127.0.0.1" in shown, "the addresses of the interface"


def test_ip2mac_needs_no_agent(tmp_path, monkeypatch, capsys) -> None:
    """Microsoft KB4494444."""
    monkeypatch.setenv("SOFTNLB_RUN_DIR", str(tmp_path))
    assert run(["ip2mac", "192.168.100.80"]) == 0
    shown = capsys.readouterr().out
    for mac in ("02-BF-C0-A8-64-50", "03-BF-C0-A8-64-50", "01-00-5E-7F-64-50"):
        assert mac in shown
    assert run(["ip2mac", "192.168.100"]) == 2
    assert run(["query"]) == 3


def test_help_names_every_command(capsys) -> None:
    assert run(["help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)
    assert run(["help", "launch"]) == 2


def test_both_names_are_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["nlb"] == scripts["wlbs"] == "softnlb.nlb:main"
