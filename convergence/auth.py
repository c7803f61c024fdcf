"""Keys and message authentication of heartbeats: HMAC-SHA256, its first 16 bytes.

The MAC covers payload bytes 0..1479, so also key id and sequence number.  It is checked before
anything else of a frame is believed: a forged frame must not move replay state.
"""

import hmac
from dataclasses import dataclass, field

from convergence.heartbeat import MAC_BYTES, MAC_OFFSET

SENDERS_MAX = 4096
"""Host codes remembered with their last sequence; the oldest is forgotten beyond that."""


@dataclass(frozen=True, slots=True)
class Key:
    """A cluster key.  ``id`` 1..2^32-1 rides in the frame, ``secret`` never shows in a repr."""

    id: int
    secret: bytes = field(repr=False)


def sign(payload: bytes, key: Key) -> bytes:
    """The payload with its last 16 bytes replaced by the MAC."""
    covered = payload[:MAC_OFFSET]
    return covered + hmac.digest(key.secret, covered, "sha256")[:MAC_BYTES]


def verify(payload: bytes, key: Key) -> bool:
    """True when the last 16 bytes are the MAC of the rest; in constant time."""
    mac = hmac.digest(key.secret, payload[:MAC_OFFSET], "sha256")[:MAC_BYTES]
    return hmac.compare_digest(mac, payload[MAC_OFFSET:])


class ReplayGuard:
    """The last sequence number of every host code that was ever verified in this lifetime."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}

    def is_fresh(self, host_id: int, host_code: int, sequence: int) -> bool:
        """True and remembered when above the last of this host code; False for a replay."""
        sender = (host_id, host_code)
        last = self._last.get(sender)
        if last is not None:
            if sequence <= last:
                return False
        elif len(self._last) >= SENDERS_MAX:
            del self._last[next(iter(self._last))]
        self._last[sender] = sequence
        return True
