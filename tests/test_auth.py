"""Message authentication of heartbeats and the replay rule."""

import hashlib
import hmac
import random
from collections import deque
from dataclasses import replace
from enum import Enum
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convergence.auth import (
    SENDERS_MAX,
    Authentication,
    Key,
    Keyring,
    ReplayGuard,
    Verdict,
    sign,
    verify,
)
from convergence.events import Command, FrameReceived, LogEvent, MapsChanged, SendFrame
from convergence.heartbeat import FRAME_BYTES
from convergence.telling import SOURCES_MAX
from labs.forger import KINDS
from tests.simulator.world import World

KEY = Key(1, bytes(range(32)))
NEW = Key(2, b"n" * 32)
PAYLOAD = bytes(range(256)) * 6
PAYLOAD = PAYLOAD[:FRAME_BYTES]


def enforce(*keys: Key) -> Keyring:
    """The first one signs."""
    return Keyring(keys, Authentication.ENFORCE)


def test_the_mac_is_hmac_sha256_cut_to_16_bytes_over_the_first_1480() -> None:
    signed = sign(PAYLOAD, KEY)
    assert signed[:1480] == PAYLOAD[:1480]
    assert signed[1480:] == hmac.new(KEY.secret, PAYLOAD[:1480], hashlib.sha256).digest()[:16]


def test_a_golden_mac() -> None:
    """So that another implementation can be compared."""
    assert sign(bytes(FRAME_BYTES), KEY)[1480:].hex() == "031d8686fdce4fbed023ada6deb5a8d6"


@given(st.integers(0, FRAME_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    signed = bytearray(sign(PAYLOAD, KEY))
    assert verify(bytes(signed), KEY)
    signed[place] ^= change
    assert not verify(bytes(signed), KEY)


def test_another_secret_does_not_verify() -> None:
    assert not verify(sign(PAYLOAD, KEY), Key(1, b"x" * 32))


def test_a_secret_does_not_show() -> None:
    assert "secret" not in repr(Key(3, b"secret"))


def fresh(guard: ReplayGuard, host_id: int, host_code: int, sequence: int) -> bool:
    return guard.is_fresh(host_id, host_code, sequence, verified=True, enforced=True)


def test_replay_rule() -> None:
    """A sequence number must be above the last of that host code."""
    guard = ReplayGuard()
    assert fresh(guard, 1, 1000, 5)
    assert not fresh(guard, 1, 1000, 5)
    assert not fresh(guard, 1, 1000, 4)
    assert fresh(guard, 1, 1000, 6)
    assert fresh(guard, 1, 2000, 1), "a restarted host counts anew"
    assert not fresh(guard, 1, 1000, 6), "and the old code stays remembered"
    assert fresh(guard, 2, 1000, 1), "another host id is another sender"


def test_replay_memory_is_bounded() -> None:
    guard = ReplayGuard()
    for code in range(SENDERS_MAX + 10):
        assert fresh(guard, 1, code, 1)
        assert fresh(guard, 2, 7, code + 1)
    assert not fresh(guard, 1, SENDERS_MAX + 9, 1)
    assert not fresh(guard, 2, 7, 1), "whoever goes on sending is not forgotten"
    assert fresh(guard, 1, 0, 1), "the longest silent one was"


def test_what_unsigned_frames_claim_is_forgotten_when_signatures_are_enforced() -> None:
    """A forger of the time before must not have shut a member up for ever."""
    guard = ReplayGuard()
    assert guard.is_fresh(1, 1000, 5, verified=True, enforced=False)
    assert guard.is_fresh(1, 1000, 1 << 63, verified=False, enforced=False)
    assert not guard.is_fresh(1, 1000, 6, verified=True, enforced=False)
    assert guard.is_fresh(1, 1000, 6, verified=True, enforced=True)
    assert not guard.is_fresh(1, 1000, 6, verified=True, enforced=True)
    assert not guard.is_fresh(1, 1000, 5, verified=True, enforced=True)


def signed_pair() -> tuple[World, dict[int, list[bytes]]]:
    """Two converged hosts with a key, and every frame that they sent."""
    world = World(1)
    world.keyring = enforce(KEY)
    sent: dict[int, list[bytes]] = {1: [], 2: []}
    world.observers.append(
        lambda _world, host, outputs: sent[host.host_id].extend(
            output.payload for output in outputs if isinstance(output, SendFrame)
        )
    )
    for host_id in (1, 2):
        world.add(host_id)
        world.start(host_id)
    world.run(1000)
    return world, sent


def test_frames_are_signed() -> None:
    _world, sent = signed_pair()
    assert all(verify(payload, KEY) for payload in sent[1] + sent[2])


def test_the_mac_is_checked_before_replay_state_is_touched() -> None:
    """A forged frame with a large sequence number must not shut the real host up."""
    world, sent = signed_pair()
    host = world.hosts[1]
    forged = bytearray(sent[2][-1])
    forged[1396:1404] = b"\xff" * 8
    now_ms = world.now_ms + host.clock_ms
    outputs = host.machine.step(FrameReceived(now_ms, bytes(forged), now_ms, b"\x02" * 6))
    assert not any(isinstance(output, MapsChanged | SendFrame) for output in outputs)
    assert [one.name for one in outputs if isinstance(one, LogEvent)] == ["wrong-key"]
    world.run(3000)
    status = host.machine.status(world.now_ms + host.clock_ms)
    assert [member.host_id for member in status.members] == [1, 2]
    assert status.convergence_count == 1


@pytest.mark.parametrize("age", [1, 5, 12])
def test_a_replayed_frame_changes_nothing(age: int) -> None:
    world, sent = signed_pair()
    host = world.hosts[1]
    now_ms = world.now_ms + host.clock_ms
    before = host.machine.status(now_ms)
    outputs = host.machine.step(FrameReceived(now_ms, sent[2][-age], now_ms, b"\x02" * 6))
    assert not any(isinstance(output, MapsChanged | SendFrame) for output in outputs)
    # That the process runs is a sign of life; nothing else came of the frame.
    after = host.machine.status(now_ms)
    assert replace(after, valid_until_ms=0) == replace(before, valid_until_ms=0)
    assert host.machine.counters == {"replayed": 1}


def test_keys_rotate_without_a_gap() -> None:
    """A host believes its old keys too, so that the active key can move host by host."""
    world = World(1)
    world.add(1, keyring=enforce(KEY, NEW))
    world.add(2, keyring=enforce(NEW, KEY))
    world.start(1)
    world.start(2)
    world.run(1000)
    for host in world.hosts.values():
        status = host.machine.status(world.now_ms + host.clock_ms)
        assert [member.host_id for member in status.members] == [1, 2]


def test_a_host_with_a_key_does_not_believe_one_without() -> None:
    world = World(1)
    world.add(1, keyring=enforce(KEY))
    world.add(2)
    world.start(1)
    world.run(1000)
    world.start(2)
    world.run(3000)
    assert world.hosts[1].machine.counters["key-missing"] > 3
    assert not any(world.hosts[2].plane.current), "a starting host is held back"
    world.command(2, Command.START, force=True)
    world.run(5000)
    assert any(world.hosts[2].plane.current), "force overrides"


OTHER = Key(1, b"another secret under the same id")
STEPS = {
    "none": Keyring(),
    "receive-only": Keyring((KEY, NEW), Authentication.RECEIVE_ONLY),
    "permissive": Keyring((KEY, NEW), Authentication.PERMISSIVE),
    "enforce": Keyring((KEY, NEW), Authentication.ENFORCE),
}


def named(key_id: int) -> bytes:
    """A payload that names this key."""
    return PAYLOAD[:1404] + key_id.to_bytes(4, "little") + PAYLOAD[1408:]


FRAMES = {
    "unsigned": named(0),
    "signed": sign(named(1), KEY),
    "second": sign(named(2), NEW),
    "wrong": sign(named(1), OTHER),
    "swapped": sign(named(2), KEY),
    "unknown": sign(named(3), Key(3, KEY.secret)),
    "stripped": sign(named(1), KEY)[:1480] + bytes(16),
    "renamed": named(0)[:1480] + sign(named(1), KEY)[1480:],
}
VERDICTS = """
frame     none      receive-only  permissive   enforce
unsigned  unsigned  unsigned      unsigned     key-missing
signed    no-key    verified      verified     verified
second    no-key    verified      verified     verified
wrong     no-key    wrong-key     wrong-key    wrong-key
swapped   no-key    wrong-key     wrong-key    wrong-key
unknown   no-key    unknown-key   unknown-key  unknown-key
stripped  no-key    wrong-key     wrong-key    wrong-key
renamed   unsigned  unsigned      unsigned     key-missing
"""


@pytest.mark.parametrize("line", VERDICTS.strip().splitlines()[1:], ids=lambda line: line[:9])
def test_what_each_step_of_a_roll_out_says_of_each_frame(line: str) -> None:
    frame, *verdicts = line.split()
    assert [ring.judge(FRAMES[frame]).value for ring in STEPS.values()] == verdicts


def test_what_a_host_says_it_accepts_agrees_with_what_it_accepts() -> None:
    """For each pair of steps: the frame tells beforehand what the judge says afterwards."""
    rings = [*STEPS.values(), enforce(NEW), enforce(NEW, KEY), enforce(OTHER)]
    for sender in rings:
        key = sender.signing_key
        frame = sign(named(key.id), key) if key else named(0)
        for receiver in rings:
            accepted = receiver.judge(frame) in (Verdict.VERIFIED, Verdict.UNSIGNED)
            assert sender.is_accepted_by(receiver.accepts) is accepted


def test_a_keyring_that_makes_no_sense() -> None:
    for keys, step in [((), "enforce"), ((KEY,), "none"), ((KEY, OTHER), "permissive")]:
        with pytest.raises(ValueError, match="key"):
            Keyring(keys, Authentication(step))
    assert KEY.secret.hex() not in repr(enforce(KEY)) and "\\x1f" not in repr(enforce(KEY))


def test_invented_source_addresses_do_not_fill_the_log() -> None:
    world, sent = signed_pair()
    host = world.hosts[1]
    now_ms = world.now_ms + host.clock_ms
    forged = sent[2][-1][:-1] + b"?"
    told = 0
    for number in range(1000):
        event = FrameReceived(now_ms, forged, now_ms, number.to_bytes(6, "big"))
        told += sum(isinstance(output, LogEvent) for output in host.machine.step(event))
    assert told == SOURCES_MAX
    assert host.machine.counters == {"wrong-key": 1000}


def facts(thing: object) -> object:
    """Everything that an object holds, as plain values that can be compared."""
    if isinstance(thing, dict):
        return {key: facts(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | deque):
        return [facts(one) for one in thing]
    names = [*getattr(thing, "__dict__", {}), *getattr(type(thing), "__slots__", ())]
    if not names or isinstance(thing, Enum | IPv4Address):
        return thing
    return {name: facts(getattr(thing, name)) for name in names}


COUNTED = ("now_ms", "awake_ms", "installed_until_ms", "outputs", "counters", "rarely", "held_by")
"""That the process runs, and that a bad frame came: what a starting host waits for, too."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_frame_changes_nothing_at_a_running_member(kind: str) -> None:
    world, sent = signed_pair()
    machine = world.hosts[1].machine
    now_ms = world.now_ms + world.hosts[1].clock_ms
    chance = random.Random(kind)

    def held() -> object:
        state = facts(machine._state)
        assert isinstance(state, dict)
        return {name: value for name, value in state.items() if name not in COUNTED}

    before = held()
    for _ in range(200):
        bad = KINDS[kind](chance.choice(sent[1] + sent[2]), chance)
        outputs = machine.step(FrameReceived(now_ms, bad, now_ms, b"\x02" * 6))
        assert not any(isinstance(output, MapsChanged | SendFrame) for output in outputs)
    assert held() == before
