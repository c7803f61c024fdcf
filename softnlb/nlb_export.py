"""A PowerShell script that builds the same cluster with NLB.  Pure."""

from ipaddress import IPv4Interface, IPv6Interface

from convergence.rules import FilteringMode, PortRule, Protocol
from modes.mac import format_mac, w_x_y_z
from modes.plan import Mode
from softnlb.config import ClusterConfig

MODES = {Mode.UNICAST: "UNICAST", Mode.MULTICAST: "MULTICAST", Mode.IGMP: "IGMPMULTICAST"}
FILTERING = {
    FilteringMode.MULTIPLE_HOSTS: "MULTIPLE",
    FilteringMode.SINGLE_HOST: "SINGLE",
    FilteringMode.DISABLED: "DISABLED",
}
PROTOCOLS = {Protocol.TCP: "TCP", Protocol.UDP: "UDP", Protocol.BOTH: "BOTH"}
NLB_TIMERS = (1000, 5)


def script(config: ClusterConfig) -> tuple[str, list[str]]:
    """The script for the first host, and a sentence for whatever NLB has no equal for."""
    primary, *additional = config.cluster_ip_addresses
    lacking = _lacking(config)
    lines = [
        "# Builds the cluster of a softnlb configuration with NLB; run it on its first host.",
        *(f"# not taken over: {text}" for text in lacking),
        "$ErrorActionPreference = 'Stop'",
        f"$interface = {_quoted(config.interface)}  # the name of the adapter in Windows",
        "New-NlbCluster -InterfaceName $interface"
        f" {_address('ClusterPrimaryIP', 'SubnetMask', primary)}"
        f" {_address('DedicatedIP', 'DedicatedIPSubnetMask', config.dedicated_ip_address)}"
        f" -OperationMode {MODES[config.mode]} -Force",
        *(
            f"Add-NlbClusterVip -InterfaceName $interface {_address('IP', 'SubnetMask', one)}"
            for one in additional
        ),
        *(
            f"Add-NlbClusterNodeDip -InterfaceName $interface {_address('IP', 'SubnetMask', one)}"
            for one in config.additional_dedicated_ip_addresses
        ),
        "Set-NlbClusterNode -InterfaceName $interface"
        f" -HostPriority {config.host_id} -InitialHostState {config.initial_state.capitalize()}"
        f" -RetainSuspended ${str(config.retain_suspended).lower()} -Force",
        "Get-NlbClusterPortRule -InterfaceName $interface | Remove-NlbClusterPortRule -Force",
    ]
    for slot, rule in enumerate(config.port_rules):
        lines += _rule(config, slot, rule)
    return "\n".join(lines) + "\n", lacking


def _rule(config: ClusterConfig, slot: int, rule: PortRule) -> list[str]:
    where = f" -IP {rule.cluster_ip_address}" if rule.cluster_ip_address else ""
    multiple = rule.filtering_mode is FilteringMode.MULTIPLE_HOSTS
    affinity = f" -Affinity {rule.affinity.name}" if multiple else ""
    if rule.remembers_clients:
        affinity += f" -Timeout {rule.timeout_min}"
    lines = [
        f"Add-NlbClusterPortRule -InterfaceName $interface{where}"
        f" -StartPort {rule.start_port} -EndPort {rule.end_port}"
        f" -Protocol {PROTOCOLS[rule.protocol]} -Mode {FILTERING[rule.filtering_mode]}{affinity}"
    ]
    own = f"-InterfaceName $interface{where} -Port {rule.start_port}"
    weight, priority = config.load_weights[slot], config.handling_priorities[slot]
    if multiple and weight != 50:
        lines.append(f"Set-NlbClusterPortRuleNodeWeight {own} -LoadWeight {weight}")
    elif rule.filtering_mode is FilteringMode.SINGLE_HOST:
        lines.append(
            f"Set-NlbClusterPortRuleNodeHandlingPriority {own} -HandlingPriority {priority}"
        )
    return lines


def _lacking(config: ClusterConfig) -> list[str]:
    lacking = []
    period_ms, tolerance = config.alive_message_period_ms, config.alive_message_tolerance
    if (period_ms, tolerance) != NLB_TIMERS:
        lacking.append(
            f"alive message period {period_ms} ms, tolerance {tolerance}: registry values"
            " AliveMsgPeriod and AliveMsgTolerance, no cmdlet sets them"
        )
    choices = config.link_choices
    if choices.cluster_mac is not None:
        lacking.append(
            f"cluster_mac {format_mac(choices.cluster_mac)}: registry values IPToMACEnable and"
            " ClusterNetworkAddress, no cmdlet sets them"
        )
    if not choices.mask_source_mac:
        lacking.append("mask_source_mac: registry value MaskSourceMAC, no cmdlet sets it")
    if not choices.arp_for_vip:
        lacking.append("arp_for_vip: registry value MulticastARPEnable, no cmdlet sets it")
    if config.hash_seed != int(w_x_y_z(config.cluster_ip_addresses[0].ip)):
        lacking.append(f"hash_seed {config.hash_seed}: NLB's hash has none that can be chosen")
    if config.filter_icmp:
        lacking.append("filter_icmp: a registry value, no cmdlet sets it")
    if config.keyring.keys:
        lacking.append("keys: NLB's heartbeats are not authenticated")
    if config.remote_control_port is not None:
        lacking.append("remote_control: NLB's has a password; cmdlets reach the other hosts")
    if config.health_probes:
        lacking.append("health probes: NLB looks at no service")
    if config.cluster_ip_addresses[0].version == 6:
        lacking.append("an IPv6 primary address: New-NlbCluster wants an IPv4 address there")
    return lacking


def _address(name: str, mask_name: str, address: IPv4Interface | IPv6Interface) -> str:
    if address.version == 6:
        return f"-{name} {address}"
    return f"-{name} {address.ip} -{mask_name} {address.network.netmask}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
