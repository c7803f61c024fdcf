"""The figures of a report, as SVG (and PNG) by matplotlib, which is imported here and only here."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from convergence.rules import BUCKETS, HOST_ID_MAX
from labs.report.story import Story

mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "softnlb",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#98a2ad",
        "axes.labelcolor": "#3c4650",
        "xtick.color": "#5b6670",
        "ytick.color": "#3c4650",
        "text.color": "#1d252c",
        "axes.axisbelow": True,
    }
)

HOST_COLOURS = (
    "#2f6db3",
    "#e08a1e",
    "#2f9e6e",
    "#b5539c",
    "#6c5bb8",
    "#c9a800",
    "#3aa6b9",
    "#a4583b",
)
NOBODY = "#d9dee3"
FAILED = "#d03a3a"
FAULT = "#b3261e"
STATES = {
    "joining": "#c9d7ea",
    "converging": "#f2c14e",
    "converged": "#57a773",
    "draining": "#9b7fd1",
    "leaving": "#c7b6e5",
    "silent": "#d03a3a",
}
FRAMES = {"forwarded": "#2f6db3", "flooded": "#f2c14e", "wasted": "#d03a3a"}
WIDTH_IN = 10.4
LABELLED_FAULTS_MAX = 12
STEP_MIN_S = 0.2

GAP_MIN_S = 0.05
"""Shorter ones are a lost SYN, and would be told as 0.0 s."""

LABELS_MAX = 18
"""Gaps of a time line that have room for their figure."""


def colour_of(host_id: int) -> str:
    """One colour per host, the same in every figure."""
    index = (host_id - 1) % len(HOST_COLOURS)
    if host_id <= len(HOST_COLOURS):
        return HOST_COLOURS[index]
    shade = 0.35 * ((host_id - 1) // len(HOST_COLOURS)) / 2 + 0.15
    red, green, blue = (int(HOST_COLOURS[index][at : at + 2], 16) / 255 for at in (1, 3, 5))
    mixed = (round(255 * (value + (1 - value) * shade)) for value in (red, green, blue))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _mark_faults(axes: Axes, story: Story, labels: bool) -> None:
    few = len(story.faults) <= LABELLED_FAULTS_MAX
    for at_s, text in story.faults:
        foot = 0.0 if few else 0.97
        axes.axvline(at_s, foot, 1.0, color=FAULT, linewidth=1.0, alpha=0.75, zorder=5)
        if labels and few:
            short = text if len(text) < 34 else text[:32] + "…"
            axes.annotate(
                f" {short}",
                (at_s, 1.0),
                xycoords=("data", "axes fraction"),
                color=FAULT,
                fontsize=8,
                va="bottom",
                ha="left",
                rotation=22,
                annotation_clip=False,
            )


def _time_axis(axes: Axes, story: Story) -> None:
    axes.set_xlim(0, max(story.ends_s, 0.1))
    axes.set_xlabel("seconds since the lab began")
    axes.margins(x=0)


def _figure(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots()


def topology(story: Story) -> Figure | None:
    """Every cable of the switch, and what the switch sent into it."""
    if not story.ports:
        return None
    order = sorted(story.ports, key=lambda port: (story.hosts.get(port, HOST_ID_MAX + 1), port))
    rows = len(order)
    figure, axes = _figure(max(2.2, 0.42 * rows + 0.9))
    most = max(max(p["forwarded"] + p["flooded"] for p in story.ports.values()), 1)
    axes.add_patch(
        Rectangle((-0.30 * most, -0.35), 0.09 * most, rows - 0.3, color="#3c4650", linewidth=0)
    )
    middle = (rows - 1) / 2
    axes.text(-0.255 * most, middle, "switch", rotation=90, color="white", ha="center", va="center")
    for row, port in enumerate(reversed(order)):
        counted = story.ports[port]
        useful = counted["flooded"] - counted["wasted"]
        axes.plot([-0.21 * most, -0.155 * most], [row, row], color="#98a2ad", linewidth=1.6)
        colour = colour_of(story.hosts[port]) if port in story.hosts else "#5b6670"
        axes.text(-0.148 * most, row, port, va="center", ha="left", color=colour, weight="bold")
        left = 0
        for name, count in (
            ("forwarded", counted["forwarded"]),
            ("flooded", useful),
            ("wasted", counted["wasted"]),
        ):
            axes.barh(row, count, left=left, height=0.62, color=FRAMES[name], linewidth=0)
            if count > 0.07 * most:
                ink = "#1d252c" if name == "flooded" else "white"
                axes.text(
                    left + count / 2,
                    row,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=8,
                )
            left += count
        axes.annotate(
            f"{left:,} out, {counted['in']:,} in",
            (left, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#5b6670",
        )
    axes.set_xlim(-0.31 * most, 1.24 * most)
    axes.set_ylim(-0.6, rows - 0.4)
    axes.axis("off")
    legend = {
        "forwarded: its address is there": "forwarded",
        "flooded, of use": "flooded",
        "flooded for nothing (wasted)": "wasted",
    }
    patches = [Patch(color=FRAMES[name], label=label) for label, name in legend.items()]
    axes.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.5, 1.09), ncols=3, frameon=False
    )
    return figure


def buckets(story: Story) -> Figure | None:
    """Which host accepts which bucket of the first rule, over time."""
    if not story.owners:
        return None
    figure, axes = _figure(3.9)
    hosts = sorted({owner for _, owners in story.owners for owner in owners if owner})
    index = {0: 0, **{host_id: number for number, host_id in enumerate(hosts, 1)}}
    moments = [at_s for at_s, _ in story.owners]
    edges = np.array([*moments, max(story.ends_s, moments[-1] + 0.01)])
    grid = np.array([[index[owner] for owner in owners] for _, owners in story.owners]).T
    colours = ListedColormap([NOBODY, *(colour_of(host_id) for host_id in hosts)])
    axes.pcolormesh(
        edges,
        np.arange(BUCKETS + 1),
        grid,
        cmap=colours,
        vmin=-0.5,
        vmax=len(hosts) + 0.5,
        rasterized=True,
    )
    axes.set_ylabel("bucket")
    axes.set_yticks([0, 15, 30, 45, 60])
    _time_axis(axes, story)
    _mark_faults(axes, story, labels=True)
    handles = [Patch(color=colour_of(h), label=f"host {h}") for h in hosts[:16]]
    handles.append(Patch(color=NOBODY, label="nobody"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def convergence(story: Story) -> Figure | None:
    """The state that each host's heartbeats tell, over time."""
    if not story.states:
        return None
    hosts = sorted(story.states)
    figure, axes = _figure(max(1.9, 0.34 * len(hosts) + 1.1))
    seen = set()
    for row, host_id in enumerate(reversed(hosts)):
        for stretch in story.states[host_id]:
            seen.add(stretch.what)
            axes.barh(
                row,
                max(stretch.until_s - stretch.from_s, story.ends_s / 1500),
                left=stretch.from_s,
                height=0.66,
                color=STATES.get(stretch.what, NOBODY),
                linewidth=0,
            )
    axes.set_yticks(range(len(hosts)), [f"host {host_id}" for host_id in reversed(hosts)])
    _time_axis(axes, story)
    _mark_faults(axes, story, labels=True)
    handles = [Patch(color=STATES[state], label=state) for state in STATES if state in seen]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def service(story: Story) -> Figure | None:
    """New connections per second by the host that answered, those that failed, and the gaps."""
    series = [seen for seen in story.clients if len(seen["failed"]) > 1]
    if not series:
        return None
    figure, axes = _figure(3.4)
    hosts = sorted({int(host_id) for seen in series for host_id in seen["answered"]})
    for seen in series:
        bin_s, count = seen["bin_s"], len(seen["failed"])
        # Not too fine: single connections would look like noise.
        group = max(1, round(max(STEP_MIN_S, story.ends_s / 300) / bin_s))
        starts = np.arange(0, count, group)
        left = seen["from_s"] + starts * bin_s
        widths = np.minimum(group, count - starts) * bin_s
        bottom = np.zeros(len(starts))
        for host_id in hosts:
            values = np.array(seen["answered"].get(str(host_id), [0] * count))
            rate = np.add.reduceat(values, starts) / widths
            axes.bar(
                left,
                rate,
                widths,
                bottom=bottom,
                align="edge",
                color=colour_of(host_id),
                linewidth=0,
            )
            bottom += rate
        failed = np.add.reduceat(np.array(seen["failed"]), starts) / widths
        axes.bar(left, failed, widths, bottom=bottom, align="edge", color=FAILED, linewidth=0)
        room_s, labelled = story.ends_s / LABELS_MAX, list[float]()
        told = (gap for gap in seen["gaps"] if gap[1] - gap[0] >= GAP_MIN_S)
        for from_s, until_s in sorted(told, key=lambda gap: gap[0] - gap[1]):
            axes.axvspan(from_s, until_s, color=FAILED, alpha=0.10, linewidth=0, zorder=0)
            middle_s = (from_s + until_s) / 2
            if any(abs(middle_s - other_s) < room_s for other_s in labelled):
                continue  # the longest ones have their figure, not all of them on top of each other
            labelled.append(middle_s)
            axes.annotate(
                f"{until_s - from_s:.1f} s",
                (middle_s, 0.98),
                xycoords=("data", "axes fraction"),
                color=FAILED,
                ha="center",
                va="top",
                fontsize=8.5,
                weight="bold",
                zorder=6,
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "linewidth": 0},
            )
    for held in story.sessions:
        moments = [entry[0] for entry in held["broken"]]
        axes.plot(moments, [0] * len(moments), "x", color="#1d252c", clip_on=False, markersize=5)
    axes.set_ylabel("new connections per second")
    _time_axis(axes, story)
    _mark_faults(axes, story, labels=True)
    handles = [Patch(color=colour_of(h), label=f"host {h}") for h in hosts]
    handles.append(Patch(color=FAILED, label="failed"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def outcomes(story: Story) -> Figure | None:
    """The comparison: how long each client went without an answer."""
    if not story.outcomes:
        return None
    rows = story.outcomes
    figure, axes = _figure(max(1.9, 0.36 * len(rows) + 1.0))
    colours = {"no outage": "#57a773", "reconnect": "#f2c14e", "long wait": FAILED}
    for row, seen in enumerate(reversed(rows)):
        for from_s, until_s in seen["gaps"]:
            axes.barh(
                row, until_s - from_s, left=from_s, height=0.62, color=colours[seen["outcome"]]
            )
        text = f"{seen['outcome']}, {seen['pause_s']:.1f} s" if seen["gaps"] else "no outage"
        at_s = max(
            (gap[1] for gap in seen["gaps"]), default=story.faults[0][0] if story.faults else 0
        )
        axes.text(at_s, row, f"  {text}", va="center", fontsize=8.5, color="#3c4650")
    axes.set_yticks(range(len(rows)), [seen["what"] for seen in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    _time_axis(axes, story)
    axes.set_xlim(0, story.ends_s * 1.15)
    _mark_faults(axes, story, labels=True)
    return figure


FIGURES: dict[str, tuple[str, str, Callable[[Story], Figure | None]]] = {
    "topology": (
        "Frames per port",
        "What the switch sent into each cable. A frame is <em>forwarded</em> when its address "
        "lives there; else it is <em>flooded</em>, and wasted unless the node answers that "
        "connection.",
        topology,
    ),
    "buckets": (
        "Who has which bucket",
        "Each client hashes to one of 60 buckets; the colour is the host that accepts it. Grey: "
        "nobody does, so new clients wait.",
        buckets,
    ),
    "convergence": (
        "Convergence",
        "What each host's heartbeats say of it, as seen at the switch.",
        convergence,
    ),
    "service": (
        "Service, as the clients saw it",
        "New connections by the host that answered. Red: failed. A cross is a long connection "
        "that broke.",
        service,
    ),
    "outcomes": (
        "The clients of the comparison",
        "The longest stretch without an answer after the fault.",
        outcomes,
    ),
}
"""Name: title, what it shows, how it is drawn; None when the log has nothing for it."""


def draw(story: Story) -> dict[str, Figure]:
    """Every figure that the log has something for."""
    drawn = {name: make(story) for name, (_, _, make) in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def svg(figure: Figure) -> str:
    """As an element for a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", dpi=150, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def write(figures: dict[str, Figure], directory: Path, prefix: str) -> list[Path]:
    """As PNG and SVG files."""
    written = []
    for name, figure in figures.items():
        for kind in ("svg", "png"):
            path = directory / f"{prefix}{name}.{kind}"
            metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
            figure.savefig(path, dpi=150, metadata=metadata)
            written.append(path)
    return written
