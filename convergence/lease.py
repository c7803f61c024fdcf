"""How long this host may go on accepting without further proof, and when it must start afresh.

Lease = (T - 1) x P after the *older* of

* my last sign of life (any input: the process runs), and
* the sending time of my newest frame that a member is known to have heard.

The others take my buckets T x P after the last frame of mine that any of them heard.  Whatever
counts for me as being heard must count for them, too: they go by the word of every host that has
me in its view, member of theirs or not, gone since or not (``losing``).

The second half makes a *mute* host (it hears all, nobody hears it) stop in time.  It counts only
while I hear somebody: a host that hears nobody serves alone, as in NLB.

With two hosts, a host whose only partner died has nobody left who could confirm that it is heard,
and would shut its own service for up to 2 x P before it has noticed the death.  So among exactly
two hosts the lease is 2 x P longer, and the one that is left alone takes the other's buckets
2 x P later (the *embargo*).
"""

from bisect import bisect_right

from convergence.events import Severity
from convergence.heartbeat import (
    AGE_NONE,
    AGE_UNITS,
    JOINING,
    LEAVING,
    NEWCOMER,
    SEQUENCE_TAG,
)
from convergence.peers import Peer
from convergence.phases import enter
from convergence.stages import Phase, Stage
from convergence.state import EMBARGO_PERIODS, FOREVER, NEVER, State

SENDS_MAX = 1024
LATE_PERIODS = 1.5


def alone(state: State) -> bool:
    """No member beside me, or only one that has been restarted under a new host code."""
    others = state.others
    if not others or others & (others - 1):
        return not others
    return all(state.heard.primary.get(host_id) is not one for host_id, one in state.view.items())


def heard_until_ms(state: State) -> int:
    """How long being heard goes on to count.

    Among members: (T - 1) x P after my newest frame that any of them heard, for they must agree
    before they take what is mine.  2 x P longer when there is only one: it waits as much longer.

    Alone, each host that may come to serve beside me must hear me: a newcomer that does will not
    serve without me, and of two with different configurations one gives way.  One that was only
    just heard has not had the time to tell.
    """
    if not alone(state):
        longer_ms = _bonus_ms(state) if state.two_view else 0
        return state.known_heard_ms + state.lease_ms + longer_ms
    until = FOREVER
    for peer in state.heard.primary.values():
        if state.now_ms - peer.received_ms < state.death_ms and counts(state, peer):
            until = min(until, heard_alone_ms(state, peer) + state.lease_ms)
    for peer in state.strangers.values():
        if state.now_ms - peer.received_ms < state.death_ms and counts(state, peer):
            until = min(until, max(peer.since_ms, peer.heard_me_ms) + state.lease_ms)
    return until


def heard_alone_ms(state: State, peer: Peer) -> int:
    """When this host that is no member heard me, or began: from then on it waits for me."""
    longer_ms = _bonus_ms(state) if _heard_established(state, peer) else 0
    return max(peer.since_ms, peer.heard_me_ms + longer_ms)


def _bonus_ms(state: State) -> int:
    # The remaining three quarters of a period are for frames on their way.
    return EMBARGO_PERIODS * state.period_ms + state.period_ms // 4


def _heard_established(state: State, peer: Peer) -> bool:
    """It heard me as what I am; a newcomer waits no longer than T x P for another newcomer."""
    return peer.heard_me_ms >= state.established_sent_ms


def valid_until_ms(state: State) -> int:
    """The end of the lease as of the present input."""
    return min(state.awake_ms + state.lease_ms, heard_until_ms(state))


def check_clock(state: State, now_ms: int) -> None:
    """First of all, on every input: did my own clock sleep past the lease?"""
    asleep_ms = now_ms - state.awake_ms
    state.awake_ms = state.now_ms = now_ms
    if state.stage is Stage.STOPPED or asleep_ms <= LATE_PERIODS * state.period_ms:
        return
    # The silence that I slept through says nothing about the others.
    state.judge_after_ms = now_ms + state.period_ms
    if asleep_ms > state.lease_ms:
        text = f"This host slept for {asleep_ms} ms, past its lease; it starts afresh."
        state.log("clock-slept", Severity.ERROR, text, asleep_ms=asleep_ms)
        start_afresh(state, "slept past the lease")
    else:
        text = f"This host was not given the processor for {asleep_ms} ms."
        state.log("timer-starvation", Severity.WARNING, text, asleep_ms=asleep_ms)


def start_afresh(state: State, reason: str) -> None:
    """Hold nothing, be a new host under a new host code, and listen again."""
    if state.stage is Stage.LEAVING:
        return
    state.release_all()
    state.new_code(state.next_code())
    listen(state, reason)


def listen(state: State, reason: str) -> None:
    """Begin as a newcomer: flag joining, no member but me, hold nothing."""
    state.listen(True)
    state.newcomer = True
    state.started_ms = state.now_ms
    state.ready = None
    state.target = None
    state.view.clear()
    for peer in (*state.heard.primary.values(), *state.heard.rivals.values()):
        note_told(state, peer)
    state.two_view = False
    state.expiry_ms = FOREVER
    state.agree = state.stable1 = state.stable2 = 0
    if state.phase is not Phase.UNKNOWN:
        enter(state, "forget", reason)
    state.recompute_view()


def counts(state: State, peer: Peer) -> bool:
    """May this host come to serve without me, if it does not hear me?

    One that takes part may.  One that joins will when it hears nobody; but beside members it
    must agree with them, so it counts only while I am alone.
    """
    flags = peer.statement.flags
    return not flags & LEAVING and (not flags & JOINING or alone(state))


def heard_anew(state: State, peer: Peer) -> None:
    """For the first time, or after a long silence: since when could it tell that it hears me?"""
    peer.since_ms = peer.received_ms - peer.heartbeat.listened * state.death_ms // AGE_UNITS
    if peer.statement.flags & NEWCOMER and peer.reports(state.index, state.tag):
        # It tells when it heard me, only I did not hear it: no reason to wait for more.
        peer.since_ms = NEVER


def note_heard(state: State, peer: Peer, received_ms: int) -> bool:
    """A host was heard: is there news of whom *it* hears?

    True when this frame proves that I may have been given up: my newest frame known heard is older
    than the others' patience.  Then the caller must start afresh.
    """
    said = peer.statement
    in_view = said.view & state.bit
    newcomer = said.flags & NEWCOMER
    if newcomer:
        peer.heard_me_ms = max(peer.heard_me_ms, _heard_of_me(state, peer, received_ms))
    if not counts(state, peer):
        return False
    waits = bool(in_view or (newcomer and _heard_established(state, peer)))
    state.two_view = waits and not (state.others | said.view) & ~(state.bit | peer.bit)
    holds = not state.newcomer or any(state.current)
    if holds and received_ms >= heard_until_ms(state) + state.period_ms:
        return True
    # Who dropped me before a newcomer took me into its view has no reason to wait for its word.
    if in_view and (not newcomer or state.view.get(peer.host_id) is peer):
        peer.heard_me_ms = max(peer.heard_me_ms, _heard_of_me(state, peer, received_ms))
        state.known_heard_ms = max(state.known_heard_ms, peer.heard_me_ms)
    return False


def note_stranger(state: State, peer: Peer, received_ms: int) -> bool:
    """Likewise of a host with another configuration: only while I am alone it can prove that."""
    peer.heard_me_ms = max(peer.heard_me_ms, _heard_of_me(state, peer, received_ms))
    if state.newcomer or not alone(state):
        return False
    return received_ms >= heard_until_ms(state) + state.period_ms


def note_next_life(state: State, peer: Peer, received_ms: int) -> None:
    """My only partner was restarted, and its former life is not silent for long enough yet.

    The next life may die before it takes that place: the one after it must know who heard me, but
    no lease becomes longer than it was beside the partner itself.
    """
    partner = state.view.get(peer.host_id)
    both = state.bit | peer.bit
    if partner is None or state.others != peer.bit or partner.statement.view != both:
        return
    if peer.statement.flags & NEWCOMER and peer.is_machine_of(partner):
        heard_ms = _heard_of_me(state, peer, received_ms)
        limit_ms = state.known_heard_ms + _bonus_ms(state)
        partner.next_heard_me_ms = max(partner.next_heard_me_ms, min(heard_ms, limit_ms))


def note_told(state: State, peer: Peer) -> None:
    """Remember whom this host hears: it may serve, and I may not be able to ask it."""
    if state.view.get(peer.host_id) is peer:
        return
    said = peer.statement
    members = 0 if said.flags & NEWCOMER else said.view
    for index, age in enumerate(peer.heartbeat.ages):
        if age != AGE_NONE and index not in (state.index, peer.index):
            heard_ms = peer.received_ms - age * state.death_ms // AGE_UNITS
            state.hinted[index + 1] = max(heard_ms, state.hinted.get(index + 1, NEVER))
            if members >> index & 1:
                state.told[index + 1] = max(heard_ms, state.told.get(index + 1, NEVER))


def give_up(state: State) -> None:
    """Nobody hears me, and somebody may serve or come to serve without me."""
    text = "Nobody hears this host; it drops its buckets and starts afresh."
    state.log("nobody-hears-me", Severity.ERROR, text)
    start_afresh(state, "nobody hears this host")


def no_longer_alone(state: State, admitted: list[Peer]) -> None:
    """Members from now on: what kept my lease while I was alone goes on to count."""
    heard_ms = min(max(peer.since_ms, peer.heard_me_ms) for peer in admitted)
    state.known_heard_ms = max(state.known_heard_ms, heard_ms)
    peer = admitted[0]
    waits = _heard_established(state, peer) or not peer.statement.flags & NEWCOMER
    state.two_view = len(admitted) == 1 and waits


def _heard_of_me(state: State, peer: Peer, received_ms: int) -> int:
    """When I sent the newest frame that this host surely heard.

    The one whose sequence number ends in the bits that it tells, and that was sent before the age
    byte can mean.  The age alone would not do: a process that decides, sleeps and then sends tells
    an old age.
    """
    if not peer.reports(state.index, state.tag):
        return NEVER
    heartbeat = peer.heartbeat
    sent_by_ms = received_ms - heartbeat.ages[state.index] * state.death_ms // AGE_UNITS
    place = bisect_right(state.sends, sent_by_ms) - 1
    sequence = state.sequence - (len(state.sends) - 1 - place)
    place -= (sequence - heartbeat.tags[state.index]) & SEQUENCE_TAG
    return state.sends[place] if place >= 0 else NEVER


def note_sent(state: State) -> None:
    """A frame goes out now: a later report may say that it was heard."""
    state.sends.append(state.now_ms)
    if len(state.sends) > SENDS_MAX:
        del state.sends[: SENDS_MAX // 2]
    if state.newcomer:
        state.established_sent_ms = FOREVER
    elif state.established_sent_ms == FOREVER:
        state.established_sent_ms = state.now_ms
    if state.others and not state.others & (state.others - 1):
        state.two_view_sent_ms = state.now_ms
