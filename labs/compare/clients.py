"""The clients of the comparison: ping, a long session, HTTP in two ways, by DNS policy, and many.

Each works off one operation after the other and notes when it began and ended and who served it.
They run in client1 and are told when to end; times are CLOCK_MONOTONIC in seconds.
"""

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from labs.compare.resolve import Resolver
from labs.handle import Channel
from labs.topology import CLIENT_ADDRESS, CLIENT_POOL
from softnlb.errors import SoftnlbError

PORT = 80
PING_S, STEP_S, MANY_S = 0.02, 0.1, 0.025
SILENCE_S = 3.0
"""After so long without an answer a user takes a session for dead and connects again."""

RETRY_S = 2.5
"""Patience per attempt where there is one address: a SYN that was lost is repeated after 1 s."""

SYSTEM_CONNECT_S = 21.0
"""Patience of an operating system per address: what Windows clients were seen to wait."""

BEGIN_S = 20.0
"""Every client must have been served once by then."""

LAG_STEP_S = 0.02

STAGGER_S = 0.25
"""Happy eyeballs (RFC 8305): between two attempts that run side by side."""

POLICIES = ("first only", "next on error", "happy eyeballs")

Record = list[Any]
"""[began_s, ended_s, host id or None, error or None]"""


@dataclass(frozen=True, slots=True)
class Plan:
    """``address``: of the service; ``dns``: the server that knows its addresses instead."""

    address: str
    dns: str | None = None

    @property
    def patience_s(self) -> float:
        """Per attempt."""
        return SYSTEM_CONNECT_S if self.dns else RETRY_S


async def _connect(address: str, source: str, patience_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.bind((source, 0))
        async with asyncio.timeout(patience_s):
            await asyncio.get_running_loop().sock_connect(connection, (address, PORT))
    except BaseException:
        connection.close()
        raise
    return connection


async def _eyeballs(addresses: list[str], source: str, patience_s: float) -> socket.socket:
    """Attempts that begin one after the other and run side by side; the first wins."""
    running: set[asyncio.Task[socket.socket]] = set()
    left = list(addresses)
    error: BaseException = OSError("no address")
    while left or running:
        if left:
            running.add(asyncio.create_task(_connect(left.pop(0), source, patience_s)))
        wait_s = STAGGER_S if left else None
        done, running = await asyncio.wait(
            running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            if task.exception() is None:
                for other in running:
                    other.cancel()
                return task.result()
            error = task.exception() or error
    raise error


async def connect(resolver: Resolver, policy: str, source: str, patience_s: float) -> socket.socket:
    """A connection to the service.  Raises OSError or TimeoutError."""
    addresses = await resolver.addresses()
    if policy == "happy eyeballs":
        return await _eyeballs(addresses, source, patience_s)
    for number, address in enumerate(addresses, 1):
        try:
            return await _connect(address, source, patience_s)
        except (OSError, TimeoutError):
            if policy == "first only" or number == len(addresses):
                raise
    raise OSError("no address")


async def request(connection: socket.socket, path: str, patience_s: float) -> dict[str, Any]:
    """One HTTP request on an open connection; what the host says.  Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    close = "Connection: close\r\n" if path != "/" else ""
    async with asyncio.timeout(patience_s):
        await loop.sock_sendall(
            connection, f"GET {path} HTTP/1.1\r\nHost: www\r\n{close}\r\n".encode()
        )
        answer = b""
        while not answer.endswith(b"\n") or b"\r\n\r\n" not in answer:
            data = await loop.sock_recv(connection, 8192)
            if not data:
                raise ConnectionError("closed before the answer")
            answer += data
    said: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return said


async def _fetch(resolver: Resolver, policy: str, source: str, patience_s: float) -> int:
    """One request on a new connection; one that is reset under way is repeated, as browsers do."""
    for tries_left in (1, 0):
        with await connect(resolver, policy, source, patience_s) as connection:
            try:
                return int((await request(connection, "/x", RETRY_S))["host_id"])
            except ConnectionError:
                if not tries_left:
                    raise
    raise OSError("not reached")


class Clients:
    """All clients of one measurement."""

    def __init__(self, channel: Channel, plan: Plan) -> None:
        self._channel, self._plan = channel, plan
        self._stopped = asyncio.Event()
        self._random = random.Random(1)
        self._shared = Resolver(plan.dns, plan.address, cache=True)
        self.records: dict[str, list[Record]] = {}
        self._lag_s = 0.0

    async def run(self) -> dict[str, Any]:
        """Until told to end; announces {"ready"} when every client was served once."""
        source, shared = str(CLIENT_ADDRESS), self._shared
        jobs: dict[str, Callable[[], Awaitable[None]]] = {}
        with contextlib.suppress(OSError, TimeoutError):
            await shared.addresses()
        jobs["ping"] = self._ping
        jobs["long TCP session"] = lambda: self._session("long TCP session", "/hold")
        jobs["HTTP keep-alive"] = lambda: self._session("HTTP keep-alive", "/")
        if self._plan.dns is None:
            jobs["HTTP"] = lambda: self._requests("HTTP", shared, POLICIES[1], source, STEP_S)
        else:
            for policy in POLICIES:
                for cached in (True, False):
                    name = f"HTTP, {policy}, {'cached' if cached else 'no cache'}"
                    resolver = shared if cached else Resolver(self._plan.dns, "", cache=False)
                    jobs[name] = self._policy(name, resolver, policy, source)
        jobs["many clients"] = self._many
        self.records = {name: [] for name in jobs}
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._stopped.set)
        tasks = [asyncio.create_task(_run(job)) for job in jobs.values()]
        deadline_s = time.monotonic() + BEGIN_S
        while not all(map(_served, self.records.values())):
            await asyncio.sleep(0.02)
            if time.monotonic() > deadline_s:
                idle = ", ".join(name for name, noted in self.records.items() if not _served(noted))
                raise SoftnlbError(f"not served within {BEGIN_S:g} s: {idle}")
        known = await shared.addresses() if self._plan.dns else []
        tasks.append(asyncio.create_task(self._watch_ourselves()))
        self._channel.send({"ready": True, "first_address": known[0] if known else None})
        await self._stopped.wait()
        loop.remove_reader(self._channel.fileno())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {"records": self.records, "lag_s": round(self._lag_s, 3)}

    async def _watch_ourselves(self) -> None:
        """How long the machine did not let us run: that is no figure of any method."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(LAG_STEP_S)
            self._lag_s = max(self._lag_s, time.monotonic() - before_s - LAG_STEP_S)

    def _policy(
        self, name: str, resolver: Resolver, policy: str, source: str
    ) -> Callable[[], Awaitable[None]]:
        return lambda: self._requests(name, resolver, policy, source, STEP_S)

    async def _step(self, name: str, step_s: float, work: Callable[[], Awaitable[int]]) -> None:
        """One operation after the other; one that is cut off at the end is noted as failed."""
        while True:
            began_s = time.monotonic()
            record: Record = [began_s, began_s, None, "not answered until the end"]
            self.records[name].append(record)
            try:
                record[2] = await work()
                record[3] = None
            except (OSError, TimeoutError, ValueError) as error:
                record[3] = type(error).__name__
            finally:
                record[1] = time.monotonic()
            await asyncio.sleep(max(0.01, began_s + step_s - time.monotonic()))

    async def _session(self, name: str, path: str) -> None:
        """A connection that stays: /hold echoes bytes, / answers requests."""
        connection: socket.socket | None = None
        host_id = 0
        loop = asyncio.get_running_loop()

        async def work() -> int:
            nonlocal connection, host_id
            try:
                if connection is None:
                    patience_s = self._plan.patience_s
                    connection = await connect(
                        self._shared, POLICIES[1], str(CLIENT_ADDRESS), patience_s
                    )
                    host_id = (await request(connection, path, SILENCE_S))["host_id"]
                elif path == "/":
                    host_id = (await request(connection, path, SILENCE_S))["host_id"]
                else:
                    async with asyncio.timeout(SILENCE_S):
                        await loop.sock_sendall(connection, b".")
                        if not await loop.sock_recv(connection, 64):
                            raise ConnectionError("closed by the host")
            except BaseException:
                if connection is not None:
                    connection.close()
                    connection = None
                raise
            return host_id

        await self._step(name, STEP_S, work)

    async def _requests(
        self, name: str, resolver: Resolver, policy: str, source: str, step_s: float
    ) -> None:
        patience_s = self._plan.patience_s
        await self._step(name, step_s, lambda: _fetch(resolver, policy, source, patience_s))

    async def _many(self) -> None:
        """One new connection from another address every ``MANY_S``, whatever became of others."""
        began_s, number = time.monotonic(), 0
        running: set[asyncio.Task[None]] = set()
        resolver = Resolver(self._plan.dns, self._plan.address, cache=False)
        try:
            while True:
                task = asyncio.create_task(self._one_of_many(resolver))
                running.add(task)
                task.add_done_callback(running.discard)
                number += 1
                await asyncio.sleep(max(0.0, began_s + number * MANY_S - time.monotonic()))
        finally:
            for task in running:
                task.cancel()

    async def _one_of_many(self, resolver: Resolver) -> None:
        source = str(CLIENT_POOL[self._random.randrange(1, CLIENT_POOL.num_addresses - 1)])
        record: Record = [time.monotonic(), 0.0, None, None]
        try:
            record[2] = await _fetch(resolver, POLICIES[0], source, RETRY_S)
        except (OSError, TimeoutError, ValueError) as error:
            record[3] = type(error).__name__
        record[1] = time.monotonic()
        self.records["many clients"].append(record)

    async def _ping(self) -> None:
        """Echo requests to one address, each noted when it is answered."""
        address = (await self._shared.addresses())[0]
        await ping(address, self.records["ping"], PING_S)


async def ping(address: str, records: list[Record], step_s: float) -> None:
    """One echo request per ``step_s``; an answered one gets host id 0."""
    loop = asyncio.get_running_loop()
    waiting: dict[int, Record] = {}
    with socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP
    ) as echo:
        echo.connect((address, 0))

        def heard() -> None:
            with contextlib.suppress(OSError):
                reply = echo.recv(2048)
                record = waiting.pop(struct.unpack_from("!H", reply, 6)[0], None)
                if record is not None:
                    record[1:] = [time.monotonic(), 0, None]

        loop.add_reader(echo.fileno(), heard)
        try:
            number = 0
            began_s = time.monotonic()
            while True:
                now_s = time.monotonic()
                record: Record = [now_s, now_s, None, "no reply"]
                records.append(record)
                waiting[number & 0xFFFF] = record
                with contextlib.suppress(OSError):
                    echo.send(struct.pack("!BBHHH", 8, 0, 0, 0, number & 0xFFFF))
                number += 1
                await asyncio.sleep(max(0.0, began_s + number * step_s - time.monotonic()))
        finally:
            loop.remove_reader(echo.fileno())


async def _run(job: Callable[[], Awaitable[None]]) -> None:
    await job()


def _served(records: list[Record]) -> bool:
    return any(record[3] is None for record in records)


def body(plan: Plan) -> Callable[[Channel], dict[str, Any]]:
    """For ``LabHandle.start("client1", ...)``."""

    def work(channel: Channel) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            return await Clients(channel, plan).run()

        return asyncio.run(run())

    return work
