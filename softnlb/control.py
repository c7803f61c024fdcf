"""The local control socket: one line of JSON asks, one line of JSON answers.

``ControlServer`` is the agent's end and hangs in its selectors loop as one file descriptor;
``find_hosts`` and ``call`` are the command line's end.  The socket's mode (0660) decides who may
ask; whatever a client sends is answered with an error or with what it asked for, and never harms
the agent.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from softnlb.control_group import is_allowed
from softnlb.errors import (
    MachineError,
    NotRunningError,
    ReturnCode,
    SoftnlbError,
    UsageError,
    bad_params,
)

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

LINE_MAX_BYTES = 64 * 1024
CLIENTS_MAX = 32

Result = dict[str, Any]
Handler = Callable[[str, dict[str, Any]], Result]
"""Carries out a verb with its arguments; a SoftnlbError becomes the error of the response."""

log = logging.getLogger(__name__)


def run_dir() -> Path:
    """Where the control sockets of this machine (or of this lab node) are."""
    return Path(os.environ.get("SOFTNLB_RUN_DIR", "/run/softnlb"))


def state_dir() -> Path:
    """Where each host of this machine keeps its records, in a directory of its own."""
    return Path(os.environ.get("SOFTNLB_STATE_DIR", "/var/lib/softnlb"))


def socket_path(config: ClusterConfig) -> Path:
    """The control socket of a host."""
    return run_dir() / f"{config.cluster_ip_addresses[0].ip}:{config.host_id}.sock"


# ---------------------------------------------------------------- the agent's end


class Peer(NamedTuple):
    """Who asks, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class _Client:
    """A connection: its socket, what came in and what is still to go out."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        self.peer = Peer(*struct.unpack("3i", credentials))
        self.received = bytearray()
        self.to_send = bytearray()
        self.allowed = False
        self.closing = False  # hang up as soon as everything is sent


class ControlServer:
    """A unix stream socket that many clients may hold open, served without ever blocking.

    Register it in a selector for reading: ``fileno()`` becomes readable whenever anything is to
    do, also writing, and ``handle()`` does it.  ``peer`` is who asks, while the handler
    runs.  Raises SoftnlbError when another agent serves the same path, MachineError when the
    directory or socket cannot be made.
    """

    def __init__(
        self, path: Path, handler: Handler | None = None, group_id: int | None = None
    ) -> None:
        """``group_id``: the group that owns the socket; None: the one of this process."""
        self.path = path
        self._group_id = group_id
        self.peer: Peer | None = None
        self.handler: Handler = handler or _not_yet
        self._listener = _listen(path)
        if group_id is not None:
            with suppress(OSError):  # not root, or a user namespace without this group
                os.chown(path, -1, group_id)
        self._inode = path.stat().st_ino
        self._selector = selectors.EpollSelector()  # an epoll can itself be polled: one fd for all
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def fileno(self) -> int:
        """The one descriptor to wait for."""
        return self._selector.fileno()

    def handle(self) -> None:
        """Do all that can be done now."""
        for key, _ in self._selector.select(timeout=0):
            if key.data is None:
                self._accept()
            else:
                self._serve(key.data)

    def close(self) -> None:
        """Hang up and remove the socket file, if it is still ours."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Client):
                key.data.socket.close()
        self._selector.close()
        self._listener.close()
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptor left: the next event tries once more
            return
        if len(self._selector.get_map()) > CLIENTS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        client = _Client(connection)
        peer = client.peer
        client.allowed = is_allowed(connection, peer.uid, peer.gid, self._group_id)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _serve(self, client: _Client) -> None:
        try:
            if client.to_send:
                self._send(client)
            else:
                self._receive(client)
        except BlockingIOError:
            pass
        except OSError:  # the client went away
            self._hang_up(client)

    def _receive(self, client: _Client) -> None:
        received = client.socket.recv(LINE_MAX_BYTES)
        if not received:
            self._hang_up(client)
            return
        client.received += received
        self._answer_lines(client)

    def _answer_lines(self, client: _Client) -> None:
        """Answer one line after the other; a client that does not read gets no second answer."""
        while not client.to_send and not client.closing:
            line, newline, rest = client.received.partition(b"\n")
            if not newline and len(line) <= LINE_MAX_BYTES:
                break
            if len(line) > LINE_MAX_BYTES:
                response = _refusal(f"a request is one line of at most {LINE_MAX_BYTES} bytes", 2)
                client.closing = True
            elif not client.allowed:
                response = _refusal("only root and members of the group of this socket may ask", 5)
                client.closing = True
            else:
                client.received = rest
                self.peer = client.peer
                response = _respond(bytes(line), self.handler)
                self.peer = None
            client.to_send += json.dumps(response, default=str).encode() + b"\n"
            self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            sent = client.socket.send(client.to_send)
        except BlockingIOError:
            sent = 0
        del client.to_send[:sent]
        if client.to_send:
            self._selector.modify(client.socket, selectors.EVENT_WRITE, client)
        elif client.closing:
            self._hang_up(client)
        elif self._selector.get_key(client.socket).events != selectors.EVENT_READ:
            self._selector.modify(client.socket, selectors.EVENT_READ, client)
            self._answer_lines(client)

    def _hang_up(self, client: _Client) -> None:
        self._selector.unregister(client.socket)
        client.socket.close()


def _not_yet(verb: str, _: Result) -> Result:
    raise SoftnlbError(f"{verb}: the agent is only just starting")


def _respond(line: bytes, handler: Handler) -> Result:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return _refusal("a request is one JSON object on one line", 2)
    if not isinstance(request, dict):
        return _refusal('a request is a JSON object with a "verb"', 2)
    return respond(request, handler)


def respond(request: dict[str, Any], handler: Handler) -> Result:
    """Carry out a request and put what came of it into a response; never raises."""
    verb = request.pop("verb", None)
    if not isinstance(verb, str):
        return _refusal('a request is a JSON object with a "verb"', 2)
    try:
        return {"ok": True, "result": handler(verb, request)}
    except SoftnlbError as error:
        return _refusal(str(error), error.exit_code, error.code)
    except Exception as error:  # a fault of ours must not end the agent, nor pass in silence
        log.exception("the control verb %r failed", verb)
        return _refusal(f"the agent failed in {verb!r}: {type(error).__name__}, see its log", 1)


def _refusal(sentence: str, exit_code: int, code: ReturnCode | None = None) -> Result:
    refusal = {"ok": False, "exit_code": exit_code, "error": sentence}
    return refusal if code is None else {**refusal, "code": code.name}


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        umask = os.umask(0o117)  # the file has mode 0660 from its first moment
        try:
            listener.bind(str(path))
        finally:
            os.umask(umask)
        listener.listen(CLIENTS_MAX)
    except OSError as error:
        listener.close()
        remedy = " Use sudo." if isinstance(error, PermissionError) else ""
        sentence = f"The control socket {path} cannot be made: {error.strerror or error}.{remedy}"
        raise MachineError(sentence) from error
    except SoftnlbError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SoftnlbError(f"{path} is in the way: it is not a socket.")
    if is_live(path):
        raise SoftnlbError(f"Another agent is running for {path.stem}: it answers on {path}.")
    path.unlink()  # left behind by an agent that was killed


# ---------------------------------------------------------------- the command line's end


def is_live(path: Path) -> bool:
    """Whether an agent listens at this socket, be it frozen or not ours to ask."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (BlockingIOError, PermissionError):  # queue full; somebody else's agent
            return True
    return True


def call(path: Path, verb: str, /, *, answer_within_s: float = 10.0, **args: Any) -> Result:
    """Ask the agent at ``path`` and return the result of its answer.

    Raises NotRunningError when nobody listens, MachineError without the permission to ask, and
    what the agent refused as the SoftnlbError with the exit code that it gave.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # With settimeout a busy agent's full queue would refuse at once instead of waiting.
        timeval = struct.pack("@ll", int(answer_within_s), int(answer_within_s % 1 * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        try:
            connection.connect(str(path))
            connection.settimeout(answer_within_s)
            connection.sendall(json.dumps({"verb": verb, **args}, default=str).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = lines.readline()
        except PermissionError as error:
            raise MachineError(
                f"No permission to ask the agent of {path.stem}: run this with sudo."
            ) from error
        except (TimeoutError, BlockingIOError) as error:
            raise SoftnlbError(
                f"The agent of {path.stem} does not answer within {answer_within_s:g} s."
            ) from error
        except OSError as error:
            raise NotRunningError(f"The agent of {path.stem} is not running.") from error
    return _result(path, answer)


def _result(path: Path, answer: bytes) -> Result:
    try:
        response = json.loads(answer)
        if response["ok"]:
            return dict(response["result"])
        sentence, exit_code = str(response["error"]), response["exit_code"]
        code = ReturnCode[response["code"]] if "code" in response else None
    except (ValueError, KeyError, TypeError) as error:
        raise NotRunningError(f"The agent of {path.stem} ended before it answered.") from error
    if code is not None:
        sentence = sentence.removesuffix(f" ({code.name})")
    for kind in (UsageError, NotRunningError, MachineError):
        if kind.exit_code == exit_code:
            raise kind(sentence, code=code)
    raise SoftnlbError(sentence, code=code)


def find_hosts(target: str | None = None) -> list[Path]:
    """Control sockets of the hosts on this machine that a target names.

    Target: None = the only host here; "all" = every host here; "CLUSTER" = the only host here of
    that cluster IP address; "CLUSTER:HOST" with a host id or a dedicated IP address.  Raises
    NotRunningError when no agent runs, UsageError when the target is no address or names several
    hosts, SoftnlbError when that host is not here.
    """
    hosts = [path for path in sorted(run_dir().glob("*.sock")) if is_live(path)]
    if not hosts:
        raise NotRunningError("No agent is running on this machine.")
    if target == "all":
        return hosts
    cluster, host = parse_target(target or "")
    found = [path for path in hosts if cluster in ("", cluster_of(path))]
    if host:
        found = [path for path in found if is_host(path, host)]
    if not found:
        sentence = f"{target} is not a host on this machine; here: {_names(hosts)}."
        raise SoftnlbError(sentence, code=ReturnCode.NOT_FOUND)
    if len(found) > 1:
        raise bad_params(f"Several hosts are on this machine, name one or all: {_names(found)}.")
    return found


def cluster_of(path: Path) -> str:
    """The cluster IP address of the host whose control socket this is."""
    return path.stem.rpartition(":")[0]


def split_address(text: str) -> tuple[str, str, str]:
    """ADDRESS:REST as ``str.partition`` would; brackets go around an IPv6 address with a rest."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        return address, rest[:1], rest[1:]
    if text.count(":") > 1:
        return text, "", ""
    return text.partition(":")


def _names(hosts: list[Path]) -> str:
    return ", ".join(path.stem for path in hosts)


def parse_target(target: str) -> tuple[str, str]:
    """Cluster and host, each empty where the target does not name one."""
    cluster, colon, host = split_address(target)
    try:
        if cluster:
            cluster = str(ip_address(cluster))
        if colon and not host.isdecimal():
            host = str(ip_address(host))
    except ValueError as error:
        raise bad_params(
            f"{target!r} is not a target: expected a cluster IP address, CLUSTER:HOST with a host"
            " id or a dedicated IP address, or all."
        ) from error
    return cluster, host


def is_host(path: Path, host: str) -> bool:
    """Whether the host of this socket has this id or dedicated IP address."""
    if host.isdecimal():
        return path.stem.endswith(f":{int(host)}")
    dedicated = str(call(path, "params").get("dedicated_ip_address", ""))
    return dedicated.partition("/")[0] == host
