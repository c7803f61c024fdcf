"""Scenario files: commands, ``----``, what then happens; for people who know networks, not Python.

A file is blocks divided by blank lines.  Lines that begin with ``#`` explain.  Commands:

    hosts 1-3 [FIELD=VALUE ...]      stopped hosts; fields: tolerance, period, digest, key, weights
                                     (30/60), priorities (1/2), id (of a duplicate), rules: ports
                                     (80/443s, s: single host), which is another configuration;
                                     timeout (minutes of the first rule's extended affinity)
    start 1-3 [force]                start them now
    run MS                           let time pass; prints what the hosts tell and hold
    status                           how every host sees the cluster now
    accepts                          buckets that each data plane accepts now, per rule
    history H                        the convergence history of this host
    counters H                       frames that this host did not believe
    clients BUCKETS | silent BUCKETS one client in each of these buckets of the first rule opens a
                                     connection, or is forgotten
    serves                           the clients, by bucket, that each host would accept now
    orphans H                        buckets of this host that may answer lost connections
    stop H | drainstop H | drained H | weight H W [RULE] | enable|disable|drain H RULE
    keys 1-3 KEYS                    from now on, like key=KEYS of hosts: SECRET, enforce:SECRET,
                                     permissive:2:NEW,1:OLD (the first one signs), none
    change H RULES [MS]              H wants the whole cluster changed to these rules, within MS
                                     (1000 unless given)
    read-only H | writable H         whether the disk of H takes a staged configuration
    configurations                   the rules that each host serves by, and those of its file
    scan H                           a socket scan that found every bucket idle
    crash H | poweroff H | pause H MS | clock H MS     the clock jumps ahead
    mute H | deaf H | pair A B | one-way A B | partition H,H | heal
    replay-change H | foreign-change H    a recorded, an other-key frame of a change by H
    replay H | garble H | foreign H | windows H    a recorded, damaged, other-key or NLB frame of H

An episode of the simulator, as ``python -m tests.simulator`` writes one that failed:

    episode SEED KIND hosts=H,H tolerance=T [loss=, jitter_ms=, ...]
    at MS KIND H [H,H] [for=MS] [value=N]
    play                             with all checkers
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from convergence.auth import Authentication, Key, Keyring, sign
from convergence.change_frame import CHANGE_SIGNATURE
from convergence.clients import SIGNATURE_BYTES
from convergence.events import (
    Command,
    CommandError,
    IdleScanned,
    LogEvent,
    MapsChanged,
    Output,
    SendFrame,
)
from convergence.heartbeat import EXTENSION_OFFSET, FRAME_BYTES
from convergence.rules import ALL_BUCKETS
from tests.simulator.change import rules, written
from tests.simulator.checkers import FailClosed, OneConfiguration
from tests.simulator.episode import Episode
from tests.simulator.faults import Fault
from tests.simulator.ownership import OneOwner, OneServer
from tests.simulator.shrink import read_episode, read_fault
from tests.simulator.world import RULES, Host, World, bits_of

FAULTS = ("mute", "deaf", "pair", "one-way", "partition", "heal")


def numbers(text: str) -> list[int]:
    """ "1-3" and "1,4" as lists."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def buckets(bits: int) -> str:
    """A map as ranges: "0-19,40"."""
    ranges = []
    bucket = 0
    while bits >> bucket:
        if bits >> bucket & 1:
            first = bucket
            while bits >> (bucket + 1) & 1:
                bucket += 1
            ranges.append(str(first) if first == bucket else f"{first}-{bucket}")
        bucket += 1
    return ",".join(ranges) or "none"


def keyring(text: str) -> Keyring:
    """ "secret", "2:new,1:old" or "permissive:secret": step, key ids and secrets, first signs."""
    if text == "none":
        return Keyring()
    step, colon, names = text.partition(":")
    if not colon or step.isdigit():
        step, names = "enforce", text
    keys = []
    for number, name in enumerate(names.split(","), 1):
        key_id, _, secret = name.rpartition(":")
        keys.append(Key(int(key_id or number), secret.encode().ljust(32, b".")))
    return Keyring(tuple(keys), Authentication(step))


def other_rules(names: str, text: str) -> dict[str, object]:
    """Fields of a configuration with port rules of its own, by "80/443s"."""
    wanted = rules(text)
    return {
        "rules": wanted,
        "load_weights": (50,) * len(wanted),
        "handling_priorities": (numbers(names)[0],) * len(wanted),
        "config_digest": text.encode().ljust(8)[:8],
    }


class Scenario:
    """A world that is driven by command lines and answers in lines."""

    def __init__(self) -> None:
        self.world = World(seed=1)
        self.lines: list[str] = []
        self.frames: dict[int, bytes] = {}
        self.change_frames: dict[int, bytes] = {}
        self.held: dict[int, str] = {}
        self.world.observers.append(self._saw)
        self.one_owner = OneOwner(self.world, 200, 1200)
        self.one_server = OneServer(self.world, 200, 1200)
        self.fail_closed = FailClosed(self.world)
        self.one_configuration = OneConfiguration(self.world)

    def run(self, commands: list[str]) -> list[str]:
        """Carry out the commands of a block and return what there is to see."""
        self.lines = []
        for command in commands:
            verb, *arguments = command.split()
            handler: Callable[..., None] | None = getattr(
                self, "do_" + verb.replace("-", "_"), None
            )
            if handler is None:
                raise ValueError(f"unknown scenario command {verb!r}")
            handler(*arguments)
        checkers = (self.one_owner, self.one_server, self.fail_closed, self.one_configuration)
        violations = [one for checker in checkers for one in checker.violations]
        self.lines.extend(f"VIOLATION {violation}" for violation in violations)
        return self.lines or ["ok"]

    def _saw(self, world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        for output in outputs:
            if isinstance(output, LogEvent):
                self.lines.append(f"{world.now_ms:6} host{host.host_id}: {output.text}")
            elif isinstance(output, MapsChanged):
                held = " ".join(str(bits.bit_count()) for bits in output.current)
                if held != self.held.get(host.host_id, held.replace("60", "0")):
                    self.lines.append(f"{world.now_ms:6} host{host.host_id}: holds {held}")
                self.held[host.host_id] = held
            elif isinstance(output, SendFrame) and output.payload[:4] != SIGNATURE_BYTES:
                of_change = output.payload[:4] == CHANGE_SIGNATURE
                kept = self.change_frames if of_change else self.frames
                kept[host.host_id] = output.payload

    # ------------------------------------------------------------ hosts

    def do_hosts(self, names: str, *fields: str) -> None:
        changes: dict[str, object] = {}
        for text in fields:
            field, _, value = text.partition("=")
            if field == "tolerance":
                changes["tolerance"] = int(value)
            elif field == "period":
                changes["period_ms"] = int(value)
            elif field == "rules":
                changes.update(other_rules(names, value))
            elif field == "timeout":
                changes["rules"] = (replace(RULES[0], timeout_min=int(value)), *RULES[1:])
            elif field == "digest":
                changes["config_digest"] = value.encode().ljust(8)[:8]
            elif field == "key":
                changes["keyring"] = keyring(value)
            elif field == "weights":
                changes["load_weights"] = tuple(int(one) for one in value.split("/"))
            elif field == "priorities":
                changes["handling_priorities"] = tuple(int(one) for one in value.split("/"))
            elif field == "id":
                changes["host_id"] = int(value)
            else:
                raise ValueError(f"unknown field {field!r}")
        for name in numbers(names):
            self.world.add(name, **changes)

    def do_start(self, names: str, force: str = "") -> None:
        for name in numbers(names):
            self.world.start(name, force=force == "force")

    def do_run(self, duration_ms: str) -> None:
        self.world.run(self.world.now_ms + int(duration_ms))

    def do_stop(self, name: str) -> None:
        self.world.stop(int(name))

    def do_drainstop(self, name: str) -> None:
        self.world.drainstop(int(name))

    def do_drained(self, name: str) -> None:
        self.world.drained(int(name))

    def do_weight(self, name: str, weight: str, rule: str = "") -> None:
        slots = (int(rule) - 1,) if rule else ()
        self.world.command(int(name), Command.SET_WEIGHT, load_weight=int(weight), slots=slots)

    def do_enable(self, name: str, rule: str) -> None:
        self.world.command(int(name), Command.ENABLE_RULE, slots=(int(rule) - 1,))

    def do_disable(self, name: str, rule: str) -> None:
        self.world.command(int(name), Command.DISABLE_RULE, slots=(int(rule) - 1,))

    def do_drain(self, name: str, rule: str) -> None:
        self.world.command(int(name), Command.DRAIN_RULE, slots=(int(rule) - 1,))

    def do_change(self, name: str, text: str, timeout_ms: str = "1000") -> None:
        try:
            self.world.propose(int(name), text.encode(), int(timeout_ms))
        except CommandError as error:
            self.lines.append(f"{self.world.now_ms:6} host{name}: refused: {error}")

    def do_read_only(self, name: str) -> None:
        self.world.hosts[int(name)].read_only = True

    def do_writable(self, name: str) -> None:
        self.world.hosts[int(name)].read_only = False

    def do_configurations(self) -> None:
        for name, host in self.world.hosts.items():
            serves = written(host.plane.rules) if any(host.plane.current) else "nothing"
            self.lines.append(f"host{name} serves {serves}, file {written(host.config.rules)}")

    def do_scan(self, name: str) -> None:
        host = self.world.hosts[int(name)]
        now_ms = self.world.now_ms + host.clock_ms
        idle = (ALL_BUCKETS,) * (len(host.config.rules) + 1)
        self.world.give(host, IdleScanned(now_ms, now_ms, idle, None))

    def do_crash(self, name: str) -> None:
        self.world.crash(int(name), power_off=False)

    def do_poweroff(self, name: str) -> None:
        self.world.crash(int(name), power_off=True)

    def do_pause(self, name: str, duration_ms: str) -> None:
        self.world.pause(int(name), int(duration_ms))

    def do_clock(self, name: str, step_ms: str) -> None:
        self.world.clock_step(int(name), int(step_ms))

    # ------------------------------------------------------------ network

    def _note_links(self) -> None:
        self.one_owner.note_links()
        self.one_server.note_links()

    def do_mute(self, name: str) -> None:
        self.world.network.mute.add(int(name))
        self._note_links()

    def do_deaf(self, name: str) -> None:
        self.world.network.deaf.add(int(name))
        self._note_links()

    def do_pair(self, one: str, other: str) -> None:
        self.world.network.cut |= {(int(one), int(other)), (int(other), int(one))}
        self._note_links()

    def do_one_way(self, one: str, other: str) -> None:
        self.world.network.cut.add((int(one), int(other)))
        self._note_links()

    def do_partition(self, names: str) -> None:
        self.world.network.side.update(dict.fromkeys(numbers(names), 1))
        self._note_links()

    def do_heal(self) -> None:
        self.world.network.heal()
        self._note_links()

    def do_replay(self, name: str) -> None:
        self._inject(int(name), self.frames[int(name)])

    def do_replay_change(self, name: str) -> None:
        self._inject(int(name), self.change_frames[int(name)])

    def do_foreign_change(self, name: str) -> None:
        forged = sign(self.change_frames[int(name)], Key(1, b"somebody else's secret........ "))
        self._inject(int(name), forged)

    def do_keys(self, names: str, text: str) -> None:
        for name in numbers(names):
            try:
                self.world.command(name, Command.SET_KEYRING, keyring=keyring(text))
            except CommandError as error:
                self.lines.append(f"{self.world.now_ms:6} host{name}: refused: {error}")

    def do_garble(self, name: str) -> None:
        payload = bytearray(self.frames[int(name)])
        payload[200] ^= 0xFF
        self._inject(int(name), bytes(payload))

    def do_foreign(self, name: str) -> None:
        self._inject(
            int(name), sign(self.frames[int(name)], Key(1, b"somebody else's secret........ "))
        )

    def do_windows(self, name: str) -> None:
        frame = self.frames[int(name)][:EXTENSION_OFFSET]
        self._inject(int(name), frame + bytes(FRAME_BYTES - EXTENSION_OFFSET))

    def _inject(self, source: int, payload: bytes) -> None:
        self.world.at(self.world.now_ms, self.world._arrive_all, source, payload)

    # ------------------------------------------------------------ a whole episode

    def do_episode(self, *arguments: str) -> None:
        self.seed, self.plan = read_episode(*arguments)
        self.faults: list[Fault] = []

    def do_at(self, *arguments: str) -> None:
        self.faults.append(read_fault(*arguments))

    def do_play(self) -> None:
        episode = Episode(self.seed, replace(self.plan, faults=tuple(self.faults)))
        self.world = episode.world
        self.world.observers.append(self._saw)
        self.lines.extend(f"VIOLATION {violation}" for violation in episode.run())

    # ------------------------------------------------------------ what there is to see

    def do_status(self) -> None:
        for name, host in self.world.hosts.items():
            if not host.up:
                self.lines.append(f"host{name} down")
                continue
            status = host.machine.status(self.world.now_ms + host.clock_ms)
            default = " as DEFAULT" if status.default_host_id == host.config.host_id else ""
            members = ",".join(str(member.host_id) for member in status.members) or "none"
            self.lines.append(f"host{name} {status.state}{default}, members {members}")

    def do_accepts(self) -> None:
        for name, host in self.world.hosts.items():
            maps = host.plane.accepts(self.world.now_ms + host.clock_ms)
            text = " | ".join(buckets(bits) for bits in maps) or "nothing"
            self.lines.append(f"host{name} {text}")

    def do_clients(self, text: str) -> None:
        self.world.clients_come(sum(1 << bucket for bucket in numbers(text)), 0)

    def do_silent(self, text: str) -> None:
        self.world.clients_come(0, sum(1 << bucket for bucket in numbers(text)))

    def do_serves(self) -> None:
        for name, host in self.world.hosts.items():
            now_ms = self.world.now_ms + host.clock_ms
            known = buckets(host.plane.serves(now_ms) & host.plane.seen)
            excepted = buckets(bits_of(host.plane.excepted))
            self.lines.append(f"host{name} remembers {known}, leaves to others {excepted}")

    def do_history(self, name: str) -> None:
        host = self.world.hosts[int(name)]
        for one in host.machine.status(self.world.now_ms + host.clock_ms).history:
            members = ",".join(str(member) for member in one.members)
            at_ms = one.at_ms - host.clock_ms
            self.lines.append(f"{at_ms:6} {one.phase}, members {members}: {one.reason}")

    def do_counters(self, name: str) -> None:
        counters = self.world.hosts[int(name)].machine.counters
        text = " ".join(f"{kind}={count}" for kind, count in sorted(counters.items()))
        self.lines.append(f"host{name} {text or 'none'}")

    def do_orphans(self, name: str) -> None:
        maps = self.world.hosts[int(name)].plane.orphan
        self.lines.append(f"host{name} {' | '.join(buckets(bits) for bits in maps)}")


def blocks(text: str) -> list[list[str]]:
    """The blank-line separated blocks of a file."""
    return [block.splitlines() for block in text.strip().split("\n\n")]


def replay(path: Path) -> str:
    """The text that the file should have: its commands with what happens now."""
    return play(path.read_text())


def play(text: str) -> str:
    """Commands, with or without what happened once -> commands with what happens now."""
    scenario = Scenario()
    written = []
    for block in blocks(text):
        commands = block[: block.index("----")] if "----" in block else block
        orders = [line for line in commands if not line.startswith("#")]
        lines = list(commands)
        if orders:
            lines += ["----", *scenario.run(orders)]
        written.append("\n".join(lines))
    return "\n\n".join(written) + "\n"
