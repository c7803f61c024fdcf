"""Clients at fixed addresses that come again and again, and remember which host answered.

As in ``labs.load_clients``, this is imported where the clients work.
"""

import asyncio
import socket
import time
from ipaddress import ip_network
from typing import Any

from labs.handle import Channel
from labs.load_clients import fetch_host_id

ANSWER_S = 3.0
"""Long enough for a SYN to be sent again: nobody answers in the moment of a hand-over."""
CONCURRENCY = 32
FIRST = 5000
"""Into the pool of addresses: the other traffic draws from the rest of it."""


def visit(
    channel: Channel, server: tuple[str, int], pool: str, count: int, round_s: float
) -> dict[str, Any]:
    """Body of a task: rounds of one connection per client until stopped; ready after the first."""
    return asyncio.run(_visit(channel, server, pool, count, round_s))


async def _visit(
    channel: Channel, server: tuple[str, int], pool: str, count: int, round_s: float
) -> dict[str, Any]:
    stopped = asyncio.Event()

    def message() -> None:
        channel.receive()
        stopped.set()

    asyncio.get_running_loop().add_reader(channel.fileno(), message)
    hosts: list[list[tuple[float, int]]] = [[] for _ in range(count)]
    visits = unanswered = 0
    gate = asyncio.Semaphore(CONCURRENCY)
    network = ip_network(pool)

    async def one(client: int) -> None:
        nonlocal visits, unanswered
        async with gate:
            host_id = await _come(str(network[FIRST + client]), server)
        visits += 1
        if host_id is None:
            unanswered += 1
        elif not hosts[client] or hosts[client][-1][1] != host_id:
            hosts[client].append((time.monotonic(), host_id))

    last = False
    while not last:
        last = stopped.is_set()
        next_s = time.monotonic() + round_s
        await asyncio.gather(*(one(client) for client in range(count)))
        if visits == count:
            channel.send({"ready": count})
        try:
            await asyncio.wait_for(stopped.wait(), max(0.0, next_s - time.monotonic()))
        except TimeoutError:
            continue
    asyncio.get_running_loop().remove_reader(channel.fileno())
    return {"hosts": hosts, "unanswered": unanswered, "visits": visits}


async def _come(address: str, server: tuple[str, int]) -> int | None:
    """A connection from this address; the id of the host that answered."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind((address, 0))
        try:
            return await fetch_host_id(connection, server, "/", ANSWER_S)
        except (OSError, TimeoutError, ValueError):
            return None
