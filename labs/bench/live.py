"""Frames and connections per second through whole clusters, all filters by turns."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from labs.bench.compare import ratio, turn
from labs.bench.connections import Clients
from labs.bench.filters import FILTERS, PEERS, Filtered
from labs.bench.flood import Flood
from labs.bench.report import Row, measured, missing
from softnlb.errors import SoftnlbError

SYN_FLOOD, FLOOD, CONNECTIONS = "SYN flood", "datagram flood", "connections"
NO_FILTER = PEERS[0]
WARM_UP = 0.2
"""Share of a measurement's length that each filter runs before the first round counts."""

Sample = dict[str, Any]
Measurement = Callable[[float], Sample]


def live(hosts: int, seconds: float, pairs: int) -> list[Row]:
    """Rows of a cluster of ``hosts`` hosts; in fresh namespaces."""
    reasons: dict[str, str] = {}
    rigs: dict[str, Filtered] = {}
    for name in FILTERS:
        try:
            rigs[name] = Filtered(name, hosts)
        except (SoftnlbError, OSError) as error:
            reasons[name] = str(error)
    rows: list[Row] = []
    for what in (SYN_FLOOD, FLOOD):
        floods: dict[str, Flood] = {}
        for name in FILTERS.keys() - reasons.keys():
            try:
                floods[name] = Flood(rigs[name], connections=what == SYN_FLOOD)
                floods[name].check()
            except (SoftnlbError, OSError) as error:
                reasons[name] = str(error)
        running = {name: floods[name].run for name in FILTERS if name not in reasons}
        rows += _flood_rows(what, hosts, _rounds(running, seconds, pairs))
        for flood in floods.values():
            flood.close()
        rows += [missing(what, hosts, name, reason) for name, reason in reasons.items()]

    # Without a filter every host would answer: only a single host can be compared with.
    rigs[NO_FILTER] = Filtered(NO_FILTER, 1)
    clients = {name: Clients(rigs[name]) for name in FILTERS if name not in reasons}
    through = {name: each.run for name, each in clients.items()}
    rows += _connection_rows(hosts, _rounds(through, seconds, pairs))
    for each in clients.values():
        each.close()
    return rows + [missing(CONNECTIONS, hosts, name, reason) for name, reason in reasons.items()]


def _rounds(
    running: Mapping[str, Measurement], seconds: float, pairs: int
) -> dict[str, list[Sample]]:
    """Each filter once per round, so that all see the same machine."""
    for run in running.values():
        run(seconds * WARM_UP)
    samples: dict[str, list[Sample]] = {name: [] for name in running}
    for number in range(pairs):
        for name in turn(list(running), number):
            samples[name].append(running[name](seconds))
    return samples


def _rows(
    what: str, hosts: int, unit: str, key: str, samples: dict[str, list[Sample]]
) -> list[tuple[Row, list[Sample]]]:
    figures = {name: [each[key] for each in taken] for name, taken in samples.items()}
    rows = []
    for name, figure in figures.items():
        row = measured(what, hosts, name, unit, figure)
        for peer in PEERS:
            if peer != name and peer in figures and all(figures[peer]):
                row["beside"][peer] = ratio(figure, figures[peer])
        rows.append((row, samples[name]))
    return rows


def _flood_rows(what: str, hosts: int, samples: dict[str, list[Sample]]) -> list[Row]:
    rows = []
    for row, taken in _rows(what, hosts, "frames/s", "frames_per_s", samples):
        for key in ("cpu_us_per_frame", "lost_share"):
            row[key] = round(statistics.median(each[key] for each in taken), 4)
        # Frames per second of CPU time: blind to other processes on the machine.
        mine = [1 / each["cpu_us_per_frame"] for each in taken]
        row["beside_cpu"] = {
            peer: ratio(mine, [1 / each["cpu_us_per_frame"] for each in samples[peer]])
            for peer in row["beside"]
        }
        rows.append(row)
    return rows


def _connection_rows(hosts: int, samples: dict[str, list[Sample]]) -> list[Row]:
    rows = []
    for row, taken in _rows(CONNECTIONS, hosts, "per s", "connections_per_s", samples):
        row["failed"] = sum(each["failed"] for each in taken)
        if row["plane"] == NO_FILTER:
            row["hosts"] = 1
        rows.append(row)
    return rows
