"""Keys: from no key to enforced signatures, then to another key, under load and host by host."""

import secrets
from typing import Any

import click

from labs.experiment import (
    Experiment,
    ask_agent,
    either_family,
    finish,
    host_ids,
    in_a_lab,
    none_of,
    pause,
    print_table,
    traffic,
    wait_until,
    witness,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import LabSpec
from labs.witness import answered, twice

HOLD, RATE = 100, 50.0
CONFIG, KEY_FILE = "/etc/softnlb/cluster.toml", "/etc/softnlb/cluster.key"

COUNTED = ("convergences", "broken", "new_connections_failed", "answered_by_two_hosts")

LESSON = """\
Whoever does not sign is believed until everybody signs, and a key is known everywhere before the
first host signs with it.  So no host ever meets a heartbeat that it cannot believe, and the keys
change without a convergence.  A step in the wrong order would split the cluster; it is refused."""


def set_keys(lab: LabHandle, node: str, authentication: str, lines: list[str]) -> None:
    """The key file and the two lines of the configuration, as an operator would edit them."""
    lab.output(node, ["sed", "-i", "/^key_file/d; /^authentication/d", CONFIG])
    if authentication == "none":
        lab.output(node, ["rm", "-f", KEY_FILE])
        return
    written = "\\n".join(lines)
    lab.output(node, ["sh", "-c", f"umask 077; printf '{written}\\n' > {KEY_FILE}"])
    added = f'key_file = "cluster.key"\\nauthentication = "{authentication}"'
    lab.output(node, ["sed", "-i", rf"s/^\[cluster\]/&\n{added}/", CONFIG])


def enforce_key(lab: LabHandle, nodes: list[str]) -> str:
    """From no key to one that everybody signs with and demands; returns its 64 hex digits."""
    secret = secrets.token_hex(32)
    for authentication in ("receive-only", "permissive", "enforce"):
        for node in nodes:
            set_keys(lab, node, authentication, [f"1 {secret}"])
            ask_agent(lab, node, "reload")
    return secret


def measure(lab: LabHandle, hold: int = HOLD, back: bool = True) -> dict[str, Any]:
    """Each step on every host in turn, in the middle of traffic; the lab ends as it began.

    Without ``back`` it ends with the new key enforced.
    """
    old, new = (f"{key_id} {secrets.token_hex(32)}" for key_id in (1, 2))
    steps: list[tuple[str, list[str]]] = [
        ("receive-only", [old]),
        ("permissive", [old]),
        ("enforce", [old]),
        ("enforce", [old, new]),
        ("enforce", [new, old]),
        ("enforce", [new]),
    ]
    if back:
        steps += [("permissive", [new]), ("receive-only", [new]), ("none", [])]
    nodes = [f"host{host_id}" for host_id in host_ids(lab.status(), "converged")]
    before = _convergences(lab, nodes)
    rows = []
    with witness(lab) as watching:
        with traffic(lab, Traffic(hold=hold, rate=RATE)) as task:
            for authentication, lines in steps:
                for node in nodes:
                    set_keys(lab, node, authentication, lines)
                    ask_agent(lab, node, "reload")
                rows.append(_step(lab, nodes, authentication, lines, before))
            pause(1.0)
            result = finish(task)
        records = answered(watching.stop())
    after = _convergences(lab, nodes)
    return {
        "steps": rows,
        "convergences": sum(after.values()) - sum(before.values()),
        "not_believed": sum(
            sum(ask_agent(lab, node, "display")["heartbeats_ignored"].values()) for node in nodes
        ),
        "long_connections": len(result.held),
        "broken": len(result.broken()),
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "answered_by_two_hosts": len(twice(records)),
    }


def _convergences(lab: LabHandle, nodes: list[str]) -> dict[str, int]:
    return {node: ask_agent(lab, node, "query")["convergence_count"] for node in nodes}


def _step(
    lab: LabHandle, nodes: list[str], authentication: str, lines: list[str], before: dict[str, int]
) -> dict[str, Any]:
    """Wait until all members were heard with the key that now signs."""
    signs = authentication in ("permissive", "enforce")
    key_id = int(lines[0].split()[0]) if signs else 0

    def told() -> list[int]:
        members = ask_agent(lab, nodes[0], "display")["members"]
        return [member["key_id"] for member in members]

    wait_until(lambda: told() == [key_id] * len(nodes), 10.0, f"all sign with key {key_id}")
    return {
        "authentication": authentication,
        "accepted_key_ids": [int(line.split()[0]) for line in lines],
        "signed_with": key_id,
        "convergences": sum(_convergences(lab, nodes).values()) - sum(before.values()),
    }


def show(result: dict[str, Any]) -> None:
    """One row per step, then the sum."""
    rows: list[tuple[object, ...]] = [
        (
            step["authentication"],
            ", ".join(map(str, step["accepted_key_ids"])) or "-",
            step["signed_with"] or "unsigned",
            step["convergences"],
        )
        for step in result["steps"]
    ]
    heads = ["authentication", "accepted keys", "signed with", "convergences so far"]
    print_table("Keys under load", heads, rows, LESSON)
    for name in ("broken", "new_connections_failed", "answered_by_two_hosts", "not_believed"):
        click.echo(f"{name.replace('_', ' ')}: {result[name]}")


@in_a_lab
@either_family
def command() -> Experiment[Any]:
    """Entry point of ``softnlb lab run keys``."""
    return Experiment(LabSpec(timers="fast"), measure, show, none_of(*COUNTED))
