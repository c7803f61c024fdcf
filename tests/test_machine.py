"""Sentences of the specification (convergence.md), each with the test that relies on it."""

import copy
from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convergence.events import (
    Command,
    CommandError,
    CommandReceived,
    FrameReceived,
    HostState,
    LeaseRenewed,
    LogEvent,
    MapsChanged,
    Output,
    SendFrame,
    Tick,
)
from convergence.heartbeat import AGE_NONE, JOINING, LEAVING, Heartbeat, decode
from convergence.machine import HostConfig, Machine
from convergence.phases import TRANSITIONS, enter
from convergence.rules import ALL_BUCKETS
from convergence.stages import Phase
from convergence.state import State
from tests.simulator.world import CLUSTER, RULES, Host, World

PERIOD_MS = 100
LEASE_MS = 400
DEATH_MS = 500
EVERY_BUCKET = (ALL_BUCKETS,) * 3


def config(host_id: int = 1, **changes: object) -> HostConfig:
    fields: dict[str, object] = {
        "host_id": host_id,
        "cluster_ip_address": CLUSTER,
        "dedicated_ip_address": IPv4Address(f"10.1.0.{host_id}"),
        "rules": RULES,
        "load_weights": (50, 50),
        "handling_priorities": (host_id, host_id),
        "config_digest": b"12345678",
        "period_ms": PERIOD_MS,
    }
    fields.update(changes)
    return HostConfig(**fields)  # type: ignore[arg-type]


def cluster(*host_ids: int, run_ms: int = 1000, **changes: object) -> World:
    """These hosts, started together and converged."""
    world = World(1)
    for host_id in host_ids:
        world.add(host_id, **changes)
        world.start(host_id)
    world.run(run_ms)
    return world


def clock(world: World, name: int) -> int:
    return world.now_ms + world.hosts[name].clock_ms


def members(world: World, name: int) -> list[int]:
    status = world.hosts[name].machine.status(clock(world, name))
    return [member.host_id for member in status.members]


def collect(world: World) -> list[tuple[int, int, Output]]:
    """Everything that any host says from now on: (time, host, output)."""
    seen: list[tuple[int, int, Output]] = []

    def observer(world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        seen.extend((world.now_ms, host.host_id, output) for output in outputs)

    world.observers.append(observer)
    return seen


def frames(seen: list[tuple[int, int, Output]], name: int) -> Iterator[tuple[int, Heartbeat]]:
    for at_ms, host, output in seen:
        if host == name and isinstance(output, SendFrame):
            heartbeat = decode(output.payload)
            assert isinstance(heartbeat, Heartbeat)
            yield at_ms, heartbeat


def logs(seen: list[tuple[int, int, Output]], name: int) -> list[str]:
    return [one.name for _at, host, one in seen if host == name and isinstance(one, LogEvent)]


# ---------------------------------------------------------------- start


def test_a_stopped_machine_hears_and_sends_nothing() -> None:
    world = cluster(1)
    sent: list[bytes] = []
    world.observers.append(
        lambda _w, _h, outputs: sent.extend(o.payload for o in outputs if isinstance(o, SendFrame))
    )
    world.run(1200)
    machine = Machine(config(2), 0)
    assert not any(machine.step(FrameReceived(1, sent[0], 1, bytes(6)))[1:])
    assert not any(isinstance(one, SendFrame) for one in machine.step(Tick(5000)))
    status = machine.status(5000)
    assert (status.state, status.members, status.default_host_id) == (HostState.STOPPED, (), None)


def test_an_empty_filter_table_is_installed_before_the_first_frame() -> None:
    machine = Machine(config(), 0)
    outputs = machine.step(CommandReceived(0, Command.START, host_code=7))
    kinds = [type(output) for output in outputs]
    assert kinds.index(MapsChanged) < kinds.index(SendFrame)
    maps = outputs[kinds.index(MapsChanged)]
    assert isinstance(maps, MapsChanged) and not any(maps.current)


def test_listen_t_x_p_when_nobody_is_heard() -> None:
    world = World(1)
    world.add(1)
    seen = collect(world)
    world.start(1)
    world.run(1000)
    flags = {at_ms: one.statement.flags & JOINING for at_ms, one in frames(seen, 1)}
    assert [at_ms for at_ms, joining in flags.items() if joining][-1] == DEATH_MS - PERIOD_MS
    assert min(at_ms for at_ms, joining in flags.items() if not joining) == DEATH_MS
    assert [one.listened for _at_ms, one in frames(seen, 1)][:6] == [1, 51, 101, 151, 201, 0]


def test_listen_2_p_when_a_started_host_is_heard() -> None:
    world = cluster(1)
    world.add(2)
    seen = collect(world)
    world.start(2)
    world.run(2000)
    joined = next(at for at, one in frames(seen, 2) if not one.statement.flags & JOINING)
    assert 2 * PERIOD_MS <= joined - 1000 <= 3 * PERIOD_MS


@pytest.mark.parametrize("code", [0, 1 << 32, -1])
def test_start_needs_a_host_code(code: int) -> None:
    machine = Machine(config(), 0)
    with pytest.raises(CommandError):
        machine.step(CommandReceived(0, Command.START, host_code=code))
    assert machine.status(0).state is HostState.STOPPED


def test_a_host_code_is_not_used_twice() -> None:
    world = World(1)
    world.add(1)
    host = world.hosts[1]
    host.up = True
    world.command(1, Command.START, host_code=99)
    world.command(1, Command.STOP)
    with pytest.raises(CommandError):
        world.command(1, Command.START, host_code=99)


# ---------------------------------------------------------------- the machine as a machine


def test_same_state_and_same_input_give_the_same_output() -> None:
    world = cluster(1, 2, 3)
    seen = collect(world)
    world.run(1100)
    payload = next(one.payload for _a, host, one in seen if host == 2 and hasattr(one, "payload"))
    machine = world.hosts[1].machine
    twin = copy.deepcopy(machine)
    now_ms = clock(world, 1)
    event = FrameReceived(now_ms + 3, payload, now_ms + 3, bytes(6))
    assert machine.step(event) == twin.step(event)
    assert machine.next_deadline_ms() == twin.next_deadline_ms()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=1496), st.integers(0, 1496), st.integers(0, 3))
def test_no_frame_ever_raises(garbage: bytes, place: int, target: int) -> None:
    world = cluster(1, 2, run_ms=700)
    seen = collect(world)
    world.run(800)
    payload = [one.payload for _a, _h, one in seen if isinstance(one, SendFrame)][-1]
    damaged = (payload[:place] + garbage + payload[place + len(garbage) :])[: 1496 + target]
    host = world.hosts[1 + target % 2]
    now_ms = clock(world, host.host_id)
    host.machine.step(FrameReceived(now_ms, damaged, now_ms, bytes(6)))
    host.machine.step(Tick(now_ms + 50))


def test_an_illegal_transition_raises_and_changes_nothing() -> None:
    state = State(config(), 0)
    for phase in Phase:
        for happened in ("agreed", "snapshots-known", "target-held", "all-settled"):
            if (phase, happened) in TRANSITIONS:
                continue
            state.phase = phase
            with pytest.raises(KeyError):
                enter(state, happened, "test")
            assert state.phase is phase and not state.history


def test_the_phases_have_nlbs_names_in_nlbs_order() -> None:
    """reference/nlb.md 3.1: the convergence history of a real host."""
    world = cluster(1, 2)
    history = world.hosts[2].machine.status(clock(world, 2)).history
    names = [line.phase for line in history][-5:]
    assert names == [
        "ConvergingPhase1",
        "StablePhase1",
        "ConvergingPhase2",
        "StablePhase2",
        "Converged",
    ]
    assert history[-1].members == (1, 2)


def test_a_late_tick_is_harmless_and_an_early_one_too() -> None:
    world = cluster(1, 2)
    machine = world.hosts[1].machine
    before = machine.status(clock(world, 1))
    for _ in range(20):
        outputs = machine.step(Tick(clock(world, 1)))
        assert not any(isinstance(one, MapsChanged | SendFrame) for one in outputs)
    assert machine.status(clock(world, 1)).history == before.history


def test_frames_go_out_at_once_but_at_most_one_per_5_ms() -> None:
    world = cluster(1, 2, 3)
    world.add(4)
    seen = collect(world)
    world.start(4)
    world.run(2000)
    times = [at_ms for at_ms, _one in frames(seen, 1)]
    assert min(later - earlier for earlier, later in pairwise(times)) >= 5
    assert max(later - earlier for earlier, later in pairwise(times)) <= 100


def test_release_is_installed_before_it_is_sent() -> None:
    world = cluster(1, 2)
    world.add(3)
    releases = 0

    def observer(_world: World, host: Host, outputs: tuple[Output, ...]) -> None:
        nonlocal releases
        kinds = [type(output) for output in outputs]
        if MapsChanged in kinds and SendFrame in kinds:
            releases += 1
            assert kinds.index(MapsChanged) < kinds.index(SendFrame)

    world.observers.append(observer)
    world.start(3)
    world.run(2000)
    assert releases > 0


def test_32_hosts_converge() -> None:
    world = cluster(*range(1, 33), run_ms=1500)
    for name in range(1, 33):
        status = world.hosts[name].machine.status(clock(world, name))
        assert status.state is HostState.CONVERGED and len(status.members) == 32
        assert status.default_host_id == 1


# ---------------------------------------------------------------- the lease


def test_the_lease_is_t_minus_1_periods_from_the_input_that_caused_it() -> None:
    world = cluster(1)
    host = world.hosts[1]
    outputs = host.machine.step(Tick(clock(world, 1) + 60))
    renewed = [one for one in outputs if isinstance(one, LeaseRenewed)]
    assert [one.valid_until_ms for one in renewed] == [clock(world, 1) + 60 + LEASE_MS]


def test_a_process_that_slept_past_its_lease_starts_afresh() -> None:
    world = cluster(1, 2)
    host = world.hosts[1]
    code = host.machine.status(clock(world, 1)).members[0].host_code
    outputs = host.machine.step(Tick(clock(world, 1) + LEASE_MS + PERIOD_MS))
    maps = [one for one in outputs if isinstance(one, MapsChanged)]
    assert maps and not any(maps[-1].current)
    status = host.machine.status(clock(world, 1) + LEASE_MS + PERIOD_MS)
    assert status.members[0].host_code != code
    assert [member.host_id for member in status.members] == [1]


def test_queued_frames_do_not_revive_a_process_that_slept() -> None:
    """Every input first checks the lease and the clock, also frames queued while it slept."""
    world = cluster(1, 2)
    seen = collect(world)
    world.pause(1, 900)
    world.run(1899)
    assert not world.hosts[1].plane.accepts(clock(world, 1))
    world.run(1900)
    first = next(one for _at, host, one in seen if host == 1 and isinstance(one, MapsChanged))
    assert not any(first.current)


def test_a_frame_lost_on_the_way_to_one_host_alone_costs_nothing() -> None:
    """The age of a member is the smallest of my own and what other members report."""
    world = cluster(1, 2, 3)
    seen = collect(world)
    world.network.cut.add((3, 1))
    world.run(1000 + DEATH_MS + 2 * PERIOD_MS)
    assert members(world, 1) == [1, 2, 3]
    assert "host-lost" not in logs(seen, 1)


def test_a_death_is_seen_t_x_p_after_the_last_frame_that_anybody_heard() -> None:
    world = cluster(1, 2, 3)
    seen = collect(world)
    world.run(1150)
    last = max(at_ms for at_ms, _one in frames(seen, 3))
    world.crash(3, power_off=True)
    world.run(2000)
    lost = [at for at, _h, one in seen if isinstance(one, LogEvent) and one.name == "host-lost"]
    assert len(lost) == 2
    assert all(DEATH_MS <= at_ms - last <= DEATH_MS + 10 for at_ms in lost)


def test_a_loss_that_all_notice_one_after_the_other_takes_one_generation() -> None:
    """Many hosts on few processors: each hears of the others' loss before it may call its own."""
    world = cluster(1, 2, 3, 4)
    seen = collect(world)
    world.run(1150)
    last = max(at_ms for at_ms, _one in frames(seen, 4))
    world.crash(4, power_off=True)
    world.run(last + DEATH_MS - 5)
    before = world.hosts[1].machine.status(0).generation
    said: list[bytes] = []
    for name in (1, 2, 3):
        machine, late_ms = world.hosts[name].machine, clock(world, name) + 15
        for payload in said:
            machine.step(FrameReceived(late_ms, payload, late_ms, bytes(6)))
        outputs = machine.step(Tick(late_ms))
        said += [one.payload for one in outputs if isinstance(one, SendFrame)]
    told = [decode(payload).statement for payload in said]  # type: ignore[union-attr]
    assert [(one.generation, one.view) for one in told] == [(before + 1, 0b111)] * 3


def test_a_mute_host_stops_before_the_others_take_its_buckets() -> None:
    world = cluster(1, 2, 3)
    world.network.mute.add(1)
    seen = collect(world)
    granted = world.hosts[1].plane.valid_until_ms - world.hosts[1].clock_ms
    world.run(2000)
    taken = min(at for at, host, one in seen if host != 1 and isinstance(one, MapsChanged))
    for at_ms, host, one in seen:
        if host == 1 and at_ms < taken and isinstance(one, LeaseRenewed):
            granted = max(granted, one.valid_until_ms - world.hosts[1].clock_ms)
    assert granted < taken
    assert "nobody-hears-me" in logs(seen, 1)


# ---------------------------------------------------------------- members


def test_a_newcomer_that_hears_hosts_which_do_not_hear_it_never_serves() -> None:
    world = cluster(1, 2)
    world.add(3)
    world.network.mute.add(3)
    world.start(3)
    world.run(6000)
    assert not any(world.hosts[3].plane.current)
    assert members(world, 1) == [1, 2]


def test_a_restarted_host_is_a_new_member() -> None:
    world = cluster(1, 2)
    old = world.hosts[1].machine.status(clock(world, 1)).members[1].host_code
    world.crash(2, power_off=False)
    world.start(2)
    world.run(2000)
    assert members(world, 1) == [1, 2]
    assert world.hosts[1].machine.status(clock(world, 1)).members[1].host_code != old


def test_stop_says_leaving_until_nobody_holds_it() -> None:
    world = cluster(1, 2)
    seen = collect(world)
    world.stop(2)
    world.run(1100)
    last = [one.statement for _at, one in frames(seen, 2)][-1]
    assert last.flags & LEAVING and not any(last.current)
    assert members(world, 1) == [1]
    assert logs(seen, 2)[-1] == "stopped"


def test_stop_takes_at_most_2_t_x_p_when_nobody_answers() -> None:
    world = cluster(1, 2)
    world.network.side[2] = 1
    world.stop(2)
    world.run(1000 + 2 * DEATH_MS)
    status = world.hosts[2].machine.status(clock(world, 2))
    assert status.state is HostState.STOPPED


def test_a_draining_host_accepts_nothing_new_at_once() -> None:
    world = cluster(1, 2)
    seen = collect(world)
    world.drainstop(1)
    maps = [one for _at, host, one in seen if host == 1 and isinstance(one, MapsChanged)]
    assert maps[0].draining
    world.run(3000)
    assert world.hosts[1].machine.status(clock(world, 1)).state is HostState.DRAINING
    assert members(world, 2) == [1, 2]
    assert world.hosts[2].plane.current == EVERY_BUCKET


def test_ages_are_in_units_of_t_x_p_by_250_rounded_down() -> None:
    world = cluster(1, 2)
    seen = collect(world)
    world.run(1300)
    judged = 0
    for at_ms, heartbeat in frames(seen, 1):
        arrived = max((at + 1 for at, _one in frames(seen, 2) if at + 1 <= at_ms), default=None)
        if arrived is not None:
            judged += 1
            assert heartbeat.ages[1] == (at_ms - arrived) * 250 // DEATH_MS
    assert judged >= 2
    assert all(one.ages[0] == AGE_NONE for _at, one in frames(seen, 1))


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "order",
    [
        {"command": Command.SET_WEIGHT, "load_weight": 101},
        {"command": Command.SET_WEIGHT, "load_weight": 10, "slots": (5,)},
        {"command": Command.DRAIN_RULE, "slots": (2,)},
        {"command": Command.DISABLE_RULE, "slots": (-1,)},
        {"command": Command.DRAIN_COMPLETE},
    ],
)
def test_a_bad_command_raises_and_changes_nothing(order: dict[str, object]) -> None:
    world = cluster(1, 2)
    before = world.hosts[1].machine.status(clock(world, 1))
    with pytest.raises(CommandError):
        world.command(1, **order)  # type: ignore[arg-type]
    after = world.hosts[1].machine.status(clock(world, 1))
    assert (after.generation, after.rule_states) == (before.generation, before.rule_states)


def test_a_disabled_rule_is_dropped_at_once_a_drained_one_handed_over() -> None:
    world = cluster(1, 2)
    world.command(1, Command.DISABLE_RULE, slots=(0,))
    assert world.hosts[1].plane.current[0] == 0
    world.command(2, Command.DRAIN_RULE, slots=(0,))
    assert world.hosts[2].plane.current[0] != 0, "until its buckets are taken, or nobody is left"
    states = world.hosts[1].machine.status(clock(world, 1)).rule_states
    assert states == ("disabled", "enabled", "enabled")


# ---------------------------------------------------------------- bad frames


def test_bad_frames_are_logged_once_per_source_and_minute() -> None:
    world = cluster(1)
    machine = world.hosts[1].machine
    told = []
    for at_ms in (0, 10, 20, 59_000, 60_001, 60_010):
        now_ms = clock(world, 1) + at_ms
        for source in (b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"):
            outputs = machine.step(FrameReceived(now_ms, b"short", now_ms, source))
            told += [at_ms for one in outputs if getattr(one, "name", "") == "bad-frame-length"]
    assert told == [0, 0, 60_001, 60_001]
    assert machine.counters["length"] == 12


def test_an_earlier_life_of_mine_in_a_recording_does_not_move_me() -> None:
    """An established host yields only to a duplicate that shows that it hears it."""
    world = cluster(1, 2, 3)
    seen = collect(world)
    world.run(1200)
    recorded = [one.payload for _a, host, one in seen if host == 1 and isinstance(one, SendFrame)]
    world.crash(1, power_off=True)
    world.stop(3)
    world.run(3000)
    world.start(1)
    world.run(5000)
    host = world.hosts[1]
    now_ms = clock(world, 1)
    outputs = host.machine.step(FrameReceived(now_ms, recorded[-1], now_ms, bytes(6)))
    assert not any(isinstance(one, MapsChanged) for one in outputs)
    assert members(world, 1) == [1, 2]


# ---------------------------------------------------------------- conflicts


def test_duplicate_host_priority_names_both_hosts() -> None:
    world = cluster(1, 2)
    world.add(12, host_id=2)
    seen = collect(world)
    world.start(12)
    world.run(2000)
    event = next(
        one
        for _at, host, one in seen
        if host == 2 and isinstance(one, LogEvent) and one.name == "duplicate-host-priority"
    )
    assert "10.1.0.2" in event.text and "10.1.0.12" in event.text
    assert world.hosts[1].machine.status(clock(world, 1)).convergence_count == 1


def test_of_two_established_configurations_the_smaller_view_yields() -> None:
    world = World(1)
    for name in (1, 2, 3):
        world.add(name, config_digest=b"12345678" if name < 3 else b"another!")
        world.network.side[name] = name // 3
        world.start(name)
    world.run(1500)
    assert any(world.hosts[3].plane.current)
    world.network.heal()
    world.run(1500 + 3 * PERIOD_MS)
    assert not any(world.hosts[3].plane.current)
    assert any(world.hosts[1].plane.current)


def test_a_foreign_host_never_affects_a_running_member() -> None:
    world = cluster(1)
    seen = collect(world)
    world.run(1100)
    payload = [one.payload for _a, _h, one in seen if isinstance(one, SendFrame)][-1]
    windows = payload[:1364] + bytes(132)
    for step in range(10):
        now_ms = clock(world, 1) + step
        world.hosts[1].machine.step(FrameReceived(now_ms, windows, now_ms, bytes(6)))
    assert world.hosts[1].machine.counters == {"foreign-host": 10}
    world.run(3000)
    assert world.hosts[1].plane.current == EVERY_BUCKET
