"""Looks at the host's sockets beside the loop, so that 20,000 of them delay no heartbeat."""

import os
import queue
import threading
from dataclasses import dataclass

from softnlb.filter import FilterTable
from softnlb.sockdiag import connected, count_connections, syn_cookies_sent


@dataclass(frozen=True, slots=True)
class Scan:
    """One finished look: ``idle`` per slot; ``connections`` as a drain counts them, if asked."""

    began_ms: int
    idle: tuple[int, ...]
    syn_cookie_ms: int | None
    connections: int | None
    clients: frozenset[bytes] | None = None
    """Those with a connection that extended affinity remembers; None: nobody could tell."""


class Scanner:
    """A thread that scans when asked; ``fileno`` becomes readable when a result waits."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wanted: queue.SimpleQueue[tuple[FilterTable, int, bool] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Scan] = queue.SimpleQueue()
        self._cookies = syn_cookies_sent()
        self._cookie_ms: int | None = None
        self._busy = self._void = False
        self._thread = threading.Thread(target=self._work, name="socket-scan", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """The end of a pipe to wait on."""
        return self._read

    def want(self, table: FilterTable, now_ms: int, count: bool) -> None:
        """Begin a scan now, unless one is running; ``count`` the connections too."""
        if not self._busy:
            self._busy = True
            self._wanted.put((table, now_ms, count))

    def void(self) -> None:
        """The scan that is running tells of rules that are no longer in force: drop its result."""
        self._void = self._busy

    def results(self) -> list[Scan]:
        """The scans finished since the last call."""
        try:
            os.read(self._read, 64)
        except BlockingIOError:
            return []
        found = []
        while not self._done.empty():
            found.append(self._done.get())
        if self._void:  # one at a time: it is this one
            found.clear()
        self._busy = self._void = False
        return found

    def close(self) -> None:
        """End the thread."""
        self._wanted.put(None)
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            table, now_ms, count = wanted
            try:
                self._done.put(self._scan(table, now_ms, count))
            except OSError:
                # No answer from the kernel: no bucket is proven idle, none is drained either.
                blank = Scan(now_ms, (0,) * len(table.rules), now_ms, None)
                self._done.put(blank)
            os.write(self._write, b".")

    def _scan(self, table: FilterTable, now_ms: int, count: bool) -> Scan:
        cookies = syn_cookies_sent()
        if cookies != self._cookies:
            self._cookies, self._cookie_ms = cookies, now_ms
        connections = count_connections(table.cluster_ip_addresses)[0] if count else None
        idle, clients = connected(table)
        return Scan(now_ms, idle, self._cookie_ms, connections, clients)
