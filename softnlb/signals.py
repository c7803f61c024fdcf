"""SIGTERM, SIGINT and SIGHUP as something to read: the loop finishes what it is doing."""

import signal
import socket

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Readable when the process was asked to end or to reload; at most one per process."""

    def __init__(self) -> None:
        self._receive, self._send = socket.socketpair()
        for end in (self._receive, self._send):
            end.setblocking(False)
        signal.set_wakeup_fd(self._send.fileno(), warn_on_full_buffer=False)
        for number in NUMBERS:
            signal.signal(number, lambda *_: None)

    def fileno(self) -> int:
        """For a selector."""
        return self._receive.fileno()

    def clear(self) -> set[int]:
        """Read which ones have come."""
        return set(self._receive.recv(64))

    def close(self) -> None:
        """The signals end the process again."""
        signal.set_wakeup_fd(-1)
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)
        self._receive.close()
        self._send.close()
