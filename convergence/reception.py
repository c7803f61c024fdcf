"""From bytes to a believed heartbeat: every check that comes before any state is touched."""

from convergence import conflicts, membership
from convergence.auth import verify
from convergence.events import FrameReceived
from convergence.heartbeat import Foreign, Heartbeat, HeartbeatError, decode
from convergence.state import State

HOST_ID_OFFSET = 8


def receive(state: State, event: FrameReceived) -> None:
    """Sort a frame: malformed, foreign, another cluster's, unverifiable, mine, replayed, ... or
    a member's or would-be member's heartbeat, which alone goes on to ``membership.hear``."""
    payload = event.payload
    previous = None
    if len(payload) > HOST_ID_OFFSET:
        peer = state.heard.primary.get(payload[HOST_ID_OFFSET])
        if peer is not None:
            previous = peer.heartbeat
    try:
        frame = decode(payload, previous)
    except HeartbeatError as error:
        conflicts.bad_frame(state, event, error.kind, str(error))
        return
    if isinstance(frame, Foreign):
        if frame.cluster_ip_address == state.cluster_ip:
            conflicts.strange(state, event, "foreign-host", "Foreign NLB host on this cluster")
        return
    said = frame.statement
    if said.cluster_ip_address != state.cluster_ip:
        state.count("other-cluster")
        return
    if not _is_authentic(state, event, frame):
        return
    if said.host_id == state.config.host_id and said.host_code in state.own_codes:
        return
    if not state.replay.is_fresh(said.host_id, said.host_code, frame.sequence):
        conflicts.bad_frame(state, event, "replayed", "its sequence number was seen before")
        return
    received_ms = min(event.received_ms, state.now_ms)
    if said.host_id == state.config.host_id:
        conflicts.duplicate_host_id(state, frame, received_ms, event.source_mac)
    elif said.config_digest != state.config.config_digest or (
        len(said.current) != len(state.rules)
    ):
        conflicts.other_configuration(state, frame, received_ms, event.source_mac)
    else:
        membership.hear(state, frame, received_ms, event.source_mac)


def _is_authentic(state: State, event: FrameReceived, frame: Heartbeat) -> bool:
    """The MAC is right under the key that the frame names; without a key, that it names none."""
    config = state.config
    if config.key is None:
        if frame.key_id == 0:
            return True
        text = "Heartbeats for this cluster that I cannot verify (they name a key)"
        conflicts.strange(state, event, "unverifiable", text)
        return False
    for key in (config.key, *config.old_keys):
        if key.id == frame.key_id:
            if verify(event.payload, key):
                return True
            break
    text = "Heartbeats for this cluster that I cannot verify"
    conflicts.strange(state, event, "unverifiable", text)
    return False
