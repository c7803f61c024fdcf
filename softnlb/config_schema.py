"""The shape of a configuration file: its tables, their keys, what each accepts (pydantic).

A field's description completes the sentence "expected ...", in error messages and in the JSON
schema alike.
"""

import json
import os
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from ipaddress import IPv6Address, ip_address, ip_interface
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    TypeAdapter,
    ValidationError,
)

from convergence.rules import PORT_RULES_MAX, TIMEOUT_MIN_MAX, IPAddress
from modes.mac import parse_mac
from modes.plan import InterfaceAddress as IPInterface
from softnlb.config import AttachChoice, DataPlaneChoice, InitialState
from softnlb.errors import ReturnCode


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


InterfaceAddress = Annotated[str, AfterValidator(_interface_address)]
RuleAddress = Annotated[str, AfterValidator(_rule_address)]
PortRange = Annotated[int | str, AfterValidator(_port_range)]
HttpPath = Annotated[str, AfterValidator(_http_path)]
InterfaceName = Annotated[str, AfterValidator(_interface_name)]
Weight = Annotated[int, Field(ge=0, le=100)]

MacAddress = Annotated[str, AfterValidator(parse_mac)]

WITH_PREFIX = "an address of a host with its prefix length, as in 10.1.0.100/24 or 2001:db8::100/64"


# softnlb has no plugins of pydantic, and to look for some means to read what is installed here.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

# Keys are validated one by one (read_table), so the models themselves need not be compiled.
TABLE = ConfigDict(extra="forbid", defer_build=True)


class ClusterTable(BaseModel):
    """[cluster]: the same on every host of the cluster."""

    model_config = TABLE

    ip_address: InterfaceAddress = Field(description=WITH_PREFIX)
    additional_ip_addresses: list[InterfaceAddress] = Field(
        default_factory=list, description=f"a list, each {WITH_PREFIX}"
    )
    mode: Literal["unicast", "multicast", "igmp"] = Field(
        default="unicast", description='"unicast", "multicast" or "igmp"'
    )
    cluster_mac: MacAddress | None = Field(
        default=None,
        description="a MAC address, as in 02-bf-0a-01-00-64 (default: from ip_address)",
    )
    mask_source_mac: bool = Field(
        default=True, description="true, or false where all hosts are behind one hub"
    )
    arp_for_vip: bool = Field(
        default=True, description="true, or false where routers have static ARP entries"
    )
    timers: Literal["nlb", "fast"] = Field(
        default="nlb",
        description='"nlb" (period 1000 ms, tolerance 5) or "fast" (period 100 ms, tolerance 5)',
    )
    alive_message_period_ms: int | None = Field(
        default=None, ge=100, le=10_000, description="a whole number from 100 to 10000"
    )
    alive_message_tolerance: int | None = Field(
        default=None, ge=3, le=100, description="a whole number from 3 to 100"
    )
    hash_seed: int | None = Field(
        default=None, ge=0, le=0xFFFF_FFFF, description="a whole number from 0 to 0xFFFFFFFF"
    )
    filter_icmp: bool = Field(default=False, description="true or false")
    remote_control: bool = Field(
        default=False, description="true or false; true takes a key_file, whose keys it obeys"
    )
    remote_control_port: int = Field(
        default=2504, ge=1, le=65535, description="a whole number from 1 to 65535"
    )
    key_file: str | None = Field(
        default=None,
        description="the path of a file that only its owner may read, with a key per line",
    )
    authentication: Literal["receive-only", "permissive", "enforce"] | None = Field(
        default=None,
        description='"receive-only", "permissive" or "enforce": what the keys are used for',
    )


class HostTable(BaseModel):
    """[host]: this host alone."""

    model_config = TABLE

    id: int = Field(ge=1, le=32, description="a whole number from 1 to 32, unique in the cluster")
    interface: InterfaceName = Field(description='the name of a network interface, as in "eth0"')
    dedicated_ip_address: InterfaceAddress = Field(description=WITH_PREFIX)
    additional_dedicated_ip_addresses: list[InterfaceAddress] = Field(
        default_factory=list, description=f"a list, each {WITH_PREFIX}"
    )
    initial_state: InitialState = Field(
        default="started", description='"started", "stopped" or "suspended"'
    )
    retain_suspended: bool = Field(default=False, description="true or false")
    data_plane: DataPlaneChoice = Field(default="auto", description='"auto", "nfqueue" or "ebpf"')
    control_group: str | None = Field(
        default=None,
        description="the name of a group whose members may command this host (default: softnlb)",
    )
    attach: AttachChoice = Field(
        default="auto", description='"auto", "tc", "xdp" or "xdp-generic": where ebpf hooks in'
    )


class HealthProbeTable(BaseModel):
    """health_probe = { ... } of a port rule: this host alone."""

    model_config = TABLE

    type: Literal["tcp", "http", "command"] = Field(description='"tcp", "http" or "command"')
    port: int | None = Field(
        default=None, ge=1, le=65535, description="a port from 1 to 65535 (default: the rule's)"
    )
    path: HttpPath = Field(default="/", description='what http asks for, as in "/healthz"')
    command: list[str] = Field(
        default_factory=list, description="a command as a list of words, exit status 0 means alive"
    )
    period_ms: int = Field(
        default=1000, ge=100, le=3_600_000, description="a whole number from 100 to 3600000"
    )
    timeout_ms: int = Field(
        default=500, ge=10, le=60_000, description="a whole number from 10 to 60000"
    )
    fall: int = Field(default=3, ge=1, le=100, description="a whole number from 1 to 100")
    rise: int = Field(default=2, ge=1, le=100, description="a whole number from 1 to 100")
    action: Literal["drain", "disable"] = Field(
        default="drain", description='"drain" or "disable": what a dead service does to the rule'
    )


class PortRuleTable(BaseModel):
    """[[port_rule]]: the same on every host, but for load weight and handling priority."""

    model_config = TABLE

    cluster_ip_address: RuleAddress = Field(
        default="all", description='"all" or one of the cluster IP addresses, without prefix length'
    )
    ports: PortRange = Field(
        default="0-65535",
        description='a port or a range from 0 to 65535, as in "80" or "8000-8100"',
    )
    protocol: Literal["tcp", "udp", "both"] = Field(
        default="both", description='"tcp", "udp" or "both"'
    )
    filtering_mode: Literal["multiple", "single", "disabled"] = Field(
        default="multiple", description='"multiple", "single" or "disabled"'
    )
    affinity: Literal["none", "single", "network"] = Field(
        default="single", description='"none", "single" or "network"'
    )
    timeout: int = Field(
        default=0,
        ge=0,
        le=TIMEOUT_MIN_MAX,
        description="minutes from 0 to 240 for which a silent client keeps its host",
    )
    load_weight: Weight | Literal["equal"] = Field(
        default="equal",
        description='a whole number from 0 to 100, or "equal", which counts as 50',
    )
    handling_priority: int | None = Field(
        default=None,
        ge=1,
        le=32,
        description="a whole number from 1 to 32, different on every host (default: the host id)",
    )
    # Its keys are read one by one as well, by read_probe.
    health_probe: Annotated[HealthProbeTable | None, SkipValidation] = Field(
        default=None, description='a table, as in { type = "tcp" }'
    )


class ConfigFile(BaseModel):
    """A softnlb configuration file."""

    model_config = ConfigDict(**TABLE, title="softnlb configuration")

    cluster: ClusterTable
    host: HostTable
    port_rule: list[PortRuleTable] = Field(
        default_factory=list,
        max_length=PORT_RULES_MAX,
        description="at most 32 port rules; none means one rule for all ports, multiple hosts",
    )


def json_schema() -> dict[str, Any]:
    """JSON schema of a configuration file, for editors."""
    return ConfigFile.model_json_schema()


# ---------------------------------------------------------------- reading


class Complaint(NamedTuple):
    """Key path, value as text, what was expected, and NLB's return code for it."""

    key: str
    value: str
    expected: str
    code: ReturnCode | None = None


def read_table(
    model: type[BaseModel], raw: dict[str, Any], path: str
) -> tuple[dict[str, Any], list[Complaint]]:
    """Validate each key of a table on its own, so that one error never hides another.

    Returns the values that are good (defaults filled in; a bad or missing key is absent) and one
    complaint per key that is not.
    """
    fields = model.model_fields
    complaints = [
        Complaint(f"{path}.{key}", shown(raw[key]), unknown_key(key, fields))
        for key in raw.keys() - fields
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in raw:
            if field.is_required():
                complaints.append(Complaint(f"{path}.{name}", "", str(field.description)))
                continue
            raw_value = field.get_default(call_default_factory=True)
            if not any(isinstance(one, AfterValidator) for one in field.metadata):
                values[name] = raw_value  # good, and of the type that a value of the file becomes
                continue
        else:
            raw_value = raw[name]
        try:
            values[name] = _adapter(model, name).validate_python(raw_value, strict=True)
        except ValidationError:
            close = _did_you_mean(raw_value, get_args(field.annotation))
            expected = f"{field.description}{close}"
            complaints.append(Complaint(f"{path}.{name}", shown(raw_value), expected))
    return values, complaints


@cache
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    field = model.model_fields[name]
    annotation: Any = field.annotation
    return TypeAdapter(Annotated[annotation, *field.metadata] if field.metadata else annotation)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What is expected where a key stands that nobody knows."""
    close = _did_you_mean(key, known)
    return f"a known key{close}" if close else f"one of the keys {', '.join(known)}"


def _did_you_mean(value: object, known: Iterable[object]) -> str:
    """The nearest name, also by its last words: "tolerence" finds alive_message_tolerance."""
    names = {name: name for name in known if isinstance(name, str)}
    for name in tuple(names):
        words = name.split("_")
        names |= {"_".join(words[skip:]): name for skip in range(1, len(words))}
    close = get_close_matches(value.lower(), names, n=1) if isinstance(value, str) else []
    return f", did you mean {names[close[0]]}?" if close else ""


def shown(value: object) -> str:
    """A value of the file as text, cut to one short line."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of thousands of digits, as deep a nest
        return "(too long to show)"
    return text if len(text) <= 60 else f"{text[:57]}..."
