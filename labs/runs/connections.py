"""New connections: each is answered by exactly one host, and by the one that explain names."""

from typing import Any

import click

from labs.experiment import (
    burst,
    either_family,
    explained_owners,
    lab_for,
    options,
    own_name,
    print_table,
    witness,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import LabSpec
from labs.witness import answered, twice
from modes.plan import Mode
from softnlb.cli_common import print_json

CONNECTIONS = 2000

LESSON = """\
No host asks another one: each hashes the client's address and port, and looks up in its own map
whether that bucket is its own.  The witness at the switch saw who sent the SYN-ACK."""


def measure(lab: LabHandle, count: int) -> dict[str, Any]:
    """``count`` new connections from as many addresses and ports, and who answered them."""
    with witness(lab) as task:
        result = burst(lab, Traffic(burst=count, timeout_s=10.0))
        seen = task.stop()
    flows = [(connection.client, connection.port) for connection in result.new]
    named = explained_owners(lab, flows)
    wrong = sum(
        connection.host_id is not None and connection.host_id != owner
        for connection, owner in zip(result.new, named, strict=True)
    )
    records = answered(seen)
    return {
        "mode": str(lab.spec().mode),
        "connections": len(result.new),
        "source_addresses": len({client for client, _ in flows}),
        "unanswered": len(result.failed()),
        "seen_by_the_witness": len(records),
        "answered_by_two_hosts": len(twice(records)),
        "answered_by_another_host_than_explain_names": wrong,
        "per_host": result.served(),
    }


def connections(name: str | None, count: int = CONNECTIONS) -> list[dict[str, Any]]:
    """One measurement per mode, or of the running lab ``name``."""
    if name is not None:
        return [measure(LabHandle(name), count)]
    results = []
    for mode in Mode:
        spec = LabSpec(
            name=own_name(f"connections-{mode}"),
            mode=mode,
            timers="fast",
            switch="mac" if mode == Mode.IGMP else "dumb",
            affinity="none",
        )
        with lab_for(None, spec) as lab:
            results.append(measure(lab, count))
    return results


def show(results: list[dict[str, Any]]) -> None:
    """The modes side by side."""
    keys = [key for key in results[0] if key not in ("mode", "per_host")]
    rows = [(key.replace("_", " "), *(f"{result[key]}" for result in results)) for key in keys]
    for host_id in sorted({id for result in results for id in result["per_host"]}):
        rows.append(
            (f"host {host_id}", *(str(result["per_host"].get(host_id, 0)) for result in results))
        )
    title = "Who answers a new connection?"
    print_table(title, ["", *(result["mode"] for result in results)], rows, LESSON)


@click.command(help=__doc__)
@click.option("--count", default=CONNECTIONS, show_default=True, help="Connections per mode.")
@either_family
@options
def command(name: str | None, as_json: bool, count: int) -> int:
    """Entry point of ``softnlb lab run connections``."""
    results = connections(name, count)
    if as_json:
        print_json({"run": "connections", "modes": results})
    else:
        show(results)
    return int(
        any(
            result["unanswered"]
            or result["answered_by_two_hosts"]
            or result["answered_by_another_host_than_explain_names"]
            for result in results
        )
    )
