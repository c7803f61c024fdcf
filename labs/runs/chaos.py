"""Chaos: hosts are killed, paused, cut off, drained under load; every gap has its cause."""

import time
from statistics import median
from typing import Any

import click

from labs.chaos import FAULTS, PLANNED, Act, Judgement, Played, judge, plan
from labs.experiment import (
    ask_agent,
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
    wait_until,
    witness,
)
from labs.handle import LabHandle
from labs.load import Held, Result, Traffic
from labs.runs.changes import set_load_weight
from labs.topology import DATA_PLANES, TIMERS, LabSpec
from labs.witness import Answered, answered
from softnlb.cli_common import print_json
from softnlb.errors import UsageError
from softnlb.progress import step

HOLD, RATE, LIFETIME_S, TIMEOUT_S, SETTLE_S = 100, 100.0, 6.0, 0.5, 0.7

MERGE_PERIODS = 2.5
"""Two, and half a one for a SYN-ACK that was on its way."""

UNDO = {
    "kill": "start",
    "agent-kill": "start",
    "stop": "cont",
    "freeze": "thaw",
    "unplug": "replug",
    "partition": "heal",
    "mute": "heal",
    "deaf": "heal",
    "loss": "heal",
}

LESSON = """\
Answered by two hosts, broken by a planned change, and whatever no fault accounts for: each of these
has to be 0.  A fault breaks the connections of its victims, if it takes their kernel or their
cable; an agent that dies or sleeps breaks none.  A host that was cut off serves alone, as in NLB:
when it is back, two hosts may answer for two periods.  A new connection may fail only while buckets
change hands: for the detection time and a moment after a fault, for a moment after a change.  Its
client tries again; others are served meanwhile."""


class Player:
    """Plays acts on a lab whose hosts are all converged, and puts everything back."""

    def __init__(self, lab: LabHandle) -> None:
        self._lab = lab
        self._everybody = host_ids(lab.status(), "converged")
        period_ms, tolerance = TIMERS[lab.spec().timers]
        self._detection_s = period_ms * tolerance / 1000

    def play(self, act: Act) -> Played:
        """Carry out one act, undo it, wait until all hosts are one cluster again."""
        names = [f"host{victim}" for victim in act.victims]
        began_s = time.monotonic()
        self._apply(act, names)
        applied_s = time.monotonic()
        self._hold(act)
        undoing_s = time.monotonic()
        self._undo(act, names)
        undone_s = time.monotonic()
        await_converged(self._lab, self._everybody, 30.0 + 10 * self._detection_s)
        converged_s = time.monotonic()
        pause(SETTLE_S)
        return Played(act, began_s, applied_s, undoing_s, undone_s, converged_s)

    def _apply(self, act: Act, names: list[str]) -> None:
        lab = self._lab
        if act.kind == "weight":
            set_load_weight(lab, names[0], 100)
        elif act.kind == "drain-rule":
            ask_agent(lab, names[0], "drain", cluster_ip_address="all", port="all")
        elif act.kind == "drainstop":
            # Comes back before its last connection has ended.
            ask_agent(lab, names[0], "drainstop", timeout_s=None)
        elif act.kind == "join":
            # Drains until its clients are through, stops, and joins again.  The time-out is for
            # connections whose client gave up while the cable was out: their end comes late.
            ask_agent(lab, names[0], "drainstop", timeout_s=3 * LIFETIME_S)
        elif act.kind == "loss":
            lab.fault("loss", "10", *names)
        elif act.kind == "crash-loop":
            for _ in range(4):
                lab.fault("kill", *names)
                pause(act.hold_s / 8)
                lab.fault("start", *names)
                pause(act.hold_s / 8)
        else:
            lab.fault(act.kind, *names)

    def _hold(self, act: Act) -> None:
        if act.kind == "join":
            (victim,) = act.victims
            wait_until(
                lambda: victim in host_ids(self._lab.status(), "stopped"),
                5 * LIFETIME_S,
                f"host{victim} stopped after its last connection",
            )
        pause(act.hold_s)

    def _undo(self, act: Act, names: list[str]) -> None:
        lab = self._lab
        if act.kind == "weight":
            set_load_weight(lab, names[0], 50)
        elif act.kind == "drain-rule":
            ask_agent(lab, names[0], "enable", cluster_ip_address="all", port="all")
        elif act.kind in ("drainstop", "join"):
            ask_agent(lab, names[0], "start", force=False)
        elif act.kind in UNDO:
            lab.fault(UNDO[act.kind], *names)


def measure(
    lab: LabHandle, minutes: float, seed: int
) -> tuple[list[Played], Result, list[Answered]]:
    """Play acts for so long under load."""
    player, played = Player(lab), []
    load = Traffic(hold=HOLD, rate=RATE, lifetime_s=LIFETIME_S, timeout_s=TIMEOUT_S)
    acts = plan(host_ids(lab.status(), "converged"), seed)
    with witness(lab) as watching, traffic(lab, load) as task:
        began_s = time.monotonic()
        pause(SETTLE_S)
        while time.monotonic() < began_s + 60 * minutes:
            act = next(acts)
            victims = ", ".join(f"host{victim}" for victim in act.victims)
            played.append(player.play(act))
            took_s = played[-1].converged_s - played[-1].undone_s
            step(f"{act.kind} {victims} for {act.hold_s} s; one again after {took_s:.2f} s")
        pause(load.silence_s)
        result = finish(task)
        records = answered(watching.stop())
    return played, result, records


def figures(played: list[Played], judgement: Judgement) -> list[dict[str, Any]]:
    """One record per kind of act."""
    rows = []
    for kind in (*PLANNED, *FAULTS):
        of_kind = [each for each in played if each.act.kind == kind]
        if of_kind:
            took_s = [each.converged_s - each.undone_s for each in of_kind]
            rows.append(
                {
                    "kind": kind,
                    "planned": kind in PLANNED,
                    "acts": len(of_kind),
                    "failed": judgement.failed.get(kind, 0),
                    "longest_gap_s": judgement.gap_s.get(kind),
                    "broken_of_victims": judgement.broken.get(kind, 0),
                    "converged_after_median_s": round(median(took_s), 3),
                    "converged_after_most_s": round(max(took_s), 3),
                }
            )
    return rows


def verdicts(
    judgement: Judgement, result: Result, records: list[Answered]
) -> dict[str, int | list[str]]:
    """The guarantees, and what went against them."""
    return {
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "failed_unexplained": len(judgement.failed_unexplained),
        "long_connections": len(result.held),
        "broken_by_planned": [_broken(*pair) for pair in judgement.broken_by_planned],
        "broken_when_halves_met": judgement.broken_in_merges,
        "broken_unexplained": [_broken(*pair) for pair in judgement.broken_unexplained],
        "connections_watched": len(records),
        "answered_by_two_hosts": [_twice(*each) for each in judgement.twice],
        "answered_by_two_hosts_while_a_split_heals": judgement.twice_in_merges,
    }


def _broken(held: Held, played: Played | None) -> str:
    return f"{held.client}:{held.port} at host {held.host_id}, {held.error}, {_during(played)}"


def _twice(record: Answered, asked_s: float, played: Played | None) -> str:
    hosts = " and ".join(record.hosts)
    late = ""
    if played is not None:
        times = (one - played.undone_s for one in (asked_s, record.at_s))
        late = ", asked {:+.3f} s and answered again {:+.3f} s from its end".format(*times)
    return f"{record.client}:{record.port} by {hosts} {_during(played)}{late}"


def _during(played: Played | None) -> str:
    if played is None:
        return "while nothing was done"
    victims = ", ".join(f"host{victim}" for victim in played.act.victims)
    return f"during {played.act.kind} {victims}"


def show(rows: list[dict[str, Any]], seen: dict[str, int | list[str]], title: str) -> None:
    """What each kind of act did, then the guarantees."""
    heads = ["", "acts", "failed", "longest gap", "broken", "one again after", "at most"]
    table = [
        (
            row["kind"] + (" (planned)" if row["planned"] else ""),
            row["acts"],
            row["failed"],
            "" if row["longest_gap_s"] is None else f"{row['longest_gap_s']:.2f} s",
            row["broken_of_victims"],
            f"{row['converged_after_median_s']:.2f} s",
            f"{row['converged_after_most_s']:.2f} s",
        )
        for row in rows
    ]
    print_table(title, heads, table)
    lines = [
        (key.replace("_", " "), len(value) if isinstance(value, list) else value)
        for key, value in seen.items()
    ]
    print_table("Against the guarantees", ["", "connections"], lines, LESSON)
    for value in seen.values():
        if isinstance(value, list):
            for line in value:
                click.echo(line)


@click.command(help=__doc__)
@either_family
@options
@click.option("--hosts", default=8, show_default=True, help="Cluster hosts, 2 to 32.")
@click.option("--minutes", default=10.0, show_default=True, help="How long.")
@click.option("--seed", default=1, show_default=True, help="Another seed, another series of acts.")
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="auto", show_default=True)
def command(
    name: str | None, as_json: bool, hosts: int, minutes: float, seed: int, data_plane: str
) -> int:
    """Entry point of ``softnlb lab run chaos``."""
    if hosts < 2 or minutes <= 0:
        raise UsageError("chaos needs two hosts and some time")
    spec = LabSpec(name=own_name("chaos"), hosts=hosts, timers="fast", data_plane=data_plane)
    with lab_for(name, spec) as lab:
        period_ms, tolerance = TIMERS[lab.spec().timers]
        played, result, records = measure(lab, minutes, seed)
    slack_s = TIMEOUT_S + 2 * period_ms / 1000
    merge_s = MERGE_PERIODS * period_ms / 1000
    judgement = judge(
        played,
        result.new,
        result.held,
        records,
        detection_s=period_ms * tolerance / 1000,
        slack_s=slack_s,
        silence_s=Traffic().silence_s,
        merge_s=merge_s,
    )
    rows, seen = figures(played, judgement), verdicts(judgement, result, records)
    if as_json:
        facts = {"run": "chaos", "seed": seed, "hosts": hosts, "minutes": minutes}
        timers = {"period_ms": period_ms, "tolerance": tolerance}
        print_json({**facts, **timers, "acts": rows, **seen, "good": judgement.good})
    else:
        show(rows, seen, f"Chaos, {hosts} hosts, {minutes:g} minutes, seed {seed}")
    return int(not judgement.good)
