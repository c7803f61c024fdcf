"""Run one episode: build the world of a seed, let its faults happen, ask the checkers."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from convergence.auth import Authentication, Key, Keyring
from convergence.events import Command, CommandError
from convergence.rules import BUCKETS
from tests.simulator.change import CHANGES
from tests.simulator.checkers import (
    FailClosed,
    FewestMoves,
    NoHole,
    OneConfiguration,
    Service,
    Violation,
    liveness,
    nobody,
)
from tests.simulator.faults import CHANGE, NETWORK, PERIOD_MS, PERIODS, Fault, Options, options
from tests.simulator.ownership import OneOwner, OneServer
from tests.simulator.world import RULES, STICKY, Host, World

KEYRING = Keyring((Key(7, b"0123456789abcdef0123456789abcdef"),), Authentication.ENFORCE)
RULE_COMMANDS = (Command.ENABLE_RULE, Command.DISABLE_RULE, Command.DRAIN_RULE)
CALM_KINDS = ("start", "stop", "drain", "drained", "weight")


@dataclass(frozen=True, slots=True)
class Result:
    """What one seed did."""

    seed: int
    kind: str
    hosts: int
    steps: int
    seconds: float
    violations: tuple[Violation, ...]

    @property
    def replay_command(self) -> str:
        """How to see it again."""
        return f"python -m tests.simulator --seeds 1 --start {self.seed}"


class Episode:
    """The faults of an options record, happening to a world."""

    def __init__(self, seed: int, plan: Options, sticky: bool = False) -> None:
        """``sticky``: with extended affinity, and clients that come and fall silent."""
        self.plan = plan
        self.world = world = World(seed, plan.weather)
        world.keyring = KEYRING if plan.keyed else Keyring()
        world.extra_ticks = plan.extra_ticks
        period_ms, tolerance = PERIOD_MS, plan.tolerance
        self.death_ms = period_ms * tolerance
        last_ms = max(fault.at_ms + fault.duration_ms for fault in plan.faults)
        bound_ms = self.death_ms + 5 * period_ms
        if plan.kind == CHANGE:
            # Who missed the end listens, goes over to what the others have, and listens again.
            bound_ms += self.death_ms + 5 * period_ms
        self.end_ms = max(PERIODS * period_ms, last_ms + bound_ms + 1)
        for host in plan.hosts:
            world.add(host, tolerance=tolerance, rules=STICKY if sticky else RULES)
        merge_ms = 2 * period_ms + 2 * plan.weather.jitter_ms
        if not plan.exact:
            merge_ms = (tolerance + 4) * period_ms
        self.one_owner = OneOwner(world, merge_ms, 2 * self.death_ms + merge_ms)
        self.no_hole = NoHole(world, period_ms, tolerance, self.end_ms)
        self.fewest_moves = FewestMoves(world)
        self.fewest_moves.equal = not any(
            one.kind in ("weight", "drain", "stop", "rule") for one in plan.faults
        )
        self.outside: Callable[[Host], bool] = nobody
        checkers = [self.one_owner, self.fewest_moves, FailClosed(world)]
        self.one_configuration: OneConfiguration | None = None
        if plan.kind == CHANGE:
            self.one_configuration = OneConfiguration(world)
            self.outside = self._is_outside
            checkers.append(self.one_configuration)
        self.owners = [self.one_owner]
        if sticky:
            self.owners.append(OneServer(world, merge_ms, 2 * self.death_ms + merge_ms))
            checkers.append(self.owners[1])
            chance = random.Random(f"clients {seed}")
            for when_ms in range(0, self.end_ms, 20):
                world.at(when_ms, self._clients, chance)
        if plan.exact and plan.one_bad_host:
            checkers.append(self.no_hole)
        # Tolerance 3 has no room for frames that are late by a good part of a period.
        punctual = plan.weather.jitter_ms == 0 or tolerance > 3
        if plan.exact and punctual and all(fault.kind in CALM_KINDS for fault in plan.faults):
            checkers.append(Service(world))
        self.checkers = checkers
        for fault in plan.faults:
            world.at(fault.at_ms, self.happen, fault)
        if any(fault.kind in NETWORK for fault in plan.faults):
            for when_ms in range(0, self.end_ms, 10):
                world.at(when_ms, self._note_links)

    def _note_links(self) -> None:
        for checker in self.owners:
            checker.note_links()

    def _clients(self, chance: random.Random) -> None:
        silent = chance.getrandbits(BUCKETS) if chance.random() < 0.05 else 0
        self.world.clients_come(chance.getrandbits(BUCKETS), silent)

    def run(self) -> tuple[Violation, ...]:
        """To the end; then everybody must agree."""
        world = self.world
        world.run(self.end_ms)
        if not self.plan.exact:
            # With lost frames: eventually.
            for _ in range(20):
                if not liveness(world, self.outside):
                    break
                world.run(world.now_ms + self.death_ms)
        found = [one for checker in self.checkers for one in checker.violations]
        if self.one_configuration is not None:
            found += self.one_configuration.at_the_end(self.outside)
        return tuple(found + liveness(world, self.outside))

    def happen(self, fault: Fault) -> None:
        """Let a fault happen, if it still can."""
        host = self.world.hosts[fault.host]
        kind = fault.kind
        if kind == "crash-loop":
            self.no_hole.disturbed()
            self._crash_loop(fault, self.world.now_ms + fault.duration_ms)
            return
        self.no_hole.disturbed()
        if kind in NETWORK:
            self._break_network(fault)
        elif kind == "start":
            if not host.started or host.draining:
                self.world.start(fault.host)
        elif not host.up:
            return
        elif kind == "crash":
            self.world.crash(fault.host, bool(fault.value))
        elif kind == "pause":
            if host.paused_until_ms is None and not host.holds_outputs:
                self.world.pause(fault.host, fault.duration_ms, bool(fault.value))
                self.world.at(self.world.now_ms + fault.duration_ms, self.no_hole.disturbed)
        elif kind == "stop" and host.started:
            self.world.stop(fault.host)
        elif kind == "drain" and host.started:
            self.world.drainstop(fault.host)
        elif kind == "drained" and host.draining:
            self.world.drained(fault.host)
        elif kind == "weight":
            self.world.command(fault.host, Command.SET_WEIGHT, load_weight=fault.value)
        elif kind == "rule":
            slot, command = divmod(fault.value, len(RULE_COMMANDS))
            self.world.command(fault.host, RULE_COMMANDS[command], slots=(slot,))
        elif kind == CHANGE:
            self._change(fault)
        elif kind == "read-only":
            host.read_only = True
            self.world.at(self.world.now_ms + fault.duration_ms, setattr, host, "read_only", False)
        elif kind == "clock-step":
            self.world.clock_step(fault.host, fault.value)

    def _is_outside(self, host: Host) -> bool:
        """The others serve by what this host never staged: it was stopped, dead or apart."""
        taken = Counter(
            one.config.config_digest
            for one in self.world.hosts.values()
            if one.up and one.started and any(one.plane.current)
        )
        known = {host.config.config_digest, *host.disk, *host.known}
        return bool(taken) and taken.most_common(1)[0][0] not in known

    def _change(self, fault: Fault) -> None:
        host = self.world.hosts[fault.host]
        if not host.started or host.draining or host.paused_until_ms is not None or host.pending:
            return
        try:
            change = CHANGES[fault.value].encode()
            self.world.propose(fault.host, change, fault.duration_ms)
        except CommandError:
            # Not converged, or another host is changing the cluster.
            return

    def _crash_loop(self, fault: Fault, until_ms: int) -> None:
        world = self.world
        host = world.hosts[fault.host]
        if host.up:
            world.crash(fault.host, power_off=False)
        host.looping = world.now_ms < until_ms
        if not host.looping:
            self.no_hole.disturbed()
            world.start(fault.host)
            return
        world.start(fault.host)
        world.at(world.now_ms + max(50, fault.value), self._crash_loop, fault, until_ms)

    def _break_network(self, fault: Fault) -> None:
        network = self.world.network
        if fault.kind == "partition":
            for host in (fault.host, *fault.others):
                network.side[host] = 1
        elif fault.kind == "mute":
            network.mute.add(fault.host)
        elif fault.kind == "deaf":
            network.deaf.add(fault.host)
        else:
            network.cut.add((fault.host, fault.others[0]))
            if fault.kind == "pair":
                network.cut.add((fault.others[0], fault.host))
        self._note_links()
        self.world.at(self.world.now_ms + fault.duration_ms, self._heal)

    def _heal(self) -> None:
        self.no_hole.disturbed()
        self.world.network.heal()
        self._note_links()


def run_seed(seed: int) -> Result:
    """One episode from its seed alone."""
    plan = options(seed)
    began = time.process_time()
    episode = Episode(seed, plan)
    try:
        violations = episode.run()
    except Exception as error:
        # Whatever it is, the seed must be told.
        violations = (Violation("no-crash", episode.world.now_ms, repr(error)),)
    seconds = time.process_time() - began
    return Result(seed, plan.kind, len(plan.hosts), episode.world.steps, seconds, violations)
