"""Labs exported for containerlab: written, read back and carried out in real namespaces."""

import json
import os
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml

from labs import lab_file
from labs.containerlab import IPV6_ON, RULES, export, topologies
from labs.containerlab_read import cables, check_topology, check_tunnels, read
from labs.plan import build
from labs.topology import Document, LabSpec
from softnlb.config import load
from softnlb.errors import UsageError
from tests.netns import Namespace

TWO_MACHINES = (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))

OWN = {
    "lab": {"name": "mine"},
    "cluster": {"ip_address": "10.7.0.100/24", "mode": "multicast"},
    "port_rule": [{"ports": 80, "protocol": "tcp"}],
    "switch": [{"name": "left", "personality": "linux"}, {"name": "right"}],
    "trunk": [{"between": ["left", "right"]}],
    "router": [{"name": "gate", "address": "10.7.0.254/24", "arp": "strict", "nat": True}],
    "client": [
        {"name": "far", "router": "gate", "address": "10.8.0.2/24", "pool": "10.9.0.0/24"},
        {"name": "near", "switch": "right", "address": "10.7.0.200/24"},
    ],
    "host": [
        {"id": 3, "address": "10.7.0.3/24", "load_weights": [20]},
        {"id": 5, "switch": "right", "address": "10.7.0.5/24"},
    ],
}

NO_RULES = {**OWN, "port_rule": [], "host": [{"id": 3, "address": "10.7.0.3/24"}]}
BOTH = {
    "lab": {"name": "both", "hosts": 2},
    "cluster": {
        "ip_address": "10.1.0.100/24",
        "additional_ip_addresses": ["2001:db8:1::100/64"],
    },
}
OWN6 = json.loads(re.sub(r"10\.(\d+)\.0\.(\d+)/24", r"2001:db8:\1::\2/64", json.dumps(OWN)))


def usual(ipv6: bool = False) -> Document:
    return LabSpec(hosts=5, ipv6=ipv6).complete_document()


def own(written: Document = OWN) -> Document:
    return lab_file.check(json.loads(json.dumps(written)), "mine.toml").complete_document()


def plan(document: Document) -> Any:
    """A plan, its nodes by name: their order means nothing."""
    built = build(document)
    return replace(built, nodes=tuple(sorted(built.nodes, key=lambda node: node.name)))


@pytest.mark.parametrize("machines", [(), TWO_MACHINES])
@pytest.mark.parametrize(
    "document",
    [usual(), own(), usual(ipv6=True), own(OWN6), own(BOTH), own(NO_RULES)],
    ids=["usual", "own", "usual6", "own6", "both", "no rules"],
)
def test_what_is_exported_is_read_back(
    tmp_path: Path, document: Document, machines: tuple[IPv4Address, ...]
) -> None:
    written = export(document, tmp_path / "out", machines)
    topology = [path for path in written if path.name.endswith(".clab.yml")]
    assert len(topology) == max(1, len(machines))
    assert plan(read(topology[-1]).complete_document()) == plan(document)
    assert all(path.exists() for path in written)
    page = (tmp_path / "out" / "README.md").read_text()
    assert "/" not in page.split("deploy -t ")[1].split()[0]
    named = set(re.findall(r"docker exec (\w+) ", page)) - {"HOST"}
    built = build(document)
    assert named <= {each.name for each in (*built.nodes, *built.switches)}
    assert (len(named) == 1) is bool(machines)


def test_hosts_get_the_file_that_the_agent_reads(tmp_path: Path) -> None:
    export(own(), tmp_path / "out")
    config = load(tmp_path / "out" / "nodes" / "host3.toml")
    assert (config.interface, config.load_weights) == ("eth1", (20,))


def test_a_cable_between_machines_is_a_tunnel_with_two_ends() -> None:
    near, far = topologies(build(usual()), usual(), TWO_MACHINES)
    assert set(far["topology"]["nodes"]) == {"host2", "host4"}
    tunnels = [
        {link["vni"]: link["remote"] for link in part["topology"]["links"] if "vni" in link}
        for part in (near, far)
    ]
    assert tunnels[0].keys() == tunnels[1].keys()
    assert set(tunnels[0].values()) == {"192.0.2.2"}
    assert set(tunnels[1].values()) == {"192.0.2.1"}
    # What crosses a tunnel must fit into it, whoever sends it.
    lines = [
        line
        for part in (near, far)
        for node in part["topology"]["nodes"].values()
        for line in node["exec"]
        if "link set eth" in line
    ]
    assert lines
    assert all("mtu 1450" in line for line in lines)
    assert cables([near, far]) != cables([near])


@pytest.mark.parametrize(
    ("machines", "message"), [(TWO_MACHINES[:1], "every machine"), (TWO_MACHINES[:1] * 2, "once")]
)
def test_machines_must_make_sense(
    tmp_path: Path, machines: tuple[IPv4Address, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(usual(), tmp_path / "out", machines)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        export(usual(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# ---------------------------------------------------------------- what a schema does not see


def broken(topology: Any, deed: str) -> None:
    body = topology["topology"]
    first = body["links"][0]
    if deed == "to nowhere":
        first["endpoints"] = ["switch:eth1", "nobody:eth1"]
    elif deed == "twice":
        body["links"].append(first)
    elif deed == "eth0":
        first["endpoints"] = ["switch:eth0", "router:eth1"]
    elif deed == "one end":
        first["endpoints"] = ["switch:eth1"]
    elif deed == "no file":
        body["nodes"]["host1"]["binds"] = ["nodes/other.toml:/x:ro"]
    elif deed == "other address":
        body["nodes"]["host1"]["labels"]["softnlb-address"] = "10.1.0.77/24"
    elif deed == "same address":
        body["nodes"]["host1"]["labels"] = body["nodes"]["host2"]["labels"]


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("to nowhere", "no node"),
        ("twice", "has 2 cables"),
        ("eth0", "expected NODE:ethN"),
        ("one end", "1 ends"),
        ("no file", "not there"),
        ("other address", "does not get"),
        ("same address", "2 nodes have"),
    ],
)
def test_errors_that_no_schema_finds_are_found(tmp_path: Path, deed: str, message: str) -> None:
    export(usual(), tmp_path / "out")
    path = tmp_path / "out" / "lab.clab.yml"
    topology = yaml.safe_load(path.read_text())
    assert list(check_topology(topology, path.parent)) == []
    broken(topology, deed)
    path.write_text(yaml.safe_dump(topology))
    with pytest.raises(UsageError, match=message):
        read(path)


def test_a_tunnel_into_nothing_is_found() -> None:
    near, far = topologies(build(usual()), usual(), TWO_MACHINES)
    assert list(check_tunnels([near, far])) == []
    assert len(list(check_tunnels([near]))) == 2


@pytest.mark.parametrize("text", ["", "[]", "name: x", "topology: {nodes: 3, links: 4}", "\t:"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.clab.yml"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a topology"):
        read(path)


# ---------------------------------------------------------------- carried out


@pytest.fixture(params=[OWN, OWN6], ids=["IPv4", "IPv6"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Namespace]]:
    """The exported lab as containerlab would build it, but for the processes in the containers."""
    export(own(request.param), tmp_path / "out")
    topology = yaml.safe_load((tmp_path / "out" / "mine.clab.yml").read_text())["topology"]
    made = {name: Namespace(name) for name in topology["nodes"]}
    for namespace in made.values():
        namespace.run(IPV6_ON.replace("=0", "=1"))
    for link in topology["links"]:
        (near, one), (far, other) = (end.split(":") for end in link["endpoints"])
        target = f"/proc/{os.getpid()}/fd/{made[far].descriptor}"
        made[near].run(f"ip link add {one} type veth peer name {other} netns {target}")
    for name, node in topology["nodes"].items():
        for line in node["exec"]:
            if not line.startswith("sh -c"):
                rules = tmp_path / "out" / "nodes" / f"{name}.nft"
                made[name].run(shlex.split(line.replace(RULES, str(rules))))
    yield made
    for namespace in made.values():
        namespace.close()


def reach(node: Namespace, address: str) -> None:
    """Somebody is there: nobody listens, and that is said at once."""
    with pytest.raises(ConnectionRefusedError):
        node.call(lambda: socket.create_connection((address, 9), timeout=5))


def test_the_exported_nodes_reach_each_other(nodes: dict[str, Namespace]) -> None:
    # Across both switches, their trunk, and the router.
    ipv6 = "2001:db8:7::3" in nodes["host3"].run("ip address show eth1")
    network = "2001:db8:7::" if ipv6 else "10.7.0."
    reach(nodes["far"], f"{network}5")
    reach(nodes["host3"], f"{network}200")
    assert "masquerade" in nodes["gate"].run("nft list ruleset")
    assert "mcast_snooping 1" in nodes["left"].run("ip -d link show br0")
