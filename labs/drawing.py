"""Pictures of a lab in plain text, and its status as a table."""

from collections.abc import Mapping
from typing import Any

MAP = {
    "title": "lab {name}: {mode} mode, cluster IP address {cluster_ip_address} on every host",
    "trunk": "  over a trunk, {name} ({bridge}):",
}
"""The words of a map, in English."""


def lab_map(status: dict[str, Any], words: Mapping[str, str] = MAP) -> str:
    """The lab as an ASCII map: the first switch between clients and hosts, then the others."""
    lines = [words["title"].format(**status)]
    for number, switch in enumerate(status["switches"]):
        where = [words["trunk"].format(**switch)] if number else []
        lines += ["", *where, *_around(status, switch["bridge"], f" {switch['name']} ")]
    return "\n".join(lines)


def _around(status: dict[str, Any], bridge: str, label: str) -> list[str]:
    """What is plugged into one switch: hosts to the right, all others to the left."""
    left, right = [], []
    for node in status["nodes"]:
        if node["kind"] == "host" and node["bridge"] == bridge:
            right.append(f"+-- {node['name']:7s}{node['address']}")
        elif node["bridge"] == bridge and node["kind"] != "router":
            left.append(f"{node['name']:9s} {node['address']} --+")
        elif node["port"] is None and node["kind"] == "client":
            routers = [each for each in status["nodes"] if each["name"] == node["router"]]
            if routers[0]["bridge"] == bridge:
                left.append(f"{node['name']:9s} {node['address']} -- {node['router']} --+")
    width = max((len(line) for line in left), default=1)
    left = [line[:-1].ljust(width - 1, "-") + "+" for line in left]
    if len(right) > 8:
        right = [*right[:3], f":   {len(right) - 6} more", *right[-3:]]
    rows = max(len(left), len(right), 1)
    middle = rows // 2 if rows > 2 else rows - 1
    left += [" " * (width - 1) + "|"] * (rows - len(left))
    right += ["|"] * (rows - len(right))
    return [
        f"  {left[row]}{label if row == middle else ' ' * len(label)}{right[row]}"
        for row in range(rows)
    ]


def next_steps(status: dict[str, Any]) -> str:
    """What to try next, with the names of this lab."""
    address = status["cluster_ip_address"]
    where = f"[{address}]" if ":" in address else address
    option = "" if status["name"] == "lab" else f" --name {status['name']}"
    hosts = [node["name"] for node in status["nodes"] if node["kind"] == "host"]
    clients = [node for node in status["nodes"] if node["kind"] == "client"]
    clients.sort(key=lambda node: node["router"] is None)  # as LabHandle.client
    first = [f"exec{option} {node['name']} -- curl -s http://{where}/" for node in clients[:1]]
    browser = [f"open{option} 8080          # the cluster in your browser"] * bool(clients)
    steps = (
        *first,
        f"exec{option} {hosts[0]} -- softnlb query",
        *browser,
        f"fault{option} kill {hosts[:2][-1]}",
        f"status{option}",
        f"down{option}",
    )
    return "\n".join(("Try next:", *(f"  softnlb lab {step}" for step in steps)))


def print_status(status: dict[str, Any]) -> None:
    """The status as tables on the terminal."""
    from rich.table import Table

    from softnlb.cli_show import console

    shown = console()
    shown.print(lab_map(status))
    table = Table(title="hosts")
    for column in ("host", "state", "agent pid", "dedicated IP address", "buckets"):
        table.add_column(column)
    for host in status["hosts"]:
        table.add_row(
            str(host["host_id"]),
            host["state"],
            str(host["pid"] or "-"),
            host["dedicated_ip_address"],
            f"{'#' * (host['buckets'] // 4)} {host['buckets']}".strip(),
        )
    shown.print(table)
    for fault, detail in status["faults"].items():
        if fault == "hidden":
            shown.print("in force: a fault that you have to find")
        elif detail:
            shown.print(f"in force: {fault} {_words(detail)}")


def _words(detail: Any) -> str:
    """What a fault concerns: a name, several, or the sides of a partition."""
    if not isinstance(detail, list):
        return str(detail)
    sides = any(isinstance(one, list) for one in detail)
    return (" | " if sides else ", ").join(_words(one) for one in detail)
