"""Bad heartbeats: damaged, forged, recorded and foreign ones, at a steady bounded rate.

Everything here runs inside a node of a lab.
"""

import random
import select
import socket
import time
from collections.abc import Callable

from convergence.heartbeat import (
    CLUSTER_IP_OFFSET,
    ETHERTYPE,
    EXTENSION_OFFSET,
    FRAME_BYTES,
    KEY_ID_OFFSET,
    MAC_OFFSET,
    SEQUENCE_OFFSET,
)
from labs.topology import CLUSTER_NETWORK

VARIANTS = 256
HEADER_BYTES = 14
TICK_S = 0.002

Variant = Callable[[bytes, random.Random], bytes]


def _replace(frame: bytes, offset: int, new: bytes) -> bytes:
    return frame[:offset] + new + frame[offset + len(new) :]


def forged(frame: bytes, chance: random.Random) -> bytes:
    """The right key id, a higher sequence number, other maps, a MAC out of thin air."""
    frame = _replace(frame, SEQUENCE_OFFSET, chance.randbytes(8))
    frame = _replace(frame, 176, chance.randbytes(7))
    return _replace(frame, MAC_OFFSET, chance.randbytes(FRAME_BYTES - MAC_OFFSET))


def replayed(frame: bytes, _: random.Random) -> bytes:
    """As it was recorded."""
    return frame


def truncated(frame: bytes, chance: random.Random) -> bytes:
    """Its first bytes only."""
    return frame[: chance.randrange(46, FRAME_BYTES)]


def foreign(frame: bytes, chance: random.Random) -> bytes:
    """NLB's own heartbeat, without our extension, or another cluster's heartbeat."""
    if chance.random() < 0.5:
        return _replace(frame, EXTENSION_OFFSET, bytes(FRAME_BYTES - EXTENSION_OFFSET))
    return _replace(frame, CLUSTER_IP_OFFSET, CLUSTER_NETWORK[chance.randrange(1, 250)].packed)


def unsigned(frame: bytes, _: random.Random) -> bytes:
    """Without key id and MAC."""
    return _replace(_replace(frame, KEY_ID_OFFSET, bytes(4)), MAC_OFFSET, bytes(16))


def noise(frame: bytes, chance: random.Random) -> bytes:
    """The signature and the cluster IP address, then random bytes."""
    return frame[:16] + chance.randbytes(FRAME_BYTES - 16)


KINDS: dict[str, Variant] = {
    kind.__name__: kind for kind in (forged, replayed, truncated, foreign, unsigned, noise)
}


def record(seconds: float) -> list[bytes]:
    """The heartbeats, without Ethernet header, that come to this node."""
    frames = []
    until_s = time.monotonic() + seconds
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETHERTYPE)) as ear:
        ear.bind(("eth0", ETHERTYPE))
        while (left_s := until_s - time.monotonic()) > 0:
            if select.select([ear], [], [], left_s)[0]:
                frames.append(ear.recv(FRAME_BYTES + 1))
    return frames


def flood(kind: str, frames: list[bytes], target: bytes, count: int, rate: float) -> float:
    """Send ``count`` bad frames, made of recorded ones, to the MAC address ``target``.

    At ``rate`` frames per second, or as fast as this node can; returns the seconds it took.
    """
    chance = random.Random(kind)
    header = target + b"\x02bad!!" + ETHERTYPE.to_bytes(2, "big")
    variants = [header + KINDS[kind](chance.choice(frames), chance) for _ in range(VARIANTS)]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as mouth:
        mouth.bind(("eth0", 0))
        return paced(lambda number: mouth.send(variants[number % VARIANTS]), count, rate)


def paced(send: Callable[[int], object], count: int, rate: float) -> float:
    """Call ``send`` with 0 to ``count`` - 1, at ``rate`` per second or as fast as this node can.

    Returns the seconds it took.
    """
    began_s = time.monotonic()
    sent = 0
    while sent < count:
        due = min(count, int((time.monotonic() - began_s) * rate) + 1)
        for number in range(sent, due):
            send(number)
        sent = max(sent, due)
        select.select([], [], [], TICK_S)
    return time.monotonic() - began_s
