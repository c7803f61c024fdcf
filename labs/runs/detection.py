"""Detection: hosts of a large cluster are killed one by one; who serves their clients, and when."""

import json
import time
from functools import partial
from statistics import median
from typing import Any

import click

from labs.events import Event
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
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.timeline import Takeover, takeover
from labs.topology import TIMERS, LabSpec
from softnlb.errors import SoftnlbError

HOSTS, TIMES, RATE, SETTLE_S = 32, 20, 60.0, 1.6
MEDIAN_LIMIT_S, WORST_LIMIT_S, CONVERGENCE_LIMIT_S = 0.9, 1.2, 0.3

LESSON = """\
A host is silent for tolerance x period before anybody may call it lost.  The rest is convergence:
frames that are sent at once, some rounds of them between all hosts."""


def _events(lab: LabHandle) -> list[Event]:
    return [json.loads(line) for line in lab.events().splitlines()]


def _kill(lab: LabHandle, victim: int) -> tuple[Takeover, float]:
    """What the event log says, and the last new connection that failed, after the kill."""
    with traffic(lab, Traffic(rate=RATE)) as task:
        pause(0.2)
        killed_s = time.monotonic()
        lab.fault("kill", f"host{victim}")
        pause(SETTLE_S)
        seen_s = time.monotonic()
        result = finish(task)
    late_s = max((one.began_s - killed_s for one in result.failed()), default=0.0)
    return takeover(_events(lab), killed_s, seen_s, victim), max(0.0, late_s)


def measure(lab: LabHandle, times: int = TIMES) -> dict[str, Any]:
    """Kill hosts 2, 3, ... under load, each once, and start each again before the next."""
    everybody = host_ids(lab.status(), "converged")
    kills = []
    for number in range(times):
        victim = everybody[1 + number % (len(everybody) - 1)]
        kills.append(_kill(lab, victim))
        lab.fault("start", f"host{victim}")
        await_converged(lab, everybody, 60.0)
    served = [seen.owned_s for seen, _ in kills]
    rounds = [seen.convergence_s for seen, _ in kills]
    if None in served or None in rounds:
        raise SoftnlbError(f"a take-over was not seen within {SETTLE_S:g} s: {served}, {rounds}")
    period_ms, tolerance = TIMERS[lab.spec().timers]
    return {
        "hosts": len(everybody),
        "period_ms": period_ms,
        "tolerance": tolerance,
        "kills": times,
        "new_owners_serve_s": _spread(served),
        "last_expiry_to_converged_s": _spread(rounds),
        "last_failed_connection_s": _spread([late_s for _, late_s in kills]),
    }


def _spread(values: list[float | None] | list[float]) -> dict[str, float]:
    numbers = [value for value in values if value is not None]
    return {"median": round(median(numbers), 3), "worst": round(max(numbers), 3)}


def good(result: dict[str, Any]) -> bool:
    """Whether every limit is kept."""
    served, rounds = result["new_owners_serve_s"], result["last_expiry_to_converged_s"]
    return bool(
        served["median"] <= MEDIAN_LIMIT_S
        and served["worst"] <= WORST_LIMIT_S
        and rounds["worst"] <= CONVERGENCE_LIMIT_S
    )


def show(result: dict[str, Any]) -> None:
    """Median and worst beside their limits."""
    limits = {
        "new_owners_serve_s": f"{MEDIAN_LIMIT_S:g} / {WORST_LIMIT_S:g}",
        "last_expiry_to_converged_s": f"{CONVERGENCE_LIMIT_S:g}",
        "last_failed_connection_s": "",
    }
    rows = [
        (key.removesuffix("_s").replace("_", " "), *result[key].values(), limit)
        for key, limit in limits.items()
    ]
    title = (
        f"{result['hosts']} hosts, {result['period_ms']} ms x {result['tolerance']}: "
        f"{result['kills']} killed, one after the other"
    )
    print_table(title, ["after the kill", "median, s", "worst, s", "limit, s"], rows, LESSON)


@in_a_lab
@click.option("--hosts", default=HOSTS, show_default=True)
@click.option("--times", default=TIMES, show_default=True, help="How many hosts are killed.")
@either_family
def command(hosts: int, times: int) -> Experiment[Any]:
    """Entry point of ``softnlb lab run detection``."""
    spec = LabSpec(hosts=hosts, timers="fast", affinity="none")
    return Experiment(spec, partial(measure, times=times), show, good)
