"""Extended affinity on a running host: between the machine, which decides who keeps which client,
and the data plane, which knows the clients.

A client is silent when it has sent no opening segment or datagram, and no connection of its was
found by any look at the host's sockets, for the time-out of its rule.
"""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from convergence.events import (
    ClientsListed,
    ExceptionsChanged,
    ForgetClients,
    KeepClients,
    ListClients,
    LogEvent,
    Severity,
)
from convergence.machine import Machine
from softnlb.explain import rule_text
from softnlb.filter import FilterTable
from softnlb.known_clients import CLIENTS_MAX, Known, NoClients
from softnlb.scanner import Scan
from softnlb.serving import Serving
from softnlb.socket_watch import SWEEP_MS, remembers_clients

TELL_MS = 60_000
_MINUTE_MS = 60_000
_NETWORK_BITS = {4: 24, 16: 64}


Order = ListClients | ForgetClients | KeepClients | ExceptionsChanged
"""What the machine wants of the data plane."""


class Affinity:
    """The agent's part; ``asked`` is the machine's question that waits for its answer."""

    def __init__(self) -> None:
        self.asked: ListClients | None = None
        self._next_sweep_ms = 0
        self._refused = 0
        self._told_ms = -TELL_MS

    def carry_out(self, serving: Serving, output: Order) -> None:
        """Hand it to the data plane, or remember the question."""
        if isinstance(output, ListClients):
            self.asked = output
        elif isinstance(output, ForgetClients):
            serving.plane.forget(output.keys)
        elif isinstance(output, KeepClients):
            known = serving.plane.clients()
            serving.plane.forget([one.key for one in known if one.key[0] not in output.slots])
        else:
            serving.leave_to_others(output.added, output.removed)

    def answer(self, serving: Serving | None, now_ms: int) -> ClientsListed:
        """Whom the data plane remembers in the claimed buckets, the last heard first."""
        asked, self.asked = self.asked, None
        if asked is None or serving is None:
            return ClientsListed(now_ms, 0, ())
        rules = serving.table.rules
        known = [
            one
            for one in serving.plane.clients()
            if asked.claimed[one.key[0]] & ~rules[one.key[0]].current & 1 << one.bucket
        ]
        known.sort(key=lambda one: -one.heard_ms)
        return ClientsListed(now_ms, asked.serial, tuple(one.key for one in known))

    def sweep(
        self,
        serving: Serving,
        machine: Machine,
        scan: Scan,
        now_ms: int,
        tell: Callable[[LogEvent], None],
    ) -> bool:
        """Forget who has been silent for too long; True when somebody is on the list no more."""
        if (
            now_ms < self._next_sweep_ms
            or scan.clients is None
            or not remembers_clients(serving.table)
        ):
            return False
        self._next_sweep_ms = now_ms + SWEEP_MS
        known = serving.plane.clients()
        serving.plane.heard([one for one in known if one.key in scan.clients], scan.began_ms)
        gone = [
            one.key
            for one in known
            if one.key not in scan.clients and _is_over(serving, one, now_ms)
        ]
        if gone:
            serving.plane.forget(gone)
        refused = serving.plane.not_remembered() - self._refused
        if refused > 0 and now_ms >= self._told_ms + TELL_MS:
            self._refused += refused
            self._told_ms = now_ms
            tell(_full(refused))
        left = {one.key for one in known}.difference(gone)
        return not left.issuperset(machine.listed_clients or ())


def _full(refused: int) -> LogEvent:
    text = (
        f"This host remembers {CLIENTS_MAX} clients at most: {refused} were accepted and not "
        "remembered, and may be served elsewhere after a change."
    )
    return LogEvent("affinity-full", Severity.WARNING, text, {"clients": refused})


def _is_over(serving: Serving, one: Known, now_ms: int) -> bool:
    """Silent for too long, or in a bucket that this host neither owns nor claims."""
    rule = serving.table.rules[one.key[0]]
    if not (rule.current | rule.claimed) >> one.bucket & 1:
        return True
    return now_ms - one.heard_ms >= rule.rule.timeout_min * _MINUTE_MS


# ---------------------------------------------------------------- what an operator may ask


class Present(NoClients):
    """The clients of a host as they are now, for `softnlb explain`: asked, none is heard."""

    def __init__(self, serving: Serving | None) -> None:
        self._serving = serving if serving and remembers_clients(serving.table) else None

    def is_excepted(self, slot: int, key: bytes) -> bool:
        return self._serving is not None and bytes((slot,)) + key in self._serving.exceptions

    def recall(self, slot: int, key: bytes) -> bool:
        wanted = bytes((slot,)) + key
        serving = self._serving
        return serving is not None and any(one.key == wanted for one in serving.plane.clients())


def client_text(table: FilterTable, key: bytes) -> str:
    """A client as its rule's affinity sees it: an address, or a network."""
    address = ip_address(key[1:])
    if table.rules[key[0]].rule.affinity.name == "NETWORK":
        return f"{address}/{_NETWORK_BITS[len(key) - 1]}"
    return str(address)


def answers(serving: Serving | None, machine: Machine, now_ms: int) -> dict[str, Any]:
    """The clients that this host remembers, and those that it leaves to others."""
    if serving is None:
        return {"clients": [], "exceptions": []}
    table = serving.table
    kept = frozenset(machine.listed_clients or ())
    return {
        "clients": [
            {
                "rule": rule_text(table.rules[one.key[0]].rule),
                "client": client_text(table, one.key),
                "bucket": one.bucket,
                "listed": one.key in kept,
                "silent_s": max(0, now_ms - one.heard_ms) // 1000,
            }
            for one in sorted(serving.plane.clients(), key=lambda one: one.key)
        ],
        "exceptions": [
            {
                "rule": rule_text(table.rules[key[0]].rule),
                "client": client_text(table, key),
                "host_id": host_id,
            }
            for host_id, keys in sorted(machine.exceptions.items())
            for key in sorted(keys)
        ],
    }
