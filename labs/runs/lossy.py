"""Lossy: a tenth of all frames between hosts is lost at random; nobody may be called lost."""

import json
import time
from functools import partial
from typing import Any

import click

from labs.experiment import Experiment, either_family, host_ids, in_a_lab, measured, none_of, pause
from labs.handle import LabHandle
from labs.timeline import LOST
from labs.topology import TIMERS, LabSpec

PERCENT, MINUTES, HOSTS, LOOK_S = 10.0, 10.0, 8, 10.0

LESSON = """\
A frame that I missed was heard by others, and they say so in theirs: a host is lost only when
nobody heard it for tolerance x period."""


def per_port(percent: float) -> float:
    """What each of the two ports of a frame's way loses, so that ``percent`` are lost in all."""
    return float(100 * (1 - (1 - percent / 100) ** 0.5))


def measure(lab: LabHandle, seconds: float, percent: float = PERCENT) -> dict[str, Any]:
    """Lose frames for so long, and count what the agents say about it."""
    everybody = host_ids(lab.status(), "converged")
    lab.fault("loss", f"{per_port(percent):.2f}", *(f"host{each}" for each in everybody))
    began_s = time.monotonic()
    not_converged = 0
    while time.monotonic() - began_s < seconds:
        pause(min(LOOK_S, seconds))
        not_converged += host_ids(lab.status(), "converged") != everybody
    events = [json.loads(line) for line in lab.events().splitlines()]
    since = [event for event in events if event["at_s"] >= began_s]
    return {
        "hosts": len(everybody),
        "timers": lab.spec().timers,
        "period_ms": TIMERS[lab.spec().timers][0],
        "lost_percent": percent,
        "seconds": round(time.monotonic() - began_s),
        "false_host_lost": sum(e["event"] == "agent" and LOST in e["text"] for e in since),
        "times_not_converged": not_converged,
        "state_changes": sum(e["event"] == "host" and e["state"] != "converged" for e in since),
    }


@in_a_lab
@click.option("--minutes", default=MINUTES, show_default=True)
@click.option("--percent", default=PERCENT, show_default=True)
@either_family
def command(minutes: float, percent: float) -> Experiment[Any]:
    """Entry point of ``softnlb lab run lossy``."""
    spec = LabSpec(hosts=HOSTS)
    work = partial(measure, seconds=minutes * 60, percent=percent)
    return Experiment(
        spec, work, measured("Heartbeats lost at random", LESSON), none_of("false_host_lost")
    )
