"""The decision: which packets a host keeps.  Pure, and the reference for every data plane."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol as TypingProtocol

from convergence.rules import IPAddress, PortRule


class Verdict(StrEnum):
    """KEEP: up to the stack.  DROP: gone without an answer.  UNTOUCHED: not the cluster's."""

    KEEP = "keep"
    DROP = "drop"
    UNTOUCHED = "untouched"


class Reason(StrEnum):
    """Why; counted per reason and printed by `softnlb explain`."""

    OWNER = "owner"
    SECOND_CHANCE = "second-chance"
    NOT_MINE = "not-mine"
    NO_LEASE = "no-lease"
    DISABLED = "disabled"
    ORPHAN_RESET = "orphan-reset"
    STOPPED = "stopped"
    DRAINING = "draining"
    WRONG_INTERFACE = "wrong-interface"
    NEVER_FORWARD = "never-forward"
    ADDRESS_RESOLUTION = "address-resolution"
    ICMP_ERROR = "icmp-error"
    EVERY_HOST = "every-host"
    FRAGMENT = "fragment"
    MALFORMED = "malformed"
    REMOTE_CONTROL = "remote-control"
    SYN_COOKIE = "syn-cookie"
    CONNTRACK = "conntrack"
    TIME_WAIT = "time-wait"
    NO_SOCKET = "no-socket"
    TAGGED = "tagged"
    NOT_CLUSTER = "not-cluster"


@dataclass(frozen=True, slots=True)
class FilterRule:
    """A slot as the filter sees it: the rule and this host's buckets in it."""

    rule: PortRule
    current: int = 0
    orphan: int = 0
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class FilterTable:
    """Everything that a verdict depends on, but the packet, the sockets and the clock.

    ``rules``: the port rules in order, the default rule last, as in the heartbeat's slots.
    ``valid_until_ms``: boot-time clock; past it the host acts as if it owned no bucket.
    """

    interface: str
    cluster_mac: bytes
    cluster_ip_addresses: tuple[IPAddress, ...]
    local_ip_addresses: tuple[IPAddress, ...]
    hash_seed: int
    rules: tuple[FilterRule, ...]
    valid_until_ms: int
    started: bool = True
    draining: bool = False
    filter_icmp: bool = False
    remote_control_port: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with everything that led to it; None where the rule never got that far."""

    verdict: Verdict
    reason: Reason
    slot: int | None = None
    key: bytes | None = None
    hash: int | None = None
    bucket: int | None = None


class Sockets(TypingProtocol):
    """What the host's stack knows of a connection; a fake in tests, sock_diag in real life."""

    def tcp_state(self, flow: "Flow") -> str | None:
        """Name of the TCP state as in the kernel ("ESTABLISHED", "SYN_RECV", ...), LISTEN or None."""


Clock = Callable[[], int]
"""Boot-time clock in ms; read last, and only before an OWNER keep."""
