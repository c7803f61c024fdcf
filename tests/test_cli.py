"""The command line: the contract for scripts, what a human reads, exit statuses."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from softnlb import __version__, cli_show, progress
from softnlb.cli import cli, run
from softnlb.cli_common import json_option
from softnlb.errors import MachineError, NotRunningError, SoftnlbError
from tests.fake_agent import QUERY, FakeAgent, serving
from tests.labs import ROOT

CONFIG = """
[cluster]
ip_address = "10.1.0.100/24"
[host]
id = 2
interface = "eth0"
dedicated_ip_address = "10.1.0.2/24"
[[port_rule]]
ports = "80"
affinity = "none"
"""

ORDERS = ("start", "stop", "drainstop", "suspend", "resume", "reload")
RULE_ORDERS = ("enable", "disable", "drain")
DONE = {"state": "converging", "message": "the host joins the cluster"}
EXPLAINED = {
    "rule": "all:80/tcp multiple hosts, affinity none",
    "affinity": "none",
    "key": "0a0000079c40",
    "hash": 2011444960,
    "bucket": 40,
    "owner": 4,
    "verdict": "drop",
    "reason": "not-mine",
}
RULE = {
    "rule": "all:80/tcp multiple hosts, affinity none",
    "state": "enabled",
    "load_weight": 50,
    "handling_priority": 2,
    "buckets": 20,
}
PARAMS = {
    "interface": "eth0",
    "dedicated_ip_address": "10.1.0.2/24",
    "mode": "unicast",
    "filter_icmp": False,
}
DISPLAY = {
    "params": PARAMS,
    "query": QUERY,
    "rules": [RULE],
    "history": [{"s_ago": 3.0, "phase": "Converged", "reason": "all agree", "members": [1, 2, 4]}],
    "events": [{"time": 0.0, "name": "x", "severity": "info", "text": "Host 4 joined."}],
    "counters": {"owner": 17, "not-mine": 34},
}


def answers() -> dict:
    questions = {"params": PARAMS, "display": DISPLAY, "explain": EXPLAINED}
    return {
        **dict.fromkeys((*ORDERS, *RULE_ORDERS), DONE),
        **questions,
        "queryport": {**RULE, "accepted": 17, "dropped": 0, "counters": {"owner": 17}},
    }


@pytest.fixture
def run_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFTNLB_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SOFTNLB_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def agent(run_dir):
    fake = FakeAgent(**answers())
    with serving(run_dir / "10.1.0.100:2.sock", fake.handle):
        yield fake


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "host.toml"
    path.write_text(CONFIG)
    return path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def json_of(capsys, args: list[str], status: int = 0):
    assert run(args) == status
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------- the contract for scripts


def test_ip2mac_json(capsys):
    assert json_of(capsys, ["ip2mac", "192.168.100.80", "--json"]) == {
        "cluster_ip_address": "192.168.100.80",
        "unicast": "02-BF-C0-A8-64-50",
        "multicast": "03-BF-C0-A8-64-50",
        "igmp_multicast": "01-00-5E-7F-64-50",
        "igmp_group": "239.255.100.80",
    }


def test_query_json_has_exactly_the_keys_of_the_contract(agent, capsys):
    answer = json_of(capsys, ["query", "--json"])
    assert answer == QUERY
    assert list(answer) == [
        "cluster_ip_address",
        "host_id",
        "state",
        "default_host",
        "members",
        "convergence_count",
        "last_converged_s_ago",
    ]


FLOW = ["--client", "10.0.0.7:40000", "--server", "10.1.0.100:80", "--protocol", "tcp"]


def test_explain_json_asks_the_host(agent, capsys):
    assert json_of(capsys, ["explain", *FLOW, "--json"]) == EXPLAINED
    flow = {"client": "10.0.0.7:40000", "server": "10.1.0.100:80", "protocol": "tcp"}
    assert agent.asked == [("explain", flow)]
    words = ["tcp 10.0.0.7:40000 > 10.1.0.100:80", "tcp 10.0.0.7:40000 10.1.0.100:80 :2"]
    for text in words:
        assert json_of(capsys, ["explain", text, "--json"]) == EXPLAINED
        assert agent.asked.pop() == ("explain", flow)


def test_explain_json_offline(run_dir, config_file, capsys):
    command = ["explain", *FLOW, "--config", str(config_file), "--json"]
    answer = json_of(capsys, command)
    assert list(answer) == list(EXPLAINED)
    assert (answer["owner"], answer["verdict"]) == (None, None)
    assert (answer["key"], answer["hash"]) == ("0a0000079c40", 2011444960)
    alive = json_of(capsys, [*command, "--hosts", "1,2,4"])
    assert (alive["owner"], alive["verdict"]) == (4, "drop")
    assert "fresh-start" in alive["reason"]


@pytest.mark.parametrize("verb", ["query", "display", "params", *ORDERS])
def test_verbs_with_a_target_and_json(agent, capsys, verb):
    single = json_of(capsys, [verb, "10.1.0.100:2", "--json"])
    assert agent.asked[-1][0] == verb
    assert json_of(capsys, [verb, "all", "--json"]) == [single]


@pytest.mark.parametrize("verb", RULE_ORDERS)
@pytest.mark.parametrize(
    ("ports", "address", "port"),
    [
        ("all", "all", "all"),
        ("all:80", "all", 80),
        ("10.1.0.100", "10.1.0.100", "all"),
        ("10.1.0.100:all", "10.1.0.100", "all"),
        ("10.1.0.100:443", "10.1.0.100", 443),
    ],
)
def test_orders_about_port_rules(agent, capsys, verb, ports, address, port):
    assert json_of(capsys, [verb, ports, ":2", "--json"]) == {"host": "10.1.0.100:2", **DONE}
    assert agent.asked == [(verb, {"cluster_ip_address": address, "port": port})]


def test_queryport(agent, capsys):
    command = ["queryport", "10.1.0.100:80", "--protocol", "tcp", "--json"]
    assert json_of(capsys, command)["state"] == "enabled"
    args = {"cluster_ip_address": "10.1.0.100", "port": 80, "protocol": "tcp"}
    assert agent.asked == [("queryport", args)]
    assert run(["queryport", "80"]) == 0
    assert agent.asked[-1][1] == {"cluster_ip_address": None, "port": 80, "protocol": None}


def test_start_force_and_drainstop_timeout_reach_the_agent(agent):
    assert run(["start", "--force"]) == run(["drainstop", "--timeout", "2.5"]) == 0
    assert agent.asked == [("start", {"force": True}), ("drainstop", {"timeout_s": 2.5})]


# ---------------------------------------------------------------- exit statuses


def test_refused_is_1(agent, capsys):
    agent.answers["start"] = SoftnlbError("Heartbeats that I cannot verify.")
    assert run(["start"]) == 1
    assert capsys.readouterr().err == "softnlb: Heartbeats that I cannot verify.\n"
    assert run(["query", "10.1.0.100:3"]) == 1


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["query", "--nonsense"],
        ["query", "not-an-address"],
        ["ip2mac", "fe80::x"],
        ["enable"],
        ["enable", "all:http"],
        ["queryport", "70000"],
        ["drainstop", "--timeout", "-1"],
        ["explain", "tcp 10.0.0.7:40000"],
        ["explain", "--client", "10.0.0.7:40000"],
        ["explain", *FLOW, "a", "b"],
        ["explain", *FLOW, "--hosts", "1,2"],
        ["agent"],
        ["config", "check", "/none.toml"],
    ],
)
def test_wrong_usage_is_2(agent, capsys, args):
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.search(r"\((BAD_PARAMS|IO_ERROR)\)$", captured.err)
    assert run([*args, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document.get("code", "IO_ERROR") in document["error"]


def test_not_running_is_3(run_dir, capsys):
    assert run(["query"]) == 3
    assert "No agent is running" in capsys.readouterr().err


def test_a_missing_feature_is_5(agent, capsys):
    agent.answers["start"] = MachineError("nft is missing: install the package nftables")
    assert run(["start"]) == 5


def test_an_error_as_json_is_one_document_on_stdout(run_dir, capsys):
    assert run(["query", "--json"]) == 3
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert list(document) == ["error", "exit_code", "hint"]
    assert document["exit_code"] == 3
    assert captured.err == f"softnlb: {document['error']}\n"


def test_config_check(config_file, capsys):
    good = json_of(capsys, ["config", "check", str(config_file), "--json"])
    assert (good["ok"], good["warnings"], len(good["digest"])) == (True, [], 16)
    config_file.write_text(CONFIG.replace("id = 2", "id = 0").replace('"none"', '"non"'))
    assert run(["config", "check", str(config_file), "--json"]) == 2
    captured = capsys.readouterr()
    bad = json.loads(captured.out)
    assert [problem["key"] for problem in bad["problems"]] == ["host.id", "port_rule[1].affinity"]
    assert len(captured.err.splitlines()) == 2
    assert json_of(capsys, ["config", "schema"])["type"] == "object"


# ---------------------------------------------------------------- for humans


def test_query_as_text(agent, capsys):
    assert run(["query"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Cluster 10.1.0.100",
        "Host 2 has converged.",
        "Members of the cluster: 1, 2, 4",
        "Default host (takes what no port rule covers): host 1",
        "Converged 3 times, the last time 12 s ago.",
    ]


def test_query_of_the_default_host_and_of_a_stopped_one(capsys):
    cli_show.query({**QUERY, "default_host": 2})
    assert "Host 2 has converged as DEFAULT." in capsys.readouterr().out
    stopped = {"state": "stopped", "members": [], "default_host": None}
    cli_show.query({**QUERY, **stopped, "last_converged_s_ago": None})
    assert capsys.readouterr().out.splitlines()[1:] == ["Host 2 is stopped."]


def test_display_tells_everything_in_plain_text(agent, capsys):
    assert run(["display"]) == 0
    text = capsys.readouterr().out
    for words in ("Host 2 has converged", "unicast", "enabled", "all agree", "not-mine", "joined"):
        assert words in text
    assert "\x1b" not in text


def test_a_terminal_gets_a_table_and_no_color_a_plain_one(monkeypatch):
    rows = [["owner", 17], ["[not markup]", None]]
    monkeypatch.setattr(sys, "stdout", Terminal())
    cli_show.table(["reason", "packets"], rows)
    fancy = sys.stdout.getvalue()
    assert "─" in fancy
    assert "[not markup]" in fancy
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    cli_show.table(["reason", "packets"], rows)
    assert sys.stdout.getvalue() == "reason        packets\nowner         17\n[not markup]  -\n"


def test_explain_leads_from_rule_to_owner(agent, capsys):
    assert run(["explain", *FLOW]) == 0
    text = capsys.readouterr().out
    steps = ["rule", "key", "hash", "bucket", "owner", "verdict"]
    assert re.findall(r"^  (\w+)", text, re.MULTILINE) == steps
    for words in ("0a 00 00 07 9c 40", "2011444960 mod 60", "host 4", "not-mine"):
        assert words in text


# ---------------------------------------------------------------- waiting for a host to stop


def connections(number: int, idle_s: float, state: str = "draining") -> dict:
    return {"connections": number, "longest_idle_s": idle_s, "state": state}


@pytest.fixture
def quick_polls(monkeypatch):
    monkeypatch.setattr(progress, "POLL_S", 0.001)


def test_drainstop_wait_shows_plain_lines_and_ends_when_stopped(agent, quick_polls, capsys):
    agent.answers["connections"] = [
        connections(2, 0.5),
        connections(2, 0.6),
        connections(1, 9.0),
        connections(0, 0.0),
        connections(0, 0.0, "stopped"),
    ]
    assert run(["drainstop", "--wait", "--timeout", "30"]) == 0
    assert agent.asked[0] == ("drainstop", {"timeout_s": 30.0})
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "10.1.0.100:2: 2 connections left, longest idle 0.5 s",
        "10.1.0.100:2: 1 connection left, longest idle 9.0 s",
        "10.1.0.100:2: no connections left",
    ]
    assert "the host stopped after" in captured.out


def test_drainstop_wait_json_is_quiet(agent, quick_polls, capsys):
    agent.answers["connections"] = [connections(1, 0.5), connections(0, 0, "stopped")]
    assert run(["drainstop", "--wait", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["state"] == "stopped"
    assert captured.err == ""


def test_a_drain_that_is_interrupted_is_refused(agent, quick_polls, capsys):
    agent.answers["connections"] = [connections(1, 0.5), connections(1, 0, "converged")]
    assert run(["drainstop", "--wait"]) == 1
    assert "was started again" in capsys.readouterr().err


def test_an_agent_that_ends_while_one_waits_is_3(agent, quick_polls):
    agent.answers["connections"] = [connections(1, 0.5), NotRunningError("gone")]
    assert run(["stop", "--wait"]) == 3


def test_on_a_terminal_the_rest_is_a_bar(agent, quick_polls, monkeypatch):
    agent.answers["connections"] = [connections(3, 0.5), connections(0, 0.0, "stopped")]
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(["drainstop", "--wait"]) == 0
    assert "3 connections left, longest idle 0.5 s" in sys.stderr.getvalue()


# ---------------------------------------------------------------- the house of verbs


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found += leaves(command, (*path, name))
        else:
            found.append((*path, name))
    return found


def test_the_verbs_of_nlb_and_ours_are_all_there():
    names = {path[0] for path in leaves(cli)}
    nlb = "query display params ip2mac queryport start stop drainstop suspend resume enable disable"
    ours = "drain reload affinity events agent config decode explain plan doctor cleanup bench lab"
    ours += " rule set"
    assert names == set(f"{nlb} {ours}".split())


@pytest.mark.parametrize("path", [path for path in leaves(cli) if path != ("lab",)])
def test_each_verb_has_help(capsys, path):
    assert run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: softnlb {' '.join(path)}")
    without_json = {("agent",), ("config", "schema")}  # a daemon, and JSON anyway
    assert ("--json" in text) == (path not in without_json)


def test_the_help_documents_the_exit_statuses(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for status in (0, 1, 2, 3, 5):
        assert re.search(rf"^ +{status}  \w", text, re.MULTILINE)


def test_lab_is_loaded_only_when_typed(monkeypatch, capsys):
    @click.group()
    def fake_lab() -> None:
        """Fake."""

    @fake_lab.command()
    @json_option
    def status(as_json: bool) -> int:
        click.echo(f"status {as_json}")
        return 7

    module = type(sys)("labs.cli")
    module.lab = fake_lab
    monkeypatch.setitem(sys.modules, "labs.cli", module)
    assert run(["lab", "status", "--json"]) == 7
    assert capsys.readouterr().out == "status True\n"
    assert run(["lab", "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: softnlb lab [OPTIONS]")
    assert run(["lab", "nonsense"]) == 2
    assert "softnlb lab --help" in capsys.readouterr().err


def command(*args: str, **options: object) -> subprocess.CompletedProcess:
    program = "from softnlb.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program, *args], timeout=60, **options)


def test_version():
    done = command("--version", capture_output=True, text=True, check=True)
    assert done.stdout == f"softnlb {__version__}\n"


def test_a_group_without_a_verb_shows_its_help_and_nothing_else(capsys):
    for words in ([], ["lab"], ["lab", "run"]):
        assert run(words) == 2
        told = capsys.readouterr().err
        assert run([*words, "--help"]) == 0
        assert told == capsys.readouterr().out


def test_starting_up_imports_nothing_heavy():
    program = (
        "import sys; from softnlb.cli import run; run(['--help']); run(['query']);"
        "heavy = {'pydantic_core', 'rich', 'pyroute2', 'scapy', 'labs', 'asyncio', 'mmh3'};"
        "sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)"
    )
    environment = {**os.environ, "SOFTNLB_RUN_DIR": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_reading_causes_no_traceback():
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = command("--help", stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert done.stderr == b""


def test_cleanup_with_nothing_left_behind(run_dir, capsys):
    assert json_of(capsys, ["cleanup", "--json"]) == {"undone": []}
    assert run(["cleanup"]) == 0
    assert capsys.readouterr().out == "Nothing was left behind.\n"


SLOW = ("asyncio", "matplotlib", "multiprocessing", "numpy", "pydantic_core", "rich", "yaml")


def test_help_of_no_verb_loads_what_is_slow():
    """``python -m tests.bench_commands`` measures what this keeps true."""
    program = f"""
import contextlib, io, sys
from softnlb.cli import run
from tests.bench_commands import verbs
told = verbs()
with contextlib.redirect_stdout(io.StringIO()):
    assert not any(run([*words, "--help"]) for words in told)
print(len(told), [name for name in {SLOW} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    count, _, loaded = done.stdout.strip().partition(" ")
    assert loaded == "[]", done.stderr
    assert int(count) > 60


def test_steps_are_plain_lines_off_a_terminal_and_silent_outside(capsys):
    progress.step("nobody listens")
    with progress.steps():
        progress.step("one thing")
        progress.hush()
        progress.step("another")
        progress.waiting("for what will say so itself")
    with progress.steps(quiet=True):
        progress.step("hidden")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == ["one thing", "another"]
    assert not any(mark in line for line in lines for mark in ("\r", "\x1b"))


def test_steps_count_the_seconds_on_a_terminal_only_where_something_may_move(monkeypatch):
    program = """
import signal
from softnlb import progress
with progress.steps():
    progress.step("at work")
    if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        signal.raise_signal(signal.SIGALRM)
    progress.step("more")
    progress.waiting("for it")
    progress.hush()
    progress.step("last")
"""
    for variable, moving in (("X", True), ("NO_COLOR", False)):
        main, other = os.openpty()
        environment = {**os.environ, "TERM": "xterm", variable: "1"}
        if moving:
            environment.pop("NO_COLOR", None)
        subprocess.run([sys.executable, "-c", program], stderr=other, env=environment, check=True)
        os.close(other)
        shown = os.read(main, 4096)
        os.close(main)
        assert (b"\r    " in shown) is moving
        assert shown.count(b"at work") == (3 if moving else 1)
        assert (b"for it" in shown) is moving
        lines = [line.split(b"\r")[-1] for line in shown.replace(b"\r\n", b"\n").split(b"\n")]
        assert [line.split(b" s  ")[-1] for line in lines] == [b"at work", b"more", b"last", b""]
