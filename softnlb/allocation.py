"""Who would own which bucket when hosts start together: from a configuration alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from convergence.buckets import fresh_start, target
from convergence.rules import BUCKETS, DEFAULT_RULE, HOST_ID_MAX, FilteringMode
from softnlb.errors import ReturnCode, UsageError

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

Maps = tuple[dict[int, int], ...]
"""Per slot, host id -> the buckets it holds."""


class Allocation:
    """Who holds what when these hosts have started together, and after one of them has left."""

    def __init__(
        self,
        config: "ClusterConfig",
        hosts: Sequence[int],
        load_weights: Mapping[int, int] | None = None,
    ) -> None:
        """Every host has the load weights of this file, the other hosts their ids as handling
        priorities.  ``load_weights``: of single hosts, for all rules, instead.

        Raises UsageError for what is no host of the plan.
        """
        load_weights = load_weights or {}
        wrong = [host_id for host_id in hosts if not 1 <= host_id <= HOST_ID_MAX]
        if wrong or not hosts:
            text = f"{wrong[0]} is not a host id" if wrong else "no host"
            raise UsageError(f"{text}, expected 1 to {HOST_ID_MAX}", code=ReturnCode.BAD_PARAMS)
        unknown = sorted(load_weights.keys() - set(hosts))
        if unknown:
            raise _refused(f"--load-weight {unknown[0]}: no such host in the plan")
        self.hosts = sorted(hosts)
        self._rules = (*config.port_rules, DEFAULT_RULE)
        count = len(config.port_rules)
        self._weights = {
            host: (load_weights[host],) * count if host in load_weights else config.load_weights
            for host in hosts
        }
        self._priorities = {host: (host,) * count for host in hosts}
        if config.host_id in self._priorities:
            self._priorities[config.host_id] = config.handling_priorities
        self.maps: Maps = fresh_start(config.port_rules, self._weights, self._priorities)

    def without(self, host_id: int) -> Maps:
        """The maps after this host has left the others."""
        if host_id not in self.hosts:
            raise _refused(f"--fail {host_id}: no such host in the plan")
        left = [host for host in self.hosts if host != host_id]
        maps = []
        for slot, rule in enumerate(self._rules):
            holdings = {host: self.maps[slot].get(host, 0) for host in left}
            maps.append(target(rule, {host: self._number(host, slot) for host in left}, holdings))
        return tuple(maps)

    def _number(self, host: int, slot: int) -> int:
        if slot == len(self._rules) - 1:
            return host
        single = self._rules[slot].filtering_mode is FilteringMode.SINGLE_HOST
        return (self._priorities if single else self._weights)[host][slot]


def _refused(sentence: str) -> UsageError:
    return UsageError(sentence, code=ReturnCode.NOT_FOUND)


def owners(maps: Maps) -> dict[int, int]:
    """Index of slot and bucket -> host id."""
    return {
        slot * BUCKETS + bucket: host
        for slot, hosts in enumerate(maps)
        for host, held in hosts.items()
        for bucket in range(BUCKETS)
        if held >> bucket & 1
    }
