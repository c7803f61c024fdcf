"""What a host remembers of changes of the whole cluster; ``staging`` says how they go."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convergence.change_frame import ChangeName

if TYPE_CHECKING:
    from convergence.state import HostConfig


KEPT_MAX = 4
"""Configurations kept beside the present one: a part of the cluster may be that far behind."""


@dataclass(slots=True)
class Change:
    """A change of the whole cluster that is being staged.

    ``config``: what it leads to here, once this host has staged it.  ``answers``, of the
    coordinator: per host id and code the digest and handling priorities that it staged.
    """

    name: ChangeName
    body: bytes = b""
    until_ms: int = 1 << 62
    heard_ms: int = 0
    config: "HostConfig | None" = None
    digest: bytes = bytes(8)
    refusal: str = ""
    aborted: str = ""
    participants: int = 0
    answers: dict[tuple[int, int], tuple[bytes, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class Staging:
    """What this host knows of changes of the whole cluster.

    ``kept``: configurations that it may go over to, by digest; None: it is on the disk only.
    ``staged``: the digest of the newest one, which it follows when a member serves by it.
    ``former`` and ``switched_ms``: what it served by before its last switch, and when that was.
    """

    change: Change | None = None
    number: int = 0
    kept: "dict[bytes, HostConfig | None]" = field(default_factory=dict)
    recalled: set[bytes] = field(default_factory=set)
    staged: bytes | None = None
    former: "HostConfig | None" = None
    switched_ms: int = -(1 << 62)
    lagging: int = 0
    """Members that were not heard since the last switch with the configuration of it."""
    outcome: tuple[ChangeName, str] | None = None
    """Of the last change that this host proposed: "" for done, or why it was aborted."""

    def keep(self, digest: bytes, config: "HostConfig") -> None:
        """Be ready to go over to this configuration; the oldest ones are forgotten."""
        self.kept.pop(digest, None)
        self.kept[digest] = config
        while len(self.kept) > KEPT_MAX:
            del self.kept[next(iter(self.kept))]
