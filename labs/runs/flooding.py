"""Flooding: who receives the clients' frames in each mode, and what the switch learned."""

from typing import Any

import click

from labs.experiment import (
    burst,
    either_family,
    lab_for,
    options,
    own_name,
    print_table,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import LabSpec
from labs.witness import FrameCounters, learned
from modes.plan import Mode
from softnlb.cli_common import print_json

REQUESTS = 200

LESSON = """\
Every host must receive every frame.  Unicast: no host ever sends from the cluster MAC address, the
switch never learns where it is and floods: it sends the frames to everybody, also to the bystander.
Multicast: a switch that knows no members of the address floods it, too.  IGMP: the hosts join a
group, and a switch that snoops by MAC address sends to the members only."""


def measure(lab: LabHandle, requests: int) -> dict[str, Any]:
    """Requests of a client, and the frames that each port of the switch saw of them."""
    client = lab.client()
    port = client["router"] or client["port"]
    counters = FrameCounters(lab)
    before = counters.read()
    result = burst(lab, Traffic(burst=requests, timeout_s=5.0))
    after = counters.read()
    sent = after[port]["in"] - before[port]["in"]
    received = {each: after[each]["out"] - before[each]["out"] for each in after if each != port}
    spec = lab.spec()
    fdb = learned(lab)
    percent = {each: round(100 * count / max(1, sent), 2) for each, count in received.items()}
    return {
        "mode": str(spec.mode),
        "switch": spec.switch,
        "requests": requests,
        "answered": len(result.new) - len(result.failed()),
        "client_frames": sent,
        "received": received,
        "received_percent": percent,
        "bystander_percent": percent.get("bystander"),
        "fdb": fdb,
        "cluster_mac_learned": any(
            mac.startswith(("02-BF", "03-BF", "01-00-5E", "33-33-EF"))
            for macs in fdb.values()
            for mac in macs
        ),
    }


def flooding(name: str | None, requests: int = REQUESTS, hosts: int = 4) -> list[dict[str, Any]]:
    """One measurement per mode, or of the running lab ``name`` in its mode."""
    if name is not None:
        return [measure(LabHandle(name), requests)]
    results = []
    for mode in Mode:
        spec = LabSpec(
            name=own_name(f"flooding-{mode}"),
            hosts=hosts,
            mode=mode,
            timers="fast",
            switch="mac" if mode == Mode.IGMP else "dumb",
        )
        with lab_for(None, spec) as lab:
            results.append(measure(lab, requests))
    return results


def show(results: list[dict[str, Any]]) -> None:
    """The modes side by side."""
    ports = list(results[0]["received"])
    rows: list[tuple[object, ...]] = [
        ("frames from the clients", *(result["client_frames"] for result in results))
    ]
    for port in sorted(ports, key=lambda port: (not port.startswith("host"), len(port), port)):
        rows.append(
            (
                f"received by {port}",
                *(
                    f"{result['received'][port]} ({result['received_percent'][port]:g} %)"
                    for result in results
                ),
            )
        )
    rows.append(
        (
            "switch learned the cluster MAC",
            *("yes" if result["cluster_mac_learned"] else "never" for result in results),
        )
    )
    rows.append(
        (
            "what it learned at host1's port",
            *(" ".join(result["fdb"].get("host1", ["-"])) for result in results),
        )
    )
    heads = [f"{result['mode']}, {result['switch']} switch" for result in results]
    print_table("Who receives the clients' frames?", ["", *heads], rows, LESSON)


@click.command(help=__doc__)
@click.option("--requests", default=REQUESTS, show_default=True, help="HTTP requests per mode.")
@either_family
@options
def command(name: str | None, as_json: bool, requests: int) -> None:
    """Entry point of ``softnlb lab run flooding``."""
    results = flooding(name, requests)
    if as_json:
        print_json({"run": "flooding", "modes": results})
    else:
        show(results)
