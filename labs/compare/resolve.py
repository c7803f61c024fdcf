"""A DNS client of our own, so that results do not depend on what a system's library does."""

import asyncio
import socket
import struct
import time

NAME = "www.lab"
TIMEOUT_S = 1.0


def _question(number: int) -> bytes:
    labels = b"".join(bytes((len(part),)) + part.encode() for part in NAME.split("."))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + b"\0\1\0\1"


def _answers(reply: bytes, question_bytes: int) -> tuple[list[str], int]:
    """Addresses in their order, and the shortest time to live in seconds."""
    (count,) = struct.unpack_from("!H", reply, 6)
    at, addresses, ttl_s = question_bytes, [], 3600
    for _ in range(count):
        while reply[at] and reply[at] < 0xC0:
            at += reply[at] + 1
        at += 2 if reply[at] else 1
        kind, _, ttl, length = struct.unpack_from("!HHIH", reply, at)
        at += 10
        if kind == 1:
            addresses.append(socket.inet_ntoa(reply[at : at + 4]))
            ttl_s = min(ttl_s, ttl)
        at += length
    return addresses, ttl_s


async def ask(server: str) -> tuple[list[str], int]:
    """Addresses of the service, in the order of the answer.  Raises OSError or TimeoutError."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
        connection.connect((server, 53))
        number = time.monotonic_ns() & 0xFFFF
        question = _question(number)
        connection.send(question)
        async with asyncio.timeout(TIMEOUT_S):
            reply = await loop.sock_recv(connection, 4096)
    try:
        return _answers(reply, len(question))
    except (struct.error, IndexError) as error:
        raise OSError(f"a DNS answer makes no sense: {error}") from error


class Resolver:
    """``server`` None: the service has one address, ``address``.  ``cache``: keep an answer for
    its time to live, as the clients of one machine do together."""

    def __init__(self, server: str | None, address: str, cache: bool) -> None:
        self._server, self._cache = server, cache
        self._known: list[str] = [] if server else [address]
        self._until_s = 0.0 if server else float("inf")

    async def addresses(self) -> list[str]:
        """Raises OSError or TimeoutError."""
        if self._server is not None and (not self._cache or time.monotonic() > self._until_s):
            self._known, ttl_s = await ask(self._server)
            self._until_s = time.monotonic() + ttl_s
        if not self._known:
            raise OSError("the name has no address")
        return self._known
