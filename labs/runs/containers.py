"""Containers: a port published by DNAT on each host; connections survive moves."""

import os
from contextlib import ExitStack
from functools import partial
from typing import Any

import click

from convergence.rules import IPAddress
from labs.experiment import (
    ask_agent,
    await_converged,
    either_family,
    finish,
    host_ids,
    lab_for,
    options,
    own_name,
    pause,
    print_table,
    traffic,
    witness,
)
from labs.handle import Channel, LabHandle
from labs.load import Traffic
from labs.namespaces import CLONE_NEWNET, die_with_parent, unshare
from labs.node import run_batch, run_tool, write_sysctls
from labs.runs.changes import set_load_weight
from labs.topology import DATA_PLANES, SERVICE_PORT, LabSpec, end_point
from labs.witness import answered, twice
from modes.plan import Mode
from softnlb.cli_common import print_json

HOLD, RATE, SETTLE_S = 100, 50.0, 1.0
INSIDE, OUTSIDE = "172.16.0.2", "172.16.0.1"
INSIDE6, OUTSIDE6 = "fd00:16::2", "fd00:16::1"
IN_CONTAINER = 100
"""What a container adds to the id of its host, so that its answers are known."""

PUBLISH = """
table {family} container {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        {family} daddr {vip} tcp dport {port} dnat to {inside}
    }}
}}
"""

LESSON = """\
No socket of the host belongs to a connection of a container, so the data plane asks connection
tracking: what this host once accepted stays here, whoever owns the bucket now."""


def _container(host_id: int, vip: IPAddress, channel: Channel) -> None:
    """A network namespace behind a veth pair, as container engines make it, with the service in it.
    Runs in the node of the host, and lasts until it is killed."""
    ipv6 = vip.version == 6
    inside, outside = (INSIDE6, OUTSIDE6) if ipv6 else (INSIDE, OUTSIDE)
    length = "64 nodad" if ipv6 else "24"
    made, up = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        die_with_parent()
        unshare(CLONE_NEWNET)
        os.write(made[1], b"1")
        os.read(up[0], 1)
        run_batch(
            "ip",
            [
                f"addr add dev eth0 {inside}/{length}",
                "link set eth0 up",
                f"route add default via {outside}",
            ],
        )
        from labs.service import serve

        os._exit(serve(IN_CONTAINER + host_id, [SERVICE_PORT], made[1], ipv6))
    os.read(made[0], 1)
    run_batch(
        "ip",
        [
            f"link add inner0 type veth peer name eth0 netns {child}",
            f"addr add dev inner0 {outside}/{length}",
            "link set inner0 up",
        ],
    )
    write_sysctls((("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")))
    family, end = ("ip6" if ipv6 else "ip"), end_point(inside, SERVICE_PORT)
    rules = PUBLISH.format(family=family, vip=vip, port=SERVICE_PORT, inside=end)
    run_tool(["nft", "-f", "-"], rules)
    os.write(up[1], b"1")
    os.read(made[0], 1)
    channel.send({"ready": True})
    os.waitpid(child, 0)


def measure(lab: LabHandle, hold: int = HOLD) -> dict[str, Any]:
    """Long connections to containers while a weight changes and a host drains."""
    everybody = host_ids(lab.status(), "converged")
    last, vip = everybody[-1], lab.spec().cluster_ip_address
    with ExitStack() as open_things:
        for host_id in everybody:
            task = lab.start(f"host{host_id}", partial(_container, host_id, vip))
            open_things.enter_context(task).expect()
        # The agents find out that addresses are translated now, and follow.
        await_converged(lab, everybody)
        pause(SETTLE_S)
        with witness(lab) as watching:
            with traffic(lab, Traffic(hold=hold, rate=RATE)) as clients:
                set_load_weight(lab, "host1", 100)
                pause(SETTLE_S)
                ask_agent(lab, f"host{last}", "drainstop", timeout_s=None)
                await_converged(lab, everybody[:-1])
                pause(SETTLE_S)
                result = finish(clients)
            records = answered(watching.stop())
    answers = [each.host_id for each in result.held] + [each.host_id for each in result.new]
    return {
        "mode": str(lab.spec().mode),
        "long_connections": len(result.held),
        "broken": len(result.broken()),
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "answered_by_a_container": sum((host_id or 0) > IN_CONTAINER for host_id in answers),
        "answered_by_two_hosts": len(twice(records)),
    }


def good(result: dict[str, Any]) -> bool:
    """Whether everything is as it should be."""
    asked = result["long_connections"] + result["new_connections"]
    answers = result["answered_by_a_container"] + result["new_connections_failed"]
    return bool(not result["broken"] and not result["answered_by_two_hosts"] and answers == asked)


def show(results: list[dict[str, Any]]) -> None:
    """The modes side by side."""
    keys = [key for key in results[0] if key != "mode"]
    rows = [(key.replace("_", " "), *(f"{result[key]}" for result in results)) for key in keys]
    title = "Containers behind DNAT, while a weight changes and a host drains"
    print_table(title, ["", *(result["mode"] for result in results)], rows, LESSON)


@click.command(help=__doc__)
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="auto", show_default=True)
@either_family
@options
def command(name: str | None, as_json: bool, data_plane: str) -> int:
    """Entry point of ``softnlb lab run containers``."""
    if name is not None:
        results = [measure(LabHandle(name))]
    else:
        results = []
        for mode in Mode:
            switch = "mac" if mode == Mode.IGMP else "dumb"
            spec = LabSpec(
                name=own_name(f"containers-{mode}"),
                hosts=3,
                mode=mode,
                timers="fast",
                data_plane=data_plane,
                switch=switch,
                affinity="none",
            )
            with lab_for(None, spec) as lab:
                results.append(measure(lab))
    if as_json:
        print_json({"run": "containers", "modes": results})
    else:
        show(results)
    return int(not all(good(result) for result in results))
