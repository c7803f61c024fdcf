"""Who is a member: hearing hosts, letting them in, settling who owns what after a partition."""

from convergence import affinity, conflicts, lease, orphans, switching
from convergence.events import Severity
from convergence.heartbeat import AGE_NONE, JOINING, LEAVING, NEWCOMER, Heartbeat
from convergence.losing import is_in_the_way, lose_if_deaf, note_word
from convergence.peers import Peer
from convergence.phases import advance, change_view, note_agreement, restart
from convergence.stages import Phase, Stage
from convergence.state import EMBARGO_PERIODS, State

ADMIT_PERIODS = 2
"""How long a newcomer that could come in waits for others that are about to."""


def hear(state: State, heartbeat: Heartbeat, received_ms: int, source_mac: bytes) -> None:
    """A verified, fresh heartbeat of this cluster and configuration, not from my host id."""
    said = heartbeat.statement
    host_id = said.host_id
    peer = state.view.get(host_id)
    if peer is None or peer.code != said.host_code:
        peer = state.heard.find(host_id, said.host_code)
    if peer is None:
        peer = Peer(heartbeat, received_ms, source_mac)
        lease.heard_anew(state, peer)
        before = None
    else:
        before = peer.statement
        was_tag = peer.tag
        silent = received_ms - peer.received_ms >= state.death_ms
        peer.update(heartbeat, received_ms)
        if silent:
            lease.heard_anew(state, peer)
        if peer.tag != was_tag:
            # It began to take part, and waits to be heard as what it is now.
            state.heard.forget_masks()
            state.urgent = True
    if before is None:
        # It does not know what its predecessor heard, and will not wait longer for me.
        state.two_view = False
    if state.heard.primary.get(host_id) is not peer and not _become_primary(state, peer):
        lease.note_next_life(state, peer, received_ms)
        return
    if lease.note_heard(state, peer, received_ms):
        lease.give_up(state)
        return
    quiet = before is heartbeat.statement
    if (not quiet or state.joining) and conflicts.resolve_priorities(state, peer):
        return
    if state.newcomer:
        lease.note_told(state, peer)
    if state.joining or state.stage is Stage.LEAVING:
        return
    _hear_started(state, peer, quiet)


def _hear_started(state: State, peer: Peer, quiet: bool) -> None:
    """Go on with a frame when this host takes part; ``quiet``: it says what it said before."""
    affinity.beware(state, peer)
    member = state.view.get(peer.host_id) is peer
    if member or peer.counts:
        note_word(state, peer)
    if not quiet or not member:
        if not quiet:
            state.orphans_stale = True
        _resolve_overlap(state, peer)
    if member:
        if not quiet:
            _hear_member(state, peer)
        elif peer.heartbeat.ages[state.index] == AGE_NONE:
            lose_if_deaf(state, peer)
    if state.candidates:
        admit(state)
    if not quiet or state.phase is Phase.CONVERGING_PHASE1:
        advance(state)


def _hear_member(state: State, peer: Peer) -> None:
    said = peer.statement
    if said.flags & LEAVING:
        del state.view[peer.host_id]
        text = f"Host {peer.host_id} leaves the cluster."
        state.log("host-leaving", Severity.INFO, text, host_id=peer.host_id)
        state.left[peer.host_id] = state.now_ms
        change_view(state, f"host {peer.host_id} leaves", said.generation)
        if not state.others:
            _beware_of_unheard(state, said.view & ~peer.bit)
    elif state.staging.lagging & peer.bit and not switching.settle(state, peer):
        return
    elif state.known_identity[peer.host_id] != peer.identity:
        change_view(state, f"host {peer.host_id} changed its weights", said.generation)
    elif said.generation > state.generation:
        restart(state, f"host {peer.host_id} converges", said.generation)
    else:
        note_agreement(state, peer)


def _beware_of_unheard(state: State, known: int) -> None:
    """Alone, after the last member left: wait for the leases of hosts that only it could hear."""
    patience_ms = state.death_ms + EMBARGO_PERIODS * state.period_ms
    for host_id, left_ms in state.left.items():
        if state.now_ms - left_ms < patience_ms:
            known &= ~(1 << host_id - 1)
    for peer in state.candidates:
        lately = state.now_ms - peer.received_ms < 2 * state.period_ms
        waits = peer.statement.flags & NEWCOMER and peer.reports(state.index, state.tag)
        if lately and waits:
            known &= ~peer.bit  # restarted, it holds nothing and comes in with me
    if known & ~state.bit:
        state.embargo_until_ms = state.now_ms + patience_ms


def _become_primary(state: State, peer: Peer) -> bool:
    """Make this host code the one that stands for its host id; False while another one does."""
    host_id = peer.host_id
    primary = state.heard.primary.get(host_id)
    is_member = state.view.get(host_id) is peer
    if primary is not None and not is_member and not silent_enough(state, primary, peer):
        state.heard.rivals[host_id] = peer
        return False
    if not is_member and (state.others == peer.bit or _left_unhearing(state, primary)):
        # My only member restarted: that makes no lease longer than what its predecessor heard, be
        # that the member or, when it restarts again and again, a host between the two.
        peer.since_ms = min(peer.since_ms, _heard_by_predecessor(state, primary))
    state.heard.promote(peer)
    if primary is not None and is_in_the_way(state, primary):
        state.expiry_ms = state.now_ms
    state.recompute_candidates()
    # Heard for the first time: let it know that it is heard.
    state.urgent = True
    return True


def _left_unhearing(state: State, primary: Peer | None) -> bool:
    """I am alone, and the one who restarted had left because it could not hear me."""
    if state.others or primary is None or state.now_ms - primary.received_ms >= state.death_ms:
        return False
    listened_ms = primary.received_ms - primary.since_ms
    return primary.heartbeat.ages[state.index] == AGE_NONE and listened_ms >= state.death_ms


def _heard_by_predecessor(state: State, primary: Peer | None) -> int:
    if primary is None:
        return state.known_heard_ms
    if state.view.get(primary.host_id) is primary:
        return max(state.known_heard_ms, primary.next_heard_me_ms)
    return lease.heard_alone_ms(state, primary)


def silent_enough(state: State, old: Peer, new: Peer) -> bool:
    """May the new host code replace the old one?

    A restarted host (same dedicated IP address) installed an empty table before its first frame,
    so 2 P of silence are enough.  Another machine's lease must have run out.
    """
    silence_ms = state.now_ms - old.received_ms
    return silence_ms >= (2 * state.period_ms if new.is_machine_of(old) else state.death_ms)


def admit(state: State) -> None:
    """Make members of those that hear all members and are heard by all members."""
    admissible = _admissible(state)
    if not admissible:
        state.admit_by_ms = None
        return
    if _wait_for_more(state, admissible):
        return
    state.admit_by_ms = None
    was_alone = lease.alone(state)
    for peer in admissible:
        state.view[peer.host_id] = peer
        peer.admitted_ms = state.now_ms
        state.others |= peer.bit
    if was_alone:
        lease.no_longer_alone(state, admissible)
    for peer in admissible:
        orphans.came_back(state, peer)
    names = ", ".join(str(peer.host_id) for peer in admissible)
    seen = max(peer.statement.generation for peer in admissible)
    change_view(state, f"host {names} joins", seen)


def _admissible(state: State) -> list[Peer]:
    """The candidates that may all become members now, in the order of their ids."""
    # After a loss there is a candidate for a while, the lost one: nothing dear before it is lively.
    lively = [
        peer
        for peer in state.candidates
        if peer.counts and state.now_ms - peer.received_ms < 2 * state.period_ms
    ]
    if not lively:
        return lively
    heard, index, tag = state.heard, state.index, state.tag
    common = -1
    replaced = 0
    for member in state.view.values():
        if heard.primary.get(member.host_id) is member:
            common &= heard.hears(member, index, tag)
        else:
            replaced |= member.bit
    others = state.others
    found: list[Peer] = []
    for peer in sorted(lively, key=lambda one: one.host_id):
        if not common & peer.bit or replaced & ~peer.bit:
            continue
        needed = (state.bit | others) & ~peer.bit
        mask = heard.hears(peer, index, tag)
        if mask & needed != needed or conflicts.same_priority(state, peer) is not None:
            continue
        if _comes_untimely(state, peer):
            continue
        old = state.view.get(peer.host_id)
        if old is not None and not silent_enough(state, old, peer):
            continue
        others |= peer.bit
        replaced &= ~peer.bit
        common &= mask
        found.append(peer)
    return found


def _wait_for_more(state: State, admissible: list[Peer]) -> bool:
    """Whether newcomers wait a little, so that hosts that start together come in together.

    Each convergence takes rounds of frames of all to all: 32 hosts that join one by one would
    spend seconds on what one convergence does.  Nobody waits for a host that a member let in, for
    the merge of a partition, or for a host that has taken part for a period and still cannot come
    in: it does not hear one of us, or is not heard, and may be so for ever.
    """
    if any(not peer.statement.flags & NEWCOMER or _let_in(state, peer) for peer in admissible):
        return False
    if not any(_may_come(state, peer) for peer in state.candidates if peer not in admissible):
        return False
    if state.admit_by_ms is None:
        state.admit_by_ms = state.now_ms + ADMIT_PERIODS * state.period_ms
    return state.now_ms < state.admit_by_ms


def _may_come(state: State, peer: Peer) -> bool:
    """It joins, or has begun to take part and its and our words about that are on their way."""
    alive = state.now_ms - peer.received_ms < state.death_ms
    lately = bool(peer.statement.flags & JOINING) or state.now_ms - peer.tag_ms < state.period_ms
    return alive and lately and not peer.statement.flags & LEAVING


def _comes_untimely(state: State, peer: Peer) -> bool:
    """A newcomer waits while members converge, or a host that crashes again and again would hold
    up for ever the take-over of what it lost.  One that a member let in comes in time.
    """
    if state.newcomer or not peer.statement.flags & NEWCOMER or state.phase is Phase.CONVERGED:
        return False
    return not _let_in(state, peer)


def _let_in(state: State, peer: Peer) -> bool:
    """Whether the view that a member shows has this very host in it."""
    return any(
        member.statement.view & peer.bit and state.is_view_with_me(member.statement, peer)
        for member in state.view.values()
    )


def _resolve_overlap(state: State, peer: Peer) -> None:
    """Two owners of a bucket, after a partition: the higher host id releases it at once."""
    if peer.host_id > state.config.host_id or not peer.reports(state.index, state.tag):
        return
    overlap = False
    for slot, theirs in enumerate(peer.statement.current):
        mine = state.current[slot]
        if mine & theirs:
            state.hold(slot, mine & ~theirs)
            overlap = True
    if overlap:
        text = f"Host {peer.host_id} holds the same buckets; this host released them."
        state.log("overlap", Severity.WARNING, text, host_id=peer.host_id)
        seen = max(state.generation, peer.statement.generation)
        restart(state, f"overlap with host {peer.host_id}", seen + 1)
