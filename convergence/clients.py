"""Client lists on the wire: whom a member goes on serving in buckets that are another host's.

A frame has NLB's common header under the signature that dissectors call the reliable protocol,
whose body is not public; the rest is ours.  Length, key id and MAC lie as in a heartbeat, so that
one packet filter and one signature serve both.  Integers are little-endian.

| off | size | field |
|---|---|---|
| 0 | 20 | signature 0xC0DE01DE, version, host id, cluster and dedicated IP address |
| 20 | 4 / 1 / 1 | magic `sNLB`; version of the extension; kind, 1 = client list |
| 26 | 2 / 2 / 2 | number of this frame, frames of the list, clients in this frame |
| 32 | 4 / 4 / 4 / 8 | host code; generation; serial number of the list; view digest |
| 52 | 8 | configuration digest, for slots are those of a configuration |
| 60 | 1344 | clients: slot (bit 7: IPv6), then the 4 or 16 bytes that are hashed of the client |
| 1404 | 4 | key id |
| 1480 | 16 | MAC |
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from convergence.heartbeat import (
    EXTENSION_VERSION,
    FRAME_BYTES,
    KEY_ID_OFFSET,
    MAGIC,
    VERSION,
    HeartbeatError,
)
from convergence.rules import HOST_ID_MAX, SLOTS_MAX, PortRule

SIGNATURE = 0xC0DE01DE
SIGNATURE_BYTES = SIGNATURE.to_bytes(4, "little")
KIND = 1

EXCEPTIONS_MAX = 32_768
"""Clients that a cluster of any size asks each host to leave to the others; every member may list
its share of them."""
EXCEPTIONS_HELD_MAX = EXCEPTIONS_MAX * 3 // 2
"""While members change, lists for other shares meet; no host holds more than this."""

_HEAD = struct.Struct("<III4s4s4sBBHHHIIIQ8s")
_IPV6 = 0x80
_KEYS_AT = _HEAD.size
_KEYS_BYTES = KEY_ID_OFFSET - _KEYS_AT
FRAMES_MAX = EXCEPTIONS_HELD_MAX // (_KEYS_BYTES // 17) + 1

ClientKey = bytes
"""One byte of slot, then what the rule's affinity hashes of a client: 4 or 16 bytes."""


@dataclass(frozen=True, slots=True)
class ListHead:
    """Whose list, and which of its lists."""

    host_id: int
    cluster_ip_address: bytes
    dedicated_ip_address: bytes
    host_code: int
    generation: int
    serial: int
    view_digest: int
    config_digest: bytes


@dataclass(frozen=True, slots=True)
class ListFrame:
    """One frame of a list: ``number`` of ``frames``, from 0."""

    head: ListHead
    number: int
    frames: int
    keys: tuple[ClientKey, ...]


NEVER_SENT = 1 << 62


@dataclass(slots=True)
class Received:
    """A member's list: the newest one that is complete, and the frames of one that is not."""

    head: ListHead
    keys: frozenset[ClientKey] | None = None
    frames: dict[int, tuple[ClientKey, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Affinity:
    """What a host remembers of it; part of the machine's state."""

    slots: tuple[int, ...]
    """Those whose rule has a time-out."""
    claimed: list[int]
    """Per slot the buckets that I gave away, and whose clients I keep."""
    serial: int = 0
    keys: tuple[ClientKey, ...] | None = ()
    """My list; None: the agent has not told yet."""
    due: bool = False
    """My list has to be made anew."""
    switched: bool = False
    """The rules changed: ``outdated`` exceptions stand in the way, and remembered clients do but
    of the slots that are ``kept``."""
    outdated: tuple[ClientKey, ...] = ()
    kept: tuple[int, ...] = ()
    ceased: bool = False
    """At the end of a drain: nobody whom this host remembers is accepted any more."""
    first_serial: int = 0
    began_ms: int = 0
    next_send_ms: int = NEVER_SENT
    repeat_ms: int = 0
    received: dict[int, Received] = field(default_factory=dict)
    exceptions: dict[int, frozenset[ClientKey]] = field(default_factory=dict)
    """Per host id what is in force here."""

    @classmethod
    def of(cls, rules: Sequence[PortRule]) -> "Affinity":
        """Nothing claimed yet, for these rules."""
        slots = tuple(slot for slot, rule in enumerate(rules) if rule.remembers_clients)
        return cls(slots, [0] * len(rules))

    def own(self, slot: int, bits: int) -> None:
        """These buckets are not claimed any more: my own again, or given up."""
        if self.claimed[slot] & bits:
            self.claimed[slot] &= ~bits
            self.due = True


def encode(head: ListHead, keys: Sequence[ClientKey], key_id: int) -> list[bytes]:
    """The frames of a whole list, one at least; the MAC is zero until ``auth.sign``."""
    bodies: list[tuple[int, bytes]] = []
    body, count = bytearray(), 0
    for key in keys:
        if len(body) + len(key) > _KEYS_BYTES:
            bodies.append((count, bytes(body)))
            body, count = bytearray(), 0
        body.append(key[0] | (_IPV6 if len(key) > 5 else 0))
        body += key[1:]
        count += 1
    bodies.append((count, bytes(body)))
    return [
        (
            _HEAD.pack(
                SIGNATURE,
                VERSION,
                head.host_id,
                head.cluster_ip_address,
                head.dedicated_ip_address,
                MAGIC,
                EXTENSION_VERSION,
                KIND,
                number,
                len(bodies),
                count,
                head.host_code,
                head.generation,
                head.serial,
                head.view_digest,
                head.config_digest,
            )
            + body.ljust(_KEYS_BYTES, b"\0")
            + key_id.to_bytes(4, "little")
        ).ljust(FRAME_BYTES, b"\0")
        for number, (count, body) in enumerate(bodies)
    ]


def decode(payload: bytes) -> ListFrame:
    """Bytes -> meaning.  Raises HeartbeatError and nothing else."""
    if len(payload) != FRAME_BYTES:
        raise HeartbeatError("length", f"{len(payload)} bytes instead of {FRAME_BYTES}")
    if payload[:4] != SIGNATURE_BYTES:
        raise HeartbeatError("signature", f"signature 0x{payload[3::-1].hex()}")
    values = _HEAD.unpack_from(payload)
    _, version, host_id, cluster, dedicated, magic, extension, kind, *rest = values
    number, frames, count, *which = rest
    if (version, magic, extension, kind) != (VERSION, MAGIC, EXTENSION_VERSION, KIND):
        raise HeartbeatError("client-list", "no client list of this version")
    if not 1 <= host_id <= HOST_ID_MAX:
        raise HeartbeatError("host-id", f"host id {host_id} is not within 1..{HOST_ID_MAX}")
    if not number < frames <= FRAMES_MAX:
        raise HeartbeatError("client-list", f"frame {number} of {frames}")
    head = ListHead(host_id, cluster, dedicated, *which)
    return ListFrame(head, number, frames, _keys(payload, count))


def _keys(payload: bytes, count: int) -> tuple[ClientKey, ...]:
    keys = []
    at = _KEYS_AT
    for _ in range(count):
        slot = payload[at] & ~_IPV6
        end = at + (17 if payload[at] & _IPV6 else 5)
        if end > KEY_ID_OFFSET or slot >= SLOTS_MAX:
            raise HeartbeatError("client-list", f"a client at byte {at} of slot {slot}")
        keys.append(bytes((slot,)) + payload[at + 1 : end])
        at = end
    return tuple(keys)
