"""Health probes: how services are looked at, and what a dead one does to its port rule."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from convergence.events import Command, LogEvent
from softnlb.config import ConfigError, HealthProbe, load
from softnlb.health import PROBER, Health
from softnlb.prober import look
from tests.netns import Namespace, wait_for
from tests.test_agent import VIP, Host, hosts  # noqa: F401
from tests.test_config import MINIMAL


def probe(**changed: Any) -> dict[str, Any]:
    return {
        "slot": 0,
        "type": "tcp",
        "address": "127.0.0.1",
        "port": 1,
        "path": "/",
        "command": [],
        "period_ms": 10,
        "timeout_ms": 300,
        "fall": 3,
        "rise": 2,
        "action": "drain",
    } | changed


# ---------------------------------------------------------------- one look


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "found"), [("/200", ""), ("/302", ""), ("/404", "HTTP status 404"), ("/503", "HTTP")]
)
def test_http_asks_for_the_path_and_wants_a_good_status(
    http_port: int, path: str, found: str
) -> None:
    assert look(probe(type="http", port=http_port, path=path)).startswith(found)
    assert bool(look(probe(type="http", port=http_port, path=path))) == bool(found)


def test_tcp_wants_an_open_port(http_port: int) -> None:
    assert look(probe(port=http_port)) == ""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert look(probe(port=closed.getsockname()[1])) == "Connection refused"


def test_a_service_that_does_not_speak_is_dead_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert look(probe(type="http", port=port, timeout_ms=50)) == "no answer within 50 ms"


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["true"], ""),
        (["sh", "-c", "exit 3"], "exit status 3"),
        (["sh", "-c", "read x < /dev/zero"], "not finished within 300 ms"),
        (["/no/such/command"], "No such file or directory"),
    ],
)
def test_a_command_is_judged_by_its_exit_status(command: list[str], found: str) -> None:
    assert look(probe(type="command", command=command)) == found


def test_the_prober_tells_changes_only_and_ends_with_the_agent() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-I", str(PROBER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as prober:
        assert prober.stdin is not None
        assert prober.stdout is not None
        # The first look counts alone, though three in a row are wanted.
        prober.stdin.write(json.dumps([probe(port=port)]) + "\n")
        prober.stdin.flush()
        first = json.loads(prober.stdout.readline())
        assert first == {"slot": 0, "alive": False, "reason": "Connection refused"}
        with socket.create_server(("127.0.0.1", port), backlog=1000):
            assert json.loads(prober.stdout.readline()) == {"slot": 0, "alive": True, "reason": ""}
        assert json.loads(prober.stdout.readline())["alive"] is False
        prober.stdin.close()
        assert prober.wait(5) == 0


# ---------------------------------------------------------------- what follows


class Desk:
    """A machine with one rule, as far as Health knows it."""

    def __init__(self) -> None:
        self.state = "enabled"
        self.events: list[str] = []
        self.health = Health(self.order, lambda: (self.state,), self.tell)
        self.health._probes = {0: HealthProbe(**probe())}

    def order(self, command: Command, slots: tuple[int, ...]) -> None:
        assert slots == (0,)
        self.state = {
            Command.ENABLE_RULE: "enabled",
            Command.DRAIN_RULE: "draining",
            Command.DISABLE_RULE: "disabled",
        }[command]

    def tell(self, event: LogEvent) -> None:
        self.events.append(event.name)

    def hears(self, alive: bool) -> None:
        self.health._heard(self.health._probes[0], alive, "" if alive else "refused")


def test_a_dead_service_drains_its_rule_until_it_lives_again() -> None:
    desk = Desk()
    assert desk.health.of(0) == "unknown"
    desk.hears(True)
    assert (desk.state, desk.events) == ("enabled", [])
    desk.hears(False)
    assert (desk.state, desk.health.of(0)) == ("draining", "refused")
    desk.hears(True)
    assert (desk.state, desk.health.of(0)) == ("enabled", "alive")
    assert desk.events == ["service-dead", "service-alive"]


def test_what_the_operator_disabled_stays_disabled() -> None:
    desk = Desk()
    desk.state = "disabled"
    desk.hears(False)
    desk.hears(True)
    assert desk.state == "disabled"
    desk.state = "enabled"
    desk.hears(False)
    desk.health.operator_decided((0,))
    desk.hears(True)
    assert desk.state == "draining"


def test_a_rule_that_a_probe_drained_is_enabled_by_the_next_start() -> None:
    desk = Desk()
    desk.hears(False)
    desk.health.start(())
    assert desk.state == "enabled"


# ---------------------------------------------------------------- the configuration


RULE = '[[port_rule]]\nports = "80-81"\nprotocol = "tcp"\nhealth_probe = '


def read(tmp_path: Path, text: str) -> tuple[HealthProbe, ...]:
    path = tmp_path / "cluster.toml"
    path.write_text(MINIMAL + text)
    return load(path).health_probes


def test_defaults_and_the_address_to_look_at(tmp_path: Path) -> None:
    (read_probe,) = read(tmp_path, RULE + '{ type = "http", port = 80 }')
    assert (read_probe.address, read_probe.port, read_probe.path) == (VIP, 80, "/")
    assert (read_probe.fall, read_probe.rise, read_probe.action) == (3, 2, "drain")
    assert read(tmp_path, "") == ()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("3", "health_probe"),
        ("{}", "health_probe.type"),
        ('{ type = "ping" }', "health_probe.type"),
        ('{ type = "tcp" }', "health_probe.port"),
        ('{ type = "tcp", port = 80, timeout_ms = 2000 }', "health_probe.timeout_ms"),
        ('{ type = "tcp", port = 80, command = ["true"] }', "health_probe.command"),
        ('{ type = "command" }', "health_probe.command"),
        ('{ type = "http", port = 80, path = "x y" }', "health_probe.path"),
        ('{ type = "tcp", port = 80, prot = 1 }', "health_probe.prot"),
        ('{ type = "tcp", port = 80 }\nfiltering_mode = "disabled"', "health_probe"),
        ('{ type = "tcp", port = 80 }\naffinity = 3', "affinity"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, RULE + text)
    assert [problem.key for problem in refused.value.problems] == [f"port_rule[1].{key}"]


def test_the_cluster_need_not_agree_on_probes(tmp_path: Path) -> None:
    read(tmp_path, RULE + '{ type = "tcp", port = 80 }')
    one = load(tmp_path / "cluster.toml")
    read(tmp_path, RULE.replace("health_probe = ", ""))
    other = load(tmp_path / "cluster.toml")
    assert one.digest == other.digest
    assert one.but_for_what_can_change() == other.but_for_what_can_change()


# ---------------------------------------------------------------- on real hosts


def test_clients_leave_a_dead_service_and_come_back(hosts: list[Host]) -> None:  # noqa: F811
    pair = hosts[:2]
    command = '{ type = "tcp", period_ms = 100, timeout_ms = 100, fall = 2, rise = 2 }'
    for host in pair:
        host.config.write_text(f"{host.config.read_text()}health_probe = {command}\n")
        host.start()
    for host in pair:
        host.wait_state("converged")
    # Nothing listens yet: the first look drains the rule on both.
    wait_for(lambda: all(h.ask("queryport", port=80)["state"] == "draining" for h in pair))
    services = [serve(host.node) for host in pair]
    wait_for(lambda: [host.ask("maps")["buckets"] for host in pair] == [30, 30])
    services[0].close()
    wait_for(lambda: [host.ask("maps")["buckets"] for host in pair] == [0, 60])
    assert hosts[0].ask("queryport", port=80)["service"] == "Connection refused"
    services[0] = serve(hosts[0].node)
    wait_for(lambda: [host.ask("maps")["buckets"] for host in pair] == [30, 30])
    hosts[0].config.write_text(hosts[0].config.read_text().replace("fall = 2", "fall = 4"))
    before = hosts[0].ask("query")["convergence_count"]
    assert hosts[0].ask("reload")["message"] == "health probes changed"
    wait_for(lambda: hosts[0].ask("queryport", port=80)["service"] == "alive")
    assert hosts[0].ask("query")["convergence_count"] == before
    for service in services:
        service.close()


def serve(node: Namespace) -> socket.socket:
    service = node.call(socket.socket)
    service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    service.bind((VIP, 80))
    service.listen(1000)
    return service
