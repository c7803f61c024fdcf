"""Targets: quotas, fewest moves, single host, default rule."""

import math

from hypothesis import given
from hypothesis import strategies as st

from convergence.buckets import fresh_start, lowest_bits, quotas, target
from convergence.rules import ALL_BUCKETS, BUCKETS, DEFAULT_RULE, FilteringMode, PortRule

MULTIPLE = PortRule(None, 80, 80)
SINGLE = PortRule(None, 443, 443, filtering_mode=FilteringMode.SINGLE_HOST)
DISABLED = PortRule(None, 25, 25, filtering_mode=FilteringMode.DISABLED)

members = st.sets(st.integers(1, 32), min_size=1, max_size=32)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[dict[int, int], dict[int, int]]:
    """Weights and disjoint holdings per host; some buckets without an owner."""
    hosts = sorted(draw(members))
    weights = {host: draw(st.integers(0, 100)) for host in hosts}
    owners = draw(st.lists(st.sampled_from([0, *hosts]), min_size=BUCKETS, max_size=BUCKETS))
    holdings = dict.fromkeys(hosts, 0)
    for bucket, owner in enumerate(owners):
        if owner:
            holdings[owner] |= 1 << bucket
    return weights, holdings


@given(clusters())
def test_quotas_sum_to_60_and_follow_the_weights(
    cluster: tuple[dict[int, int], dict[int, int]],
) -> None:
    weights, holdings = cluster
    shares = quotas(weights, holdings)
    total = sum(weights.values())
    assert sum(shares.values()) == (BUCKETS if total else 0)
    for host, weight in weights.items():
        exact = BUCKETS * weight / total if total else 0
        assert math.floor(exact) <= shares[host] <= math.ceil(exact)


@given(clusters())
def test_every_bucket_has_one_owner(cluster: tuple[dict[int, int], dict[int, int]]) -> None:
    weights, holdings = cluster
    wanted = target(MULTIPLE, weights, holdings)
    covered = 0
    for bits in wanted.values():
        assert not covered & bits
        covered |= bits
    assert covered == (ALL_BUCKETS if any(weights.values()) else 0)


@given(clusters())
def test_fewest_moves(cluster: tuple[dict[int, int], dict[int, int]]) -> None:
    """convergence.md: every host keeps up to its quota of what it holds."""
    weights, holdings = cluster
    shares = quotas(weights, holdings)
    wanted = target(MULTIPLE, weights, holdings)
    for host, held in holdings.items():
        assert wanted[host].bit_count() == shares[host]
        kept = (held & wanted[host]).bit_count()
        assert kept == min(held.bit_count(), shares[host])


@given(members)
def test_largest_share_of_equal_hosts(hosts: set[int]) -> None:
    """convergence.md, fewest-moves: largest share = ceil(60/N) for N equal hosts."""
    wanted = target(MULTIPLE, dict.fromkeys(hosts, 50), {})
    assert max(bits.bit_count() for bits in wanted.values()) == math.ceil(BUCKETS / len(hosts))


@given(clusters())
def test_the_same_target_for_any_order_of_members(
    cluster: tuple[dict[int, int], dict[int, int]],
) -> None:
    weights, holdings = cluster
    backwards = dict(reversed(weights.items()))
    assert target(MULTIPLE, weights, holdings) == target(MULTIPLE, backwards, holdings)


@given(clusters())
def test_a_settled_target_is_stable(cluster: tuple[dict[int, int], dict[int, int]]) -> None:
    weights, holdings = cluster
    once = target(MULTIPLE, weights, holdings)
    assert target(MULTIPLE, weights, once) == once


def test_ties_go_to_who_already_holds_more_then_to_the_lower_id() -> None:
    weights = dict.fromkeys((1, 2, 3, 4, 5, 6, 7), 50)
    assert quotas(weights, {})[1] == 9
    assert quotas(weights, {})[7] == 8
    assert quotas(weights, {7: 0b1})[7] == 9


def test_weights_30_and_60() -> None:
    """reference/nlb.md 2.3: 30/60 -> 1/3, 2/3 (Q198496)."""
    wanted = target(MULTIPLE, {1: 30, 2: 60}, {})
    assert {host: bits.bit_count() for host, bits in wanted.items()} == {1: 20, 2: 40}


def test_a_join_to_three_moves_five_from_each() -> None:
    before = target(MULTIPLE, dict.fromkeys((1, 2, 3), 50), {})
    after = target(MULTIPLE, dict.fromkeys((1, 2, 3, 4), 50), before)
    assert [(before[host] & ~after[host]).bit_count() for host in (1, 2, 3)] == [5, 5, 5]


def test_single_host_rule_goes_to_the_best_handling_priority() -> None:
    assert target(SINGLE, {1: 3, 2: 1, 3: 2}, {1: ALL_BUCKETS}) == {1: 0, 2: ALL_BUCKETS, 3: 0}


def test_a_draining_host_counts_as_weight_0() -> None:
    assert target(SINGLE, {1: 3, 2: 0, 3: 2}, {})[3] == ALL_BUCKETS
    assert target(MULTIPLE, {1: 50, 2: 0}, {2: ALL_BUCKETS}) == {1: ALL_BUCKETS, 2: 0}


def test_all_weights_0_means_nobody() -> None:
    assert target(MULTIPLE, {1: 0, 2: 0}, {1: ALL_BUCKETS}) == {1: 0, 2: 0}
    assert target(SINGLE, {1: 0}, {1: ALL_BUCKETS}) == {1: 0}


def test_a_disabled_rule_has_no_owner() -> None:
    assert target(DISABLED, {1: 50, 2: 50}, {1: 1}) == {1: 0, 2: 0}


def test_default_rule_goes_to_the_default_host() -> None:
    assert target(DEFAULT_RULE, {4: 4, 9: 9}, {})[4] == ALL_BUCKETS


def test_lowest_bits() -> None:
    assert lowest_bits(0b11010, 2) == 0b01010
    assert lowest_bits(0b11010, 9) == 0b11010
    assert lowest_bits(0b11010, 0) == 0


def test_fresh_start() -> None:
    """What `softnlb explain --hosts 2,5` uses offline."""
    weights = {2: (50, 50, 50), 5: (50, 50, 50)}
    priorities = {2: (2, 2, 2), 5: (1, 1, 1)}
    slots = fresh_start((MULTIPLE, SINGLE, DISABLED), weights, priorities)
    assert slots == (
        {2: (1 << 30) - 1, 5: ALL_BUCKETS & ~((1 << 30) - 1)},
        {2: 0, 5: ALL_BUCKETS},
        {2: 0, 5: 0},
        {2: ALL_BUCKETS, 5: 0},
    )
