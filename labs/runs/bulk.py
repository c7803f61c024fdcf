"""Bulk: throughput of one TCP connection through an accepting host, filter against no filter."""

import random
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import click

from labs.experiment import either_family, lab_for, options, own_name, print_table
from labs.handle import Channel, LabHandle
from labs.topology import SERVICE_PORT, LabSpec
from softnlb.cli_common import print_json
from softnlb.errors import UsageError

PAIRS, SECONDS = 9, 1.0
PAIRS_MIN = 7
RESAMPLES = 10_000
CHUNK = bytes(1 << 18)

LESSON = """\
Upload of one client to one host, pairs interleaved so that both sides see the same machine.  The
ratio is what the filter costs; the interval says how sure that is.  Per CPU time of client and
service, with what the kernel does on their account, other work on the machine disturbs less."""


def upload(address: str, seconds: float) -> float:
    """Bytes per second that one connection to the cluster carries.  Runs inside client1."""
    with socket.create_connection((address, SERVICE_PORT), timeout=10.0) as connection:
        connection.sendall(b"GET /sink HTTP/1.1\r\n\r\n")
        connection.recv(4096)
        sent, began = 0, time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            sent += connection.send(CHUNK)
    return sent / (now - began)


def _cpu_s() -> float:
    """CPU time so far of the service on the host that we are in."""
    total = 0
    for name in Path("/proc").glob("[0-9]*/comm"):
        if name.read_text().startswith("http"):
            total += int((name.parent / "schedstat").read_text().split()[0])
    return total * 1e-9


def _upload_in(lab: LabHandle, seconds: float) -> tuple[float, float]:
    """Bytes per second, and per second of CPU time that client and service used, with what the
    kernel did on their account: other work on the machine disturbs that less."""

    address = str(lab.spec().cluster_ip_address)

    def body(_: Channel) -> tuple[float, float]:
        used = time.process_time()
        return upload(address, seconds), time.process_time() - used

    before = lab.run("host1", lambda _: _cpu_s())
    rate, of_client = lab.run("client1", body)
    of_service = lab.run("host1", lambda _: _cpu_s()) - before
    return rate, rate * seconds / (of_client + of_service)


def _flood_as_a_cluster(lab: LabHandle) -> None:
    """Have the switch flood what goes to host1, as it floods what goes to a cluster: what every
    other port receives costs this machine time, too, and is not the filter's."""
    port = ["dev", "host1"]
    lab.output("switch", ["bridge", "link", "set", *port, "learning", "off"])
    lab.output("switch", ["ip", "link", "set", *port, "type", "bridge_slave", "fdb_flush"])


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap."""
    draw = random.Random(1)
    medians = sorted(
        statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)
    )
    return medians[RESAMPLES // 40], medians[-RESAMPLES // 40]


def measure(pairs: int, seconds: float, data_plane: str) -> dict[str, Any]:
    """Two labs of one host, one with the agent and one with the bare address, in turn."""
    filtered = LabSpec(
        name=own_name("bulk-filter"), hosts=1, timers="fast", data_plane=data_plane, record=False
    )
    bare = LabSpec(name=own_name("bulk-bare"), hosts=1, agents=False, record=False)
    with lab_for(None, filtered) as one, lab_for(None, bare) as other:
        address = other.spec().complete_document()["cluster"]["ip_address"]
        other.output("host1", ["ip", "address", "add", address, "dev", "eth0"])
        _flood_as_a_cluster(other)
        for lab in (one, other):
            _upload_in(lab, seconds / 4)
        measured = []
        for number in range(pairs):
            order = (one, other) if number % 2 else (other, one)
            rates = {lab.name: _upload_in(lab, seconds) for lab in order}
            measured.append((rates[one.name], rates[other.name]))
    return {
        "data_plane": data_plane,
        "pairs": pairs,
        "filter_gbit_s": [round(a[0] * 8e-9, 2) for a, _ in measured],
        "no_filter_gbit_s": [round(b[0] * 8e-9, 2) for _, b in measured],
        "filter_gbit_cpu_s": [round(a[1] * 8e-9, 2) for a, _ in measured],
        "no_filter_gbit_cpu_s": [round(b[1] * 8e-9, 2) for _, b in measured],
        **_ratio("", [a[0] / b[0] for a, b in measured]),
        **_ratio("cpu_", [a[1] / b[1] for a, b in measured]),
    }


def _ratio(prefix: str, ratios: list[float]) -> dict[str, Any]:
    low, high = interval(ratios)
    return {
        f"{prefix}median_ratio": round(statistics.median(ratios), 4),
        f"{prefix}interval_95": [round(low, 4), round(high, 4)],
    }


@click.command(help=__doc__)
@either_family
@click.option("--pairs", default=PAIRS, show_default=True, help="At least 7.")
@click.option("--seconds", default=SECONDS, show_default=True, help="Length of each upload.")
@click.option("--data-plane", default="nfqueue", show_default=True)
@options
def command(name: str | None, as_json: bool, pairs: int, seconds: float, data_plane: str) -> None:
    """Entry point of ``softnlb lab run bulk``."""
    if name is not None:
        raise UsageError("this experiment needs two labs of its own: leave --name out")
    if pairs < PAIRS_MIN:
        raise UsageError(f"--pairs {pairs}: fewer than {PAIRS_MIN} say nothing about the interval")
    result = measure(pairs, seconds, data_plane)
    if as_json:
        print_json({"run": "bulk", **result})
        return
    both = zip(result["filter_gbit_s"], result["no_filter_gbit_s"], strict=True)
    rows: list[tuple[object, ...]] = [(f"pair {n}", a, b) for n, (a, b) in enumerate(both, 1)]
    for prefix, text in (("", "median ratio"), ("cpu_", "the same per CPU time")):
        low, high = result[f"{prefix}interval_95"]
        median = result[f"{prefix}median_ratio"]
        rows.append((text, f"{median:.1%}", f"{low:.1%} to {high:.1%}"))
    heads = ["Gbit/s", f"{data_plane} filter", "no filter"]
    print_table("Bulk TCP through an accepting host", heads, rows, LESSON)
