"""``python -m tests.simulator --seeds 1000``: many episodes, a table by kind of fault."""

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

from tests.simulator.episode import Result, run_seed
from tests.simulator.faults import options
from tests.simulator.scenario import play
from tests.simulator.shrink import shrink, to_lines

FRESH_SEEDS = range(1_000_000, 1_000_000_000)
SHRUNK_MAX = 3
TELL_EVERY_S = 60


def table(results: list[Result]) -> str:
    """Episodes, steps and steps per second and core, per kind of fault."""
    rows: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        rows[result.kind].append(result)
    rows["all"] = results
    lines = [f"{'fault':<12} {'episodes':>8} {'steps':>10} {'steps/s/core':>12} {'violated':>8}"]
    for kind, group in rows.items():
        steps = sum(one.steps for one in group)
        seconds = sum(one.seconds for one in group) or 1e-9
        bad = sum(bool(one.violations) for one in group)
        lines.append(f"{kind:<12} {len(group):>8} {steps:>10} {steps / seconds:>12.0f} {bad:>8}")
    return "\n".join(lines)


def write_shrunk(result: Result) -> Path:
    """The failing episode, made small, as a scenario file in the current directory."""
    lines = to_lines(result.seed, shrink(result.seed, options(result.seed)))
    why = "; ".join(sorted({violation.guarantee for violation in result.violations}))
    path = Path(f"failed-{result.seed}.txt")
    path.write_text(play("\n".join([f"# Seed {result.seed} violated: {why}.", *lines])))
    return path


def main() -> int:
    """Exit status 1 when any guarantee was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many episodes")
    parser.add_argument("--start", default="0", help="the first seed, or 'fresh': one never tried")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    first = random.choice(FRESH_SEEDS) if arguments.start == "fresh" else int(arguments.start)
    seeds = range(first, first + arguments.seeds)
    print(f"seeds from {first} to {first + arguments.seeds - 1}", flush=True)
    began = told = time.monotonic()
    results: list[Result] = []
    try:
        with multiprocessing.Pool(arguments.jobs) as pool:
            for result in pool.imap_unordered(run_seed, seeds, chunksize=1):
                results.append(result)
                for violation in result.violations:
                    print(f"{result.kind}, {result.hosts} hosts: {violation}")
                if result.violations:
                    print(f"  replay: {result.replay_command}", flush=True)
                if time.monotonic() > told + TELL_EVERY_S:
                    told = time.monotonic()
                    print(f"{len(results)} episodes after {told - began:.0f} s", flush=True)
    except KeyboardInterrupt:
        print("interrupted: what follows is about the episodes that were done")
    print(table(sorted(results, key=lambda one: one.seed)))
    print(f"{len(results)} episodes in {time.monotonic() - began:.0f} s")
    failed = [one for one in results if one.violations]
    for one in failed[:SHRUNK_MAX]:
        print(f"seed {one.seed}, as small as possible: {write_shrunk(one)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
