"""Beside: a host is killed while another one is mute, deaf or crashes again and again."""

import json
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
from labs.timeline import inherited_s
from labs.topology import TIMERS, LabSpec
from labs.witness import answered, twice
from softnlb.cli_common import print_json

HOSTS, RATE, BAD, VICTIM, WATCH_S, TIMES = 5, 150.0, 3, 2, 2.5, 3
KINDS = ("mute", "deaf", "crash loop")
LEAD_S = (0.1, 0.4, 0.8)
"""How long before the kill the other host began to misbehave."""

LESSON = """\
The dead host's buckets wait for its silence, and for nobody else.  A deaf host serves alone, so
two hosts could answer clients that reach it; here none does, since nothing is sent to it."""


def _misbehave(lab: LabHandle, kind: str, until_s: float) -> None:
    """Let the bad host do what it does until then."""
    while kind == "crash loop" and time.monotonic() < until_s:
        lab.fault("agent-kill", f"host{BAD}")
        pause(0.15)
        lab.fault("start", f"host{BAD}")
        pause(0.3)
    pause(max(0.0, until_s - time.monotonic()))


def _once(lab: LabHandle, kind: str, lead_s: float) -> dict[str, Any]:
    everybody = host_ids(lab.status(), "converged")
    with witness(lab) as watching:
        with traffic(lab, Traffic(rate=RATE)) as task:
            pause(0.2)
            if kind != "crash loop":
                lab.fault(kind, f"host{BAD}")
            _misbehave(lab, kind, time.monotonic() + lead_s)
            killed_s = time.monotonic()
            lab.fault("kill", f"host{VICTIM}")
            _misbehave(lab, kind, killed_s + WATCH_S)
            watched_s = time.monotonic()
            result = finish(task)
        records = answered(watching.stop())
    events = [json.loads(line) for line in lab.events().splitlines()]
    heirs = set(everybody) - {VICTIM, BAD}
    if kind == "crash loop":
        heirs.add(BAD)
    unowned_s = inherited_s(events, killed_s, watched_s, VICTIM, heirs)
    lab.fault("heal")
    lab.fault("start", f"host{VICTIM}")
    await_converged(lab, everybody)
    return {
        "beside": kind,
        "began_before_s": lead_s,
        "new_connections": len(result.new),
        "answered_by_two_hosts": len(twice(records)),
        "buckets_unowned_s": None if unowned_s is None else round(unowned_s, 3),
    }


def measure(lab: LabHandle, leads_s: tuple[float, ...] = LEAD_S) -> list[dict[str, Any]]:
    """Every kind beside a real crash, at several moments."""
    return [_once(lab, kind, lead_s) for kind in KINDS for lead_s in leads_s]


def limit_s(lab: LabHandle) -> float:
    """2 x T x P."""
    period_ms, tolerance = TIMERS[lab.spec().timers]
    return 2 * tolerance * period_ms / 1000


def good(results: list[dict[str, Any]], limit: float) -> bool:
    """Whether nobody answered twice and every bucket was taken in time."""
    return all(
        row["answered_by_two_hosts"] == 0
        and row["buckets_unowned_s"] is not None
        and row["buckets_unowned_s"] <= limit
        for row in results
    )


@click.command(help=__doc__)
@either_family
@options
def command(name: str | None, as_json: bool) -> int:
    """Entry point of ``softnlb lab run beside``."""
    spec = LabSpec(name=own_name("beside"), hosts=HOSTS, timers="fast", affinity="none")
    with lab_for(name, spec) as lab:
        results, limit = measure(lab), limit_s(lab)
    if as_json:
        print_json({"run": "beside", "limit_s": limit, "cases": results})
    else:
        heads = [key.replace("_", " ") for key in results[0]]
        print_table("Beside a crash", heads, [tuple(row.values()) for row in results], LESSON)
    return int(not good(results, limit))
