"""Hosts that cannot be members: duplicates, other configurations, strangers, foreign NLB hosts.

Who yields holds nothing and stays joining until the other was silent for T x P.  An established
host yields only to a frame that shows that the other hears *it*, so that recorded frames of an
earlier life move nothing.
"""

from convergence.events import FrameReceived, Severity
from convergence.heartbeat import NEWCOMER, Heartbeat, Statement, address
from convergence.lease import give_up, heard_anew, note_stranger, start_afresh
from convergence.peers import Peer
from convergence.stages import Stage
from convergence.state import Holding, State

STRANGE_FRAMES = 3
STRANGE_PERIODS = 2
"""Frames of a stranger over this many gaps of a period hold a starting host back."""


def colon_mac(mac: bytes) -> str:
    """MAC address as text."""
    return mac.hex(":")


def bad_frame(state: State, event: FrameReceived, kind: str, text: str) -> None:
    """Count it, tell it once per source and minute, change nothing."""
    state.count(kind)
    name = f"bad-frame-{kind}"
    if state.rarely.may_tell(name, event.source_mac, state.now_ms):
        source = colon_mac(event.source_mac)
        message = f"Bad heartbeat from {source}: {text}."
        state.log(name, Severity.WARNING, message, source_mac=source)


def strange(
    state: State, event: FrameReceived, kind: str, text: str, claimed_code: int = 0
) -> None:
    """A heartbeat for this cluster that can never be a member's; holds back a starting host.

    ``claimed_code``: the code of a host that was believed, when the frame names it; else 0.
    """
    state.count(kind)
    if state.rarely.may_tell(kind, event.source_mac, state.now_ms):
        source = colon_mac(event.source_mac)
        message = f"{text}, from MAC {source}."
        state.log(kind, Severity.WARNING, message, source_mac=source)
    for name, one in list(state.held_by.items()):
        if state.now_ms - one.last_ms >= state.death_ms:
            del state.held_by[name]
    holding = state.held_by.get((kind, claimed_code))
    if holding is None:
        state.held_by[kind, claimed_code] = Holding(state.now_ms, state.now_ms)
    else:
        holding.last_ms = state.now_ms
        holding.count += 1


def believed(state: State, host_code: int) -> None:
    """This host goes on to send what can be believed: what came in its name was damaged."""
    for name in [name for name in state.held_by if name[1] == host_code]:
        del state.held_by[name]


def held_back(state: State) -> bool:
    """A starting host must wait: it yielded to somebody, or strangers use its cluster."""
    if state.now_ms < state.held_until_ms:
        return True
    if state.forced:
        return False
    for holding in state.held_by.values():
        if state.now_ms - holding.last_ms >= state.death_ms:
            continue
        # Too few to be sure yet: wait until there were three, or T x P without one.
        if holding.count < STRANGE_FRAMES or (
            holding.last_ms - holding.first_ms >= STRANGE_PERIODS * state.period_ms
        ):
            return True
    return False


def give_way(state: State, reason: str) -> None:
    """Hold nothing and stay joining until T x P after the other's last frame."""
    if not state.joining:
        start_afresh(state, reason)
    state.held_until_ms = max(state.held_until_ms, state.now_ms + state.death_ms)


def duplicate_host_id(
    state: State, heartbeat: Heartbeat, received_ms: int, source_mac: bytes
) -> None:
    """A verified heartbeat from my own host id under a code that is not mine."""
    said = heartbeat.statement
    other = state.duplicate
    if other is not None and other.code == said.host_code:
        other.update(heartbeat, received_ms)
    else:
        other = Peer(heartbeat, received_ms, source_mac)
        state.duplicate = other
    mine, theirs = state.config.dedicated_ip_address, address(said.dedicated_ip_address)
    state.log_rarely(
        "duplicate-host-priority",
        source_mac,
        Severity.ERROR,
        f"Duplicate host priority {said.host_id}: {mine} and {theirs} "
        f"(MAC {colon_mac(source_mac)}) both use it.",
        host_id=said.host_id,
        dedicated_ip_addresses=[str(mine), str(theirs)],
        source_mac=colon_mac(source_mac),
    )
    if state.newcomer:
        # Two fresh hosts both yield; an established one goes on.
        give_way(state, "duplicate host priority")
    elif other.reports(state.index, state.tag) and _outranks(
        said, (state.others | state.bit).bit_count(), said.host_code > state.code
    ):
        give_way(state, "duplicate host priority")


def _outranks(said: Statement, members: int, i_win_ties: bool) -> bool:
    """The other one is established too and I yield: fewer members in view, then ``i_win_ties``."""
    if said.flags & NEWCOMER:
        return False
    theirs = said.view.bit_count()
    return theirs > members or (theirs == members and not i_win_ties)


def other_configuration(
    state: State, heartbeat: Heartbeat, received_ms: int, source_mac: bytes
) -> Peer | None:
    """A verified heartbeat of this cluster whose configuration digest differs from mine.

    Returns its sender when this host gives way to it.
    """
    said = heartbeat.statement
    peer = state.strangers.get(said.host_id)
    if peer is not None and peer.code == said.host_code:
        silent = received_ms - peer.received_ms >= state.death_ms
        peer.update(heartbeat, received_ms)
        if silent:
            heard_anew(state, peer)
    else:
        peer = Peer(heartbeat, received_ms, source_mac)
        state.strangers[said.host_id] = peer
        heard_anew(state, peer)
        # Let it know that it is heard: until then its lease runs out.
        state.urgent = True
    state.count("configuration")
    state.log_rarely(
        "configuration-differs",
        source_mac,
        Severity.ERROR,
        f"Host {said.host_id} has another configuration: {_difference(state, said)}.",
        host_id=said.host_id,
        source_mac=colon_mac(source_mac),
    )
    if note_stranger(state, peer, received_ms):
        give_up(state)
    if _yields_to_configuration(state, peer):
        give_way(state, f"host {said.host_id} has another configuration")
        return peer
    return None


def _difference(state: State, said: Statement) -> str:
    """What differs, as far as the frame tells."""
    if len(said.rule_codes) != len(state.rule_codes):
        mine, theirs = len(state.rule_codes) - 1, len(said.rule_codes) - 1
        return f"{theirs} port rules instead of {mine}"
    for slot, (mine, theirs) in enumerate(zip(state.rule_codes, said.rule_codes, strict=True)):
        if mine != theirs:
            return f"port rule {slot + 1} has code {theirs:#010x} instead of {mine:#010x}"
    return "a cluster parameter, or a part of a port rule that its code does not show"


def _yields_to_configuration(state: State, peer: Peer) -> bool:
    """Established before fresh, then the larger group, then the group of the lowest host id."""
    said = peer.statement
    fresh = bool(said.flags & NEWCOMER)
    if state.newcomer != fresh:
        return state.newcomer
    if not state.newcomer:
        if not peer.reports(state.index, state.tag):
            return False
        members = (state.others | state.bit).bit_count()
        return _outranks(said, members, state.config.host_id < said.host_id)
    theirs = {
        one.host_id
        for one in state.strangers.values()
        if one.statement.config_digest == said.config_digest and _alive(state, one)
    }
    mine = {one.host_id for one in state.heard.primary.values() if _alive(state, one)}
    mine.add(state.config.host_id)
    if len(mine) != len(theirs):
        return len(mine) < len(theirs)
    return min(mine) > min(theirs)


def _alive(state: State, peer: Peer) -> bool:
    return state.now_ms - peer.received_ms < state.death_ms


def same_priority(state: State, peer: Peer) -> int | None:
    """The first slot of a single-host rule for which both have one handling priority."""
    weights = state.weights()
    for slot in state.single_host_slots:
        if weights[slot] and weights[slot] == peer.statement.weights[slot]:
            return slot
    return None


def resolve_priorities(state: State, peer: Peer) -> bool:
    """Two hosts with one handling priority on a single-host rule; True when this host yields."""
    slot = same_priority(state, peer)
    if slot is None:
        return False
    said = peer.statement
    state.log_rarely(
        "duplicate-handling-priority",
        peer.source_mac,
        Severity.ERROR,
        f"Host {peer.host_id} has the same handling priority {said.weights[slot]} "
        f"for port rule {slot + 1}.",
        host_id=peer.host_id,
        slot=slot,
    )
    fresh = bool(said.flags & NEWCOMER)
    if state.newcomer and fresh:
        yields = peer.host_id < state.config.host_id
    elif state.newcomer != fresh:
        yields = state.newcomer
    else:
        members = (state.others | state.bit).bit_count()
        i_win_ties = state.config.host_id < peer.host_id
        hears_me = peer.reports(state.index, state.tag)
        yields = hears_me and _outranks(said, members, i_win_ties)
    if yields and state.stage is not Stage.LEAVING:
        give_way(state, f"same handling priority as host {peer.host_id}")
        return True
    return False
