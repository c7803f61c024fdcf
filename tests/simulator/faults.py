"""What happens to a cluster in one episode, drawn from the seed."""

import random
from dataclasses import dataclass, field

from tests.simulator.change import CHANGES
from tests.simulator.network import CALM, Weather

PERIODS = 60
PERIOD_MS = 100

KINDS = (
    "calm", "join-leave", "crash", "restart", "drain", "weight", "pause", "loss", "delay",
    "partition", "mute", "deaf", "pair", "one-way", "crash-loop", "replay", "garble", "mixed",
)  # fmt: skip
ADDED = ("duplication", "reorder", "rule", "clock-step", "several")
"""Kinds that take the place of one of the above in a fifth of the episodes."""

CHANGE = "change"
"""A change of the whole cluster, with one fault in its middle: one episode in twenty-five."""

BACKGROUND = ("join-leave", "crash", "restart", "drain", "weight", "pause")
"""Faults of hosts; a network fault comes with one of them half of the time."""

LOSSY = Weather(loss=0.05)

NETWORK = ("partition", "mute", "deaf", "pair", "one-way")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that happens at a time: its kind, the host it happens to, and details."""

    at_ms: int
    kind: str
    host: int
    duration_ms: int = 0
    value: int = 0
    others: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """An episode: everything but the seed of chance itself."""

    kind: str
    hosts: tuple[int, ...]
    tolerance: int = 5
    weather: Weather = CALM
    keyed: bool = False
    extra_ticks: float = 0.0
    """Chance that an input is followed by a Tick that nobody asked for, at once or soon."""
    faults: tuple[Fault, ...] = field(default=())

    @property
    def one_bad_host(self) -> bool:
        """At most one network fault: what the others' buckets may suffer from it is bounded."""
        return self.kind != "several"

    @property
    def exact(self) -> bool:
        """No frame is lost by chance: the bounds in time are checked."""
        return self.weather.loss == 0 and self.weather.garble == 0 and self.weather.replay == 0


def size(chance: random.Random) -> int:
    """70 % up to 4 hosts, 25 % 5 to 8, 4 % 9 to 16, 1 % 32."""
    draw = chance.random()
    if draw < 0.70:
        return chance.randint(2, 4)
    if draw < 0.95:
        return chance.randint(5, 8)
    return chance.randint(9, 16) if draw < 0.99 else 32


def kind_of(seed: int) -> str:
    """What kind of fault this seed is about."""
    if random.Random(f"change {seed}").random() < 0.04:
        return CHANGE
    chance = random.Random(f"kind {seed}")
    return chance.choice(ADDED) if chance.random() < 0.2 else KINDS[seed % len(KINDS)]


def options(seed: int, kind: str | None = None) -> Options:
    """The episode of this seed; with ``kind``, as it would be were it about that."""
    chance = random.Random(f"episode {seed}")
    kind = kind or kind_of(seed)
    count = size(chance)
    hosts = tuple(sorted(chance.sample(range(1, 33), count)))
    tolerance = chance.choice((5, 5, 5, 3, 4, 8))
    weather = CALM
    if kind == "loss":
        weather = Weather(loss=chance.choice((0.01, 0.05, 0.1)))
    elif kind == "delay":
        weather = Weather(jitter_ms=chance.choice((3, 8, 15)), duplicate=chance.choice((0.0, 0.1)))
    elif kind == "duplication":
        weather = Weather(duplicate=chance.choice((0.1, 0.5, 1.0)), jitter_ms=chance.choice((0, 3)))
    elif kind == "reorder":
        weather = Weather(jitter_ms=chance.choice((20, 30, 50)))
    elif kind == "replay":
        weather = Weather(replay=0.05)
    elif kind == "garble":
        weather = Weather(garble=0.05)
    elif kind == "mixed":
        weather = Weather(
            loss=chance.choice((0.0, 0.05, 0.1)), jitter_ms=chance.choice((0, 10)), duplicate=0.02
        )
    if kind == CHANGE:
        return _change_options(chance, hosts, tolerance)
    keyed = kind in ("replay", "garble") or chance.random() < 0.1
    faults = _faults(chance, kind, hosts)
    # Chance of its own: what is drawn here changes no episode otherwise.
    more = random.Random(f"more {seed}")
    extra_ticks = more.choice((0.0, 0.0, 0.0, 0.5))
    if kind == "one-way" and count > 2 and more.random() < 0.3:
        faults = relay_faults(more, hosts, tolerance)
        weather = more.choice((CALM, LOSSY))
    if kind == "several":
        weather = more.choice((CALM, CALM, Weather(jitter_ms=10, duplicate=0.02), LOSSY))
    return Options(kind, hosts, tolerance, weather, keyed, extra_ticks, tuple(faults))


def _change_options(chance: random.Random, hosts: tuple[int, ...], tolerance: int) -> Options:
    """One or two changes of the whole cluster, and mostly something in the middle of one."""
    loss = chance.choice((0.05, 0.1))
    weather = chance.choice((CALM, CALM, Weather(jitter_ms=8), Weather(loss=loss)))
    found = [Fault(chance.randint(0, 300), "start", host) for host in hosts]
    for _ in range(chance.choice((1, 1, 2))):
        when = chance.randint(1600, 2600)
        value = chance.randrange(len(CHANGES))
        found.append(Fault(when, CHANGE, chance.choice(hosts), 1500, value))
        meanwhile = when + chance.randint(-100, 250)
        kind = chance.choice(("", "read-only", *BACKGROUND, *BACKGROUND, *NETWORK, "partition"))
        if kind in NETWORK:
            duration = chance.randint(300, 2400)
            found.append(_long_fault(chance, kind, hosts, meanwhile, duration))
        elif kind == "read-only":
            found.append(Fault(meanwhile, kind, chance.choice(hosts), 1000))
        elif kind:
            found += _host_fault(chance, kind, hosts, meanwhile)
    faults = tuple(sorted(found, key=lambda fault: fault.at_ms))
    return Options(CHANGE, hosts, tolerance, weather, chance.random() < 0.3, 0.0, faults)


def relay_faults(chance: random.Random, hosts: tuple[int, ...], tolerance: int) -> list[Fault]:
    """One host is heard by a single other one, which then leaves, dies, restarts or sleeps."""
    relay, far, *near = chance.sample(hosts, len(hosts))
    begin = chance.randint(900, 1100)
    when = begin + chance.randint(50, tolerance * PERIOD_MS + 250)
    found = [Fault(0, "start", host) for host in hosts]
    found += [Fault(begin, "one-way", far, 1800, others=(host,)) for host in near]
    end = chance.choice(("stop", "crash", "restart", "pause"))
    if end == "pause":
        found.append(Fault(when, end, relay, chance.choice((300, 520, 700, 900))))
    else:
        found.append(Fault(when, "stop" if end == "stop" else "crash", relay))
    if end == "restart":
        found.append(Fault(when + chance.randint(20, 300), "start", relay))
    return sorted(found, key=lambda fault: fault.at_ms)


def _faults(chance: random.Random, kind: str, hosts: tuple[int, ...]) -> list[Fault]:
    """Starts first, then one to four host faults, and for a network kind one network fault."""
    spread = chance.choice((0, 0, 50, 300, 1500))
    found = [Fault(chance.randint(0, spread), "start", host) for host in hosts]
    last_ms = 3200
    if kind == "crash-loop" or kind in NETWORK:
        begin = chance.randint(800, 2200)
        found.append(_long_fault(chance, kind, hosts, begin, chance.randint(600, 2400)))
    if kind == "calm":
        return found
    if kind == "several":
        for one in chance.choices(NETWORK, k=chance.randint(2, 3)):
            begin = chance.randint(800, 2200)
            found.append(_long_fault(chance, one, hosts, begin, chance.randint(600, 2400)))
    if kind in (*BACKGROUND, "rule", "clock-step"):
        kinds = [kind] * chance.randint(1, 3)
    elif kind in NETWORK or kind in ("crash-loop", "several"):
        kinds = chance.choices(BACKGROUND, k=chance.choice((0, 0, 1, 1)))
    else:
        kinds = chance.choices(BACKGROUND, k=chance.randint(1, 4))
    if kind == "mixed" and chance.random() < 0.5:
        begin = chance.randint(800, 2200)
        found.append(_long_fault(chance, chance.choice(NETWORK), hosts, begin, 1500))
    for one in kinds:
        found.extend(_host_fault(chance, one, hosts, chance.randint(900, last_ms)))
    return sorted(found, key=lambda fault: fault.at_ms)


def _long_fault(
    chance: random.Random, kind: str, hosts: tuple[int, ...], begin: int, duration: int
) -> Fault:
    victim = chance.choice(hosts)
    rest = [host for host in hosts if host != victim]
    others: tuple[int, ...] = ()
    if kind == "partition":
        others = tuple(chance.sample(rest, chance.randint(0, len(rest) - 1)))
    elif kind in ("pair", "one-way"):
        others = (chance.choice(rest),)
    return Fault(begin, kind, victim, duration, chance.randint(50, 900), others)


def _host_fault(chance: random.Random, kind: str, hosts: tuple[int, ...], when: int) -> list[Fault]:
    host = chance.choice(hosts)
    later = when + chance.randint(20, 1500)
    if kind == "join-leave":
        return [Fault(when, "stop", host), Fault(later + 600, "start", host)]
    if kind == "crash":
        return [Fault(when, "crash", host, value=chance.randint(0, 1))]
    if kind == "restart":
        return [Fault(when, "crash", host), Fault(later, "start", host)]
    if kind == "drain":
        return [Fault(when, "drain", host), Fault(later, "drained", host)]
    if kind == "weight":
        return [Fault(when, "weight", host, value=chance.choice((0, 10, 30, 60, 100)))]
    if kind == "rule":
        return [Fault(at_ms, "rule", host, value=chance.randrange(6)) for at_ms in (when, later)]
    if kind == "clock-step":
        step_ms = chance.choice((50, 140, 160, 300, 390, 410, 520, 1500, 60_000))
        return [Fault(when, "clock-step", host, value=step_ms)]
    duration = chance.choice((50, 150, 300, 390, 410, 480, 520, 700, 1500))
    return [Fault(when, "pause", host, duration, value=chance.randint(0, 1))]
