"""A ControlServer in a thread with canned answers, where a test needs an agent to ask."""

import os
import selectors
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softnlb.control import ControlServer, Handler, Result
from softnlb.errors import SoftnlbError

QUERY = {
    "cluster_ip_address": "10.1.0.100",
    "host_id": 2,
    "state": "converged",
    "default_host": 1,
    "members": [1, 2, 4],
    "convergence_count": 3,
    "last_converged_s_ago": 12.5,
}


class FakeAgent:
    """Answers each verb with what ``answers`` holds for it, and records what it was asked.

    An answer that is a list is handed out item by item, the last one for ever; an exception is
    raised.
    """

    def __init__(self, **answers: object) -> None:
        self.answers = {"query": QUERY, **answers}
        self.asked: list[tuple[str, dict]] = []

    def handle(self, verb: str, args: dict) -> Result:
        self.asked.append((verb, args))
        answer = self.answers.get(verb, SoftnlbError(f"there is no verb {verb!r}"))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def serving(path: Path, handler: Handler, group_id: int | None = None) -> Iterator[ControlServer]:
    """A ControlServer that a thread serves as an agent's loop would, until the block ends."""
    server = ControlServer(path, handler, group_id)
    read_end, write_end = os.pipe()

    def loop() -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ, server.handle)
            selector.register(read_end, selectors.EVENT_READ, None)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    key.data()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield server
    finally:
        os.write(write_end, b".")
        thread.join()
        server.close()
        os.close(read_end)
        os.close(write_end)
