"""What leaves the machine: maps to install, leases, frames, and the answer to a query."""

from operator import and_

from convergence import affinity, lease, orphans, staging
from convergence.auth import sign
from convergence.events import (
    HostState,
    LeaseRenewed,
    MapsChanged,
    MemberStatus,
    SendFrame,
    Status,
)
from convergence.heartbeat import (
    AGE_NONE,
    AGE_UNITS,
    LISTENED_MAX,
    SEQUENCE_TAG,
    Heartbeat,
    Statement,
    address,
    encode,
    pack_statement,
)
from convergence.heartbeat import DRAINING as DRAINING_FLAG
from convergence.membership import silent_enough
from convergence.peers import Peer
from convergence.rules import HOST_ID_MAX
from convergence.stages import Phase, Stage
from convergence.state import TRIGGER_GAP_MS, State

_NO_AGES = bytes((AGE_NONE,)) * HOST_ID_MAX


def finish(state: State, heard: bool) -> None:
    """After every input: first what must be installed, then what must be said.

    A frame that was heard is answered by the Tick that is due then: after all frames that wait,
    and after what time has done meanwhile.  Each frame of mine costs all the others, and among many
    hosts on few processors it is frames that the rounds of a convergence wait for.
    """
    if not heard and (state.orphans_stale or state.now_ms >= state.orphans_due_ms):
        orphans.recompute(state)
    install(state)
    if state.stage is Stage.STOPPED or heard:
        return
    affinity.finish(state)
    due = state.now_ms >= state.next_send_ms
    if due or (state.urgent and state.now_ms - state.last_send_ms >= TRIGGER_GAP_MS):
        send(state)


def install(state: State) -> None:
    """What the data plane accepts from now on, where that changed."""
    stopped = state.stage is Stage.STOPPED
    draining = state.stage is Stage.DRAINING
    claimed = tuple(state.affinity.claimed)
    orphan = tuple(map(and_, state.orphan, state.current))
    maps = (tuple(state.current), orphan, (draining,), claimed)
    until_ms = state.now_ms if stopped else lease.valid_until_ms(state)
    if maps != state.installed:
        state.installed = maps
        state.installed_until_ms = until_ms
        state.outputs.append(MapsChanged(maps[0], maps[1], draining, until_ms, claimed))
    elif not stopped and until_ms != state.installed_until_ms:
        # A longer lease is told when it is worth it, a shorter one at once.
        gained_ms = until_ms - state.installed_until_ms
        ends_soon = state.installed_until_ms - state.now_ms < state.period_ms // 2
        if gained_ms < 0 or ends_soon or gained_ms >= state.period_ms // 2:
            state.installed_until_ms = until_ms
            state.outputs.append(LeaseRenewed(until_ms))


def send(state: State) -> None:
    """Send my frame now, and again one period later at the latest."""
    statement = state.statement
    if statement is None:
        statement = state.statement = pack_statement(_statement(state))
    state.sequence += 1
    ages = bytearray(_NO_AGES)
    tags = bytearray(HOST_ID_MAX)
    now_ms, death_ms = state.now_ms, state.death_ms
    heard = state.heard.primary
    if state.strangers or state.duplicate:
        # Hosts that cannot be members must know that they are heard, too: one of us yields.
        known = {peer.index: peer for peer in heard.values()}
        for peer in state.strangers.values():
            former = heard.get(peer.host_id)
            if former is None or _is_over(state, former, peer):
                known[peer.index] = peer
        if state.duplicate:
            known[state.index] = state.duplicate
        heard = known
    for peer in heard.values():
        age_ms = now_ms - peer.received_ms
        if age_ms < death_ms:
            index = peer.index
            ages[index] = age_ms * AGE_UNITS // death_ms
            tags[index] = peer.tag | peer.heartbeat.sequence & SEQUENCE_TAG
    keyring = state.config.keyring
    key = keyring.signing_key
    heartbeat = Heartbeat(
        statement,
        state.sequence,
        bytes(ages),
        bytes(tags),
        key.id if key else 0,
        accepts=keyring.accepts,
        listened=_listened(state) if state.newcomer else 0,
    )
    payload = encode(heartbeat)
    state.outputs.append(SendFrame(sign(payload, key) if key else payload))
    lease.note_sent(state)
    staging.say(state)
    if now_ms >= state.next_send_ms:
        state.next_send_ms = now_ms + state.period_ms
    else:
        # All answer a change at the same moment: spread the periodic frames over the period, so
        # that somebody reports soon after each of mine that it was heard.
        members = state.members
        share = members.index(state.config.host_id) + 1
        state.next_send_ms = now_ms + state.period_ms * share // len(members)
    state.urgent = False
    state.last_send_ms = now_ms
    state.said_generation = state.generation


def _is_over(state: State, former: Peer, stranger: Peer) -> bool:
    """What this host id said by my configuration says nothing any more of one that has another.

    Not of a member: my word that it is heard would keep it one for others, and theirs for me, for
    as long as it serves by its own rules.
    """
    is_member = state.view.get(former.host_id) is former
    return not is_member and silent_enough(state, former, stranger)


def _listened(state: State) -> int:
    """For how long I have been new at the end of this unit of age; at most what a frame can say."""
    units = (state.now_ms - state.started_ms) * AGE_UNITS // state.death_ms + 1
    return min(units, LISTENED_MAX)


def _statement(state: State) -> Statement:
    nothing = (0,) * len(state.rules)
    return Statement(
        host_id=state.config.host_id,
        cluster_ip_address=state.cluster_ip,
        dedicated_ip_address=state.config.dedicated_ip_address.packed,
        host_code=state.code,
        default_host_id=state.default_host_id or state.config.host_id,
        rule_codes=state.rule_codes,
        current=tuple(state.current),
        new=tuple(state.target) if state.target is not None else nothing,
        idle=tuple(state.idle),
        ready=tuple(state.ready) if state.ready is not None else nothing,
        weights=state.weights(),
        phase=state.phase,
        flags=state.flags,
        generation=state.generation,
        view=state.others | state.bit,
        view_digest=state.view_digest,
        config_digest=state.config.config_digest,
    )


def next_deadline_ms(state: State) -> int:
    """When the machine wants a Tick at the latest."""
    if state.stage is Stage.STOPPED:
        return state.now_ms + state.death_ms
    deadline = min(state.next_send_ms, state.expiry_ms, affinity.next_deadline_ms(state))
    if state.urgent:
        deadline = min(deadline, state.last_send_ms + TRIGGER_GAP_MS)
    if state.orphans_stale:
        return state.now_ms
    # Shortly before the lease ends: what held it back may have ceased to count.
    lease_ends_ms = state.installed_until_ms
    if lease_ends_ms - state.period_ms // 4 > state.now_ms:
        deadline = min(deadline, lease_ends_ms - state.period_ms // 4)
    elif lease_ends_ms > state.now_ms:
        deadline = min(deadline, lease_ends_ms)
    if state.embargo_until_ms > state.now_ms:
        deadline = min(deadline, state.embargo_until_ms)
    if state.stage in (Stage.STOPPING, Stage.LEAVING):
        deadline = min(deadline, state.stop_by_ms)
    if state.admit_by_ms is not None and not state.joining and state.stage is not Stage.LEAVING:
        deadline = min(deadline, state.admit_by_ms)
    return max(deadline, state.now_ms)


def status(state: State, now_ms: int) -> Status:
    """All that a query shows."""
    members: list[MemberStatus] = []
    signing = state.config.keyring.signing_key
    if state.stage is not Stage.STOPPED:
        members.append(
            MemberStatus(
                state.config.host_id,
                state.code,
                state.config.dedicated_ip_address,
                state.phase.label,
                state.draining,
                0,
                state.weights(),
                tuple(state.current),
                signing.id if signing else 0,
            )
        )
    for peer in state.view.values():
        said = peer.statement
        members.append(
            MemberStatus(
                peer.host_id,
                peer.code,
                address(said.dedicated_ip_address),
                Phase(said.phase).label,
                bool(said.flags & DRAINING_FLAG),
                now_ms - peer.received_ms,
                said.weights,
                said.current,
                peer.heartbeat.key_id,
            )
        )
    members.sort(key=lambda member: member.host_id)
    return Status(
        state.config.host_id,
        host_state(state),
        state.phase.label,
        state.generation,
        state.default_host_id,
        tuple(members),
        state.convergence_count,
        state.last_converged_ms,
        tuple(state.history),
        tuple(rule.value for rule in state.rule_states),
        state.installed_until_ms,
    )


def host_state(state: State) -> HostState:
    """What `softnlb query` calls the stage and phase of this host."""
    if state.stage is Stage.STOPPED:
        return HostState.STOPPED
    if state.stage is not Stage.STARTED:
        return HostState.DRAINING
    return HostState.CONVERGED if state.phase is Phase.CONVERGED else HostState.CONVERGING
