"""Failover: a host is powered off under load; how long until the others serve everybody."""

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
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import TIMERS, LabSpec
from softnlb.cli_common import print_json

HOLD, RATE = 200, 100.0
LIMIT_S = {"fast": 1.0, "nlb": 10.0}

LESSON = """\
The others notice the silence after tolerance x period, agree on new owners within a few frames, and
take over the buckets of the dead host.  Its own connections are lost; nobody else's are."""


def measure(lab: LabHandle, host_id: int = 2, hold: int = HOLD) -> dict[str, Any]:
    """Kill a host while clients hold long connections and open new ones."""
    timers = lab.spec().timers
    others = [id for id in host_ids(lab.status(), "converged") if id != host_id]
    with traffic(lab, Traffic(hold=hold, rate=RATE)) as task:
        pause(1.0)
        killed_s = time.monotonic()
        lab.fault("kill", f"host{host_id}")
        await_converged(lab, others)
        pause(1.0 if timers == "fast" else 2.0)
        result = finish(task)
    # Begun before the kill and failed after it counts as well: began_s below killed_s gives 0.
    late = [connection.began_s - killed_s for connection in result.failed()]
    after_s = killed_s + max(0.0, *late, 0.0)
    return {
        "timers": timers,
        "period_ms": TIMERS[timers][0],
        "tolerance": TIMERS[timers][1],
        "host_id": host_id,
        "outage_s": round(max(0.0, *late, 0.0), 3),
        "limit_s": LIMIT_S[timers],
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "served_afterwards": result.served(after_s),
        "long_connections": len(result.held),
        "broken_of_the_dead_host": len(result.broken(host_id)),
        "broken_of_other_hosts": len(result.broken()) - len(result.broken(host_id)),
    }


def failover(name: str | None, timers: tuple[str, ...] = ("fast", "nlb")) -> list[dict[str, Any]]:
    """Both timers, each in a lab of its own, or the running lab ``name``."""
    if name is not None:
        return [measure(LabHandle(name))]
    results = []
    for each in timers:
        with lab_for(None, LabSpec(name=own_name(f"failover-{each}"), timers=each)) as lab:
            results.append(measure(lab))
    return results


def show(results: list[dict[str, Any]]) -> None:
    """The timers side by side."""
    rows = [
        ("alive message period x tolerance", "period_ms", lambda r: r["tolerance"]),
        ("last new connection that failed, after the kill", "outage_s", None),
        ("new connections in all", "new_connections", None),
        ("of them not answered in time", "new_connections_failed", None),
        ("broken long connections of the dead host", "broken_of_the_dead_host", None),
        ("broken long connections of all others", "broken_of_other_hosts", None),
    ]
    table = []
    for text, key, extra in rows:
        cells = []
        for result in results:
            value = f"{result[key]}"
            if extra is not None:
                value += f" ms x {extra(result)}"
            elif key.endswith("_s"):
                value += f" s (limit {result['limit_s']:g} s)"
            cells.append(value)
        table.append((text, *cells))
    heads = [f"{result['timers']} timers" for result in results]
    title = f"Host {results[0]['host_id']} is powered off under load"
    print_table(title, ["", *heads], table, LESSON)


@click.command(help=__doc__)
@either_family
@options
def command(name: str | None, as_json: bool) -> int:
    """Entry point of ``softnlb lab run failover``."""
    results = failover(name)
    if as_json:
        print_json({"run": "failover", "timers": results})
    else:
        show(results)
    return int(any(r["broken_of_other_hosts"] or r["outage_s"] > r["limit_s"] for r in results))
