"""Chaos: a random but repeatable series of changes and faults, and the judgement of what they did.

Pure: the plan follows from the seed alone, the judgement from what clients and witness saw.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from labs.load import Connection, Held, gaps
from labs.witness import Answered

PLANNED = ("drainstop", "drain-rule", "weight", "join")
"""What an operator does on purpose: no connection may break by it."""

FAULTS = (
    "kill",
    "agent-kill",
    "stop",
    "freeze",
    "unplug",
    "partition",
    "mute",
    "deaf",
    "loss",
    "flush-rules",
    "crash-loop",
)
"""What happens to a host; the connections of its victims may break, nobody else's."""

SPARES_VICTIMS = ("agent-kill", "stop", "flush-rules")
"""Faults that leave the victim's kernel and its cable alone: not even its own may break."""

SPLITS = ("partition", "unplug", "deaf")
"""Faults that leave a host alone: it serves everything that reaches it, as NLB does, and when it is
back, double ownership ends within two periods."""

LASTING = ("loss", "crash-loop")
"""Faults that do harm for as long as they are held.  Any other strikes once: others serve what it
took as soon as it is detected, and buckets change hands once more when it is undone."""

OPENING_S = 0.1
"""A connection may be on its way, from its SYN to its answer, when an act begins."""

HOLD_S = {"stop": (0.2, 4.0), "freeze": (0.2, 4.0), "partition": (0.5, 4.0)}
"""How long a fault lasts, seconds; the same in general is USUAL_HOLD_S."""

USUAL_HOLD_S = (0.3, 3.0)


@dataclass(frozen=True, slots=True)
class Act:
    """One change or fault: on whom, and for how long, seconds."""

    kind: str
    victims: tuple[int, ...]
    hold_s: float


@dataclass(slots=True)
class Played:
    """An act as it was played, times in CLOCK_MONOTONIC seconds.

    From ``began_s`` to ``applied_s`` it was brought about, from ``undoing_s`` to ``undone_s`` put
    back; ``converged_s``: when all hosts were converged with each other again.
    """

    act: Act
    began_s: float
    applied_s: float
    undoing_s: float
    undone_s: float
    converged_s: float

    def changes(self, detection_s: float, slack_s: float) -> list[tuple[float, float]]:
        """From when to when it may cost a new connection: while buckets change hands."""
        until_s = self.converged_s + slack_s
        if self.act.kind in LASTING:
            return [(self.began_s - OPENING_S, until_s)]
        taken_s = self.applied_s + (detection_s if self.act.kind in FAULTS else 0.0) + slack_s
        return [(self.began_s - OPENING_S, taken_s), (self.undoing_s - OPENING_S, until_s)]


def plan(host_ids: Sequence[int], seed: int) -> Iterator[Act]:
    """Acts without end; every kind comes up once before any comes up again."""
    dice = random.Random(seed)
    while True:
        kinds = [*PLANNED, *FAULTS]
        dice.shuffle(kinds)
        for kind in kinds:
            count = 1
            if kind == "partition":
                count = dice.randint(1, max(1, len(host_ids) // 2))
            elif kind in ("kill", "stop", "freeze") and len(host_ids) > 3:
                count = dice.choice((1, 1, 2))
            victims = tuple(sorted(dice.sample(list(host_ids), count)))
            least_s, most_s = HOLD_S.get(kind, USUAL_HOLD_S)
            yield Act(kind, victims, round(dice.uniform(least_s, most_s), 2))


@dataclass(slots=True)
class Judgement:
    """What the acts did, against the guarantees.

    ``twice``: (record, when its client asked, the act that fell into or None), but for the two
    periods after the end of a split, ``twice_in_merges``; connections of others may break when the
    halves of a partition meet, ``broken_in_merges``; ``broken_unexplained`` and
    ``failed_unexplained``: what no act accounts for.
    """

    twice: list[tuple[Answered, float, Played | None]] = field(default_factory=list)
    twice_in_merges: int = 0
    broken_in_merges: int = 0
    broken_by_planned: list[tuple[Held, Played]] = field(default_factory=list)
    broken_unexplained: list[tuple[Held, Played | None]] = field(default_factory=list)
    failed_unexplained: list[Connection] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    gap_s: dict[str, float] = field(default_factory=dict)
    """The longest gap in the service by kind, while buckets changed hands once; others are served
    meanwhile.  Loss has none: a SYN is lost here and there."""

    @property
    def good(self) -> bool:
        """Whether every guarantee held."""
        return not (
            self.twice
            or self.broken_by_planned
            or self.broken_unexplained
            or self.failed_unexplained
        )


def judge(
    played: Sequence[Played],
    new: Sequence[Connection],
    held: Sequence[Held],
    records: Sequence[Answered],
    *,
    detection_s: float,
    slack_s: float,
    silence_s: float,
    merge_s: float,
) -> Judgement:
    """Everything that went wrong, each with the act that accounts for it.

    ``detection_s``: how long the death of a host goes unnoticed;
    ``merge_s``: how long two owners may be after a split has ended;
    ``slack_s``: how long after an act a client may still feel it (its time-out, a round);
    ``silence_s``: how long a held connection waits before it counts as broken.
    """
    judgement = Judgement()
    # A host that was cut off has to ask for the router's MAC address before it can send what it
    # decided long ago: what counts is when the client asked.
    asked_s: dict[tuple[str, int], list[float]] = {}
    opened = [(one.client, one.port, one.began_s) for one in new]
    opened += [(one.client, one.port, one.began_s) for one in held]
    for client, port, began_s in opened:
        asked_s.setdefault((client, port), []).append(began_s)
    for record in records:
        if len(record.hosts) > 1:
            asked = asked_s.get((record.client, record.port), ())
            moment_s = max((at_s for at_s in asked if at_s <= record.at_s), default=record.at_s)
            act = _act_over(played, moment_s, slack_s)
            ended_s = act.undone_s if act is not None and act.act.kind in SPLITS else None
            if ended_s is not None and moment_s <= ended_s + merge_s:
                judgement.twice_in_merges += 1
            else:
                judgement.twice.append((record, moment_s, act))
    for each in held:
        if each.error is not None and each.broken_s is not None:
            _judge_broken(judgement, played, each, slack_s, silence_s)
    _judge_failed(judgement, played, new, detection_s, slack_s)
    return judgement


def _act_over(played: Sequence[Played], at_s: float, slack_s: float) -> Played | None:
    """The latest act that has to do with what went on at that moment."""
    for each in reversed(played):
        if each.began_s <= at_s <= each.converged_s + slack_s:
            return each
    return None


def _judge_broken(
    judgement: Judgement, played: Sequence[Played], held: Held, slack_s: float, silence_s: float
) -> None:
    # A connection that fell silent is given up late, maybe in a later act than the one to blame.
    broken_s = held.broken_s or 0.0
    near = [
        each
        for each in played
        if each.began_s <= broken_s <= each.converged_s + silence_s + slack_s
    ]
    for each in reversed(near):
        kind = each.act.kind
        if kind in FAULTS and kind not in SPARES_VICTIMS and held.host_id in each.act.victims:
            judgement.broken[kind] = judgement.broken.get(kind, 0) + 1
            return
    act = near[-1] if near else None
    if (
        act is not None
        and act.act.kind == "partition"
        and act.began_s + act.act.hold_s <= broken_s <= act.converged_s + slack_s
    ):
        # The halves knew nothing of each other's connections until they had heard each other.
        judgement.broken_in_merges += 1
    elif act is not None and act.act.kind in PLANNED:
        judgement.broken_by_planned.append((held, act))
    else:
        judgement.broken_unexplained.append((held, act))


def _judge_failed(
    judgement: Judgement,
    played: Sequence[Played],
    new: Sequence[Connection],
    detection_s: float,
    slack_s: float,
) -> None:
    changes = sorted(
        (from_s, until_s, each.act.kind)
        for each in played
        for from_s, until_s in each.changes(detection_s, slack_s)
    )
    begins_s = [from_s for from_s, _, _ in changes]
    during: dict[int, list[Connection]] = {}
    for connection in new:
        latest = bisect_right(begins_s, connection.began_s) - 1
        if latest >= 0 and connection.began_s <= changes[latest][1]:
            during.setdefault(latest, []).append(connection)
        elif connection.host_id is None:
            judgement.failed_unexplained.append(connection)
    for index, connections in during.items():
        kind = changes[index][2]
        failed = sum(connection.host_id is None for connection in connections)
        judgement.failed[kind] = judgement.failed.get(kind, 0) + failed
        if kind != "loss":
            gap_s = max((until_s - from_s for from_s, until_s in gaps(connections)), default=0.0)
            judgement.gap_s[kind] = max(judgement.gap_s.get(kind, 0.0), round(gap_s, 3))
