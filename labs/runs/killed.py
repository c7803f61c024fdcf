"""Killed: an agent is killed and stays away; its kernel serves on what it has, and nothing new."""

import time
from functools import partial
from typing import Any

import click

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
    witness,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import DATA_PLANES, TIMERS, LabSpec
from labs.witness import answered, twice

HOLD, RATE, SECONDS = 200, 100.0, 10.0
SETTLE_S = 0.2
"""What the others may take for the take-over, after they could notice."""

TITLE = "The agent of host {host_id} is killed under load"

LESSON = """\
The program stays on the interface and goes on asking the sockets, so the connections of the host go
on without end.  Its lease is over before the others take its buckets, and they answer no segment of
a connection that is not theirs, since the kernel of a dead agent may still serve it."""


def measure(
    lab: LabHandle, host_id: int = 2, hold: int = HOLD, seconds: float = SECONDS
) -> dict[str, Any]:
    """Kill the agent under load, and watch for so long; the agent stays dead."""
    period_ms, tolerance = TIMERS[lab.spec().timers]
    detection_s = period_ms * tolerance / 1000
    others = [each for each in host_ids(lab.status(), "converged") if each != host_id]
    with traffic(lab, Traffic(hold=hold)) as holding:
        with witness(lab) as watching:
            with traffic(lab, Traffic(rate=RATE)) as opening:
                pause(1.0)
                killed_s = time.monotonic()
                lab.fault("agent-kill", f"host{host_id}")
                await_converged(lab, others)
                pause(2.0)
                new = finish(opening)
            records = answered(watching.stop())
        pause(max(0.0, killed_s + seconds - time.monotonic()))
        lasted_s = time.monotonic() - killed_s
        held = finish(holding)
    late = [each.began_s - killed_s for each in new.failed() if each.began_s > killed_s]
    at_it = [each.began_s - killed_s for each in new.new if each.host_id == host_id]
    return {
        "host_id": host_id,
        "detection_s": detection_s,
        "watched_s": round(lasted_s, 1),
        "long_connections": len(held.held),
        "long_connections_of_the_host": sum(each.host_id == host_id for each in held.held),
        "broken": len(held.broken()),
        "new_connections": len(new.new),
        "last_new_connection_at_the_host_s": round(max(at_it, default=0.0), 3),
        "new_connections_at_the_host_after_the_lease": sum(at > detection_s for at in at_it),
        "last_new_connection_that_failed_s": round(max(late, default=0.0), 3),
        "answered_by_two_hosts": len(twice(records)),
    }


def good(result: dict[str, Any]) -> bool:
    """Whether everything is as it should be."""
    return bool(
        result["broken"] == 0
        and result["answered_by_two_hosts"] == 0
        and result["new_connections_at_the_host_after_the_lease"] == 0
        and result["last_new_connection_that_failed_s"] <= result["detection_s"] + SETTLE_S
    )


@in_a_lab
@click.option("--seconds", default=SECONDS, show_default=True, help="How long to watch.")
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="ebpf", show_default=True)
@either_family
def command(seconds: float, data_plane: str) -> Experiment[Any]:
    """Entry point of ``softnlb lab run killed``."""
    spec = LabSpec(timers="fast", affinity="none", data_plane=data_plane)
    return Experiment(
        spec, partial(measure, seconds=seconds), measured(TITLE, LESSON, without=["host_id"]), good
    )
