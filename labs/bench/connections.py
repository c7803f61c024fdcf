"""Short TCP connections through a cluster: connect, read the answer, close."""

import contextlib
import os
import selectors
import signal
import socket
import time
from typing import Any

from labs.bench.filters import Filtered
from labs.bench.rig import CLIENT_POOL
from labs.namespaces import die_with_parent
from labs.topology import CLUSTER_IP_ADDRESS

PORT = 80
TOGETHER = 16
"""Connections that the client opens before it reads the first answer."""

TIMEOUT_S = 1.0
BACKLOG = 1024
ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
IP_BIND_ADDRESS_NO_PORT = 24


class Clients:
    """A server on every host, all in one process, and a client with many addresses."""

    def __init__(self, rig: Filtered) -> None:
        self._rig = rig
        self._number = 0
        listeners = []
        for host in rig.hosts:
            with rig.inside(host):
                listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((str(CLUSTER_IP_ADDRESS), PORT))
            listener.listen(BACKLOG)
            listeners.append(listener)
        self._server = os.fork()
        if self._server == 0:
            die_with_parent()
            _serve(listeners)
        for listener in listeners:
            listener.close()

    def run(self, seconds: float) -> dict[str, Any]:
        """Connections per second that were answered, and those that were not."""
        answered = failed = 0
        with self._rig.inside(self._rig.client):
            began = time.perf_counter()
            while (now := time.perf_counter()) < began + seconds:
                good = sum(_answered(one) for one in [self._open() for _ in range(TOGETHER)])
                answered += good
                failed += TOGETHER - good
        return {"connections_per_s": answered / (now - began), "failed": failed}

    def _open(self) -> socket.socket:
        self._number = (self._number + 1) % (CLIENT_POOL.num_addresses - 2)
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((str(CLIENT_POOL[1 + self._number]), 0))
        made.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            made.connect((str(CLUSTER_IP_ADDRESS), PORT))
        return made

    def close(self) -> None:
        """The server; the rig stays."""
        os.kill(self._server, signal.SIGKILL)
        os.waitpid(self._server, 0)


def _answered(made: socket.socket) -> bool:
    """Whether the whole answer comes in time."""
    got = b""
    with made:
        made.settimeout(TIMEOUT_S)
        try:
            # sendall waits until the connection stands.
            made.sendall(b"\n")
            while data := made.recv(256):
                got += data
        except OSError:
            return False
    return got == ANSWER


def _serve(listeners: list[socket.socket]) -> None:
    """Answer whoever has asked, until killed."""
    selector = selectors.DefaultSelector()
    for listener in listeners:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            found = key.fileobj
            if not isinstance(found, socket.socket):
                continue
            with contextlib.suppress(OSError):
                if found in listeners:
                    while True:
                        connection, _peer = found.accept()
                        selector.register(connection, selectors.EVENT_READ)
                else:
                    selector.unregister(found)
                    with found:
                        if found.recv(64):
                            found.sendall(ANSWER)
