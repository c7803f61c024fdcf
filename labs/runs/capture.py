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

from labs.experiment import lab_for, options, own_name, print_table, wait_until
from labs.handle import Channel, LabHandle
from labs.topology import CLIENT_ADDRESS, CLUSTER_IP_ADDRESS, LabSpec
from softnlb.cli_common import print_json
from softnlb.errors import SoftnlbError

FRAMES, RATE = 100_000, 20_000
FLOWS = 500
PORT = 9
PAYLOAD = bytes(64)
CLUSTER_PACKETS = " or ".join(
    (
        f"ip.addr == {CLUSTER_IP_ADDRESS}",
        f"arp.src.proto_ipv4 == {CLUSTER_IP_ADDRESS}",
        f"arp.dst.proto_ipv4 == {CLUSTER_IP_ADDRESS}",
        "igmp",
        "eth.type == 0x886f",
    )
)

LESSON = """\
The comments are made while capturing, from the heartbeats and answers in the same capture: which
bucket a client hashes to, which host has it, and what each of the others does with its copy."""


def datagrams(count: int, rate: float) -> Any:
    """Body of a task: ``count`` datagrams to the cluster from many ports, ``rate`` per second."""

    def body(channel: Channel) -> dict[str, float]:
        sockets = []
        for _ in range(FLOWS):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sender.bind((str(CLIENT_ADDRESS), 0))
            sockets.append(sender)
        channel.send({"ready": True})
        began_s = time.monotonic()
        for number in range(count):
            ahead_s = began_s + number / rate - time.monotonic()
            if ahead_s > 0.002:
                time.sleep(ahead_s)
            sockets[number % FLOWS].sendto(PAYLOAD, (str(CLUSTER_IP_ADDRESS), PORT))
        return {"took_s": time.monotonic() - began_s}

    return body


def measure(lab: LabHandle, frames: int, rate: float, path: Path) -> dict[str, Any]:
    """Capture ``frames`` at all ports while about ``rate`` of them come per second."""
    ports = len([node for node in lab.ask("nodes")["nodes"] if node["port"]])
    command = [sys.executable, "-m", "labs.cli", "capture", "--name", lab.name, "-w", str(path)]
    with subprocess.Popen(
        [*command, "--count", str(frames)], stderr=subprocess.PIPE, text=True, cwd=_house()
    ) as capture:
        assert capture.stderr is not None
        capture.stderr.readline()
        began_s = time.monotonic()
        # Each datagram passes every port once: in at the router's, out at all the others.
        with lab.start("client1", datagrams(2 * frames // ports, rate / ports)) as task:
            task.expect()
            wait_until(lambda: capture.poll() is not None, 4 * frames / rate + 10, "the capture")
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
        **judge(path),
    }


def judge(path: Path) -> dict[str, Any]:
    """What tshark says of the file; None where it is not installed."""
    if shutil.which("tshark") is None:
        return {"opens_in_tshark": None, "cluster_packets": None, "without_comment": None}
    counts = []
    for condition in (CLUSTER_PACKETS, f"({CLUSTER_PACKETS}) and not frame.comment"):
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
