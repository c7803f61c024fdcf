"""What must fit together in a configuration file, and the ClusterConfig made of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from convergence.auth import Authentication, Keyring
from convergence.rules import (
    EQUAL_LOAD_WEIGHT,
    PORT_RULES_MAX,
    Affinity,
    FilteringMode,
    PortRule,
    Protocol,
)
from modes.mac import HOST_IDS, format_mac, host_mac, w_x_y_z
from modes.plan import InterfaceAddress, LinkChoices, Mode
from softnlb.config import ClusterConfig, ConfigError, Problem
from softnlb.config_schema import CLUSTER, HOST, PORT_RULE, TABLES
from softnlb.errors import ReturnCode
from softnlb.health_check import health_probes, read_probe
from softnlb.key_file import read_keys
from softnlb.table import Complaint, read_table, shown, unknown_key

TIMERS = {"nlb": (1000, 5), "fast": (100, 5)}
PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "both": Protocol.BOTH}
FILTERING_MODES = {
    "multiple": FilteringMode.MULTIPLE_HOSTS,
    "single": FilteringMode.SINGLE_HOST,
    "disabled": FilteringMode.DISABLED,
}
AFFINITIES = {"none": Affinity.NONE, "single": Affinity.SINGLE, "network": Affinity.NETWORK}

Values = dict[str, Any]


def build(path: Path, raw: Values) -> ClusterConfig:
    """Check a parsed file and make a ClusterConfig of it.  Raises ConfigError with all errors."""
    complaints: list[Complaint] = [
        Complaint(key, shown(raw[key]), unknown_key(key, TABLES)) for key in raw.keys() - TABLES
    ]
    cluster, host, rules = _read_tables(raw, complaints)
    complaints += _check_addresses(cluster, host)
    complaints += _check_cluster_mac(cluster)
    complaints += _check_rules(rules, cluster)
    keyring = _read_keyring(path, cluster, complaints)
    if complaints:
        problems = (_problem(path, complaint) for complaint in complaints)
        raise ConfigError(tuple(sorted(problems, key=_place)))
    return _config(path, cluster, host, rules, keyring)


def _problem(path: Path, complaint: Complaint) -> Problem:
    """NLB has one code for whatever is wrong with a port rule but its place among the others."""
    key, value, expected, code = complaint
    in_rule = key.startswith("port_rule")
    code = code or (ReturnCode.BAD_PORT_PARAMS if in_rule else ReturnCode.BAD_PARAMS)
    return Problem(str(path), key, value, expected, code.name)


def _place(problem: Problem) -> tuple[int, int]:
    """Sort as the file is usually written: cluster, host, port rules by number."""
    table, _, rest = problem.key.partition("[")
    number = rest.partition("]")[0]
    order = ["cluster", "host", "port_rule"]
    name = table.partition(".")[0]
    return (order.index(name) if name in order else -1), int(number) if number.isdigit() else 0


def _read_tables(raw: Values, complaints: list[Complaint]) -> tuple[Values, Values, list[Values]]:
    values: list[Values] = []
    for name, known in (("cluster", CLUSTER), ("host", HOST)):
        table = raw.get(name, {})
        if not isinstance(table, dict):
            complaints.append(Complaint(name, shown(table), f"a table, [{name}]"))
            values.append({})
            continue
        good, bad = read_table(known, table, name)
        values.append(good)
        complaints += bad
    tables = raw.get("port_rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        complaints.append(Complaint("port_rule", shown(tables), "tables, [[port_rule]]"))
        tables = []
    if len(tables) > PORT_RULES_MAX:
        expected = f"at most {PORT_RULES_MAX} port rules"
        found, code = f"{len(tables)} rules", ReturnCode.MAX_PORT_RULES
        complaints.append(Complaint("port_rule", found, expected, code))
    rules = []
    for number, table in enumerate(tables or [{}], 1):  # none at all: NLB's rule for everything
        good, bad = read_table(PORT_RULE, table, f"port_rule[{number}]")
        rules.append(good)
        complaints += bad
        if good.get("health_probe") is not None:
            complaints += read_probe(good, f"port_rule[{number}]")
    return values[0], values[1], rules


def _check_addresses(cluster: Values, host: Values) -> Iterator[Complaint]:
    addresses = _cluster_ip_addresses(cluster)
    seen = set()
    for address in addresses:
        if address.ip in seen:
            expected = f"each cluster IP address once, {address.ip} is there twice"
            yield Complaint("cluster.additional_ip_addresses", shown(str(address)), expected)
        seen.add(address.ip)
    dedicated = host.get("dedicated_ip_address")
    others = host.get("additional_dedicated_ip_addresses", [])
    for key, own in (("", dedicated), *(("additional_", other) for other in others)):
        if own and own.ip in seen:
            expected = "an address of this host alone, not a cluster IP address"
            name = "dedicated_ip_addresses" if key else "dedicated_ip_address"
            yield Complaint(f"host.{key}{name}", shown(str(own)), expected)
    if dedicated and "ip_address" in cluster and dedicated.version != addresses[0].version:
        expected = f"an IPv{addresses[0].version} address, as cluster.ip_address is"
        yield Complaint("host.dedicated_ip_address", shown(str(dedicated)), expected)
    six = any(address.version == 6 for address in addresses)
    if six and dedicated and not any(own.version == 6 for own in (dedicated, *others)):
        expected = "an IPv6 address of this host beside an IPv6 cluster address"
        yield Complaint("host.additional_dedicated_ip_addresses", "", expected)
    if cluster.get("authentication") and cluster.get("key_file", "") is None:
        yield Complaint(
            "cluster.authentication", shown(cluster["authentication"]), "a key_file beside it"
        )


def _check_cluster_mac(cluster: Values) -> Iterator[Complaint]:
    cluster_mac, mode = cluster.get("cluster_mac"), cluster.get("mode")
    if cluster_mac is None or mode is None:
        return
    expected = None
    if mode == "igmp":
        expected = "none in IGMP mode: it is the MAC address of the group"
    elif bool(cluster_mac[0] & 1) != (mode == "multicast"):
        expected = f"the address of {'a group' if mode == 'multicast' else 'one station'}"
    elif not any(cluster_mac) or cluster_mac == b"\xff" * 6:
        expected = "an address that stations can have"
    elif mode == "unicast" and "ip_address" in cluster:
        primary = cluster["ip_address"].ip
        if cluster_mac in {host_mac(host_id, primary) for host_id in HOST_IDS}:
            expected = "an address that no host has as its own, as 02-01-w-x-y-z has"
    if expected:
        yield Complaint("cluster.cluster_mac", shown(format_mac(cluster_mac)), expected)


def _cluster_ip_addresses(cluster: Values) -> list[InterfaceAddress]:
    primary = [cluster["ip_address"]] if "ip_address" in cluster else []
    return [*primary, *cluster.get("additional_ip_addresses", [])]


def _check_rules(rules: list[Values], cluster: Values) -> Iterator[Complaint]:
    complete = "ip_address" in cluster and "additional_ip_addresses" in cluster
    known = {address.ip for address in _cluster_ip_addresses(cluster)}
    for number, rule in enumerate(rules, 1):
        address = rule.get("cluster_ip_address")
        if complete and address is not None and address not in known:
            expected = f'"all" or one of {", ".join(str(a) for a in sorted(known))}'
            key = f"port_rule[{number}].cluster_ip_address"
            yield Complaint(key, shown(str(address)), expected)
    for (first, one), (second, other) in combinations(enumerate(rules, 1), 2):
        if _overlap(one, other):
            start, end = other["ports"]
            expected = f"ports that are not in port_rule[{first}] of the same address"
            key, value = f"port_rule[{second}].ports", shown(f"{start}-{end}")
            yield Complaint(key, value, expected, ReturnCode.PORT_OVERLAP)


def _overlap(one: Values, other: Values) -> bool:
    needed = {"cluster_ip_address", "ports", "protocol"}
    if not (needed <= one.keys() and needed <= other.keys()):
        return False  # a complaint about the missing key stands already
    return bool(
        one["cluster_ip_address"] == other["cluster_ip_address"]
        and PROTOCOLS[one["protocol"]] & PROTOCOLS[other["protocol"]]
        and one["ports"][0] <= other["ports"][1]
        and other["ports"][0] <= one["ports"][1]
    )


def _read_keyring(path: Path, cluster: Values, complaints: list[Complaint]) -> Keyring:
    """The keys of the cluster.  Complaints name the file, never what stands in it."""
    name = cluster.get("key_file")
    if name is None:
        if cluster.get("remote_control"):
            expected = "a key_file beside it: without a key anybody could command the hosts"
            complaints.append(Complaint("cluster.remote_control", "true", expected))
        return Keyring()
    try:
        keys = read_keys(path.parent / name)
    except OSError as error:
        expected = f"a file that can be read ({(error.strerror or str(error)).lower()})"
    except ValueError as error:
        expected = str(error)
    else:
        return Keyring(keys, Authentication(cluster.get("authentication") or "enforce"))
    complaints.append(Complaint("cluster.key_file", shown(name), expected))
    return Keyring()


def _config(
    path: Path, cluster: Values, host: Values, rules: list[Values], keyring: Keyring
) -> ClusterConfig:
    addresses = tuple(_cluster_ip_addresses(cluster))
    period_ms, tolerance = TIMERS[cluster["timers"]]
    seed = cluster["hash_seed"]
    return ClusterConfig(
        path=path,
        cluster_ip_addresses=addresses,
        mode=Mode(cluster["mode"]),
        alive_message_period_ms=cluster["alive_message_period_ms"] or period_ms,
        alive_message_tolerance=cluster["alive_message_tolerance"] or tolerance,
        hash_seed=int(w_x_y_z(addresses[0].ip)) if seed is None else seed,
        filter_icmp=cluster["filter_icmp"],
        port_rules=tuple(_port_rule(rule) for rule in rules),
        load_weights=tuple(_load_weight(rule) for rule in rules),
        handling_priorities=tuple(rule["handling_priority"] or host["id"] for rule in rules),
        host_id=host["id"],
        interface=host["interface"],
        dedicated_ip_address=host["dedicated_ip_address"],
        additional_dedicated_ip_addresses=tuple(host["additional_dedicated_ip_addresses"]),
        initial_state=host["initial_state"],
        retain_suspended=host["retain_suspended"],
        data_plane=host["data_plane"],
        attach=host["attach"],
        control_group=host["control_group"],
        remote_control_port=cluster["remote_control_port"] if cluster["remote_control"] else None,
        keyring=keyring,
        link_choices=LinkChoices(
            cluster["cluster_mac"], cluster["mask_source_mac"], cluster["arp_for_vip"]
        ),
        health_probes=tuple(health_probes(rules, addresses[0].ip)),
        warnings=(
            *_warnings(addresses[0], host["dedicated_ip_address"], cluster),
            *_timeouts_in_vain(rules),
        ),
    )


def _load_weight(rule: Values) -> int:
    weight = rule["load_weight"]
    return EQUAL_LOAD_WEIGHT if weight == "equal" else int(weight)


def _port_rule(rule: Values) -> PortRule:
    start, end = rule["ports"]
    return PortRule(
        rule["cluster_ip_address"],
        start,
        end,
        PROTOCOLS[rule["protocol"]],
        FILTERING_MODES[rule["filtering_mode"]],
        AFFINITIES[rule["affinity"]],
        rule["timeout"],
    )


def _timeouts_in_vain(rules: list[Values]) -> Iterator[str]:
    for number, rule in enumerate(rules, 1):
        if rule["timeout"] and not _port_rule(rule).remembers_clients:
            yield (
                f"The timeout of port rule {number} means nothing, as in NLB: extended affinity"
                " takes multiple hosts and affinity single or network."
            )


def _warnings(
    primary: InterfaceAddress, dedicated: InterfaceAddress, cluster: Values
) -> Iterator[str]:
    if dedicated.network != primary.network:
        yield (
            f"The dedicated IP address {dedicated} is outside the subnet of the cluster IP address"
            f" {primary}; NLB wants both in one subnet."
        )
    if not cluster["mask_source_mac"]:
        if cluster["mode"] == "unicast":
            yield (
                "mask_source_mac = false: behind a switch only the host that sent last gets the"
                " clients' frames, members do not reach each other, and a host whose rules are"
                " flushed answers until they are back."
            )
        else:
            yield "mask_source_mac = false means nothing in the multicast modes."
    if not cluster["arp_for_vip"]:
        yield "arp_for_vip = false: every router and client needs a static ARP entry."
