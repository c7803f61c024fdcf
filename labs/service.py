"""The lab's HTTP service: says which host answered.  On every address of the host.

GET /          one JSON object with the host id, then keep-alive as HTTP/1.1 does
GET /hold      the same object on one line, then an echo of every byte until the client closes
GET /sink      the same object on one line, then swallows bytes until the client closes
GET /source    the same object on one line, then sends zeros until the client closes
"""

import asyncio
import contextlib
import json
import os
import resource
import select
import socket
import subprocess
from pathlib import Path

from labs.topology import end_point

BACKLOG = 4096
CONNECT_EVERY_S = 0.01
REQUEST_MAX_BYTES = 8192
ZEROS = bytes(1 << 18)


class Conversation(asyncio.Protocol):
    """One client connection."""

    def __init__(self, host_id: int | None) -> None:
        self.host_id = host_id
        self.kind = "http"
        self.received = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of the stream that an earlier request began."""
        if self.transport is None:
            return
        if self.kind == "hold":
            self.transport.write(data)
        elif self.kind == "http":
            self.received += data
            while self.kind == "http" and b"\r\n\r\n" in self.received:
                head, _, self.received = self.received.partition(b"\r\n\r\n")
                self._answer(head)
            if len(self.received) > REQUEST_MAX_BYTES:
                self.transport.abort()

    def resume_writing(self) -> None:
        """There is room for more zeros."""
        if self.kind == "source" and self.transport is not None:
            self.transport.write(ZEROS)

    def _answer(self, head: bytes) -> None:
        transport = self.transport
        if transport is None:
            return
        words = head.split(b"\r\n", 1)[0].split()
        path = words[1].decode(errors="replace") if len(words) == 3 else ""
        body = self._who(path)
        kind = path.strip("/")
        if kind in ("hold", "sink", "source"):
            self.kind = kind
            transport.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
            if kind == "source":
                transport.set_write_buffer_limits(high=len(ZEROS))
                transport.write(ZEROS + ZEROS)
            return
        status = b"200 OK" if words[:1] in ([b"GET"], [b"HEAD"]) else b"400 Bad Request"
        close = b"connection: close" in head.lower() or b"HTTP/1.0" in head
        transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
            % (status, len(body), b"Connection: close\r\n" if close else b"")
            + (b"" if words[:1] == [b"HEAD"] else body)
        )
        if close:
            transport.close()

    def _who(self, path: str) -> bytes:
        transport = self.transport
        client = transport.get_extra_info("peername") if transport else None
        server = transport.get_extra_info("sockname") if transport else None
        answer = {
            "host_id": self.host_id,
            "node": socket.gethostname(),
            "client": end_point(*client[:2]) if client else None,
            "server": end_point(*server[:2]) if server else None,
            "path": path,
        }
        return json.dumps(answer).encode() + b"\n"


async def _serve(host_id: int | None, ports: list[int], ready: int, ipv6: bool) -> None:
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(
            lambda: Conversation(host_id),
            ["0.0.0.0", "::"] if ipv6 else "0.0.0.0",
            port,
            backlog=BACKLOG,
            reuse_address=True,
        )
        for port in ports
    ]
    os.write(ready, b"1")
    os.close(ready)
    await asyncio.gather(*(server.serve_forever() for server in servers))


NGINX = """\
daemon off;
worker_processes 1;
pid /run/nginx.pid;
error_log /run/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server {{
    {listen}
    location / {{
      default_type application/json;
      return 200 '{{"host_id": {host_id}, "client": "$remote_addr:$remote_port"}}\\n';
    }}
  }}
}}
"""


def nginx(host_id: int | None, ports: list[int], ready: int, ipv6: bool = False) -> int:
    """nginx instead of the built-in service, with the same first answer; in the foreground."""
    families = ("", "[::]:") if ipv6 else ("",)
    listen = " ".join(f"listen {family}{port};" for port in ports for family in families)
    config = Path("/run/nginx.conf")
    config.write_text(NGINX.format(listen=listen, host_id=host_id))
    with subprocess.Popen(
        ["nginx", "-c", str(config), "-e", "/run/nginx.log", "-p", "/run"]
    ) as web:
        for port in ports:
            while web.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                select.select([], [], [], CONNECT_EVERY_S)
        if web.poll() is None:
            os.write(ready, b"1")
        os.close(ready)
        return web.wait()


def raise_open_files_limit() -> None:
    """To as many as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(host_id: int | None, ports: list[int], ready: int, ipv6: bool = False) -> int:
    """Serve until killed; one byte to the descriptor ``ready`` when clients may connect."""
    raise_open_files_limit()
    asyncio.run(_serve(host_id, ports, ready, ipv6))
    return 0
