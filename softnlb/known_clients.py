"""Extended affinity: the clients that a host remembers, as the decision asks for them.

A client is known by the slot of its rule and by what the rule's affinity hashes of it.
"""

from dataclasses import dataclass
from typing import Protocol

CLIENTS_MAX = 32_768
"""Clients that one host remembers at most; later ones go by their bucket alone."""


class Clients(Protocol):
    """What a data plane remembers."""

    def is_excepted(self, slot: int, key: bytes) -> bool:
        """True when another host keeps this client, whoever owns its bucket."""

    def recall(self, slot: int, key: bytes) -> bool:
        """True, and heard now, when this host remembers the client."""

    def remember(self, slot: int, key: bytes, bucket: int) -> None:
        """The owner of its bucket accepted the client: remember it, or that it was heard."""


class NoClients:
    """Nobody remembers anybody."""

    def is_excepted(self, slot: int, key: bytes) -> bool:
        return False

    def recall(self, slot: int, key: bytes) -> bool:
        return False

    def remember(self, slot: int, key: bytes, bucket: int) -> None:
        pass


NO_CLIENTS = NoClients()


@dataclass(frozen=True, slots=True)
class Known:
    """One client that a data plane remembers; ``key`` begins with the slot.

    ``heard_ms``: boot-time clock.
    """

    key: bytes
    bucket: int
    heard_ms: int
