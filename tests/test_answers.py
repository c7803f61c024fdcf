"""What an agent answers to requests that make no sense: one sentence, and nothing changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from convergence.events import CommandError
from softnlb.agent import Agent
from softnlb.answers import Answers
from softnlb.config import load
from softnlb.errors import SoftnlbError

CONFIG = """
[cluster]
ip_address = "10.1.0.100/24"
[host]
id = 1
interface = "none0"
dedicated_ip_address = "10.1.0.1/24"
[[port_rule]]
ports = "80"
"""


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """The agent of a stopped host; its loop does not run."""
    monkeypatch.setenv("SOFTNLB_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("SOFTNLB_STATE_DIR", str(tmp_path / "state"))
    file = tmp_path / "cluster.toml"
    file.write_text(CONFIG)
    made = Agent(load(file), "auto")
    yield made
    made.close()


@pytest.mark.parametrize("timeout_s", [-1, 1e300, float("nan"), float("inf"), "5", [], {}])
def test_a_time_out_that_is_none_is_refused(agent: Agent, timeout_s: object) -> None:
    with pytest.raises(SoftnlbError, match="time-out"):
        Answers(agent).answer("drainstop", {"timeout_s": timeout_s})


BAD_PORTS = (
    {"port": {}},
    {"port": "http"},
    {"port": 1e400},
    {"port": "9" * 5000},
    {"port": 80, "protocol": "sctp"},
    {"port": 80, "protocol": 6},
    {"port": 80, "cluster_ip_address": "10.1.0.100/24"},
    {"port": 80, "cluster_ip_address": ["all"]},
    {"port": 81},
)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        *(("queryport", bad) for bad in BAD_PORTS),
        *(("disable", bad) for bad in BAD_PORTS),
        ("explain", {"client": "10.0.0.1:1", "server": None}),
        ("explain", {"client": 7}),
        ("explain", {"client": "10.0.0.1:1", "server": "10.1.0.100:80", "protocol": []}),
    ],
)
def test_bad_arguments_are_one_sentence(agent: Agent, verb: str, arguments: dict) -> None:
    with pytest.raises(SoftnlbError):
        Answers(agent).answer(verb, arguments)


def test_what_the_machine_refuses_is_one_sentence(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(force: bool) -> None:
        raise CommandError("not now")

    monkeypatch.setattr(agent, "start", refuse)
    with pytest.raises(SoftnlbError, match="not now"):
        Answers(agent).answer("start", {})
