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


def next_steps(name: str, cluster_ip_address: str) -> str:
    """What to try next."""
    where = f"[{cluster_ip_address}]" if ":" in cluster_ip_address else cluster_ip_address
    option = "" if name == "lab" else f" --name {name}"
    return "\n".join(
        (
            "Try next:",
            f"  softnlb lab exec{option} client1 -- curl -s http://{where}/",
            f"  softnlb lab exec{option} host1 -- softnlb query",
            f"  softnlb lab open{option} 8080          # the cluster in your browser",
            f"  softnlb lab fault{option} kill host2",
            f"  softnlb lab status{option}",
            f"  softnlb lab down{option}",
        )
    )


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
