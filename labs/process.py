"""Processes of a lab: forked from the supervisor, placed in a node, known by two pids.

Fork instead of exec: the supervisor has imported what its children need, so that a child costs a
few milliseconds and shares its memory with the others.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from labs.namespaces import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUTS, set_namespace, set_process_name

NODE_NAMESPACES = (("net", CLONE_NEWNET), ("uts", CLONE_NEWUTS), ("mnt", CLONE_NEWNS))
"""What each node has of its own; the mount namespace last, because it takes /proc along."""


WRAPPERS = "/etc/softnlb-lab"
"""Programs that need other options in a user namespace than on the machine; exists only there."""


class MachineProc:
    """The /proc of the machine, opened before the lab got its own: translates pids."""

    def __init__(self) -> None:
        self._fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)

    def own_pid(self) -> int:
        """The caller's pid as the machine sees it."""
        return int(os.readlink("self", dir_fd=self._fd))


class Process:
    """A child of the supervisor.  ``pid`` is its pid in the lab."""

    def __init__(self, pid: int, birth: int) -> None:
        self.pid = pid
        self.ended = False
        self._birth: int | None = birth
        self._machine_pid = 0

    @property
    def machine_pid(self) -> int:
        """Its pid on the machine, 0 when it died before it could tell."""
        if self._birth is not None:
            with os.fdopen(self._birth) as pipe:
                self._machine_pid = int(pipe.readline() or "0")
            self._birth = None
        return self._machine_pid

    def signal(self, number: int, whole_session: bool = False) -> None:
        """Send a signal, to its children too if wanted; nothing happens when it has ended."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if whole_session else os.kill)(self.pid, number)


def enter_node(pid: int) -> None:
    """Move the calling process into the namespaces of the node that ``pid`` holds."""
    fds = [(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), flag) for kind, flag in NODE_NAMESPACES]
    for fd, flag in fds:
        set_namespace(fd, flag)
        os.close(fd)


def fork(name: str, proc: MachineProc, body: Callable[[], int | None], log: Path | None) -> Process:
    """Run ``body`` in a child of its own session, called ``name``; its result is the exit status.

    ``log``: where its standard output and error go, a path inside whatever namespace it is in
    when it first writes; None keeps the supervisor's.
    """
    birth, tell = os.pipe()
    pid = os.fork()
    if pid != 0:
        os.close(tell)
        return Process(pid, birth)
    status = 70
    try:
        os.close(birth)
        os.write(tell, f"{proc.own_pid()}\n".encode())
        os.close(tell)
        os.setsid()
        set_process_name(name)
        # SIGPIPE stays ignored, as Python wants it: an agent whose asker hung up must live on.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        if log is not None:
            redirect_output(log)
        status = body() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def redirect_output(log: Path) -> None:
    """Append standard output and error to a file."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def node_path(path: str) -> str:
    """PATH inside a node: this interpreter's programs first, then the machine's, with sbin."""
    first = os.path.dirname(sys.executable)
    entries = [first, WRAPPERS, *path.split(os.pathsep), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return os.pathsep.join(dict.fromkeys(entry for entry in entries if entry))


def processes_in(pid: int) -> list[int]:
    """Every process of the lab whose network namespace is that of ``pid``, in the lab's pids."""
    wanted = os.readlink(f"/proc/{pid}/ns/net")
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/net") == wanted:
                    found.append(int(entry))
    return found
