"""Results for a human eye: short sentences and small tables.

On a terminal tables have lines and colours (rich); elsewhere, or with NO_COLOR, they are aligned
plain text, which is also what scripts without --json get.
"""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

Result = dict[str, Any]

STATE_SENTENCES = {
    "converging": "is converging",
    "converged": "has converged",
    "draining": "is draining: no new connections, it stops after its last one",
    "stopped": "is stopped",
    "suspended": "is suspended: it obeys resume and query only",
}


def fancy() -> bool:
    """Whether stdout is a terminal that may be coloured."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the columns are as wide as their widest cell."""
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    if fancy():
        _rich_table(columns, texts)
        return
    lines = [list(columns), *texts]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def console(width: int | None = None) -> "Console":
    """For tables by rich; off a terminal, and with NO_COLOR, it writes plain text.

    ``width``: in columns off a terminal, where rich would assume 80.
    """
    from rich.console import Console

    return Console(
        highlight=False,
        color_system="auto" if fancy() else None,
        width=None if sys.stdout.isatty() else width,
    )


def _rich_table(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    console().print(made)


def bold(text: str) -> str:
    """Emphasis on a terminal, the text itself elsewhere."""
    return click.style(text, bold=True) if fancy() else text


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    if seconds < 90:
        return f"{seconds:.1f} s ago" if seconds < 10 else f"{seconds:.0f} s ago"
    minutes = seconds / 60
    return f"{minutes:.0f} min ago" if minutes < 90 else f"{minutes / 60:.1f} h ago"


def _members(ids: Sequence[int]) -> str:
    return ", ".join(str(host_id) for host_id in ids) or "none"


def query(result: Result) -> None:
    """State, members, default host and convergence, in the order in which nlb.exe tells them."""
    host_id, state, default = result["host_id"], result["state"], result["default_host"]
    is_default = state == "converged" and default == host_id
    sentence = STATE_SENTENCES.get(state, state)
    click.echo(bold(f"Cluster {result['cluster_ip_address']}"))
    click.echo(f"Host {host_id} {sentence}{' as DEFAULT' if is_default else ''}.")
    if state in ("stopped", "suspended"):
        return
    click.echo(f"Members of the cluster: {_members(result['members'])}")
    if default is not None:
        whose = "this host" if default == host_id else f"host {default}"
        click.echo(f"Default host (takes what no port rule covers): {whose}")
    count = result["convergence_count"]
    times = "once" if count == 1 else f"{count} times"
    if count:
        click.echo(f"Converged {times}, the last time {_ago(result['last_converged_s_ago'])}.")
    else:
        click.echo("Not converged yet.")


def params(result: Result) -> None:
    """Name = value lines."""
    width = max((len(name) for name in result), default=0)
    for name, value in result.items():
        click.echo(f"{name.ljust(width)} = {_value(value)}")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value) or "-"
    return "-" if value is None else str(value)


def display(result: Result) -> None:
    """All about a host, in the order of nlb.exe: configuration, events, addresses, state."""
    from softnlb.nlb_show import addresses

    click.echo(bold("Configuration"))
    params(result["params"])
    members = result.get("members", [])
    if members:
        _section("Members")
        table(["host", "dedicated IP address", "phase", "signs with"], map(_member_row, members))
    rules = result.get("rules", [])
    if rules:
        _section("Port rules")
        names = ["rule", "state", "weight", "priority", "buckets", "service"]
        table(names, map(_rule_row, rules))
    if result["events"]:
        _section("Events, the newest last")
        for event in result["events"]:
            clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
            click.echo(f"{clock}  {event['severity']:<8} {event['text']}")
    _section("Addresses")
    click.echo(addresses(result["params"]["interface"]))
    _section("State")
    query(result["query"])
    if result["history"]:
        _section("Convergence history, the newest last")
        table(["when", "phase", "members", "reason"], map(_history_row, result["history"]))
    if result["counters"]:
        _section("Packets by reason")
        table(["reason", "packets"], sorted(result["counters"].items()))
    ignored = result.get("heartbeats_ignored", {})
    if any(ignored.values()):
        _section("Heartbeats that were not believed")
        table(["why", "frames"], sorted(pair for pair in ignored.items() if pair[1]))


def _section(title: str) -> None:
    click.echo(f"\n{bold(title)}")


def _member_row(member: Result) -> list[object]:
    phase = "draining" if member["draining"] else member["phase"]
    key = f"key {member['key_id']}" if member["key_id"] else "no key"
    return [member["host_id"], member["dedicated_ip_address"], phase, key]


def _rule_row(rule: Result) -> list[object]:
    names = ("rule", "state", "load_weight", "handling_priority", "buckets", "service")
    return [rule.get(name) for name in names]


def _history_row(line: Result) -> list[object]:
    return [_ago(line["s_ago"]), line["phase"], _members(line["members"]), line["reason"]]


def queryport(result: Result) -> None:
    """The rule that covers a port."""
    click.echo(bold(f"Rule {result['rule']}"))
    click.echo(f"On this host: {result['state']}")
    if result.get("load_weight") is not None:
        click.echo(f"Load weight {result['load_weight']}, ", nl=False)
        click.echo(f"handling priority {result['handling_priority']}")
    if result.get("buckets") is not None:
        click.echo(f"Buckets of this host: {result['buckets']} of 60")
    if result.get("service") is not None:
        click.echo(f"Service: {result['service']}")
    click.echo(f"Packets: {result['accepted']} accepted, {result['dropped']} dropped")
    if result.get("counters"):
        table(["reason", "packets"], sorted(result["counters"].items()))


def ip2mac(result: Result) -> None:
    """The MAC addresses of a cluster, one mode per line."""
    click.echo(bold(f"Cluster {result['cluster_ip_address']}"))
    kind = "igmp" if "igmp_group" in result else "mld"
    rows = [
        ["unicast", result["unicast"], "MAC address of every host's cluster interface"],
        ["multicast", result["multicast"], "joined beside the interface's own"],
        ["igmp", result[f"{kind}_multicast"], f"joined through group {result[f'{kind}_group']}"],
    ]
    table(["mode", "cluster MAC", ""], rows)


def order(result: Result) -> None:
    """What an order did."""
    click.echo(f"{result['host']}: {result['message']} (state: {result['state']})")


def config_check(result: Result) -> None:
    """A configuration without errors."""
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}")
    click.echo(f"{result['file']}: no errors; digest of what the hosts share: {result['digest']}")


def doctor(result: Result) -> None:
    """A table of what was found, then what is to do."""
    checks = result["checks"]
    table(["", "state", "found"], [[c["name"], _state(c), c["detail"]] for c in checks])
    click.echo()
    for check in checks:
        if check["remedy"]:
            click.echo(f"{check['name']}: {check['remedy']}")
    verdicts = {
        0: "This machine has what softnlb needs.",
        1: "Something is in the way.",
        5: "Something needed is missing.",
    }
    click.echo(bold(verdicts[result["exit_code"]]))


def _state(check: Result) -> str:
    optional = check["state"] == "missing" and not check["needed"]
    return "missing (optional)" if optional else str(check["state"])


def cleanup(undone: list[str]) -> None:
    """What was undone."""
    for sentence in undone:
        click.echo(sentence)
    if not undone:
        click.echo("Nothing was left behind.")
