"""The heartbeat frame: 1496 bytes after the Ethernet header, ethertype 0x886F.

The first 1364 bytes are NLB's frame (reference: the fields that Wireshark's and tcpdump's
dissectors show); integers are little-endian, IPv4 addresses in network order.  The last 132 bytes
are "reserved" there and carry our extension.

A receiver meets thousands of frames that differ from the one before only in sequence, ages and
MAC.  So a frame is split in two: the *statement*, everything that stays the same while nothing
changes at the sender, and the little that varies.  ``decode`` is given the sender's last heartbeat
and, when the statement's bytes are equal, hands back the very same ``Statement`` object: "nothing
changed" is then an identity test.
"""

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from convergence.rules import ALL_BUCKETS, HOST_ID_MAX, SLOTS_MAX

ETHERTYPE = 0x886F
FRAME_BYTES = 1496
SIGNATURE = 0xC0DE01BF
IDENTITY_SIGNATURE = 0xC0DE01C0
VERSION = 0x0206
"""NLB 2.6, the version of the public captures."""

CLUSTER_IP_OFFSET = 12
"""Of the primary cluster IP address in the payload: for a packet filter on the socket."""

MAGIC = b"sNLB"
EXTENSION_VERSION = 1
EXTENSION_OFFSET = 1364
SEQUENCE_OFFSET = 1396
KEY_ID_OFFSET = 1404
MAC_OFFSET = 1480
MAC_BYTES = 16

JOINING, DRAINING, LEAVING, NEWCOMER = 1, 2, 4, 8
"""Flags.  Joining: still listening.  Newcomer: never Converged since its start."""

FLAGS_ALL = JOINING | DRAINING | LEAVING | NEWCOMER
PHASE_MAX = 5

AGE_NONE = 255
AGE_UNITS = 250
"""An age byte counts units of tolerance x period / 250."""

LISTENED_MAX = 255
"""For how long a newcomer has listened, in units of an age, when it is this long or longer."""

CODE_TAG = 0xF0
SEQUENCE_TAG = 0x0F

_HEAD = struct.Struct("<III4s4sHHHHI")
_SAID = "4sBBBBIIQ8s"


def _tail(slots: int) -> struct.Struct:
    """Codes, four maps and weights of so many slots and zeros up to 33, and what the host says."""
    codes = f"{slots}I{4 * (SLOTS_MAX - slots)}x"
    maps = f"{slots}Q{8 * (SLOTS_MAX - slots)}x"
    return struct.Struct(f"<8x{codes}{4 * maps}{codes}{_SAID}")


_TAILS = tuple(map(_tail, range(SLOTS_MAX + 1)))
_VARIES = struct.Struct("<QII32s32sB3s")
_HEAD_BYTES = _HEAD.size
_TAIL_OFFSET = _HEAD_BYTES + 4
_VARIES_OFFSET = _TAIL_OFFSET + _TAILS[0].size
_PACKETS = struct.Struct("<I")
_SIGNATURE = SIGNATURE.to_bytes(4, "little")
_NO_MAC = bytes(MAC_BYTES)
_ZERO3 = bytes(3)

CONVERGED_STATE = 1
"""NLB's "convergence state" as captured from a steady cluster; 0 while converging is ours."""


class HeartbeatError(Exception):
    """Bytes from outside that are no heartbeat; ``kind`` is a stable word for counters."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Foreign:
    """A heartbeat of NLB itself, on the same wire format but without our extension."""

    host_id: int
    cluster_ip_address: bytes
    dedicated_ip_address: bytes


@dataclass(frozen=True, slots=True)
class Statement:
    """What a host says until something changes.  Maps and weights: one per slot.

    Addresses are 4 bytes.  ``weights``: load weight, or the handling priority of a single-host
    rule.  ``view``: bit (host id - 1) per member.  ``head`` and ``tail`` are the wire form.
    """

    host_id: int
    cluster_ip_address: bytes
    dedicated_ip_address: bytes
    host_code: int
    default_host_id: int
    rule_codes: tuple[int, ...]
    current: tuple[int, ...]
    new: tuple[int, ...]
    idle: tuple[int, ...]
    ready: tuple[int, ...]
    weights: tuple[int, ...]
    phase: int
    flags: int
    generation: int
    view: int
    view_digest: int
    config_digest: bytes
    head: bytes = field(default=b"", compare=False, repr=False)
    tail: bytes = field(default=b"", compare=False, repr=False)


class Heartbeat:
    """One frame: a statement and what varies.  Treat as read-only.

    ``ages``: per host id, from 1, the age of the newest frame heard, in units; 255 = none.
    ``tags``: per host id, what was heard.  High four bits: of the host code, and whether it joined,
    so that a host can tell whether it was heard under its present code, and since it began to take
    part.  Low four bits: of the sequence number, so that a host knows which of its frames was
    heard, also from a report that was long on its way.  The tag at the sender's own place names
    another host that uses the sender's host id.
    ``accepts``: which signatures the sender believes, see ``auth.Keyring``.
    ``listened``: for how long a newcomer has listened, in the same units, at most 255.
    """

    __slots__ = (
        "accepts",
        "ages",
        "key_id",
        "listened",
        "packets_handled",
        "sequence",
        "statement",
        "tags",
    )

    def __init__(
        self,
        statement: Statement,
        sequence: int,
        ages: bytes,
        tags: bytes,
        key_id: int = 0,
        packets_handled: int = 0,
        accepts: int = 0,
        listened: int = 0,
    ) -> None:
        self.statement = statement
        self.sequence = sequence
        self.ages = ages
        self.tags = tags
        self.key_id = key_id
        self.packets_handled = packets_handled
        self.accepts = accepts
        self.listened = listened

    def hears(self, index: int, tag: int) -> bool:
        """True when the sender hears the host at this place under this ``code_tag``."""
        return self.ages[index] != AGE_NONE and self.tags[index] & CODE_TAG == tag


def code_tag(host_code: int, joining: bool = False) -> int:
    """Four bits of a host code in the high half of a byte; inverted while the host is joining."""
    folded = host_code ^ host_code >> 16
    folded ^= folded >> 8
    tag = (folded ^ folded >> 4) << 4 & CODE_TAG
    return tag ^ CODE_TAG if joining else tag


def pack_statement(statement: Statement) -> Statement:
    """The same statement with its wire form filled in."""
    said = statement
    slots = len(said.current)
    head = _HEAD.pack(
        SIGNATURE,
        VERSION,
        said.host_id,
        said.cluster_ip_address,
        said.dedicated_ip_address,
        said.host_id - 1,
        said.default_host_id - 1,
        CONVERGED_STATE if said.phase == PHASE_MAX else 0,
        slots,
        said.host_code,
    )
    tail = _TAILS[slots].pack(
        *said.rule_codes,
        *said.current,
        *said.new,
        *said.idle,
        *said.ready,
        *said.weights,
        MAGIC,
        EXTENSION_VERSION,
        said.phase,
        said.flags,
        0,
        said.generation,
        said.view,
        said.view_digest,
        said.config_digest,
    )
    return Statement(
        said.host_id,
        said.cluster_ip_address,
        said.dedicated_ip_address,
        said.host_code,
        said.default_host_id,
        said.rule_codes,
        said.current,
        said.new,
        said.idle,
        said.ready,
        said.weights,
        said.phase,
        said.flags,
        said.generation,
        said.view,
        said.view_digest,
        said.config_digest,
        head,
        tail,
    )


def encode(heartbeat: Heartbeat) -> bytes:
    """The 1496 bytes; the MAC is zero until ``auth.sign``."""
    statement = heartbeat.statement
    if not statement.tail:
        statement = pack_statement(statement)
    return b"".join(
        (
            statement.head,
            _PACKETS.pack(heartbeat.packets_handled & 0xFFFF_FFFF),
            statement.tail,
            _VARIES.pack(
                heartbeat.sequence,
                heartbeat.key_id,
                heartbeat.accepts,
                heartbeat.ages,
                heartbeat.tags,
                heartbeat.listened,
                _ZERO3,
            ),
            _NO_MAC,
        )
    )


def screen(payload: bytes) -> bytes | Foreign:
    """The cheap look that comes before the MAC: the cluster IP address, 4 bytes, of a frame that
    has our shape.  Raises HeartbeatError and nothing else.
    """
    if len(payload) != FRAME_BYTES:
        raise HeartbeatError("length", f"{len(payload)} bytes instead of {FRAME_BYTES}")
    if payload[:4] != _SIGNATURE:
        raise HeartbeatError("signature", f"signature 0x{payload[3::-1].hex()}")
    if payload[EXTENSION_OFFSET : EXTENSION_OFFSET + 4] != MAGIC:
        (_, _, host_id, cluster, dedicated, *_) = _HEAD.unpack_from(payload)
        if not 1 <= host_id <= HOST_ID_MAX:
            raise HeartbeatError("host-id", f"host id {host_id} is not within 1..{HOST_ID_MAX}")
        return Foreign(host_id, cluster, dedicated)
    return payload[CLUSTER_IP_OFFSET : CLUSTER_IP_OFFSET + 4]


def decode(payload: bytes, previous: Heartbeat | None = None) -> Heartbeat | Foreign:
    """Bytes -> meaning.  Raises HeartbeatError and nothing else.

    ``previous``: the sender's last heartbeat, if any; its statement is reused when equal.
    """
    seen = screen(payload)
    return seen if isinstance(seen, Foreign) else decode_screened(payload, previous)


def decode_screened(payload: bytes, previous: Heartbeat | None = None) -> Heartbeat:
    """``decode`` for a frame that ``screen`` found to have our shape."""
    if (
        previous is not None
        and payload[_TAIL_OFFSET:_VARIES_OFFSET] == previous.statement.tail
        and payload[:_HEAD_BYTES] == previous.statement.head
    ):
        statement = previous.statement
    else:
        statement = _decode_statement(payload)
    sequence, key_id, accepts, ages, tags, listened, zeros = _VARIES.unpack_from(
        payload, _VARIES_OFFSET
    )
    if zeros != _ZERO3:
        raise HeartbeatError("reserved", "reserved bytes of the extension are not zero")
    (packets_handled,) = _PACKETS.unpack_from(payload, _HEAD_BYTES)
    return Heartbeat(statement, sequence, ages, tags, key_id, packets_handled, accepts, listened)


def _decode_statement(payload: bytes) -> Statement:
    (_signature, version, host_id, cluster, dedicated, own, default, _state, slots, code) = (
        _HEAD.unpack_from(payload)
    )
    if not 1 <= host_id <= HOST_ID_MAX:
        raise HeartbeatError("host-id", f"host id {host_id} is not within 1..{HOST_ID_MAX}")
    if version != VERSION:
        raise HeartbeatError("version", f"NLB version {version:#06x}")
    if own != host_id - 1 or default >= HOST_ID_MAX:
        raise HeartbeatError("host-id", "zero-based host ids out of range")
    if not 1 <= slots <= SLOTS_MAX:
        raise HeartbeatError("slots", f"{slots} rule slots")
    values = _TAILS[slots].unpack_from(payload, _TAIL_OFFSET)
    codes, maps, weights = values[:slots], values[slots : 5 * slots], values[5 * slots : 6 * slots]
    if max(maps) > ALL_BUCKETS:
        raise HeartbeatError("map", "a map has more than 60 buckets")
    if max(weights) > 100:
        raise HeartbeatError("weight", "a load weight is above 100")
    _magic, extension, phase, flags, zero, generation, view, view_digest, config = values[
        6 * slots :
    ]
    if extension != EXTENSION_VERSION:
        raise HeartbeatError("version", f"extension version {extension}")
    if phase > PHASE_MAX or flags & ~FLAGS_ALL or zero:
        raise HeartbeatError("state", f"phase {phase}, flags {flags:#x}")
    if not view >> (host_id - 1) & 1:
        raise HeartbeatError("view", "the view lacks its own host")
    return Statement(
        host_id,
        cluster,
        dedicated,
        code,
        default + 1,
        codes,
        maps[:slots],
        maps[slots : 2 * slots],
        maps[2 * slots : 3 * slots],
        maps[3 * slots :],
        weights,
        phase,
        flags,
        generation,
        view,
        view_digest,
        config,
        payload[:_HEAD_BYTES],
        payload[_TAIL_OFFSET:_VARIES_OFFSET],
    )


def address(four_bytes: bytes) -> IPv4Address:
    """An IPv4 address of a frame as an object, built only when somebody wants to see it."""
    return IPv4Address(four_bytes)
