"""Targets: who shall own which bucket of a rule.  Pure functions of members and their holdings.

Every host computes the same target from the same snapshots, so nobody has to be told it.
"""

from collections.abc import Mapping, Sequence

from convergence.rules import ALL_BUCKETS, BUCKETS, DEFAULT_RULE, FilteringMode, PortRule


def quotas(weights: Mapping[int, int], holdings: Mapping[int, int]) -> dict[int, int]:
    """Buckets per host id: 60 x weight / sum of weights by largest remainder.

    Ties go to hosts that hold more than their whole share already, so that a settled target stays
    as it is; then to who holds more, then to the lower host id.  All weights 0: all 0.
    """
    total = sum(weights.values())
    if total == 0:
        return dict.fromkeys(weights, 0)
    shares = {host: BUCKETS * weight // total for host, weight in weights.items()}
    held = {host: holdings.get(host, 0).bit_count() for host in weights}
    rest = BUCKETS - sum(shares.values())
    order = sorted(
        weights,
        key=lambda host: (
            -(BUCKETS * weights[host] % total),
            held[host] <= shares[host],
            -held[host],
            host,
        ),
    )
    for host in order[:rest]:
        shares[host] += 1
    return shares


def lowest_bits(bits: int, count: int) -> int:
    """The ``count`` lowest set bits of ``bits``, all of them when there are fewer."""
    if bits.bit_count() <= count:
        return bits
    kept = 0
    for _ in range(count):
        lowest = bits & -bits
        kept |= lowest
        bits ^= lowest
    return kept


def _multiple_hosts(weights: Mapping[int, int], holdings: Mapping[int, int]) -> dict[int, int]:
    shares = quotas(weights, holdings)
    if not any(shares.values()):
        return dict.fromkeys(weights, 0)
    free = ALL_BUCKETS
    target: dict[int, int] = {}
    for host in sorted(weights):
        target[host] = lowest_bits(holdings.get(host, 0) & free, shares[host])
        free &= ~target[host]
    for host in sorted(weights):
        wanted = shares[host] - target[host].bit_count()
        if wanted:
            taken = lowest_bits(free, wanted)
            target[host] |= taken
            free ^= taken
    return target


def target(
    rule: PortRule, weights: Mapping[int, int], holdings: Mapping[int, int]
) -> dict[int, int]:
    """Map per host id for one slot.

    ``weights``: per member the load weight, for a single-host rule the handling priority (lowest
    wins, then the lower host id); 0 = takes nothing.  The default rule is a single-host rule whose
    handling priority is the host id.  ``holdings``: per member the snapshot of what it holds.
    """
    if rule.filtering_mode is FilteringMode.MULTIPLE_HOSTS:
        return _multiple_hosts(weights, holdings)
    result = dict.fromkeys(weights, 0)
    if rule.filtering_mode is FilteringMode.SINGLE_HOST:
        able = [(priority, host) for host, priority in weights.items() if priority]
        if able:
            result[min(able)[1]] = ALL_BUCKETS
    return result


def fresh_start(
    rules: Sequence[PortRule],
    load_weights: Mapping[int, Sequence[int]],
    handling_priorities: Mapping[int, Sequence[int]],
) -> tuple[dict[int, int], ...]:
    """Maps per slot and host id when these hosts start together and nobody holds anything.

    ``rules``: the user's, without the default rule, which is the last slot of the result.
    ``load_weights`` and ``handling_priorities``: per host id one number per rule.
    """
    hosts = sorted(load_weights)
    result = []
    for slot, rule in enumerate(rules):
        single = rule.filtering_mode is FilteringMode.SINGLE_HOST
        numbers = handling_priorities if single else load_weights
        result.append(target(rule, {host: numbers[host][slot] for host in hosts}, {}))
    result.append(target(DEFAULT_RULE, {host: host for host in hosts}, {}))
    return tuple(result)
