"""Asleep: an agent, or a whole host, sleeps for any time and wakes; nobody answers twice."""

import time
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
    witness,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import TIMERS, LabSpec
from labs.witness import answered, twice
from softnlb.cli_common import print_json

HOSTS, RATE, SETTLE_S, WAKE_LIMIT_S = 4, 150.0, 0.3, 1.0
SLEEPS_PERIODS = (1.0, 3.0, 3.9, 4.1, 4.9, 5.1, 6.0, 10.0, 50.0)
"""Around the lease (4 periods) and the others' patience (5), and far beyond."""

KINDS = {"agent stopped": ("stop", "cont"), "host frozen": ("freeze", "thaw")}

LESSON = """\
Whoever slept distrusts itself first: its lease ran out before the others could take its buckets,
and it starts afresh when it slept past it."""


def _sleep(lab: LabHandle, kind: str, host_id: int, sleep_s: float) -> dict[str, Any]:
    begin, end = KINDS[kind]
    everybody = host_ids(lab.status(), "converged")
    with witness(lab) as watching:
        with traffic(lab, Traffic(rate=RATE)) as task:
            pause(SETTLE_S)
            said = lab.fault(begin, f"host{host_id}")
            pause(sleep_s)
            lab.fault(end, f"host{host_id}")
            woken_s = time.monotonic()
            await_converged(lab, everybody)
            converged_s = time.monotonic() - woken_s
            pause(SETTLE_S)
            result = finish(task)
        records = answered(watching.stop())
    return {
        "kind": kind,
        "by": said.partition("(")[2].removesuffix(")"),
        "host_id": host_id,
        "slept_s": round(sleep_s, 3),
        "new_connections": len(result.new),
        "answered_by_two_hosts": len(twice(records)),
        "converged_after_waking_s": round(converged_s, 3),
    }


def measure(
    lab: LabHandle, sleeps_periods: tuple[float, ...] = SLEEPS_PERIODS
) -> list[dict[str, Any]]:
    """Every kind of sleep for each of these times, host after host."""
    period_s = TIMERS[lab.spec().timers][0] / 1000
    hosts = lab.spec().hosts
    return [
        _sleep(lab, kind, 1 + number % hosts, sleep * period_s)
        for kind in KINDS
        for number, sleep in enumerate(sleeps_periods)
    ]


def good(results: list[dict[str, Any]], period_ms: int) -> bool:
    """Whether nobody answered twice and all were converged within 2 periods + 1 s."""
    limit_s = 2 * period_ms / 1000 + WAKE_LIMIT_S
    return not any(
        row["answered_by_two_hosts"] or row["converged_after_waking_s"] > limit_s for row in results
    )


@click.command(help=__doc__)
@either_family
@options
def command(name: str | None, as_json: bool) -> int:
    """Entry point of ``softnlb lab run asleep``."""
    spec = LabSpec(name=own_name("asleep"), hosts=HOSTS, timers="fast", affinity="none")
    with lab_for(name, spec) as lab:
        results = measure(lab)
        period_ms = TIMERS[lab.spec().timers][0]
    if as_json:
        print_json({"run": "asleep", "sleeps": results})
    else:
        by = {row["kind"]: row.pop("by") for row in results}
        heads = [key.replace("_", " ").removesuffix(" s") for key in results[0]]
        notes = [LESSON, *(f"{kind[0].upper()}{kind[1:]}: {how}." for kind, how in by.items())]
        rows = [tuple(row.values()) for row in results]
        print_table("Asleep", heads, rows, "\n".join(notes))
    return int(not good(results, period_ms))
