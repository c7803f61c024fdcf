"""Reads captures of any size in a stream: pcap and pcapng, as tcpdump and Wireshark write them.

Sources: the pcap and pcapng file formats (IETF draft-ietf-opsawg-pcap, -pcapng); the link types
are tcpdump's.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple

from softnlb.errors import ReturnCode, SoftnlbError, UsageError

CHUNK_BYTES = 1 << 20
PACKET_MAX_BYTES = 1 << 18
"""tcpdump's largest snap length."""

_BLOCK_MAX_BYTES = 1 << 24
_INTERFACES_MAX = 4096
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6
_BYTE_ORDER = 0x1A2B3C4D
_NAME, _TIME_RESOLUTION = 2, 9
_NS_PER_S = 1_000_000_000
_PCAP = {
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
"""Magic bytes of a pcap file to its byte order and the nanoseconds of its fractions."""

ETHERNET = 1


class Interface(NamedTuple):
    """Where packets were captured.  ``name`` is empty where the file has none."""

    link_type: int
    name: str = ""
    units_per_s: int = 1_000_000


Packet = tuple[bytes, int, int, int, int, Interface]
"""A buffer, where the packet begins and ends in it, its length on the wire in bytes, when it was
captured (wall clock, ns), and the interface.  A tuple, because there are millions."""


class CapturedFrame(NamedTuple):
    """``at_ns``: wall clock.  ``interface``: its name, "" where the file has none."""

    at_ns: int
    interface: str
    data: bytes


class Link(NamedTuple):
    """Where the IP header is in a frame: ``skip`` bytes from the beginning, after the bytes
    ``ipv4`` or ``ipv6`` where the frame says what it carries."""

    skip: int
    ipv4: bytes
    ipv6: bytes


LINKS = {
    0: Link(4, b"", b""),  # loopback of BSD
    ETHERNET: Link(14, b"\x08\x00", b"\x86\xdd"),  # Ethernet
    12: Link(0, b"", b""),
    101: Link(0, b"", b""),  # raw IP
    113: Link(16, b"\x08\x00", b"\x86\xdd"),  # Linux cooked
    276: Link(20, b"", b""),  # Linux cooked, version 2
}


class CaptureError(UsageError):
    """What was read is no capture."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=ReturnCode.IO_ERROR)


class CutOff(CaptureError):
    """The file ends in the middle of a packet; all before it was yielded."""


def packets(file: BinaryIO) -> Iterator[Packet]:
    """Every packet of a capture.  Raises CaptureError when it is none or damaged, CutOff."""
    magic = _exactly(file, 4)
    if magic in _PCAP:
        return _pcap(file, *_PCAP[magic])
    if magic == _SECTION.to_bytes(4, "little"):
        return _pcapng(file, magic)
    raise CaptureError("no capture, expected pcap or pcapng")


def read_capture(path: Path) -> Iterator[CapturedFrame]:
    """Every Ethernet frame of a capture, in its order.

    Raises SoftnlbError for a file that is none, or that ends in the middle of a frame.
    """
    try:
        with path.open("rb") as file:
            for data, at, end, _, at_ns, interface in packets(file):
                if interface.link_type == ETHERNET:
                    yield CapturedFrame(at_ns, interface.name, data[at:end])
    except OSError as error:
        raise SoftnlbError(f"{path}: {error.strerror}") from error
    except CaptureError as error:
        raise SoftnlbError(f"{path}: {error}") from error


def _exactly(file: BinaryIO, size: int) -> bytes:
    """So many bytes, fewer at the end; a pipe gives what it has."""
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _pcap(file: BinaryIO, order: str, ns_per_unit: int) -> Iterator[Packet]:
    head = _exactly(file, 20)
    if len(head) < 20:
        raise CutOff("it ends in the middle of its header")
    interface = Interface(Struct(f"{order}16xI").unpack(head)[0] & 0x0FFF_FFFF)
    unpack = Struct(f"{order}IIII").unpack_from
    data, at = b"", 0
    while more := file.read(CHUNK_BYTES):
        data, at = data[at:] + more, 0
        limit = len(data)
        while at + 16 <= limit:
            second, fraction, size, wire = unpack(data, at)
            if size > PACKET_MAX_BYTES:
                raise CaptureError(f"damaged: a packet of {size} bytes")
            end = at + 16 + size
            if end > limit:
                break
            at_ns = second * _NS_PER_S + fraction * ns_per_unit
            yield data, at + 16, end, wire, at_ns, interface
            at = end
    _refuse_rest(data, at)


def _refuse_rest(data: bytes, at: int) -> None:
    if at < len(data):
        raise CutOff("it ends in the middle of a packet")


def _pcapng(file: BinaryIO, begin: bytes) -> Iterator[Packet]:
    """Blocks of type, length, body and the length again; a section may change the byte order."""
    data, at = begin, 0
    reader = _Blocks()
    while more := file.read(CHUNK_BYTES):
        data, at = data[at:] + more, 0
        limit = len(data)
        while at + 12 <= limit:
            size = reader.block_bytes(data, at)
            end = at + size
            if end > limit:
                break
            packet = reader.packet(data, at, end)
            if packet is not None:
                yield packet
            at = end
    _refuse_rest(data, at)


class _Blocks:
    """What the blocks so far have said: byte order, interfaces."""

    def __init__(self) -> None:
        self._order("<")
        self._interfaces: list[Interface] = []
        self._at_ns = 0

    def _order(self, order: str) -> None:
        self._head = Struct(f"{order}II").unpack_from
        self._enhanced = Struct(f"{order}8xIIIII").unpack_from
        self._word: Callable[[bytes, int], tuple[int]] = Struct(f"{order}I").unpack_from
        self._half = Struct(f"{order}HH").unpack_from

    def block_bytes(self, data: bytes, at: int) -> int:
        """Length of the block that begins here, at least 12 bytes of it in ``data``."""
        if data[at : at + 4] == b"\x0a\x0d\x0d\x0a":
            little = data[at + 8 : at + 12] == _BYTE_ORDER.to_bytes(4, "little")
            self._order("<" if little else ">")
            self._interfaces = []
        size: int = self._head(data, at)[1]
        if size < 12 or size % 4 or size > _BLOCK_MAX_BYTES:
            raise CaptureError(f"damaged: a block of {size} bytes")
        return size

    def packet(self, data: bytes, at: int, end: int) -> Packet | None:
        """The packet of a block, None for a block of another kind."""
        kind, size = self._head(data, at)
        if kind == _ENHANCED and size >= 32:
            number, high, low, captured, wire = self._enhanced(data, at)
            if number >= len(self._interfaces) or captured > size - 32:
                raise CaptureError("damaged: a packet that does not fit its block")
            interface = self._interfaces[number]
            self._at_ns = (high << 32 | low) * _NS_PER_S // interface.units_per_s
            return data, at + 28, at + 28 + captured, wire, self._at_ns, interface
        if kind == _SIMPLE and size >= 16 and self._interfaces:
            wire = self._word(data, at + 8)[0]
            finish = at + 12 + min(wire, size - 16)
            return data, at + 12, finish, wire, self._at_ns, self._interfaces[0]
        if kind == _INTERFACE and size >= 20:
            link, _ = self._half(data, at + 8)
            if len(self._interfaces) >= _INTERFACES_MAX:
                raise CaptureError("damaged: more interfaces than any capture has")
            self._interfaces.append(self._described(link, data, at + 16, end - 4))
        return None

    def _described(self, link: int, data: bytes, at: int, end: int) -> Interface:
        """With its options: the name, and the unit of time where it is not the microsecond."""
        interface = Interface(link)
        while at + 4 < end:
            option, size = self._half(data, at)
            value = data[at + 4 : min(at + 4 + size, end)]
            if option == _NAME:
                interface = interface._replace(name=value.decode(errors="replace"))
            elif option == _TIME_RESOLUTION and value:
                exponent = value[0] & 0x7F
                units = 2**exponent if value[0] & 0x80 else 10 ** min(exponent, 30)
                interface = interface._replace(units_per_s=int(units))
            at += 4 + (size + 3) // 4 * 4
        return interface
