"""``python -m tests.simulator --seeds 1000``: many episodes, a table by kind of fault."""

import argparse
import multiprocessing
import sys
import time
from collections import defaultdict

from tests.simulator.episode import Result, run_seed


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


def main() -> int:
    """Exit status 1 when any guarantee was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many episodes")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    began = time.monotonic()
    results: list[Result] = []
    with multiprocessing.Pool(arguments.jobs) as pool:
        for result in pool.imap_unordered(run_seed, seeds, chunksize=1):
            results.append(result)
            for violation in result.violations:
                print(f"{result.kind}, {result.hosts} hosts: {violation}")
            if result.violations:
                print(f"  replay: {result.replay_command}")
    print(table(sorted(results, key=lambda one: one.seed)))
    print(f"{len(results)} episodes in {time.monotonic() - began:.0f} s")
    return 1 if any(one.violations for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
