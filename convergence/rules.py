"""Port rules: what the hosts of a cluster must agree on, in NLB's own terms (WMI PortRuleEx)."""

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

BUCKETS = 60
"""Buckets per port rule; a map of them is an int with bit b set for bucket b."""

ALL_BUCKETS = (1 << BUCKETS) - 1

HOST_ID_MAX = 32
PORT_RULES_MAX = 32
SLOTS_MAX = PORT_RULES_MAX + 1
"""Rule slots of a heartbeat: the user's port rules in order, then the default rule."""

TIMEOUT_MIN_MAX = 240
"""Minutes of extended affinity at most, as in NLB."""

EQUAL_LOAD_WEIGHT = 50
"""What equal load counts beside hosts that have a load weight."""

IPAddress = IPv4Address | IPv6Address


class Protocol(IntEnum):
    """Protocol of a port rule; the values are NLB's."""

    TCP = 1
    UDP = 2
    BOTH = 3


class FilteringMode(IntEnum):
    """Who takes the traffic of a rule; the values are NLB's."""

    SINGLE_HOST = 1
    MULTIPLE_HOSTS = 2
    DISABLED = 3


class Affinity(IntEnum):
    """What of the client is hashed: address and port, address, or /24 (IPv4) and /64 (IPv6)."""

    NONE = 0
    SINGLE = 1
    NETWORK = 2


@dataclass(frozen=True, slots=True)
class PortRule:
    """One port rule, the fields that every host must share.

    ``cluster_ip_address`` None means All: every cluster IP address that has no rule of its own
    for the port.  Ports are inclusive, 0..65535.  Load weight and handling priority are per host
    and live in the host's configuration.
    """

    cluster_ip_address: IPAddress | None
    start_port: int
    end_port: int
    protocol: Protocol = Protocol.BOTH
    filtering_mode: FilteringMode = FilteringMode.MULTIPLE_HOSTS
    affinity: Affinity = Affinity.SINGLE
    timeout_min: int = 0
    """Extended affinity: minutes for which a silent client keeps its host; 0: not at all."""

    @property
    def remembers_clients(self) -> bool:
        """Extended affinity is in force; as in NLB the time-out means nothing elsewhere."""
        return (
            self.timeout_min > 0
            and self.filtering_mode is FilteringMode.MULTIPLE_HOSTS
            and self.affinity is not Affinity.NONE
        )

    @property
    def code(self) -> int:
        """NLB's 32-bit port-rule code, fields combined by OR (reference/nlb.md 5.2).

        It collides for large ports and is sent for dissectors only; agreement between hosts is
        decided by the configuration digest.
        """
        affinity = self.affinity if self.filtering_mode == FilteringMode.MULTIPLE_HOSTS else 0
        return (
            self.start_port
            | self.end_port << 12
            | self.protocol << 24
            | self.filtering_mode << 28
            | affinity << 30
        ) & 0xFFFF_FFFF


DEFAULT_RULE = PortRule(None, 0, 65535, Protocol.BOTH, FilteringMode.SINGLE_HOST, Affinity.SINGLE)
"""Traffic that no rule matches: all of it to the default host.  Always the last slot."""
