"""The comparison as tables on the terminal: clients under faults, and the methods side by side."""

import math
from pathlib import Path
from typing import Any

from labs.compare.judge import LONG_WAIT, NO_OUTAGE

STYLES = {NO_OUTAGE: "green", LONG_WAIT: "red"}
OTHER_STYLE = "yellow"

FEATURE_COLUMNS = 22
METHOD_COLUMNS = 14
"""So wide at least, or words are cut."""


def seconds(client: dict[str, Any]) -> str:
    """The pause: "3.1 s", or "> 12 s" when nobody had been served again at the end."""
    if client["outcome"] == NO_OUTAGE:
        return ""
    return f"{client['pause_s']:.1f} s" if client["over"] else f"> {client['pause_s']:.0f} s"


def cells_of(results: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """Measurements of a method by fault."""
    return {cell["fault"]: cell for cell in results["cells"] if cell["method"] == method}


def shares(steady: dict[str, Any]) -> str:
    """Shares of the servers in percent."""
    total = sum(steady["shares"].values())
    parts = [f"{100 * steady['shares'].get(f'host{n}', 0) / total:.0f}" for n in (1, 2, 3)]
    return " / ".join(parts) + " %"


def noticed(cells: dict[str, dict[str, Any]]) -> str:
    """Whether a dead service was noticed by anybody, and when clients were served again."""
    cell = cells.get("app-down", {})
    if "clients" not in cell:
        return "?"
    many = cell["clients"]["many clients"]
    if not many["over"]:
        return f"no: {cell['still_failing_percent']:.0f} % fail on"
    return "yes, at once" if not many["pause_s"] else f"yes, {many['pause_s']:.1f} s"


def features(results: dict[str, Any], method: str) -> list[tuple[str, str]]:
    """What the closing table of the comparison says of a method: (feature, measured)."""
    cells = cells_of(results, method)
    steady = cells.get("steady", {})
    if "shares" not in steady:
        return []
    out = cells.get("maintenance", {}).get("victim_still_serves")
    return [
        ("dead service noticed", noticed(cells)),
        ("clients are spread by", results["balancing"][method]),
        ("share per server", shares(steady)),
        ("affinity, layer 4", "client address" if steady["affinity"] else "none"),
        ("affinity, layer 7", "cookie" if steady["cookie_affinity"] else "none"),
        ("TLS offloading", "yes" if steady["tls_offloading"] else "no"),
        ("the server sees", ", ".join(steady["server_sees"])),
        ("frames per request", f"{steady['frames_per_request']:g}"),
        ("of them wasted", f"{steady['wasted_per_request']:g}"),
        ("of the clients' frames at a bystander", f"{steady['wasted_at_uninvolved_percent']:g} %"),
        ("taken out, it is free of clients", "?" if out is None else "no" if out else "yes"),
    ]


def side_by_side(results: dict[str, Any], width: int) -> list[list[str]]:
    """The methods that were measured, as many beside each other as a terminal has room for."""
    methods = [method for method in results["methods"] if features(results, method)]
    room = max(1, (width - FEATURE_COLUMNS) // METHOD_COLUMNS)
    tables = math.ceil(len(methods) / room)
    each = math.ceil(len(methods) / max(1, tables))  # alike, instead of a last one alone
    return [methods[start : start + each] for start in range(0, len(methods), each or 1)]


def show(results: dict[str, Any], out: Path) -> None:
    """All tables."""
    from rich.table import Table
    from rich.text import Text

    from softnlb import cli_show

    console = cli_show.console(width=150)
    for method, title in results["methods"].items():
        cells = cells_of(results, method)
        measured = {
            fault: cells[fault] for fault in results["faults"] if "clients" in cells.get(fault, {})
        }
        if not measured:
            continue
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("client")
        for fault in measured:
            table.add_column(results["faults"][fault])
        for name in next(iter(measured.values()))["clients"]:
            row = [Text(name)]
            for cell in measured.values():
                client = cell["clients"][name]
                text = f"{client['outcome']} {seconds(client)}".strip()
                row.append(Text(text, style=STYLES.get(client["outcome"], OTHER_STYLE)))
            table.add_row(*row)
        console.print(table)
    title = "The methods side by side, measured"
    for part in side_by_side(results, console.width):
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for method in part:
            table.add_column(results["short"][method])
        columns = [dict(features(results, method)) for method in part]
        for feature in columns[0]:
            table.add_row(feature, *(column[feature] for column in columns))
        console.print(table)
        title = ""
    found = [value for method in results["methods"] for _, value in features(results, method)]
    if "?" in found:
        console.print("?: not measured, for want of the fault that would show it")
    for gap in results["keepalived_gaps"]:
        if "gaps_s" in gap:
            console.print(
                f"keepalived, {gap['fault']}: median {gap['median_s']} s of {gap['gaps_s']}, "
                f"reference {gap['reference_s']} s ({gap['off_percent']:+g} %)"
            )
    for name, reason in results["skipped"].items():
        console.print(f"skipped: {results['methods'][name]}: {reason}")
    for cell in (*results["cells"], *results["keepalived_gaps"]):
        if "error" in cell:
            console.print(f"failed: {cell['method']}, {cell['fault']}: {cell['error']}")
    console.print(f"{results['took_s']:.0f} s; the page, results, event logs and captures: {out}/")
