"""The boundary to whatever drops and keeps packets: four calls, two implementations."""

from collections.abc import Collection, Mapping
from typing import Protocol

from softnlb.filter import FilterTable
from softnlb.known_clients import Known


class DataPlane(Protocol):
    """A packet filter for one cluster on one interface.

    ``install`` is idempotent and atomic: a packet meets the old table or the new one, never a
    mixture, and a table is only obeyed until its ``valid_until_ms``.
    """

    name: str
    sets_packet_type: bool
    """Whether what it keeps becomes a packet for this host only here, and not in the link's rules:
    then nothing is kept when the plane is gone."""

    @property
    def attachment(self) -> str:
        """Where it hooks into the kernel, for people."""

    def attach(self, interface: str) -> None:
        """Begin to filter with an empty table: nothing is kept until ``install``.

        Raises DataPlaneUnavailable when the machine lacks what this plane needs.
        """

    def install(self, table: FilterTable) -> None:
        """Obey this table from now on."""

    def renew(self, valid_until_ms: int) -> None:
        """Extend the lease of the installed table (boot-time clock, ms)."""

    def clients(self) -> list[Known]:
        """The clients that this host remembers."""

    def forget(self, keys: Collection[bytes]) -> None:
        """Remember these clients no more: when this returns, none of them is accepted as known."""

    def heard(self, clients: Collection[Known], now_ms: int) -> None:
        """These clients were heard now, as far as they are remembered."""

    def leave_to_others(self, added: Mapping[bytes, int], removed: Collection[bytes]) -> None:
        """The clients that other hosts keep, with their host ids; in force when this returns.

        Raises SoftnlbError when there is no room for them.
        """

    def not_remembered(self) -> int:
        """Clients for whom there was no room since ``attach``."""

    def counters(self) -> dict[str, int]:
        """Packets per reason since ``attach``."""

    def slot_counters(self, slot: int) -> dict[str, int]:
        """As ``counters``, of the packets that met the rule of this slot and this plane decided.

        What the kernel decides before the plane is asked belongs to no slot.
        """

    def intact(self) -> bool:
        """False when a piece of this plane was removed by somebody else."""

    def fileno(self) -> int | None:
        """A descriptor that becomes readable when the plane fails, None when it cannot."""

    def detach(self) -> None:
        """Remove every trace of this plane.  Safe to call twice."""
