"""Extended affinity as the wire shows it: who keeps which clients, by the lists that hosts send."""

from dataclasses import dataclass, field

from convergence.clients import ClientKey, ListFrame, ListHead
from softnlb.known_clients import NoClients


@dataclass(slots=True)
class _List:
    head: ListHead
    frames: dict[int, tuple[ClientKey, ...]] = field(default_factory=dict)
    keys: frozenset[ClientKey] = frozenset()


class ClientLists:
    """The newest whole list of each host."""

    def __init__(self) -> None:
        self._lists: dict[int, _List] = {}

    def heard(self, frame: ListFrame) -> None:
        """One frame of a list; the one before counts until the list is whole."""
        host_id = frame.head.host_id
        known = self._lists.get(host_id)
        if known is None or known.head != frame.head:
            keys = known.keys if known else frozenset()
            known = self._lists[host_id] = _List(frame.head, keys=keys)
        known.frames[frame.number] = frame.keys
        if len(known.frames) == frame.frames:
            known.keys = frozenset(key for keys in known.frames.values() for key in keys)

    def of(self, host_id: int, view: int) -> "Listed":
        """What a host with this view knows of clients: its own list, and those of its members."""
        mine = self._lists[host_id].keys if host_id in self._lists else frozenset()
        others = [
            one.keys
            for other, one in self._lists.items()
            if other != host_id and view >> (other - 1) & 1
        ]
        return Listed(mine, frozenset[ClientKey]().union(*others))


class Listed(NoClients):
    """For the decision: ``kept`` by the host itself, ``excepted`` by others."""

    def __init__(self, kept: frozenset[ClientKey], excepted: frozenset[ClientKey]) -> None:
        self._kept, self._excepted = kept, excepted

    def is_excepted(self, slot: int, key: bytes) -> bool:
        return bytes((slot,)) + key in self._excepted

    def recall(self, slot: int, key: bytes) -> bool:
        return bytes((slot,)) + key in self._kept
