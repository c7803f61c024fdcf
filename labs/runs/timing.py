"""Timing: how long `lab up` takes until all hosts are converged, and `lab down`."""

import subprocess
import sys
import time
from typing import Any

import click

from labs.experiment import either_family, ipv6_chosen, options, own_name, print_table
from softnlb.cli_common import print_json
from softnlb.errors import SoftnlbError, UsageError

SIZES = (4, 32)
LIMIT_S = {4: 2.0, 32: 4.0}
DOWN_LIMIT_S = 1.0


def _timed(*words: str) -> float:
    """Seconds that a command of ours takes from start to end."""
    began = time.monotonic()
    command = [sys.executable, "-m", "labs.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SoftnlbError(f"softnlb lab {' '.join(words)}: {done.stderr.strip()}")
    return time.monotonic() - began


def measure(sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """Up with fast timers and down again, per size."""
    results = []
    family = ["--ipv6"] if ipv6_chosen() else []
    for hosts in sizes:
        name = own_name(f"timing-{hosts}")
        choices = ["--hosts", str(hosts), "--timers", "fast", *family]
        up_s = _timed("up", *choices, "--name", name, "--json")
        down_s = _timed("down", "--name", name)
        results.append(
            {
                "hosts": hosts,
                "up_s": round(up_s, 2),
                "up_limit_s": LIMIT_S.get(hosts),
                "down_s": round(down_s, 2),
                "down_limit_s": DOWN_LIMIT_S,
            }
        )
    return results


@click.command(help=__doc__)
@either_family
@options
def command(name: str | None, as_json: bool) -> None:
    """Entry point of ``softnlb lab run timing``."""
    if name is not None:
        raise UsageError("this experiment starts labs of its own: leave --name out")
    results = measure()
    if as_json:
        print_json({"run": "timing", "labs": results})
        return
    rows = [tuple(result.values()) for result in results]
    heads = ["hosts", "up and converged, s", "limit", "down, s", "limit"]
    print_table("A lab from nothing, commands included", heads, rows)
