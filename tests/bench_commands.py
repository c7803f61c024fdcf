"""How long every command takes to answer when it has nothing to wait for.

``python -m tests.bench_commands [ROUNDS]`` runs each verb with --help, and those that need neither
agent nor lab; median of the rounds in ms, the slowest first.  One round before them compiles the
modules, as pip does when it installs them, whatever PYTHONDONTWRITEBYTECODE says.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from labs.cli import lab
from softnlb.cli import cli

LIMIT_MS = 150
CONFIG = """\
[cluster]
ip_address = "10.1.0.100/24"
[host]
id = 2
interface = "eth0"
dedicated_ip_address = "10.1.0.2/24"
"""

AT_REST: tuple[tuple[str, ...], ...] = (
    ("--version",),
    ("ip2mac", "10.1.0.100"),
    ("query",),
    ("display",),
    ("events",),
    ("config", "check", "host.toml"),
    ("config", "schema"),
    ("explain", "tcp 10.0.0.7:40000 10.1.0.100:80", "--config", "host.toml"),
    ("cleanup",),
    ("lab", "list"),
    ("lab", "status"),
    ("lab", "hint"),
    ("lab", "check"),
    ("lab", "init"),
    ("lab", "schema"),
)
"""Commands that neither an agent nor a lab keeps waiting; some end with "is not running".  Not the
doctor: the kernel has him wait, until it has checked the eBPF programs."""

BEGUN = {"lab": 1, "seed": 0, "name": "lab", "lang": "en", "step": 0, "stage": "guess", "hints": 0}
"""A student in the first lab of the course, who asks for a hint."""


def verbs() -> list[tuple[str, ...]]:
    """Every verb of the command line, the groups among them."""
    return [*_below(cli, ()), *_below(lab, ("lab",))]


def _below(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _below(below, (*words, name))


def took_ms(words: tuple[str, ...], directory: Path, rounds: int) -> float:
    """The median time of one command line, from fork to exit."""
    taken = []
    environment = os.environ | {f"SOFTNLB_{what}_DIR": str(directory) for what in ("RUN", "STATE")}
    environment |= {"SOFTNLB_COURSE": str(directory / "course.json")}
    environment |= {"XDG_RUNTIME_DIR": str(directory)}
    environment |= {"PYTHONPYCACHEPREFIX": str(directory / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    softnlb = str(Path(sys.executable).with_name("softnlb"))
    for _ in range(1 + rounds):
        began_s = time.perf_counter()
        subprocess.run(
            [softnlb, *words], cwd=directory, env=environment, capture_output=True, check=False
        )
        taken.append((time.perf_counter() - began_s) * 1000)
    return statistics.median(taken[1:])


def _ms(words: list[str]) -> float:
    began_s = time.perf_counter()
    subprocess.run(words, check=True)
    return (time.perf_counter() - began_s) * 1000


def main(arguments: list[str]) -> int:
    """Print the table; exit status 1 when a command is slower than the limit."""
    rounds = int(arguments[0]) if arguments else 5
    lines = [(*words, "--help") for words in verbs()] + list(AT_REST)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "host.toml").write_text(CONFIG)
        student = {"student": "somebody", "labs": {}, "current": BEGUN}
        (directory / "course.json").write_text(json.dumps(student))
        found = {" ".join(words): took_ms(words, directory, rounds) for words in lines}
    for words, ms in sorted(found.items(), key=lambda pair: -pair[1]):
        print(f"{ms:7.0f} ms  softnlb {words}")
    empty_ms = statistics.median(_ms([sys.executable, "-c", "pass"]) for _ in range(rounds))
    print(f"{empty_ms:7.0f} ms  python -c pass")
    slow = [words for words, ms in found.items() if ms > LIMIT_MS]
    print(f"{len(found)} command lines, {len(slow)} above {LIMIT_MS} ms")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
