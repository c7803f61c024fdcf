"""Reading captures: pcapng (draft-ietf-opsawg-pcapng) and the older pcap, Ethernet frames only."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from softnlb.errors import SoftnlbError

_SECTION, _INTERFACE, _SIMPLE, _PACKET = 0x0A0D0D0A, 1, 3, 6
_BYTE_ORDER = 0x1A2B3C4D
_ETHERNET = 1
_BLOCK_MAX_BYTES = 64 << 20
_IF_NAME, _IF_TSRESOL = 2, 9

_PCAP = {0xA1B2C3D4: 1_000, 0xA1B23C4D: 1}
"""Magic number of a pcap file to the nanoseconds of its fractions."""


class CapturedFrame(NamedTuple):
    """``at_ns``: wall clock.  ``interface``: its name, "" where the file has none."""

    at_ns: int
    interface: str
    data: bytes


class _Interface(NamedTuple):
    name: str
    link_type: int
    ns_per_unit: float


def read_capture(path: Path) -> Iterator[CapturedFrame]:
    """Every Ethernet frame of a capture, in its order.

    Raises SoftnlbError for a file that is none, or that ends in the middle of a frame.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic == _SECTION.to_bytes(4, "little"):
                yield from _pcapng(file, path)
            else:
                yield from _pcap(file, path)
    except OSError as error:
        raise SoftnlbError(f"{path}: {error.strerror}") from error
    except (struct.error, IndexError) as error:
        raise SoftnlbError(f"{path}: a block makes no sense") from error


def _exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise SoftnlbError(f"{path} ends in the middle of a frame")
    return data


def _pcap(file: BinaryIO, path: Path) -> Iterator[CapturedFrame]:
    head = file.read(24)
    for order in "<>":
        magic = struct.unpack(f"{order}I", head[:4])[0] if len(head) == 24 else 0
        if magic in _PCAP:
            break
    else:
        raise SoftnlbError(f"{path} is no capture: expected pcap or pcapng")
    if struct.unpack_from(f"{order}I", head, 20)[0] & 0xFFFF != _ETHERNET:
        raise SoftnlbError(f"{path}: expected Ethernet frames")
    record = struct.Struct(f"{order}IIII")
    while part := file.read(record.size):
        if len(part) < record.size:
            raise SoftnlbError(f"{path} ends in the middle of a frame")
        seconds, fraction, caught, _length = record.unpack(part)
        if caught > _BLOCK_MAX_BYTES:
            raise SoftnlbError(f"{path}: a frame of {caught} bytes")
        at_ns = seconds * 1_000_000_000 + fraction * _PCAP[magic]
        yield CapturedFrame(at_ns, "", _exactly(file, caught, path))


def _pcapng(file: BinaryIO, path: Path) -> Iterator[CapturedFrame]:
    order, interfaces = "<", list[_Interface]()
    while head := file.read(8):
        if len(head) < 8:
            raise SoftnlbError(f"{path} ends in the middle of a frame")
        kind = struct.unpack(f"{order}I", head[:4])[0]
        if kind == _SECTION:
            mark = _exactly(file, 4, path)
            order = "<" if mark == _BYTE_ORDER.to_bytes(4, "little") else ">"
            interfaces = []
            file.seek(-4, 1)
        (length,) = struct.unpack(f"{order}I", head[4:])
        if not 12 <= length <= _BLOCK_MAX_BYTES:
            raise SoftnlbError(f"{path}: a block of {length} bytes")
        body = _exactly(file, length - 8, path)[:-4]
        if kind == _INTERFACE:
            interfaces.append(_interface(order, body))
        elif kind == _PACKET:
            number, high, low, caught = struct.unpack_from(f"{order}IIII", body)
            interface = interfaces[number]
            if interface.link_type == _ETHERNET:
                at_ns = int((high << 32 | low) * interface.ns_per_unit)
                yield CapturedFrame(at_ns, interface.name, body[20 : 20 + caught])
        elif kind == _SIMPLE and interfaces[0].link_type == _ETHERNET:
            yield CapturedFrame(0, interfaces[0].name, body[4:])


def _interface(order: str, body: bytes) -> _Interface:
    (link_type,) = struct.unpack_from(f"{order}H", body)
    name, ns_per_unit = "", 1000.0
    at = 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(f"{order}HH", body, at)
        value = body[at + 4 : at + 4 + length]
        if code == _IF_NAME:
            name = value.decode(errors="replace")
        elif code == _IF_TSRESOL and value:
            power = value[0] & 0x7F
            ns_per_unit = 1e9 / (2**power if value[0] & 0x80 else 10**power)
        at += 4 + length + -length % 4
    return _Interface(name, link_type, ns_per_unit)
