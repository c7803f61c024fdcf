"""Who is a member: hearing hosts, letting them in, losing them, telling deaf ones."""

from convergence import conflicts, lease, orphans
from convergence.events import ProbeHost, Severity
from convergence.heartbeat import AGE_NONE, AGE_UNITS, LEAVING, NEWCOMER, Heartbeat, address
from convergence.peers import Peer
from convergence.phases import advance, change_view, note_agreement, restart
from convergence.rules import HOST_ID_MAX
from convergence.state import EMBARGO_PERIODS, FOREVER, NEVER, Phase, Stage, State, view_digest

ADMIT_PERIODS = 2
"""How long a newcomer that could come in waits for others that are about to."""

FORGET_PERIODS = 2
"""Times T: a host that is no member is forgotten after this silence."""


def hear(state: State, heartbeat: Heartbeat, received_ms: int, source_mac: bytes) -> None:
    """A verified, fresh heartbeat of this cluster and configuration, not from my host id."""
    said = heartbeat.statement
    host_id = said.host_id
    peer = state.view.get(host_id)
    if peer is None or peer.code != said.host_code:
        peer = state.heard.find(host_id, said.host_code)
    if peer is None:
        peer = Peer(heartbeat, received_ms, source_mac)
        before = None
    else:
        before = peer.statement
        was_tag = peer.tag
        if received_ms - peer.received_ms >= state.death_ms:
            peer.since_ms = received_ms
        peer.update(heartbeat, received_ms)
        if peer.tag != was_tag:
            # It began to take part, and waits to be heard as what it is now.
            state.heard.forget_masks()
            state.urgent = True
    if before is None:
        # It does not know what its predecessor heard, and will not wait longer for me.
        state.two_view = False
    if state.heard.primary.get(host_id) is not peer and not _become_primary(state, peer):
        return
    if lease.note_heard(state, peer, received_ms):
        text = "Nobody hears this host; it drops its buckets and starts afresh."
        state.log("nobody-hears-me", Severity.ERROR, text)
        lease.start_afresh(state, "nobody hears this host")
        return
    quiet = before is heartbeat.statement
    if (not quiet or state.joining) and conflicts.resolve_priorities(state, peer):
        return
    if state.joining or state.stage is Stage.LEAVING:
        return
    _hear_started(state, peer, quiet)


def _hear_started(state: State, peer: Peer, quiet: bool) -> None:
    """Go on with a frame when this host takes part; ``quiet``: it says what it said before."""
    member = state.view.get(peer.host_id) is peer
    if member or peer.counts:
        _note_word(state, peer)
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
    state.heard.promote(peer)
    state.recompute_candidates()
    # Heard for the first time: let it know that it is heard.
    state.urgent = True
    return True


def silent_enough(state: State, old: Peer, new: Peer) -> bool:
    """May the new host code replace the old one?

    A restarted host (same dedicated IP address) installed an empty table before its first frame,
    so 2 P of silence are enough.  Another machine's lease must have run out.
    """
    silence_ms = state.now_ms - old.received_ms
    same_machine = old.statement.dedicated_ip_address == new.statement.dedicated_ip_address
    return silence_ms >= (2 * state.period_ms if same_machine else state.death_ms)


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
    for peer in sorted(state.candidates, key=lambda one: one.host_id):
        if not peer.counts or not common & peer.bit or replaced & ~peer.bit:
            continue
        if state.now_ms - peer.received_ms >= 2 * state.period_ms:
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
    spend seconds on what one convergence does.  Nobody waits for a host that a member let in, nor
    for the merge of a partition.
    """
    if any(not peer.statement.flags & NEWCOMER or _let_in(state, peer) for peer in admissible):
        return False
    coming = sum(
        state.now_ms - peer.received_ms < state.death_ms and not peer.statement.flags & LEAVING
        for peer in state.candidates
    )
    if coming == len(admissible):
        return False
    if state.admit_by_ms is None:
        state.admit_by_ms = state.now_ms + ADMIT_PERIODS * state.period_ms
    return state.now_ms < state.admit_by_ms


def _comes_untimely(state: State, peer: Peer) -> bool:
    """A newcomer waits while members converge, or a host that crashes again and again would hold
    up for ever the take-over of what it lost.  One that a member let in comes in time.
    """
    if state.newcomer or not peer.statement.flags & NEWCOMER or state.phase is Phase.CONVERGED:
        return False
    return not _let_in(state, peer)


def _let_in(state: State, peer: Peer) -> bool:
    """Whether the view that a member shows has this very host in it."""
    for member in state.view.values():
        said = member.statement
        if not said.view & peer.bit:
            continue
        theirs = {state.config.host_id: state.own_identity()}
        for other in (*state.heard.primary.values(), *state.view.values(), peer):
            if said.view & other.bit:
                theirs[other.host_id] = other.identity
        if view_digest(theirs) == said.view_digest:
            return True
    return False


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


def newest_ms(state: State, peer: Peer) -> int:
    """When anybody whose view holds this member heard it last, as far as I know."""
    return max(peer.received_ms, *peer.vouched.values(), NEVER)


def _note_word(state: State, witness: Peer) -> None:
    """Remember when this host heard the members that stand in its view.

    Its word made their leases longer, so it counts even if the witness then leaves, dies or is
    restarted.  It takes its word back by dropping a member from its view: that one has let go.
    """
    said = witness.statement
    ages = witness.heartbeat.ages
    name = (witness.host_id, witness.code)
    for peer in state.view.values():
        if not said.view & peer.bit:
            peer.vouched.pop(name, None)
        elif peer is not witness and witness.reports(peer.index, peer.tag):
            heard_ms = witness.received_ms - ages[peer.index] * state.death_ms // AGE_UNITS
            peer.vouched[name] = max(heard_ms, peer.vouched.get(name, NEVER))


def judge(state: State) -> None:
    """Remove members whose silence has lasted T x P; notice deaf members and broken pairs."""
    if state.now_ms < state.judge_after_ms:
        state.expiry_ms = state.judge_after_ms
        return
    dead: list[Peer] = []
    expiry = FOREVER
    for peer in state.view.values():
        heard_until = peer.received_ms + state.death_ms
        if heard_until <= state.now_ms and state.heard.primary.get(peer.host_id) is peer:
            heard_until = newest_ms(state, peer) + state.death_ms
        if heard_until <= state.now_ms:
            dead.append(peer)
        else:
            expiry = min(expiry, heard_until)
    state.expiry_ms = min(expiry, state.now_ms + state.period_ms)
    if dead:
        _lose(state, dead)
    for peer in list(state.view.values()):
        if peer.heartbeat.ages[state.index] == AGE_NONE:
            lose_if_deaf(state, peer)
    _leave_broken_pair(state)
    _forget_silent(state)


def _lose(state: State, dead: list[Peer]) -> None:
    for peer in dead:
        del state.view[peer.host_id]
        where = address(peer.statement.dedicated_ip_address)
        text = f"Host {peer.host_id} is lost: no heartbeat for {state.death_ms} ms."
        state.log("host-lost", Severity.WARNING, text, host_id=peer.host_id)
        state.lost[peer.host_id, peer.code] = peer
        state.orphans_stale = True
        state.outputs.append(ProbeHost(peer.host_id, peer.code, where))
    embargo_ms = EMBARGO_PERIODS * state.period_ms
    # I may have missed the last words about a host that I do not hear myself.
    by_word = any(newest_ms(state, peer) > peer.received_ms + state.period_ms for peer in dead)
    if by_word or state.now_ms - state.two_view_sent_ms < state.death_ms + embargo_ms:
        state.embargo_until_ms = max(state.embargo_until_ms, state.now_ms + embargo_ms)
    names = ", ".join(str(peer.host_id) for peer in dead)
    change_view(state, f"host {names} lost")


def lose_if_deaf(state: State, peer: Peer) -> None:
    """A member that hears none of us: go on without it.

    Its age for me is "none" once it has not heard me for T x P.  A member that hears some of us
    but not me is no deaf host but one end of a broken pair.
    """
    others = [other for other in state.view.values() if other is not peer]
    if any(peer.reports(other.index, other.tag) for other in others):
        return
    if not any(other.reports(state.index, state.tag) for other in others):
        # Nobody else hears me either: it is I who is mute, and my lease that must end.
        return
    del state.view[peer.host_id]
    text = f"Host {peer.host_id} does not hear us; the cluster goes on without it."
    state.log("host-does-not-hear-us", Severity.WARNING, text, host_id=peer.host_id)
    change_view(state, f"host {peer.host_id} does not hear us", peer.statement.generation)


def _leave_broken_pair(state: State) -> None:
    """When I and a lower host id cannot hear each other but another host hears both, I leave.

    The lower one counts when it stands in the view of the host between us.  Waits one and a half
    times T x P, so that a take-over which the pair holds up is done within 2 T x P.
    """
    if state.stage is Stage.LEAVING:
        return
    witnesses = [
        peer
        for peer in state.heard.primary.values()
        if peer.counts
        and peer.reports(state.index, state.tag)
        and state.now_ms - peer.received_ms < state.death_ms
        and (not state.newcomer or peer.statement.view & state.bit)
    ]
    known = 0
    for witness in witnesses:
        known |= witness.statement.view
    broken = {
        host_id
        for host_id in range(1, state.config.host_id)
        if known >> (host_id - 1) & 1
        and _is_broken(state, host_id)
        and any(_hears_as_member(state, witness, host_id) for witness in witnesses)
    }
    for host_id in [one for one in state.unheard_since if one not in broken]:
        del state.unheard_since[host_id]
    for host_id in broken:
        since_ms = state.unheard_since.setdefault(host_id, state.now_ms)
        # It took T x P until either of us could know.
        if state.now_ms - since_ms >= state.death_ms // 2:
            text = f"This host and host {host_id} cannot hear each other; it leaves."
            state.log("broken-pair", Severity.ERROR, text, host_id=host_id)
            state.release_all()
            state.stage_after_leaving = state.stage
            state.stage = Stage.LEAVING
            state.stop_by_ms = state.now_ms + state.death_ms
            state.unheard_since.clear()
            state.changed()
            return


def _hears_as_member(state: State, witness: Peer, host_id: int) -> bool:
    """The host between us still hears this other host, and has it in its view."""
    index = host_id - 1
    age = witness.heartbeat.ages[index]
    if age == AGE_NONE or witness.host_id == host_id or not witness.statement.view >> index & 1:
        return False
    age_ms = age * state.death_ms // AGE_UNITS + state.now_ms - witness.received_ms
    return age_ms < state.death_ms


def _is_broken(state: State, host_id: int) -> bool:
    """I have not heard it for T x P, or it says that it has not heard me for as long."""
    peer = state.heard.primary.get(host_id)
    if peer is None or state.now_ms - peer.received_ms >= state.death_ms:
        return True
    return peer.counts and not peer.reports(state.index, state.tag)


def _forget_silent(state: State) -> None:
    limit_ms = state.now_ms - FORGET_PERIODS * state.death_ms
    for peer in state.view.values():
        if len(peer.vouched) > HOST_ID_MAX:
            peer.vouched = {one: ms for one, ms in peer.vouched.items() if ms >= limit_ms}
    for known in (state.heard.primary, state.heard.rivals, state.strangers):
        for host_id in [one.host_id for one in known.values() if one.received_ms < limit_ms]:
            if state.view.get(host_id) is not known[host_id]:
                del known[host_id]
    state.recompute_candidates()
