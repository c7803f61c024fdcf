"""Forwarding: five routers as hosts, one datagram to a dedicated IP address: one frame."""

from typing import Any

from labs.experiment import Experiment, in_a_lab, pause, print_table
from labs.handle import Channel, LabHandle
from labs.tap import Tap
from labs.topology import LabSpec, dedicated_ip_address

PORT = 9999
WATCH_S = 1.0

LESSON = """\
Any Docker host forwards packets.  If frames for a dedicated IP address were flooded to all hosts,
each would forward them to its neighbours again until the TTL ends.  Here only the cluster IP
address is flooded, and nothing that came in by the cluster MAC address is ever forwarded."""


def _send(_: Channel) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"one datagram", (str(dedicated_ip_address(3)), PORT))


def _count(channel: Channel) -> int:
    """Frames with the datagram that came into the switch, from whatever port."""
    tap = Tap()
    channel.send({"ready": True})
    channel.receive()
    count = 0
    while (frame := tap.receive()) is not None:
        is_it = frame.data[12:14] == b"\x08\x00" and frame.data[36:38] == PORT.to_bytes(2)
        count += frame.to_switch and is_it and frame.data[23] == 17
    return count


def measure(lab: LabHandle) -> dict[str, Any]:
    """Forwarding on everywhere, the switch's memory cleared, one datagram."""
    hosts = [node["name"] for node in lab.ask("nodes")["nodes"] if node["kind"] == "host"]
    for name in hosts:
        lab.output(name, ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    lab.run("client1", _send)  # the router learns the neighbour
    lab.fault("clear-fdb")
    with lab.start("switch", _count) as counting:
        counting.expect()
        lab.run("client1", _send)
        pause(WATCH_S)
        frames = counting.stop()
    return {"hosts": len(hosts), "mode": str(lab.spec().mode), "datagrams": 1, "frames": frames}


def show(result: dict[str, Any]) -> None:
    """What was sent and seen."""
    rows = list(result.items())
    print_table("One datagram to the dedicated IP address of host 3", ["", ""], rows, LESSON)


@in_a_lab
def command() -> Experiment[Any]:
    """Entry point of ``softnlb lab run forwarding``."""
    spec = LabSpec(hosts=5, timers="fast")
    return Experiment(spec, measure, show, lambda result: result["frames"] == 1)
