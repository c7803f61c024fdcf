"""Pause: an agent is stopped with SIGSTOP for a while and continued; nobody answers twice."""

import time
from typing import Any

from labs.experiment import (
    Experiment,
    await_converged,
    either_family,
    finish,
    host_ids,
    in_a_lab,
    measured,
    none_of,
    pause,
    traffic,
    witness,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import TIMERS, LabSpec
from labs.witness import answered, twice

HOLD, RATE, PAUSE_S = 100, 150.0, 10.0

TITLE = "The agent of host {host_id} is paused under load"

LESSON = """\
A map is valid for a short lease only.  The lease of a stopped agent runs out before the others may
take its buckets, and the filter obeys the lease even while the agent sleeps.  The connections that
the paused host has go on: its kernel serves them."""


def measure(
    lab: LabHandle, host_id: int = 2, pause_s: float = PAUSE_S, hold: int = HOLD
) -> dict[str, Any]:
    """Stop and continue an agent under load, watched from the switch."""
    node = f"host{host_id}"
    everybody = host_ids(lab.status(), "converged")
    others = [id for id in everybody if id != host_id]
    period_ms, tolerance = TIMERS[lab.spec().timers]
    with witness(lab) as watching, traffic(lab, Traffic(hold=hold, rate=RATE)) as task:
        pause(1.0)
        lab.fault("stop", node)
        # One period beyond the lease, so that no connection of the lease's last moment counts.
        expired_s = time.monotonic() + period_ms * (tolerance + 1) / 1000
        pause(pause_s)
        lab.fault("cont", node)
        continued_s = time.monotonic()
        await_converged(lab, everybody)
        converged_s = time.monotonic()
        pause(1.0)
        result = finish(task)
        records = answered(watching.stop())
    while_paused = [
        connection
        for connection in result.new
        if expired_s < connection.began_s < continued_s and connection.host_id == host_id
    ]
    return {
        "host_id": host_id,
        "others": others,
        "pause_s": pause_s,
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "answered_by_two_hosts": len(twice(records)),
        "new_connections_at_the_paused_host": len(while_paused),
        "long_connections": len(result.held),
        "broken": len(result.broken()),
        "converged_after_continue_s": round(converged_s - continued_s, 2),
        "new_connections_at_it_afterwards": result.served(converged_s).get(host_id, 0),
    }


@in_a_lab
@either_family
def command() -> Experiment[Any]:
    """Entry point of ``softnlb lab run pause``."""
    spec = LabSpec(timers="fast")
    return Experiment(
        spec,
        measure,
        measured(TITLE, LESSON, without=("host_id", "others")),
        none_of("answered_by_two_hosts", "broken"),
    )
