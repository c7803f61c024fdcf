"""A running lab as seen from the machine: ask its supervisor, run things inside its nodes.

The functions that enter a node fork first, so the caller itself never leaves the machine.
"""

import contextlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any

from labs.events import PATH, EventLog
from labs.namespaces import (
    CLONE_NEWPID,
    CLONE_NEWUSER,
    die_with_parent,
    set_namespace,
)
from labs.process import NODE_NAMESPACES, node_path
from labs.state import find, forget
from labs.topology import IPNetwork, LabSpec
from softnlb.control import call
from softnlb.errors import NotRunningError, SoftnlbError

ASK_TIMEOUT_S = 30.0
END_WITHIN_MS = 2000


class LabHandle:
    """One running lab.  Raises NotRunningError when there is none of that name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = find(name)

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Ask the supervisor.  Raises SoftnlbError with its sentence."""
        try:
            return call(self._path, verb, answer_within_s=ASK_TIMEOUT_S, **arguments)
        except NotRunningError as error:
            raise NotRunningError(f"lab {self.name} has just ended") from error

    def status(self) -> dict[str, Any]:
        """As ``softnlb lab status --json``."""
        return self.ask("status")

    def spec(self) -> LabSpec:
        """What the lab was started with."""
        return LabSpec.from_json(self.ask("nodes")["spec"])

    def fault(self, fault: str, *arguments: str) -> str:
        """Inject a fault; returns one sentence."""
        return str(self.ask("fault", fault=fault, arguments=list(arguments))["message"])

    def break_secretly(self, fault: str, *arguments: str) -> None:
        """Inject a fault that a student shall find: status and log do not name it."""
        self.ask("fault", fault=fault, arguments=list(arguments), secret=True)

    def client(self) -> dict[str, Any]:
        """The node that asks where none is named: of the clients the first behind a router."""
        clients = [node for node in self.ask("nodes")["nodes"] if node["kind"] == "client"]
        if not clients:
            raise SoftnlbError(f"lab {self.name} has no client")
        return min(clients, key=lambda node: node["router"] is None)

    def crowd(self) -> tuple[str, IPNetwork]:
        """The client node that is many clients, and their addresses.  Raises SoftnlbError."""
        for table in self.spec().complete_document()["client"]:
            if table["pool"] is not None:
                return table["name"], ip_network(table["pool"])
        raise SoftnlbError(f"no client of lab {self.name} has a pool of addresses")

    def node_pid(self, name: str) -> int:
        """Pid on this machine of the process that holds a node.  Raises SoftnlbError."""
        facts = self.ask("nodes")
        nodes = {node["name"]: node["pid"] for node in facts["nodes"]}
        if name in [switch["name"] for switch in facts["switches"]]:
            name = "switch"  # it holds all of them
        if name not in nodes:
            raise SoftnlbError(f"{name} is not a node of this lab: {', '.join(nodes)}")
        if nodes[name] is None:
            raise SoftnlbError(f"{name} was killed: `softnlb lab fault start {name}` revives it")
        return int(nodes[name])

    def execute(self, node: str, command: list[str]) -> int:
        """Run a command in a node with our own standard streams; returns its exit status."""
        pid = self.node_pid(node)
        here = os.getcwd()

        def inside() -> int:
            os.environ["PATH"] = node_path(os.environ.get("PATH", ""))
            os.environ["SOFTNLB_LAB_NODE"] = node
            with contextlib.suppress(OSError):
                os.chdir(here)
            return _exec(command)

        return _wait(_fork_into(pid, inside))

    def start(self, node: str, body: Callable[["Channel"], object]) -> "Task":
        """Run ``body`` in a node while the caller goes on; both talk over a channel."""
        pid = self.node_pid(node)
        to_child, from_parent = os.pipe(), os.pipe()

        def inside() -> int:
            os.close(to_child[1])
            os.close(from_parent[0])
            channel = Channel(to_child[0], from_parent[1])
            try:
                channel.send({"result": body(channel)})
            except SoftnlbError as error:
                channel.send({"error": str(error)})
            except Exception:
                channel.send({"error": traceback.format_exc()})
            return 0

        child = _fork_into(pid, inside)
        os.close(to_child[0])
        os.close(from_parent[1])
        return Task(child, Channel(from_parent[0], to_child[1]), (self, node))

    def run(self, node: str, body: Callable[["Channel"], object]) -> Any:
        """Run ``body`` in a node, wait, and return its result (as JSON carries it)."""
        with self.start(node, body) as task:
            return task.result()

    def output(self, node: str, command: list[str]) -> str:
        """Standard output of a command in a node.  Raises SoftnlbError when it fails."""
        done = self.complete(node, command)
        if done["exit_status"] != 0:
            text = str(done["stderr"]).strip() or f"exit status {done['exit_status']}"
            raise SoftnlbError(f"{node}: {' '.join(command)}: {text}")
        return str(done["stdout"])

    def complete(self, node: str, command: list[str]) -> dict[str, Any]:
        """Run a command in a node: {"exit_status", "stdout", "stderr"}, text as it came."""

        def body(_: Channel) -> dict[str, Any]:
            import subprocess

            os.environ["PATH"] = node_path(os.environ.get("PATH", ""))
            try:
                done = subprocess.run(command, capture_output=True, check=False)
            except OSError as error:
                text = f"{command[0]}: {error.strerror}\n"
                return {"exit_status": 127, "stdout": "", "stderr": text}
            return {
                "exit_status": done.returncode if done.returncode >= 0 else 128 - done.returncode,
                "stdout": done.stdout.decode(errors="replace"),
                "stderr": done.stderr.decode(errors="replace"),
            }

        result: dict[str, Any] = self.run(node, body)
        return result

    def log(self) -> EventLog:
        """The event log of the lab; close it after use."""
        pid = self.ask("events")["supervisor_pid"]
        try:
            return EventLog(Path(f"/proc/{pid}/root{PATH}"))
        except OSError as error:
            raise NotRunningError(f"lab {self.name} has just ended") from error

    def events(self) -> bytes:
        """The event log so far, as JSON lines."""
        log = self.log()
        try:
            return log.read()
        finally:
            log.close()

    def down(self) -> None:
        """End the lab and wait until it is gone."""
        end_supervisor(int(self.ask("nodes")["supervisor_pid"]))
        forget(self.name)


def end_supervisor(pid: int) -> None:
    """Kill a lab's process 1 and return when the kernel has taken everything down."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    # Readable once the process has ended, and process 1 ends after all others of its namespace.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(10_000):
        raise SoftnlbError(f"the supervisor (pid {pid}) does not end")
    os.close(fd)


class Channel:
    """Lines of JSON both ways between a task and whoever started it."""

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end = read_end
        self._reader = os.fdopen(read_end, "rb")
        self._writer = os.fdopen(write_end, "wb", buffering=0)

    def fileno(self) -> int:
        """Readable when the other side has sent something, or has gone."""
        return self.read_end

    def send(self, message: object) -> None:
        """One message."""
        data = json.dumps(message, default=str).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[self._writer.write(data) or 0 :]

    def receive(self) -> Any:
        """The next message; None when the other side has gone."""
        line = self._reader.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        """Hang up."""
        self._reader.close()
        self._writer.close()


class Task:
    """Something that runs in a node.  As a context manager it is killed on the way out."""

    def __init__(
        self, pid: int, channel: Channel, where: tuple[LabHandle, str] | None = None
    ) -> None:
        self.where = where
        """The lab and the node."""
        self._pid: int | None = pid
        self.channel = channel

    def __enter__(self) -> "Task":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is left running."""
        self.kill()

    def expect(self) -> Any:
        """The next message of the task.  Raises SoftnlbError when it failed or ended."""
        message = self.channel.receive()
        if message is None:
            raise SoftnlbError("a task in the lab ended too early")
        if isinstance(message, dict) and "error" in message:
            raise SoftnlbError(str(message["error"]))
        return message

    def result(self) -> Any:
        """Wait for the end and return the result."""
        while True:
            message = self.expect()
            if isinstance(message, dict) and "result" in message:
                self._end()
                return message["result"]

    def stop(self) -> Any:
        """Ask the task to come to an end and return its result."""
        self.channel.send({"stop": True})
        return self.result()

    def kill(self) -> None:
        """End it now."""
        if self._pid is not None:
            # The outer process passes it on and buries the inner one, which else would be a zombie
            # of the machine's process 1: the end of a lab waits for that.
            os.kill(self._pid, signal.SIGTERM)
            self._end()

    def _end(self) -> None:
        """Wait until it is over, and end it when that takes long."""
        if self._pid is None:
            return
        fd = os.pidfd_open(self._pid)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(END_WITHIN_MS):
            os.kill(self._pid, signal.SIGKILL)
        os.close(fd)
        os.waitpid(self._pid, 0)
        self._pid = None
        self.channel.close()


def _enter(pid: int) -> None:
    """Enter all namespaces of a lab's process; the pid namespace only takes its children."""
    kinds = (("user", CLONE_NEWUSER), ("pid", CLONE_NEWPID), *NODE_NAMESPACES)
    try:
        opened = []
        for kind, flag in kinds:
            path = f"/proc/{pid}/ns/{kind}"
            if os.readlink(path) != os.readlink(f"/proc/self/ns/{kind}"):
                opened.append((os.open(path, os.O_RDONLY), flag))
    except FileNotFoundError as error:
        raise NotRunningError("that node has just ended") from error
    for fd, flag in opened:
        set_namespace(fd, flag)
        os.close(fd)


def _fork_into(pid: int, body: Callable[[], int]) -> int:
    """Run ``body`` inside; returns the pid of an outer child that ends as the inner one does."""
    sys.stdout.flush()
    sys.stderr.flush()
    outer = os.fork()
    if outer != 0:
        return outer
    status = 70
    try:
        die_with_parent()
        _enter(pid)
        inner = os.fork()
        if inner == 0:
            die_with_parent()
            status = body()
        else:
            for number in (signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: os.kill(inner, signal.SIGTERM))
            status = _wait(inner)
    except (SoftnlbError, OSError) as error:
        print(f"softnlb: {error}", file=sys.stderr)
        status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int) -> int:
    """Exit status as a shell gives it: 128 + n for a process that signal n ended."""
    while True:
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except KeyboardInterrupt:
            continue
        return status if status >= 0 else 128 - status


def _exec(command: list[str]) -> int:
    # Python ignores SIGPIPE, and what it ignores would stay ignored in the command.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        print(f"softnlb: {command[0]}: not found", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"softnlb: {command[0]}: {error.strerror}", file=sys.stderr)
        return 126
