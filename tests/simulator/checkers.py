"""The guarantees of the protocol, each a named checker.

A checker judges from outside: by what the data planes accept against the true clock and by what
hosts say, never by the machine's private state.
"""

from collections.abc import Callable
from dataclasses import dataclass

from convergence.change_frame import CHANGE_SIGNATURE
from convergence.clients import SIGNATURE_BYTES
from convergence.events import (
    ConfigurationSwitched,
    ExceptionsChanged,
    ForgetClients,
    HostState,
    LeaseRenewed,
    LogEvent,
    MapsChanged,
    Output,
    SendFrame,
)
from convergence.heartbeat import Heartbeat, Statement, decode
from convergence.rules import ALL_BUCKETS, BUCKETS
from convergence.stages import Phase
from tests.simulator.change import both_take
from tests.simulator.world import Host, World

FOREVER = 1 << 60
OF_OTHER_FRAMES = (CHANGE_SIGNATURE, SIGNATURE_BYTES)
NEVER = -FOREVER


@dataclass(frozen=True, slots=True)
class Violation:
    """A guarantee that did not hold."""

    guarantee: str
    at_ms: int
    text: str

    def __str__(self) -> str:
        return f"{self.guarantee} at {self.at_ms} ms: {self.text}"


class Checker:
    """Base: collects violations, at most a few per episode."""

    name = ""

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[Violation] = []
        world.observers.append(self.saw)

    def saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        """A host did something."""

    def fail(self, text: str) -> None:
        """Note a violation."""
        if len(self.violations) < 5:
            self.violations.append(Violation(self.name, self.world.now_ms, text))


def overlap(one: tuple[int, ...], other: tuple[int, ...]) -> list[str]:
    """Slots and buckets that stand in both."""
    return [
        f"slot {slot} buckets {both:#x}"
        for slot, (mine, theirs) in enumerate(zip(one, other, strict=False))
        if (both := mine & theirs)
    ]


def taken_twice(
    one: Host, mine: tuple[int, ...], other: Host, theirs: tuple[int, ...]
) -> list[str]:
    """What both data planes would accept, also while they go by different rules."""
    if one.plane.rules == other.plane.rules or not mine or not theirs:
        return overlap(mine, theirs)
    return both_take(one.plane.rules, mine, other.plane.rules, theirs)


class OneOwner(Checker):
    """Two live hosts never accept the same bucket of the same rule at the same moment.

    Exact, except between hosts that are parted: no way for frames, through other members, from
    each to the other.  A mute host is not parted from those it hears: it must stop.
    ``merge_ms`` after a partition healed nothing may be owned twice any more (guarantee "merge"):
    counted from when both are awake and hear each other.  While they do not, because one sleeps or
    the partition became a broken pair or a mute host, ``lapse_ms`` from then on.
    """

    name = "one-owner"

    def __init__(self, world: World, merge_ms: int, lapse_ms: int) -> None:
        super().__init__(world)
        self.merge_ms = merge_ms
        self.lapse_ms = lapse_ms
        self.parted_until: dict[tuple[int, int], int] = {}
        self.direct: set[tuple[int, int]] = set()
        self.bridged: set[tuple[tuple[int, int], tuple[int, int]]] = set()
        self.links: object = None

    def saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        if any(isinstance(output, MapsChanged | LeaseRenewed) for output in outputs):
            self.compare(host)

    def accepted(self, host: Host) -> tuple[int, ...]:
        """What the host's data plane accepts now."""
        return host.plane.accepts(self.world.now_ms + host.clock_ms)

    def taken_twice(self, one: Host, other: Host) -> list[str]:
        """What both accept now."""
        return taken_twice(one, self.accepted(one), other, self.accepted(other))

    def compare(self, host: Host) -> None:
        """This host's plane against every other host's."""
        world = self.world
        if not any(self.accepted(host)):
            return
        for other in world.hosts.values():
            if other is host:
                continue
            twice = self.taken_twice(host, other)
            if not twice or self.parted(host.host_id, other.host_id):
                continue
            self._note_joined({one.host_id for one in world.hosts.values() if not one.asleep})
            if not self.parted(host.host_id, other.host_id):
                pair = f"hosts {host.host_id} and {other.host_id}"
                self.fail(f"{pair} both accept {', '.join(twice)}")

    def parted(self, one: int, other: int) -> bool:
        """These two cannot agree now, or could not until a moment ago."""
        pair = (min(one, other), max(one, other))
        return self.world.now_ms <= self.parted_until.get(pair, NEVER)

    def note_links(self) -> None:
        """Links, or the hosts that could pass something on, changed: who is parted now?"""
        world = self.world
        network = world.network
        awake = {one.host_id for one in world.hosts.values() if not one.asleep}
        relays = {name for name in awake if is_member(world.hosts[name])}
        if any(world.now_ms <= until_ms < FOREVER for until_ms in self.parted_until.values()):
            self._note_joined(awake)
        links = network.signature(), relays, awake
        if links == self.links:
            return
        self.links = links
        names = sorted(world.hosts)
        for place, one in enumerate(names):
            for other in names[place + 1 :]:
                pair = (one, other)
                if network.broken and self._parted_now(one, other, relays):
                    if self.parted_until.get(pair) != FOREVER:
                        self.bridged = {known for known in self.bridged if known[0] != pair}
                    self.parted_until[pair] = FOREVER
                    self.direct.discard(pair)
                elif self.parted(one, other):
                    direct = network.passes(one, other) and network.passes(other, one)
                    self._note_meeting(pair, direct and one in awake and other in awake)

    def _note_meeting(self, pair: tuple[int, int], direct: bool) -> None:
        """They were parted and are not any more."""
        world = self.world
        if self.parted_until[pair] < FOREVER and direct == (pair in self.direct):
            return
        if direct:
            self.direct.add(pair)
        else:
            self.direct.discard(pair)
        patience_ms = self.merge_ms if direct else self.lapse_ms
        self.parted_until[pair] = world.now_ms + patience_ms
        world.at(world.now_ms + patience_ms + 1, self._merged, pair)

    def _note_joined(self, awake: set[int]) -> None:
        """Who joins one half of a partition takes buckets over that the other half has, too.

        While the partition lasts this counts once: from then on the other half can hear it.
        """
        views = {name: view_of(self.world.hosts[name]) for name in awake}
        for pair, until_ms in list(self.parted_until.items()):
            if until_ms < self.world.now_ms:
                continue
            for half, other in (pair, pair[::-1]):
                apart = view_of(self.world.hosts[other]) | {other}
                for name in views.get(half, set()) - apart:
                    if half in views.get(name, ()) and other not in views[name]:
                        joined = min(name, other), max(name, other)
                        if until_ms == FOREVER:
                            if (pair, joined) in self.bridged:
                                continue
                            self.bridged.add((pair, joined))
                        self._note_inherited(joined, until_ms, other in awake)

    def _note_inherited(self, pair: tuple[int, int], until_ms: int, awake: bool) -> None:
        network = self.world.network
        if self.parted_until.get(pair, NEVER) < until_ms:
            self.parted_until[pair] = FOREVER
            direct = network.passes(*pair) and network.passes(*pair[::-1])
            self._note_meeting(pair, direct and awake)

    def _parted_now(self, one: int, other: int, relays: set[int]) -> bool:
        network = self.world.network
        there = network.reaches(one, other, relays)
        back = network.reaches(other, one, relays)
        if there == back:
            # Neither can learn anything of the other, whomever else it hears.
            return not there
        return not (is_mute(self.world, one) or is_mute(self.world, other))

    def _merged(self, pair: tuple[int, int]) -> None:
        if self.parted(*pair):
            return
        one, other = (self.world.hosts[name] for name in pair)
        now_ms = self.world.now_ms
        twice = self.taken_twice(one, other)
        if twice:
            text = f"hosts {pair[0]} and {pair[1]} still both accept {', '.join(twice)}"
            self.violations.append(Violation("merge", now_ms, text))


def view_of(host: Host) -> set[int]:
    """Host ids that this host says are members, without its own; none while stopped."""
    members = host.machine.status(host.clock_ms).members
    return {member.host_id for member in members} - {host.host_id}


class OneServer(OneOwner):
    """Extended affinity: two live hosts never accept the same client, known or new.

    Exact, with the same exceptions as one-owner.
    """

    name = "affinity"

    def saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        telling = MapsChanged | LeaseRenewed | ExceptionsChanged | ForgetClients
        if any(isinstance(output, telling) for output in outputs):
            self.compare(host)

    def accepted(self, host: Host) -> tuple[int, ...]:
        return (host.plane.serves(self.world.now_ms + host.clock_ms),)

    def taken_twice(self, one: Host, other: Host) -> list[str]:
        # The clients are those of the first rule.
        if one.plane.rules[:1] != other.plane.rules[:1]:
            return []
        return overlap(self.accepted(one), self.accepted(other))


def is_mute(world: World, name: int) -> bool:
    """It hears somebody, and nobody hears it.  Who hands over before it stops hears it, too."""
    network = world.network
    if not network.broken:
        return False
    others = [host.host_id for host in world.hosts.values() if takes_part(host)]
    hears = any(network.passes(other, name) for other in others if other != name)
    heard = any(network.passes(name, other) for other in others if other != name)
    return hears and not heard


def takes_part(host: Host) -> bool:
    """Up, and not stopped: its agent listens and talks."""
    return host.up and host.machine.host_state is not HostState.STOPPED


def is_member(host: Host) -> bool:
    """It takes part, and was Converged since its start: others go by what it says."""
    return takes_part(host) and host.machine.phase is not Phase.UNKNOWN


class NoHole(Checker):
    """No bucket stays without an owner for more than 2 T x P.

    Sampled each period.  Counted anew after each disturbance; what one bad host (crash loop, deaf,
    mute, a broken pair) goes on doing by itself is no disturbance.
    """

    name = "no-hole"

    def __init__(self, world: World, period_ms: int, tolerance: int, end_ms: int) -> None:
        super().__init__(world)
        self.samples = 2 * tolerance + 1
        self.missing: list[tuple[int, ...]] = []
        self.period_ms = period_ms
        for when_ms in range(period_ms, end_ms, period_ms):
            world.at(when_ms, self._sample)

    def saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        if any(isinstance(one, ConfigurationSwitched) for one in outputs):
            self.missing.clear()
        # A lease that lapsed for a moment ends the wait when it runs again, too.
        changes = MapsChanged | LeaseRenewed
        if not self.missing or not any(isinstance(one, changes) for one in outputs):
            return
        owned = host.plane.accepts(world.now_ms + host.clock_ms)
        if any(owned):
            self.missing = [
                tuple(bits & ~mine for bits, mine in zip(sample, owned, strict=False))
                for sample in self.missing
            ]

    def disturbed(self) -> None:
        """Something happened that excuses a hand-over: count anew."""
        self.missing.clear()

    def _sample(self) -> None:
        world = self.world
        able = [
            host
            for host in world.hosts.values()
            if self._able(host) and not is_mute(world, host.host_id)
        ]
        if len({host.config.rules for host in able}) != 1:
            self.missing.clear()
            return
        owned = [0] * len(able[0].config.rules) + [0]
        for host in world.hosts.values():
            if host.plane.rules != able[0].config.rules:
                continue
            for slot, bits in enumerate(host.plane.accepts(world.now_ms + host.clock_ms)):
                owned[slot] |= bits
        weights = [0] * len(owned)
        for host in able:
            for slot, weight in enumerate(own_weights(host)):
                weights[slot] |= weight
        self.missing.append(
            tuple(
                ALL_BUCKETS & ~bits if weight else 0
                for bits, weight in zip(owned, weights, strict=True)
            )
        )
        if len(self.missing) <= self.samples:
            return
        del self.missing[: -self.samples - 1]
        for slot in range(len(owned)):
            always = ALL_BUCKETS
            for sample in self.missing:
                always &= sample[slot]
            if always:
                self.fail(f"slot {slot} buckets {always:#x} unowned for 2 T x P")
                self.missing.clear()
                return

    @staticmethod
    def _able(host: Host) -> bool:
        bad = host.draining or host.looping or host.asleep
        return host.up and host.started and not bad


def own_weights(host: Host) -> tuple[int, ...]:
    """What a host offers per slot."""
    status = host.machine.status(host.clock_ms)
    for member in status.members:
        if member.host_id == host.config.host_id:
            return member.load_weights
    return (0,) * (len(host.config.rules) + 1)


class FewestMoves(Checker):
    """A convergence moves only the buckets that it must; nobody holds more than its share.

    Judged from each host's own frame when it says Converged: of what it held at the agreement it
    gave up only what was above its new share.
    """

    name = "fewest-moves"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.unjudged: set[int] = set()
        """Hosts that converged, and whose frame will say it next."""

    def saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        if any(isinstance(one, LogEvent) and one.name == "converged" for one in outputs):
            self.unjudged.add(id(host))
        if id(host) not in self.unjudged:
            return
        for output in outputs:
            if isinstance(output, SendFrame) and output.payload[:4] not in OF_OTHER_FRAMES:
                self.unjudged.discard(id(host))
                heartbeat = decode(output.payload)
                if (
                    isinstance(heartbeat, Heartbeat)
                    and heartbeat.statement.phase == Phase.CONVERGED
                ):
                    self._judge(heartbeat.statement)

    def _judge(self, said: Statement) -> None:
        members = said.view.bit_count()
        for slot in range(len(said.current)):
            if slot and said.weights[slot] != 50:
                continue
            before, after = said.ready[slot], said.new[slot]
            must = max(0, before.bit_count() - after.bit_count())
            moved = (before & ~after).bit_count()
            if moved != must:
                self.fail(f"host {said.host_id} slot {slot} gave {moved} buckets, not {must}")
            if not slot and self.equal and after.bit_count() > -(-BUCKETS // members):
                self.fail(f"host {said.host_id} holds {after.bit_count()} of 60 with {members}")

    equal = True
    """All hosts have one weight and none drains."""


class FailClosed(Checker):
    """No lease reaches further than (T - 1) x P beyond the moment that granted it."""

    name = "fail-closed"

    def saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        config = host.config
        # The life of a step that was slept through is over when it is carried out.
        limit = world.now_ms + host.clock_ms + (config.tolerance - 1) * config.period_ms
        for output in outputs:
            if isinstance(output, MapsChanged | LeaseRenewed) and output.valid_until_ms > limit:
                self.fail(f"host {host.host_id} may accept until {output.valid_until_ms}")


class OneConfiguration(Checker):
    """All members of one generation serve the same rule set, and a change ends everywhere or
    nowhere: what its coordinator called aborted nobody ever serves by, and at the end all serve
    by one configuration.
    """

    name = "one-configuration"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.agreed: dict[tuple[int, int], bytes] = {}
        self.aborted: set[str] = set()
        self.switched: set[str] = set()
        self.proposed: list[str] = []

    def saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        for output in outputs:
            if isinstance(output, LogEvent):
                self._told(host, output)
            elif isinstance(output, SendFrame) and output.payload[:4] not in OF_OTHER_FRAMES:
                heartbeat = decode(output.payload)
                if isinstance(heartbeat, Heartbeat):
                    self._judge(heartbeat)

    def _told(self, host: Host, event: LogEvent) -> None:
        digest = str(event.fields.get("digest"))
        if event.name == "change-proposed":
            self.proposed.append(digest)
            self.aborted.discard(digest)
        elif event.name == "change-aborted" and self.proposed.count(digest) == 1:
            self.aborted.add(digest)
            if digest in self.switched:
                self.fail(f"host {host.host_id} calls {digest} aborted, somebody serves by it")
        elif event.name == "configuration-switched":
            self.switched.add(digest)
            if digest in self.aborted:
                self.fail(f"host {host.host_id} serves by {digest}, which was aborted")

    def _judge(self, heartbeat: Heartbeat) -> None:
        said = heartbeat.statement
        if said.phase < Phase.STABLE_PHASE1:
            return
        name = said.generation, said.view_digest
        digest = self.agreed.setdefault(name, said.config_digest)
        if digest != said.config_digest:
            self.fail(f"generation {said.generation} is agreed with two configurations")

    def at_the_end(self, outside: Callable[[Host], bool]) -> list[Violation]:
        """Of all hosts that live, but for those that are kept out."""
        world = self.world
        up = [host for host in world.hosts.values() if host.up and host.started]
        found = {host.config.config_digest for host in up if not outside(host)}
        if len(found) < 2:
            return []
        text = ", ".join(sorted(digest.hex() for digest in found))
        return [Violation(self.name, world.now_ms, f"hosts end with {text}")]


class Service(Checker):
    """During convergence the old map goes on serving: no lease of a well host lapses.

    Only checked while nothing but joining, leaving, single deaths, draining and weights happens.
    """

    name = "service"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.held_until: dict[int, int] = {}

    def saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        now_ms = world.now_ms + host.clock_ms
        until = self.held_until.get(host.host_id)
        if until is not None and now_ms > until and host.up:
            self.fail(f"the lease of host {host.host_id} lapsed")
        if host.up and any(host.plane.current):
            self.held_until[host.host_id] = host.plane.valid_until_ms
        else:
            self.held_until.pop(host.host_id, None)


def nobody(_: Host) -> bool:
    """No host is kept out."""
    return False


def liveness(world: World, outside: Callable[[Host], bool] = nobody) -> list[Violation]:
    """All that live and can hear each other report Converged with one member list."""
    found = []
    alive = [one for one in world.hosts.values() if one.up and one.started and not outside(one)]
    able = sorted(host.config.host_id for host in alive)
    for host in alive:
        status = host.machine.status(world.now_ms + host.clock_ms)
        members = [member.host_id for member in status.members]
        if status.phase != Phase.CONVERGED.label or members != able:
            text = f"host {host.host_id} is {status.phase} with {members}, not with {able}"
            found.append(Violation("liveness", world.now_ms, text))
    return found[:5]
