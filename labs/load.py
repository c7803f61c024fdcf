"""Clients: real TCP connections from many addresses, each remembering which host answered.

The functions run inside a client node (``LabHandle.start``).  Times are CLOCK_MONOTONIC in
seconds, which all nodes and the machine share.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from labs.handle import Channel
from labs.topology import CLIENT_POOL, CLUSTER_IP_ADDRESS, SERVICE_PORT

GAP_JOIN_S = 0.5
"""Failures less than this apart are one gap in the service: where a host of many is gone, most
clients in between are answered."""

SERVER = (str(CLUSTER_IP_ADDRESS), SERVICE_PORT)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the clients do.

    ``burst``: so many new connections, ``concurrency`` at a time.  ``rate``: new connections per
    second until stopped.  ``hold``: connections that stay open and exchange a byte every
    ``beat_s`` until stopped.  ``timeout_s``: a new connection without an answer by then failed;
    below 1 s no retransmitted SYN can hide an outage.
    """

    burst: int = 0
    concurrency: int = 64
    rate: float = 0.0
    hold: int = 0
    beat_s: float = 0.25
    lifetime_s: float = 0.0
    """A long connection is closed after about this time and another one opened; 0: it stays."""

    silence_s: float = 4.0
    timeout_s: float = 0.5
    pool: bool = True
    """Many source addresses; False: the node's own, as for client2."""

    server: tuple[str, int] = SERVER
    addresses: str = str(CLIENT_POOL)
    """The many source addresses, as a network."""


@dataclass(slots=True)
class Connection:
    """One new connection: from where, when, answered by whom; ``error`` when by nobody."""

    client: str
    port: int
    began_s: float
    took_s: float = 0.0
    host_id: int | None = None
    error: str | None = None


@dataclass(slots=True)
class Held:
    """One long connection; ``began_s`` and ``broken_s`` are when it was opened and broke."""

    client: str
    port: int
    began_s: float = 0.0
    host_id: int | None = None
    broken_s: float | None = None
    error: str | None = None


@dataclass(slots=True)
class Result:
    """Everything that the clients saw."""

    new: list[Connection] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Result":
        """From what a task returns."""
        return cls(
            [Connection(**entry) for entry in data["new"]],
            [Held(**entry) for entry in data["held"]],
        )

    def failed(self) -> list[Connection]:
        """New connections that nobody answered."""
        return [connection for connection in self.new if connection.host_id is None]

    def broken(self, host_id: int | None = None) -> list[Held]:
        """Long connections that broke: all, or those of one host."""
        return [
            held for held in self.held if held.error is not None and host_id in (None, held.host_id)
        ]

    def served(self, since_s: float = 0.0) -> dict[int, int]:
        """New connections per host, of those begun after ``since_s``."""
        count: dict[int, int] = {}
        for connection in self.new:
            if connection.host_id is not None and connection.began_s >= since_s:
                count[connection.host_id] = count.get(connection.host_id, 0) + 1
        return dict(sorted(count.items()))


def gaps(connections: Iterable[Connection]) -> list[list[float]]:
    """[from, until] of every gap in the service: from the first connection that failed until the
    one that followed the last of them."""
    found: list[list[float]] = []
    answered = True
    ordered = sorted(connections, key=lambda each: each.began_s)
    for connection, following in zip_longest(ordered, ordered[1:]):
        if connection.host_id is not None:
            answered = True
            continue
        ends_s = connection.began_s + connection.took_s
        until_s = following.began_s if following is not None else ends_s
        if found and (not answered or connection.began_s < found[-1][1] + GAP_JOIN_S):
            found[-1][1] = round(until_s, 4)
        else:
            found.append([round(connection.began_s, 4), round(until_s, 4)])
        answered = False
    return found


def clients(channel: Channel, traffic: Traffic) -> dict[str, Any]:
    """Body of a task: announce {"ready": held} when the long connections stand, then go on.

    Ends when the burst is through and there is nothing else to do, or on a stop message.
    Returns a ``Result`` as JSON.
    """
    from labs.load_clients import work

    return asdict(work(channel, traffic))
