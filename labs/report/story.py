"""An event log as figures need it: who was in which state, who had which bucket, why.  Pure.

Times are seconds since the lab began.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from convergence.rules import BUCKETS
from labs.events import Event, sentence

MOVE_JOIN_S = 0.5
"""Buckets that move closer together than this are one move."""

JOINED_S = 0.5
"""A newcomer that has just converged may still get its last buckets."""

FAULT_NEAR_S = 10.0

TOLD = ("fault", "host", "silent", "fdb", "mdb", "cable", "note")

Port = dict[str, int]


@dataclass(slots=True)
class Stretch:
    """Something that lasted."""

    from_s: float
    until_s: float
    what: str


@dataclass(slots=True)
class Move:
    """Buckets that changed hands: how many from whom to whom (0 = nobody), and why."""

    at_s: float
    buckets: dict[tuple[int, int], int]
    why: str


@dataclass(slots=True)
class Story:
    """One lab."""

    title: str
    facts: dict[str, Any]
    ends_s: float = 0.0
    faults: list[tuple[float, str]] = field(default_factory=list)
    states: dict[int, list[Stretch]] = field(default_factory=dict)
    owners: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    """From this moment on: the host that accepts each bucket of the first rule, 0 = nobody."""

    moves: list[Move] = field(default_factory=list)
    ports: dict[str, Port] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)
    """Host id by node name."""

    clients: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    told: list[tuple[float, str, str]] = field(default_factory=list)
    """(when, kind, sentence)"""

    def longest_gap_s(self) -> float:
        """Of all clients; 0 when nobody noticed anything."""
        every = (*self.clients, *self.outcomes)
        return max((gap[1] - gap[0] for seen in every for gap in seen["gaps"]), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """The same figures as numbers."""
        return {
            "title": self.title,
            **self.facts,
            "duration_s": round(self.ends_s, 3),
            "faults": [{"at_s": at_s, "fault": text} for at_s, text in self.faults],
            "states": {
                host_id: [[s.from_s, s.until_s, s.what] for s in stretches]
                for host_id, stretches in self.states.items()
            },
            "bucket_owners": [{"at_s": at_s, "owners": owners} for at_s, owners in self.owners],
            "bucket_moves": [
                {
                    "at_s": move.at_s,
                    "why": move.why,
                    "buckets": [
                        {"from": a, "to": b, "count": count}
                        for (a, b), count in move.buckets.items()
                    ],
                }
                for move in self.moves
            ],
            "frames_per_port": self.ports,
            "clients": self.clients,
            "sessions": self.sessions,
            "outcomes": self.outcomes,
            "events": [{"at_s": t, "event": kind, "text": text} for t, kind, text in self.told],
        }


def story_of(events: list[Event]) -> Story:
    """The story of one lab; ``events`` begin with its "lab" event."""
    begin, zero_s = events[0], events[0]["at_s"]
    spec = begin.get("spec", {})
    story = Story(
        str(begin.get("name", "lab")), {key: spec.get(key) for key in _SPEC if key in spec}
    )
    nodes = begin.get("nodes", [])
    story.hosts = {n["name"]: n["host_id"] for n in nodes if n.get("host_id") is not None}
    for event in events:
        kind = event["event"]
        at_s = round(event["at_s"] - zero_s, 4)
        if kind == "fault":
            story.faults.append((at_s, " ".join([event["fault"], *event["arguments"]])))
        elif kind == "note" and str(event.get("text", "")).startswith("maintenance"):
            story.faults.append((at_s, str(event["text"])))
    teller = _Teller(story)
    for event in events[1:]:
        at_s = round(event["at_s"] - zero_s, 4)
        story.ends_s = max(story.ends_s, at_s)
        kind = event["event"]
        if kind == "frames":
            story.ports = event["ports"]
        elif kind in ("clients", "sessions", "client"):
            _clients(story, event, zero_s)
        teller.hear(kind, at_s, event)
        if kind in TOLD or (kind == "agent" and event["level"] != "INFO"):
            story.told.append((at_s, kind, sentence(event)))
    teller.end()
    return story


_SPEC = ("mode", "hosts", "timers", "switch", "affinity", "data_plane")


def _clients(story: Story, event: Event, zero_s: float) -> None:
    seen = {key: value for key, value in event.items() if key not in ("at_s", "event")}
    if "from_s" in seen:
        seen["from_s"] = round(seen["from_s"] - zero_s, 4)
    if "gaps" in seen:
        seen["gaps"] = [[round(a - zero_s, 4), round(b - zero_s, 4)] for a, b in seen["gaps"]]
        story.ends_s = max([story.ends_s, *(gap[1] for gap in seen["gaps"])])
    if "broken" in seen:
        seen["broken"] = [[round(at_s - zero_s, 4), *rest] for at_s, *rest in seen["broken"]]
    kept = {"clients": story.clients, "sessions": story.sessions, "client": story.outcomes}
    kept[event["event"]].append(seen)


class _Teller:
    """Follows states and buckets through the events."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._maps: dict[int, int] = {}
        self._claimed: dict[int, list[int]] = {}
        self._silent: set[int] = set()
        self._state: dict[int, tuple[str, float]] = {}
        self._joined: dict[int, float] = {}
        """Newcomers, and until when they count as such."""
        self._robbed: set[int] = set()
        """Silent hosts whose buckets others have taken, or will."""
        self._move: Move | None = None
        self._reasons: list[str] = []

    def hear(self, kind: str, at_s: float, event: Event) -> None:
        """One event."""
        host_id = int(event.get("host_id", 0))
        if kind == "host":
            self._silent.discard(host_id)
            self._enter(host_id, str(event["state"]), at_s)
        elif kind == "silent":
            self._silent.add(host_id)
            self._enter(host_id, "silent", at_s)
            self._changed(at_s)
        elif kind == "buckets" and event["slot"] == 0:
            self._maps[host_id] = int(event["map"], 16)
            self._changed(at_s, host_id)

    def end(self) -> None:
        """Nothing follows."""
        for host_id, (state, since_s) in self._state.items():
            self._stretch(host_id, since_s, self._story.ends_s, state)

    def _enter(self, host_id: int, state: str, at_s: float) -> None:
        before = self._state.get(host_id)
        if before is not None and before[0] == state:
            return
        if before is not None:
            self._stretch(host_id, before[1], at_s, before[0])
        if state == "joining":
            self._joined[host_id] = float("inf")
            self._robbed.discard(host_id)
        elif state == "converged" and host_id in self._joined:
            self._joined[host_id] = at_s + JOINED_S
        self._state[host_id] = state, at_s

    def _stretch(self, host_id: int, from_s: float, until_s: float, state: str) -> None:
        if until_s > from_s:
            self._story.states.setdefault(host_id, []).append(Stretch(from_s, until_s, state))

    def _changed(self, at_s: float, newest: int = 0) -> None:
        """Who has which bucket now; of two that claim one, the one that did so last."""
        before = self._story.owners[-1][1] if self._story.owners else (0,) * BUCKETS
        owners = []
        for bucket in range(BUCKETS):
            claims = [
                host_id
                for host_id, taken in self._maps.items()
                if taken >> bucket & 1 and host_id not in self._silent
            ]
            owner = before[bucket] if before[bucket] in claims else 0
            owners.append(newest if newest in claims else owner or (claims[0] if claims else 0))
        now = tuple(owners)
        if now == before:
            return
        self._story.owners.append((at_s, now))
        self._note_move(at_s, before, now)

    def _note_move(self, at_s: float, before: tuple[int, ...], now: tuple[int, ...]) -> None:
        moves = self._story.moves
        if self._move is None or at_s - self._move.at_s > MOVE_JOIN_S:
            self._move = Move(at_s, {}, "")
            self._reasons = []
            moves.append(self._move)
        for old, new in zip(before, now, strict=True):
            if old != new:
                pair = old, new
                self._move.buckets[pair] = self._move.buckets.get(pair, 0) + 1
                why = self._why(old, new, at_s)
                if why not in self._reasons:
                    self._reasons.append(why)
        self._move.why = "; ".join(self._reasons)

    def _why(self, old: int, new: int, at_s: float) -> str:
        for host_id in [h for h, until_s in self._joined.items() if at_s > until_s]:
            del self._joined[host_id]
        if old in self._silent:
            self._robbed.add(old)
            fault = self._fault_of(old, at_s)
            return f"host {old} fell silent" + (f" ({fault})" if fault else "")
        state = self._state.get(old, ("", 0.0))[0]
        if state in ("draining", "leaving"):
            return f"host {old} is {state}"
        lost = ", ".join(str(host_id) for host_id in sorted(self._silent & self._robbed))
        if not old and lost:
            return f"the others take what host {lost} had"
        if new in self._joined:
            return f"host {new} joined"
        if not old:
            return "nobody had them"
        if self._joined:
            return f"host {', '.join(map(str, sorted(self._joined)))} joined"
        return "shares or members changed"

    def _fault_of(self, host_id: int, at_s: float) -> str:
        """The fault that met this host about then; the last heartbeat may have been before it."""
        names = {name for name, its_id in self._story.hosts.items() if its_id == host_id}
        found = [
            (abs(fault_s - at_s), text)
            for fault_s, text in self._story.faults
            if names & set(text.replace(",", " ").split()) and abs(fault_s - at_s) < FAULT_NEAR_S
        ]
        return min(found)[1] if found else ""


def sentence_of_move(move: Move) -> Iterator[str]:
    """ "12 from host 2 to host 1" for each pair."""
    for (old, new), count in sorted(move.buckets.items()):
        a = f"host {old}" if old else "nobody"
        b = f"host {new}" if new else "nobody"
        yield f"{count} from {a} to {b}"
