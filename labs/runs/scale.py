"""Scale: from 2 to 32 hosts in three modes, frames per port and CPU per host, beside the theory."""

import statistics
from pathlib import Path
from typing import Any

import click

from labs.experiment import (
    await_converged,
    burst,
    busy_ns,
    children,
    either_family,
    lab_for,
    options,
    own_name,
    pause,
    print_table,
    wait_until,
)
from labs.load import Traffic
from labs.topology import HOSTS_MAX, LabSpec
from labs.witness import FrameCounters
from modes.plan import Mode
from softnlb.cli_common import print_json
from softnlb.errors import UsageError

SIZES = (2, 4, 8, 16, 32)
PER_HOST = 60
"""HTTP requests per host: the load grows with the cluster, as it would."""

TOGETHER = 16
"""Connections at a time: few, so that no frame waits long enough to be sent again."""

SETTLE_S = 0.1
OFF_PERCENT = 10.0
"""A port whose frames differ by more from the theory makes the run fail."""

LESSON = """\
Theory: with L requests per host, each of f frames, every port carries all N x L x f of them, and
its host throws all but L x f away.  Its filter looks at each, so its CPU time is c x N x L x f: it
grows with N although every host serves as many clients as before.  f is the mean of the run, c the
median of the mode.  IGMP with snooping by MAC address spares the bystander, and no host."""


def measure(hosts: int, mode: Mode, per_host: int) -> dict[str, Any]:
    """One lab of that size: requests from client1, what ports carried and filters worked."""
    spec = LabSpec(
        name=own_name(f"scale-{mode}-{hosts}"),
        hosts=hosts,
        mode=mode,
        switch="mac" if mode == Mode.IGMP else "dumb",
        timers="fast",
        data_plane="nfqueue",
        affinity="none",
        record=False,
    )
    with lab_for(None, spec) as lab:
        await_converged(lab, list(range(1, hosts + 1)), 60.0)
        counters = FrameCounters(lab)
        filters = [pid for host in lab.status()["hosts"] for pid in children(int(host["pid"]))]
        burst(lab, Traffic(burst=2 * hosts, timeout_s=15.0))  # who works for the first time is slow
        before, began_ns = counters.read(), sum(map(busy_ns, filters))
        result = burst(lab, Traffic(burst=hosts * per_host, concurrency=TOGETHER, timeout_s=15.0))
        after, busy = counters.read(), _settled_ns(filters) - began_ns
    passed = {
        port: {way: after[port][way] - before[port][way] for way in ("in", "out")} for port in after
    }
    carried = [passed[f"host{n}"]["out"] for n in range(1, hosts + 1)]
    return {
        "hosts": hosts,
        "mode": str(mode),
        "requests": len(result.new),
        "answered": len(result.new) - len(result.failed()),
        "client_frames": passed["router"]["in"],
        "frames_per_port": round(statistics.mean(carried), 1),
        "frames_per_port_min": min(carried),
        "frames_per_port_max": max(carried),
        "bystander_frames": passed["bystander"]["out"],
        "cpu_ms_per_host": round(busy / hosts / 1e6, 2),
    }


def _settled_ns(filters: list[int]) -> int:
    """The time that filters have worked, once their queues are empty."""
    before = -1

    def rested() -> int:
        nonlocal before
        pause(SETTLE_S)
        was, before = before, sum(map(busy_ns, filters))
        return before if before == was else 0

    return wait_until(rested, 30.0, "the filters have caught up")


def beside_theory(rows: list[dict[str, Any]], per_host: int) -> None:
    """Add to each row what the theory says: frames per port, and CPU per host of its mode."""
    frames_per_request = sum(r["client_frames"] for r in rows) / sum(r["requests"] for r in rows)
    for row in rows:
        row["frames_per_port_theory"] = round(row["hosts"] * per_host * frames_per_request, 1)
        row["cpu_us_per_frame"] = round(1000 * row["cpu_ms_per_host"] / row["frames_per_port"], 2)
    for mode in {row["mode"] for row in rows}:
        own = [row for row in rows if row["mode"] == mode]
        cost_us = statistics.median(row["cpu_us_per_frame"] for row in own)
        for row in own:
            row["cpu_ms_per_host_theory"] = round(cost_us * row["frames_per_port_theory"] / 1000, 2)


def off_percent(row: dict[str, Any]) -> float:
    """By how much the port that differs most carried more or less than the theory says."""
    theory: float = row["frames_per_port_theory"]
    ends = (row["frames_per_port_min"], row["frames_per_port_max"])
    off: float = max(abs(100 * (end / theory - 1)) for end in ends)
    return off


def scale(sizes: tuple[int, ...], per_host: int) -> list[dict[str, Any]]:
    """A row for each mode and size."""
    rows = [measure(hosts, mode, per_host) for mode in Mode for hosts in sizes]
    beside_theory(rows, per_host)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Measured and theory side by side."""
    heads = ["mode", "hosts", "requests", "frames per port", "theory", "bystander"]
    heads += ["CPU per host, ms", "theory", "us per frame"]
    table = [
        (
            row["mode"],
            row["hosts"],
            row["requests"],
            f"{row['frames_per_port']:,.0f}",
            f"{row['frames_per_port_theory']:,.0f}",
            f"{row['bystander_frames']:,}",
            f"{row['cpu_ms_per_host']:.1f}",
            f"{row['cpu_ms_per_host_theory']:.1f}",
            row["cpu_us_per_frame"],
        )
        for row in rows
    ]
    print_table("What flooding costs as the cluster grows", heads, table, LESSON)


def _sizes(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        sizes = ()
    if len(sizes) < 2 or not 2 <= sizes[0] <= sizes[-1] <= HOSTS_MAX:
        raise click.BadParameter(f"{text}: two or more numbers from 2 to {HOSTS_MAX}, as 2,4,8")
    return sizes


@click.command(help=__doc__)
@either_family
@click.option(
    "--hosts", "sizes", default=",".join(map(str, SIZES)), show_default=True, callback=_sizes
)
@click.option(
    "--per-host", type=click.IntRange(1, 1000), default=PER_HOST, show_default=True,
    help="HTTP requests per host.",
)  # fmt: skip
@click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg|FILE.png",
    help="Draw it, too; needs softnlb[report].",
)
@options
def command(
    name: str | None, as_json: bool, sizes: tuple[int, ...], per_host: int, figure: Path | None
) -> int:
    """Entry point of ``softnlb lab run scale``."""
    if name is not None:
        raise UsageError("this experiment starts labs of its own: leave --name out")
    rows = scale(sizes, per_host)
    if figure is not None:
        from labs.report.build import draw_growth

        draw_growth(rows, figure)
    if as_json:
        print_json({"run": "scale", "rows": rows})
    else:
        show(rows)
    unanswered = sum(row["requests"] - row["answered"] for row in rows)
    return int(unanswered > 0 or any(off_percent(row) > OFF_PERCENT for row in rows))
