"""Looks whether the services of this host live: a program of its own, beside the agent.

Standard input holds one line, the probes as JSON (softnlb/health.py); each change is one line of
JSON on standard output.  Ends when standard input does: with the agent, however that ends.

Its own process, because a service that hangs must not delay a heartbeat, and because a command of
the user has no business with the agent's privileges.  The agent runs this file by its path in an
isolated interpreter, so it imports nothing of the house.
"""

import contextlib
import encodings.idna  # noqa: F401  # while it can be read: see _give_up_root
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

NOBODY = 65534

Probe = dict[str, Any]


def main() -> None:
    """Look until nobody listens any more."""
    probes: list[Probe] = json.loads(sys.stdin.readline())
    _give_up_root()
    for probe in probes:
        threading.Thread(target=_watch, args=(probe,), daemon=True).start()
    sys.stdin.read()
    os._exit(0)  # the threads may hang in a service that does


def _give_up_root() -> None:
    """Become nobody where the kernel has one to offer; a user namespace of one user has not."""
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _watch(probe: Probe) -> None:
    """The first look counts at once; later ones only ``fall`` or ``rise`` times in a row."""
    alive: bool | None = None
    in_a_row = 0
    pause = threading.Event()
    while True:
        reason = look(probe)
        now_alive = not reason
        in_a_row = 0 if now_alive == alive else in_a_row + 1
        if alive is None or in_a_row >= probe["rise" if now_alive else "fall"]:
            alive, in_a_row = now_alive, 0
            line = {"slot": probe["slot"], "alive": alive, "reason": reason}
            print(json.dumps(line), flush=True)
        pause.wait(probe["period_ms"] / 1000)


def look(probe: Probe) -> str:
    """One look at a service: empty when it lives, else why not."""
    timeout_s = probe["timeout_ms"] / 1000
    try:
        if probe["type"] == "command":
            return _command(probe["command"], timeout_s)
        if probe["type"] == "http":
            return _http(probe, timeout_s)
        socket.create_connection((probe["address"], probe["port"]), timeout_s).close()
    except TimeoutError:
        return f"no answer within {probe['timeout_ms']} ms"
    except (OSError, http.client.HTTPException) as error:
        return getattr(error, "strerror", None) or type(error).__name__
    return ""


def _http(probe: Probe, timeout_s: float) -> str:
    connection = http.client.HTTPConnection(probe["address"], probe["port"], timeout=timeout_s)
    try:
        connection.request("GET", probe["path"], headers={"User-Agent": "softnlb"})
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if 200 <= status < 400 else f"HTTP status {status}"


def _command(command: list[str], timeout_s: float) -> str:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    ) as process:
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"not finished within {timeout_s * 1000:.0f} ms"
    return f"exit status {status}" if status else ""


if __name__ == "__main__":
    main()
