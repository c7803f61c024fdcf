"""The datagrams of remote control: their bytes, their authentication; pure.

Two round trips, so that no clock has to be right and no record of former datagrams has to be kept:

    HELLO   client -> hosts   a random question, which host is meant
    TICKET  host -> client    the question, and a ticket that only this host knows, used once
    ORDER   client -> host    question, ticket, a verb with its arguments as JSON
    ANSWER  host -> client    question, ticket, what came of it as JSON

    offset  size  field (little-endian)
         0     4  "sNLR"
         4     1  version, 1
         5     1  kind, 1 to 4 in the order above
         6     2  host id of the host that answers; 0 in what a client sends
         8     4  key id
        12    16  question
        28    16  ticket, zero in HELLO
        44     n  body, JSON
      44+n    32  HMAC-SHA256 over all before it

The key of the HMAC follows from the cluster key, so that no heartbeat is ever a datagram of these.
"""

import hmac
import json
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any

from convergence.auth import Key

DATAGRAM_MAX_BYTES = 8192
NONCE_BYTES = 16

_HEADER = struct.Struct("<4sBBHI16s16s")
_MAGIC, _VERSION = b"sNLR", 1
_MAC_BYTES = 32
_PURPOSE = b"softnlb remote control 1"


class Kind(IntEnum):
    """What a datagram is."""

    HELLO = 1
    TICKET = 2
    ORDER = 3
    ANSWER = 4


class RemoteError(Exception):
    """A datagram that is not to be believed; ``why`` is malformed, unknown-key or wrong-key."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Datagram:
    """One datagram, believed."""

    kind: Kind
    question: bytes
    ticket: bytes = bytes(NONCE_BYTES)
    host_id: int = 0
    body: dict[str, Any] = field(default_factory=dict)


def encode(datagram: Datagram, key: Key) -> bytes:
    """The bytes of a datagram, authenticated.  Raises ValueError when it is too long."""
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        datagram.kind,
        datagram.host_id,
        key.id,
        datagram.question,
        datagram.ticket,
    )
    covered = header + json.dumps(datagram.body, default=str).encode()
    if len(covered) + _MAC_BYTES > DATAGRAM_MAX_BYTES:
        raise ValueError("too long for a datagram")
    return covered + _mac(covered, key)


def decode(data: bytes, keys: tuple[Key, ...]) -> Datagram:
    """The datagram in these bytes; nothing of it is read before its HMAC is right.

    Raises RemoteError.
    """
    if not _HEADER.size + _MAC_BYTES <= len(data) <= DATAGRAM_MAX_BYTES:
        raise RemoteError("malformed")
    magic, version, kind, host_id, key_id, question, ticket = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise RemoteError("malformed")
    key = next((key for key in keys if key.id == key_id), None)
    if key is None:
        raise RemoteError("unknown-key")
    covered = data[:-_MAC_BYTES]
    if not hmac.compare_digest(_mac(covered, key), data[-_MAC_BYTES:]):
        raise RemoteError("wrong-key")
    try:
        body = json.loads(covered[_HEADER.size :])
        if not isinstance(body, dict):
            raise RemoteError("malformed")
        return Datagram(Kind(kind), question, ticket, host_id, body)
    except (ValueError, RecursionError):
        raise RemoteError("malformed") from None


def _mac(covered: bytes, key: Key) -> bytes:
    return hmac.digest(_derived(key.secret), covered, "sha256")


@cache
def _derived(secret: bytes) -> bytes:
    return hmac.digest(secret, _PURPOSE, "sha256")
