"""A lab file as nodes, cables and configuration files; pure."""

import json
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

from convergence.rules import IPAddress
from labs.topology import Document, IPNetwork
from modes.plan import InterfaceAddress

INTERFACE = "eth0"

HOST_TABLE_KEYS_OF_THE_LAB = (
    "name",
    "switch",
    "address",
    "load_weights",
    "handling_priorities",
)
"""Keys of [[host]] that say something about the lab; all others go into the host's own file."""

STRICT_ARP = """\
table arp strict {
  chain input {
    type filter hook input priority 0; policy accept;
    arp saddr ether and 01:00:00:00:00:00 == 01:00:00:00:00:00 drop
  }
}
"""
"""A router that obeys RFC 1812, 3.3.2: no ARP answer may claim a multicast MAC address."""

NAT = f"""\
table inet translation {{
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    oifname "{INTERFACE}" masquerade
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the lab.  ``port``: its interface on a switch, None when not on one.

    ``interface``: the node's own end of that cable, ``bridge`` the bridge at the other.  ``setup``:
    lines for ``ip -batch``, ``sysctls`` (path below /proc/sys, value) and ``rules`` for nft,
    carried out inside once the cables are in.  ``services``: (kind, port) of a host, and
    ``config`` the text of its configuration file.
    """

    name: str
    kind: str
    port: str | None
    interface: str = INTERFACE
    bridge: str = ""
    host_id: int | None = None
    address: IPAddress | None = None
    prefix: int = 0
    cluster_ip_address: IPAddress | None = None
    setup: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    rules: str = ""
    services: tuple[tuple[str, int], ...] = ()
    config: str = ""
    starts: bool = True
    """Whether its agent joins the cluster by itself."""

    ipv6: bool = False
    """Whether its interfaces speak IPv6 at all."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch: a bridge in the node "switch", which holds all of them."""

    name: str
    personality: str
    bridge: str
    query_interval_s: int = 0
    ipv6: bool = False
    """Whether it snoops and queries for IPv6 too."""
    asks: bool = True
    """Whether it is the querier where it snoops.  One of them is: the bridges have no addresses by
    which the lowest would be elected, so two that ask at once silence each other for 255 s."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """A cable between two switches: (bridge, port) of each end."""

    ends: tuple[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Cable:
    """From a router's interface to the eth0 of a client behind it."""

    router: str
    interface: str
    client: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that has to be built."""

    nodes: tuple[Node, ...]
    switches: tuple[Switch, ...]
    trunks: tuple[Trunk, ...]
    cables: tuple[Cable, ...]
    cluster_ip_address: IPAddress


def build(document: Document) -> Plan:
    """The plan of a checked lab file."""
    ipv6 = any(address.version == 6 for address in cluster_ip_addresses(document))
    snooping = [table["name"] for table in document["switch"] if table["personality"] != "dumb"]
    querier = (snooping or [document["switch"][0]["name"]])[0]
    switches = tuple(
        Switch(
            table["name"],
            table["personality"],
            f"br{number}",
            table.get("query_interval_s") or 0,
            ipv6,
            asks=table["name"] == querier,
        )
        for number, table in enumerate(document["switch"])
    )
    bridges = {switch.name: switch.bridge for switch in switches}
    routers = document["router"]
    cables, nodes = [], [Node("switch", "switch", None, setup=("link set lo up",), ipv6=ipv6)]
    for table in routers:
        behind = [client for client in document["client"] if client["router"] == table["name"]]
        nodes.append(_router(table, bridges[table["switch"]], behind))
        for number, client in enumerate(behind, 1):
            cables.append(Cable(table["name"], f"eth{number}", client["name"]))
            nodes.append(_routed_client(client))
    for kind in ("client", "bystander", "host"):
        for table in document[kind]:
            if table.get("router") is None:
                nodes.append(_leaf(table, kind, bridges, document))
    trunks = tuple(
        Trunk(((bridges[one], f"trunk{number}a"), (bridges[other], f"trunk{number}b")))
        for number, (one, other) in enumerate((t["between"] for t in document["trunk"]), 1)
    )
    return Plan(tuple(nodes), switches, trunks, tuple(cables), _primary(document))


def _primary(document: Document) -> IPAddress:
    return ip_interface(document["cluster"]["ip_address"]).ip


def cluster_ip_addresses(document: Document) -> list[InterfaceAddress]:
    """The primary one first."""
    cluster = document["cluster"]
    written = (cluster["ip_address"], *cluster.get("additional_ip_addresses", ()))
    return [ip_interface(str(each)) for each in written]


def of_each_version(given: list[InterfaceAddress]) -> list[InterfaceAddress]:
    """The first address of each IP version, in their order."""
    return list({address.version: address for address in reversed(given)}.values())[::-1]


def addresses(table: Document) -> list[InterfaceAddress]:
    """All of a node at its cable; those of a host beyond the first are dedicated ones, too."""
    more = table.get("additional_addresses") or table.get("additional_dedicated_ip_addresses")
    return [ip_interface(each) for each in (table["address"], *(more or ()))]


def gateway(interface: InterfaceAddress) -> IPAddress:
    """The router's address in the network of a client behind it: the first that is free."""
    return next(address for address in interface.network.hosts() if address != interface.ip)


def _addressed(given: list[InterfaceAddress], interface: str = INTERFACE) -> list[str]:
    """Lines that give an interface its addresses and switch it on."""
    # Nobody else has it: the wait for duplicates would only cost the lab a second or two.
    lines = [
        f"addr add {address} dev {interface}{' nodad' if address.version == 6 else ''}"
        for address in given
    ]
    return [*lines, f"link set {interface} up"]


def _speaks_ipv6(given: list[InterfaceAddress]) -> bool:
    return any(address.version == 6 for address in given)


def _router(table: Document, bridge: str, behind: list[Document]) -> Node:
    own = addresses(table)
    setup = ["link set lo up", *_addressed(own)]
    for number, client in enumerate(behind, 1):
        nets = addresses(client)
        at_them = [ip_interface(f"{gateway(each)}/{each.network.prefixlen}") for each in nets]
        setup += _addressed(at_them, f"eth{number}")
        if client["pool"] is not None:
            # One neighbour for all addresses of a client: 16,384 would overflow the ARP table.
            setup.append(f"route add {client['pool']} via {nets[0].ip}")
    return Node(
        name=table["name"],
        kind="router",
        port=table["name"],
        bridge=bridge,
        address=own[0].ip,
        prefix=own[0].network.prefixlen,
        setup=tuple(setup),
        sysctls=(
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ),
        ipv6=_speaks_ipv6(own),
        rules=(STRICT_ARP if table["arp"] == "strict" else "") + (NAT if table["nat"] else ""),
    )


def _routed_client(table: Document) -> Node:
    own = addresses(table)
    pool = () if table["pool"] is None else (f"route add local {table['pool']} dev lo",)
    return Node(
        name=table["name"],
        kind="client",
        port=None,
        address=own[0].ip,
        prefix=own[0].network.prefixlen,
        setup=(
            "link set lo up",
            *_addressed(own),
            *pool,
            *(f"route add default via {gateway(each)}" for each in own),
        ),
        # For IPv6 a local route alone allows nobody to use the addresses in it.
        sysctls=(("net/ipv6/ip_nonlocal_bind", "1"),),
        ipv6=_speaks_ipv6(own),
    )


def _leaf(table: Document, kind: str, bridges: dict[str, str], document: Document) -> Node:
    """A node with one cable, to a switch, and its default route through the router there."""
    own = addresses(table)
    host = kind == "host"
    name = table["name"]
    return Node(
        name=name,
        kind=kind,
        port=name,
        bridge=bridges[table["switch"]],
        host_id=table["id"] if host else None,
        address=own[0].ip,
        prefix=own[0].network.prefixlen,
        setup=(
            "link set lo up",
            *_addressed(own),
            *dict.fromkeys(route for each in own for route in _routes(document, each.network)),
        ),
        cluster_ip_address=_primary(document) if host else None,
        services=_services(document, name) if host else (),
        config=config_toml(document, table) if host else "",
        starts=table.get("initial_state", "started") == "started",
        ipv6=_speaks_ipv6(own),
    )


def _routes(document: Document, network: IPNetwork) -> list[str]:
    """Default through the first router there; through the others only what lies behind them."""
    here = [
        (router, address.ip)
        for router in document["router"]
        for address in addresses(router)
        if address.ip in network
    ]
    routes = [f"route add default via {here[0][1]}"] if here else []
    for router, at in here[1:]:
        if not router["nat"]:
            routes += [
                f"route add {behind.network} via {at}"
                for client in document["client"]
                if client["router"] == router["name"]
                for behind in addresses(client)
                if behind.version == at.version
            ]
    return routes


def _services(document: Document, host: str) -> tuple[tuple[str, int], ...]:
    return tuple(
        (service["kind"], service["port"])
        for service in document["service"]
        if host in service["hosts"]
    )


# ---------------------------------------------------------------- configuration files


def config_tables(document: Document, host: Document) -> Document:
    """What stands in the configuration file of one host, as tables."""
    own = {key: value for key, value in host.items() if key not in HOST_TABLE_KEYS_OF_THE_LAB}
    rules = [dict(rule) for rule in document["port_rule"]]
    for key, listed in (
        ("load_weight", host.get("load_weights")),
        ("handling_priority", host.get("handling_priorities")),
    ):
        for rule, value in zip(rules, listed or (), strict=False):
            rule[key] = value
    return {
        "cluster": document["cluster"],
        "host": {
            "interface": INTERFACE,
            "dedicated_ip_address": host["address"],
            "data_plane": document["lab"]["data_plane"],
            "attach": document["lab"]["attach"],
            **own,
        },
        "port_rule": rules,
    }


def config_toml(document: Document, host: Document) -> str:
    """The configuration file of one host, /etc/softnlb/cluster.toml in its node."""
    tables = config_tables(document, host)
    parts = [_table(f"[{name}]", tables[name]) for name in ("cluster", "host")]
    parts += [_table("[[port_rule]]", rule) for rule in tables["port_rule"]]
    return "\n".join(parts)


def _table(head: str, table: Document) -> str:
    return "\n".join([head, *(f"{key} = {_value(value)}" for key, value in table.items())]) + "\n"


def _value(value: Any) -> str:
    """A value as TOML writes it; what JSON and TOML share but for tables and lists."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)
