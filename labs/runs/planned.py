"""Planned: hosts are stopped and drained under load, and a keepalived pair in the same lab, too."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import quantiles
from typing import Any

import click

from labs.experiment import (
    Experiment,
    ask_agent,
    await_converged,
    either_family,
    finish,
    host_ids,
    in_a_lab,
    pause,
    print_table,
    traffic,
    wait_until,
)
from labs.handle import LabHandle, Task
from labs.load import Connection, Traffic
from labs.timeline import longest_gap_s
from labs.topology import LabSpec

HOSTS, TIMES, RATE, TIMEOUT_S, SETTLE_S = 8, 5, 150.0, 5.0, 0.8
SLOW_S, GAP_LIMIT_S = 0.9, 0.05
"""A connect of a second or more had its SYN retransmitted."""

OTHER_ADDRESS, ADVERT_S, PAIR = "10.1.0.90", 0.1, ("host1", "host2")
"""keepalived's own address: the service listens on every address of a host."""

LESSON = """\
A SYN that comes while its bucket changes hands meets nobody, and is sent again after a second.  The
gap of a bucket is what the heartbeats say, from release to take-over; the gap of the clients is
from the first such SYN to the last one of one change."""


@dataclass
class Row:
    """What clients saw of several changes of one kind."""

    change: str
    new: list[Connection] = field(default_factory=list)
    client_gaps_s: list[float] = field(default_factory=list)
    bucket_gaps_s: list[float] = field(default_factory=list)
    skipped: str = ""

    def facts(self) -> dict[str, Any]:
        """For the table and for --json."""
        if self.skipped:
            return {"change": self.change, "skipped": self.skipped}
        percent = quantiles([one.took_s for one in self.new], n=100)
        return {
            "change": self.change,
            "changes": len(self.client_gaps_s),
            "new_connections": len(self.new),
            "failed": sum(one.host_id is None for one in self.new),
            "took_a_second_or_more": sum(one.took_s >= SLOW_S for one in self.new),
            "median_ms": round(percent[49] * 1000, 1),
            "p99_ms": round(percent[98] * 1000, 1),
            "longest_client_gap_s": round(max(self.client_gaps_s), 3),
            "longest_bucket_gap_s": round(max(self.bucket_gaps_s), 4)
            if self.bucket_gaps_s
            else None,
        }


@contextmanager
def _watched(lab: LabHandle, row: Row, plan: Traffic) -> Iterator[None]:
    """Clients at work during one change."""
    with traffic(lab, plan) as task:
        pause(0.3)
        yield
        pause(SETTLE_S)
        result = finish(task)
    slow = [one.began_s for one in result.new if one.host_id is None or one.took_s >= SLOW_S]
    row.new += result.new
    row.client_gaps_s.append(max(slow) - min(slow) if slow else 0.0)


def _ours(lab: LabHandle, verb: str, times: int) -> Row:
    row = Row(f"softnlb {verb}")
    everybody = host_ids(lab.status(), "converged")
    arguments: dict[str, Any] = {"timeout_s": None} if verb == "drainstop" else {}
    for number in range(times):
        victim = everybody[1 + number % (len(everybody) - 1)]
        others = [each for each in everybody if each != victim]
        began_s = time.monotonic()
        with _watched(lab, row, Traffic(rate=RATE, timeout_s=TIMEOUT_S)):
            ask_agent(lab, f"host{victim}", verb, **arguments)
            await_converged(lab, others)
        events = [json.loads(line) for line in lab.events().splitlines()]
        row.bucket_gaps_s.append(longest_gap_s(events, began_s, time.monotonic()))
        _await_stopped(lab, victim)
        ask_agent(lab, f"host{victim}", "start", force=False)
        await_converged(lab, everybody)
    return row


def _await_stopped(lab: LabHandle, victim: int) -> None:
    def stopped() -> bool:
        return victim in host_ids(lab.status(), "stopped")

    wait_until(stopped, 20.0, f"host{victim} stops")


def _theirs(lab: LabHandle, times: int) -> Row:
    from labs.compare import components

    row = Row("keepalived stop")
    if shutil.which("keepalived") is None:
        row.skipped = "keepalived is not installed"
        return row
    if lab.spec().ipv6:
        row.skipped = "the pair has an IPv4 address"
        return row
    run: Callable[[str], Task] = lambda name: components.keepalived(  # noqa: E731
        lab, name, OTHER_ADDRESS, PAIR.index(name) + 1, ADVERT_S
    )
    daemons = {name: run(name) for name in PAIR}
    plan = Traffic(rate=RATE, timeout_s=TIMEOUT_S, server=(OTHER_ADDRESS, 80))
    for _ in range(times):
        master = components.await_master(lab, PAIR, OTHER_ADDRESS)
        pause(1.0)
        with _watched(lab, row, plan):
            daemons[master].stop()
        daemons[master] = run(master)
    for task in daemons.values():
        task.stop()
    return row


def measure(lab: LabHandle, times: int = TIMES) -> dict[str, Any]:
    """Stop, drainstop and keepalived's clean stop, one after the other in one lab."""
    rows = [_ours(lab, "stop", times), _ours(lab, "drainstop", times), _theirs(lab, times)]
    return {"limit_s": GAP_LIMIT_S, "changes": [row.facts() for row in rows]}


def good(result: dict[str, Any]) -> bool:
    """Whether ours failed nothing and kept the limit of a bucket's gap."""
    return all(
        row["failed"] == 0 and row["longest_bucket_gap_s"] <= result["limit_s"]
        for row in result["changes"][:2]
    )


def show(result: dict[str, Any]) -> None:
    """The kinds of change side by side."""
    results = result["changes"]
    keys = [key for key in results[0] if key != "change"]
    rows = [
        (key.replace("_", " "), *(row.get(key, row.get("skipped", "")) for row in results))
        for key in keys
    ]
    heads = ["", *(row["change"] for row in results)]
    print_table(f"Planned changes, keepalived's advert {ADVERT_S:g} s", heads, rows, LESSON)


@in_a_lab
@click.option("--times", default=TIMES, show_default=True, help="Changes of each kind.")
@either_family
def command(times: int) -> Experiment[Any]:
    """Entry point of ``softnlb lab run planned``."""
    spec = LabSpec(hosts=HOSTS, timers="fast", affinity="none")
    return Experiment(spec, partial(measure, times=times), show, good)
