"""Capture: frames at full rate into one file, each with its comment; is one lost or without one?"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from convergence.rules import IPAddress
from labs.experiment import (
    either_family,
    lab_for,
    options,
    own_name,
    print_table,
    wait_until,
)
from labs.handle import Channel, LabHandle
from labs.topology import LabSpec
from softnlb.cli_common import print_json
from softnlb.errors import SoftnlbError

FRAMES, RATE = 100_000, 20_000
FLOWS = 500
PORT = 9
PAYLOAD = bytes(64)
CLUSTER_PACKETS = {
    4: "ip.addr == {0} or arp.src.proto_ipv4 == {0} or arp.dst.proto_ipv4 == {0} or igmp",
    6: "ipv6.addr == {0} or icmpv6.nd.ns.target_address == {0}"
    " or icmpv6.nd.na.target_address == {0} or icmpv6.type in {{130..132, 143}}",
}
"""By IP version, beside the heartbeats: what tshark calls packets of the address and its group."""

LESSON = """\
The comments are made while capturing, from the heartbeats and answers in the same capture: which
bucket a client hashes to, which host has it, and what each of the others does with its copy."""


def datagrams(address: IPAddress, count: int, rate: float) -> Any:
    """Body of a task: ``count`` datagrams to the cluster from many ports, ``rate`` per second."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    server = (str(address), PORT)

    def body(channel: Channel) -> dict[str, float]:
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        sockets = [socket.socket(family, kind) for _ in range(FLOWS)]
        channel.send({"ready": True})
        began_s = time.monotonic()
        for number in range(count):
            ahead_s = began_s + number / rate - time.monotonic()
            if ahead_s > 0.002:
                time.sleep(ahead_s)
            sockets[number % FLOWS].sendto(PAYLOAD, server)
        return {"took_s": time.monotonic() - began_s}

    return body


def measure(lab: LabHandle, frames: int, rate: float, path: Path) -> dict[str, Any]:
    """Capture ``frames`` at all ports while about ``rate`` of them come per second."""
    address = lab.spec().cluster_ip_address
    ports = len([node for node in lab.ask("nodes")["nodes"] if node["port"]])
    command = [sys.executable, "-m", "labs.cli", "capture", "--name", lab.name, "-w", str(path)]
    with subprocess.Popen(
        [*command, "--count", str(frames)], stderr=subprocess.PIPE, text=True, cwd=_house()
    ) as capture:
        assert capture.stderr is not None
        capture.stderr.readline()
        began_s = time.monotonic()
        # Each datagram passes every port once: in at the router's, out at all the others.
        sending = datagrams(address, 2 * frames // ports, rate / ports)
        with lab.start(lab.client()["name"], sending) as task:
            task.expect()
            wait_until(
                lambda: capture.poll() is not None, 4 * frames / rate + 10, "the file is complete"
            )
        took_s = time.monotonic() - began_s
        said = capture.stderr.read().strip()
    if capture.returncode != 0:
        raise SoftnlbError(f"the capture failed: {said}")
    lost = int(said.partition("frames, ")[2].partition(" ")[0] or 0)
    return {
        "frames": int(said.partition(" ")[0]),
        "frames_per_s": round(frames / took_s),
        "lost": lost,
        "file_bytes": path.stat().st_size,
        **judge(path, address),
    }


def judge(path: Path, address: IPAddress) -> dict[str, Any]:
    """What tshark says of the file of that cluster; None where it is not installed."""
    if shutil.which("tshark") is None:
        return {"opens_in_tshark": None, "cluster_packets": None, "without_comment": None}
    counts = []
    packets = f"eth.type == 0x886f or {CLUSTER_PACKETS[address.version].format(address)}"
    for condition in (packets, f"({packets}) and not frame.comment"):
        command = ["tshark", "-r", str(path), "-Y", condition, "-T", "fields", "-e", "frame.number"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        counts.append(len(done.stdout.split()) if done.returncode == 0 else -1)
    return {
        "opens_in_tshark": counts[0] >= 0,
        "cluster_packets": counts[0],
        "without_comment": counts[1],
    }


def _house() -> Path:
    return Path(__file__).resolve().parent.parent.parent


def show(result: dict[str, Any]) -> None:
    """What was measured."""
    rows = [(key.replace("_", " "), str(value)) for key, value in result.items()]
    print_table("A capture with a comment on every frame of the cluster", ["", ""], rows, LESSON)


@click.command(help=__doc__)
@either_family
@click.option("--frames", default=FRAMES, show_default=True)
@click.option("--rate", default=RATE, show_default=True, help="Frames per second, all ports.")
@options
def command(name: str | None, as_json: bool, frames: int, rate: int) -> int:
    """Entry point of ``softnlb lab run capture``."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "capture.pcapng")
        with lab_for(name, LabSpec(name=own_name("capture"), affinity="none")) as lab:
            result = measure(lab, frames, rate, path)
    if as_json:
        print_json({"run": "capture", **result})
    else:
        show(result)
    complete = result["frames"] == frames and not result["lost"]
    return int(
        not complete or result["opens_in_tshark"] is False or bool(result["without_comment"])
    )
