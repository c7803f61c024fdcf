"""Extended affinity in the protocol: lists on the wire, and at most one host per client."""

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from convergence import affinity, clients
from convergence.auth import Key, sign
from convergence.clients import EXCEPTIONS_MAX, ListFrame, ListHead
from convergence.events import (
    ClientsListed,
    Command,
    ForgetClients,
    HostState,
    IdleScanned,
    ListClients,
    LogEvent,
)
from convergence.heartbeat import FRAME_BYTES, HeartbeatError
from convergence.rules import ALL_BUCKETS, Affinity, FilteringMode, PortRule
from convergence.state import State
from tests.fuzz.mutate import mutate
from tests.simulator.episode import Episode
from tests.simulator.faults import options
from tests.simulator.ownership import OneServer
from tests.simulator.world import STICKY, Host, World, bits_of, keys_of

HEAD = ListHead(2, bytes((10, 1, 0, 100)), bytes((10, 1, 0, 2)), 77, 5, 3, 1 << 63, b"digested")
SIX = bytes((1,)) + bytes.fromhex("20010db8000000000000000000000201")


# ---------------------------------------------------------------- which rules


def test_a_time_out_means_something_where_nlb_gives_it_a_meaning() -> None:
    def remembers(mode: FilteringMode, kind: Affinity, timeout_min: int) -> bool:
        rule = PortRule(None, 80, 80, filtering_mode=mode, affinity=kind, timeout_min=timeout_min)
        return rule.remembers_clients

    multiple = FilteringMode.MULTIPLE_HOSTS
    assert remembers(multiple, Affinity.SINGLE, 1) and remembers(multiple, Affinity.NETWORK, 240)
    assert not remembers(multiple, Affinity.SINGLE, 0)
    assert not remembers(multiple, Affinity.NONE, 20)
    assert not remembers(FilteringMode.SINGLE_HOST, Affinity.SINGLE, 20)
    assert not remembers(FilteringMode.DISABLED, Affinity.SINGLE, 20)


# ---------------------------------------------------------------- on the wire


def test_a_list_of_any_length_comes_back() -> None:
    keys = tuple(bytes((0, 10, 0, n >> 8, n & 255)) for n in range(600)) + (SIX,) * 90
    frames = [clients.decode(frame) for frame in clients.encode(HEAD, keys, 9)]
    assert [(f.head, f.number, f.frames) for f in frames] == [
        (HEAD, number, 4) for number in range(4)
    ]
    assert tuple(key for frame in frames for key in frame.keys) == keys
    (empty,) = clients.encode(HEAD, (), 0)
    assert clients.decode(empty) == ListFrame(HEAD, 0, 1, ())
    assert len(empty) == FRAME_BYTES


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0xC0), (4, 9), (8, 33), (20, 0), (24, 7), (25, 2), (26, 1), (60, 33)]
)
def test_what_is_no_list_is_refused(at: int, value: int) -> None:
    (frame,) = clients.encode(HEAD, keys_of(3), 0)
    with pytest.raises(HeartbeatError):
        clients.decode(frame[:at] + bytes((value,)) + frame[at + 1 :])
    with pytest.raises(HeartbeatError):
        clients.decode(frame[:-1])


def test_more_clients_than_the_frame_has_room_for_are_refused() -> None:
    (frame,) = clients.encode(HEAD, keys_of(3), 0)
    with pytest.raises(HeartbeatError, match="a client at byte"):
        clients.decode(frame[:30] + struct.pack("<H", 2000) + frame[32:])


def test_tshark_knows_the_frame_for_one_of_nlb(tmp_path: Path) -> None:
    assert shutil.which("tshark")
    (payload,) = clients.encode(HEAD, keys_of(7), 0)
    frame = bytes.fromhex("ffffffffffff02020a010064886f") + payload
    capture = tmp_path / "list.pcap"
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    capture.write_bytes(head + struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
    command = ("tshark", "-V", "-r", str(capture))
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "NLB Reliable Protocol" in text and "Cluster IP: 10.1.0.100" in text
    assert "malformed" not in text.lower()


# ---------------------------------------------------------------- at most one host per client


@pytest.mark.parametrize("seed", [1, 2, 3, 5, 6, 8, 9, 11, 12, 15, 130])
def test_nobody_is_accepted_twice(seed: int) -> None:
    """Every kind of fault; 130: the answer of the data plane came after the host had stopped."""
    assert not Episode(seed, options(seed), sticky=True).run()


def some_client_is_accepted_twice() -> bool:
    """In some of a few episodes: which ones shows it depends on milliseconds."""
    violations = [
        found for seed in range(6, 12) for found in Episode(seed, options(seed), sticky=True).run()
    ]
    return any(violation.guarantee == "affinity" for violation in violations)


def test_the_checker_sees_a_host_that_does_not_wait_for_the_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(affinity, "ready", lambda state: True)
    assert some_client_is_accepted_twice()


def test_the_checker_sees_a_host_that_lists_less_than_it_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = affinity.listed

    def only_half(state: State, event: ClientsListed) -> None:
        listed(state, ClientsListed(event.now_ms, event.serial, event.keys[::2]))

    monkeypatch.setattr(affinity, "listed", only_half)
    assert some_client_is_accepted_twice()


# ---------------------------------------------------------------- what is kept


def cluster(count: int, period_ms: int = 100) -> tuple[World, OneServer]:
    """Hosts 1 to ``count`` with extended affinity, stopped."""
    world = World(1)
    for name in range(1, count + 1):
        world.add(name, rules=STICKY, period_ms=period_ms)
    return world, OneServer(world, 200, 1200)


def settle(world: World, names: range, ms: int = 1500) -> None:
    for name in names:
        world.start(name)
    world.run(world.now_ms + ms)


def served(world: World) -> dict[int, int]:
    """Client -> the one host that would accept it now; clients that nobody takes are missing."""
    found: dict[int, int] = {}
    for name, host in world.hosts.items():
        bits = host.plane.serves(world.now_ms + host.clock_ms)
        for bucket in range(60):
            if bits >> bucket & 1:
                assert bucket not in found
                found[bucket] = name
    return found


def test_clients_keep_their_host_through_joins_and_weights() -> None:
    world, checker = cluster(4)
    settle(world, range(1, 3))
    world.clients_come(ALL_BUCKETS, 0)
    before = served(world)
    settle(world, range(3, 5))
    assert served(world) == before
    world.command(1, Command.SET_WEIGHT, load_weight=100)
    world.run(world.now_ms + 500)
    world.command(2, Command.SET_WEIGHT, load_weight=0)
    world.run(world.now_ms + 500)
    assert served(world) == before and len(before) == 60
    assert world.hosts[2].plane.current[0] == 0 < world.hosts[3].plane.current[0]
    assert not checker.violations


def test_a_drained_rule_and_a_stop_keep_nobody() -> None:
    """Who takes a service away, or stops, sends its clients elsewhere at once."""
    for order in ("drain-rule", "stop"):
        world, checker = cluster(2)
        settle(world, range(1, 3))
        world.clients_come(ALL_BUCKETS, 0)
        if order == "stop":
            world.stop(1)
        else:
            world.command(1, Command.DRAIN_RULE, slots=(0,))
        world.run(world.now_ms + 200)
        assert set(served(world).values()) == {2} and len(served(world)) == 60
        assert not checker.violations


@pytest.mark.parametrize("handed_over", [True, False])
def test_a_host_accepts_nobody_before_it_looks_for_its_last_connection(handed_over: bool) -> None:
    """A client that came between the look at the connections and the stop would lose its own."""
    world, checker = cluster(2)
    settle(world, range(1, 3))
    world.clients_come(ALL_BUCKETS, 0)
    mine = world.hosts[2].plane.serves(world.now_ms)
    world.drainstop(2)
    if handed_over:
        world.run(world.now_ms + 500)
    assert world.hosts[2].plane.serves(world.now_ms) == mine, "kept until the last connection ends"
    machine = world.hosts[2].machine
    world.command(2, Command.DRAIN_COMPLETE)
    assert world.hosts[2].plane.serves(world.now_ms) == 0
    assert machine.awaits_last_connection, "somebody may have come"
    world.run(world.now_ms + 500)
    assert set(served(world).values()) == {1} and len(served(world)) == 60
    assert len(machine.status(world.now_ms).members) == 2
    world.drained(2)
    assert not machine.awaits_last_connection
    world.run(world.now_ms + 500)
    assert machine.host_state is HostState.STOPPED
    assert not checker.violations


def test_a_claimed_bucket_is_never_called_idle() -> None:
    """Its claimant goes on taking connections there, and the owner must not reset them."""
    world, _ = cluster(2)
    settle(world, range(1, 2))
    world.clients_come(ALL_BUCKETS, 0)
    settle(world, range(2, 3), 8000)
    host = world.hosts[1]
    claimed = host.plane.claimed[0]
    assert claimed
    now_ms = world.now_ms + host.clock_ms
    world.give(host, IdleScanned(now_ms, now_ms, (ALL_BUCKETS,) * 3, None))
    world.run(world.now_ms + 8000)
    assert world.hosts[2].plane.orphan[0] & claimed == 0


# ---------------------------------------------------------------- bounded, and then given up


def events(world: World) -> list[LogEvent]:
    found: list[LogEvent] = []

    def saw(_: World, __: Host, outputs: tuple[object, ...]) -> None:
        found.extend(output for output in outputs if isinstance(output, LogEvent))

    world.observers.append(saw)
    return found


def test_what_the_others_have_no_room_for_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "EXCEPTIONS_MAX", 20)
    world, checker = cluster(2)
    told = events(world)
    settle(world, range(1, 2))
    world.clients_come(ALL_BUCKETS, 0)
    settle(world, range(2, 3))
    kept = [client for client, host in served(world).items() if host == 1]
    assert len(kept) == 30 + 20 // 2, "its own half, and its share of the others' memory"
    assert len(served(world)) == 60
    (full,) = [event for event in told if event.name == "affinity-full"]
    assert full.fields["clients"] == 30
    assert not checker.violations


def test_a_list_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world, checker = cluster(2)
    told = events(world)
    settle(world, range(1, 2))
    world.clients_come(ALL_BUCKETS, 0)
    heard = affinity.hear
    monkeypatch.setattr(
        affinity, "hear", lambda state, frame: not frame.keys and heard(state, frame)
    )
    settle(world, range(2, 3))
    assert [event.name for event in told].count("affinity-given-up") == 1
    assert world.hosts[1].plane.claimed[0] == 0
    assert len(served(world)) == 60 and set(served(world).values()) == {1, 2}
    assert not checker.violations


def test_a_member_with_too_many_exceptions_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "EXCEPTIONS_HELD_MAX", 5)
    world, checker = cluster(2)
    told = events(world)
    settle(world, range(1, 2))
    world.clients_come(ALL_BUCKETS, 0)
    settle(world, range(2, 3))
    names = [event.name for event in told]
    assert "affinity-exceptions-full" in names and "affinity-given-up" in names
    assert len(served(world)) == 60 and not checker.violations


def test_clients_on_two_lists_are_forgotten_by_the_second() -> None:
    """What is another host's exception here must not be claimed as well."""
    world, _ = cluster(2)
    settle(world, range(1, 3))
    state = world.hosts[1].machine._state
    mine, theirs = keys_of(0b11)
    state.affinity.exceptions[2] = frozenset((theirs,))
    state.affinity.keys = None
    state.outputs = []
    affinity.listed(state, ClientsListed(state.now_ms, state.affinity.serial, (mine, theirs)))
    assert state.affinity.keys == (mine,)
    assert state.outputs == [ForgetClients((theirs,))]


def test_a_late_answer_is_not_believed() -> None:
    world, _ = cluster(1)
    settle(world, range(1, 2))
    state = world.hosts[1].machine._state
    state.affinity.keys = None
    affinity.listed(state, ClientsListed(state.now_ms, state.affinity.serial - 1, keys_of(1)))
    assert state.affinity.keys is None


# ---------------------------------------------------------------- nothing a frame says


def joined() -> tuple[World, Host, list[bytes]]:
    """Host 2 beside host 1, whose clients it leaves alone, and the frames of host 1's list."""
    world, _ = cluster(2)
    settle(world, range(1, 2))
    world.clients_come(ALL_BUCKETS, 0)
    frames: list[bytes] = []

    def saw(_: World, host: Host, outputs: tuple[object, ...]) -> None:
        if host.host_id == 1:
            payloads = (getattr(output, "payload", b"") for output in outputs)
            frames.extend(one for one in payloads if one[:4] == clients.SIGNATURE_BYTES)

    world.observers.append(saw)
    settle(world, range(2, 3))
    return world, world.hosts[2], frames


def test_old_foreign_and_damaged_lists_change_nothing() -> None:
    world, host, frames = joined()
    excepted = bits_of(host.plane.excepted)
    assert excepted.bit_count() == 30
    chance = random.Random(5)
    state: State = host.machine._state
    head = clients.decode(frames[-1]).head
    for changes in (
        {"host_id": 7},
        {"host_code": head.host_code ^ 1},
        {"generation": head.generation + 1},
        {"view_digest": head.view_digest ^ 1},
        {"config_digest": b"87654321"},
        {"serial": head.serial - 1},
        {"cluster_ip_address": bytes(4)},
    ):
        fields = {name: getattr(head, name) for name in ListHead.__slots__} | changes
        arrive(world, clients.encode(ListHead(**fields), (), 0)[0])
    for _ in range(300):
        arrive(world, mutate(frames, chance))
    arrive(world, sign(frames[-1][:1404] + b"\1\0\0\0" + frames[-1][1408:], Key(1, b"x" * 32)))
    assert bits_of(host.plane.excepted) == excepted
    assert state.affinity.exceptions.keys() == {1}


def arrive(world: World, frame: bytes) -> None:
    world._arrive(1, 2, frame)


def test_a_slot_without_a_time_out_has_no_list() -> None:
    world, host, frames = joined()
    head = clients.decode(frames[-1]).head
    fields = {name: getattr(head, name) for name in ListHead.__slots__} | {"serial": 99}
    arrive(world, clients.encode(ListHead(**fields), (b"\x01\x0a\0\0\1",), 0)[0])
    assert bits_of(host.plane.excepted).bit_count() == 30


def test_shares_add_up_to_what_a_host_has_room_for() -> None:
    assert all((n - 1) * (EXCEPTIONS_MAX // n) < EXCEPTIONS_MAX for n in range(1, 33))


def test_the_question_says_which_buckets() -> None:
    world, _ = cluster(2)
    asked: list[ListClients] = []

    def saw(_: World, __: Host, outputs: tuple[object, ...]) -> None:
        asked.extend(output for output in outputs if isinstance(output, ListClients))

    world.observers.append(saw)
    settle(world, range(1, 2))
    assert not asked, "alone it claims nothing"
    settle(world, range(2, 3))
    (question,) = asked
    assert question.claimed[0].bit_count() == 30
