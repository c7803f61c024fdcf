"""What the commands `nlb` and `wlbs` print: NLB's order and names of parameters, our own words."""

import subprocess
import time
from collections.abc import Iterable
from typing import Any

from softnlb import __version__
from softnlb.errors import bad_params

Result = dict[str, Any]

ARGUMENTS = {
    "query": "[CLUSTER[:HOST] | all local | all global]",
    "start": "[CLUSTER[:HOST] | all local | all global]",
    "stop": "[CLUSTER[:HOST] | all local | all global]",
    "drainstop": "[CLUSTER[:HOST] | all local | all global]",
    "suspend": "[CLUSTER[:HOST] | all local | all global]",
    "resume": "[CLUSTER[:HOST] | all local | all global]",
    "enable": "{VIP|all}[:{PORT|all}] [CLUSTER[:HOST] | all local | all global]",
    "disable": "{VIP|all}[:{PORT|all}] [CLUSTER[:HOST] | all local | all global]",
    "drain": "{VIP|all}[:{PORT|all}] [CLUSTER[:HOST] | all local | all global]",
    "queryport": "[VIP:]PORT [CLUSTER[:HOST] | all local | all global]",
    "reload": "[CLUSTER | all local]",
    "display": "[CLUSTER | all local]",
    "params": "[CLUSTER | all local]",
    "ip2mac": "CLUSTER_IP_ADDRESS",
    "help": "[COMMAND]",
}
"""Command -> what follows it."""

MEANINGS = {
    "query": "state of the host and the members of its cluster",
    "start": "join the cluster",
    "stop": "leave the cluster at once; connections are lost",
    "drainstop": "take nothing new, leave after the last connection",
    "suspend": "stop, and obey nothing but resume and query",
    "resume": "end a suspension; the host stays stopped",
    "enable": "take the traffic of a port rule again",
    "disable": "take no traffic of a port rule",
    "drain": "take no new connections of a port rule",
    "queryport": "state and counters of the port rule that covers a port",
    "reload": "read the configuration again",
    "display": "configuration, events, addresses and state of the host",
    "params": "the parameters in force",
    "ip2mac": "the MAC addresses of a cluster; a calculation, nothing needs to run",
    "help": "this text, or that of one command",
}

STATES = {
    "converging": "is converging",
    "converged": "has converged",
    "draining": "is draining",
    "stopped": "is stopped",
    "suspended": "is suspended",
}


def banner() -> None:
    """The first line of every answer."""
    print(f"Cluster control with NLB's grammar, softnlb {__version__}")


def cluster(name: str | None) -> None:
    """The line above the answers of a cluster's hosts."""
    if name is not None:
        print(f"Cluster {name}")


def help_text(command: str | None) -> None:
    """All commands, or one of them."""
    if command not in (None, "help", *ARGUMENTS):
        raise bad_params(f"{command!r} is no command.")
    commands = ARGUMENTS if command in (None, "help") else {command: ARGUMENTS[str(command)]}
    banner()
    print("Usage: nlb COMMAND [TARGET] [/LOCAL] [/PASSW [PASSWORD]] [/PORT PORT] [/H]")
    for name, arguments in commands.items():
        print(f"  {name} {arguments}\n      {MEANINGS[name]}")
    print("  /LOCAL  ask the hosts of this computer only")
    print("  /PASSW  accepted and not needed: remote control takes the cluster key")
    print("  /PORT   UDP port of remote control, 2504 unless given")


def query(result: Result) -> None:
    """Convergence, state, members."""
    host_id, state = result["host_id"], result["state"]
    count, s_ago = result["convergence_count"], result["last_converged_s_ago"]
    if state in ("stopped", "suspended"):
        print(f"Host {host_id} {STATES[state]}.")
        return
    if state == "converging" or s_ago is None:
        print(f"Converged {count} time(s) so far and converging now.")
    else:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - s_ago))
        print(f"Converged {count} time(s), the last time at {at}.")
    default = state == "converged" and result["default_host"] == host_id
    print(
        f"Host {host_id} {STATES.get(state, state)}{' as DEFAULT' if default else ''}."
        " Members of the cluster:"
    )
    print(", ".join(str(member) for member in result["members"]))


def queryport(result: Result) -> None:
    """State of the rule that covers a port, and its packets."""
    print(f"Rule {result['rule']} is {result['state']}.")
    print(f"Packets: Accepted={result['accepted']}, Dropped={result['dropped']}")


def order(result: Result) -> None:
    """What an order did."""
    message = str(result["message"])
    print(f"{message[:1].upper()}{message[1:]}.")


def ip2mac(result: Result) -> None:
    """The MAC addresses of a cluster."""
    print(f"Cluster:          {result['cluster_ip_address']}")
    print(f"Unicast MAC:      {result['unicast']}")
    print(f"Multicast MAC:    {result['multicast']}")
    group = result.get("igmp_multicast") or result["mld_multicast"]
    print(f"IGMP/MLD MAC:     {group}")


def params(result: Result) -> None:
    """The parameters under NLB's names."""
    _lines(_parameters(result))


def display(result: Result) -> None:
    """Configuration, events, addresses, state: the order of nlb.exe."""
    print("\n=== Configuration ===")
    _lines([("Current time", time.strftime("%Y-%m-%d %H:%M:%S")), *_parameters(result["params"])])
    rules = [rule for rule in result["rules"] if "start_port" in rule]  # the default rule has none
    _lines([("NumberOfRules", len(rules))])
    _table(
        ("VIP", "Start", "End", "Prot", "Mode", "Pri", "Load", "Affinity", "Timeout"),
        (_rule(rule) for rule in rules),
    )
    print("\n=== Event messages ===")
    for event in result["events"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        print(f"{at}  {event['severity']:<8} {event['text']}")
    print("\n=== IP configuration ===")
    print(addresses(result["params"]["interface"]))
    print("\n=== Current state ===")
    query(result["query"])


def addresses(interface: str) -> str:
    """What `ip address` shows of an interface; a sentence when it shows nothing."""
    done = subprocess.run(
        ["ip", "address", "show", "dev", interface], capture_output=True, text=True, check=False
    )
    return done.stdout.rstrip() or f"no interface {interface}"


def _parameters(result: Result) -> list[tuple[str, object]]:
    """(NLB's name, value) for every parameter of NLB's that softnlb has."""
    address, _, _ = result["cluster_ip_address"].partition("/")
    dedicated, mode = result["dedicated_ip_address"], result["mode"]
    remote = result.get("remote_control_port")
    return [
        ("ParametersVersion", 6),
        ("VirtualNICName", result["interface"]),
        ("AliveMsgPeriod", result["alive_message_period_ms"]),
        ("AliveMsgTolerance", result["alive_message_tolerance"]),
        ("ClusterIPAddress", address),
        ("ClusterNetworkMask", _mask(result["cluster_ip_addresses"][0])),
        ("DedicatedIPAddress", dedicated.partition("/")[0]),
        ("DedicatedNetworkMask", _mask(dedicated)),
        ("ClusterNetworkAddress", result["cluster_mac"].lower()),
        ("IPToMACEnable", _switch(not result["cluster_mac_by_hand"])),
        ("MulticastSupportEnable", _switch(mode != "unicast")),
        ("IGMPSupport", _switch(mode == "igmp")),
        ("MulticastARPEnable", _switch(result["arp_for_vip"])),
        ("MaskSourceMAC", _switch(result["mask_source_mac"])),
        ("FilterICMP", _switch(result["filter_icmp"])),
        ("HostPriority", result["host_id"]),
        ("ClusterModeOnStart", str(result["initial_state"]).upper()),
        ("PersistedStates", "SUSPENDED" if result["retain_suspended"] else "NONE"),
        ("RemoteControlEnabled", _switch(remote is not None)),
        *([("RemoteControlUDPPort", remote)] if remote is not None else []),
    ]


def _mask(interface: str) -> str:
    from ipaddress import ip_interface

    network = ip_interface(interface).network
    return str(network.netmask) if network.version == 4 else str(network.prefixlen)


def _switch(value: bool) -> str:
    return "ENABLED" if value else "DISABLED"


def _rule(rule: Result) -> list[object]:
    mode = rule["filtering_mode"]
    multiple = mode == "multiple"
    load = "Equal" if rule["load_weight"] == 50 else rule["load_weight"]
    return [
        rule["cluster_ip_address"].replace("all", "All"),
        rule["start_port"],
        rule["end_port"],
        {"both": "Both"}.get(rule["protocol"], rule["protocol"].upper()),
        mode.capitalize(),
        rule["handling_priority"] if mode == "single" else "",
        load if multiple else "",
        rule["affinity"].capitalize() if multiple else "",
        rule["timeout"] if multiple else "",
    ]


def _lines(pairs: Iterable[tuple[str, object]]) -> None:
    for name, value in pairs:
        print(f"{name:<24} = {value}")


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    texts = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in texts) for at in range(len(texts[0]))]
    for line in texts:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
