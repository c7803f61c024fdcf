"""The clients of labs/load.py at work, apart because asyncio takes as long to load as a command."""

import asyncio
import contextlib
import errno
import json
import random
import socket
import time
from ipaddress import ip_network

from labs.handle import Channel
from labs.load import Connection, Held, Result, Traffic
from labs.topology import end_point

FIRST_PORT, LAST_PORT = 1024, 65535
BIND_TRIES = 20
ANSWER_MAX_BYTES = 8192


def work(channel: Channel, traffic: Traffic) -> Result:
    """What ``labs.load.clients`` does, in the process that it runs in."""
    return asyncio.run(Clients(channel, traffic).run())


async def fetch_host_id(
    connection: socket.socket, server: tuple[str, int], path: str, timeout_s: float
) -> int | None:
    """Connect, ask and return the host id.  Raises OSError, ValueError or TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        await loop.sock_connect(connection, server)
        host = end_point(*server)
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        await loop.sock_sendall(connection, request.encode())
        answer = b""
        while not answer.endswith(b"\n") or b"\r\n\r\n" not in answer:
            data = await loop.sock_recv(connection, ANSWER_MAX_BYTES)
            if not data:
                raise ConnectionError("closed before the answer")
            answer += data
    host_id: int | None = json.loads(answer.partition(b"\r\n\r\n")[2])["host_id"]
    return host_id


class Clients:
    """All clients of one node."""

    def __init__(self, channel: Channel, traffic: Traffic) -> None:
        self.channel = channel
        self.traffic = traffic
        self.result = Result()
        self.random = random.Random()
        self.stopped = asyncio.Event()
        self.pool = ip_network(traffic.addresses)
        self.family = socket.AF_INET6 if ":" in traffic.server[0] else socket.AF_INET

    async def run(self) -> Result:
        traffic = self.traffic
        loop = asyncio.get_running_loop()
        loop.add_reader(self.channel.fileno(), self._message)
        gate = asyncio.Semaphore(traffic.concurrency)
        holding = [await self._open_held() for _ in range(traffic.hold)]
        tasks = [asyncio.create_task(self._keep_one(*pair)) for pair in holding]
        self.channel.send({"ready": len(tasks)})
        if traffic.burst:
            await asyncio.gather(*(self._gated(gate) for _ in range(traffic.burst)))
        if traffic.rate:
            await self._steady()
        elif traffic.hold:
            await self.stopped.wait()
        self.stopped.set()
        await asyncio.gather(*tasks)
        loop.remove_reader(self.channel.fileno())
        return self.result

    def _message(self) -> None:
        self.channel.receive()
        self.stopped.set()

    async def _gated(self, gate: asyncio.Semaphore) -> None:
        async with gate:
            await self._fetch()

    async def _steady(self) -> None:
        """One connection every 1/rate s, whatever became of those before."""
        began, number = time.monotonic(), 0
        running: set[asyncio.Task[None]] = set()
        while not self.stopped.is_set():
            task = asyncio.create_task(self._fetch())
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
            wait_s = began + number / self.traffic.rate - time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), max(0.0, wait_s))
        if running:
            await asyncio.wait(running)

    def _socket(self) -> tuple[socket.socket, str, int]:
        """A socket bound to an address and port that were not used before."""
        for _ in range(BIND_TRIES):
            connection = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            offset = self.random.randrange(1, self.pool.num_addresses - 1)
            address = str(self.pool[offset]) if self.traffic.pool else ""
            try:
                connection.bind((address, self.random.randint(FIRST_PORT, LAST_PORT)))
            except OSError as error:
                connection.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return connection, address, connection.getsockname()[1]
        raise OSError(errno.EADDRINUSE, "no free port after several tries")

    async def _ask(self, connection: socket.socket, path: str) -> int | None:
        traffic = self.traffic
        return await fetch_host_id(connection, traffic.server, path, traffic.timeout_s)

    async def _fetch(self) -> None:
        connection, client, port = self._socket()
        seen = Connection(client, port, time.monotonic())
        with connection:
            try:
                seen.host_id = await self._ask(connection, "/")
            except (OSError, TimeoutError, ValueError) as error:
                seen.error = type(error).__name__
        seen.took_s = time.monotonic() - seen.began_s
        self.result.new.append(seen)

    async def _open_held(self) -> tuple[socket.socket, Held]:
        connection, client, port = self._socket()
        held = Held(client, port, time.monotonic())
        self.result.held.append(held)
        try:
            held.host_id = await self._ask(connection, "/hold")
        except (OSError, TimeoutError, ValueError) as error:
            held.error, held.broken_s = f"not opened: {type(error).__name__}", time.monotonic()
        return connection, held

    async def _keep_one(self, connection: socket.socket, held: Held) -> None:
        """One long connection after the other where they have a lifetime, else this one."""
        while True:
            await self._hold(connection, held)
            if self.stopped.is_set() or not self.traffic.lifetime_s:
                return
            connection, held = await self._open_held()
            while held.error is not None:
                # Not a long connection that broke, but a new one that failed.
                self.result.held.remove(held)
                took_s = (held.broken_s or 0.0) - held.began_s
                failed = Connection(held.client, held.port, held.began_s, took_s, error=held.error)
                self.result.new.append(failed)
                connection.close()
                if self.stopped.is_set():
                    return
                connection, held = await self._open_held()

    async def _hold(self, connection: socket.socket, held: Held) -> None:
        """Exchange a byte every beat; end when asked to, when it broke or had its time."""
        loop = asyncio.get_running_loop()
        lifetime_s = self.traffic.lifetime_s * self.random.uniform(0.5, 1.5)
        until_s = time.monotonic() + lifetime_s if lifetime_s else float("inf")
        with connection:
            while not self.stopped.is_set() and held.error is None and time.monotonic() < until_s:
                try:
                    async with asyncio.timeout(self.traffic.silence_s):
                        await loop.sock_sendall(connection, b".")
                        if not await loop.sock_recv(connection, 64):
                            raise ConnectionError("closed by the host")
                except (OSError, TimeoutError) as error:
                    held.error, held.broken_s = type(error).__name__, time.monotonic()
                    return
                beat_s = self.traffic.beat_s * self.random.uniform(0.5, 1.5)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopped.wait(), beat_s)
