"""Buckets without a connection, and buckets in which a lost connection may be reset."""

from ipaddress import IPv4Address

import pytest

from convergence.events import Command, HostProbed, IdleScanned, MapsChanged, ProbeHost
from convergence.rules import ALL_BUCKETS
from tests.simulator.world import World
from tests.test_machine import DEATH_MS, EVERY_BUCKET, PERIOD_MS, clock, cluster, collect, frames


def scan(world: World, name: int, began_ago_ms: int = 0, cookie_ago_ms: int | None = None) -> None:
    host = world.hosts[name]
    now_ms = clock(world, name)
    cookie = None if cookie_ago_ms is None else now_ms - cookie_ago_ms
    world.give(host, IdleScanned(now_ms, now_ms - began_ago_ms, EVERY_BUCKET, cookie))


def idle_map(world: World, name: int) -> int:
    """What the host's next frame says of slot 0."""
    seen = collect(world)
    world.run(world.now_ms + PERIOD_MS)
    return [one.statement.idle[0] for _at, one in frames(seen, name)][-1]


def test_the_first_frame_after_a_start_is_all_zero_and_a_scan_proves_idle_buckets() -> None:
    world = cluster(1, 2, run_ms=2000)
    scan(world, 2)
    assert idle_map(world, 2) == 0, "no scan before 3 s after the start proves anything"
    world.run(4000)
    scan(world, 2, began_ago_ms=1500)
    assert idle_map(world, 2) == 0, "this scan began too early"
    scan(world, 2)
    assert idle_map(world, 2) == ALL_BUCKETS & ~world.hosts[2].plane.current[0]


def test_a_syn_cookie_makes_every_bucket_doubtful_for_120_s() -> None:
    world = cluster(1, 2, run_ms=4000)
    scan(world, 2, cookie_ago_ms=119_999)
    assert idle_map(world, 2) == 0
    scan(world, 2, cookie_ago_ms=120_000)
    assert idle_map(world, 2) != 0


def test_a_released_bucket_is_not_idle_for_3_s() -> None:
    world = cluster(1, 2, run_ms=4000)
    world.command(1, Command.SET_WEIGHT, load_weight=0)
    world.run(5000)
    scan(world, 1)
    released = (1 << 30) - 1
    assert idle_map(world, 1) == ALL_BUCKETS & ~released
    world.run(8000)
    scan(world, 1)
    assert idle_map(world, 1) == ALL_BUCKETS


def test_orphans_need_3_s_of_ownership_and_the_idle_reports_of_all() -> None:
    world = cluster(1, 2, run_ms=5000)
    assert world.hosts[1].plane.orphan[0] == 0, "host 2 has not reported them idle"
    scan(world, 2)
    world.run(5200)
    assert world.hosts[1].plane.orphan[0] == world.hosts[1].plane.current[0]
    world.stop(2)
    world.run(5400)
    assert world.hosts[1].plane.current[0] == ALL_BUCKETS
    assert world.hosts[1].plane.orphan[0] == (1 << 30) - 1, "the new ones are too new"
    world.run(8600)
    assert world.hosts[1].plane.orphan[0] == ALL_BUCKETS


def test_a_host_lost_by_silence_keeps_every_bucket_from_being_an_orphan() -> None:
    """A dead agent must not cost the connections that its kernel still serves; and who was cut off
    does not know what the others have taken over and serve since, idle as it was before."""
    world = cluster(1, 2, run_ms=4000)
    scan(world, 2)
    world.run(4200)
    seen = collect(world)
    machine = world.hosts[1].machine
    world.network.side[2] = 1
    world.run(4200 + 2 * DEATH_MS)
    probe = next(one for _a, host, one in seen if host == 1 and isinstance(one, ProbeHost))
    assert probe.dedicated_ip_address == IPv4Address("10.1.0.2")
    world.run(9000)
    assert world.hosts[1].plane.current[0] == ALL_BUCKETS
    assert world.hosts[1].plane.orphan[0] == 0
    still = machine.step(HostProbed(clock(world, 1), 2, probe.host_code, gone=False))
    assert not any(isinstance(one, MapsChanged) for one in still)
    seen.clear()
    world.run(9000 + 10_000)
    assert any(host == 1 and isinstance(one, ProbeHost) for _at, host, one in seen), "asked again"
    gone = machine.step(HostProbed(clock(world, 1), 2, probe.host_code, gone=True))
    assert [one.orphan[0] for one in gone if isinstance(one, MapsChanged)] == [ALL_BUCKETS]


@pytest.mark.parametrize("drained", [False, True])
def test_a_lost_host_may_serve_connections_in_buckets_of_others(drained: bool) -> None:
    """Buckets moved away from them, maybe all: their kernel answers, so nobody may reset them."""
    world = cluster(1, 2, run_ms=4000)
    if drained:
        world.command(2, Command.DRAINSTOP)
        world.run(8000)
    assert bool(any(world.hosts[2].plane.current)) is not drained
    seen = collect(world)
    machine = world.hosts[1].machine
    world.network.side[2] = 1
    world.run(12_000)
    assert world.hosts[1].plane.current[0] == ALL_BUCKETS
    assert world.hosts[1].plane.orphan[0] == 0, "host 2 has never said that any is idle"
    probe = next(one for _a, host, one in seen if host == 1 and isinstance(one, ProbeHost))
    gone = machine.step(HostProbed(clock(world, 1), 2, probe.host_code, gone=True))
    assert [one.orphan[0] for one in gone if isinstance(one, MapsChanged)] == [ALL_BUCKETS]
