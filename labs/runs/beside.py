"""Beside: a host is killed while another one is mute, deaf or crashes again and again."""

import json
import time
from typing import Any

from labs.experiment import (
    Experiment,
    await_converged,
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
from labs.timeline import inherited_s
from labs.topology import TIMERS, LabSpec
from labs.witness import answered, twice

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


def measure(lab: LabHandle, leads_s: tuple[float, ...] = LEAD_S) -> dict[str, Any]:
    """Every kind beside a real crash, at several moments; the limit is 2 x T x P."""
    period_ms, tolerance = TIMERS[lab.spec().timers]
    cases = [_once(lab, kind, lead_s) for kind in KINDS for lead_s in leads_s]
    return {"limit_s": 2 * tolerance * period_ms / 1000, "cases": cases}


def good(result: dict[str, Any]) -> bool:
    """Whether nobody answered twice and every bucket was taken in time."""
    return all(
        row["answered_by_two_hosts"] == 0
        and row["buckets_unowned_s"] is not None
        and row["buckets_unowned_s"] <= result["limit_s"]
        for row in result["cases"]
    )


def show(result: dict[str, Any]) -> None:
    """One row per case."""
    cases = result["cases"]
    heads = [key.replace("_", " ") for key in cases[0]]
    print_table("Beside a crash", heads, [tuple(row.values()) for row in cases], LESSON)


@in_a_lab
@either_family
def command() -> Experiment[Any]:
    """Entry point of ``softnlb lab run beside``."""
    return Experiment(LabSpec(hosts=HOSTS, timers="fast", affinity="none"), measure, show, good)
