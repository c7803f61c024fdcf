"""Reloads that change nothing shared, under load: no convergence, no frame lost."""

from typing import Any

import click

from labs.experiment import (
    Experiment,
    ask_agent,
    either_family,
    finish,
    host_ids,
    in_a_lab,
    pause,
    print_table,
    traffic,
    witness,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import DATA_PLANES, LabSpec
from labs.witness import answered, twice

HOLD, RATE = 200, 50.0
CONFIG = "/etc/softnlb/cluster.toml"

EDITS = (
    ("a comment", "$a # edited"),
    ("initial_state", '/^\\[host\\]/a initial_state = "stopped"'),
    ("retain_suspended", "/^\\[host\\]/a retain_suspended = true"),
    ("control_group", '/^\\[host\\]/a control_group = "root"'),
    (
        "additional_dedicated_ip_addresses",
        '/^\\[host\\]/a additional_dedicated_ip_addresses = ["10.9.9.9/32"]',
    ),
    ("health_probe", '/^\\[\\[port_rule\\]\\]/a health_probe = { type = "tcp", port = 80 }'),
)
"""What an operator changes on each host in turn: its name and a command of sed."""

LESSON = """\
Only what the others must agree on takes a convergence.  Everything else is put in force between two
packets, by the process that goes on sending heartbeats meanwhile."""


def _retransmitted(lab: LabHandle, nodes: list[str]) -> int:
    """Segments that kernels have sent a second time, because a frame was lost."""
    found = 0
    for node in nodes:
        names, values = (
            line.split()
            for line in lab.output(node, ["grep", "^Tcp:", "/proc/net/snmp"]).split("\n")[:2]
        )
        found += int(values[names.index("RetransSegs")])
    return found


def _count(lab: LabHandle, nodes: list[str], key: str) -> int:
    return sum(int(ask_agent(lab, node, "query")[key]) for node in nodes)


def _not_believed(lab: LabHandle, nodes: list[str]) -> int:
    shown = [ask_agent(lab, node, "display")["heartbeats_ignored"] for node in nodes]
    return sum(sum(counters.values()) for counters in shown)


def measure(lab: LabHandle, hold: int = HOLD) -> dict[str, Any]:
    """Every edit on every host in turn, in the middle of traffic."""
    nodes = [f"host{host_id}" for host_id in host_ids(lab.status(), "converged")]
    everybody = [*nodes, lab.client()["name"]]
    before = _count(lab, nodes, "convergence_count"), _not_believed(lab, nodes)
    done: dict[str, str] = {}
    with witness(lab) as watching:
        with traffic(lab, Traffic(hold=hold, rate=RATE)) as task:
            pause(0.5)
            sent_again = _retransmitted(lab, everybody)
            for name, script in EDITS:
                for node in nodes:
                    lab.output(node, ["sed", "-i", script, CONFIG])
                    done[name] = str(ask_agent(lab, node, "reload")["message"])
            pause(0.5)
            sent_again = _retransmitted(lab, everybody) - sent_again
            result = finish(task)
        records = answered(watching.stop())
    return {
        "reloads": len(EDITS) * len(nodes),
        "done": done,
        "convergences": _count(lab, nodes, "convergence_count") - before[0],
        "heartbeats_not_believed": _not_believed(lab, nodes) - before[1],
        "segments_sent_again": sent_again,
        "long_connections": len(result.held),
        "broken": len(result.broken()),
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "answered_by_two_hosts": len(twice(records)),
    }


COUNTED = ("convergences", "segments_sent_again", "broken", "new_connections_failed")


def good(result: dict[str, Any]) -> bool:
    """Nothing was lost, and nobody converged."""
    return not any(result[key] for key in (*COUNTED, "answered_by_two_hosts"))


def show(result: dict[str, Any]) -> None:
    """What each reload did, then what it cost."""
    rows = list(result["done"].items())
    print_table("Reloads under load", ["changed in the file", "done"], rows, LESSON)
    for key, value in result.items():
        if key != "done":
            click.echo(f"{key.replace('_', ' ')}: {value}")


@in_a_lab
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="auto", show_default=True)
@either_family
def command(data_plane: str) -> Experiment[Any]:
    """Entry point of ``softnlb lab run reload``."""
    spec = LabSpec(timers="fast", data_plane=data_plane)
    return Experiment(spec, measure, show, good)
