"""Pictures of a lab in plain text, and its status as a table."""

from typing import Any


def lab_map(status: dict[str, Any]) -> str:
    """The lab as an ASCII map."""
    nodes = {node["name"]: node for node in status["nodes"]}
    hosts = [node for node in status["nodes"] if node["kind"] == "host"]
    left = [
        f"client1   {nodes['client1']['address']} -- router --+",
        f"client2   {nodes['client2']['address']} ------------+",
        f"bystander {nodes['bystander']['address']} ------------+",
    ]
    width = max(len(line) for line in left)
    left = [line[:-1].ljust(width - 1, "-") + "+" for line in left]
    right = [f"+-- {host['name']:7s}{host['address']}" for host in hosts]
    if len(right) > 8:
        right = [*right[:3], f":   {len(right) - 6} more", *right[-3:]]
    rows = max(len(left), len(right))
    middle = rows // 2 if rows > 2 else 1
    left += [" " * (width - 1) + "|"] * (rows - len(left))
    right += ["|"] * (rows - len(right))
    title = f"lab {status['name']}: {status['mode']} mode"
    title += f", cluster IP address {status['cluster_ip_address']} on every host"
    lines = [title, ""]
    for index in range(rows):
        label = " switch " if index == middle else "        "
        lines.append(f"  {left[index]}{label}{right[index]}")
    return "\n".join(lines)


def next_steps(name: str) -> str:
    """What to try next."""
    option = "" if name == "lab" else f" --name {name}"
    return "\n".join(
        (
            "Try next:",
            f"  softnlb lab exec{option} client1 -- curl -s http://10.1.0.100/",
            f"  softnlb lab exec{option} host1 -- softnlb query",
            f"  softnlb lab open{option} 8080          # the cluster in your browser",
            f"  softnlb lab fault{option} kill host2",
            f"  softnlb lab status{option}",
            f"  softnlb lab down{option}",
        )
    )


def print_status(status: dict[str, Any]) -> None:
    """The status as tables on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(lab_map(status), highlight=False)
    table = Table(title="hosts")
    for column in ("host", "state", "agent pid", "dedicated IP address", "buckets"):
        table.add_column(column)
    for host in status["hosts"]:
        table.add_row(
            str(host["host_id"]),
            host["state"],
            str(host["pid"] or "-"),
            host["dedicated_ip_address"],
            "#" * (host["buckets"] // 2) + f" {host['buckets']}",
        )
    console.print(table)
    for fault, detail in status["faults"].items():
        if detail:
            console.print(f"in force: {fault} {detail}", highlight=False)
