"""``softnlb lab open``: the cluster on 127.0.0.1 of the machine, through a client."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable

from labs.handle import Channel, LabHandle
from labs.topology import SERVICE_PORT
from softnlb.errors import SoftnlbError

CHUNK_BYTES = 1 << 16


def relay(lab: LabHandle, port: int, opened: Callable[[int, str], None]) -> None:
    """Relay until Ctrl-C.  ``opened`` is told the port (0 asks for a free one) and the client."""
    client = lab.client()["name"]
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise SoftnlbError(f"127.0.0.1:{port}: {error.strerror}") from error
    listener.listen(128)

    # The listening socket stays the machine's, although the process that accepts is in a client.
    address = str(lab.spec().cluster_ip_address)

    def body(_: Channel) -> None:
        asyncio.run(_accept(listener, address))

    with lab.start(client, body) as task:
        opened(listener.getsockname()[1], client)
        with contextlib.suppress(KeyboardInterrupt):
            task.result()


async def _accept(listener: socket.socket, address: str) -> None:
    server = await asyncio.start_server(functools.partial(_forward, address), sock=listener)
    await server.serve_forever()


async def _forward(
    address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        inner = await asyncio.open_connection(address, SERVICE_PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, inner[1]), _copy(inner[0], writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
