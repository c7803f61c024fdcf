"""What is measured of a method while nothing fails: shares, affinity, what servers see, waste."""

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable
from typing import Any

from labs.compare.clients import PORT, Plan, Record, ping, request
from labs.compare.resolve import Resolver
from labs.handle import Channel, LabHandle
from labs.topology import CLIENT_ADDRESS, CLIENT_POOL

MANY, ONE = 240, 24
TIMEOUT_S = 2.0
UNINVOLVED = "client2"
"""A node on the switch that takes no part: what it receives is wasted."""

COOKIE_PORT, TLS_PORT = 81, 443


def server_of(lab: LabHandle, plan: Plan) -> str:
    """The server that the one client address meets; by DNS the first of a fresh answer."""

    def work(_: Channel) -> str:
        async def ask() -> str:
            resolver = Resolver(plan.dns, plan.address, cache=False)
            said = await _ask((await resolver.addresses())[0], str(CLIENT_ADDRESS))
            return f"host{said['host_id']}"

        return asyncio.run(ask())

    return str(lab.run("client1", work))


def steady(lab: LabHandle, plan: Plan) -> dict[str, Any]:
    """All that is measured without a fault."""
    before = _frames(lab)
    seen: dict[str, Any] = lab.run("client1", lambda _: asyncio.run(_measure(plan)))
    after = _frames(lab)
    requests = MANY + ONE
    out = {
        port: {name: after[port][name] - before[port][name] for name in after[port]}
        for port in after
    }
    asked = out["router"]["in"]
    return {
        **seen,
        "frames_per_request": round(
            sum(port["forwarded"] + port["flooded"] for port in out.values()) / requests, 1
        ),
        "wasted_per_request": round(sum(port["wasted"] for port in out.values()) / requests, 1),
        "wasted_at_uninvolved_percent": round(100 * out[UNINVOLVED]["wasted"] / max(1, asked), 1),
        "frames": out,
    }


def _frames(lab: LabHandle) -> dict[str, dict[str, int]]:
    from labs.events import parse

    events = parse(lab.events().decode().splitlines(), lab.name)
    last: dict[str, dict[str, int]] = [e for e in events if e["event"] == "frames"][-1]["ports"]
    return last


async def _ask(address: str, source: str) -> dict[str, Any]:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with connection:
        connection.bind((source, 0))
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(connection, (address, PORT))
        return await request(connection, "/x", TIMEOUT_S)


async def _measure(plan: Plan) -> dict[str, Any]:
    resolver = Resolver(plan.dns, plan.address, cache=False)
    chosen = random.Random(1)
    shares: dict[str, int] = {}
    addresses_seen = set()
    for _ in range(MANY):
        source = str(CLIENT_POOL[chosen.randrange(1, CLIENT_POOL.num_addresses - 1)])
        said = await _ask((await resolver.addresses())[0], source)
        name = f"host{said['host_id']}"
        shares[name] = shares.get(name, 0) + 1
        seen = str(said["client"]).partition(":")[0]
        addresses_seen.add("the client" if seen == source else seen)
    one = []
    for _ in range(ONE):
        said = await _ask((await resolver.addresses())[0], str(CLIENT_ADDRESS))
        one.append(f"host{said['host_id']}")
    cookie, tls = False, False
    with contextlib.suppress(OSError, TimeoutError, ValueError, KeyError):
        cookie = await _cookie_affinity((await resolver.addresses())[0])
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        tls = await _speaks_tls((await resolver.addresses())[0])
    return {
        "shares": dict(sorted(shares.items())),
        "servers_of_one_address": sorted(set(one)),
        "affinity": len(set(one)) == 1,
        "server_sees": sorted(addresses_seen),
        "cookie_affinity": cookie,
        "tls_offloading": tls,
    }


async def _cookie_affinity(address: str) -> bool:
    """Requests from a dozen addresses that carry one cookie: do they meet one server?"""
    cookie, hosts = "", set()
    for number in range(12):
        connection = await asyncio.wait_for(
            asyncio.open_connection(
                address, COOKIE_PORT, local_addr=(str(CLIENT_POOL[number + 1]), 0)
            ),
            TIMEOUT_S,
        )
        reader, writer = connection
        head = f"GET /x HTTP/1.0\r\nHost: www\r\n{cookie}\r\n"
        writer.write(head.encode())
        answer = (await asyncio.wait_for(reader.read(), TIMEOUT_S)).decode()
        writer.close()
        if not cookie:
            given = next(line for line in answer.lower().splitlines() if "set-cookie" in line)
            start = answer.lower().index(given) + len("set-cookie: ")
            cookie = f"Cookie: {answer[start:].partition(';')[0]}\r\n"
        hosts.add(answer.partition('"host_id": ')[2].partition(",")[0])
    return len(hosts) == 1


async def _speaks_tls(address: str) -> bool:
    """Whether somebody in front of the servers, which speak plain HTTP, ends TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection(address, TLS_PORT, ssl=context), TIMEOUT_S
    )
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
    writer.close()
    return b"host_id" in answer


def pings(address: str) -> Callable[[Channel], list[Record]]:
    """Body of a task: an echo request every 5 ms until told to stop."""

    def work(channel: Channel) -> list[Record]:
        records: list[Record] = []

        async def run() -> None:
            stopped = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(channel.fileno(), stopped.set)
            task = asyncio.create_task(ping(address, records, 0.005))
            while not any(record[3] is None for record in records):
                await asyncio.sleep(0.01)
            channel.send({"ready": True})
            await stopped.wait()
            loop.remove_reader(channel.fileno())
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        asyncio.run(run())
        return records

    return work
