"""Explains one flow: rule, key, hash, bucket, owner, and what this host would do with it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convergence.rules import (
    BUCKETS,
    DEFAULT_RULE,
    FilteringMode,
    PortRule,
    Protocol,
)
from softnlb.allocation import Allocation, owners
from softnlb.filter import (
    Clock,
    Decision,
    FilterRule,
    FilterTable,
    NoSockets,
    Reason,
    Verdict,
    decide,
    hash_key,
    hash_of,
    match_rule,
)
from softnlb.known_clients import NO_CLIENTS, Clients
from softnlb.packet import Flow, flow_from_text

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

OwnerOf = Callable[[int, int], int | None]
"""Slot and bucket -> id of the host that owns it now, None when nobody does."""

Explanation = dict[str, Any]
"""Keys: rule, affinity, key (hex), hash, bucket, owner, verdict, reason; None where the packet
never got that far."""

_MODES = {
    FilteringMode.SINGLE_HOST: "single host",
    FilteringMode.MULTIPLE_HOSTS: "multiple hosts",
    FilteringMode.DISABLED: "disabled",
}
_PROTOCOLS = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.BOTH: "both"}

UNKNOWN_OWNER = "ownership depends on history: ask a running host, or name the live hosts"


def rule_text(rule: PortRule) -> str:
    """A port rule as one short text: "all:80/tcp multiple hosts, affinity none"."""
    if rule is DEFAULT_RULE:  # a rule of the user may have the same fields and is another one
        return "default rule"
    start, end = rule.start_port, rule.end_port
    ports = str(start) if start == end else f"{start}-{end}"
    text = f"{rule.cluster_ip_address or 'all'}:{ports}/{_PROTOCOLS[rule.protocol]}"
    text = f"{text} {_MODES[rule.filtering_mode]}"
    if rule.filtering_mode == FilteringMode.MULTIPLE_HOSTS:
        text += f", affinity {rule.affinity.name.lower()}"
    if rule.remembers_clients:
        text += f" for {rule.timeout_min} min"
    return text


def rule_fields(rule: PortRule) -> dict[str, str | int]:
    """The fields that hosts share of a port rule of the user, as they stand in a file."""
    return {
        "cluster_ip_address": str(rule.cluster_ip_address or "all"),
        "start_port": rule.start_port,
        "end_port": rule.end_port,
        "protocol": _PROTOCOLS[rule.protocol],
        "filtering_mode": _MODES[rule.filtering_mode].partition(" ")[0],
        "affinity": rule.affinity.name.lower(),
        "timeout": rule.timeout_min,
    }


def explain_flow(
    table: FilterTable,
    client: str,
    server: str,
    protocol: str,
    owner_of: OwnerOf,
    now_ms: Clock,
    clients: Clients = NO_CLIENTS,
) -> Explanation:
    """What a host with this table would do with the packet that opens the flow (a TCP SYN).

    ``client`` and ``server`` are address:port as text, ``protocol`` one of
    ``packet.PROTOCOLS``.  Raises UsageError when they are not.
    """
    flow = flow_from_text(client, server, protocol, table.interface)
    decision = decide(table, flow, NoSockets(), now_ms, clients)
    return _explanation(table, flow, decision, owner_of)


def explain_offline(
    config: "ClusterConfig",
    client: str,
    server: str,
    protocol: str,
    hosts: Sequence[int] | None = None,
) -> Explanation:
    """As ``explain_flow``, from a configuration alone.

    Without ``hosts`` owner and verdict are None.  With the ids of the live hosts they are those
    of a fresh start; every host then counts with the load weights of this file, the other hosts
    with their ids as handling priorities.  Raises UsageError for a flow or a host id that is none.
    """
    held_by = owners(Allocation(config, hosts).maps) if hosts else {}
    flow = flow_from_text(client, server, protocol)
    # With every bucket and an endless lease, only what does not depend on ownership can drop.
    table = table_of_file(config)
    decision = decide(table, flow, NoSockets(), lambda: 0)

    def owner_of(slot: int, bucket: int) -> int | None:
        return held_by.get(slot * BUCKETS + bucket)

    explained = _explanation(table, flow, decision, owner_of)
    owned = decision.reason is Reason.OWNER
    if not hosts:
        reason = UNKNOWN_OWNER if owned else str(decision.reason)
        return {**explained, "verdict": None, "reason": reason}
    if not owned:
        return explained
    mine = explained["owner"] == config.host_id
    why = Reason.OWNER if mine else Reason.NOT_MINE
    alive = ", ".join(str(host_id) for host_id in sorted(hosts))
    return {
        **explained,
        "verdict": str(Verdict.KEEP if mine else Verdict.DROP),
        "reason": f"{why} (fresh-start allocation of hosts {alive}; history may differ)",
    }


def _explanation(
    table: FilterTable, flow: Flow, decision: Decision, owner_of: OwnerOf
) -> Explanation:
    explained: Explanation = dict.fromkeys(("rule", "affinity", "key", "hash", "bucket", "owner"))
    slot = decision.slot
    if decision.reason is Reason.STOPPED:  # dropped before the rules, but they tell who takes it
        slot = match_rule(table, flow.destination, flow.protocol, flow.destination_port)
    if slot is not None:
        rule = table.rules[slot].rule
        key = hash_key(rule.affinity, flow.source, flow.source_port)
        hashed = hash_of(key, table.hash_seed)
        bucket = hashed % BUCKETS
        disabled = rule.filtering_mode == FilteringMode.DISABLED
        explained = {
            "rule": rule_text(rule),
            "affinity": rule.affinity.name.lower(),
            "key": key.hex(),
            "hash": hashed,
            "bucket": bucket,
            "owner": None if disabled else owner_of(slot, bucket),
        }
    return {**explained, "verdict": str(decision.verdict), "reason": str(decision.reason)}


def table_of_file(config: "ClusterConfig") -> FilterTable:
    """A table of this configuration that owns every bucket, at the time 0."""
    rules = config.port_rules_with_default
    addresses = tuple(address.ip for address in config.cluster_ip_addresses)
    return FilterTable(
        interface="",
        cluster_mac=b"",
        cluster_ip_addresses=addresses,
        local_ip_addresses=addresses,
        hash_seed=config.hash_seed,
        rules=tuple(FilterRule(rule, current=(1 << BUCKETS) - 1) for rule in rules),
        valid_until_ms=1,
        filter_icmp=config.filter_icmp,
        remote_control_port=config.remote_control_port,
    )
