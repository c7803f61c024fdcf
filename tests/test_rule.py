"""`softnlb rule` and `softnlb set`: what becomes of a file, what is refused and by which name."""

import json
import os
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from convergence.rules import DEFAULT_RULE
from softnlb import durable
from softnlb.cli import run
from softnlb.config import load
from softnlb.control import socket_path
from softnlb.rule_choice import chosen, covering
from softnlb.rule_edit import checked, edited, refuse_what_needs_a_stop
from tests.fake_agent import QUERY, FakeAgent, serving

TEXT = """\
# my cluster
[cluster]
ip_address = "10.1.0.100/24"   # the VIP
additional_ip_addresses = ["10.1.0.101/24"]

[host]
id = 2
interface = "eth0"
dedicated_ip_address = "10.1.0.2/24"

# web
[[port_rule]]
ports = "80-90"   # http
load_weight = 30

[[port_rule]]
cluster_ip_address = "10.1.0.101"
ports = 443
protocol = "tcp"
"""

EVERYTHING = {"cluster_ip_address": "all", "ports": "0-65535", "protocol": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of one host."""
    file = tmp_path / "cluster.toml"
    file.write_text(TEXT)
    file.chmod(0o640)
    return file


@pytest.fixture(autouse=True)
def own_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent but those of the test."""
    monkeypatch.setenv("SOFTNLB_RUN_DIR", str(tmp_path / "run"))


def rule(path: Path, *words: str) -> int:
    """`softnlb rule WORDS` on this file."""
    return run(["rule", *words, "--config", str(path)])


def test_rules_are_added_changed_and_removed_and_comments_stay(path: Path) -> None:
    assert rule(path, "add", "10.1.0.101:53", "protocol=udp", "affinity=none") == 0
    assert rule(path, "set", "85", "ports=80-84", "load_weight=equal") == 0
    assert rule(path, "remove", "10.1.0.101:443") == 0
    assert run(["set", "filter_icmp=true", "hash_seed=7", "--config", str(path)]) == 0
    config = load(path)
    found = [
        (str(one.cluster_ip_address), one.start_port, one.end_port) for one in config.port_rules
    ]
    assert found == [("None", 80, 84), ("10.1.0.101", 53, 53)]
    assert (config.filter_icmp, config.hash_seed, config.load_weights) == (True, 7, (50, 50))
    text = path.read_text()
    for comment in ("# my cluster", "# the VIP", "# web", "# http"):
        assert comment in text
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["cluster.toml"]


@pytest.mark.parametrize(
    ("words", "key", "code"),
    [
        (["add", "85"], "port_rule[3].ports", "PORT_OVERLAP"),
        (["set", "80-90", "ports=1-70000"], "port_rule[1].ports", "BAD_PORT_PARAMS"),
        (["add", "53", "affinity=all"], "port_rule[3].affinity", "BAD_PORT_PARAMS"),
        (["add", "53", "load_weight=101"], "port_rule[3].load_weight", "BAD_PORT_PARAMS"),
        (["add", "10.9.9.9:53"], "port_rule[3].cluster_ip_address", "BAD_PORT_PARAMS"),
        (["set", "7", "affinity=none"], "all:7", "NOT_FOUND"),
        (["remove", "443"], "all:443", "NOT_FOUND"),
        (["remove", "10.1.0.101:443", "--protocol", "udp"], "10.1.0.101:443", "NOT_FOUND"),
        (["add", "ninety"], "ninety", "BAD_PORT_PARAMS"),
        (["set", "80-90", "affinity"], "KEY=VALUE", "BAD_PARAMS"),
        (["set", "80-90", "timeout=1", "timeout=2"], "timeout: expected once", "BAD_PARAMS"),
    ],
)
def test_a_refusal_names_rule_field_and_return_code(
    path: Path, capsys: pytest.CaptureFixture[str], words: list[str], key: str, code: str
) -> None:
    assert rule(path, *words) in (1, 2)
    told = capsys.readouterr().err
    assert key in told
    assert f"({code})" in told
    assert path.read_text() == TEXT


def test_an_ipv6_address_may_be_written_in_any_form() -> None:
    text = '[[port_rule]]\ncluster_ip_address = "2001:DB8:0::100"\nports = "80"\n'
    at = {"cluster_ip_address": "2001:db8::0:100", "ports": "80", "protocol": None}
    assert "affinity" in edited(text, {"do": "set", "at": at, "rule": {"affinity": "none"}})
    address = ip_address("2001:db8::100")
    rules = [replace(DEFAULT_RULE, cluster_ip_address=address)]
    asked = {"cluster_ip_address": "2001:DB8:0::100", "port": 80}
    assert chosen(rules, [address], asked) == (0,)
    assert covering(rules, [address], asked) == 0


def test_a_file_that_cannot_be_written_stays_as_it_is(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert rule(path, "add", "53") == 1
    assert "No space left on device (IO_ERROR)" in capsys.readouterr().err
    assert path.read_text() == TEXT
    assert os.listdir(path.parent) == ["cluster.toml"]


def test_the_rule_that_a_file_without_rules_means() -> None:
    """It can be changed, stands in the way of others, and comes back with the last one."""
    bare = TEXT.partition("# web")[0]
    made = edited(bare, {"do": "set", "at": EVERYTHING, "rule": {"ports": "80"}})
    assert checked(Path("x"), made).port_rules[0].end_port == 80
    with pytest.raises(Exception, match="PORT_OVERLAP"):
        edited(bare, {"do": "add", "rule": {"ports": "80"}})
    at = {"cluster_ip_address": "all", "ports": "80", "protocol": None}
    with pytest.raises(Exception, match=r"last port rule.*BAD_PORT_PARAMS"):
        edited(made, {"do": "remove", "at": at})


@pytest.mark.parametrize(
    "change",
    [
        {}, [], "x", {"do": "format"}, {"do": "add"}, {"do": "add", "rule": 7}, {"do": "remove"},
        {"do": "set", "at": {"ports": []}, "rule": {}}, {"do": "cluster", "keys": [1]},
        {"do": "set", "at": EVERYTHING | {"ports": "x"}, "rule": {}},
        {"do": "add", "rule": {"ports": {"a": object()}}},
    ],
)  # fmt: skip
def test_a_change_of_any_shape_is_refused_with_a_sentence(change: object) -> None:
    with pytest.raises(Exception, match=r"\((BAD_PARAMS|NOT_FOUND|BAD_PORT_PARAMS)\)"):
        edited(TEXT, change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"do": "cluster", "keys": {"mode": "igmp"}}, "mode"),
        ({"do": "cluster", "keys": {"timers": "fast"}}, "alive_message_period_ms"),
        ({"do": "cluster", "keys": {"ip_address": "10.1.0.99/24"}}, "cluster_ip_addresses"),
        (
            {"do": "add", "rule": {"ports": "53", "health_probe": {
                "type": "command", "command": ["/bin/sh"]}}},
            "a command is set on each host",
        ),
    ],
)  # fmt: skip
def test_what_a_running_cluster_cannot_change(change: dict, refused: str) -> None:
    """Nor may whoever can send a change run a program on every host."""
    present = checked(Path("x"), TEXT)
    with pytest.raises(Exception, match=rf"{refused}.*\(BAD_PARAMS\)"):
        refuse_what_needs_a_stop(present, checked(Path("x"), edited(TEXT, change)))


# ---------------------------------------------------------------- with an agent


def staging(*waiting_for: int) -> dict[str, object]:
    """An answer to change_state while the change is being staged."""
    return {"state": "staging", "reason": "", "waiting_for": list(waiting_for)}


DONE = {
    "state": "done",
    "reason": "",
    "saved": True,
    "waiting_for": [],
    "configuration_digest": "00ff",
}


def test_the_whole_cluster_is_asked_and_waited_for(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = FakeAgent(
        change=staging(1, 4),
        change_state=[staging(1, 4), staging(4), {**DONE, "saved": False}, DONE],
        query=[{**QUERY, "state": "converging"}, QUERY],
    )
    with serving(socket_path(load(path)), agent.handle):
        assert run(["rule", "set", "80-90", "affinity=none", "--cluster", "--timeout", "5"]) == 0
    told = capsys.readouterr()
    assert told.out == "port rule 80-90 changed on host 1, 2, 4\n"
    assert "waiting for host 1, 4 to stage it" in told.err
    verb, arguments = agent.asked[0]
    at = {"cluster_ip_address": "all", "ports": "80-90", "protocol": None}
    change = {"do": "set", "at": at, "rule": {"affinity": "none"}}
    assert (verb, arguments) == ("change", {"change": change, "timeout_s": 5.0})


def test_why_nothing_was_changed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "host 4 refuses: /etc/softnlb cannot be written: Read-only file system (IO_ERROR)"
    agent = FakeAgent(
        change=staging(4), change_state=[{"state": "aborted", "reason": reason, "waiting_for": []}]
    )
    with serving(socket_path(load(path)), agent.handle):
        assert run(["rule", "set", "80", "load_weight=3", "--cluster"]) == 1
        told = capsys.readouterr().err
        assert "load_weight is each host's own" in told
        assert "(BAD_PORT_PARAMS)" in told
        assert run(["rule", "add", "53", "--cluster", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["code"] == "IO_ERROR"
    assert document["error"].startswith("nothing was changed: host 4 refuses: /etc/softnlb")
    assert run(["rule", "add", "53", "handling_priority=1", "--cluster"]) == 3


def test_on_one_host_the_file_is_changed_and_reloaded(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = FakeAgent(
        params={"configuration_file": str(path)},
        reload={"state": "converged", "message": "load weights changed"},
    )
    with serving(socket_path(load(path)), agent.handle):
        assert run(["rule", "set", "80", "load_weight=7"]) == 0
        assert run(["rule", "add", "53", "handling_priority=1", "--cluster"]) == 1
    told = capsys.readouterr()
    assert told.out == "port rule 80 changed: load weights changed\n"
    assert "different on every host" in told.err
    assert load(path).load_weights == (7, 50)
    assert [verb for verb, _ in agent.asked] == ["params", "reload"]


def test_a_symbolic_link_stays_one(path: Path) -> None:
    link = path.with_name("link.toml")
    link.symlink_to(path.name)
    durable.write(link, "new")
    assert (link.is_symlink(), path.read_text()) == (True, "new")
