"""What we know of each other host: its newest heartbeat, when it came, whom it hears."""

import struct

from convergence.heartbeat import (
    AGE_NONE,
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


class Peer:
    """Another host under one host code.  A restarted host is a new Peer."""

    __slots__ = (
        "bit",
        "code",
        "heard_me_ms",
        "hears",
        "heartbeat",
        "host_id",
        "identity",
        "index",
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
        self.heard_me_ms = -(1 << 62)
        """When I sent the newest frame that it surely heard, while it goes by me."""
        self.vouched: dict[tuple[int, int], int] = {}
        """Per host id and code when that host, by its word, heard this one; until taken back."""
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
        heartbeat = self.heartbeat
        return heartbeat.ages[index] != AGE_NONE and heartbeat.tags[index] & CODE_TAG == tag

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
