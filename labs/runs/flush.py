"""Flush: `nft flush ruleset` on a host under load: it repairs itself, nobody answers twice."""

from typing import Any

from labs.experiment import (
    Experiment,
    await_converged,
    either_family,
    finish,
    host_ids,
    in_a_lab,
    measured,
    pause,
    traffic,
    wait_until,
    witness,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import LabSpec
from labs.witness import answered, twice

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


@in_a_lab
@either_family
def command() -> Experiment[Any]:
    """Entry point of ``softnlb lab run flush``."""
    spec = LabSpec(timers="fast")
    return Experiment(
        spec,
        measure,
        measured("nft flush ruleset under load", LESSON),
        lambda result: result["repaired"] and not result["answered_by_two_hosts"],
    )
