"""Your own lab: a TOML file becomes a checked document, or every error at once.

The errors are those of a host's configuration file, and what the file says about the hosts is
checked by the same code, as the file that each host will have.
"""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from labs.lab_schema import COURSE, LAB, MANY, STEP, TABLES
from labs.plan import (
    addresses,
    cluster_ip_addresses,
    config_tables,
    gateway,
    of_each_version,
)
from labs.topology import HOSTS_MAX, Document, LabSpec, usual_document
from modes.plan import InterfaceAddress, Mode
from softnlb.config import ConfigError, Problem, read_toml
from softnlb.config_check import build as check_config
from softnlb.table import read_table, shown, unknown_key

Complaint = tuple[str, str, str]
"""Key path, value as text, what was expected."""

NODE_KINDS = ("router", "client", "bystander", "host")
ORDER = ("lab", "cluster", "port_rule", "switch", "trunk", *NODE_KINDS, "service")
SMALLEST_USUAL_NETWORK = {4: 1 << 8, 6: 1 << 10}
"""Addresses, by IP version."""


def load(path: Path) -> LabSpec:
    """Read and check a lab file.  Raises ConfigError with every error of the file."""
    return check(read_toml(path), str(path))


def check(raw: dict[str, Any], file: str) -> LabSpec:
    """Check a parsed lab file.  Raises ConfigError with every error, each naming ``file``."""
    complaints: list[Complaint] = [
        (key, shown(raw[key]), unknown_key(key, TABLES)) for key in raw.keys() - TABLES
    ]
    document = _read(raw, complaints)
    if not complaints:
        _fill_in(document, raw, complaints)
    if not complaints:
        complaints += _check_names(document)
    if not complaints:
        complaints += [*_check_wiring(document), *_check_addresses(document)]
        complaints += _check_hosts(document, raw)
    if complaints:
        problems = {Problem(file, *complaint): None for complaint in complaints}
        raise ConfigError(tuple(sorted(problems, key=_place)))
    return _spec(document)


def _place(problem: Problem) -> tuple[int, int, str]:
    """Sort as the file is usually written."""
    table, _, rest = problem.key.partition("[")
    number = rest.partition("]")[0]
    name = table.partition(".")[0]
    place = ORDER.index(name) if name in ORDER else -1
    return place, int(number) if number.isdigit() else 0, problem.key


# ---------------------------------------------------------------- reading


def _read(raw: dict[str, Any], complaints: list[Complaint]) -> Document:
    document: Document = {}
    for name in ("lab", "cluster"):
        table = raw.get(name, {})
        if not isinstance(table, dict):
            complaints.append((name, shown(table), f"a table, [{name}]"))
            table = {}
        document[name] = dict(table)
    good, bad = read_table(LAB, document["lab"], "lab")
    document["lab"] = good
    complaints += [complaint[:3] for complaint in bad]
    for name in ("port_rule", *MANY):
        tables = raw.get(name, [])
        if not _are_tables(tables):
            complaints.append((name, shown(tables), f"tables, [[{name}]]"))
            tables = []
        document[name] = [dict(table) for table in tables]
    for name, known in MANY.items():
        for number, table in enumerate(document[name], 1):
            good, bad = read_table(known, table, f"{name}[{number}]")
            complaints += [complaint[:3] for complaint in bad]
            # What a host's own file has defaults for is left to that file.
            kept = good.keys() if name != "host" else ("id", "name", "switch", "address")
            document[name][number - 1] = {key: good.get(key) for key in kept} | table
    if "course" in raw:
        complaints += _check_lesson(raw)
    return document


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _check_lesson(raw: dict[str, Any]) -> Iterator[Complaint]:
    """[course] and [[step]]: what makes a lab file a lesson."""
    course, steps = raw["course"], raw.get("step", [])
    if not isinstance(course, dict):
        yield "course", shown(course), "a table, [course]"
        return
    if not _are_tables(steps):
        yield "step", shown(steps), "tables, [[step]]"
        steps = []
    for number, table in enumerate(steps, 1):
        for complaint in read_table(STEP, table, f"step[{number}]")[1]:
            yield complaint[:3]
    for complaint in read_table(COURSE, course, "course")[1]:
        yield complaint[:3]


def _fill_in(document: Document, raw: dict[str, Any], complaints: list[Complaint]) -> None:
    """Complete the document by what the usual lab has where the file says nothing."""
    cluster, hosts = document["cluster"], document["host"]
    cluster.setdefault("mode", "unicast")
    cluster.setdefault("timers", "nlb")
    try:
        primaries = of_each_version(cluster_ip_addresses(document))
    except (KeyError, TypeError, ValueError):
        # The hosts' own files say what is wrong with them.
        complaints += _check_hosts({**document, "host": [_any_host()]}, raw)
        return
    count = document["lab"].pop("hosts")
    if count is not None and hosts:
        complaints.append(("lab.hosts", shown(count), "either this or [[host]] tables, not both"))
    elif not hosts and count is None:
        complaints.append(("lab.hosts", "", "a whole number from 1 to 32, or [[host]] tables"))
    for host_id in range(1, (count or 0) + 1):
        if all(host_id < primary.network.num_addresses for primary in primaries):
            address, *more = (f"{p.network[host_id]}/{p.network.prefixlen}" for p in primaries)
            hosts.append({"id": host_id, "name": None, "switch": None, "address": address})
            if more:
                hosts[-1]["additional_dedicated_ip_addresses"] = more
    for host in hosts:
        host["name"] = host["name"] or f"host{host['id']}"
    if not document["switch"]:
        snooping = "mac" if cluster["mode"] == "igmp" else "dumb"
        document["switch"] = [{"name": "switch", "personality": snooping}]
    if not any(document[kind] for kind in ("router", "client", "bystander")):
        complaints += _usual_others(document, primaries)
    if not document["service"]:
        document["service"] = [{"kind": "http", "port": 80, "hosts": None}]
    for service in document["service"]:
        service["hosts"] = service["hosts"] or [host["name"] for host in hosts]
    first = document["switch"][0]["name"]
    for kind in NODE_KINDS:
        for table in document[kind]:
            if table["switch"] is None and table.get("router") is None:
                table["switch"] = first


def _any_host() -> Document:
    return {"id": 1, "address": "192.0.2.1/24"}


def _usual_others(document: Document, primaries: list[InterfaceAddress]) -> Iterator[Complaint]:
    """Router, clients and bystander as in the usual lab, at the same places of this network, and
    of that of the other IP version."""
    for primary in primaries:
        network = primary.network
        if network.num_addresses < SMALLEST_USUAL_NETWORK[network.version]:
            yield "client", "", "[[client]] tables, since so small a network has no usual ones"
            return
        usual = _usual_in(primary)
        for kind in ("router", "client", "bystander"):
            if primary == primaries[0]:
                document[kind] = usual[kind]
                continue
            for table, other in zip(document[kind], usual[kind], strict=True):
                table["additional_addresses"] = [other["address"]]


def _usual_in(primary: InterfaceAddress) -> Document:
    network = primary.network
    usual = usual_document(LabSpec(ipv6=network.version == 6))
    behind, other = ("10.2", "172.16") if network.version == 4 else ("2001:db8:", "fd00:db8:")
    for kind in ("router", "client", "bystander"):
        for table in usual[kind]:
            if table.get("router") is None:
                place = ip_interface(table["address"])
                offset = int(place.ip) - int(place.network.network_address)
                if network.version == 4:  # near the end, also of a larger network
                    offset -= place.network.num_addresses
                table["address"] = f"{network[offset]}/{network.prefixlen}"
                table["switch"] = None
            elif _meets(table, primary):
                table["address"] = table["address"].replace(behind, other, 1)
                table["pool"] = table["pool"].replace(behind, other, 1)
    return usual


def _meets(client: Document, primary: InterfaceAddress) -> bool:
    """Whether the usual routed client would be in the cluster's own network."""
    networks = ip_interface(client["address"]).network, ip_network(client["pool"])
    return any(primary.network.overlaps(each) for each in networks)


# ---------------------------------------------------------------- what must fit together


def _check_names(document: Document) -> Iterator[Complaint]:
    taken = {"lo", "all", "default"}  # the kernel's own
    taken |= {f"br{number}" for number in range(len(document["switch"]))}
    taken |= {f"trunk{n}{end}" for n in range(1, len(document["trunk"]) + 1) for end in "ab"}
    for kind in ("switch", *NODE_KINDS):
        for number, table in enumerate(document[kind], 1):
            if table["name"] in taken:
                yield f"{kind}[{number}].name", shown(table["name"]), "a name that is not taken"
            taken.add(table["name"])
            if table["name"] == "switch" and kind != "switch":
                yield f"{kind}[{number}].name", shown("switch"), "a name that is not taken"
    hosts = [host["id"] for host in document["host"]]
    for number, host_id in enumerate(hosts, 1):
        if host_id in hosts[: number - 1]:
            yield f"host[{number}].id", shown(host_id), "an id that no other host has"
    if len(hosts) > HOSTS_MAX:
        yield "host", f"{len(hosts)} hosts", f"at most {HOSTS_MAX} hosts"


def _check_wiring(document: Document) -> Iterator[Complaint]:
    switches = [table["name"] for table in document["switch"]]
    routers = [table["name"] for table in document["router"]]
    hosts = [table["name"] for table in document["host"]]
    for kind in NODE_KINDS:
        for number, table in enumerate(document[kind], 1):
            place = f"{kind}[{number}]"
            if kind == "client" and table["router"] is not None:
                if table["router"] not in routers:
                    yield f"{place}.router", shown(table["router"]), _one_of(routers)
                if table["switch"] is not None:
                    yield (
                        f"{place}.switch",
                        shown(table["switch"]),
                        "no switch beside a router",
                    )
            elif table["switch"] not in switches:
                yield f"{place}.switch", shown(table["switch"]), _one_of(switches)
            if kind == "client" and table["pool"] is not None and table["router"] is None:
                yield f"{place}.pool", shown(table["pool"]), "a router in front of a client"
    for number, service in enumerate(document["service"], 1):
        for host in service["hosts"]:
            if host not in hosts:
                yield f"service[{number}].hosts", shown(host), _one_of(hosts)
        for earlier in document["service"][: number - 1]:
            shared = set(earlier["hosts"]) & set(service["hosts"])
            if earlier["port"] == service["port"] and shared:
                expected = f"a port that is free on {min(shared)}"
                yield f"service[{number}].port", shown(service["port"]), expected
    yield from _check_trunks(document, switches)


def _check_trunks(document: Document, switches: list[str]) -> Iterator[Complaint]:
    reach = {name: {name} for name in switches}
    for number, trunk in enumerate(document["trunk"], 1):
        one, other = trunk["between"]
        for name in (one, other):
            if name not in switches:
                yield f"trunk[{number}].between", shown(name), _one_of(switches)
        if one not in reach or other not in reach:
            continue
        if other in reach[one]:
            expected = "a cable that closes no loop: these switches run no spanning tree"
            yield f"trunk[{number}].between", shown([one, other]), expected
        joined = reach[one] | reach[other]
        for name in joined:
            reach[name] = joined


def _one_of(names: list[str]) -> str:
    return f"one of {', '.join(names)}" if names else "a table of that name, there is none"


def _check_addresses(document: Document) -> Iterator[Complaint]:
    shared = cluster_ip_addresses(document)
    clusters = {address.version: address for address in of_each_version(shared)}
    taken = {address.ip: "the cluster IP address" for address in shared}
    for kind in NODE_KINDS:
        for number, table in enumerate(document[kind], 1):
            place = f"{kind}[{number}]"
            more = "additional_dedicated_ip_addresses" if kind == "host" else "additional_addresses"
            seen: set[int] = set()
            for at, address in enumerate(addresses(table)):
                key = f"{place}.{more if at else 'address'}"
                if at == 0 and address.version != shared[0].version:
                    expected = f"an IPv{shared[0].version} address, as the cluster has"
                    yield key, shown(str(address)), expected
                    continue
                if kind != "host" and (address.version in seen or address.version not in clusters):
                    yield key, shown(str(address)), "one of each IP version that the cluster has"
                    continue
                seen.add(address.version)
                if address.ip in taken:
                    expected = f"an address of its own, not that of {taken[address.ip]}"
                    yield key, shown(str(address)), expected
                taken[address.ip] = str(table["name"])
                routed = kind == "client" and table["router"] is not None
                if routed and address.network.overlaps(clusters[address.version].network):
                    expected = "a network of its own behind the router, not the cluster's"
                    yield key, shown(str(address)), expected
            if kind == "client" and table["router"] is not None and table["pool"] is not None:
                yield from _check_pool(table, place, shared[0])


def _check_pool(table: Document, place: str, cluster: InterfaceAddress) -> Iterator[Complaint]:
    address, own = ip_interface(table["address"]), cluster.network
    pool = ip_network(table["pool"])
    if pool.version != own.version:
        expected = f"a network of IPv{own.version} addresses, as the cluster has"
        yield f"{place}.pool", shown(table["pool"]), expected
    elif pool.overlaps(own):
        yield f"{place}.pool", shown(table["pool"]), "a network outside the cluster's"
    elif address.ip in pool or gateway(address) in pool:
        expected = f"a network without {table['address']} and the router's {gateway(address)}"
        yield f"{place}.pool", shown(table["pool"]), expected


def _check_hosts(document: Document, raw: dict[str, Any]) -> Iterator[Complaint]:
    """Each host's own file, checked as on a real machine."""
    rules = len(document["port_rule"])
    for number, host in enumerate(document["host"], 1):
        for key in ("load_weights", "handling_priorities"):
            listed = host.get(key)
            if listed is not None and len(listed) != rules:
                expected = f"a list with one number for each of the {rules} port rules"
                yield f"host[{number}].{key}", shown(listed), expected
        try:
            check_config(Path("/"), config_tables(document, host))
        except ConfigError as error:
            for problem in error.problems:
                key = problem.key.replace("host.", f"host[{number}].", 1)
                key = key.replace(".dedicated_ip_address", ".address")
                yield key, problem.value, problem.expected


def _spec(document: Document) -> LabSpec:
    lab, cluster = document["lab"], document["cluster"]
    rules = document["port_rule"]
    return replace(
        LabSpec(name=lab["name"]),
        hosts=len(document["host"]),
        mode=Mode(cluster["mode"]),
        timers=cluster["timers"],
        data_plane=lab["data_plane"],
        attach=lab["attach"],
        switch=document["switch"][0]["personality"],
        affinity=rules[0].get("affinity", "single") if rules else "single",
        ipv6=":" in cluster["ip_address"],
        document=document,
    )
