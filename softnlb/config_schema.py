"""The shape of a configuration file: its tables, their keys, what each accepts."""

from ipaddress import IPv6Address, ip_address, ip_interface
from typing import Any, get_args

from convergence.rules import PORT_RULES_MAX, TIMEOUT_MIN_MAX, IPAddress
from modes.mac import parse_mac
from modes.plan import InterfaceAddress as IPInterface
from softnlb import table
from softnlb.config import AttachChoice, DataPlaneChoice, InitialState, ProbeAction, ProbeType
from softnlb.table import (
    ANYTHING,
    TEXT,
    TRUTH,
    Key,
    Table,
    either,
    made,
    maybe,
    number,
    one_of,
    several,
)


def _interface_address(text: str) -> IPInterface:
    if "/" not in text:
        raise ValueError("no prefix length")
    interface = ip_interface(text)
    address, network = interface.ip, interface.network
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        raise ValueError("not the address of a host")
    if isinstance(address, IPv6Address):
        # The first address of a subnet is every router's (RFC 4291 section 2.6.1).
        special = [network.network_address] if network.prefixlen < 127 else []
        if address.is_link_local or address.ipv4_mapped or address.scope_id:
            raise ValueError("not an address that others can reach")
    else:
        edges = [network.network_address, network.broadcast_address]
        special = edges if network.prefixlen < 31 else []
    if address in special:
        raise ValueError("not the address of a host")
    return interface


def _rule_address(text: str) -> IPAddress | None:
    return None if text == "all" else ip_address(text)


def _port_range(ports: int | str) -> tuple[int, int]:
    first, dash, last = str(ports).partition("-")
    start, end = _port(first), _port(last if dash else first)
    if start > end:
        raise ValueError("the first port is above the last")
    return start, end


def _port(text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise ValueError("not a port")
    return int(text)


def _http_path(text: str) -> str:
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("not a path")
    return text


def _interface_name(text: str) -> str:
    if not 0 < len(text.encode()) < 16 or "/" in text or any(c.isspace() for c in text):
        raise ValueError("not an interface name")
    return text


INTERFACE_ADDRESS = made(_interface_address)
INTERFACE_ADDRESSES = several(INTERFACE_ADDRESS)
PORT_RANGE = made(_port_range, either(number(), TEXT))

WITH_PREFIX = "an address of a host with its prefix length, as in 10.1.0.100/24 or 2001:db8::100/64"

CLUSTER = Table(
    "[cluster]: the same on every host of the cluster.",
    {
        "ip_address": Key(INTERFACE_ADDRESS, WITH_PREFIX),
        "additional_ip_addresses": Key(INTERFACE_ADDRESSES, f"a list, each {WITH_PREFIX}", []),
        "mode": Key(
            one_of("unicast", "multicast", "igmp"), '"unicast", "multicast" or "igmp"', "unicast"
        ),
        "cluster_mac": Key(
            maybe(made(parse_mac)),
            "a MAC address, as in 02-bf-0a-01-00-64 (default: from ip_address)",
            None,
        ),
        "mask_source_mac": Key(TRUTH, "true, or false where all hosts are behind one hub", True),
        "arp_for_vip": Key(TRUTH, "true, or false where routers have static ARP entries", True),
        "timers": Key(
            one_of("nlb", "fast"),
            '"nlb" (period 1000 ms, tolerance 5) or "fast" (period 100 ms, tolerance 5)',
            "nlb",
        ),
        "alive_message_period_ms": Key(
            maybe(number(100, 10_000)), "a whole number from 100 to 10000", None
        ),
        "alive_message_tolerance": Key(maybe(number(3, 100)), "a whole number from 3 to 100", None),
        "hash_seed": Key(
            maybe(number(0, 0xFFFF_FFFF)), "a whole number from 0 to 0xFFFFFFFF", None
        ),
        "filter_icmp": Key(TRUTH, "true or false", False),
        "remote_control": Key(
            TRUTH, "true or false; true takes a key_file, whose keys it obeys", False
        ),
        "remote_control_port": Key(number(1, 65535), "a whole number from 1 to 65535", 2504),
        "key_file": Key(
            maybe(TEXT),
            "the path of a file that only its owner may read, with a key per line",
            None,
        ),
        "authentication": Key(
            maybe(one_of("receive-only", "permissive", "enforce")),
            '"receive-only", "permissive" or "enforce": what the keys are used for',
            None,
        ),
    },
    at_least=1,
)

HOST = Table(
    "[host]: this host alone.",
    {
        "id": Key(number(1, 32), "a whole number from 1 to 32, unique in the cluster"),
        "interface": Key(made(_interface_name), 'the name of a network interface, as in "eth0"'),
        "dedicated_ip_address": Key(INTERFACE_ADDRESS, WITH_PREFIX),
        "additional_dedicated_ip_addresses": Key(
            INTERFACE_ADDRESSES, f"a list, each {WITH_PREFIX}", []
        ),
        "initial_state": Key(
            one_of(*get_args(InitialState)), '"started", "stopped" or "suspended"', "started"
        ),
        "retain_suspended": Key(TRUTH, "true or false", False),
        "data_plane": Key(
            one_of(*get_args(DataPlaneChoice)), '"auto", "nfqueue" or "ebpf"', "auto"
        ),
        "control_group": Key(
            maybe(TEXT),
            "the name of a group whose members may command this host (default: softnlb)",
            None,
        ),
        "attach": Key(
            one_of(*get_args(AttachChoice)),
            '"auto", "tc", "xdp" or "xdp-generic": where ebpf hooks in',
            "auto",
        ),
    },
    at_least=1,
)

HEALTH_PROBE = Table(
    "health_probe = { ... } of a port rule: this host alone.",
    {
        "type": Key(one_of(*get_args(ProbeType)), '"tcp", "http" or "command"'),
        "port": Key(maybe(number(1, 65535)), "a port from 1 to 65535 (default: the rule's)", None),
        "path": Key(made(_http_path), 'what http asks for, as in "/healthz"', "/"),
        "command": Key(
            several(TEXT), "a command as a list of words, exit status 0 means alive", []
        ),
        "period_ms": Key(number(100, 3_600_000), "a whole number from 100 to 3600000", 1000),
        "timeout_ms": Key(number(10, 60_000), "a whole number from 10 to 60000", 500),
        "fall": Key(number(1, 100), "a whole number from 1 to 100", 3),
        "rise": Key(number(1, 100), "a whole number from 1 to 100", 2),
        "action": Key(
            one_of(*get_args(ProbeAction)),
            '"drain" or "disable": what a dead service does to the rule',
            "drain",
        ),
    },
)

PORT_RULE = Table(
    "[[port_rule]]: the same on every host, but for load weight and handling priority; at most 32,"
    " none means one rule for all ports, multiple hosts.",
    {
        "cluster_ip_address": Key(
            made(_rule_address),
            '"all" or one of the cluster IP addresses, without prefix length',
            "all",
        ),
        "ports": Key(
            PORT_RANGE, 'a port or a range from 0 to 65535, as in "80" or "8000-8100"', "0-65535"
        ),
        "protocol": Key(one_of("tcp", "udp", "both"), '"tcp", "udp" or "both"', "both"),
        "filtering_mode": Key(
            one_of("multiple", "single", "disabled"),
            '"multiple", "single" or "disabled"',
            "multiple",
        ),
        "affinity": Key(
            one_of("none", "single", "network"), '"none", "single" or "network"', "single"
        ),
        "timeout": Key(
            number(0, TIMEOUT_MIN_MAX),
            "minutes from 0 to 240 for which a silent client keeps its host",
            0,
        ),
        "load_weight": Key(
            either(number(0, 100), one_of("equal")),
            'a whole number from 0 to 100, or "equal", which counts as 50',
            "equal",
        ),
        "handling_priority": Key(
            maybe(number(1, 32)),
            "a whole number from 1 to 32, different on every host (default: the host id)",
            None,
        ),
        # Its keys are read one by one as well, by read_probe.
        "health_probe": Key(ANYTHING, 'a table, as in { type = "tcp" }', None, HEALTH_PROBE),
    },
    at_most=PORT_RULES_MAX,
)

TABLES = {"cluster": CLUSTER, "host": HOST, "port_rule": PORT_RULE}


def json_schema() -> dict[str, Any]:
    """JSON schema of a configuration file, for editors."""
    return table.json_schema("softnlb configuration", TABLES)
