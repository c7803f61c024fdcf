"""The supervisor: process 1 of a lab's pid namespace.  When it ends, the kernel ends the lab.

``python -m labs.supervisor SPEC FD`` is started by ``softnlb lab up``, leaves the machine for
namespaces of its own, builds the lab, reports on FD as JSON lines and then answers
``softnlb lab`` on a unix socket.
"""

import gc
import json
import os
import select
import selectors
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from labs.faults import inject
from labs.lab import Lab
from labs.namespaces import (
    in_user_namespace,
    leave_machine,
    make_writable,
    mount_proc,
    mount_tmpfs,
    set_process_name,
)
from labs.process import WRAPPERS, MachineProc, node_path, redirect_output
from labs.state import socket_path
from labs.topology import LabSpec
from softnlb.control import ControlServer
from softnlb.errors import SoftnlbError, UsageError


class Report:
    """The pipe to the ``lab up`` that waits for us."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = time.monotonic()
        self._first = self._last

    def stage(self, text: str, begins: str = "") -> None:
        """A step was finished; ``begins``: a long one that begins now."""
        now = time.monotonic()
        ms = round((now - self._last) * 1000)
        self._send({"stage": text, "ms": ms, "begins": begins})
        self._last = now

    def ready(self, result: dict[str, Any]) -> None:
        """All is up."""
        self._send({"ready": result, "ms": round((time.monotonic() - self._first) * 1000)})
        os.close(self._fd)

    def error(self, error: Exception) -> None:
        """It failed; the sentence and exit status are for the user."""
        code = error.exit_code if isinstance(error, SoftnlbError) else 1
        text = str(error) if isinstance(error, SoftnlbError) else f"{type(error).__name__}: {error}"
        self._send({"error": text, "exit_code": code})

    def abandoned(self) -> bool:
        """Whether the one who waited has gone away."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return bool(poll.poll(0))

    def _send(self, message: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(message, default=str).encode() + b"\n")


def main(arguments: list[str]) -> int:
    """Entry point; see the module's description."""
    report = Report(int(arguments[1]))
    try:
        spec = LabSpec.from_json(json.loads(arguments[0]))
        path = socket_path(spec.name)
        os.umask(0o022)
        leave_machine()
        if os.fork() != 0:
            os._exit(0)
        return _supervise(spec, path, report)
    except (SoftnlbError, OSError) as error:
        report.error(error)
        return 1


def _supervise(spec: LabSpec, path: Path, report: Report) -> int:
    proc = MachineProc()
    set_process_name(f"lab:{spec.name}")
    server: ControlServer | None = None
    lab = Lab(spec, proc)

    def answer(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return _answer(lab, verb, arguments)

    try:
        server = ControlServer(path, answer)
        _furnish()
        report.stage("namespaces of its own")
        lab.start_nodes()
        if spec.agents:
            _import_agent()
        lab.build_network()
        switches = ", ".join(f"a {kind} switch" for kind in lab.personalities.values())
        report.stage(f"{len(lab.nodes)} nodes, their cables, {switches}")
        lab.start_services(lab.hosts())
        report.stage(f"HTTP service on {spec.hosts} hosts")
        if spec.agents:
            _start_agents(lab, server, report)
        report.ready(lab.status())
        _loop(lab, server)
    except (SoftnlbError, OSError) as error:
        report.error(error)
        return 1
    finally:
        if server is not None:
            server.close()
    return 0


def _furnish() -> None:
    """The directories that a node needs for itself, and its environment."""
    os.environ["PATH"] = node_path(os.environ.get("PATH", ""))
    mount_proc()
    mount_tmpfs("/run")
    make_writable("/etc", "softnlb", os.path.basename(WRAPPERS))
    real = shutil.which("tcpdump")
    if in_user_namespace() and real is not None:
        wrapper = Path(WRAPPERS, "tcpdump")
        script = Path(__file__).with_name("tcpdump.py")
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -I {script} {real} "$@"\n')
        wrapper.chmod(0o755)
    make_writable("/var/lib", "softnlb")
    os.mkdir("/run/lock")
    redirect_output(Path("/run/lab.log"))
    for name in [name for name in os.environ if name.startswith("SOFTNLB_")]:
        del os.environ[name]


def _import_agent() -> None:
    """Once, for every agent that is forked; meanwhile the kernel makes the nodes."""

    gc.collect()
    gc.freeze()


def _start_agents(lab: Lab, server: ControlServer, report: Report) -> None:
    lab.start_agents(lab.hosts())
    report.stage(f"{lab.spec.hosts} agents", begins="the hosts listen and agree")

    def abandoned() -> bool:
        server.handle()  # so that `lab status` and `lab down` work meanwhile
        return report.abandoned()

    lab.await_convergence(abandoned)
    report.stage("converged")


def _answer(lab: Lab, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if verb == "status":
        return lab.status()
    if verb == "nodes":
        return lab.describe()
    if verb == "events":
        lab.bring_log_up_to_date()
        return {"supervisor_pid": lab.proc.own_pid()}
    if verb == "fault":
        words = [str(word) for word in arguments.get("arguments", [])]
        return {
            "message": inject(
                lab, str(arguments.get("fault")), words, bool(arguments.get("secret"))
            )
        }
    raise UsageError(f"{verb} is not something that a lab can do")


def _loop(lab: Lab, server: ControlServer) -> None:
    """Answer until SIGTERM."""
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    ending = False

    def terminate(*_: object) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(server, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    while not ending:
        for key, _ in selector.select():
            if key.fileobj is server:
                server.handle()
            else:
                wake.recv(4096)
                lab.reap()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
