"""The agent: the one loop between the world and the convergence machine.

Sockets and clock go in, ``Machine.step`` decides, its outputs are carried out in their order.
Nothing else in the house reads the clock of a running host.
"""

import secrets
import selectors
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from convergence.events import (
    ClientsForgotten,
    Command,
    CommandReceived,
    ConfigurationSwitched,
    FrameReceived,
    HostState,
    IdleScanned,
    Input,
    LeaseRenewed,
    LogEvent,
    MapsChanged,
    Output,
    ProbeHost,
    RecallConfiguration,
    SendFrame,
    Severity,
    StageChange,
    Tick,
)
from convergence.machine import Machine
from softnlb import state
from softnlb.affinity import Affinity, Order
from softnlb.answers import Answers
from softnlb.arp_probe import Probes
from softnlb.changes import Changes
from softnlb.config import ClusterConfig
from softnlb.control import ControlServer, socket_path
from softnlb.errors import SoftnlbError
from softnlb.filter import FilterTable
from softnlb.health import Health
from softnlb.history import History, agent_started
from softnlb.kernel import boot_ms
from softnlb.notify import Notifier
from softnlb.planes import Choice, choose
from softnlb.reload import begin_anew, reload
from softnlb.remote import RemoteControl
from softnlb.serving import Serving, host_config, table_of
from softnlb.signals import Signals
from softnlb.socket_watch import SocketWatch

CHECK_MS = 1000
"""Between two looks at what stands; most changes tell themselves, a sysctl does not."""

FRAMES_PER_TURN = 64
"""Heartbeats handled before the loop looks at its deadlines again."""


class Agent:
    """One host of one cluster."""

    def __init__(
        self,
        config: ClusterConfig,
        data_plane: str,
        attach: str = "auto",
        control: ControlServer | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """``control``: the socket, when it was made while there was more privilege."""
        self.config = config
        self.directory = state.state_directory(config)
        self.data_plane = data_plane if data_plane != "auto" else config.data_plane
        self.attach = attach if attach != "auto" else config.attach
        self.choice: Choice | None = None
        self.suspended = False
        self.history = History(self.directory, config.host_id)
        self._notifier = notifier or Notifier({})
        self.serving: Serving | None = None
        self._next_check_ms = 0
        self._running = True
        self._watched: tuple[int, ...] = ()
        self.restart = False
        self.pending: ClusterConfig | None = None  # in force when this host has left
        self._loop = selectors.DefaultSelector()
        self.changes = Changes(self, self._loop)
        self.new_machine()
        self.sockets = SocketWatch()
        self._loop.register(self.sockets, selectors.EVENT_READ, self._scanned)
        self._affinity = Affinity()
        self._probes = Probes()
        self.health = Health(self.rule_command, lambda: self.machine.rule_states, self.tell)
        self.control = control or ControlServer(socket_path(config))
        self._answers = Answers(self)
        self.control.handler = self._answers.answer
        self.remote = RemoteControl(self, self._answers.answer, self._loop)
        self.remote.open()
        self._loop.register(self.control, selectors.EVENT_READ, self.control.handle)
        self._signals = Signals()
        self._loop.register(self._signals, selectors.EVENT_READ, self._signalled)

    # ------------------------------------------------------------ the loop

    def run(self, force: bool) -> None:
        """Begin in the state that NLB would begin in, and go on until told to end."""
        self.tell(agent_started())
        begin = state.initial(self.directory, self.config)
        self.suspended = begin == "suspended"
        try:
            if begin == "started":
                self.start(force)
            self._notifier.ready()
            while self._running or self.serving is not None:
                self._turn()
        finally:
            if self.serving is not None:
                self.serving.stop()
            self.close()

    def close(self) -> None:
        """Let go of what every agent has, started or not."""
        self.control.close()
        self.remote.close()
        self.sockets.close()
        self._signals.close()
        self._loop.close()
        self.history.close()
        self._notifier.close()

    def _turn(self) -> None:
        serving = self.serving is not None
        deadlines = [
            self.machine.next_deadline_ms(),
            self.sockets.next_deadline_ms(self.machine) if serving else None,
            self._next_check_ms if serving else None,
            self._probes.next_deadline_ms(),
            self._notifier.next_deadline_ms(),
            self.remote.next_deadline_ms(),
        ]
        deadline_ms = min(at_ms for at_ms in deadlines if at_ms is not None)
        for key, _ in self._loop.select(max(0, deadline_ms - boot_ms()) / 1000):
            key.data()
        now_ms = boot_ms()
        if now_ms >= self.machine.next_deadline_ms():
            self.step(Tick(now_ms))
        for known in self._probes.advance(now_ms):
            self.step(known)
        if self.sockets.drained(self.machine, now_ms):
            self.step(CommandReceived(now_ms, Command.DRAIN_COMPLETE))
        if self.serving is not None:
            self.sockets.advance(self.machine, self.serving.table, now_ms)
        if self.serving is not None and now_ms >= self._next_check_ms:
            self._next_check_ms = now_ms + CHECK_MS
            self._probes.meet(self.config, self.machine, now_ms)
            self._look_after()
        self.remote.advance(now_ms)
        self.changes.after_step()
        self._notifier.advance(now_ms)

    def step(self, event: Input) -> None:
        """One input to the machine, its outputs to the world, in their order."""
        for output in self.machine.step(event):
            self._carry_out(output)
        if self._affinity.asked is not None:
            self.step(self._affinity.answer(self.serving, boot_ms()))
        if phase := self.history.tell_phases(self.machine):
            self._notifier.status(phase)
        if self.serving is not None and self.machine.host_state == HostState.STOPPED:
            self._end_serving()

    def _carry_out(self, output: Output) -> None:
        serving = self.serving
        if isinstance(output, LogEvent):
            self.tell(output)
            if output.name == "converged" and output.fields["default"] and serving is not None:
                serving.announce()
        elif serving is None:
            return
        elif isinstance(output, StageChange | RecallConfiguration | ConfigurationSwitched):
            self.changes.obey(output)
        elif isinstance(output, SendFrame):
            if serving.heartbeats is not None:
                serving.heartbeats.send(output.payload)
        elif isinstance(output, MapsChanged):
            serving.install(output, self.machine.rule_states)
        elif isinstance(output, LeaseRenewed):
            serving.renew(output.valid_until_ms)
        elif isinstance(output, Order):
            self._affinity.carry_out(serving, output)
        elif isinstance(output, ProbeHost):
            self._probes.ask(self.config, output, boot_ms())

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
        self._notifier.stopping()
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
            self._tell_unrecorded(serving)
            self._watch(serving)
            self.step(ClientsForgotten(boot_ms()))  # built anew, it remembers nobody

    def _tell_unrecorded(self, serving: Serving) -> None:
        if serving.unrecorded:
            text = (
                "What was changed on this machine could not be written down "
                f"({serving.unrecorded}): `softnlb cleanup` would not find it after a crash."
            )
            self.tell(LogEvent("state-not-saved", Severity.ERROR, text))

    def _looked(self) -> None:
        if not self.health.read():
            self.look_at_services(anew=False)

    def look_at_services(self, anew: bool = True) -> None:
        """End the prober, and begin anew with the health probes of a changed configuration."""
        if self.serving is not None:
            self._unwatch()
            self.health.stop()
            if anew:
                self.health.start(self.config.health_probes)
            self._watch(self.serving)

    def _scanned(self) -> None:
        for scan in self.sockets.results():
            now_ms = boot_ms()
            if self.serving is not None:
                self.step(IdleScanned(now_ms, scan.began_ms, scan.idle, scan.syn_cookie_ms))
                if self._affinity.sweep(self.serving, self.machine, scan, now_ms, self.tell):
                    self.step(ClientsForgotten(now_ms))

    # ------------------------------------------------------------ what operators ask for

    @property
    def is_ending(self) -> bool:
        """Somebody told the process to end."""
        return not self._running

    def start(self, force: bool = False) -> None:
        """Join the cluster; on a draining host, end the drain."""
        if self.serving is None:
            choice = choose(self.data_plane, self.attach)
            serving = Serving(self.config, choice.plane, self.directory)
            serving.start()
            self.serving, before, self.choice = serving, self.choice, choice
            if before is None or before.reason != choice.reason:
                self.tell(LogEvent("data-plane", Severity.INFO, choice.text))
            self._tell_unrecorded(serving)
            self.health.start(self.config.health_probes)
            self._watch(serving)
        code = secrets.randbits(32)
        self.step(CommandReceived(boot_ms(), Command.START, host_code=code, force=force))

    def stop(self, restart: bool = False) -> None:
        """Hand everything over and leave; ``restart``: and join again."""
        self.restart = restart
        self.sockets.end_drain()
        self.step(CommandReceived(boot_ms(), Command.STOP))

    def drainstop(self, timeout_s: float | None) -> None:
        """Accept nothing new; leave after the last connection or the time-out, seconds."""
        now_ms = boot_ms()
        self.step(CommandReceived(now_ms, Command.DRAINSTOP))
        self.sockets.begin_drain(now_ms, timeout_s)

    def rule_command(self, command: Command, slots: tuple[int, ...], load_weight: int = 0) -> None:
        """Enable, disable, drain or weigh the rules in ``slots`` on this host."""
        event = CommandReceived(boot_ms(), command, slots=slots, load_weight=load_weight)
        self.step(event)

    def reload(self) -> str:
        """Read the configuration again; returns what was done about it."""
        return reload(self)

    def new_machine(self) -> None:
        """Know nothing of the cluster, and go by the configuration of now."""
        self.machine = Machine(host_config(self.config, self.changes.kept_digests()), boot_ms())
        self.history.phases_told = 0

    def _end_serving(self) -> None:
        serving = self.serving
        if serving is None:
            return
        self.serving = None
        self._unwatch()
        self.sockets.void()
        self._probes.close()
        self.health.stop()
        serving.stop()
        begin_anew(self)

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
        try:
            state.save(self.directory, name)
        except OSError as error:
            text = f"The state {name} will be forgotten by a restart of the agent: {error}."
            self.tell(LogEvent("state-not-saved", Severity.ERROR, text, {"state": name}))

    def now_ms(self) -> int:
        """The clock that leases are in."""
        return boot_ms()

    def table(self) -> FilterTable:
        """The filter table in force; on a stopped host one that keeps nothing."""
        if self.serving is not None:
            return self.serving.table
        return table_of(self.config, None)

    def tell(self, event: LogEvent) -> None:
        """Log an event and keep it for `softnlb display` and `softnlb events`."""
        self.history.tell(event)
