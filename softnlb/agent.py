"""The agent: the one loop between the world and the convergence machine.

Sockets and clock go in, ``Machine.step`` decides, its outputs are carried out in their order.
Nothing else in the house reads the clock of a running host.
"""

import logging
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from convergence.events import (
    Command,
    CommandReceived,
    FrameReceived,
    HostState,
    IdleScanned,
    Input,
    LeaseRenewed,
    LogEvent,
    MapsChanged,
    Output,
    ProbeHost,
    SendFrame,
    Severity,
    Tick,
)
from convergence.machine import Machine
from softnlb import sockdiag, state
from softnlb.answers import Answers
from softnlb.arp_probe import Probes
from softnlb.config import ClusterConfig, ConfigError, load_in_child
from softnlb.control import ControlServer, socket_path
from softnlb.errors import SoftnlbError
from softnlb.filter import FilterTable
from softnlb.health import Health
from softnlb.planes import Choice, choose
from softnlb.reload import reload
from softnlb.serving import Serving, host_config, table_of
from softnlb.signals import Signals
from softnlb.socket_watch import SocketWatch

log = logging.getLogger("softnlb")

EVENTS_MAX = 100
CHECK_MS = 1000
"""Between two looks at what stands; most changes tell themselves, a sysctl does not."""

FRAMES_PER_TURN = 64
"""Heartbeats handled before the loop looks at its deadlines again."""

LEVELS = {severity: getattr(logging, severity.name) for severity in Severity}


def boot_ms() -> int:
    """The boot-time clock in whole milliseconds; it goes on while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Agent:
    """One host of one cluster."""

    def __init__(self, config: ClusterConfig, data_plane: str, attach: str = "auto") -> None:
        self.config = config
        self.directory = state.state_directory(config)
        self.data_plane = data_plane if data_plane != "auto" else config.data_plane
        self.attach = attach if attach != "auto" else config.attach
        self.choice: Choice | None = None
        self.suspended = False
        self.events: deque[tuple[float, LogEvent]] = deque(maxlen=EVENTS_MAX)
        self.serving: Serving | None = None
        self.machine = Machine(host_config(config), boot_ms())
        self._next_check_ms = 0
        self._running = True
        self._watched: tuple[int, ...] = ()
        self._restart = False
        self._loop = selectors.DefaultSelector()
        self._sockets = SocketWatch()
        self._loop.register(self._sockets, selectors.EVENT_READ, self._scanned)
        self._probes = Probes()
        self.health = Health(self.rule_command, lambda: self.machine.rule_states, self.tell)
        self.control = ControlServer(socket_path(config), Answers(self).answer)
        self._loop.register(self.control, selectors.EVENT_READ, self.control.handle)
        self._signals = Signals()
        self._loop.register(self._signals, selectors.EVENT_READ, self._signalled)

    # ------------------------------------------------------------ the loop

    def run(self, force: bool) -> None:
        """Begin in the state that NLB would begin in, and go on until told to end."""
        begin = state.initial(self.directory, self.config)
        self.suspended = begin == "suspended"
        try:
            if begin == "started":
                self.start(force)
            while self._running or self.serving is not None:
                self._turn()
        finally:
            if self.serving is not None:
                self.serving.stop()
            self.close()

    def close(self) -> None:
        """Let go of what every agent has, started or not."""
        self.control.close()
        self._sockets.close()
        self._signals.close()
        self._loop.close()

    def _turn(self) -> None:
        serving = self.serving is not None
        deadlines = [
            self.machine.next_deadline_ms(),
            self._sockets.next_deadline_ms(self.machine) if serving else None,
            self._next_check_ms if serving else None,
            self._probes.next_deadline_ms(),
        ]
        deadline_ms = min(at_ms for at_ms in deadlines if at_ms is not None)
        for key, _ in self._loop.select(max(0, deadline_ms - boot_ms()) / 1000):
            key.data()
        now_ms = boot_ms()
        if now_ms >= self.machine.next_deadline_ms():
            self.step(Tick(now_ms))
        for known in self._probes.advance(now_ms):
            self.step(known)
        if self._sockets.drained(self.machine, now_ms):
            self.step(CommandReceived(now_ms, Command.DRAIN_COMPLETE))
        if self.serving is not None:
            self._sockets.advance(self.machine, self.serving.table, now_ms)
        if self.serving is not None and now_ms >= self._next_check_ms:
            self._next_check_ms = now_ms + CHECK_MS
            self._look_after()

    def step(self, event: Input) -> None:
        """One input to the machine, its outputs to the world, in their order."""
        for output in self.machine.step(event):
            self._carry_out(output)
        if self.serving is not None and self.machine.host_state == HostState.STOPPED:
            self._end_serving()

    def _carry_out(self, output: Output) -> None:
        serving = self.serving
        if isinstance(output, LogEvent):
            self.tell(output)
        elif serving is None:
            return
        elif isinstance(output, SendFrame):
            if serving.heartbeats is not None:
                serving.heartbeats.send(output.payload)
        elif isinstance(output, MapsChanged):
            serving.install(output, self.machine.rule_states)
        elif isinstance(output, LeaseRenewed):
            serving.renew(output.valid_until_ms)
        elif isinstance(output, ProbeHost) and self.config.probes_prove:
            self._probes.ask(self.config.interface, output, boot_ms())

    # ------------------------------------------------------------ what wakes the loop

    def _signalled(self) -> None:
        numbers = self._signals.clear()
        if signal.SIGHUP in numbers and not self.suspended:
            # The refusal is among the events: nobody waits for an answer.
            with suppress(SoftnlbError):
                self.reload()
        if not numbers - {signal.SIGHUP}:
            return
        if not self._running:
            # Asked twice: leave without the hand-over.
            self._end_serving()
        self._running = False
        if self.serving is not None:
            self.stop()

    def frames(self) -> None:
        """Take the heartbeats that have come."""
        serving = self.serving
        if serving is None or serving.heartbeats is None:
            return
        for _ in range(FRAMES_PER_TURN):
            frame = serving.heartbeats.receive()
            if frame is None:
                return
            now_ms = boot_ms()
            self.step(FrameReceived(now_ms, frame.payload, now_ms - frame.age_ms, frame.source_mac))
            if self.serving is not serving:
                return

    def _changed_by_others(self, monitor: socket.socket) -> None:
        serving = self.serving
        if serving is None or not serving.disturbed(monitor):
            return
        self._look_after()

    def _look_after(self) -> None:
        """Put back what somebody else took away; leave the cluster when that fails."""
        serving = self.serving
        if serving is None or serving.intact():
            return
        self.tell(
            LogEvent("repair", Severity.WARNING, "Somebody removed a piece of ours; repairing it.")
        )
        self._unwatch()
        try:
            serving.repair()
        except (SoftnlbError, OSError) as error:
            text = f"Repair failed, this host leaves the cluster: {error}"
            self.tell(LogEvent("repair-failed", Severity.ERROR, text))
            self.stop()
        else:
            self._watch(serving)

    def _looked(self) -> None:
        if not self.health.read() and self.serving is not None:
            self._unwatch()
            self.health.stop()
            self._watch(self.serving)

    def look_at_services(self) -> None:
        """Begin anew with the health probes of a changed configuration."""
        if self.serving is not None:
            self._unwatch()
            self.health.stop()
            self.health.start(self.config.health_probes)
            self._watch(self.serving)

    def _scanned(self) -> None:
        for scan in self._sockets.results():
            now_ms = boot_ms()
            if self.serving is not None:
                self.step(IdleScanned(now_ms, scan.began_ms, scan.idle, scan.syn_cookie_ms))

    # ------------------------------------------------------------ what operators ask for

    def start(self, force: bool = False) -> None:
        """Join the cluster; on a draining host, end the drain."""
        if self.serving is None:
            choice = choose(self.data_plane, self.attach, self.config.has_ipv6)
            serving = Serving(self.config, choice.plane, self.directory)
            serving.start()
            self.serving, before, self.choice = serving, self.choice, choice
            if before is None or before.reason != choice.reason:
                self.tell(LogEvent("data-plane", Severity.INFO, choice.text))
            self.health.start(self.config.health_probes)
            self._watch(serving)
        code = secrets.randbits(32)
        self.step(CommandReceived(boot_ms(), Command.START, host_code=code, force=force))

    def stop(self) -> None:
        """Hand everything over and leave."""
        self._sockets.end_drain()
        self.step(CommandReceived(boot_ms(), Command.STOP))

    def drainstop(self, timeout_s: float | None) -> None:
        """Accept nothing new; leave after the last connection or the time-out, seconds."""
        now_ms = boot_ms()
        self.step(CommandReceived(now_ms, Command.DRAINSTOP))
        self._sockets.begin_drain(now_ms, timeout_s)

    def rule_command(self, command: Command, slots: tuple[int, ...], load_weight: int = 0) -> None:
        """Enable, disable, drain or weigh the rules in ``slots`` on this host."""
        event = CommandReceived(boot_ms(), command, slots=slots, load_weight=load_weight)
        self.step(event)

    def reload(self) -> str:
        """Read the configuration again; returns what was done about it."""
        try:
            done = reload(self)
        except SoftnlbError as error:
            text = f"The configuration is not reloaded: {error}"
            self.tell(LogEvent("reload-failed", Severity.ERROR, text))
            raise
        self.tell(LogEvent("reloaded", Severity.INFO, f"Configuration reloaded: {done}."))
        return done

    def adopt(self, fresh: ClusterConfig) -> None:
        """Leave the cluster, when in it, and join again as the fresh configuration says."""
        self.config = fresh
        if self.serving is None:
            self.machine = Machine(host_config(fresh), boot_ms())
            return
        self._restart = True
        self.stop()

    def _end_serving(self) -> None:
        serving = self.serving
        if serving is None:
            return
        self.serving = None
        self._unwatch()
        self._probes.close()
        self.health.stop()
        serving.stop()
        if self._restart:
            self._restart = False
            self.machine = Machine(host_config(self.config), boot_ms())
            self.start()

    def _watch(self, serving: Serving) -> None:
        """Wake for heartbeats, for changes that others make, for the end of the data plane."""
        handlers: dict[int, Callable[[], None]] = {}
        if serving.heartbeats is not None:
            handlers[serving.heartbeats.fileno()] = self.frames
        if serving.neighbours is not None:
            handlers[serving.neighbours.fileno()] = serving.neighbours.answer
        for monitor in serving.monitors():
            handlers[monitor.fileno()] = partial(self._changed_by_others, monitor)
        if (plane_end := serving.plane_fileno()) is not None:
            handlers[plane_end] = self._look_after
        if (prober := self.health.fileno()) is not None:
            handlers[prober] = self._looked
        for descriptor, handler in handlers.items():
            self._loop.register(descriptor, selectors.EVENT_READ, handler)
        self._watched = tuple(handlers)

    def _unwatch(self) -> None:
        for descriptor in self._watched:
            self._loop.unregister(descriptor)
        self._watched = ()

    def remember(self, name: str) -> None:
        """Keep the operator's state over a restart of the agent."""
        state.save(self.directory, name)

    def now_ms(self) -> int:
        """The clock that leases are in."""
        return boot_ms()

    def table(self) -> FilterTable:
        """The filter table in force; on a stopped host one that keeps nothing."""
        if self.serving is not None:
            return self.serving.table
        return table_of(self.config, None)

    def connections(self) -> tuple[int, float]:
        """Connections as a drain counts them, and the longest idle time in seconds."""
        addresses = tuple(address.ip for address in self.config.cluster_ip_addresses)
        return sockdiag.count_connections(addresses)

    def tell(self, event: LogEvent) -> None:
        """Log an event and keep it for `softnlb display`."""
        self.events.append((time.time(), event))
        log.log(LEVELS[event.severity], "%s: %s", event.name, event.text)


def run(
    config_path: Path,
    data_plane: str = "auto",
    force: bool = False,
    config: ClusterConfig | None = None,
    attach: str = "auto",
) -> int:
    """Be a host until SIGTERM.  Returns the exit status; errors are one sentence on stderr.

    ``config``: what the file says, when the caller has read it already; a lab reads the files of
    all its hosts at once.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    os.umask(0o022)
    try:
        config = config or load_in_child(config_path)
        for warning in config.warnings:
            log.warning("%s", warning)
        Agent(config, data_plane, attach).run(force)
    except SoftnlbError as error:
        # The lines of a configuration error begin with the file instead.
        prefix = "" if isinstance(error, ConfigError) else "softnlb: "
        print(f"{prefix}{error}", file=sys.stderr)
        return error.exit_code
    return 0
