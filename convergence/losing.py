"""Losing members: the silent, the deaf, and one of two that cannot hear each other."""

from convergence import lease, orphans
from convergence.events import Severity
from convergence.heartbeat import AGE_NONE, AGE_UNITS, NEWCOMER
from convergence.peers import Peer, Word
from convergence.phases import change_view
from convergence.rules import HOST_ID_MAX
from convergence.stages import Phase, Stage
from convergence.state import EMBARGO_PERIODS, FOREVER, NEVER, State

FORGET_PERIODS = 2
"""Times T: a host that is no member is forgotten after this silence."""


def newest_ms(state: State, peer: Peer) -> int:
    """When anybody whose view holds this member heard it last, as far as I know."""
    newest = max(peer.received_ms, *peer.vouched.values(), NEVER)
    own_name = (peer.host_id, peer.code)
    for name, word in state.words.items():
        heard_ms = word.heard_ms(peer, state.death_ms)
        if heard_ms is not None and name != own_name:
            newest = max(newest, heard_ms)
    return newest


def note_word(state: State, witness: Peer) -> None:
    """Remember when this host heard the members that stand in its view.

    Its word made their leases longer, so it counts even if the witness then leaves, dies or is
    restarted.  It takes its word back by dropping a member from its view: that one has let go.
    """
    # Done for every frame, so most often one assignment: among many hosts the cost of a frame is
    # what a convergence waits for.
    name = (witness.host_id, witness.code)
    word = Word(witness.heartbeat, witness.received_ms)
    before = state.words.get(name)
    state.words[name] = word
    if before is None or (before.names == word.names and before.view == word.view):
        return
    dropped, renamed = before.view & ~word.view, before.names ^ word.names
    for peer in state.view.values():
        if dropped & peer.bit:
            peer.vouched.pop(name, None)
        elif renamed >> 8 * peer.index & 0xFF and peer is not witness:
            heard_ms = before.heard_ms(peer, state.death_ms)
            if heard_ms is not None:
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
        if is_in_the_way(state, peer):
            heard_until = state.now_ms
        elif heard_until <= state.now_ms and state.heard.primary.get(peer.host_id) is peer:
            heard_until = newest_ms(state, peer) + state.death_ms
        if heard_until <= state.now_ms:
            dead.append(peer)
        else:
            expiry = min(expiry, heard_until)
    state.expiry_ms = min(expiry, state.now_ms + state.period_ms)
    if state.now_ms >= state.probe_ms:
        orphans.probe(state)
    if dead:
        _lose(state, dead)
    for peer in list(state.view.values()):
        if peer.heartbeat.ages[state.index] == AGE_NONE:
            lose_if_deaf(state, peer)
    _leave_broken_pair(state)
    _forget_silent(state)


def is_in_the_way(state: State, peer: Peer) -> bool:
    """A member that was restarted before it held anything, while members converge.

    They would wait for it in vain, and its next life waits until they have converged.  Not beside
    another newcomer, which lets the next life in at any time: it would be lost and let in for ever.
    """
    if state.phase is Phase.CONVERGED or state.newcomer or not _is_restarted(state, peer):
        return False
    if any(peer.statement.current):
        return False
    newcomers = [one for one in state.view.values() if one.statement.flags & NEWCOMER]
    return newcomers == [peer]


def _lose(state: State, dead: list[Peer]) -> None:
    for peer in dead:
        del state.view[peer.host_id]
        silence_ms = min(state.death_ms, state.now_ms - peer.received_ms)
        text = f"Host {peer.host_id} is lost: no heartbeat for {silence_ms} ms."
        state.log("host-lost", Severity.WARNING, text, host_id=peer.host_id)
        state.lost[peer.host_id, peer.code] = peer
        state.orphans_stale = True
    orphans.probe(state)
    if not state.view and any(peer.heartbeat.ages[state.index] == AGE_NONE for peer in dead):
        # Its last word was that it had not heard me for T x P: it may serve since, and be silent
        # to me alone.
        lease.start_afresh(state, "the last member had not heard this host before it fell silent")
        return
    embargo_ms = EMBARGO_PERIODS * state.period_ms
    # One that was restarted let go, and what is said of the new host may look as if it were about
    # the old.  Of the others I may have missed the last words of who hears them.
    silent = [peer for peer in dead if not _is_restarted(state, peer)]
    by_word = any(newest_ms(state, peer) > peer.received_ms + state.period_ms for peer in silent)
    lately_two = state.now_ms - state.two_view_sent_ms < state.death_ms + embargo_ms
    if by_word or (silent and lately_two):
        state.embargo_until_ms = max(state.embargo_until_ms, state.now_ms + embargo_ms)
    names = ", ".join(str(peer.host_id) for peer in dead)
    change_view(state, f"host {names} lost")


def _is_restarted(state: State, peer: Peer) -> bool:
    """The same machine is heard under another host code."""
    now = state.heard.primary.get(peer.host_id)
    return now is not None and now is not peer and now.is_machine_of(peer)


def lose_if_deaf(state: State, peer: Peer) -> None:
    """A member that hears none of us: go on without it.

    Its age for me is "none" once it has not heard me for T x P.  A member that hears some of us
    but not me is no deaf host but one end of a broken pair.
    """
    others = [other for other in state.view.values() if other is not peer]
    if any(peer.reports(other.index, other.tag) for other in others):
        return
    if not any(_heard_lately(state, other) for other in others):
        # Nobody else hears me either: it is I who is mute, and my lease that must end.
        return
    del state.view[peer.host_id]
    text = f"Host {peer.host_id} does not hear us; the cluster goes on without it."
    state.log("host-does-not-hear-us", Severity.WARNING, text, host_id=peer.host_id)
    change_view(state, f"host {peer.host_id} does not hear us", peer.statement.generation)


def _heard_lately(state: State, witness: Peer) -> bool:
    """It has just said that it has just heard me; older words may be those of a dead host."""
    if not witness.reports(state.index, state.tag):
        return False
    return 2 * _age_ms(state, witness, state.index) <= 5 * state.period_ms


def _age_ms(state: State, witness: Peer, index: int) -> int:
    """How long ago this host, by its newest word, heard the one at that place."""
    age_ms = witness.heartbeat.ages[index] * state.death_ms // AGE_UNITS
    return age_ms + state.now_ms - witness.received_ms


def _leave_broken_pair(state: State) -> None:
    """When I and a lower host id cannot hear each other but another host hears both, I leave.

    The lower one counts when it stands in my view or in that of the host between us: a newcomer
    can let in only one of us, and keeps that one a member for the other.  Waits one and a half
    times T x P, so that a take-over which the pair holds up is done within 2 T x P.  A newcomer
    leaves when it stands in anybody's view: who let it in may be no host between us, and keeps
    that one waiting.
    """
    if state.stage is Stage.LEAVING:
        return
    witnesses = [
        peer
        for peer in state.heard.primary.values()
        if peer.counts
        and peer.reports(state.index, state.tag)
        and state.now_ms - peer.received_ms < state.death_ms
    ]
    if state.newcomer and not any(peer.statement.view & state.bit for peer in witnesses):
        # It holds nobody up: nobody waits for its agreement.
        witnesses = []
    known = state.others
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
    """The host between us still hears this other host, and one of us has it in its view."""
    index = host_id - 1
    age = witness.heartbeat.ages[index]
    known = witness.statement.view | state.others
    if age == AGE_NONE or witness.host_id == host_id or not known >> index & 1:
        return False
    return _age_ms(state, witness, index) < state.death_ms


def _is_broken(state: State, host_id: int) -> bool:
    """I have not heard it for T x P, or it says that it has not heard me for as long.

    A host that I hear and that hears nobody is deaf, and no end of a pair: everybody drops it.
    """
    peer = state.heard.primary.get(host_id)
    if peer is None or state.now_ms - peer.received_ms >= state.death_ms:
        return True
    if not peer.counts or peer.reports(state.index, state.tag):
        return False
    return any(age != AGE_NONE for age in peer.heartbeat.ages)


def _forget_silent(state: State) -> None:
    limit_ms = state.now_ms - FORGET_PERIODS * state.death_ms
    for name in [name for name, word in state.words.items() if word.received_ms < limit_ms]:
        del state.words[name]
    for peer in state.view.values():
        if len(peer.vouched) > HOST_ID_MAX:
            peer.vouched = {one: ms for one, ms in peer.vouched.items() if ms >= limit_ms}
    for known in (state.heard.primary, state.heard.rivals, state.strangers):
        for host_id in [one.host_id for one in known.values() if one.received_ms < limit_ms]:
            if state.view.get(host_id) is not known[host_id]:
                del known[host_id]
    state.recompute_candidates()
