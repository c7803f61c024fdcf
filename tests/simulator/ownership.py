"""One owner per bucket and one host per client, exact but between hosts that are parted."""

from convergence.events import (
    ExceptionsChanged,
    ForgetClients,
    LeaseRenewed,
    MapsChanged,
    Output,
)
from tests.simulator.change import both_take
from tests.simulator.checkers import Checker, Violation, is_member, is_mute
from tests.simulator.world import Host, World

FOREVER = 1 << 60
NEVER = -FOREVER


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
