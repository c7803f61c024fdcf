"""An exported lab read back: what containerlab's own schema does not check, and the lab in it."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convergence.rules import EQUAL_LOAD_WEIGHT
from labs.containerlab import LABEL, Topology
from labs.lab_file import check
from labs.topology import Document, LabSpec
from softnlb.errors import UsageError

_ENDPOINT = re.compile(r"([A-Za-z][A-Za-z0-9-]*):(eth[1-9][0-9]*)")
INTERFACE_NAME_MAX = 15

Node = dict[str, Any]


def read(path: Path) -> LabSpec:
    """The lab in a topology file and, when it is one of several, in the files beside it.

    Raises UsageError with everything that is wrong, ConfigError when it is no lab of ours.
    """
    import yaml

    directory = path.parent
    stem = re.sub(r"_\d+$", "", path.name.removesuffix(".clab.yml"))
    paths = sorted(directory.glob(f"{stem}_[0-9]*.clab.yml")) or [path]
    try:
        parts = [yaml.safe_load(each.read_text()) for each in paths]
        problems = [problem for part in parts for problem in check_topology(part, directory)]
        problems += check_tunnels(parts)
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not a topology that softnlb wrote ({error})") from error
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
    return check(_document(stem, parts, directory), str(path))


# ---------------------------------------------------------------- checks


def check_topology(topology: Topology, directory: Path) -> Iterator[str]:
    """What is wrong with one file: cables to nowhere, an end used twice, binds that are missing."""
    nodes = topology["topology"]["nodes"]
    ends: Counter[str] = Counter()
    for link in topology["topology"]["links"]:
        texts = _ends(link)
        if len(texts) != 2 - ("endpoint" in link):
            yield f"a cable with {len(texts)} ends: {link}"
        for text in texts:
            ends[text] += 1
            found = _ENDPOINT.fullmatch(text)
            if found is None or len(found[2]) > INTERFACE_NAME_MAX:
                yield f"no end of a cable: {text!r}; expected NODE:ethN, N from 1"
            elif found[1] not in nodes:
                yield f"a cable to {found[1]!r}, which is no node"
    yield from (f"{end} has {count} cables" for end, count in ends.items() if count > 1)
    addresses: Counter[str] = Counter()
    for name, node in nodes.items():
        for bind in node.get("binds", ()):
            if not (directory / bind.split(":")[0]).is_file():
                yield f"{name} binds {bind.split(':')[0]!r}, which is not there"
        address = node["labels"].get(f"{LABEL}address")
        if address is not None:
            addresses[address.split("/")[0]] += 1
            if not any(f"addr add {address} dev" in line for line in node["exec"]):
                yield f"{name} is labelled {address} and does not get that address"
    yield from (f"{count} nodes have {a}" for a, count in addresses.items() if count > 1)


def check_tunnels(parts: list[Topology]) -> Iterator[str]:
    """Every tunnel has two ends, on two machines."""
    numbers = [
        {link["vni"] for link in part["topology"]["links"] if link.get("type") == "vxlan-stitch"}
        for part in parts
    ]
    count = Counter(number for part in numbers for number in part)
    for vni, ends in sorted(count.items()):
        if ends != 2:
            yield f"VNI {vni} has {ends} end(s); expected 2, on two machines"


def _ends(link: dict[str, Any]) -> list[str]:
    if "endpoint" in link:
        return [f"{link['endpoint']['node']}:{link['endpoint']['interface']}"]
    return list(link["endpoints"])


# ---------------------------------------------------------------- the lab in it


def cables(parts: list[Topology]) -> list[tuple[str, str]]:
    """The names of the nodes at both ends of every cable, tunnels joined."""
    found: list[tuple[str, str]] = []
    tunnels: dict[int, str] = {}
    for part in parts:
        for link in part["topology"]["links"]:
            names = [end.partition(":")[0] for end in _ends(link)]
            if "endpoint" not in link:
                found.append((names[0], names[1]))
            elif link["vni"] in tunnels:
                found.append((tunnels[link["vni"]], names[0]))
            else:
                tunnels[link["vni"]] = names[0]
    return found


def _document(name: str, parts: list[Topology], directory: Path) -> Document:
    nodes: dict[str, Node] = {}
    for part in parts:
        nodes |= part["topology"]["nodes"]
    kinds = {each: node["labels"][f"{LABEL}kind"] for each, node in nodes.items()}
    document: Document = {"lab": {"name": name}, "trunk": [], "service": []}
    document |= {kind: [] for kind in ("switch", "router", "client", "bystander", "host")}
    beside: dict[str, str] = {}
    for one, other in cables(parts):
        if kinds[one] == kinds[other] == "switch":
            document["trunk"].append({"between": [one, other]})
            continue
        # A leaf hangs on a switch, or a client on a router.
        upper, lower = (one, other) if kinds[one] in ("switch", "router") else (other, one)
        if kinds[lower] == "switch":
            upper, lower = lower, upper
        beside[lower] = upper
    for each, node in nodes.items():
        document[kinds[each]].append(_table(each, node, beside.get(each), kinds))
    _services(document, nodes)
    files = []
    for host in document["host"]:
        files.append(tomllib.loads((directory / "nodes" / f"{host['name']}.toml").read_text()))
        _from_configuration(document, host, files[-1])
    _rules(document, [file.get("port_rule", []) for file in files])
    return document


def _table(name: str, node: Node, upper: str | None, kinds: dict[str, str]) -> dict[str, Any]:
    labels = {
        key.removeprefix(LABEL): value
        for key, value in node["labels"].items()
        if key not in (f"{LABEL}kind", f"{LABEL}services")
    }
    table: dict[str, Any] = {"name": name, **labels}
    if "additional_addresses" in table:
        table["additional_addresses"] = table["additional_addresses"].split()
    if "nat" in table:
        table["nat"] = True
    if upper is not None:
        table[kinds[upper]] = upper
    return table


def _services(document: Document, nodes: dict[str, Node]) -> None:
    served: dict[str, list[str]] = {}
    for name, node in nodes.items():
        for service in node["labels"].get(f"{LABEL}services", "").split():
            served.setdefault(service, []).append(name)
    for service, hosts in served.items():
        kind, _, port = service.partition(":")
        document["service"].append({"kind": kind, "port": int(port), "hosts": hosts})


def _from_configuration(document: Document, host: dict[str, Any], file: dict[str, Any]) -> None:
    """What the host's own file says of the cluster and of itself."""
    own = dict(file["host"])
    for key in ("interface", "dedicated_ip_address"):
        del own[key]
    document["lab"] |= {key: own.pop(key) for key in ("data_plane", "attach")}
    document.setdefault("cluster", file["cluster"])
    host |= own


def _rules(document: Document, files: list[list[dict[str, Any]]]) -> None:
    """The port rules of all hosts as one list; where hosts differ, each has a list of its own."""
    document["port_rule"] = rules = [dict(rule) for rule in files[0]]
    for key, listed, usual in (
        ("load_weight", "load_weights", lambda _: EQUAL_LOAD_WEIGHT),
        ("handling_priority", "handling_priorities", lambda host: host["id"]),
    ):
        if all([r.get(key) for r in file] == [r.get(key) for r in rules] for file in files):
            continue
        for rule in rules:
            rule.pop(key, None)
        for host, file in zip(document["host"], files, strict=True):
            if any(key in rule for rule in file):
                host[listed] = [rule.get(key, usual(host)) for rule in file]
