"""Freezing a host of a lab: cgroup.freeze where the machine has it for us, SIGSTOP elsewhere.

Only version 2 of control groups: what version 1 froze does not even die of SIGKILL.  A group exists
while its host is frozen.  The kernel does not remove it with its processes; whoever ends a lab, or
finds a dead one, calls ``remove_groups``.
"""

import contextlib
import errno
import os
import select
import signal
import time
from pathlib import Path

from labs.process import processes_in

MOUNTS = Path("/proc/self/mounts")
WITHIN_S = 1.0
"""The kernel freezes, and lets go of the dead, in the background."""


def _root() -> Path:
    """Where version 2 is mounted.  Raises OSError."""
    for line in MOUNTS.read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise OSError(0, "control groups of version 2 are not mounted")


def _group(lab: str, host: str) -> Path:
    return _root() / f"softnlb-lab:{lab}:{host}"


def freeze(lab: str, host: str, pid: int) -> str:
    """Stop every process in the network namespace of ``pid``; returns by what."""
    try:
        group = _group(lab, host)
        group.mkdir(exist_ok=True)
        _move(processes_in(pid), group)
        (group / "cgroup.freeze").write_text("1")
        _await_frozen(group)
    except OSError as error:
        with contextlib.suppress(OSError):
            _release(group)
        _signal(pid, signal.SIGSTOP)
        return f"SIGSTOP for every process: no cgroup.freeze here, {error.strerror}"
    return "cgroup.freeze"


def thaw(lab: str, host: str, pid: int) -> None:
    """Let them go on."""
    with contextlib.suppress(OSError):
        _release(_group(lab, host))
        return
    _signal(pid, signal.SIGCONT)


def remove_groups(lab: str, host: str = "*") -> bool:
    """What a lab, or a host of it, that has ended left behind; False while a process is in it."""
    gone = True
    with contextlib.suppress(OSError):
        for group in _root().glob(f"softnlb-lab:{lab}:{host}"):
            try:
                _remove(group)
            except OSError as error:
                gone = gone and error.errno != errno.EBUSY
    return gone


def _release(group: Path) -> None:
    (group / "cgroup.freeze").write_text("0")
    own = Path("/proc/self/cgroup").read_text().splitlines()
    home = next(line.removeprefix("0::/") for line in own if line.startswith("0::"))
    # Those that run again may fork meanwhile.
    while pids := [int(word) for word in (group / "cgroup.procs").read_text().split()]:
        _move(pids, _root() / home)
    _remove(group)


def _remove(group: Path) -> None:
    """Processes that were killed are in it for a moment more.  Raises OSError."""
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        try:
            group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline_s:
                raise
            select.select([], [], [], 0.001)
        else:
            return


def _move(pids: list[int], group: Path) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))


def _await_frozen(group: Path) -> None:
    """Raises OSError when they run on."""
    deadline_s = time.monotonic() + WITHIN_S
    while "frozen 1" not in (group / "cgroup.events").read_text():
        if time.monotonic() > deadline_s:
            raise OSError(0, f"the kernel did not freeze them within {WITHIN_S:g} s")
        select.select([], [], [], 0.001)


def _signal(pid: int, number: int) -> None:
    for each in processes_in(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)
