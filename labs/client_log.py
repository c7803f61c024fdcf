"""What clients saw, as events for the log: counts over time, gaps, broken sessions."""

from collections.abc import Sequence
from typing import Any

from labs.handle import LabHandle
from labs.load import Connection, Result, gaps

BINS_MAX = 400
BIN_MIN_S = 0.1


def note(lab: LabHandle, node: str, result: Result) -> None:
    """Note what the clients of a node saw in the lab's event log."""
    log = lab.log()
    try:
        if result.new:
            log.add("clients", node=node, what="new connections", **series(result.new))
        if result.held:
            broken = [
                [round(held.broken_s or 0.0, 4), held.host_id, held.error]
                for held in result.broken()
            ]
            count = len(result.held)
            log.add("sessions", node=node, what="long connections", count=count, broken=broken)
    finally:
        log.close()


def series(connections: Sequence[Connection]) -> dict[str, Any]:
    """Connections answered per host and failed, in bins of equal length, and the gaps."""
    first_s = min(connection.began_s for connection in connections)
    last_s = max(connection.began_s for connection in connections)
    bin_s = max(BIN_MIN_S, round((last_s - first_s) / BINS_MAX, 2))
    bins = int((last_s - first_s) / bin_s) + 1
    answered: dict[str, list[int]] = {}
    failed = [0] * bins
    for connection in connections:
        at = int((connection.began_s - first_s) / bin_s)
        if connection.host_id is None:
            failed[at] += 1
        else:
            answered.setdefault(str(connection.host_id), [0] * bins)[at] += 1
    return {
        "from_s": round(first_s, 4),
        "bin_s": bin_s,
        "answered": dict(sorted(answered.items(), key=lambda item: int(item[0]))),
        "failed": failed,
        "gaps": gaps(connections),
    }
