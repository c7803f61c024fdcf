"""The figure of `softnlb lab run scale`: frames per port and CPU per host, beside the theory."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labs.report.figures import FAILED, HOST_COLOURS, WIDTH_IN

MARKS = {"unicast": "o", "multicast": "s", "igmp": "^"}
THEORY = "#3c4650"


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Two panels over the number of hosts; points are measured, dashed lines are theory."""
    drawn = Figure(figsize=(WIDTH_IN, 4.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    sizes = sorted({row["hosts"] for row in rows})
    for number, mode in enumerate(modes):
        own = [row for row in rows if row["mode"] == mode]
        colour, mark = HOST_COLOURS[number], MARKS.get(mode, "o")
        style = {"color": colour, "marker": mark, "linestyle": "none", "markersize": 7}
        hosts = [row["hosts"] for row in own]
        left.plot(hosts, [row["frames_per_port"] for row in own], label=mode, **style)
        right.plot(hosts, [row["cpu_ms_per_host"] for row in own], label=mode, **style)
        line = [row["cpu_ms_per_host_theory"] for row in own]
        right.plot(hosts, line, color=colour, linestyle="--", linewidth=1)
    theory = {row["hosts"]: row["frames_per_port_theory"] for row in rows}
    left.plot(sizes, [theory[n] for n in sizes], "--", color=THEORY, linewidth=1, label="theory")
    wanted = [theory[n] / n for n in sizes]
    left.fill_between(sizes, wanted, [theory[n] for n in sizes], color=FAILED, alpha=0.09)
    left.plot(sizes, wanted, color="#57a773", linewidth=1.5, label="wanted by its host")
    left.annotate("thrown away", (sizes[-1], theory[sizes[-1]] * 0.5), color=FAILED, ha="right",
                  xytext=(-8, 0), textcoords="offset points")  # fmt: skip
    _finish(left, sizes, "frames that one port carries")
    _finish(right, sizes, "CPU time of one host's filter, ms")
    return drawn


def _finish(axes: Axes, sizes: list[int], what: str) -> None:
    axes.set_title(what, fontsize=10.5, loc="left")
    axes.set_xlabel("hosts, with the same number of requests for each")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlim(0, sizes[-1] * 1.05)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", color="#e1e6ea", linewidth=0.8)
    axes.legend(frameon=False, loc="upper left")
