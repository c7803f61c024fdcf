"""Virtual time: an event queue, hosts with a machine and a data plane each, one network."""

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

from convergence.auth import Keyring
from convergence.change import KEPT_MAX
from convergence.events import (
    ChangeProposed,
    ChangeStaged,
    ClientsForgotten,
    ClientsListed,
    Command,
    CommandReceived,
    ConfigurationRecalled,
    ConfigurationSwitched,
    ExceptionsChanged,
    ForgetClients,
    FrameReceived,
    HostProbed,
    Input,
    KeepClients,
    LeaseRenewed,
    ListClients,
    MapsChanged,
    Output,
    ProbeHost,
    RecallConfiguration,
    SendFrame,
    StageChange,
    Tick,
)
from convergence.machine import HostConfig, Machine
from convergence.rules import BUCKETS, FilteringMode, PortRule
from tests.simulator.change import changed
from tests.simulator.network import CALM, Network, Weather

RULES = (
    PortRule(None, 80, 80),
    PortRule(None, 443, 443, filtering_mode=FilteringMode.SINGLE_HOST),
)
CLUSTER = IPv4Address("10.1.0.100")
STICKY = (PortRule(None, 80, 80, timeout_min=1), RULES[1])
"""The first rule with extended affinity."""
DRAIN_SCAN_MS = 200
"""Between two looks of a draining host at its connections."""
LISTING_MS = 3
"""What a host takes to look up whom it remembers."""
QUEUE_MAX = 400
"""Frames that the socket of a sleeping host keeps."""


def bits_of(keys: Iterable[bytes]) -> int:
    """Clients as a map."""
    return sum(1 << key[-1] for key in keys)


def keys_of(bits: int) -> tuple[bytes, ...]:
    """A map as clients."""
    return tuple(bytes((0, 10, 0, 0, bit)) for bit in range(BUCKETS) if bits >> bit & 1)


@dataclass(slots=True)
class Plane:
    """A host's data plane as it stands: it goes on when the agent is dead or asleep."""

    current: tuple[int, ...] = ()
    orphan: tuple[int, ...] = ()
    draining: bool = False
    valid_until_ms: int = -1
    rules: tuple[PortRule, ...] = ()
    """That the maps are for, without the default rule."""
    claimed: tuple[int, ...] = ()
    seen: int = 0
    """Clients remembered: of the first rule one in each bucket, client b in bucket b."""
    excepted: dict[bytes, int] = field(default_factory=dict)

    def serves(self, now_ms: int) -> int:
        """Which of the clients would be accepted now, as a map."""
        if now_ms > self.valid_until_ms or not self.current:
            return 0
        mine, claimed = self.current[0], self.claimed[0] if self.claimed else 0
        known = self.seen & (mine | claimed)
        return (known | (0 if self.draining else mine)) & ~bits_of(self.excepted)

    def accepts(self, now_ms: int) -> tuple[int, ...]:
        """Maps that count now, by the host's own clock."""
        if self.draining or now_ms > self.valid_until_ms:
            return ()
        return self.current


@dataclass(slots=True)
class Host:
    """One simulated host; ``clock_ms`` is how far its clock is ahead of the world's.

    ``config`` is what its file says, ``disk`` what it has staged: both outlive the agent.
    """

    host_id: int
    config: HostConfig
    clock_ms: int
    machine: Machine
    plane: Plane = field(default_factory=Plane)
    up: bool = False
    """The agent lives."""
    started: bool = False
    draining: bool = False
    looping: bool = False
    """It crashes again and again."""
    paused_until_ms: int | None = None
    holds_outputs: bool = False
    """Asleep between deciding and writing: the outputs of the next step wait."""
    queue: list[Input] = field(default_factory=list)
    pending: list[Output] = field(default_factory=list)
    tick_at_ms: int = 1 << 62
    life: int = 0
    woke_ms: int = 0
    disk: dict[bytes, HostConfig] = field(default_factory=dict)
    known: dict[bytes, HostConfig] = field(default_factory=dict)
    """What this life of the agent has staged or gone by."""
    read_only: bool = False
    """Its disk takes no writes."""

    @property
    def asleep(self) -> bool:
        """The agent is dead or stopped; its data plane goes by the last lease."""
        return not self.up or self.paused_until_ms is not None or bool(self.pending)


class World:
    """Hosts, network and time.  Observers see every step: ``observer(world, host, outputs)``."""

    def __init__(self, seed: int, weather: Weather = CALM) -> None:
        self.random = random.Random(seed)
        self.network = Network(weather, self.random)
        self.now_ms = 0
        self.steps = 0
        self.hosts: dict[int, Host] = {}
        self.observers: list[Callable[[World, Host, tuple[Output, ...]], None]] = []
        self.recorded: list[tuple[int, bytes]] = []
        self.keyring = Keyring()
        self.extra_ticks = 0.0
        self._tick_random = random.Random(f"ticks {seed}")
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    # ------------------------------------------------------------ time

    def at(self, when_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call this at that time."""
        self._order += 1
        heapq.heappush(self._events, (when_ms, self._order, action, arguments))

    def run(self, until_ms: int) -> None:
        """Let everything happen that is due until then."""
        events = self._events
        while events and events[0][0] <= until_ms:
            self.now_ms, _order, action, arguments = heapq.heappop(events)
            action(*arguments)
        self.now_ms = until_ms

    # ------------------------------------------------------------ hosts

    def add(self, name: int, **changes: Any) -> Host:
        """A stopped host; ``changes`` replace fields of its configuration.

        Its name is its host id, unless a duplicate is wanted.
        """
        fields: dict[str, Any] = {
            "host_id": name,
            "cluster_ip_address": CLUSTER,
            "dedicated_ip_address": IPv4Address(f"10.1.0.{name}"),
            "rules": RULES,
            "load_weights": (50,) * len(RULES),
            "handling_priorities": (name,) * len(RULES),
            "config_digest": b"12345678",
            "keyring": self.keyring,
            "period_ms": 100,
        }
        fields.update(changes)
        config = HostConfig(**fields)
        # No two clocks agree: a machine that mixed them up would fail at once.
        clock_ms = 1_000_000 + name * 777_777
        host = Host(name, config, clock_ms, Machine(config, self.now_ms + clock_ms))
        self.hosts[name] = host
        return host

    def start(self, name: int, force: bool = False) -> None:
        """Boot the agent when it is down, then start the host."""
        host = self.hosts[name]
        if not host.up:
            kept = tuple(one for one in host.disk if one != host.config.config_digest)
            if host.config.config_digest not in host.disk:
                kept = ()
            config = replace(host.config, kept_digests=kept)
            host.machine = Machine(config, self.now_ms + host.clock_ms)
            host.plane = Plane()
            host.up = True
            host.life += 1
            host.paused_until_ms = None
            host.holds_outputs = False
            host.queue.clear()
            host.pending.clear()
            host.known.clear()
            host.tick_at_ms = 1 << 62
        host.started = True
        host.draining = False
        code = self.random.getrandbits(32) | 1
        self.command(name, Command.START, host_code=code, force=force)

    def command(self, name: int, command: Command, **arguments: Any) -> None:
        """Give a host an order."""
        host = self.hosts[name]
        event = CommandReceived(self.now_ms + host.clock_ms, command, **arguments)
        self.give(host, event)

    def stop(self, name: int) -> None:
        """Hand over and leave."""
        self.hosts[name].started = self.hosts[name].draining = False
        self.command(name, Command.STOP)

    def drainstop(self, name: int) -> None:
        """Nothing new from now on."""
        self.hosts[name].draining = True
        self.command(name, Command.DRAINSTOP)

    def drained(self, name: int) -> None:
        """The last connection is gone; an agent that sleeps looks when it is awake again."""
        host = self.hosts[name]
        if host.paused_until_ms is not None or host.pending:
            self.at(self.now_ms + DRAIN_SCAN_MS, self._drained_again, name)
            return
        self.command(name, Command.DRAIN_COMPLETE)
        host.started = host.draining = host.machine.awaits_last_connection
        if host.draining:
            self.at(self.now_ms + DRAIN_SCAN_MS, self._drained_again, name)

    def _drained_again(self, name: int) -> None:
        """The second look, unless the host crashed or was ordered something else meanwhile."""
        if self.hosts[name].up and self.hosts[name].draining:
            self.drained(name)

    def crash(self, name: int, power_off: bool) -> None:
        """The agent dies; its data plane goes on, unless the machine lost its power."""
        host = self.hosts[name]
        host.up = host.started = host.draining = False
        host.life += 1
        host.queue.clear()
        host.pending.clear()
        if power_off:
            host.plane = Plane()

    def pause(self, name: int, duration_ms: int, mid_step: bool = False) -> None:
        """Stop the process; ``mid_step``: between its next decision and its carrying out."""
        host = self.hosts[name]
        if mid_step:
            host.holds_outputs = True
        else:
            host.paused_until_ms = self.now_ms + duration_ms
        self.at(self.now_ms + duration_ms, self._resume, host, host.life)

    def clock_step(self, name: int, step_ms: int) -> None:
        """The host's clock jumps ahead, as after a suspend; its timers see it at once."""
        host = self.hosts[name]
        host.clock_ms += step_ms
        self._tick(host, host.life)

    def _resume(self, host: Host, life: int) -> None:
        if life != host.life:
            return
        host.paused_until_ms = None
        host.holds_outputs = False
        host.woke_ms = self.now_ms
        pending, host.pending = host.pending, []
        self._carry_out(host, tuple(pending))
        queue, host.queue = host.queue, []
        for event in queue:
            # A process reads its clock when it takes an input up, not when that came.
            self.give(host, replace(event, now_ms=self.now_ms + host.clock_ms))
        self._tick(host, life)

    # ------------------------------------------------------------ steps

    def give(self, host: Host, event: Input) -> None:
        """One input to a host's machine, now or when it wakes up."""
        if not host.up:
            return
        if host.paused_until_ms is not None or host.pending:
            if len(host.queue) < QUEUE_MAX and not isinstance(event, Tick):
                host.queue.append(event)
            return
        self.steps += 1
        outputs = host.machine.step(event)
        if host.holds_outputs and outputs:
            host.pending.extend(outputs)
            return
        self._carry_out(host, outputs)
        self._arm(host)
        if isinstance(event, Tick) or not self.extra_ticks:
            return
        if self._tick_random.random() < self.extra_ticks:
            late_ms = self._tick_random.choice((0, 0, 1, 3))
            self.at(self.now_ms + late_ms, self._extra_tick, host, host.life)

    def _extra_tick(self, host: Host, life: int) -> None:
        """A Tick is legal at any time."""
        if life == host.life:
            self.give(host, Tick(self.now_ms + host.clock_ms))

    def _carry_out(self, host: Host, outputs: tuple[Output, ...]) -> None:
        for output in outputs:
            if isinstance(output, SendFrame):
                self._send(host, output.payload)
            elif isinstance(output, MapsChanged):
                plane = host.plane
                plane.current = output.current
                plane.orphan = output.orphan
                plane.draining = output.draining
                plane.valid_until_ms = output.valid_until_ms
                plane.rules = host.config.rules
                plane.claimed = output.claimed
            elif isinstance(output, ConfigurationSwitched):
                host.known[host.config.config_digest] = host.config
                host.config = host.known[output.config_digest]
            elif isinstance(output, StageChange | RecallConfiguration):
                late_ms = self.random.randint(20, 60)
                self.at(self.now_ms + late_ms, self._read, host, host.life, output)
            elif isinstance(output, ListClients):
                self.at(self.now_ms + LISTING_MS, self._list_clients, host, host.life, output)
            elif isinstance(output, ForgetClients):
                host.plane.seen &= ~bits_of(output.keys)
            elif isinstance(output, KeepClients):
                host.plane.seen *= 0 in output.slots
            elif isinstance(output, ExceptionsChanged):
                host.plane.excepted.update(output.added)
                for key in output.removed:
                    host.plane.excepted.pop(key, None)
            elif isinstance(output, LeaseRenewed):
                host.plane.valid_until_ms = output.valid_until_ms
            elif isinstance(output, ProbeHost):
                self.at(self.now_ms + 300, self._probed, host, host.life, output)
        if outputs:
            for observer in self.observers:
                observer(self, host, outputs)

    def propose(self, name: int, change: bytes, timeout_ms: int) -> None:
        """An operator on this host wants the whole cluster changed."""
        host = self.hosts[name]
        now_ms = self.now_ms + host.clock_ms
        self.give(host, ChangeProposed(now_ms, change, now_ms + timeout_ms))

    def _read(self, host: Host, life: int, asked: StageChange | RecallConfiguration) -> None:
        """The agent's child process has done its work."""
        if host.life != life:
            return
        now_ms = self.now_ms + host.clock_ms
        if isinstance(asked, RecallConfiguration):
            host.known |= host.disk
            self.give(host, ConfigurationRecalled(now_ms, host.known[asked.config_digest]))
        elif host.read_only:
            refusal = "cannot write the configuration: read-only file system (IO_ERROR)"
            self.give(host, ChangeStaged(now_ms, asked.name, None, refusal))
        else:
            config = changed(host.config, asked.change)
            for one in (host.config, config):
                host.disk.pop(one.config_digest, None)
                host.disk[one.config_digest] = one
            while len(host.disk) > KEPT_MAX + 1:
                del host.disk[next(iter(host.disk))]
            host.known[config.config_digest] = config
            self.give(host, ChangeStaged(now_ms, asked.name, config))

    def _list_clients(self, host: Host, life: int, asked: ListClients) -> None:
        if host.life == life:
            plane = host.plane
            keys = keys_of(plane.seen & asked.claimed[0] & ~plane.current[0])
            self.give(host, ClientsListed(self.now_ms + host.clock_ms, asked.serial, keys))

    def clients_come(self, active: int, silent: int) -> None:
        """These clients open connections; those are forgotten where they were remembered."""
        for host in self.hosts.values():
            plane = host.plane
            now_ms = self.now_ms + host.clock_ms
            plane.seen |= active & plane.serves(now_ms)
            if host.asleep:
                continue
            gone, plane.seen = plane.seen & silent, plane.seen & ~silent
            if plane.claimed and gone & plane.claimed[0] & ~plane.current[0]:
                self.give(host, ClientsForgotten(now_ms))

    def _probed(self, host: Host, life: int, probe: ProbeHost) -> None:
        if host.life == life:
            gone = not any(
                one.plane.current
                for one in self.hosts.values()
                if one.config.dedicated_ip_address == probe.dedicated_ip_address
            )
            now_ms = self.now_ms + host.clock_ms
            self.give(host, HostProbed(now_ms, probe.host_id, probe.host_code, gone))

    def _arm(self, host: Host) -> None:
        due = host.machine.next_deadline_ms() - host.clock_ms
        if due < host.tick_at_ms:
            due = max(due, self.now_ms)
            host.tick_at_ms = due
            self.at(due, self._tick, host, host.life)

    def _tick(self, host: Host, life: int) -> None:
        if life != host.life or not host.up or host.paused_until_ms is not None or host.pending:
            return
        if host.machine.next_deadline_ms() - host.clock_ms <= self.now_ms:
            host.tick_at_ms = 1 << 62
            self.give(host, Tick(self.now_ms + host.clock_ms))
        elif self.now_ms >= host.tick_at_ms:
            host.tick_at_ms = 1 << 62
        self._arm(host)

    # ------------------------------------------------------------ frames

    def _send(self, host: Host, payload: bytes) -> None:
        weather = self.network.weather
        chance = self.random.random
        arrival = self.now_ms + weather.delay_ms
        if weather.jitter_ms or weather.duplicate:
            for target in self._targets(host.host_id):
                late = self.random.randint(0, weather.jitter_ms)
                self.at(arrival + late, self._arrive, host.host_id, target, payload)
                if chance() < weather.duplicate:
                    late = self.random.randint(0, weather.jitter_ms)
                    self.at(arrival + late, self._arrive, host.host_id, target, payload)
        else:
            self.at(arrival, self._arrive_all, host.host_id, payload)
        if weather.replay or weather.garble:
            self.recorded.append((host.host_id, payload))
            if chance() < weather.replay:
                source, old = self.random.choice(self.recorded)
                self.at(arrival + 1, self._arrive_all, source, old)
            if chance() < weather.garble:
                source, old = self.random.choice(self.recorded)
                self.at(arrival + 1, self._arrive_all, source, garbled(old, self.random))

    def _targets(self, source: int) -> Iterator[int]:
        for name in self.hosts:
            if name != source:
                yield name

    def _arrive_all(self, source: int, payload: bytes) -> None:
        for target in self._targets(source):
            self._arrive(source, target, payload)

    def _arrive(self, source: int, target: int, payload: bytes) -> None:
        host = self.hosts[target]
        network = self.network
        if not host.up or (network.broken and not network.passes(source, target)):
            return
        loss = network.weather.loss
        if loss and self.random.random() < loss:
            return
        now_ms = self.now_ms + host.clock_ms
        self.give(host, FrameReceived(now_ms, payload, now_ms, bytes((2, source, 10, 1, 0, 100))))


def garbled(payload: bytes, random_source: random.Random) -> bytes:
    """A frame that was damaged on the way: bytes changed, cut, or appended."""
    kind = random_source.randrange(4)
    if kind == 0:
        return payload[: random_source.randrange(len(payload))]
    if kind == 1:
        return payload + b"\0" * random_source.randint(1, 40)
    damaged = bytearray(payload)
    for _ in range(random_source.randint(1, 8)):
        damaged[random_source.randrange(len(damaged))] ^= 1 << random_source.randrange(8)
    return bytes(damaged)
