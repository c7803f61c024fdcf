"""The comparison as a page: the tables, each figure with a link to its events and its capture."""

from html import escape
from typing import Any

from labs.compare.judge import LONG_WAIT, NO_OUTAGE
from labs.compare.tables import cells_of, features, seconds
from labs.report.page import document, table

CLASSES = {NO_OUTAGE: "good", LONG_WAIT: "bad"}

LEAD = """\
The same clients and the same faults for every method, with real components. The fault always
meets the server that the one client address is served by. <b>No outage</b>: nothing broke, and no
answer took longer than two seconds. <b>Reconnect</b>: something broke, and a new attempt was
answered within ten seconds. <b>Long wait</b>: more than ten seconds, or not until the end of the
measurement (&gt;)."""


def links(cell: dict[str, Any]) -> str:
    """To the event log and the capture that a figure came from."""
    names = (("events", cell.get("events")), ("capture", cell.get("capture")))
    found = [f'<a href="{escape(path)}">{text}</a>' for text, path in names if path]
    return f"<small>{' · '.join(found)}</small>"


def page(results: dict[str, Any]) -> str:
    """The whole page; it lies beside the files that it links to."""
    minutes = results["took_s"] / 60
    parts = [
        "<header><h1>Ways of spreading clients, measured</h1>"
        f'<p class="lead">{LEAD}</p><p class="soft">Measured in {minutes:.1f} minutes by '
        "<code>softnlb lab run compare</code>.</p></header>",
        "<h2>Side by side</h2>",
        _side_by_side(results),
        "<h2>What clients notice</h2>",
    ]
    parts += [_clients(results, method) for method in results["methods"]]
    parts += [_keepalived(results), _not_measured(results)]
    return document("softnlb: the comparison", "\n".join(part for part in parts if part))


def _side_by_side(results: dict[str, Any]) -> str:
    columns = {method: dict(features(results, method)) for method in results["methods"]}
    columns = {method: column for method, column in columns.items() if column}
    if not columns:
        return ""
    rows = []
    for feature in next(iter(columns.values())):
        cells = "".join(f"<td>{escape(column[feature])}</td>" for column in columns.values())
        rows.append(f"<tr><td><b>{escape(feature)}</b></td>{cells}</tr>")
    sources = "".join(
        f"<td>{links(cells_of(results, method).get('steady', {}))}</td>" for method in columns
    )
    rows.append(f"<tr><td></td>{sources}</tr>")
    heads = ["", *(results["short"][method] for method in columns)]
    return f'<section class="card">{table(heads, rows)}</section>'


def _clients(results: dict[str, Any], method: str) -> str:
    cells = cells_of(results, method)
    measured = {f: cells[f] for f in results["faults"] if "clients" in cells.get(f, {})}
    if not measured:
        return ""
    rows = []
    for name in next(iter(measured.values()))["clients"]:
        row = f"<td><b>{escape(name)}</b></td>"
        for cell in measured.values():
            client = cell["clients"][name]
            text = f"{client['outcome']} {seconds(client)}".strip()
            row += f'<td class="{CLASSES.get(client["outcome"], "fair")}">{escape(text)}</td>'
        rows.append(f"<tr>{row}</tr>")
    rows.append(
        "<tr><td></td>" + "".join(f"<td>{links(c)}</td>" for c in measured.values()) + "</tr>"
    )
    heads = ["client", *(results["faults"][fault] for fault in measured)]
    title = f"<h3>{escape(results['methods'][method])}</h3>"
    return f'<section class="card">{title}{table(heads, rows)}</section>'


def _numbers(numbers: list[float]) -> str:
    return ", ".join(f"{number:.2f}" for number in numbers)


def _keepalived(results: dict[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(gap['fault'])}</td><td>{_numbers(gap['gaps_s'])}</td>"
        f"<td><b>{gap['median_s']:.2f} s</b></td><td>{gap['reference_s']:.2f} s</td>"
        f"<td>{gap['off_percent']:+g} %</td><td>{links(gap)}</td></tr>"
        for gap in results["keepalived_gaps"]
        if "gaps_s" in gap
    ]
    if not rows:
        return ""
    heads = ["fault", "gaps, s", "median", "reference", "off by", ""]
    title = (
        "<h2>Is the measurement right?</h2><p class='soft'>The gap that ping sees when the VRRP "
    )
    title += "master of keepalived fails, beside what others measured.</p>"
    return f'{title}<section class="card">{table(heads, rows)}</section>'


def _not_measured(results: dict[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(results['methods'][name])}</td><td>{escape(reason)}</td></tr>"
        for name, reason in results["skipped"].items()
    ]
    rows += [
        f"<tr><td>{escape(cell['method'])}, {escape(cell['fault'])}</td>"
        f"<td>{escape(cell['error'])}</td></tr>"
        for cell in (*results["cells"], *results["keepalived_gaps"])
        if "error" in cell
    ]
    if not rows:
        return ""
    return f'<h2>Not measured</h2><section class="card">{table(["what", "why"], rows)}</section>'
