"""A heartbeat in words, for `softnlb decode` and for the comments of captures."""

from typing import Any

from convergence import clients
from convergence.heartbeat import (
    AGE_NONE,
    DRAINING,
    JOINING,
    LEAVING,
    NEWCOMER,
    Heartbeat,
    Statement,
    address,
)
from convergence.rules import ALL_BUCKETS
from convergence.stages import Phase

_FLAGS = ((JOINING, "joining"), (DRAINING, "draining"), (LEAVING, "leaving"))


def ranges(numbers: int) -> str:
    """The bits of a map as text: "0-14, 20"; "none" and "all" for the empty and the full one."""
    if not numbers:
        return "none"
    if numbers == ALL_BUCKETS:
        return "all"
    parts, first = [], -1
    for bit in range(numbers.bit_length() + 1):
        if numbers >> bit & 1:
            first = bit if first < 0 else first
        elif first >= 0:
            parts.append(str(first) if first == bit - 1 else f"{first}-{bit - 1}")
            first = -1
    return ", ".join(parts)


def state_of(said: Statement) -> str:
    """What a heartbeat says of its sender, in the words of ``softnlb query``."""
    for flag, word in _FLAGS:
        if said.flags & flag:
            return word
    return "converged" if said.phase == Phase.CONVERGED else "converging"


def members_of(view: int) -> list[int]:
    """Host ids in a view."""
    return [bit + 1 for bit in range(view.bit_length()) if view >> bit & 1]


def heard_by(heartbeat: Heartbeat) -> list[int]:
    """Host ids that the sender has heard of late."""
    return [index + 1 for index, age in enumerate(heartbeat.ages) if age != AGE_NONE]


def facts(heartbeat: Heartbeat) -> dict[str, Any]:
    """Everything that a reader may want, as JSON carries it."""
    said = heartbeat.statement
    return {
        "host_id": said.host_id,
        "cluster_ip_address": str(address(said.cluster_ip_address)),
        "dedicated_ip_address": str(address(said.dedicated_ip_address)),
        "state": state_of(said),
        "phase": Phase(said.phase).label,
        "members": members_of(said.view),
        "heard": heard_by(heartbeat),
        "default_host": said.default_host_id,
        "generation": said.generation,
        "sequence": heartbeat.sequence,
        "newcomer": bool(said.flags & NEWCOMER),
        "rules": [
            {"accepts": ranges(current), "will_accept": ranges(new), "weight": weight}
            for current, new, weight in zip(said.current, said.new, said.weights, strict=True)
        ],
        "key_id": heartbeat.key_id,
    }


def list_facts(payload: bytes) -> dict[str, Any]:
    """A frame of a client list.  Raises HeartbeatError."""
    frame = clients.decode(payload)
    return {
        "host_id": frame.head.host_id,
        "client_list": frame.head.serial,
        "generation": frame.head.generation,
        "frame": frame.number + 1,
        "frames": frame.frames,
        "clients": len(frame.keys),
    }


def list_words(known: dict[str, Any]) -> str:
    """The same as a line."""
    text = f"client list {known['client_list']} of host {known['host_id']}"
    return f"{text}, frame {known['frame']} of {known['frames']}: {known['clients']} clients"


def words(heartbeat: Heartbeat) -> str:
    """One line: who, how it is, whom it knows, what it accepts."""
    said = heartbeat.statement
    members = " ".join(str(host_id) for host_id in members_of(said.view))
    text = f"heartbeat of host {said.host_id}: {state_of(said)}"
    if said.phase not in (Phase.CONVERGED, Phase.UNKNOWN):
        text += f" ({Phase(said.phase).label})"
    text += f", members {members}, default host {said.default_host_id}"
    last = len(said.current) - 1
    for slot, current in enumerate(said.current):
        name = "default rule" if slot == last else f"rule {slot + 1}"
        if slot < last or current:
            count = current.bit_count()
            text += f"; {name}: {count} bucket{'s' if count != 1 else ''}"
            if 0 < count < 60:
                text += f" ({ranges(current)})"
        if said.new[slot] not in (0, current):
            text += f", will have {said.new[slot].bit_count()}"
    if heartbeat.key_id:
        text += f"; authenticated with key {heartbeat.key_id}"
    return text
