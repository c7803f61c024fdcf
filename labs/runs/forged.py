"""Forged: bad heartbeats at 20,000 a second to one host, whose cluster must not notice."""

import json
import os
import socket
import struct
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from labs.experiment import (
    Experiment,
    either_family,
    finish,
    host_ids,
    in_a_lab,
    none_of,
    pause,
    print_table,
    traffic,
    witness,
)
from labs.forger import KINDS, flood, record
from labs.handle import Channel, LabHandle
from labs.load import Traffic
from labs.runs.keys import enforce_key
from labs.topology import LabSpec
from labs.witness import answered, twice

FRAMES, RATE = 1_000_000, 20_000.0
HOLD, NEW_RATE = 50, 20.0
SAMPLE_S = 0.1

COUNTED = ("convergences", "broken", "new_connections_failed", "answered_by_two_hosts")

LESSON = """\
The socket's filter in the kernel drops what has the wrong length, signature or cluster.  What is
left costs the agent one HMAC each, before it looks at anything else, and after 64 frames at most it
looks at its deadlines."""


def observe(channel: Channel) -> dict[str, Any]:
    """Body of a task in a host: what its agent does and costs until told to stop."""
    import select

    from softnlb.control import call, find_hosts

    (path,) = find_hosts()
    pid = _pid_behind(path)
    before, began_s, cpu_s = call(path, "display"), time.monotonic(), _cpu_s(pid)
    channel.send({"ready": True})
    lease_ms: list[int] = []
    answer_s: list[float] = []
    odd = 0
    while not lease_ms or not select.select([channel.fileno()], [], [], SAMPLE_S)[0]:
        asked_s = time.monotonic()
        maps = call(path, "maps")
        answer_s.append(time.monotonic() - asked_s)
        lease_ms.append(maps["valid_for_ms"])
        odd += maps["state"] != "converged"
    cpu_s, took_s = _cpu_s(pid) - cpu_s, time.monotonic() - began_s
    after = _when_quiet(path)
    ignored = {
        name: count - before["heartbeats_ignored"].get(name, 0)
        for name, count in after["heartbeats_ignored"].items()
    }
    return {
        "agent_cores": round(cpu_s / took_s, 3),
        "reached_the_agent": sum(ignored.values()),
        "convergences": after["query"]["convergence_count"] - before["query"]["convergence_count"],
        "samples": len(lease_ms),
        "samples_not_converged": odd,
        "lease_left_min_ms": min(lease_ms),
        "answer_max_ms": round(max(answer_s) * 1000, 1),
        "events": [event["text"] for event in after["events"][len(before["events"]) :]],
    }


def _when_quiet(path: Path) -> dict[str, Any]:
    """What the agent shows once the bad frames in its socket are gone."""
    from softnlb.control import call

    counted = -1
    while True:
        shown = call(path, "display")
        before, counted = counted, sum(shown["heartbeats_ignored"].values())
        if counted == before:
            return shown
        pause(SAMPLE_S)


def _pid_behind(path: Path) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.connect(str(path))
        size = struct.calcsize("3i")
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[0])


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(lab: LabHandle, frames: int = FRAMES, rate: float = RATE) -> dict[str, Any]:
    """As many frames of each kind, one kind after the other, to the first host."""
    nodes = [f"host{host_id}" for host_id in host_ids(lab.status(), "converged")]
    enforce_key(lab, nodes)
    (link,) = json.loads(lab.output(nodes[0], ["ip", "-json", "link", "show", "eth0"]))
    target = bytes.fromhex(link["address"].replace(":", ""))
    recorded = [bytes.fromhex(text) for text in lab.run("bystander", _record)]
    each = frames // len(KINDS)
    rows = []
    with witness(lab) as watching:
        with traffic(lab, Traffic(hold=HOLD, rate=NEW_RATE)) as task:
            for kind in KINDS:
                rows.append(_attack(lab, nodes[0], kind, recorded, target, each, rate))
            result = finish(task)
        records = answered(watching.stop())
    return {
        "kinds": rows,
        "frames": each * len(KINDS),
        "convergences": sum(row["convergences"] for row in rows),
        "broken": len(result.broken()),
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "answered_by_two_hosts": len(twice(records)),
        "agent_cores_max": max(row["agent_cores"] for row in rows),
        "lease_left_min_ms": min(row["lease_left_min_ms"] for row in rows),
    }


def _record(_: Channel) -> list[str]:
    return [frame.hex() for frame in record(1.0)]


def _attack(
    lab: LabHandle,
    node: str,
    kind: str,
    recorded: list[bytes],
    target: bytes,
    count: int,
    rate: float,
) -> dict[str, Any]:
    with lab.start(node, observe) as observer:
        observer.expect()
        took_s = lab.run("bystander", lambda _: flood(kind, recorded, target, count, rate))
        seen: dict[str, Any] = observer.stop()
    return {"kind": kind, "frames": count, "frames_per_s": round(count / took_s), **seen}


def show(result: dict[str, Any]) -> None:
    """One row per kind, then what became of the cluster."""
    columns = [
        ("frames", "frames"),
        ("per second", "frames_per_s"),
        ("reached the agent", "reached_the_agent"),
        ("agent, cores", "agent_cores"),
        ("shortest lease, ms", "lease_left_min_ms"),
        ("slowest answer, ms", "answer_max_ms"),
        ("convergences", "convergences"),
    ]
    rows = [
        (row["kind"], *(row[key] for _, key in columns), len(row["events"]))
        for row in result["kinds"]
    ]
    print_table("Bad heartbeats", ["", *(head for head, _ in columns), "events"], rows, LESSON)
    for name in ("broken", "new_connections_failed", "answered_by_two_hosts"):
        click.echo(f"{name.replace('_', ' ')}: {result[name]}")


@in_a_lab
@click.option("--frames", default=FRAMES, show_default=True, help="Of all kinds together.")
@click.option("--rate", default=RATE, show_default=True, help="Frames per second.")
@either_family
def command(frames: int, rate: float) -> Experiment[Any]:
    """Entry point of ``softnlb lab run forged``."""
    spec = LabSpec(hosts=2, timers="fast", record=False)
    return Experiment(spec, partial(measure, frames=frames, rate=rate), show, none_of(*COUNTED))
