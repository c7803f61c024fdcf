"""What we know of each other host: its newest heartbeat, when it came, whom it hears."""

import struct

from convergence.heartbeat import (
    AGE_NONE,
    AGE_UNITS,
    CODE_TAG,
    DRAINING,
    JOINING,
    LEAVING,
    Heartbeat,
    Statement,
    code_tag,
)

_IDENTITY = struct.Struct("<III")


def identity(host_id: int, host_code: int, draining: bool, weights: tuple[int, ...]) -> bytes:
    """What the view digest covers of one member; weights are 0..100."""
    return _IDENTITY.pack(host_id, host_code, draining) + bytes(weights)


_CODES = bytes(tag & CODE_TAG for tag in range(256))
_HEARD = bytes(age != AGE_NONE for age in range(256))


class Word:
    """Whom a host of one host code hears, by its newest frame."""

    __slots__ = ("heartbeat", "names", "received_ms", "view")

    def __init__(self, heartbeat: Heartbeat, received_ms: int) -> None:
        self.heartbeat = heartbeat
        self.received_ms = received_ms
        self.view = heartbeat.statement.view
        heard, codes = heartbeat.ages.translate(_HEARD), heartbeat.tags.translate(_CODES)
        self.names = int.from_bytes(heard, "little") | int.from_bytes(codes, "little")
        """A byte per host: the same in two frames that name the same host, whenever heard."""

    def heard_ms(self, peer: "Peer", death_ms: int) -> int | None:
        """When it heard this member of its view; None: it does not say so."""
        index = peer.index
        if not self.view & peer.bit or not self.heartbeat.hears(index, peer.tag):
            return None
        return self.received_ms - self.heartbeat.ages[index] * death_ms // AGE_UNITS


class Peer:
    """Another host under one host code.  A restarted host is a new Peer."""

    __slots__ = (
        "admitted_ms",
        "bit",
        "code",
        "heard_me_ms",
        "hears",
        "heartbeat",
        "host_id",
        "identity",
        "index",
        "next_heard_me_ms",
        "received_ms",
        "since_ms",
        "source_mac",
        "statement",
        "tag",
        "tag_ms",
        "vouched",
    )

    def __init__(self, heartbeat: Heartbeat, received_ms: int, source_mac: bytes) -> None:
        statement = heartbeat.statement
        self.host_id = statement.host_id
        self.index = statement.host_id - 1
        self.bit = 1 << self.index
        self.code = statement.host_code
        self.source_mac = source_mac
        self.heartbeat = heartbeat
        self.received_ms = received_ms
        self.since_ms = received_ms
        """Heard without a longer silence since then."""
        self.tag = -1
        self.tag_ms = received_ms
        """Since when it joins, or takes part, as it does now."""
        self.admitted_ms = received_ms
        """As a member: since when it is one, and we hear each other."""
        self.heard_me_ms = -(1 << 62)
        """When I sent the newest frame that it surely heard, while it goes by me."""
        self.next_heard_me_ms = -(1 << 62)
        """As my only partner: likewise of its next life, before that took its place."""
        self.vouched: dict[tuple[int, int], int] = {}
        """Per host id and code when that host heard this one, by words that it has said since no
        more and has not taken back."""
        self.hears: int | None = None
        self._read(statement)

    def update(self, heartbeat: Heartbeat, received_ms: int) -> None:
        """The newest heartbeat of this host code."""
        self.heartbeat = heartbeat
        self.received_ms = received_ms
        self.hears = None
        if heartbeat.statement is not self.statement:
            self._read(heartbeat.statement)

    def _read(self, statement: Statement) -> None:
        self.statement = statement
        tag = code_tag(self.code, bool(statement.flags & JOINING))
        if tag != self.tag:
            self.tag, self.tag_ms = tag, self.received_ms
        draining = bool(statement.flags & DRAINING)
        self.identity = identity(self.host_id, self.code, draining, statement.weights)

    def reports(self, index: int, tag: int) -> bool:
        """True when its newest frame says that it hears the host at this place under this tag."""
        return self.heartbeat.hears(index, tag)

    def is_machine_of(self, other: "Peer") -> bool:
        """The same dedicated IP address: under another host code, a restarted host."""
        mine, theirs = self.statement, other.statement
        return mine.dedicated_ip_address == theirs.dedicated_ip_address

    @property
    def counts(self) -> bool:
        """Neither joining nor leaving: it may own buckets and shun others."""
        return not self.statement.flags & (JOINING | LEAVING)


class HeardHosts:
    """All hosts heard in this lifetime: one primary host code per host id, and rivals.

    A second code on a host id becomes the primary one when the first fell silent; until then it
    is a rival (a restarted host, or a duplicate host id).
    """

    def __init__(self) -> None:
        self.primary: dict[int, Peer] = {}
        self.rivals: dict[int, Peer] = {}

    def find(self, host_id: int, host_code: int) -> Peer | None:
        """The peer of exactly this code, primary or rival."""
        peer = self.primary.get(host_id)
        if peer is not None and peer.code == host_code:
            return peer
        rival = self.rivals.get(host_id)
        if rival is not None and rival.code == host_code:
            return rival
        return None

    def promote(self, peer: Peer) -> None:
        """Make this peer the primary of its host id."""
        host_id = peer.host_id
        old = self.primary.get(host_id)
        self.rivals.pop(host_id, None)
        if old is not None and old is not peer:
            self.rivals[host_id] = old
        self.primary[host_id] = peer
        self.forget_masks()

    def forget_masks(self) -> None:
        """Whom each host hears depends on the codes that we know: work it out again."""
        for peer in self.primary.values():
            peer.hears = None

    def hears(self, peer: Peer, own_index: int, own_tag: int) -> int:
        """Bit mask of the hosts that this peer hears under the codes that we know."""
        if peer.hears is None:
            mask = 1 << own_index if peer.reports(own_index, own_tag) else 0
            for other in self.primary.values():
                if peer.reports(other.index, other.tag):
                    mask |= other.bit
            peer.hears = mask
        return peer.hears
