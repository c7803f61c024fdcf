"""What takes long says what it is doing, on standard error.

Waiting for a host to stop: the connections that remain.  Anything else: its steps.  On a terminal
a bar or the seconds move; elsewhere, with NO_COLOR and on a dumb terminal there are plain lines.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from softnlb.control import call
from softnlb.errors import ReturnCode, SoftnlbError

POLL_S = 0.5
TICK_S = 0.25
LINE_EVERY_S = 10.0

Result = dict[str, Any]
Report = Callable[[int, float], None]
"""Shows the number of connections left and the longest idle time in seconds."""

ENDED = ("stopped", "suspended")


def wait_until_stopped(path: Path, quiet: bool = False) -> Result:
    """Poll the agent until its host is stopped, showing what it still serves (on stderr).

    Returns {"state", "message"}.  Raises SoftnlbError when the host was started again meanwhile,
    NotRunningError when its agent ended.
    """
    began_s = time.monotonic()
    with _reporter(path.stem, quiet) as report:
        while True:
            left = call(path, "connections")
            if left["state"] in ENDED:
                break
            if left["state"] == "converged":
                raise SoftnlbError(f"{path.stem} was started again: it is {left['state']}.")
            report(left["connections"], left["longest_idle_s"])
            time.sleep(POLL_S)
    waited_s = time.monotonic() - began_s
    return {"state": left["state"], "message": f"the host stopped after {waited_s:.1f} s"}


def _may_move() -> bool:
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not plain


@contextmanager
def _reporter(host: str, quiet: bool) -> Iterator[Report]:
    if quiet:
        yield lambda connections, longest_idle_s: None
    elif _may_move():
        with _bar(host) as report:
            yield report
    else:
        yield _Lines(host).report


class _Lines:
    """A line whenever the number changes, and every 10 s so that one sees it is alive."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._last: int | None = None
        self._said_s = 0.0

    def report(self, connections: int, longest_idle_s: float) -> None:
        now_s = time.monotonic()
        if connections == self._last and now_s - self._said_s < LINE_EVERY_S:
            return
        self._last, self._said_s = connections, now_s
        click.echo(f"{self._host}: {_left(connections, longest_idle_s)}", err=True)


def _left(connections: int, longest_idle_s: float) -> str:
    if connections == 0:
        return "no connections left"
    noun = "connection" if connections == 1 else "connections"
    return f"{connections} {noun} left, longest idle {longest_idle_s:.1f} s"


@contextmanager
def _bar(host: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(host), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    most = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("draining", total=None)

        def report(connections: int, longest_idle_s: float) -> None:
            nonlocal most
            most = max(most, connections)
            progress.update(
                task,
                total=most or 1,
                completed=most - connections,
                description=_left(connections, longest_idle_s),
            )

        yield report


CHANGE_POLL_S = 0.05
CHANGE_SLACK_S = 30.0
"""Beyond the time-out that the agent itself keeps, until the cluster has converged."""


def wait_for_change(path: Path, timeout_s: float, quiet: bool = False) -> Result:
    """Poll the agent until the change that was begun there is done or aborted (see Changes.status).

    Tells on stderr which hosts have still to stage it.  Returns when the host has converged again
    and its file says so.
    """
    give_up_s = time.monotonic() + timeout_s + CHANGE_SLACK_S
    told: list[int] = []
    while time.monotonic() < give_up_s:
        status = call(path, "change_state")
        if status["state"] == "staging":
            waiting = status["waiting_for"]
            if waiting and waiting != told and not quiet:
                hosts = ", ".join(str(host_id) for host_id in waiting)
                click.echo(f"{path.stem}: waiting for host {hosts} to stage it", err=True)
            told = waiting
        elif status["state"] != "done" or (
            status["saved"] and call(path, "query")["state"] != "converging"
        ):
            return status
        time.sleep(CHANGE_POLL_S)
    raise SoftnlbError(f"{path.stem} does not converge", code=ReturnCode.CONVERGING)


class _Steps:
    """A line per step.  On a terminal the seconds of the step at hand count up in its line."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._at_hand = ""
        self._passing = False
        self._moving = _may_move()
        if self._moving:
            # A signal and no thread: whoever works here forks.
            self._before = signal.signal(signal.SIGALRM, lambda *_: self._draw())

    def step(self, text: str, passing: bool = False) -> None:
        if not self._moving:
            if not passing:
                click.echo(self._line(text), err=True)
            return
        self.hush()
        self._at_hand, self._passing = text, passing
        self._draw()
        signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)

    def hush(self) -> None:
        """The step at hand is over: its line stays as it is, or goes."""
        if self._at_hand:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            gone = f"\r{' ' * len(self._line(self._at_hand))}\r"
            self._draw(gone if self._passing else "\n")
            self._at_hand = ""

    def close(self) -> None:
        self.hush()
        if self._moving:
            signal.signal(signal.SIGALRM, self._before)

    def _line(self, text: str) -> str:
        return f"{time.monotonic() - self._began_s:7.1f} s  {text}"

    def _draw(self, end: str = "") -> None:
        # One system call, and no buffer: it may come in the middle of another print.
        os.write(sys.stderr.fileno(), f"\r{self._line(self._at_hand)}{end}".encode())


_steps: _Steps | None = None


@contextmanager
def steps(quiet: bool = False) -> Iterator[None]:
    """Within, ``step`` tells; outside, and when ``quiet``, it says nothing."""
    global _steps
    before, _steps = _steps, None if quiet else _Steps()
    try:
        yield
    finally:
        if _steps is not None:
            _steps.close()
        _steps = before


def step(text: str) -> None:
    """What is being done from now on."""
    if _steps is not None:
        _steps.step(text)


def waiting(text: str) -> None:
    """As ``step``, for a line that goes when it is over: what ended then says so itself."""
    if _steps is not None:
        _steps.step(text, passing=True)


def hush() -> None:
    """Before something else is printed: no line moves any more."""
    if _steps is not None:
        _steps.hush()
