"""What a service manager is told: ready, status, stopping, and that the loop still turns.

One datagram each to the socket in NOTIFY_SOCKET (sd_notify(3)); without it nothing is told.  The
watchdog is fed by the loop that handles the heartbeats, never by a thread: a loop that hangs must
be noticed.
"""

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress


class Notifier:
    """Tells the service manager that started this process; a failure to is no harm."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        path = environment.pop("NOTIFY_SOCKET", "")  # nobody whom we start may speak for us
        self._socket: socket.socket | None = None
        self._status = ""
        self._feed_ms: int | None = None
        self._next_feed_ms = 0
        if path[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._address = "\0" + path[1:] if path[0] == "@" else path
        us, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if self._socket and us.isdecimal() and int(us) and pid in ("", str(os.getpid())):
            self._feed_ms = max(1, int(us) // 1000 // 3)

    def ready(self) -> None:
        """The host is up."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The host hands over and ends."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`, sent when it is another one than before."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def next_deadline_ms(self) -> int | None:
        """When ``advance`` is due at the latest; None: nobody watches."""
        return None if self._feed_ms is None else self._next_feed_ms

    def advance(self, now_ms: int) -> None:
        """The loop turns."""
        if self._feed_ms is not None and now_ms >= self._next_feed_ms:
            self._next_feed_ms = now_ms + self._feed_ms
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto(message.encode(), self._address)

    def close(self) -> None:
        """No error when called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
