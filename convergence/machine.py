"""The convergence machine of one host: inputs in, outputs out, no clock and no socket.

THE THEORY

Hosts that share a cluster IP address agree, by heartbeats alone, on who is a member and which
member owns which of the 60 buckets of each port rule.  What must never fail: two live hosts never
accept the same bucket at the same moment.  What should not fail: a bucket has an owner.

*A host* is a host id and a host code, a random number drawn at each start: a restarted host is a
new host.  Each host keeps a *view*, the set of members as it sees them, and a *generation*, a
number that only grows.  A frame says: my generation, a digest of my view, my phase, what I hold
now (current), what I held when we agreed (ready), what I shall hold (new), and how long ago I
heard each host.

*Agreement.*  Whatever changes the view raises the generation and begins again at
ConvergingPhase1.  When the newest frame of every member of my view shows my generation and my
view digest, all agree, and I freeze ready := current.  When all have frozen, every member has
every snapshot and computes the same target from it, so nobody has to be told.  Each releases what
is not in its target and takes a bucket of its target once no other member's newest frame shows
it.  Whoever holds its target is settled; when all are, the host is Converged.

Why this is safe: a bucket moves only between members that agreed on one view and one generation,
and the one who takes has seen the one who gave let go.  A host that is not in the view any more
is taken care of by the *lease* (see ``lease``): it stops accepting before the others give up on
it.  Why it is quick: frames also go out at once whenever anything changes, so a convergence
takes rounds of frames, not periods.  While it lasts, the old holdings go on serving.

*Joining* (see ``membership``).  A host listens first, holding nothing.  It becomes a member when
it hears every member and every member hears it: a host that could not take part in an agreement
must not be able to hold one up.  *Losing* (see ``losing``): T x P after the last frame that
anybody heard.  Who says that it heard a member makes that member's lease longer; so its word
counts for all others until it takes it back by dropping the member from its view, even when it
has left, died or been restarted since.  Whom I know of by others' words only is followed 2 x P
later, for I may have missed the last of them.  A deaf member is left behind; of two that cannot
hear each other one leaves.  *Leaving*: hand over with weight 0, then say so until nobody's view
holds me.

*Changing the rules* of the whole cluster at once: see ``staging``.

Every input first checks the clock: a process that was stopped for longer than its lease holds
nothing any more, whatever it believed before.

The phases and all transitions between them stand in one table, ``phases.TRANSITIONS``.
"""

from convergence import (
    affinity,
    commands,
    lease,
    losing,
    membership,
    orphans,
    phases,
    reception,
    reporting,
    staging,
)
from convergence.change_frame import ChangeName
from convergence.clients import ClientKey
from convergence.events import (
    ChangeProposed,
    ChangeStaged,
    ClientsForgotten,
    ClientsListed,
    CommandError,
    CommandReceived,
    ConfigurationRecalled,
    Convergence,
    FrameReceived,
    HostProbed,
    HostState,
    IdleScanned,
    Input,
    Output,
    Status,
    Tick,
)
from convergence.stages import Phase, Stage
from convergence.state import HostConfig, State

__all__ = ["CommandError", "HostConfig", "Machine", "Phase"]


class Machine:
    """One host's part of the protocol.

    Stopped until CommandReceived(START).  ``step`` never raises on a frame; a command that makes
    no sense raises CommandError and changes nothing.  Same state and same input: same output.
    """

    def __init__(self, config: HostConfig, now_ms: int) -> None:
        self._state = State(config, now_ms)
        self._state.awake_ms = now_ms

    def step(self, event: Input) -> tuple[Output, ...]:
        """Take one input and say what to do, in the order in which it is to be done."""
        state = self._state
        state.outputs = []
        lease.check_clock(state, max(event.now_ms, state.now_ms))
        match event:
            case FrameReceived():
                if state.stage is not Stage.STOPPED:
                    reception.receive(state, event)
            case CommandReceived():
                commands.obey(state, event)
            case IdleScanned():
                orphans.scanned(state, event)
            case HostProbed():
                orphans.probed(state, event)
            case ChangeProposed():
                staging.propose(state, event)
            case ChangeStaged():
                staging.staged(state, event)
            case ConfigurationRecalled():
                staging.recalled(state, event)
            case ClientsListed():
                affinity.listed(state, event)
            case ClientsForgotten():
                affinity.forgotten(state)
        # Whatever came in: frames in quick succession must not keep the listening from ending.
        if isinstance(event, Tick) or (state.joining and state.stage is not Stage.STOPPED):
            self._tick()
        if state.staging.change is not None:
            staging.go_on(state)
        if state.stage in (Stage.STOPPING, Stage.LEAVING):
            commands.go_on_stopping(state)
        reporting.finish(state, isinstance(event, FrameReceived))
        return tuple(state.outputs)

    def _tick(self) -> None:
        """Time alone can end the listening, a member, an embargo, a wait."""
        state = self._state
        if state.stage is Stage.STOPPED:
            return
        if state.joining:
            commands.end_listening(state)
        elif state.now_ms >= min(state.expiry_ms, state.next_send_ms):
            losing.judge(state)
        if not state.joining and state.stage is not Stage.LEAVING:
            if state.candidates:
                membership.admit(state)
            if state.phase is not Phase.CONVERGED:
                affinity.give_up_late(state)
                phases.advance(state)

    def next_deadline_ms(self) -> int:
        """When a Tick is due at the latest (boot-time clock, ms)."""
        return reporting.next_deadline_ms(self._state)

    def status(self, now_ms: int) -> Status:
        """All that a query shows, as of ``now_ms``."""
        return reporting.status(self._state, now_ms)

    def scan_due_ms(self) -> int | None:
        """From when on a scan of the sockets may prove a bucket idle; None: there is none to."""
        return orphans.scan_due_ms(self._state)

    @property
    def host_state(self) -> HostState:
        """The state alone, for a caller that asks after every step."""
        return reporting.host_state(self._state)

    @property
    def awaits_last_connection(self) -> bool:
        """A drain goes on until its caller says that it is complete."""
        return commands.is_draining(self._state)

    @property
    def is_stopping(self) -> bool:
        """Told to stop, and not stopped yet."""
        return commands.is_stopping(self._state)

    @property
    def exceptions(self) -> dict[int, frozenset[ClientKey]]:
        """Per host id the clients that are left to it."""
        return dict(self._state.affinity.exceptions)

    @property
    def listed_clients(self) -> tuple[ClientKey, ...] | None:
        """Whom this host keeps in buckets of others, by its list; None: it is being made."""
        return self._state.affinity.keys

    @property
    def phase(self) -> Phase:
        """The phase of convergence alone, for the same caller."""
        return self._state.phase

    @property
    def rule_states(self) -> tuple[str, ...]:
        """Per slot: "enabled", "disabled" or "draining" on this host."""
        return tuple(rule.value for rule in self._state.rule_states)

    @property
    def change(self) -> tuple[ChangeName, bytes] | None:
        """The change of the whole cluster that is being staged, and its digest."""
        change = self._state.staging.change
        return None if change is None or change.aborted else (change.name, change.digest)

    @property
    def kept_digests(self) -> tuple[bytes, ...]:
        """Of the configurations that this host may go over to."""
        return tuple(self._state.staging.kept)

    @property
    def change_waits_for(self) -> tuple[int, ...]:
        """The members that have not staged the change that this host proposed."""
        return tuple(staging.missing(self._state))

    @property
    def change_outcome(self) -> tuple[ChangeName, str] | None:
        """Of the last change that this host proposed: "" for done, or why it was aborted."""
        return self._state.staging.outcome

    def history_since(self, length: int) -> tuple[int, tuple[Convergence, ...]]:
        """How many lines the convergence history ever had, and those after the first ``length``."""
        state = self._state
        new = min(state.history_length - length, len(state.history))
        return state.history_length, tuple(state.history)[-new:] if new else ()

    @property
    def counters(self) -> dict[str, int]:
        """Frames that were not believed, per kind."""
        return dict(self._state.counters)
