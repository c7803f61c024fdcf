"""The simulator: fixed seeds hold every guarantee, and every checker can fail."""

import random
from dataclasses import replace

import pytest

from convergence import lease, losing, membership, phases
from convergence.rules import ALL_BUCKETS
from convergence.state import State
from tests.simulator.episode import Episode, run_seed
from tests.simulator.faults import ADDED, CHANGE, KINDS, Fault, Options, options, relay_faults, size
from tests.simulator.network import CALM, Weather
from tests.simulator.ownership import overlap
from tests.simulator.scenario import play
from tests.simulator.shrink import read_episode, read_fault, shrink, to_lines, violated

FIXED = tuple(range(100))

# Seeds that once showed a bug of the protocol, and which.
REGRESSIONS = {
    112: "tolerance 3 and synchronous hosts: leases lapsed between two reports",
    143: "a deaf newcomer served while a mute lone host's lease still ran",
    408: "a draining host that left a broken pair forgot that it drained",
    644: "a crash loop",
    839: "the last relay between a deaf host and another one stopped",
    858: "who left a broken pair was not heard to leave by a newcomer that went on to vouch for it",
    895: "the relay of a one-way pair left, and the newcomer served at once",
    966: "a pair was parted, then a newcomer heard both halves",
    2573: "a leaving host left a second time and never came back",
    3128: "each life of a crash loop was let in just before it ended",
    3187: "a newcomer that stopped while joining made a lone host's lease lapse",
    3828: "a newcomer with an established partner waited for another newcomer",
    4391: "a mute host took its only partner for deaf and took its buckets",
    20369: "a sleeping host cannot merge; its lease ends by itself (checker)",
    21070: "a newcomer that held buckets and was never Converged fell silent and kept them",
    21523: "a dead host was taken for one end of a broken pair",
    21809: "a crashed agent cannot merge either (checker)",
    30197: "a deaf host restarted within the lease that its predecessor had extended",
    30241: "what a newcomer had heard did not count in the moment when a host was left alone",
    40751: "a frame that was decided, slept on and then sent told an old age as a new one",
    41160: "one half of a partition slept while it healed (checker)",
    61820: "a lease that could have been renewed ended between two ticks",
    100297: "a newcomer that stopped in the moment of its start made a lone host's lease lapse",
    8924: "what was said of a restarted host looked as if it were about its predecessor",
    13784: "a lone host's lease ended with each second restart of its crash-looping partner",
    4690: "two hosts, one mute, with one's patience shorter than the other's lease",
    500003: "a lease was as long as if a newcomer waited longer for what it knew as a newcomer",
    4004333: "a newcomer's late frame met the end of another one's patience with it",
    6002477: "who hears only a host that is about to stop is not mute before (checker)",
    6001520: "a newcomer waited for a host that had stopped and that nobody had as a member",
    4201643: "a mute host served again when the newcomer that had begun beside it fell silent",
    4231616: "the only partner was known to have restarted, and its lease was waited for",
    4306140: "a sleeper woke between two halves, joined one and could not hear the other (checker)",
    4333481: "a mute host took a dead one's last word for a proof that it was heard",
    88141: "an embargo for a host that had been restarted, and that was heard",
    30053339: "an order that came to a paused host was stamped with that time (simulator)",
    68144: "a life of a crash loop that heard its only partner died before it was believed",
    177111913: "newcomers waited for one that could not come in, and for one that waited for them",
}

# Likewise, of kinds that were added later.
ADDED_REGRESSIONS = {
    (71334, "several"): "a mute lone host's lease outlived the last word about it by a millisecond",
    (5200324, "several"): "who left for want of hearing a lone host came back as one that may",
    (500048, "several"): "a mute host's only partner restarted and its lapsed lease ran again",
    (500123, "several"): "to hear only a starting host is not to be mute to others (checker)",
    (500260, "several"): "a pair broke in the moment in which its partition healed (checker)",
    (500276, "several"): "like 500048, among four",
    (500448, "several"): "who joins half of a partition takes over what is owned twice (checker)",
    (501761, "several"): "a host between two halves took what it had just released, for ever",
    (502510, "several"): "a host went mute for one that it heard for the first time",
    (302307, "change"): "a host that was stopped while it staged a change never went over to it",
    (402229, "change"): "two halves by different rules hid that they heard each other again",
    (212465, "one-way"): "a newcomer let in one of a pair and kept it a member for the other",
    (301443, "change"): "a mute host served beside a deaf one that had switched the rules alone",
    (5204185, "loss"): "who slept was told twice that its last connection had gone (simulator)",
    (403080, "several"): "newcomers heard all at once took a host for deaf by its word from before",
    (211114, "restart"): "newcomers took a lone host for deaf that had died, and its lease ran",
    (30000157, "reorder"): "leases that lapsed whenever the checker looked (checker)",
}


@pytest.mark.parametrize("seed", FIXED)
def test_fixed_seed(seed: int) -> None:
    result = run_seed(seed)
    assert not result.violations, f"{result.violations}\nreplay: {result.replay_command}"


@pytest.mark.parametrize("extra_ticks", [0.0, 1.0])
@pytest.mark.parametrize("seed", REGRESSIONS, ids=str)
def test_regression(seed: int, extra_ticks: float) -> None:
    # As it was drawn before there were more kinds of faults.
    plan = options(seed, KINDS[seed % len(KINDS)])
    violations = Episode(seed, replace(plan, extra_ticks=extra_ticks)).run()
    assert not violations, f"{REGRESSIONS[seed]}: {violations}"


@pytest.mark.parametrize(("seed", "kind"), ADDED_REGRESSIONS)
def test_regression_of_a_kind(seed: int, kind: str) -> None:
    violations = Episode(seed, options(seed, kind)).run()
    assert not violations, f"{ADDED_REGRESSIONS[seed, kind]}: {violations}"


def relay_plan(seed: int, name: str, sizes: tuple[int, ...], loss: float | None) -> Options:
    """An episode in which the only host that hears another one goes."""
    chance = random.Random(f"{name} {seed}")
    hosts = tuple(range(1, chance.choice(sizes) + 1))
    tolerance = chance.choice((3, 4, 5, 8)) if loss is None else 4
    weather = chance.choice((CALM, Weather(loss=0.05))) if loss is None else Weather(loss=loss)
    return Options(
        "relay", hosts, tolerance, weather, faults=tuple(relay_faults(chance, hosts, tolerance))
    )


@pytest.mark.parametrize("seed", [43, 46, 56, 80, 118, 143])
def test_the_only_host_that_hears_another_goes(seed: int) -> None:
    """Its word had made the other's lease longer, so the rest must not forget it at once.

    Each seed showed two owners when they did.
    """
    assert not Episode(seed, relay_plan(seed, "relay", (3, 3, 4), None)).run()


@pytest.mark.parametrize("seed", [386, 413, 574, 1024, 1096, 1432, 2861])
def test_the_only_host_that_hears_another_goes_and_frames_are_lost(seed: int) -> None:
    """One frame in ten.  Each seed showed two owners.

    A lone host did not know for how long a newcomer had listened, a newcomer forgot what the
    relay had said when the relay was restarted, and a newcomer's word made leases longer for
    which the others had ceased to wait.
    """
    assert not Episode(seed, relay_plan(seed, "crafted", (3, 4, 4, 5), 0.1)).run()


@pytest.mark.parametrize(
    ("seed", "kind", "other"),
    [
        (5400003, "one-way", 31), (5400128, "deaf", 25), (5400155, "mute", 1),
        (5400058, "several", 3),
    ],
)  # fmt: skip
def test_a_host_that_one_with_another_configuration_does_not_hear(
    seed: int, kind: str, other: int
) -> None:
    """It stops, as beside one with its own.  Each seed showed two owners."""
    episode = Episode(seed, options(seed, kind))
    host = episode.world.hosts[other]
    host.config = replace(host.config, config_digest=b"87654321")
    found = {violation.guarantee for violation in episode.run()}
    assert not found & {"one-owner", "merge"}


def test_a_seed_is_an_episode() -> None:
    """Same seed, same options, same steps."""
    assert options(17) == options(17)
    first, second = run_seed(17), run_seed(17)
    assert first.steps == second.steps
    assert first.replay_command == "python -m tests.simulator --seeds 1 --start 17"


def test_the_mix_of_sizes_and_kinds() -> None:
    chance = random.Random(1)
    sizes = [size(chance) for _ in range(4000)]
    assert 0.66 < sum(one <= 4 for one in sizes) / 4000 < 0.74
    assert 0.21 < sum(5 <= one <= 8 for one in sizes) / 4000 < 0.29
    assert 0.02 < sum(9 <= one <= 16 for one in sizes) / 4000 < 0.06
    assert 0.003 < sum(one == 32 for one in sizes) / 4000 < 0.02
    assert {options(seed).kind for seed in FIXED} == {*KINDS, *ADDED, CHANGE}


# ---------------------------------------------------------------- shrinking


def test_a_failing_episode_becomes_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that never ends: a crash and a take-over are enough to show it, in three lines."""
    monkeypatch.setattr(lease, "valid_until_ms", lambda state: state.now_ms + 100_000)
    noise = (Fault(700, "weight", 3, value=10), Fault(2033, "pause", 3, 150), CRASH)
    weather = Weather(jitter_ms=3, duplicate=0.1)
    faults = (*starts(1, 2, 3, 4), *sorted(noise, key=lambda fault: fault.at_ms))
    plan = Options("test", (1, 2, 3, 4), 5, weather, True, 0.5, faults)
    small = shrink(9, plan)
    assert violated(9, small) & violated(9, plan)
    assert (len(small.hosts), small.weather, small.keyed, small.extra_ticks) == (2, CALM, False, 0)
    assert len(small.faults) <= 3
    text = play("\n".join(to_lines(9, small)))
    assert "VIOLATION" in text
    assert play(text) == text


def test_an_episode_as_a_scenario_is_the_same_episode() -> None:
    for seed in range(60):
        plan = options(seed)
        head, *rest = to_lines(seed, plan)
        again_seed, again = read_episode(*head.split()[1:])
        faults = tuple(read_fault(*line.split()[1:]) for line in rest[:-1])
        assert (again_seed, replace(again, faults=faults)) == (seed, plan)


# ---------------------------------------------------------------- checkers can fail


def starts(*hosts: int) -> tuple[Fault, ...]:
    return tuple(Fault(0, "start", host) for host in hosts)


def broken(*faults: Fault, hosts: tuple[int, ...] = (1, 2, 3)) -> set[str]:
    """The guarantees that this episode violates."""
    plan = Options("test", hosts, 5, faults=(*starts(*hosts), *faults))
    return {violation.guarantee for violation in Episode(1, plan).run()}


MUTE = Fault(1000, "mute", 1, 2000)
CRASH = Fault(1000, "crash", 2)
PARTITION = Fault(1000, "partition", 1, 1500, others=(2,))


def test_the_machine_as_it_is_violates_nothing() -> None:
    for fault in (MUTE, CRASH, PARTITION, Fault(1000, "stop", 3), Fault(1000, "pause", 1, 700)):
        assert broken(fault) == set()


def test_a_lease_that_never_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "valid_until_ms", lambda state: state.now_ms + 100_000)
    assert {"one-owner", "fail-closed"} <= broken(CRASH)


def test_a_lease_without_its_second_half_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's permanent double ownership with a mute host."""
    monkeypatch.setattr(lease, "heard_until_ms", lambda _state: 1 << 62)
    assert "one-owner" in broken(MUTE)


def test_taking_before_the_other_let_go_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(state: State) -> bool:
        for slot, wanted in enumerate(state.target or ()):
            state.hold(slot, wanted)
        return True

    monkeypatch.setattr(phases, "_take", greedy)
    assert "one-owner" in broken(Fault(1000, "stop", 3), Fault(2000, "start", 3))


def test_overlaps_that_stay_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_resolve_overlap", lambda *_arguments: None)
    monkeypatch.setattr(membership, "admit", _admit_only_newcomers)
    assert "merge" in broken(PARTITION)


def _admit_only_newcomers(state: State, admit: object = membership.admit) -> None:
    assert callable(admit)
    if all(peer.statement.flags & membership.NEWCOMER for peer in state.candidates):
        admit(state)


def test_a_dead_host_that_stays_a_member_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losing, "newest_ms", lambda state, _peer: state.now_ms)
    assert {"no-hole", "liveness"} <= broken(CRASH)


def test_needless_moves_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def shuffled(rule: object, weights: dict[int, int], _holdings: object) -> dict[int, int]:
        hosts = sorted(weights)
        turn = sum(hosts) % 60
        share = 60 // len(hosts)
        result = {}
        for place, host in enumerate(hosts):
            last = 60 if host == hosts[-1] else (place + 1) * share
            bits = ((1 << last) - 1) & ~((1 << place * share) - 1)
            result[host] = (bits << turn | bits >> (60 - turn)) & ALL_BUCKETS
        return result

    monkeypatch.setattr(phases, "target", shuffled)
    assert "fewest-moves" in broken(Fault(1000, "stop", 3))


def test_a_host_that_stops_serving_while_converging_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = lease.valid_until_ms

    def lapsing(state: State) -> int:
        calm = state.phase in (phases.Phase.CONVERGED, phases.Phase.UNKNOWN)
        return whole(state) if calm else state.now_ms - 1

    monkeypatch.setattr(lease, "valid_until_ms", lapsing)
    assert "service" in broken(Fault(1000, "stop", 3), Fault(2000, "start", 3))


def test_a_broken_pair_that_stays_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's take-over that was held up for ever."""
    monkeypatch.setattr(losing, "_leave_broken_pair", lambda _state: None)
    pair = Fault(1000, "pair", 2, 3000, others=(3,))
    crash = Fault(1100, "crash", 4)
    assert "no-hole" in broken(pair, crash, hosts=(1, 2, 3, 4))


def test_newcomers_that_do_not_wait_for_each_other_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(phases, "newcomer_must_wait", lambda _state: False)
    assert "one-owner" in broken()


def test_overlap_names_slot_and_buckets() -> None:
    assert overlap((0b11, 0), (0b10, 1)) == ["slot 0 buckets 0x2"]
