"""Extended affinity: clients keep their host while others join, weigh more, drain and stop."""

import time
from dataclasses import dataclass, field
from typing import Any

import click

from labs.experiment import (
    ask_agent,
    await_converged,
    burst,
    either_family,
    finish,
    host_ids,
    lab_for,
    options,
    own_name,
    pause,
    print_table,
    traffic,
    wait_until,
)
from labs.handle import Channel, LabHandle
from labs.load import Traffic
from labs.runs.changes import set_load_weight
from labs.topology import DATA_PLANES, LabSpec
from softnlb.cli_common import print_json

CLIENTS, TIMEOUT_MIN, DRAIN_S, HOLD = 1000, 5, 4.0, 100
"""Of so many long connections the draining host has some, wherever their random clients fall:
without one it would stop at once."""
ROUND_S = 2.0
"""Every client comes back this often, and once more at the end."""

LESSON = """\
A host that loses a bucket goes on accepting the clients that it remembers there; the others hold
them as exceptions.  Drainstop does not wait for the time-out: when the last connection has ended
the host stops, and its clients move to the owners of their buckets, once."""


@dataclass(slots=True)
class Visits:
    """What clients at fixed addresses saw: per client the hosts in their order, and when."""

    hosts: list[list[tuple[float, int]]] = field(default_factory=list)
    unanswered: int = 0
    visits: int = 0

    def moves(self, client: int, since_s: float, until_s: float = float("inf")) -> int:
        """How often this client came to another host than before, in that time."""
        return sum(since_s <= at_s < until_s for at_s, _ in self.hosts[client][1:])

    def host_at(self, client: int, when_s: float) -> int | None:
        """The host that this client had at that time."""
        found = [host_id for at_s, host_id in self.hosts[client] if at_s <= when_s]
        return found[-1] if found else None


def _visit(channel: Channel, *asked: Any) -> dict[str, Any]:
    from labs.load_visits import visit

    return visit(channel, *asked)


def measure(
    lab: LabHandle, clients: int = CLIENTS, drain_s: float = DRAIN_S, round_s: float = ROUND_S
) -> dict[str, Any]:
    """The last host joins, host 1 gets a heavier weight, host 2 leaves by drainstop."""
    spec = lab.spec()
    everybody = host_ids(lab.status(), "converged")
    last, first_members = everybody[-1], everybody[:-1]
    joining, draining = f"host{last}", 2
    ask_agent(lab, joining, "stop")
    await_converged(lab, first_members)
    server = (str(spec.cluster_ip_address), 80)
    node, pool = lab.crowd()
    with lab.start(
        node, lambda channel: _visit(channel, server, str(pool), clients, round_s)
    ) as task:
        task.expect()
        join_s = time.monotonic()
        ask_agent(lab, joining, "start", force=False)
        await_converged(lab, everybody)
        pause(round_s)
        exceptions = len(ask_agent(lab, joining, "affinity")["exceptions"])
        fresh = burst(lab, Traffic(burst=200)).served().get(last, 0)
        weight_s = time.monotonic()
        set_load_weight(lab, "host1", 100)
        await_converged(lab, everybody)
        pause(round_s)
        with traffic(lab, Traffic(hold=HOLD)) as held:
            drain_began_s = time.monotonic()
            ask_agent(lab, f"host{draining}", "drainstop", timeout_s=None)
            pause(drain_s)
            drain_ended_s = time.monotonic()
            connections = finish(held)
        wait_until(
            lambda: draining in host_ids(lab.status(), "stopped"), 60.0, "the drained host stops"
        )
        stopped_s = time.monotonic()
        await_converged(lab, [each for each in everybody if each != draining])
        pause(round_s)
        told = task.stop()
    seen = Visits([[(at, host) for at, host in one] for one in told["hosts"]], told["unanswered"])
    drained = [
        client for client in range(clients) if seen.host_at(client, drain_began_s) == draining
    ]
    staying = sorted(set(range(clients)) - set(drained))
    return {
        "clients": clients,
        "visits": told["visits"],
        "unanswered": told["unanswered"],
        "moved_when_a_host_joined": sum(
            seen.moves(one, join_s, weight_s) for one in range(clients)
        ),
        "exceptions_of_the_joining_host": exceptions,
        "new_clients_of_the_joining_host": fresh,
        "moved_when_a_weight_changed": sum(
            seen.moves(one, weight_s, drain_began_s) for one in range(clients)
        ),
        "moved_from_staying_hosts": sum(seen.moves(one, drain_began_s) for one in staying),
        "clients_of_the_draining_host": len(drained),
        "moved_while_draining": sum(
            seen.moves(one, drain_began_s, drain_ended_s) for one in drained
        ),
        "moved_once_after_it": sum(seen.moves(one, drain_ended_s) == 1 for one in drained),
        "moved_more_often": sum(seen.moves(one, drain_ended_s) > 1 for one in drained),
        "long_connections": len(connections.held),
        "long_connections_of_the_draining_host": sum(
            held.host_id == draining for held in connections.held
        ),
        "long_connections_broken": len(connections.broken()),
        "stopped_after_the_last_connection_s": round(stopped_s - drain_ended_s, 2),
    }


def good(result: dict[str, Any]) -> bool:
    """What extended affinity promises."""
    unwanted = (
        "unanswered",
        "moved_when_a_host_joined",
        "moved_when_a_weight_changed",
        "moved_from_staying_hosts",
        "moved_while_draining",
        "moved_more_often",
        "long_connections_broken",
    )
    all_moved = result["moved_once_after_it"] == result["clients_of_the_draining_host"] > 0
    used = result["new_clients_of_the_joining_host"] > 0 < result["exceptions_of_the_joining_host"]
    return all_moved and used and not any(result[name] for name in unwanted)


def show(results: dict[str, dict[str, Any]]) -> None:
    """One column per data plane."""
    names = list(next(iter(results.values())))
    rows = [
        (name.replace("_", " "), *(result[name] for result in results.values())) for name in names
    ]
    print_table("Extended affinity", ["", *results], rows, LESSON)


@click.command(help=__doc__)
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="auto", show_default=True)
@either_family
@click.option("--clients", default=CLIENTS, show_default=True, help="Client addresses.")
@options
def command(name: str | None, as_json: bool, data_plane: str, clients: int) -> int:
    """Entry point of ``softnlb lab run affinity``."""
    planes = ("ebpf", "nfqueue") if data_plane == "auto" and name is None else (data_plane,)
    results = {}
    for plane in planes:
        spec = LabSpec(
            name=own_name(f"affinity-{plane}"),
            timers="fast",
            data_plane=plane,
            affinity_timeout_min=TIMEOUT_MIN,
        )
        with lab_for(name, spec) as lab:
            results[plane] = measure(lab, clients)
    if as_json:
        print_json({"run": "affinity", "data_planes": results})
    else:
        show(results)
    return int(not all(good(result) for result in results.values()))
