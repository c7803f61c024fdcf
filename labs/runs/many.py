"""Many: tens of thousands of open connections; what they cost the agents, query and convergence."""

import os
import socket
import statistics
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from labs.experiment import (
    Experiment,
    await_converged,
    either_family,
    host_ids,
    in_a_lab,
    pause,
    print_table,
)
from labs.handle import Channel, LabHandle
from labs.namespaces import die_with_parent
from labs.topology import DATA_PLANES, SERVICE_PORT, IPNetwork, LabSpec
from softnlb.control import call, find_hosts

CONNECTIONS = 60_000
TOGETHER = 64
PER_PROCESS = 15_000
HOLD_AT_MOST_S = 3600.0
ROUNDS, QUERIES = 5, 20
IP_BIND_ADDRESS_NO_PORT = 24

LESSON = """\
The data plane has no table of connections that could grow: it asks the kernel's own sockets.  The
agent looks through these only when a scan can prove something, in a thread of its own."""


def _hold(channel: Channel, count: int, server: str, pool: IPNetwork) -> int:
    """Open connections until ``count`` are answered, and keep them until told to stop: in several
    processes, because one may not have so many open files."""
    told, tell = os.pipe()
    parts = [min(PER_PROCESS, count - at) for at in range(0, count, PER_PROCESS)]
    for number, part in enumerate(parts):
        if os.fork() == 0:
            die_with_parent()
            held = _open(part, number * PER_PROCESS, server, pool)
            os.write(tell, b"1")
            pause(HOLD_AT_MOST_S)
            os._exit(len(held) == 0)
    for _ in parts:
        os.read(told, 1)
    channel.send({"held": count})
    channel.receive()
    return count


def _open(count: int, first: int, server: str, pool: IPNetwork) -> list[socket.socket]:
    from labs.service import raise_open_files_limit

    raise_open_files_limit()
    held: list[socket.socket] = []
    clients = pool.num_addresses - 2
    while len(held) < count:
        more = range(min(TOGETHER, count - len(held)))
        addresses = [str(pool[1 + (first + len(held) + n) % clients]) for n in more]
        batch = [_begun(address, server) for address in addresses]
        for made in batch:
            if _answered(made):
                held.append(made)
            else:
                made.close()
    return held


def _begun(address: str, server: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    made.bind((address, 0))
    made.setblocking(False)
    made.connect_ex((server, SERVICE_PORT))
    return made


def _answered(made: socket.socket) -> bool:
    made.settimeout(5.0)
    try:
        made.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        return bool(made.recv(4096))
    except OSError:
        return False


def _memory_kib(lab: LabHandle, node: str) -> dict[str, int]:
    """Of the processes of the node's agent and data plane: resident, and maps of eBPF."""

    def body(_: Channel) -> dict[str, int]:
        resident = maps = 0
        for name in Path("/proc").glob("[0-9]*/comm"):
            if name.read_text().strip() != f"agent:{node}":
                continue
            for line in (name.parent / "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    resident += int(line.split()[1])
            for info in (name.parent / "fdinfo").iterdir():
                words = dict(line.split(":", 1) for line in info.read_text().splitlines())
                maps += int(words["memlock"]) if "map_type" in words else 0
        return {"resident_kib": resident, "maps_kib": maps // 1024}

    found: dict[str, int] = lab.run(node, body)
    return found


def _query_s(channel: Channel) -> float:
    """Seconds until the agent has answered: median of several times."""
    (path,) = find_hosts()
    taken = []
    for _ in range(QUERIES):
        began = time.monotonic()
        call(path, "query")
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def _cost(lab: LabHandle, everybody: list[int], rounds: int) -> dict[str, Any]:
    """What an operator notices: memory of host1's agent, query, and an agent that comes back."""
    convergences = []
    last = everybody[-1]
    for _ in range(rounds):
        lab.fault("agent-kill", f"host{last}")
        await_converged(lab, everybody[:-1])
        lab.fault("start", f"host{last}")
        began = time.monotonic()
        await_converged(lab, everybody, 60.0)
        convergences.append(time.monotonic() - began)
    return {
        **_memory_kib(lab, "host1"),
        "query_ms": round(lab.run("host1", _query_s) * 1000, 1),
        "convergence_s": round(statistics.median(convergences), 2),
    }


def measure(lab: LabHandle, count: int = CONNECTIONS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Without a connection, and with ``count``."""
    everybody = host_ids(lab.status(), "converged")
    without = _cost(lab, everybody, rounds)
    server = str(lab.spec().cluster_ip_address)
    node, pool = lab.crowd()
    with ExitStack() as open_things:
        clients = open_things.enter_context(
            lab.start(node, lambda channel: _hold(channel, count, server, pool))
        )
        opened: int = clients.expect()["held"]
        many = _cost(lab, everybody, rounds)
    return {"connections": opened, "without": without, "with": many}


def show(result: dict[str, Any]) -> None:
    """What it costs without and with."""
    rows = [
        ("agent of host1, KiB resident", "resident_kib"),
        ("its eBPF maps, KiB", "maps_kib"),
        ("query, ms", "query_ms"),
        ("an agent comes back: all converged after, s", "convergence_s"),
    ]
    heads = ["", "no connections", f"{result['connections']:,} open"]
    table = [(text, result["without"][key], result["with"][key]) for text, key in rows]
    print_table("Many open connections", heads, table, LESSON)


@in_a_lab
@either_family
@click.option("--count", default=CONNECTIONS, show_default=True, help="Connections.")
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="ebpf", show_default=True)
def command(count: int, data_plane: str) -> Experiment[Any]:
    """Entry point of ``softnlb lab run many``."""
    spec = LabSpec(timers="fast", affinity="none", data_plane=data_plane)
    return Experiment(spec, partial(measure, count=count), show)
