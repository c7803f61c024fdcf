"""The simulated segment: who can hear whom, and how frames suffer on the way."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weather:
    """How frames suffer; probabilities 0..1, times in ms.

    ``jitter_ms``: each receiver gets its copy up to this much later, so frames overtake.
    ``replay`` and ``garble``: per frame sent, the chance that a recorded or a damaged copy of
    some earlier frame reaches everybody too.
    """

    loss: float = 0.0
    delay_ms: int = 1
    jitter_ms: int = 0
    duplicate: float = 0.0
    replay: float = 0.0
    garble: float = 0.0


CALM = Weather()


class Network:
    """Directed links between host ids; a blocked one lets nothing through."""

    def __init__(self, weather: Weather, random_source: random.Random) -> None:
        self.weather = weather
        self.random = random_source
        self.mute: set[int] = set()
        self.deaf: set[int] = set()
        self.cut: set[tuple[int, int]] = set()
        self.side: dict[int, int] = {}

    @property
    def broken(self) -> bool:
        """Some link is blocked."""
        return bool(self.mute or self.deaf or self.cut or self.side)

    def signature(self) -> object:
        """Equal when all links are equal."""
        return frozenset(self.mute), frozenset(self.deaf), frozenset(self.cut), dict(self.side)

    def passes(self, source: int, target: int) -> bool:
        """Frames of ``source`` can reach ``target``."""
        return not (
            source in self.mute
            or target in self.deaf
            or (source, target) in self.cut
            or self.side.get(source, 0) != self.side.get(target, 0)
        )

    def heal(self) -> None:
        """All links work again."""
        self.mute.clear()
        self.deaf.clear()
        self.cut.clear()
        self.side.clear()

    def reaches(self, source: int, target: int, relays: set[int]) -> bool:
        """A frame, passed on by relays, gets from one host to the other."""
        seen = {source}
        edge = [source]
        while edge:
            one = edge.pop()
            if self.passes(one, target):
                return True
            for relay in relays - seen:
                if self.passes(one, relay):
                    seen.add(relay)
                    edge.append(relay)
        return False
