"""A configuration out of what NLB shows: `nlb display`, or Get-NlbCluster* as JSON.  Pure.

What has no equal is told by name and value; nothing is dropped in silence.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from typing import Any

from softnlb.errors import bad_params

PROTOCOLS = {"1": "tcp", "2": "udp", "3": "both", "tcp": "tcp", "udp": "udp", "both": "both"}
MODES = {"1": "single", "2": "multiple", "3": "disabled"}
MODES |= {name: name for name in ("single", "multiple", "disabled")}
AFFINITIES = {"0": "none", "1": "single", "2": "network", "class": "network", "class c": "network"}
AFFINITIES |= {name: name for name in ("none", "single", "network")}
"""By name, or by the number that NLB's WMI classes document."""

EQUAL = ("equal", "eql")
ON, OFF = ("enabled", "true", "1", "yes"), ("disabled", "false", "0", "no", "none")
EVERY_ADDRESS = ("all", "255.255.255.255", "")
OPERATION_MODES = {"unicast": "unicast", "multicast": "multicast", "igmpmulticast": "igmp"}
ONLY_SHOWN = frozenset(
    [
        "virtualnicname",
        "interface",
        "parametersversion",
        "numberofrules",
        "portrules",
        "installdate",
        "verifydate",
        "licensekey",
        "descriptorsperalloc",
        "maxdescriptorallocs",
        "numactions",
        "numpackets",
        "numalivemsgs",
        "tcpconnectiontimeout",
        "ipsecconnectiontimeout",
        "connectioncleanupdelay",
        "identityheartbeatperiod",
        "identityheartbeatenabled",
        "netmonalivemsgs",
        "ipchangedelay",
        "iptomacenable",
        "remotecontrolcode",
        "remotecontroludpport",
        "hostname",
        "nbtsupportenable",
        "scalesingleclient",
        "iptomcastip",
        "effectivenlbversion",
        "maxconnectiondescriptors",
        "state",
        "cluster",
    ]
) | {"current time"}
"""Versions, dates, buffers and timers of NLB's driver: a host here has no use for them."""

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A value that has no equal here."""

    name: str
    value: str
    why: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.name} = {self.value}: {self.why}"


@dataclass(slots=True)
class Imported:
    """The tables of a configuration file, and what could not be put into them."""

    cluster: Values = field(default_factory=dict)
    host: Values = field(default_factory=dict)
    rules: list[Values] = field(default_factory=list)
    unmapped: list[Unmapped] = field(default_factory=list)

    def lack(self, name: str, value: object, why: str = "softnlb has no equal") -> None:
        """Tell a value that has no equal."""
        self.unmapped.append(Unmapped(name, str(value), why))


def read(text: str, node: str | None = None) -> Imported:
    """What the text means.  ``node``: host priority or name, where several hosts are shown.

    Raises UsageError when there is no NLB cluster in it.
    """
    found = Imported()
    if text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        try:
            _read_objects(found, json.loads(text.lstrip("\ufeff")), node)
        except (ValueError, RecursionError) as error:
            raise bad_params(f"not the JSON of Get-NlbCluster*: {error}") from error
    else:
        _read_display(found, text)
    if "ip_address" not in found.cluster:
        raise bad_params("no cluster in it: neither `nlb display` nor Get-NlbCluster* as JSON")
    _complete(found)
    return found


def _complete(found: Imported) -> None:
    """What NLB means by its absence, and addresses that only rules name."""
    if not found.rules:
        # Here a file without rules has one for all ports; with NLB they are the default host's.
        found.rules.append({"ports": "0-65535", "filtering_mode": "single"})
        found.lack("port rules", "none", "all traffic goes to one host, as without any in NLB")
    additional = found.cluster.get("additional_ip_addresses", [])
    known = {text.partition("/")[0] for text in (found.cluster["ip_address"], *additional)}
    length = found.cluster["ip_address"].partition("/")[2]
    for address in dict.fromkeys(rule.get("cluster_ip_address") for rule in found.rules):
        if address is None or address in known or not _is_like(address, found):
            continue
        found.cluster["additional_ip_addresses"] = additional = [*additional, f"{address}/{length}"]
        found.lack("VIP", address, "only a rule names it: the mask of the primary one is assumed")


def _is_like(address: str, found: Imported) -> bool:
    """An address of the version of the primary one."""
    try:
        return ip_address(address).version == ip_interface(found.cluster["ip_address"]).version
    except ValueError:
        return False


# ---------------------------------------------------------------- nlb display


def _read_display(found: Imported, text: str) -> None:
    values: dict[str, str] = {}
    rules = 0
    for line in text.splitlines():
        if "event messages" in line.lower():
            break  # what follows are sentences and other programs' output
        name, equals, value = line.partition("=")
        if equals and name.strip() and name.strip("= \t") != "":
            values[name.strip()] = value.strip()
        elif len(words := line.split()) >= 5 and words[1].isdecimal() and words[2].isdecimal():
            rules += 1
            if rule := _display_rule(found, words):
                found.rules.append(rule)
    _parameters(found, values)
    told = next((value for name, value in values.items() if name.lower() == "numberofrules"), "")
    if told.isdecimal() and told != str(rules):
        found.lack("NumberOfRules", told, f"{rules} could be read")


def _display_rule(found: Imported, words: list[str]) -> Values | None:
    """VIP, start, end, protocol, mode, then priority, or load and affinity."""
    vip, start, end, protocol, mode, *rest = words
    rule: Values = {"IPAddress": vip, "StartPort": start, "EndPort": end}
    rule |= {"Protocol": protocol, "Mode": mode}
    if MODES.get(mode.lower()) == "single" and rest:
        rule["HandlingPriority"] = rest[0]
    elif MODES.get(mode.lower()) == "multiple":
        for word in rest:
            known = word.lower() in AFFINITIES and not word.isdecimal()
            number = "Timeout" if "Affinity" in rule else "LoadWeight"
            rule["Affinity" if known else number] = word
    return _rule(found, rule)


def _parameters(found: Imported, values: dict[str, str]) -> None:
    """NLB's names of registry values, as `nlb display` shows them."""
    known = {name.lower(): (name, value) for name, value in values.items()}

    def take(name: str) -> str:
        return known.pop(name, ("", ""))[1]

    address = take("clusteripaddress")
    if address:
        found.cluster["ip_address"] = _interface(address, take("clusternetworkmask"))
    if dedicated := take("dedicatedipaddress"):
        found.host["dedicated_ip_address"] = _interface(dedicated, take("dedicatednetworkmask"))
    multicast, igmp = _on(take("multicastsupportenable")), _on(take("igmpsupport"))
    found.cluster["mode"] = "igmp" if igmp else "multicast" if multicast else "unicast"
    by_hand = not _on(known.get("iptomacenable", ("", "enabled"))[1])
    mac = take("clusternetworkaddress")
    if by_hand and mac:
        found.cluster["cluster_mac"] = mac
    for name, key, default in (
        ("masksourcemac", "mask_source_mac", True),
        ("multicastarpenable", "arp_for_vip", True),
        ("filtericmp", "filter_icmp", False),
    ):
        if not (value := take(name)) or _on(value) is default:
            continue
        if key == "arp_for_vip" and found.cluster["mode"] == "unicast":
            # There NLB answers all the same, and here it would not.
            found.lack("MulticastARPEnable", value, "means nothing in unicast mode")
        else:
            found.cluster[key] = not default
    for name, key in (("hostpriority", "id"),):
        if value := take(name):
            found.host[key] = _number(found, name, value)
    for name in ("alivemsgperiod", "alivemsgtolerance"):
        if value := take(name):
            key = name.replace("alivemsg", "alive_message_") + ("_ms" if "period" in name else "")
            found.cluster[key] = _number(found, name, value)
    _states(found, take("clustermodeonstart"), take("persistedstates"))
    if _on(take("remotecontrolenabled")):
        why = "wants a key here: set key_file and remote_control = true by hand"
        found.lack("RemoteControlEnabled", "ENABLED", why)
    for name, value in known.values():
        if name.lower() not in ONLY_SHOWN and value.lower() not in ("", "-", "0.0.0.0", *OFF):
            found.lack(name, value)


def _states(found: Imported, begin: str, persisted: str) -> None:
    if begin.lower() in ("started", "stopped", "suspended"):
        found.host["initial_state"] = begin.lower()
    elif begin:
        found.lack("ClusterModeOnStart", begin, "expected STARTED, STOPPED or SUSPENDED")
    if "suspended" in persisted.lower():
        found.host["retain_suspended"] = True


# ---------------------------------------------------------------- Get-NlbCluster* as JSON


def _objects(document: Any) -> Iterator[Values]:
    """Every object, however the outputs were put together."""
    if isinstance(document, list):
        for one in document:
            yield from _objects(one)
    elif isinstance(document, dict):
        if any(isinstance(value, dict | list) for value in document.values()):
            for value in document.values():
                yield from _objects(value)
        if any(not isinstance(value, dict | list) for value in document.values()):
            yield {name: value for name, value in document.items() if not isinstance(value, dict)}


def _read_objects(found: Imported, document: Any, node: str | None) -> None:
    nodes: list[Values] = []
    dedicated: list[Values] = []
    for one in _objects(document):
        if "StartPort" in one or "Start" in one:
            if rule := _rule(found, one):
                found.rules.append(rule)
        elif "HostID" in one or "HostPriority" in one:
            nodes.append(one)
        elif "OperationMode" in one or ("Mode" in one and "IPAddress" in one):
            _cluster(found, one)
        elif "IPAddress" in one and ("NodeName" in one or "HostName" in one):
            dedicated.append(one)
        elif one.get("IPAddress"):
            address = _interface(str(one["IPAddress"]), str(one.get("SubnetMask", "")))
            found.cluster.setdefault("additional_ip_addresses", []).append(address)
    others = found.cluster.get("additional_ip_addresses", [])
    others = [one for one in others if one != found.cluster.get("ip_address")]
    found.cluster.pop("additional_ip_addresses", None)
    if others:
        found.cluster["additional_ip_addresses"] = others
    if nodes:
        _node(found, _chosen(nodes, node), dedicated)


def _chosen(nodes: list[Values], node: str | None) -> Values:
    ids = {str(one.get("HostID", one.get("HostPriority"))): one for one in nodes}
    names = {str(one.get("Name", "")).lower(): one for one in nodes}
    if node is None and len(nodes) == 1:
        return nodes[0]
    chosen = ids.get(str(node)) or names.get(str(node).lower())
    if chosen is None:
        raise bad_params(f"several hosts are in it, name one with --host: {', '.join(ids)}")
    return chosen


def _cluster(found: Imported, one: Values) -> None:
    address, mask = str(one.get("IPAddress", "")), str(one.get("SubnetMask", ""))
    found.cluster["ip_address"] = _interface(address, mask)
    mode = str(one.get("OperationMode", one.get("Mode"))).lower()
    if mode in OPERATION_MODES:
        found.cluster["mode"] = OPERATION_MODES[mode]
    else:
        found.lack("OperationMode", mode, "expected unicast, multicast or igmpmulticast")
    if name := one.get("ClusterName", one.get("Name")):
        found.lack("ClusterName", name, "only a label in NLB Manager")


def _node(found: Imported, one: Values, dedicated: list[Values]) -> None:
    value = str(one.get("HostID", one.get("HostPriority")))
    found.host["id"] = _number(found, "HostID", value)
    _states(found, str(one.get("InitialHostState", "")), "")
    if _on(str(one.get("RetainSuspended", ""))):
        found.host["retain_suspended"] = True
    name = str(one.get("Name", "")).lower()
    own = [
        dip for dip in dedicated if str(dip.get("NodeName", dip.get("HostName"))).lower() == name
    ]
    addresses = [_interface(str(dip["IPAddress"]), str(dip.get("SubnetMask", ""))) for dip in own]
    if addresses:
        found.host["dedicated_ip_address"] = addresses[0]
    if addresses[1:]:
        found.host["additional_dedicated_ip_addresses"] = addresses[1:]


# ---------------------------------------------------------------- what both have


def _rule(found: Imported, one: Values) -> Values | None:
    """A table [[port_rule]]; None, and told, when a part of it cannot be expressed."""
    start, end = one.get("StartPort", one.get("Start")), one.get("EndPort", one.get("End"))
    name = f"port rule {start}-{end}"
    if not all(str(port).isdecimal() and len(str(port)) < 6 for port in (start, end)):
        found.lack(name, f"{start}-{end}", "ports of a rule that is left out")
        return None
    rule: Values = {}
    address = str(one.get("IPAddress") or "all").lower()
    if address not in EVERY_ADDRESS:
        rule["cluster_ip_address"] = address
    rule["ports"] = f"{start}-{end}" if str(start) != str(end) else str(start)
    for key, words, property_name in (
        ("protocol", PROTOCOLS, "Protocol"),
        ("filtering_mode", MODES, "Mode"),
        ("affinity", AFFINITIES, "Affinity"),
    ):
        value = one.get(property_name)
        multiple = rule.get("filtering_mode") == "multiple"
        if value is None or (key == "affinity" and not multiple):
            continue
        if (word := words.get(str(value).lower())) is None:
            found.lack(name, value, f"{property_name} of a rule that is left out")
            return None
        rule[key] = word
    if str(one.get("Timeout") or "0") != "0" and rule.get("affinity") in ("single", "network"):
        rule["timeout"] = _number(found, f"{name}, Timeout", one["Timeout"])
    weight, priority = one.get("LoadWeight"), one.get("HandlingPriority")
    if rule.get("filtering_mode") == "multiple" and weight is not None:
        equal = str(weight).lower() in EQUAL or _on(str(one.get("EqualLoad", "")))
        rule["load_weight"] = "equal" if equal else _number(found, f"{name}, LoadWeight", weight)
    if rule.get("filtering_mode") == "single" and priority is not None:
        rule["handling_priority"] = _number(found, f"{name}, HandlingPriority", priority)
    return rule


def _number(found: Imported, name: str, value: object) -> Any:
    text = str(value).strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    found.lack(name, value, "expected a whole number")
    return None


def _on(value: str) -> bool:
    return value.lower() in ON


def _interface(address: str, mask: str) -> str:
    """Address and mask as ADDRESS/LENGTH; what they are not is told when the result is checked."""
    try:
        return str(ip_interface(f"{ip_address(address)}/{mask}")) if mask else address
    except ValueError:
        return f"{address}/{mask}"


def _plain(text: str) -> str:
    """Printable ASCII: nothing that is expected in a value needs more, and TOML forbids some."""
    return "".join(one if " " <= one <= "~" else "?" for one in text)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(one) for one in value)}]"
    return json.dumps(_plain(value) if isinstance(value, str) else value)


def as_toml(found: Imported) -> str:
    """A configuration file; what has no equal stands in it as comments."""
    lines = [f"# not taken over: {_plain(str(one))}" for one in found.unmapped]
    tables = [("[cluster]", found.cluster), ("[host]", found.host)]
    for title, values in (*tables, *(("[[port_rule]]", rule) for rule in found.rules)):
        # JSON's strings, numbers, lists and truth values are TOML's.
        written = [f"{key} = {_value(one)}" for key, one in values.items() if one is not None]
        lines += ["", title, *written]
    return "\n".join(lines).strip() + "\n"
