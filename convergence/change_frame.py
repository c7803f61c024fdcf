"""The frame that carries a change of the whole cluster: as long as a heartbeat, same ethertype.

    offset  size  field (little-endian; addresses in network order)
         0     4  "sNLC"
         4     4  version, 1
         8     4  host id of the sender
        12     4  primary cluster IP address
        16     4  dedicated IP address of the sender
        20     4  host code of the sender
        24     1  kind: 1 proposed, 2 staged, 3 refused, 4 aborted
        25     1  host id of the coordinator, who proposed the change
        26     2  length of the body
        28     4  host code of the coordinator
        32     4  number of the change, counted by the coordinator
        36     4  zero
        40     8  sequence number of the sender's newest heartbeat
        48     8  digest of the configuration that the change leads to; zero when refused
        56  1348  body: of a proposal the change itself, which nothing here looks into; of "staged"
                  the handling priority per rule; of a refusal or an abort the reason, UTF-8
      1404     4  key id
      1480    16  HMAC-SHA256, as in a heartbeat

The sequence number is that of the heartbeat which went out just before, so a frame that was
recorded is believed no longer than until the sender's next heartbeat.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from convergence.heartbeat import FRAME_BYTES, KEY_ID_OFFSET, HeartbeatError
from convergence.rules import HOST_ID_MAX

CHANGE_SIGNATURE = b"sNLC"

_HEAD = struct.Struct("<4sII4s4sIBBHIIIQ8s")
_VERSION = 1
BODY_MAX_BYTES = KEY_ID_OFFSET - _HEAD.size


class Kind(IntEnum):
    """What a frame of a change says."""

    PROPOSED = 1
    STAGED = 2
    REFUSED = 3
    ABORTED = 4


@dataclass(frozen=True, slots=True)
class ChangeName:
    """Which change: its coordinator's host id and host code, and a number that it counts."""

    coordinator: int
    code: int
    number: int


@dataclass(frozen=True, slots=True)
class ChangeFrame:
    """One frame.  Addresses are 4 bytes, ``digest`` 8."""

    host_id: int
    cluster_ip_address: bytes
    dedicated_ip_address: bytes
    host_code: int
    kind: Kind
    change: ChangeName
    sequence: int
    digest: bytes
    body: bytes = b""


def encode(frame: ChangeFrame, key_id: int = 0) -> bytes:
    """The 1496 bytes; the MAC is zero until ``auth.sign``.  Raises ValueError for a long body."""
    if len(frame.body) > BODY_MAX_BYTES:
        raise ValueError(f"a change has at most {BODY_MAX_BYTES} bytes")
    head = _HEAD.pack(
        CHANGE_SIGNATURE,
        _VERSION,
        frame.host_id,
        frame.cluster_ip_address,
        frame.dedicated_ip_address,
        frame.host_code,
        frame.kind,
        frame.change.coordinator,
        len(frame.body),
        frame.change.code,
        frame.change.number,
        0,
        frame.sequence,
        frame.digest,
    )
    covered = (head + frame.body).ljust(KEY_ID_OFFSET, b"\0") + key_id.to_bytes(4, "little")
    return covered.ljust(FRAME_BYTES, b"\0")


def decode(payload: bytes) -> ChangeFrame:
    """Bytes that begin with the signature -> meaning.  Raises HeartbeatError and nothing else."""
    if len(payload) != FRAME_BYTES:
        raise HeartbeatError("length", f"{len(payload)} bytes instead of {FRAME_BYTES}")
    (_, version, host_id, cluster, dedicated, host_code, kind, coordinator, length, *rest) = (
        _HEAD.unpack_from(payload)
    )
    code, number, zero, sequence, digest = rest
    if version != _VERSION or zero:
        raise HeartbeatError("version", f"version {version} of a change")
    if not 1 <= host_id <= HOST_ID_MAX or not 1 <= coordinator <= HOST_ID_MAX:
        raise HeartbeatError("host-id", f"host id {host_id} or {coordinator} is not within 1..32")
    if not Kind.PROPOSED <= kind <= Kind.ABORTED or length > BODY_MAX_BYTES:
        raise HeartbeatError("change", f"kind {kind}, {length} bytes")
    return ChangeFrame(
        host_id,
        cluster,
        dedicated,
        host_code,
        Kind(kind),
        ChangeName(coordinator, code, number),
        sequence,
        digest,
        payload[_HEAD.size : _HEAD.size + length],
    )
