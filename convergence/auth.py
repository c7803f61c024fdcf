"""Keys and message authentication of heartbeats: HMAC-SHA256, its first 16 bytes.

The MAC covers payload bytes 0..1479, so also key id and sequence number.  It is checked before
anything else of a frame is believed: a forged frame must not move replay state.
"""

import hmac
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from convergence.heartbeat import KEY_ID_OFFSET, MAC_BYTES, MAC_OFFSET

SENDERS_MAX = 4096
"""Host codes remembered with their last sequence; the longest silent is forgotten beyond that."""


class Authentication(StrEnum):
    """What a host signs and what it accepts: the steps of a roll-out, in their order.

    ============== ===================== ================================================
    step           my own frames         accepted, of this cluster
    ============== ===================== ================================================
    none           unsigned              unsigned
    receive-only   unsigned              unsigned, and signed with any key of my key file
    permissive     signed, first key     unsigned, and signed with any key of my key file
    enforce        signed, first key     signed with any key of my key file
    ============== ===================== ================================================

    Neighbours in this table always understand each other.  A frame that names a key is never
    accepted as an unsigned one.  Only ``enforce`` protects from forgery.
    """

    NONE = "none"
    RECEIVE_ONLY = "receive-only"
    PERMISSIVE = "permissive"
    ENFORCE = "enforce"


class Verdict(Enum):
    """What the key id and the MAC of a frame say."""

    VERIFIED = "verified"
    UNSIGNED = "unsigned"
    """It names no key, and that is accepted here."""
    KEY_MISSING = "key-missing"
    """It names no key, and this host demands one."""
    NO_KEY = "no-key"
    """It names a key, and this host has none."""
    UNKNOWN_KEY = "unknown-key"
    """It names a key that this host does not have."""
    WRONG_KEY = "wrong-key"
    """The key that it names is another one here, or the frame was altered."""


@dataclass(frozen=True, slots=True)
class Key:
    """A cluster key.  ``id`` 1..2^32-1 rides in the frame, ``secret`` never shows in a repr."""

    id: int
    secret: bytes = field(repr=False)


ACCEPTS_UNSIGNED = 1 << 31
_BITS_OF_KEY = 3
_PLACES = 31


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of a host, the one that signs first, and what they are used for.

    ``accepts``: what this host accepts, as 32 bits that ride in its frames, so that nobody begins
    to sign what a member does not believe.  Per key three bits that follow from id and secret
    (they tell nothing of a secret of 32 bytes), the highest one for unsigned frames.
    """

    keys: tuple[Key, ...] = ()
    authentication: Authentication = Authentication.NONE
    accepts: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        accepts = 0 if self.authentication is Authentication.ENFORCE else ACCEPTS_UNSIGNED
        for key in self.keys:
            accepts |= _bits(key)
        object.__setattr__(self, "accepts", accepts)
        if bool(self.keys) is (self.authentication is Authentication.NONE):
            raise ValueError("keys are what authentication needs, and without it there are none")
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one id")

    @property
    def signing_key(self) -> Key | None:
        """The key of my own frames, None when they go out unsigned."""
        signs = self.authentication in (Authentication.PERMISSIVE, Authentication.ENFORCE)
        return self.keys[0] if signs else None

    def is_accepted_by(self, accepts: int) -> bool:
        """Whether a host that accepts this believes frames that are signed as this keyring does.

        A false True once in some hundred mistakes, never a false False.
        """
        key = self.signing_key
        wanted = ACCEPTS_UNSIGNED if key is None else _bits(key)
        return accepts & wanted == wanted

    def believes(self, key_id: int, former: "Keyring") -> bool:
        """Whether frames that name this key, and were believed with the former keys, still are."""
        if not key_id:
            return bool(self.accepts & ACCEPTS_UNSIGNED)
        return any(key.id == key_id and key in former.keys for key in self.keys)

    def judge(self, payload: bytes) -> Verdict:
        """Whether a frame of the right length is to be believed."""
        key_id = int.from_bytes(payload[KEY_ID_OFFSET : KEY_ID_OFFSET + 4], "little")
        if not key_id:
            enforced = self.authentication is Authentication.ENFORCE
            return Verdict.KEY_MISSING if enforced else Verdict.UNSIGNED
        for key in self.keys:
            if key.id == key_id:
                return Verdict.VERIFIED if verify(payload, key) else Verdict.WRONG_KEY
        return Verdict.UNKNOWN_KEY if self.keys else Verdict.NO_KEY


def _bits(key: Key) -> int:
    name = b"accepts" + key.id.to_bytes(4, "little")
    digest = hmac.digest(key.secret, name, "sha256")
    bits = 0
    for place in digest[:_BITS_OF_KEY]:
        bits |= 1 << place % _PLACES
    return bits


def sign(payload: bytes, key: Key) -> bytes:
    """The payload with its last 16 bytes replaced by the MAC."""
    covered = payload[:MAC_OFFSET]
    return covered + hmac.digest(key.secret, covered, "sha256")[:MAC_BYTES]


def verify(payload: bytes, key: Key) -> bool:
    """True when the last 16 bytes are the MAC of the rest; in constant time."""
    mac = hmac.digest(key.secret, payload[:MAC_OFFSET], "sha256")[:MAC_BYTES]
    return hmac.compare_digest(mac, payload[MAC_OFFSET:])


class ReplayGuard:
    """The last sequence numbers of every host code that was ever accepted in this lifetime.

    Of verified frames and of all accepted ones: what a forger told while unsigned frames were
    still accepted must not shut a member up once signatures are enforced.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], tuple[int, int]] = {}

    def is_fresh(
        self, host_id: int, host_code: int, sequence: int, verified: bool, enforced: bool
    ) -> bool:
        """True and remembered when above the last of this host code; False for a replay.

        ``enforced``: only verified frames count.
        """
        sender = (host_id, host_code)
        last_verified, last = self._last.pop(sender, (-1, -1))
        fresh = sequence > (last_verified if enforced else last)
        if fresh:
            last = max(last, sequence)
            last_verified = sequence if verified else last_verified
        self._last[sender] = (last_verified, last)
        if len(self._last) > SENDERS_MAX:
            del self._last[next(iter(self._last))]
        return fresh
