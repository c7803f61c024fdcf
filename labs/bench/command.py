"""Everything that ``softnlb bench`` measures, one part after the other."""

from collections.abc import Callable
from typing import Any

import click

from labs.bench.apart import apart
from labs.bench.compare import ratio
from labs.bench.cost import costs
from labs.bench.filters import PEERS
from labs.bench.live import live
from labs.bench.machine import describe
from labs.bench.report import Row, measured, missing, print_report
from labs.bench.rules import rules_costs
from labs.runs import bulk
from softnlb.cli_common import print_json
from softnlb.errors import MachineError, SoftnlbError

BULK = "bulk TCP"
BULK_PLANES = {"ebpf": "ebpf tc", "nfqueue": "nfqueue"}
"""Name in a configuration, name in the table."""


def run(as_json: bool, hosts: tuple[int, ...], seconds: float, pairs: int) -> int:
    """Measure and print; returns the exit status: 5 when this machine can measure nothing."""
    machine = describe()
    rows = _part("program cost", None, costs)
    rows += _part("32 rules beside 1", None, rules_costs)
    for count in hosts:

        def cluster(count: int = count) -> list[Row]:
            return live(count, seconds, pairs)

        rows += _part("floods and connections", count, cluster)
    for plane, name in BULK_PLANES.items():

        def upload(plane: str = plane, name: str = name) -> list[Row]:
            return _bulk(plane, name, seconds, pairs)

        rows += _part(BULK, 1, upload, name)
    document: dict[str, Any] = {
        "machine": machine,
        "pairs": pairs,
        "seconds": seconds,
        "rows": rows,
    }
    if as_json:
        print_json(document)
    else:
        print_report(document)
    return 0 if any("reason" not in row for row in rows) else MachineError.exit_code


def _part(
    what: str, hosts: int | None, body: Callable[[], list[Row]], plane: str = "all"
) -> list[Row]:
    """The rows of one part, or one row with the reason why it is missing."""
    cluster = "" if hosts is None else f", {hosts} host{'s' * (hosts != 1)}"
    click.echo(f"  {what}{cluster} ...", err=True)
    try:
        rows: list[Row] = apart(body)
    except SoftnlbError as error:
        return [missing(what, hosts, plane, str(error))]
    return rows


def _bulk(plane: str, name: str, seconds: float, pairs: int) -> list[Row]:
    result = bulk.measure(pairs, seconds, plane)
    row = measured(BULK, 1, name, "Gbit/s", result["filter_gbit_s"])
    row["beside"][PEERS[0]] = ratio(result["filter_gbit_s"], result["no_filter_gbit_s"])
    by_cpu = ratio(result["filter_gbit_cpu_s"], result["no_filter_gbit_cpu_s"])
    row["beside_cpu"] = {PEERS[0]: by_cpu}
    return [measured(BULK, 1, PEERS[0], "Gbit/s", result["no_filter_gbit_s"]), row]
