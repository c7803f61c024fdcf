"""Drainstop under load: a host finishes its connections, takes no new ones and stops by itself."""

import time
from typing import Any

from labs.experiment import (
    Experiment,
    ask_agent,
    either_family,
    finish,
    host_ids,
    in_a_lab,
    none_of,
    pause,
    print_table,
    traffic,
    wait_until,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import LabSpec

HOLD, RATE, DRAIN_S = 200, 50.0, 3.0

LESSON = """\
The host that drains keeps every connection that it has, because every host receives every frame
anyway; only its buckets move.  When its last connection has ended it stops by itself."""


def measure(lab: LabHandle, host_id: int = 2, hold: int = HOLD) -> dict[str, Any]:
    """Long connections and a steady stream of new ones, while one host drains."""
    node = f"host{host_id}"
    with traffic(lab, Traffic(hold=hold, rate=RATE)) as task:
        pause(1.0)
        ask_agent(lab, node, "drainstop", timeout_s=None)
        draining_s = time.monotonic()
        pause(DRAIN_S)
        still = host_id in host_ids(lab.status(), "draining")
        result = finish(task)
    ended_s = time.monotonic()
    wait_until(
        lambda: host_id in host_ids(lab.status(), "stopped"), 20.0, f"{node} stops by itself"
    )
    mine = [held for held in result.held if held.host_id == host_id]
    return {
        "host_id": host_id,
        "long_connections": len(result.held),
        "long_connections_of_the_draining_host": len(mine),
        "broken": len(result.broken()),
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "new_connections_before": result.served().get(host_id, 0)
        - result.served(draining_s).get(host_id, 0),
        "new_connections_while_draining": result.served(draining_s).get(host_id, 0),
        "draining_while_connections_lasted": still,
        "stopped_after_the_last_connection_s": round(time.monotonic() - ended_s, 2),
    }


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    rows = [
        ("long connections, all hosts", result["long_connections"]),
        ("of them at the draining host", result["long_connections_of_the_draining_host"]),
        ("broken", result["broken"]),
        ("new connections to it before", result["new_connections_before"]),
        ("new connections to it while draining", result["new_connections_while_draining"]),
        ("new connections that nobody answered", result["new_connections_failed"]),
        (
            "stopped by itself after its last connection",
            f"{result['stopped_after_the_last_connection_s']} s",
        ),
    ]
    print_table(f"Drainstop of host {result['host_id']} under load", ["", "measured"], rows, LESSON)


@in_a_lab
@either_family
def command() -> Experiment[Any]:
    """Entry point of ``softnlb lab run drainstop``."""
    spec = LabSpec(timers="fast")
    return Experiment(spec, measure, show, none_of("broken", "new_connections_while_draining"))
