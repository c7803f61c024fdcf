"""The phases: agree on the members, freeze what everybody holds, release, take, be Converged."""

from convergence import affinity
from convergence.buckets import target
from convergence.events import Severity
from convergence.heartbeat import AGE_NONE, CODE_TAG, DRAINING, LEAVING, NEWCOMER
from convergence.peers import Peer
from convergence.stages import Phase, Stage
from convergence.state import EMBARGO_PERIODS, State

DEAF_PERIODS = 3
"""What a host needs to hear me: two until it believes that I was restarted, one for frames."""

TRANSITIONS: dict[tuple[Phase, str], Phase] = {
    # Any change of members, weights or drain flags, a higher generation, an overlap.
    (Phase.UNKNOWN, "restart"): Phase.CONVERGING_PHASE1,
    (Phase.CONVERGING_PHASE1, "restart"): Phase.CONVERGING_PHASE1,
    (Phase.STABLE_PHASE1, "restart"): Phase.CONVERGING_PHASE1,
    (Phase.CONVERGING_PHASE2, "restart"): Phase.CONVERGING_PHASE1,
    (Phase.STABLE_PHASE2, "restart"): Phase.CONVERGING_PHASE1,
    (Phase.CONVERGED, "restart"): Phase.CONVERGING_PHASE1,
    # All agree on generation and members: freeze what I hold.
    (Phase.CONVERGING_PHASE1, "agreed"): Phase.STABLE_PHASE1,
    # All have frozen: everybody knows every snapshot and so the target; release what goes.
    (Phase.STABLE_PHASE1, "snapshots-known"): Phase.CONVERGING_PHASE2,
    # I hold exactly my target.
    (Phase.CONVERGING_PHASE2, "target-held"): Phase.STABLE_PHASE2,
    # So do all the others.
    (Phase.STABLE_PHASE2, "all-settled"): Phase.CONVERGED,
    # Stopped, or listening under a new host code.
    (Phase.UNKNOWN, "forget"): Phase.UNKNOWN,
    (Phase.CONVERGING_PHASE1, "forget"): Phase.UNKNOWN,
    (Phase.STABLE_PHASE1, "forget"): Phase.UNKNOWN,
    (Phase.CONVERGING_PHASE2, "forget"): Phase.UNKNOWN,
    (Phase.STABLE_PHASE2, "forget"): Phase.UNKNOWN,
    (Phase.CONVERGED, "forget"): Phase.UNKNOWN,
}
"""The whole of it: (phase, what happened) -> phase.  A pair that is not here is a bug."""


def enter(state: State, happened: str, reason: str) -> None:
    """Go where the table says, or raise KeyError and change nothing."""
    phase = TRANSITIONS[state.phase, happened]
    if phase is not state.phase or phase is Phase.CONVERGING_PHASE1:
        state.phase = phase
        state.note_history(reason)
    state.changed()


def restart(state: State, reason: str, generation: int) -> None:
    """ConvergingPhase1 of this generation: forget snapshot and target, keep the holdings."""
    state.generation = generation
    state.ready = None
    state.target = None
    enter(state, "restart", reason)
    state.agree = state.stable1 = state.stable2 = 0
    for peer in state.view.values():
        note_agreement(state, peer)


def change_view(state: State, reason: str, seen_generation: int = 0) -> None:
    """The members, or a weight or drain flag of one, changed.

    A generation that I heard of and have not said yet can still be that of the new view: nobody
    has agreed with me in it.  So hosts that notice the same change one after the other, hearing of
    each other's, all end in one generation.
    """
    state.recompute_view()
    unsaid = state.generation > state.said_generation
    own = state.generation if unsaid else state.generation + 1
    restart(state, reason, max(own, seen_generation + 1))


def note_agreement(state: State, peer: Peer) -> None:
    """Remember how far this member's newest frame has come in my generation and view."""
    said = peer.statement
    bit = peer.bit
    if (
        said.generation == state.generation
        and said.view_digest == state.view_digest
        and said.config_digest == state.config.config_digest
    ):
        state.agree |= bit
        phase = said.phase
        state.stable1 = (
            state.stable1 | bit if phase >= Phase.STABLE_PHASE1 else (state.stable1 & ~bit)
        )
        state.stable2 = (
            state.stable2 | bit if phase >= Phase.STABLE_PHASE2 else (state.stable2 & ~bit)
        )
    else:
        state.agree &= ~bit
        state.stable1 &= ~bit
        state.stable2 &= ~bit


def newcomer_must_wait(state: State) -> bool:
    """A newcomer does not serve while it hears a host that it should be a member with.

    That is one that a host which left has told of, or while I am alone any host, and that I do not
    hear; one which has not heard that I take part now, so that it may begin beside me, or may never
    hear me; one that has been Converged; or, among newcomers that cannot all hear each other, a
    group with a lower id.  A lower one that has me in its view cannot serve before I agree: it is I
    who choose.
    """
    if _is_stranger_about(state, state.told):
        return True
    if not state.others and _is_stranger_about(state, state.hinted):
        return True
    lowest = min(state.members)
    fresh = all(peer.statement.flags & NEWCOMER for peer in state.view.values())
    for peer in state.candidates:
        if peer.statement.flags & LEAVING:
            continue
        established = not peer.statement.flags & NEWCOMER
        # A newcomer's frame that was due when the time was up may come a moment later; the lease of
        # a host that is not one is longer, among two.
        periods = EMBARGO_PERIODS if established else 1
        patience_ms = state.death_ms + periods * state.period_ms
        if state.now_ms - peer.received_ms >= patience_ms:
            continue
        if not state.others and _hears_a_stranger(state, peer):
            return True
        if not peer.reports(state.index, state.tag):
            # A deaf host cannot hold up those who hear each other.
            if not state.others or peer.reports(state.index, state.tag ^ CODE_TAG):
                return True
            if established and not _is_deaf(state, peer):
                return True
        elif peer.counts:
            if established:
                return True
            if fresh and peer.host_id < lowest and not state.is_view_with_me(peer.statement):
                return True
    return False


def _is_deaf(state: State, peer: Peer) -> bool:
    """It went on to send, and did not hear me, for long after a member heard me.

    Only a member proves that I am heard at all: until then it may be I who is mute.  And a host
    whose last word is older is silent, not deaf: its lease may still run.
    """
    heard_ms = min(member.admitted_ms for member in state.view.values())
    since_ms = max(heard_ms, peer.since_ms, peer.tag_ms)
    return peer.received_ms - since_ms >= DEAF_PERIODS * state.period_ms


def _is_stranger_about(state: State, words: dict[int, int]) -> bool:
    """Somebody heard a host that I do not hear; that word made its lease longer."""
    patience_ms = state.death_ms + EMBARGO_PERIODS * state.period_ms
    for host_id, heard_ms in words.items():
        if state.now_ms - heard_ms < patience_ms and not _is_heard(state, host_id):
            return True
    return False


def _is_heard(state: State, host_id: int) -> bool:
    peer = state.heard.primary.get(host_id)
    return peer is not None and state.now_ms - peer.received_ms < state.death_ms


def _hears_a_stranger(state: State, peer: Peer) -> bool:
    """It hears a host that I do not hear: one that may serve, and that I cannot ask."""
    for index, age in enumerate(peer.heartbeat.ages):
        if age == AGE_NONE or index in (state.index, peer.index):
            continue
        if not _is_heard(state, index + 1):
            return True
    return False


def advance(state: State) -> None:
    """Go on as far as the newest frames of all members allow."""
    if state.joining or state.stage in (Stage.STOPPED, Stage.LEAVING):
        return
    others = state.others
    if state.phase is Phase.CONVERGING_PHASE1 and state.agree == others:
        if state.newcomer and newcomer_must_wait(state):
            return
        state.ready = list(state.current)
        enter(state, "agreed", "all members agree")
    if state.phase is Phase.STABLE_PHASE1 and state.stable1 == others:
        state.target = _targets(state)
        before = list(state.current)
        for slot, wanted in enumerate(state.target):
            state.hold(slot, before[slot] & wanted)
        affinity.claim(state, before)
        enter(state, "snapshots-known", "all snapshots are known")
    if state.phase is Phase.CONVERGING_PHASE2 and _take(state):
        enter(state, "target-held", "this host holds its target")
    if state.phase is Phase.STABLE_PHASE2 and state.stable2 == others:
        _converged(state)


def _targets(state: State) -> list[int]:
    """My target per slot, from the view and the snapshots of this generation."""
    own_id = state.config.host_id
    own_weights = state.weights()
    snapshot = state.ready or []
    wanted = []
    for slot, rule in enumerate(state.rules):
        weights = {own_id: 0 if state.draining else own_weights[slot]}
        holdings = {own_id: snapshot[slot]}
        for peer in state.view.values():
            said = peer.statement
            weights[peer.host_id] = 0 if said.flags & DRAINING else said.weights[slot]
            holdings[peer.host_id] = said.ready[slot]
        wanted.append(target(rule, weights, holdings)[own_id])
    return wanted


def _take(state: State) -> bool:
    """Take what nobody else holds any more; True when the whole target is held."""
    embargo = state.now_ms < state.embargo_until_ms
    # No members, but they hear me as I hear them: one of us would have to let go again.
    rivals = [
        peer
        for peer in state.candidates
        if state.now_ms - peer.received_ms < state.death_ms and peer.reports(state.index, state.tag)
    ]
    lists_known = affinity.ready(state)
    sticky = state.affinity.slots
    complete = lists_known and not (sticky and embargo)
    if sticky and not embargo and lists_known:
        affinity.loosen(state)
    for slot, wanted in enumerate(state.target or ()):
        missing = wanted & ~state.current[slot]
        if not missing:
            continue
        if not embargo and (lists_known or slot not in sticky):
            held = 0
            for peer in (*state.view.values(), *rivals):
                held |= peer.statement.current[slot]
            state.hold(slot, state.current[slot] | (missing & ~held))
            state.newcomer = state.newcomer and not state.current[slot]
            missing &= held
        if missing:
            complete = False
    return complete


def _converged(state: State) -> None:
    affinity.converged(state)
    state.newcomer = False
    state.convergence_count += 1
    state.last_converged_ms = state.now_ms
    enter(state, "all-settled", "all members hold their target")
    is_default = state.default_host_id == state.config.host_id
    hosts = ", ".join(str(host) for host in state.members)
    state.log(
        "converged",
        Severity.INFO,
        f"Host {state.config.host_id} converged{' as DEFAULT' if is_default else ''} "
        f"with host(s) {hosts}.",
        members=list(state.members),
        default=is_default,
    )
