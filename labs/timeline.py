"""What a change did, read from the event log of a lab: silences, holdings, states.  Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from convergence.rules import BUCKETS
from labs.events import Event

ALL = (1 << BUCKETS) - 1
LOST = "is lost:"


@dataclass(frozen=True, slots=True)
class Takeover:
    """Seconds after a fault: the last member's expiry, all buckets held again, all Converged.

    None: it did not happen.
    """

    expired_s: float | None
    owned_s: float | None
    converged_s: float | None

    @property
    def convergence_s(self) -> float | None:
        """From the last expiry of a member to the last one Converged."""
        if self.expired_s is None or self.converged_s is None:
            return None
        return self.converged_s - self.expired_s


def takeover(events: Iterable[Event], fault_s: float, until_s: float, victim: int) -> Takeover:
    """What the event log says of the survivors of ``victim`` between two moments.

    A bucket is owned as soon as a heartbeat says so: a host installs before it sends.
    """
    maps: dict[int, int] = {}
    states: dict[int, str] = {}
    expired_s = owned_s = converged_s = None
    restarted = False
    for event in sorted(events, key=lambda one: float(one["at_s"])):
        at_s, host_id = float(event["at_s"]), event.get("host_id")
        if at_s > until_s:
            break
        if host_id == victim and at_s >= fault_s:
            continue
        if event["event"] == "buckets" and event["slot"] == 0:
            maps[int(event["host_id"])] = int(event["map"], 16)
        elif event["event"] == "host":
            states[int(event["host_id"])] = event["state"]
            restarted = restarted or (at_s >= fault_s and event["state"] != "converged")
        elif event["event"] == "agent" and f"Host {victim} {LOST}" in event["text"]:
            expired_s = at_s - fault_s if at_s >= fault_s else expired_s
        if at_s < fault_s:
            continue
        held = 0
        for other, bits in maps.items():
            held |= bits if other != victim else 0
        if owned_s is None and held == ALL:
            owned_s = at_s - fault_s
        if restarted and event["event"] == "host":
            others = [state for other, state in states.items() if other != victim]
            converged_s = at_s - fault_s if set(others) == {"converged"} else None
    return Takeover(expired_s, owned_s, converged_s)


def longest_gap_s(events: Iterable[Event], from_s: float, until_s: float) -> float:
    """The longest time that any bucket of slot 0 was held by nobody, as the heartbeats say."""
    maps: dict[int, int] = {}
    free_since: dict[int, float] = {}
    longest = 0.0
    for event in sorted(events, key=lambda one: float(one["at_s"])):
        at_s = float(event["at_s"])
        if at_s > until_s:
            break
        if event["event"] != "buckets" or event["slot"] != 0:
            continue
        maps[int(event["host_id"])] = int(event["map"], 16)
        if at_s < from_s:
            continue
        held = 0
        for bits in maps.values():
            held |= bits
        for bucket in range(BUCKETS):
            if not held >> bucket & 1:
                free_since.setdefault(bucket, at_s)
            elif bucket in free_since:
                longest = max(longest, at_s - free_since.pop(bucket))
    return max([longest, *(until_s - at_s for at_s in free_since.values())])


def inherited_s(
    events: Iterable[Event], fault_s: float, until_s: float, victim: int, heirs: set[int]
) -> float | None:
    """When these hosts had taken all buckets of slot 0 that ``victim`` had at its death.

    Seconds after ``fault_s``; None: not by ``until_s``.
    """
    maps: dict[int, int] = {}
    estate: int | None = None
    for event in sorted(events, key=lambda one: float(one["at_s"])):
        at_s = float(event["at_s"])
        if at_s > until_s:
            break
        if event["event"] != "buckets" or event["slot"] != 0:
            continue
        if at_s >= fault_s and estate is None:
            estate = maps.get(victim, 0)
        if event["host_id"] == victim and estate is not None:
            continue
        maps[int(event["host_id"])] = int(event["map"], 16)
        if estate is not None:
            held = 0
            for host_id in heirs:
                held |= maps.get(host_id, 0)
            if not estate & ~held:
                return at_s - fault_s
    return None
