"""Writing pcapng: one section, one interface per switch port, one block per frame.

Format: draft-ietf-opsawg-pcapng.
"""

import struct
from typing import BinaryIO

_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_PACKET = 6

_BYTE_ORDER = 0x1A2B3C4D
_LINK_ETHERNET = 1

_OPTION_END = 0
_IF_NAME = 2
_IF_TSRESOL = 9
_EPB_FLAGS = 2
_INBOUND, _OUTBOUND = 1, 2


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


class Writer:
    """Writes frames of several ports into one file."""

    def __init__(self, file: BinaryIO, ports: list[str]) -> None:
        self._file = file
        header = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
        file.write(_block(_SECTION, header))
        for port in ports:
            options = _option(_IF_NAME, port.encode()) + _option(_IF_TSRESOL, b"\x09")
            options += _option(_OPTION_END, b"")
            file.write(_block(_INTERFACE, struct.pack("<HHI", _LINK_ETHERNET, 0, 0) + options))

    def frame(self, port: int, at_ns: int, data: bytes, length_bytes: int, to_switch: bool) -> None:
        """One frame: index of its port, wall-clock time, what was caught of how many bytes.

        ``to_switch``: it came in from the node; else the switch sent it out.
        """
        head = struct.pack(
            "<IIIII", port, at_ns >> 32, at_ns & 0xFFFF_FFFF, len(data), length_bytes
        )
        direction = struct.pack("<I", _INBOUND if to_switch else _OUTBOUND)
        options = _option(_EPB_FLAGS, direction) + _option(_OPTION_END, b"")
        self._file.write(_block(_PACKET, head + _padded(data) + options))
