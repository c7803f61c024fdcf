"""Idle: what the agents of a quiet cluster cost, in percent of one core."""

import time
from functools import partial
from statistics import median
from typing import Any

import click

from labs.experiment import (
    Experiment,
    await_converged,
    busy_ns,
    either_family,
    in_a_lab,
    pause,
    print_table,
)
from labs.handle import LabHandle
from labs.topology import DATA_PLANES, HOSTS_MAX, TIMERS, LabSpec

LIMIT_PERCENT = 1.0
SETTLE_S = 5.0
"""After a convergence: idle maps are proven, the last scans done."""

LESSON = """\
Time on a processor of every thread of an agent and of its verdict process, as the scheduler counts
it in ns, while nobody asks for anything: heartbeats of all hosts, the agent's own, and the watch
over what stands."""


def measure(lab: LabHandle, seconds: float) -> dict[str, Any]:
    """Percent of one core per agent over ``seconds`` of a converged, idle cluster."""
    spec = lab.spec()
    await_converged(lab, list(range(1, spec.hosts + 1)))
    pause(SETTLE_S)
    pids = [int(host["pid"]) for host in lab.status()["hosts"]]
    before, began_s = [busy_ns(pid) for pid in pids], time.monotonic()
    pause(seconds)
    took_s = time.monotonic() - began_s
    percent = sorted(
        (busy_ns(pid) - was) / took_s / 1e7 for pid, was in zip(pids, before, strict=True)
    )
    return {
        "hosts": spec.hosts,
        "timers": spec.timers,
        "seconds": round(took_s, 1),
        "median_percent": round(median(percent), 3),
        "most_percent": round(percent[-1], 3),
        "limit_percent": LIMIT_PERCENT,
    }


def good(result: dict[str, Any]) -> bool:
    """Whether the busiest kept the limit, which is one of the usual timers."""
    return result["timers"] != "nlb" or bool(result["most_percent"] <= LIMIT_PERCENT)


def show(result: dict[str, Any]) -> None:
    """One row."""
    row = [result[key] for key in ("hosts", "timers", "median_percent", "most_percent")]
    heads = ["hosts", "timers", "median, % of a core", "the busiest agent"]
    print_table(f"Agents at rest over {result['seconds']} s", heads, [row], LESSON)


@in_a_lab
@click.option("--hosts", type=click.IntRange(1, HOSTS_MAX), default=HOSTS_MAX, show_default=True)
@click.option("--timers", type=click.Choice(list(TIMERS)), default="nlb", show_default=True)
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="auto", show_default=True)
@click.option("--seconds", type=click.FloatRange(1, 600), default=30.0, show_default=True)
@either_family
def command(hosts: int, timers: str, data_plane: str, seconds: float) -> Experiment[Any]:
    """Entry point of ``softnlb lab run idle``."""
    spec = LabSpec(hosts=hosts, timers=timers, data_plane=data_plane)
    return Experiment(spec, partial(measure, seconds=seconds), show, good)
