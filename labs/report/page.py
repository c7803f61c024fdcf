"""The page: one file that needs no network, on screen and on paper."""

from html import escape

from labs.report.story import Story, sentence_of_move

EVENTS_MAX, MOVES_MAX = 400, 60

STYLE = """
:root { --ink: #1d252c; --soft: #5b6670; --line: #e1e6ea; --accent: #2f6db3; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 21px; margin: 44px 0 10px; }
h3 { font-size: 16px; margin: 0 0 2px; }
p.lead, figcaption p, .soft { color: var(--soft); margin: 0 0 10px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px;
  margin: 16px 0; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; }
.tile b { display: block; font-size: 21px; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--soft); font-size: 13px; }
figure, section.card { background: var(--paper); border: 1px solid var(--line);
  border-radius: 8px; padding: 16px 18px; margin: 14px 0; overflow-x: auto; }
figure svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: 4px 12px 4px 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); }
td.t { font-variant-numeric: tabular-nums; white-space: nowrap; text-align: right; width: 5.5em; }
tr.fault td { color: #b3261e; font-weight: 600; }
details summary { cursor: pointer; font-weight: 600; }
td.good { background: #e3f3e8; } td.fair { background: #fdf3d3; } td.bad { background: #fbdfdd; }
a { color: var(--accent); }
footer { color: var(--soft); font-size: 13px; margin-top: 40px; }
@media print {
  body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  figure, section.card, .tile { border-color: #ccc; break-inside: avoid; }
  h2 { break-before: page; } h2:first-of-type { break-before: auto; }
  details:not([open]) { display: none; }
}
"""


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def table(heads: list[str], rows: list[str], style: str = "") -> str:
    """A table; ``rows`` are ready <tr> elements."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(rows)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def tiles(story: Story) -> str:
    """The figures that everybody wants first."""
    out = sum(p["forwarded"] + p["flooded"] for p in story.ports.values())
    wasted = sum(p["wasted"] for p in story.ports.values())
    broken = sum(len(held["broken"]) for held in story.sessions)
    facts = [
        (f"{story.ends_s:.1f} s", "observed"),
        (str(len(story.hosts)), f"hosts, {story.facts.get('mode', '?')} mode"),
        (str(len(story.faults)), "faults and repairs"),
        (str(sum(sum(move.buckets.values()) for move in story.moves)), "bucket moves"),
        (f"{story.longest_gap_s():.1f} s", "longest gap in service"),
        (str(broken), "long connections broken"),
        (f"{100 * wasted / out:.0f} %" if out else "–", "of the switch's frames wasted"),
    ]
    return "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for value, text in facts
    )


def section(story: Story, figures: dict[str, tuple[str, str, str]]) -> str:
    """One lab.  ``figures``: title, what it shows (HTML), SVG element by name."""
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in story.facts.items())
    parts = [f"<h2>Lab {escape(story.title)}</h2><p class='soft'>{escape(facts)}</p>"]
    parts.append(f'<div class="tiles">{tiles(story)}</div>')
    for title, text, element in figures.values():
        caption = f"<figcaption><h3>{escape(title)}</h3><p>{text}</p></figcaption>"
        parts.append(f"<figure>{caption}{element}</figure>")
    if story.moves:
        parts.append(_moves(story))
    parts.append(_events(story))
    return "\n".join(parts)


def _moves(story: Story) -> str:
    rows = [
        f'<tr><td class="t">{move.at_s:.2f} s</td><td>{sum(move.buckets.values())}</td>'
        f"<td>{escape('; '.join(sentence_of_move(move)))}</td><td>{escape(move.why)}</td></tr>"
        for move in story.moves[:MOVES_MAX]
    ]
    left = len(story.moves) - len(rows)
    more = f"<p class='soft'>and {left} more moves in the event log</p>" if left > 0 else ""
    heads = ["when", "buckets", "from whom to whom", "why"]
    title = "<h3>Which buckets moved, and why</h3>"
    return f'<section class="card">{title}{table(heads, rows)}{more}</section>'


def _events(story: Story) -> str:
    told = story.told
    if len(told) > EVENTS_MAX:
        told = [line for line in told if line[1] in ("fault", "note", "silent", "agent")]
    rows = [
        f'<tr class="{kind}"><td class="t">{at_s:.2f} s</td><td>{escape(text)}</td></tr>'
        for at_s, kind, text in told[:EVENTS_MAX]
    ]
    shown = f"{len(rows)} of {len(story.told)} events"
    return (
        f'<section class="card"><details open><summary>What happened ({shown})</summary>'
        f"{table(['when', ''], rows)}</details></section>"
    )
