"""From what clients noted to a class: no outage, reconnect, long wait.  Pure."""

import itertools
from dataclasses import dataclass
from typing import Any

FAULTS = {
    "kill": "server killed",
    "unplug": "cable pulled",
    "app-down": "service stopped",
    "maintenance": "maintenance",
}

NO_OUTAGE, RECONNECT, LONG_WAIT = "no outage", "reconnect", "long wait"

BARELY_S = 2.0
"""A pause shorter than this is no outage, when nothing broke: one lost SYN costs a second."""

LONG_S = 10.0
"""A user who waits longer than this has given up."""

Record = list[Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one client went through.  ``pause_s``: the longest time between two answers; when none
    came any more, until the end of the measurement, and ``over`` is False."""

    outcome: str
    pause_s: float
    failed: int
    over: bool = True
    from_s: float = 0.0
    """When the longest pause began."""


def judge(records: list[Record], fault_s: float, end_s: float, tries: bool = True) -> Seen:
    """One client that works off one operation after the other.

    ``fault_s``: when the fault was injected; what was before is no matter.  ``tries``: a failed
    operation is one that somebody notices; False for ping, which only knows pauses.
    """
    answered = sorted(record[1] for record in records if record[3] is None)
    before = [moment for moment in answered if moment <= fault_s]
    after = [moment for moment in answered if moment > fault_s]
    moments = [before[-1] if before else fault_s, *after]
    pauses = [(b - a, a) for a, b in itertools.pairwise(moments)]
    over = True
    last_s = end_s - moments[-1]
    if last_s > BARELY_S:
        pauses.append((last_s, moments[-1]))
        over = last_s <= max((pause for pause, _ in pauses[:-1]), default=0.0)
    pause_s, from_s = max(pauses, default=(end_s - fault_s, fault_s))
    failed = sum(
        record[3] is not None and record[1] > fault_s and record[1] < end_s - 0.5
        for record in records
    )
    if pause_s > LONG_S:
        outcome = LONG_WAIT
    elif (failed and tries) or pause_s > BARELY_S:
        outcome = RECONNECT
    else:
        outcome = NO_OUTAGE
    return Seen(outcome, round(pause_s, 2), failed, over, round(from_s, 4))


def judge_many(records: list[Record], fault_s: float, end_s: float) -> Seen:
    """Many clients, each with one connection: when did the last that failed give up?"""
    failed = [record for record in records if record[3] is not None and record[0] > fault_s - 1.0]
    if not failed:
        return Seen(NO_OUTAGE, 0.0, 0, True, fault_s)
    last_s = max(record[1] for record in failed)
    over = max(record[0] for record in failed) < end_s - 3.0
    pause_s = (last_s if over else end_s) - fault_s
    outcome = RECONNECT if over and pause_s <= LONG_S else LONG_WAIT
    return Seen(outcome, round(max(0.0, pause_s), 2), len(failed), over, fault_s)


def share_failed(records: list[Record], from_s: float, until_s: float) -> float:
    """Share of the many clients' connections between two moments that failed, 0 to 1."""
    there = [record for record in records if from_s < record[0] < until_s]
    return sum(record[3] is not None for record in there) / len(there) if there else 0.0
