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
from tests.simulator.world import Host, World

OF_OTHER_FRAMES = (CHANGE_SIGNATURE, SIGNATURE_BYTES)


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
