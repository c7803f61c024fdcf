"""Compare: ways of spreading clients, with real components, the same clients and faults."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labs.compare.judge import FAULTS
from labs.namespaces import die_with_parent
from softnlb.cli_common import print_json
from softnlb.errors import SoftnlbError, UsageError

if TYPE_CHECKING:
    from labs.compare.methods import Method

LIMIT_S = 240.0
"""For one measurement, its repetitions included."""

Job = tuple[str, str]
"""Method and fault; the method "gaps" measures keepalived against its reference."""


def jobs_of(methods: Sequence["Method"], faults: Sequence[str]) -> list[Job]:
    """What to measure, the longest first so that the end is not spent waiting for one."""
    from labs.compare.cell import GAP_FAULTS

    jobs = [(method.name, fault) for method in methods for fault in ("steady", *faults)]
    if any(method.name == "ip-failover" for method in methods):
        jobs += [("gaps", fault) for fault in GAP_FAULTS]
    weight = {"gaps": 3, "dns-rr": 2, "nlb": 1}
    return sorted(
        jobs, key=lambda job: -weight.get(job[0].partition("-")[0], weight.get(job[0], 0))
    )


def measure(jobs: list[Job], out: Path, parallel: int) -> list[dict[str, Any]]:
    """Carry out the jobs, ``parallel`` at a time, each in a process of its own."""
    from softnlb.progress import hush, waiting

    to_do, results = list(jobs), []
    running: dict[subprocess.Popen[str], tuple[Job, float]] = {}
    while to_do or running:
        while to_do and len(running) < parallel:
            job = to_do.pop(0)
            process = subprocess.Popen(
                [sys.executable, "-m", "labs.compare", *job, str(out)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).resolve().parent.parent.parent,
                preexec_fn=die_with_parent,
            )
            running[process] = job, time.monotonic()
        waiting(f"{len(running)} running, {len(to_do)} to come")
        ended = _next_to_end(running)
        hush()
        job, began_s = running.pop(ended)
        output, _ = ended.communicate()
        results.append(_result(job, output))
        state = results[-1].get("error") or f"{time.monotonic() - began_s:.0f} s"
        done = len(results)
        print(f"  {done:3d}/{len(jobs)}  {job[0]}, {job[1]}: {state}", file=sys.stderr, flush=True)
    return results


def _told(jobs: list[Job], out: Path, parallel: int) -> list[dict[str, Any]]:
    from softnlb.progress import step, steps

    with steps():
        step(f"{len(jobs)} measurements, {parallel} at a time")
        return measure(jobs, out, parallel)


def _next_to_end(running: dict["subprocess.Popen[str]", tuple[Job, float]]) -> Any:
    import select

    while True:
        pipes = {process.stdout: process for process in running if process.stdout is not None}
        readable, _, _ = select.select(list(pipes), [], [], 1.0)
        if readable:
            return pipes[readable[0]]
        for process, (_, began_s) in running.items():
            if time.monotonic() - began_s > LIMIT_S:
                process.kill()
                return process


def _result(job: Job, output: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(output)
    except ValueError:
        found = {"error": "the measurement ended without a result"}
    return {"method": job[0], "fault": job[1], **found}


def compare(
    methods: Sequence["Method"], faults: Sequence[str], out: Path, parallel: int
) -> dict[str, Any]:
    """The whole comparison."""
    from labs.bench.apart import apart

    began_s = time.monotonic()
    skipped = {method.name: reason for method in methods if (reason := method.skipped())}
    able = [method for method in methods if method.name not in skipped]
    for name, reason in skipped.items():
        print(f"  skipped  {name}: {reason}", file=sys.stderr)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SoftnlbError(f"{out}: {error.strerror}") from error
    jobs = jobs_of(able, faults)
    # Whatever happens to this process, the kernel ends every lab with it.
    results = apart(lambda: _told(jobs, out.resolve(), parallel))
    return {
        "run": "compare",
        "took_s": round(time.monotonic() - began_s, 1),
        "methods": {method.name: method.title for method in methods},
        "short": {method.name: method.short for method in methods},
        "balancing": {method.name: method.balancing for method in methods},
        "skipped": skipped,
        "faults": {fault: FAULTS[fault] for fault in faults},
        "cells": [result for result in results if result["method"] != "gaps"],
        "keepalived_gaps": [result for result in results if result["method"] == "gaps"],
    }


def _chosen(names: tuple[str, ...]) -> list["Method"]:
    from labs.compare.methods import METHODS

    known = [method.name for method in METHODS]
    for name in names:
        if name not in known:
            raise UsageError(f"--method {name}: expected one of {', '.join(known)}")
    return [method for method in METHODS if not names or method.name in names]


@click.command(help=__doc__)
@click.option("--method", "methods", multiple=True, help="Only this one; may be repeated.")
@click.option("--fault", "faults", multiple=True, type=click.Choice(list(FAULTS)))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the page, results, event logs and captures go.  Default: compare-DATE.",
)
@click.option("--parallel", type=click.IntRange(1, 16), help="Measurements at a time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    methods: tuple[str, ...],
    faults: tuple[str, ...],
    out: Path | None,
    parallel: int | None,
    as_json: bool,
) -> int:
    """Entry point of ``softnlb lab run compare``."""
    from labs.compare.cell import save
    from labs.compare.page import page
    from labs.compare.tables import show

    out = out or Path(time.strftime("compare-%Y%m%d-%H%M%S"))
    chosen = [fault for fault in FAULTS if not faults or fault in faults]
    results = compare(_chosen(methods), chosen, out, parallel or (os.cpu_count() or 1) + 1)
    save(results, out / "results.json")
    (out / "index.html").write_text(page(results))
    if as_json:
        print_json(results)
    else:
        show(results, out)
    return int(any("error" in each for each in (*results["cells"], *results["keepalived_gaps"])))
