"""Forwarding: five routers as hosts, one datagram to a dedicated IP address: one frame."""

import socket
from functools import partial
from ipaddress import ip_address
from typing import Any

from labs.commentary import LAYOUTS, Layout
from labs.experiment import Experiment, either_family, in_a_lab, pause, print_table
from labs.handle import Channel, LabHandle
from labs.tap import Tap
from labs.topology import LabSpec
from softnlb.packet import UDP

PORT = 9999
WATCH_S = 1.0

LESSON = """\
Any Docker host forwards packets.  If frames for a dedicated IP address were flooded to all hosts,
each would forward them to its neighbours again until the TTL ends.  Here only the cluster IP
address is flooded, and nothing that came in by the cluster MAC address is ever forwarded."""


FORWARD = {4: "net.ipv4.ip_forward=1", 6: "net.ipv6.conf.all.forwarding=1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
"""By IP version."""


def _send(_: Channel, address: str, version: int) -> None:
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as client:
        client.sendto(b"one datagram", (address, PORT))


def _count(channel: Channel, at: Layout) -> int:
    """Frames with the datagram that came into the switch, from whatever port."""
    tap = Tap()
    channel.send({"ready": True})
    channel.receive()
    count = 0
    while (frame := tap.receive()) is not None:
        data = frame.data
        is_it = data[12:14] == at.kind and data[at.ports + 2 : at.ports + 4] == PORT.to_bytes(2)
        count += frame.to_switch and is_it and data[at.protocol] == UDP
    return count


def measure(lab: LabHandle) -> dict[str, Any]:
    """Forwarding on everywhere, the switch's memory cleared, one datagram."""
    hosts = [node["name"] for node in lab.ask("nodes")["nodes"] if node["kind"] == "host"]
    (address,) = (
        host["dedicated_ip_address"] for host in lab.status()["hosts"] if host["host_id"] == 3
    )
    version = ip_address(address).version
    for name in hosts:
        lab.output(name, ["sysctl", "-qw", FORWARD[version]])
    send = partial(_send, address=address, version=version)
    client = lab.client()["name"]
    lab.run(client, send)  # the router learns the neighbour
    lab.fault("clear-fdb")
    with lab.start("switch", partial(_count, at=LAYOUTS[version])) as counting:
        counting.expect()
        lab.run(client, send)
        pause(WATCH_S)
        frames = counting.stop()
    return {"hosts": len(hosts), "mode": str(lab.spec().mode), "datagrams": 1, "frames": frames}


def show(result: dict[str, Any]) -> None:
    """What was sent and seen."""
    rows = list(result.items())
    print_table("One datagram to the dedicated IP address of host 3", ["", ""], rows, LESSON)


@in_a_lab
@either_family
def command() -> Experiment[Any]:
    """Entry point of ``softnlb lab run forwarding``."""
    spec = LabSpec(hosts=5, timers="fast")
    return Experiment(spec, measure, show, lambda result: result["frames"] == 1)
