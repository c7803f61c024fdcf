"""Flush: `nft flush ruleset` on a host under load: it repairs itself, nobody answers twice."""

from typing import Any

import click

from labs.experiment import (
    await_converged,
    either_family,
    finish,
    host_ids,
    lab_for,
    options,
    own_name,
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
from softnlb.cli_common import print_json

HOLD, RATE, TIMES = 50, 200.0, 3

LESSON = """\
Firewall scripts flush the whole rule set.  The agent hears it from the kernel, takes the cluster IP
address off the interface first, and puts everything back then."""


def measure(lab: LabHandle, host_id: int = 2, times: int = TIMES) -> dict[str, Any]:
    """Flush the rules of a host several times under load."""
    node = f"host{host_id}"
    everybody = host_ids(lab.status(), "converged")
    with witness(lab) as watching, traffic(lab, Traffic(hold=HOLD, rate=RATE)) as task:
        pause(0.5)
        for _ in range(times):
            lab.fault("flush-rules", node)
            wait_until(lambda: _has_rules(lab, node), 10.0, "rules are back")
            pause(0.5)
        await_converged(lab, everybody)
        pause(1.0)
        result = finish(task)
        records = answered(watching.stop())
    return {
        "host_id": host_id,
        "flushes": times,
        "repaired": _has_rules(lab, node),
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "answered_by_two_hosts": len(twice(records)),
        "long_connections": len(result.held),
        "broken": len(result.broken()),
    }


def _has_rules(lab: LabHandle, node: str) -> bool:
    return "softnlb" in lab.output(node, ["nft", "list", "ruleset"])


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    rows = [(key.replace("_", " "), value) for key, value in result.items()]
    print_table("nft flush ruleset under load", ["", "measured"], rows, LESSON)


@click.command(help=__doc__)
@either_family
@options
def command(name: str | None, as_json: bool) -> int:
    """Entry point of ``softnlb lab run flush``."""
    with lab_for(name, LabSpec(name=own_name("flush"), timers="fast")) as lab:
        result = measure(lab)
    if as_json:
        print_json({"run": "flush", **result})
    else:
        show(result)
    return int(bool(result["answered_by_two_hosts"]) or not result["repaired"])
