"""Writing pcapng: one section, one interface per port, one block per frame with its comment.

Events go into the same file as systemd journal entries, which Wireshark shows between the frames.
Format: draft-ietf-opsawg-pcapng.
"""

import struct
from functools import lru_cache
from typing import BinaryIO

_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_STATISTICS = 5
_PACKET = 6
_JOURNAL = 9

_BYTE_ORDER = 0x1A2B3C4D
_LINK_ETHERNET = 1

_COMMENT = 1
_IF_NAME, _IF_DESCRIPTION = 2, 3
_IF_TSRESOL = 9
_ISB_IFDROP = 5
_EPB_FLAGS = 2
_INBOUND, _OUTBOUND = 1, 2

_EPB = struct.Struct("<IIIIIII")
_END = b"\0\0\0\0"


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


@lru_cache(maxsize=1 << 14)
def _options(to_switch: bool, comment: str) -> bytes:
    flags = _option(_EPB_FLAGS, struct.pack("<I", _INBOUND if to_switch else _OUTBOUND))
    text = _option(_COMMENT, comment.encode()[:60_000]) if comment else b""
    return text + flags + _END


_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class Writer:
    """Writes frames of several ports into one file."""

    def __init__(self, file: BinaryIO, ports: list[str], descriptions: list[str]) -> None:
        self._file = file
        header = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
        file.write(_block(_SECTION, header))
        for port, description in zip(ports, descriptions, strict=True):
            options = _option(_IF_NAME, port.encode())
            options += _option(_IF_DESCRIPTION, description.encode())
            options += _option(_IF_TSRESOL, b"\x09") + _END
            file.write(_block(_INTERFACE, struct.pack("<HHI", _LINK_ETHERNET, 0, 0) + options))

    def frame(
        self,
        port: int,
        at_ns: int,
        data: bytes,
        length_bytes: int,
        to_switch: bool,
        comment: str = "",
    ) -> None:
        """One frame: index of its port, wall-clock time, what was caught of how many bytes.

        ``to_switch``: it came in from the node; else the switch sent it out.
        """
        options = _options(to_switch, comment)
        caught = len(data)
        padding = _PADDING[caught & 3]
        size = 32 + caught + len(padding) + len(options)
        high, low = at_ns >> 32, at_ns & 0xFFFF_FFFF
        head = _EPB.pack(_PACKET, size, port, high, low, caught, length_bytes)
        self._file.write(head + data + padding + options + size.to_bytes(4, "little"))

    def event(self, at_ns: int, text: str, **fields: str) -> None:
        """Something that happened, between the frames."""
        entry = {"__REALTIME_TIMESTAMP": str(at_ns // 1000), "MESSAGE": text, "PRIORITY": "6"}
        entry |= {"SYSLOG_IDENTIFIER": "softnlb", **fields}
        lines = "".join(f"{name}={' '.join(value.split())}\n" for name, value in entry.items())
        self._file.write(_block(_JOURNAL, _padded(lines.encode())))

    def lost(self, port: int, at_ns: int, frames: int) -> None:
        """At the end: how many frames were lost at a port."""
        head = struct.pack("<III", port, at_ns >> 32, at_ns & 0xFFFF_FFFF)
        options = _option(_ISB_IFDROP, struct.pack("<Q", frames)) + _END
        self._file.write(_block(_STATISTICS, head + options))
