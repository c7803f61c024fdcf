"""A lab for containerlab: its nodes, cables and addresses as containers, on one machine or more.

The switch is a node with a bridge inside, because containerlab makes no bridges on the machine and
leaves rules of theirs behind, and because clabernetes gives every node a pod of its own.  Labels
carry what the lab file says and a graph cannot, so that ``labs/containerlab_read.py`` finds the
lab again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from labs.containerlab_readme import readme
from labs.plan import INTERFACE, Node, Plan, Switch, build
from labs.topology import Document
from softnlb import __version__
from softnlb.errors import SoftnlbError, UsageError

IMAGE = f"softnlb:{__version__}"
VXLAN_MTU = 1450
VXLAN_PORT = 14789
"""UDP; 4789 is filtered in many networks."""

FIRST_VNI = 100
CONFIG = "/etc/softnlb/cluster.toml"
RULES = "/etc/softnlb/node.nft"
LABEL = "softnlb-"
IPV6_ON = "sysctl -q -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0"
"""Containers without a network begin without IPv6."""

Topology = dict[str, Any]
"""One topology file, as YAML carries it."""

_NUMBERED = re.compile(r"\beth(\d+)\b")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a cable."""

    node: str
    interface: str

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the nodes of a lab run.  ``machines``: one address each; none when there is one only.

    Hosts take turns, everything else is on the first machine.
    """

    machines: tuple[IPv4Address, ...] = ()
    of: dict[str, int] = field(default_factory=dict)

    def has(self, machine: int, node: str) -> bool:
        """Whether this machine runs the node."""
        return self.of.get(node, 0) == machine

    def peer(self, node: str) -> str:
        """The address of the machine that runs the node."""
        return str(self.machines[self.of.get(node, 0)])


def export(
    document: Document, directory: Path, machines: tuple[IPv4Address, ...] = ()
) -> list[Path]:
    """Write one topology file per machine and the files that its nodes bind; returns them.

    Raises UsageError when the directory holds something already, SoftnlbError when it cannot be
    written.
    """
    import yaml

    if len(machines) == 1 or len(set(machines)) < len(machines):
        raise UsageError("--machine: name every machine once, the first one too, or none")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is not empty: an export goes into a directory of its own")
    name = document["lab"]["name"]
    plan = build(document)
    files = {f"nodes/{node.name}.toml": shifted(node.config) for node in plan.nodes if node.config}
    files |= {f"nodes/{node.name}.nft": shifted(node.rules) for node in plan.nodes if node.rules}
    names = []
    for topology in topologies(plan, document, machines):
        text = yaml.safe_dump(topology, sort_keys=False, width=200)
        names.append(f"{topology['name']}.clab.yml")
        files[names[-1]] = f"# Written by softnlb {__version__} from the lab {name!r}.\n{text}"
    files["README.md"] = readme(
        name,
        names,
        machines,
        image=IMAGE,
        plan=plan,
    )
    try:
        (directory / "nodes").mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            (directory / path).write_text(text)
    except OSError as error:
        raise SoftnlbError(f"{error.filename}: {error.strerror}") from error
    return [directory / path for path in files]


def topologies(
    plan: Plan, document: Document, machines: tuple[IPv4Address, ...] = ()
) -> Iterator[Topology]:
    """One topology per machine."""
    hosts = [node.name for node in plan.nodes if node.kind == "host"]
    count = max(1, len(machines))
    place = Place(machines, {host: number % count for number, host in enumerate(hosts)})
    tables = {
        table["name"]: table
        for kind in ("switch", "router", "client", "bystander", "host")
        for table in document[kind]
    }
    links = tuple(_links(plan))
    mtu = VXLAN_MTU if machines else None
    querier = next((s.name for s in plan.switches if s.personality == "linux"), None)
    for machine in range(count):
        nodes: dict[str, Any] = {}
        for switch in plan.switches:
            if machine == 0:
                ports = [end.interface for link in links for end in link if end.node == switch.name]
                nodes[switch.name] = _switch(switch, ports, mtu, switch.name == querier)
        for node in plan.nodes:
            if node.kind != "switch" and place.has(machine, node.name):
                nodes[node.name] = _node(node, tables[node.name], mtu)
        # Neither dashes nor spaces suit what containerlab makes of a name.
        name = document["lab"]["name"].replace("-", "_") + (f"_{machine + 1}" if machines else "")
        defaults = {"kind": "linux", "image": IMAGE, "network-mode": "none"}
        lines = list(_link_lines(links, place, machine))
        yield {
            "name": name,
            "prefix": "",
            "topology": {"defaults": defaults, "nodes": nodes, "links": lines},
        }


def shifted(text: str) -> str:
    """Our eth0 is their eth1, and so on: eth0 is what containerlab keeps for itself."""
    return _NUMBERED.sub(lambda found: f"eth{int(found[1]) + 1}", text)


def _links(plan: Plan) -> Iterator[tuple[End, End]]:
    """Every cable; the switches' ports are numbered as they come."""
    used: dict[str, int] = {}

    def port(switch: str) -> End:
        used[switch] = used.get(switch, 0) + 1
        return End(switch, f"eth{used[switch]}")

    switches = {switch.bridge: switch.name for switch in plan.switches}
    for node in plan.nodes:
        if node.port is not None:
            yield port(switches[node.bridge]), End(node.name, shifted(node.interface))
    for trunk in plan.trunks:
        (one, _), (other, _) = trunk.ends
        yield port(switches[one]), port(switches[other])
    for cable in plan.cables:
        yield End(cable.router, shifted(cable.interface)), End(cable.client, shifted(INTERFACE))


def _link_lines(
    links: tuple[tuple[End, End], ...], place: Place, machine: int
) -> Iterator[dict[str, Any]]:
    for number, (near, far) in enumerate(links):
        here = [end for end in (near, far) if place.has(machine, end.node)]
        if len(here) == 2:
            yield {"endpoints": [str(near), str(far)]}
        elif here:
            yield {
                "type": "vxlan-stitch",
                "endpoint": {"node": here[0].node, "interface": here[0].interface},
                "remote": place.peer((far if here[0] == near else near).node),
                "vni": FIRST_VNI + number,
                "dst-port": VXLAN_PORT,
            }


def _switch(switch: Switch, ports: list[str], mtu: int | None, asks: bool) -> dict[str, Any]:
    # The personality "mac" is a program of our labs; a container has the kernel's snooping only,
    # which would not let the cluster's frames through.
    snooping = int(switch.personality == "linux")
    often = " mcast_mld_version 2" if snooping and switch.ipv6 else ""
    lines = [
        # A bridge without an IPv6 address asks nobody by MLD.
        *([IPV6_ON] if switch.ipv6 else ()),
        f"ip link add br0 type bridge stp_state 0 mcast_snooping {snooping}"
        f" mcast_querier {int(asks)}{often}",
        "ip link set br0 up",
    ]
    for port in ports:
        size = f" mtu {mtu}" if mtu else ""
        lines.append(f"ip link set {port}{size} master br0 up")
    labels = {f"{LABEL}kind": "switch", f"{LABEL}personality": switch.personality}
    return {"group": "switch", "labels": labels, "exec": lines}


def _node(node: Node, table: Document, mtu: int | None) -> dict[str, Any]:
    lines, binds = [IPV6_ON] if node.ipv6 else [], []
    for line in node.setup:
        if line != "link set lo up":
            size = f" mtu {mtu}" if mtu and line.startswith("link set") else ""
            lines.append(f"ip {shifted(line)}{size}")
    lines += [f"sysctl -q -w {path.replace('/', '.')}={value}" for path, value in node.sysctls]
    if node.rules:
        binds.append(f"nodes/{node.name}.nft:{RULES}:ro")
        lines.append(f"nft -f {RULES}")
    for _, port in node.services:
        everywhere = " --bind ::" if node.ipv6 else ""
        command = f"cd /srv && hostname >index.html && python3 -m http.server {port}{everywhere}"
        lines.append(_background(command, f"service-{port}"))
    if node.config:
        binds.append(f"nodes/{node.name}.toml:{CONFIG}:ro")
        lines.append(_background(f"softnlb agent --config {CONFIG}", "softnlb"))
    exported: dict[str, Any] = {"group": node.kind, "labels": _labels(node, table)}
    if binds:
        exported["binds"] = binds
    return exported | {"exec": lines}


def _background(command: str, name: str) -> str:
    return f"sh -c '{command} >/var/log/{name}.log 2>&1 &'"


def _labels(node: Node, table: Document) -> dict[str, str]:
    facts = {"kind": node.kind, "address": f"{node.address}/{node.prefix}"}
    facts |= {key: str(table[key]) for key in ("arp", "pool") if table.get(key) is not None}
    if table.get("additional_addresses"):
        facts["additional_addresses"] = " ".join(table["additional_addresses"])
    if table.get("nat"):
        facts["nat"] = "true"
    if node.services:
        facts["services"] = " ".join(f"{kind}:{port}" for kind, port in node.services)
    return {f"{LABEL}{key}": value for key, value in facts.items()}
