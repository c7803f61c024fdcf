"""The one table of ``softnlb bench``, for people."""

import statistics
from typing import Any

from labs.bench.filters import PEERS
from labs.experiment import print_table

Row = dict[str, Any]

NOTES = """\
Ratios: this row's figure by the peer's, median of {pairs} interleaved pairs and its 95 % interval
by bootstrap; ahead or behind where the interval leaves out 1.  Program cost: minimum of 5 runs by
BPF_PROG_TEST_RUN, beside an empty program of the same type.  CPU: per frame, of the client with
all that the kernel does in its stead, and of verdict processes; "cpu": ratio of the frames per
second of such time, which other work on the machine disturbs less.  See docs/benchmarks.md."""


def print_report(document: dict[str, Any]) -> None:
    """The table, with the machine above and what the columns mean below."""
    machine = document["machine"]
    title = (
        f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, "
        f"load {machine['load_average']}"
    )
    heads = ["what", "plane", "measured", *(f"vs {peer}" for peer in PEERS)]
    rows = [_cells(row) for row in document["rows"]]
    reasons = [
        f"Missing: {_what(row)}, {row['plane']}: {row['reason'].strip().splitlines()[-1]}"
        for row in document["rows"]
        if "reason" in row
    ]
    notes = [NOTES.format(pairs=document["pairs"]), *reasons]
    print_table(title, heads, rows, "\n".join(notes))


def _what(row: Row) -> str:
    what = str(row["what"])
    if row["hosts"] is None:
        return what
    return f"{what}, {row['hosts']} host{'s' * (row['hosts'] != 1)}"


def _cells(row: Row) -> tuple[str, ...]:
    what = _what(row)
    if "reason" in row:
        return what, row["plane"], "missing", *("" for _ in PEERS)
    if "empty_ns" in row:
        measured = f"{row['value']} ns\nempty {row['empty_ns']} + {row['over_empty_ns']}"
    else:
        digits = 0 if row["value"] >= 100 else 2
        measured = f"{row['value']:,.{digits}f} {row['unit']}"
    if "cpu_us_per_frame" in row:
        measured += f"\n{row['cpu_us_per_frame']:.1f} us CPU"
    if row.get("lost_share", 0) >= 0.001:
        measured += f"\n{row['lost_share']:.1%} lost"
    if row.get("failed"):
        measured += f"\n{row['failed']} failed"
    beside, by_cpu = row["beside"], row.get("beside_cpu", {})
    ratios = (_ratio(beside.get(peer), by_cpu.get(peer)) for peer in PEERS)
    return what, row["plane"], measured, *ratios


def _ratio(ratio: Row | None, by_cpu: Row | None) -> str:
    if ratio is None:
        return ""
    lines = []
    for prefix, each in (("", ratio), ("cpu ", by_cpu)):
        if each is not None:
            low, high = each["interval_95"]
            lines += [f"{prefix}{each['median']:.2f} {each['says']}", f"{low:.2f}–{high:.2f}"]
    return "\n".join(lines)


def measured(what: str, hosts: int, plane: str, unit: str, samples: list[float]) -> Row:
    """A row with a figure; ``samples`` in the order of the rounds."""
    return {
        "what": what,
        "hosts": hosts,
        "plane": plane,
        "value": round(statistics.median(samples), 2),
        "unit": unit,
        "samples": [round(sample, 2) for sample in samples],
        "beside": {},
    }


def missing(what: str, hosts: int | None, plane: str, reason: str) -> Row:
    """A row for what this machine cannot measure."""
    return {"what": what, "hosts": hosts, "plane": plane, "reason": reason}
