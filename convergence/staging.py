"""A change of the whole cluster: staged by every member, then switched to in one generation.

The *coordinator*, the host where the operator is, proposes.  Every member applies the change to its
own configuration, keeps the result durably beside the present one, and shows the digest.  When all
members of the coordinator's view have shown the digest that the coordinator shows, it switches:
generation + 1, with the new configuration digest in its heartbeats.  A member that has staged a
configuration and hears a member serve by it switches too.

Only the coordinator decides.  So an abort is final at once: nobody else ever begins to switch.
What a host has staged it keeps: one that missed the end (dead, parted, restarted) meets a cluster
with another configuration digest, gives way as every such host does, and goes over to the
configuration that it has kept.  One that has kept no such configuration stays outside.
"""

from dataclasses import replace

from convergence import conflicts, phases, switching
from convergence.auth import Verdict, sign
from convergence.change import Change
from convergence.change_frame import (
    BODY_MAX_BYTES,
    ChangeFrame,
    ChangeName,
    Kind,
    decode,
    encode,
)
from convergence.events import (
    ChangeProposed,
    ChangeStaged,
    CommandError,
    ConfigurationRecalled,
    FrameReceived,
    SendFrame,
    Severity,
    StageChange,
)
from convergence.heartbeat import HeartbeatError
from convergence.rules import FilteringMode
from convergence.stages import Phase, Stage
from convergence.state import HostConfig, State

# ---------------------------------------------------------------- orders and answers of the agent


def propose(state: State, event: ChangeProposed) -> None:
    """Be the coordinator of this change.  Raises CommandError and changes nothing."""
    if state.stage is not Stage.STARTED or state.joining or state.newcomer:
        raise CommandError("only a host that has converged can change the cluster")
    present = state.staging.change
    if present is not None and not present.aborted:
        raise CommandError(f"host {present.name.coordinator} is changing the cluster already")
    if len(event.change) > BODY_MAX_BYTES:
        raise CommandError(f"the change takes {len(event.change)} of {BODY_MAX_BYTES} bytes")
    state.staging.number += 1
    name = ChangeName(state.config.host_id, state.code, state.staging.number)
    change = Change(name, event.change, event.until_ms, state.now_ms, participants=state.others)
    state.staging.change = change
    state.outputs.append(StageChange(name, event.change))


def staged(state: State, event: ChangeStaged) -> None:
    """The agent has staged what ``StageChange`` asked for, or says why not."""
    change = state.staging.change
    mine, config = state.config, event.config
    if change is None or change.name != event.change or change.aborted:
        _keep_late(state, config)
        return
    is_coordinator = change.name.coordinator == mine.host_id
    if config is None:
        change.refusal = event.refusal or "no reason given"
    elif (mine.period_ms, mine.tolerance) != (config.period_ms, config.tolerance):
        change.refusal = "the timers of a running cluster cannot change (BAD_PARAMS)"
    elif config.config_digest == mine.config_digest:
        change.refusal = "it changes nothing that the hosts share (ALREADY)"
    elif not is_coordinator and config.config_digest != change.digest:
        change.refusal = "the change leads to another configuration here than on the coordinator"
    else:
        change.config = config
        change.digest = config.config_digest
        state.staging.staged = change.digest
        state.staging.keep(change.digest, config)
    state.urgent = True
    if is_coordinator and change.refusal:
        _abort(state, change, change.refusal)
        return
    _tell_staged(state, change, is_coordinator)


def _keep_late(state: State, config: HostConfig | None) -> None:
    """The change is over here, but what it leads to is on the disk now: others may switch to it."""
    mine = state.config
    if config is None or config.config_digest == mine.config_digest:
        return
    if (mine.period_ms, mine.tolerance) == (config.period_ms, config.tolerance):
        state.staging.keep(config.config_digest, config)


def _tell_staged(state: State, change: Change, is_coordinator: bool) -> None:
    coordinator, digest = change.name.coordinator, change.digest.hex()
    severity = Severity.INFO
    if change.refusal:
        name, severity = "change-refused", Severity.WARNING
        text = f"Change of host {coordinator} refused: {change.refusal}."
    elif is_coordinator:
        name, text = "change-proposed", f"Change of the whole cluster proposed: digest {digest}."
    else:
        name, text = "change-staged", f"Change of host {coordinator} staged: digest {digest}."
    state.log(name, severity, text, coordinator=coordinator, digest=digest)


def recalled(state: State, event: ConfigurationRecalled) -> None:
    """The agent has read a kept configuration; the next frame of those who serve by it counts."""
    if event.config.config_digest in state.staging.kept:
        state.staging.kept[event.config.config_digest] = event.config


# ---------------------------------------------------------------- frames


def receive(state: State, event: FrameReceived) -> None:
    """A frame of a change: believed when the sender's newest heartbeat is, and from a member."""
    payload = event.payload
    try:
        frame = decode(payload)
    except HeartbeatError as error:
        conflicts.bad_frame(state, event, error.kind, str(error))
        return
    if frame.cluster_ip_address != state.cluster_ip:
        state.count("other-cluster")
        return
    if state.config.keyring.judge(payload) not in (Verdict.VERIFIED, Verdict.UNSIGNED):
        state.count("change-not-verified")
        return
    peer = state.view.get(frame.host_id)
    if peer is None or peer.code != frame.host_code or state.joining:
        return
    if peer.heartbeat.sequence != frame.sequence:
        state.count("change-late")
        return
    if frame.kind in (Kind.PROPOSED, Kind.ABORTED):
        if (frame.change.coordinator, frame.change.code) == (peer.host_id, peer.code):
            _hear_coordinator(state, frame)
    elif frame.change.coordinator == state.config.host_id:
        _hear_answer(state, frame)


def _hear_coordinator(state: State, frame: ChangeFrame) -> None:
    change = state.staging.change
    if change is not None and (change.aborted or _is_over(change, frame.change)):
        change = None
    if frame.kind is Kind.ABORTED:
        if change is not None and change.name == frame.change:
            _forget(state, _printable(frame.body))
        return
    if change is None:
        change = Change(frame.change, frame.body, heard_ms=state.now_ms, digest=frame.digest)
        state.staging.change = change
        state.outputs.append(StageChange(frame.change, frame.body))
    elif change.name == frame.change:
        change.heard_ms = state.now_ms
    else:
        busy = f"host {change.name.coordinator} is changing the cluster already"
        _send(state, Kind.REFUSED, frame.change, body=busy.encode())


def _printable(body: bytes) -> str:
    """Words of another host for a terminal: nothing in them may steer it."""
    text = body.decode(errors="replace")
    return "".join(one if one.isprintable() else "?" for one in text)


def _is_over(change: Change, other: ChangeName) -> bool:
    """The same coordinator has begun another change since; its abort of the first was lost.

    Not while the agent is at work on the first: proposals in quick succession are not its burden.
    """
    answered = change.config is not None or bool(change.refusal)
    same = change.name == replace(other, number=change.name.number)
    return answered and same and change.name.number < other.number


def _hear_answer(state: State, frame: ChangeFrame) -> None:
    change = state.staging.change
    if change is None or change.name != frame.change or change.aborted:
        return
    if frame.kind is Kind.REFUSED:
        _abort(state, change, f"host {frame.host_id} refuses: {_printable(frame.body)}")
    else:
        change.answers[frame.host_id, frame.host_code] = frame.digest, frame.body
        go_on(state)


def say(state: State) -> None:
    """After each heartbeat: what this host has to say about a change."""
    change = state.staging.change
    if change is None:
        return
    if change.aborted:
        _send(state, Kind.ABORTED, change.name, body=change.aborted.encode()[:BODY_MAX_BYTES])
    elif change.name.coordinator == state.config.host_id:
        if change.config is None:
            return
        _send(state, Kind.PROPOSED, change.name, change.digest, change.body)
    elif change.refusal:
        _send(state, Kind.REFUSED, change.name, body=change.refusal.encode()[:BODY_MAX_BYTES])
    elif change.config is not None:
        _send(state, Kind.STAGED, change.name, change.digest, priorities(change.config))


def _send(
    state: State, kind: Kind, name: ChangeName, digest: bytes = bytes(8), body: bytes = b""
) -> None:
    config = state.config
    dedicated = config.dedicated_ip_address.packed
    frame = ChangeFrame(
        config.host_id,
        state.cluster_ip,
        dedicated,
        state.code,
        kind,
        name,
        state.sequence,
        digest,
        body,
    )
    key = config.keyring.signing_key
    payload = encode(frame, key.id if key else 0)
    state.outputs.append(SendFrame(sign(payload, key) if key else payload))


def priorities(config: HostConfig) -> bytes:
    """Per rule the handling priority of a single-host rule, 0 of others."""
    return bytes(
        priority if rule.filtering_mode is FilteringMode.SINGLE_HOST else 0
        for rule, priority in zip(config.rules, config.handling_priorities, strict=True)
    )


# ---------------------------------------------------------------- deciding


def go_on(state: State) -> None:
    """On every tick and answer: decide, abort, or forget a change that nobody speaks of."""
    change = state.staging.change
    if change is None:
        return
    if change.aborted or change.name.coordinator != state.config.host_id:
        if state.now_ms - change.heard_ms >= state.death_ms:
            _forget(state, "its coordinator says nothing more")
        return
    if state.stage is not Stage.STARTED or change.name.code != state.code:
        _abort(state, change, "its coordinator left the cluster")
        return
    lost = change.participants & ~state.others
    if lost:
        names = ", ".join(str(index + 1) for index in range(32) if lost >> index & 1)
        _abort(state, change, f"host {names} was lost meanwhile")
        return
    waited = missing(state)
    if state.now_ms >= change.until_ms:
        names = ", ".join(map(str, waited))
        late = f"host {names} did not stage it" if waited else "the cluster did not converge"
        if change.config is None:
            late = "this host did not stage it"
        _abort(state, change, f"time-out: {late} (TIMEOUT)")
    elif not waited and state.phase is Phase.CONVERGED and change.config is not None:
        clash = _same_priority(state, change, change.config)
        if clash:
            _abort(state, change, clash)
            return
        switching.switch(state, change.config, "all members staged a change", state.generation + 1)
        phases.advance(state)


def missing(state: State) -> list[int]:
    """Members that have not staged the change that this host proposed."""
    change = state.staging.change
    if change is None or change.aborted:
        return []
    return [
        peer.host_id
        for peer in sorted(state.view.values(), key=lambda one: one.host_id)
        if change.answers.get((peer.host_id, peer.code), (b"",))[0] != change.digest
    ]


def _same_priority(state: State, change: Change, config: HostConfig) -> str:
    """Two hosts that would have one handling priority for a single-host rule, as a sentence."""
    said = {state.config.host_id: priorities(config)}
    said |= {host_id: numbers for (host_id, _), (_, numbers) in change.answers.items()}
    for slot in range(len(config.rules)):
        found: dict[int, int] = {}
        for host_id in sorted(said):
            priority = said[host_id][slot] if slot < len(said[host_id]) else 0
            if priority and priority in found:
                return (
                    f"port_rule[{slot + 1}].handling_priority = {priority} on host "
                    f"{found[priority]} and on host {host_id} (BAD_PORT_PARAMS)"
                )
            found[priority] = host_id
    return ""


def _abort(state: State, change: Change, reason: str) -> None:
    change.aborted = reason
    change.heard_ms = state.now_ms
    state.staging.outcome = change.name, reason
    digest = change.digest.hex()
    text = f"Change of the whole cluster aborted: {reason}."
    state.log("change-aborted", Severity.WARNING, text, digest=digest, reason=reason)
    state.urgent = True


def _forget(state: State, reason: str) -> None:
    change = state.staging.change
    state.staging.change = None
    if change is not None and not change.aborted:
        coordinator = change.name.coordinator
        text = f"Change of host {coordinator} not made: {reason}."
        state.log("change-ended", Severity.INFO, text, coordinator=coordinator, reason=reason)
