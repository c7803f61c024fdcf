"""How long this host may go on accepting without further proof, and when it must start afresh.

Lease = (T - 1) x P after the *older* of

* my last sign of life (any input: the process runs), and
* the sending time of my newest frame that a member is known to have heard.

The others take my buckets T x P after the last frame of mine that any of them heard.  The second
half makes a *mute* host (it hears all, nobody hears it) stop in time.  It counts only while I hear
somebody: a host that hears nobody serves alone, as in NLB.

With two hosts, a host whose only partner died has nobody left who could confirm that it is heard,
and would shut its own service for up to 2 x P before it has noticed the death.  So among exactly
two hosts the lease is 2 x P longer, and the one that is left alone takes the other's buckets
2 x P later (the *embargo*).
"""

from bisect import bisect_right

from convergence.events import Severity
from convergence.heartbeat import AGE_NONE, AGE_UNITS, JOINING, LEAVING, NEWCOMER
from convergence.peers import Peer
from convergence.phases import enter
from convergence.state import EMBARGO_PERIODS, Phase, Stage, State

SENDS_MAX = 1024
LATE_PERIODS = 1.5


def hears_anybody(state: State) -> bool:
    """A host that could serve without me, if it did not hear me, was heard within T x P."""
    return state.now_ms - state.counted_ms < state.death_ms


def heard_until_ms(state: State) -> int:
    """How long being heard goes on to count.

    (T - 1) x P after my newest frame known heard.  2 x P longer when the only other host heard it:
    that one, whether a member or a newcomer, waits as much longer before it serves without me.
    """
    bonus_ms = EMBARGO_PERIODS * state.period_ms
    until = state.known_heard_ms + state.lease_ms + (bonus_ms if state.two_view else 0)
    if not state.others & ~state.newcomer_bit:
        until = max(until, state.newcomer_heard_ms + state.lease_ms + bonus_ms)
    return until


def valid_until_ms(state: State) -> int:
    """The end of the lease as of the present input."""
    until = state.awake_ms + state.lease_ms
    return min(until, heard_until_ms(state)) if hears_anybody(state) else until


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
    state.two_view = False
    state.counted_ms = state.newcomer_heard_ms = -(1 << 60)
    state.expiry_ms = 1 << 62
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
    return not flags & LEAVING and not (flags & JOINING and state.others & ~peer.bit)


def note_counted(state: State, peer: Peer, received_ms: int) -> bool:
    """A host that counts was heard: is there news of whom *it* hears?

    True when this frame proves that I may have been removed: my newest frame known heard is older
    than the others' patience.  Then the caller must start afresh.
    """
    if received_ms - state.counted_ms >= state.death_ms:
        state.known_heard_ms = received_ms
    if received_ms > state.counted_ms:
        state.counted_ms = received_ms
    said = peer.statement
    trusts_me = said.view & state.bit or said.flags & NEWCOMER
    state.two_view = bool(trusts_me) and not (state.others | said.view) & ~(state.bit | peer.bit)
    if not state.newcomer and received_ms >= heard_until_ms(state) + state.period_ms:
        return True
    if said.view & state.bit:
        state.known_heard_ms = max(state.known_heard_ms, _heard_of_me(state, peer, received_ms))
    return False


def note_newcomer(state: State, peer: Peer, received_ms: int) -> None:
    """A newcomer that hears me will not serve without me, though I am not in its view yet."""
    heard_ms = _heard_of_me(state, peer, received_ms)
    if heard_ms > state.newcomer_heard_ms:
        state.newcomer_heard_ms = heard_ms
        state.newcomer_bit = peer.bit


def note_new_host(state: State) -> None:
    """A new host code: it does not know what its predecessor heard, and will not wait longer."""
    state.two_view = False
    state.known_heard_ms = max(state.known_heard_ms, state.newcomer_heard_ms)
    state.newcomer_heard_ms = -(1 << 60)


def _heard_of_me(state: State, peer: Peer, received_ms: int) -> int:
    """When I sent the newest frame that this host surely heard."""
    age = peer.heartbeat.ages[state.index]
    if age != AGE_NONE and peer.heartbeat.tags[state.index] == state.tag:
        # Rounded up: what was heard was sent before the youngest moment that the byte can mean.
        sent_by_ms = received_ms - ((age + 1) * state.death_ms) // AGE_UNITS
        place = bisect_right(state.sends, sent_by_ms)
        if place:
            return state.sends[place - 1]
    return -(1 << 60)


def recount(state: State) -> None:
    """A member went: whom that counts have I heard last?"""
    state.counted_ms = max(
        (peer.received_ms for peer in state.heard.primary.values() if counts(state, peer)),
        default=-(1 << 60),
    )


def note_sent(state: State) -> None:
    """A frame goes out now: a later report may say that it was heard."""
    state.sends.append(state.now_ms)
    if len(state.sends) > SENDS_MAX:
        del state.sends[: SENDS_MAX // 2]
    if state.others and not state.others & (state.others - 1):
        state.two_view_sent_ms = state.now_ms
