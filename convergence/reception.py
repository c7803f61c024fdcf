"""From bytes to a believed heartbeat: every check that comes before any state is touched.

Cheap checks first: shape and cluster, then the MAC, and only then what the frame says.
"""

from convergence import affinity, clients, conflicts, membership, phases, staging, switching
from convergence.auth import Authentication, Verdict
from convergence.change_frame import CHANGE_SIGNATURE
from convergence.events import FrameReceived
from convergence.heartbeat import (
    KEY_ID_OFFSET,
    Foreign,
    Heartbeat,
    HeartbeatError,
    decode_screened,
    screen,
)
from convergence.state import State

HOST_ID_OFFSET = 8
HOST_CODE_OFFSET = 28

_ACCEPTED = (Verdict.VERIFIED, Verdict.UNSIGNED)


def receive(state: State, event: FrameReceived) -> None:
    """Sort a frame: malformed, foreign, another cluster's, unverifiable, mine, replayed, ... or
    a member's or would-be member's heartbeat, which alone goes on to ``membership.hear``."""
    payload = event.payload
    if payload[:4] == CHANGE_SIGNATURE:
        staging.receive(state, event)
        return
    if payload[:4] == clients.SIGNATURE_BYTES:
        _receive_list(state, event)
        return
    try:
        cluster_ip = screen(payload)
        if isinstance(cluster_ip, Foreign):
            if cluster_ip.cluster_ip_address == state.cluster_ip:
                conflicts.strange(state, event, "foreign-host", "Foreign NLB host on this cluster")
            return
        if cluster_ip != state.cluster_ip:
            state.count("other-cluster")
            return
        verdict = state.config.keyring.judge(payload)
        if verdict not in _ACCEPTED:
            _tell_unverifiable(state, event, verdict)
            return
        peer = state.heard.primary.get(payload[HOST_ID_OFFSET])
        frame = decode_screened(payload, peer.heartbeat if peer is not None else None)
    except HeartbeatError as error:
        conflicts.bad_frame(state, event, error.kind, str(error))
        return
    said = frame.statement
    if said.host_id == state.config.host_id and said.host_code in state.own_codes:
        return
    if not _is_fresh(state, frame, verdict):
        conflicts.bad_frame(state, event, "replayed", "its sequence number was seen before")
        return
    received_ms = min(event.received_ms, state.now_ms)
    if state.held_by:
        conflicts.believed(state, said.host_code)
    if said.host_id == state.config.host_id:
        conflicts.duplicate_host_id(state, frame, received_ms, event.source_mac)
    elif said.config_digest != state.config.config_digest or (
        len(said.current) != len(state.rules)
    ):
        _other_configuration(state, frame, received_ms, event.source_mac)
    else:
        membership.hear(state, frame, received_ms, event.source_mac)


def _receive_list(state: State, event: FrameReceived) -> None:
    """A frame of a client list: it counts for one generation, so that a replay says nothing new."""
    try:
        frame = clients.decode(event.payload)
    except HeartbeatError as error:
        conflicts.bad_frame(state, event, error.kind, str(error))
        return
    if frame.head.cluster_ip_address != state.cluster_ip:
        state.count("other-cluster")
        return
    verdict = state.config.keyring.judge(event.payload)
    if verdict not in _ACCEPTED:
        _tell_unverifiable(state, event, verdict)
    elif affinity.hear(state, frame):
        phases.advance(state)


def _other_configuration(
    state: State, frame: Heartbeat, received_ms: int, source_mac: bytes
) -> None:
    """A member in the middle of a change of the whole cluster, or somebody to keep apart from."""
    counted = switching.hear_other(state, frame, received_ms)
    if counted is not None:
        membership.hear(state, counted, received_ms, source_mac)
        return
    winner = conflicts.other_configuration(state, frame, received_ms, source_mac)
    if winner is not None:
        switching.offer(state, winner)


def _is_fresh(state: State, frame: Heartbeat, verdict: Verdict) -> bool:
    said = frame.statement
    return state.replay.is_fresh(
        said.host_id,
        said.host_code,
        frame.sequence,
        verified=verdict is Verdict.VERIFIED,
        enforced=state.config.keyring.authentication is Authentication.ENFORCE,
    )


def _tell_unverifiable(state: State, event: FrameReceived, verdict: Verdict) -> None:
    """Tell a wrong key from a missing one, here and there."""
    named = int.from_bytes(event.payload[KEY_ID_OFFSET : KEY_ID_OFFSET + 4], "little")
    if verdict is Verdict.KEY_MISSING:
        why = "they are not signed"
    elif verdict is Verdict.NO_KEY:
        why = f"they are signed with key {named}, this host has no key"
    elif verdict is Verdict.UNKNOWN_KEY:
        ids = ", ".join(str(key.id) for key in state.config.keyring.keys)
        why = f"they are signed with key {named}, this host has only key {ids}"
    else:
        why = f"key {named} of this host is another one, or they were altered"
    text = f"Heartbeats for this cluster that I cannot verify: {why}"
    code = int.from_bytes(event.payload[HOST_CODE_OFFSET : HOST_CODE_OFFSET + 4], "little")
    known = state.heard.find(event.payload[HOST_ID_OFFSET], code) is not None
    conflicts.strange(state, event, verdict.value, text, code if known else 0)
