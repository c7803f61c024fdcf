"""Remote: orders to a host whose port of remote control is flooded with what it must not obey."""

import re
import secrets
import socket
import time
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_interface
from statistics import median
from typing import Any

import click

from convergence.auth import Key
from convergence.heartbeat import ETHERTYPE
from labs.experiment import (
    Experiment,
    ask_agent,
    await_converged,
    either_family,
    host_ids,
    in_a_lab,
    none_of,
    pause,
    print_table,
    wait_until,
)
from labs.forger import paced
from labs.handle import Channel, LabHandle
from labs.runs.forged import observe
from labs.runs.keys import enforce_key
from labs.topology import IPNetwork, LabSpec
from softnlb.errors import SoftnlbError
from softnlb.remote_frame import NONCE_BYTES, Datagram, Kind, encode

RATES, SECONDS = (0, 2_000, 20_000), 10.0
TARGET, SOURCES, ORDER_EVERY_S = 2, 251, 0.05
"""Host 2 is flooded from so many addresses."""

LESSON = """\
A quarter each has a wrong MAC, an unknown key, a recorded question, a ticket that was never given.
The host reads for 4 ms of a processor, then leaves them alone for 4 ms: heartbeats go on, and what
the kernel had to drop meanwhile the member asks again after 0.2 s."""


def _forged(key: Key, cluster: str) -> list[bytes]:
    """One of each kind; the last two as if by whoever has listened, with the right MAC."""
    question, ticket = (secrets.token_bytes(NONCE_BYTES) for _ in range(2))
    hello = Datagram(Kind.HELLO, question, body={"cluster": cluster, "host": "all"})
    stop = Datagram(Kind.ORDER, question, ticket, body={"verb": "stop"})
    return [
        encode(hello, Key(key.id, secrets.token_bytes(32))),
        encode(hello, Key(key.id + 1, key.secret)),
        encode(hello, key),
        encode(stop, key),
    ]


def _flood(
    channel: Channel,
    to: tuple[str, int],
    pool: IPNetwork,
    datagrams: list[bytes],
    count: int,
    rate: float,
) -> float:
    """Body of a task in a client with many addresses; returns the seconds it took."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with ExitStack() as opened:
        senders = [
            opened.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(SOURCES)
        ]
        for number, sender in enumerate(senders):
            sender.bind((str(pool[1 + number]), 0))
        channel.send({"ready": True})
        return paced(
            lambda n: senders[n % SOURCES].sendto(datagrams[n % len(datagrams)], to), count, rate
        )


def _give_orders(_: Channel, seconds: float) -> list[tuple[bool, float]]:
    """Body of a task in a member: whether each order was answered, and after how many ms.

    The order changes nothing on a host that is not suspended.
    """
    from softnlb.control import call, find_hosts
    from softnlb.remote_client import ask_remote, cluster_of_member

    (path,) = find_hosts()
    cluster = cluster_of_member(call(path, "params"))
    answers, until_s = [], time.monotonic() + seconds
    while (began_s := time.monotonic()) < until_s:
        answer = ask_remote(cluster, str(TARGET), {TARGET}, "resume")[TARGET]
        answers.append((bool(answer["ok"]), (time.monotonic() - began_s) * 1000))
        pause(ORDER_EVERY_S)
    return answers


def _dropped(lab: LabHandle, kind: str, named: str) -> int:
    """What the kernel had no room for in the one socket of the flooded host so named by ``ss``."""
    shown = lab.output(f"host{TARGET}", ["ss", "-OHanm", kind])
    found = re.findall(rf"{named}.*,d(\d+)\)", shown)
    if len(found) != 1:
        raise SoftnlbError(f"host{TARGET} has {len(found)} sockets {named}: has it left?")
    return int(found[0])


def _enable(lab: LabHandle, nodes: list[str]) -> Key:
    """Remote control on, on every host; the key it takes."""
    key = Key(1, bytes.fromhex(enforce_key(lab, nodes)))
    change = {"do": "cluster", "keys": {"remote_control": True}}
    ask_agent(lab, nodes[0], "change", change=change)

    def enabled() -> bool:
        return all(ask_agent(lab, node, "params")["remote_control_port"] for node in nodes)

    wait_until(enabled, 20.0, "remote control is on")
    await_converged(lab, [int(node.removeprefix("host")) for node in nodes])
    return key


def measure(
    lab: LabHandle, seconds: float = SECONDS, rates: tuple[int, ...] = RATES
) -> list[dict[str, Any]]:
    """Orders from host 1 to host 2 for so long at each rate of the flood."""
    key = _enable(lab, [f"host{host_id}" for host_id in host_ids(lab.status(), "converged")])
    return [_at(lab, key, rate, seconds) for rate in rates]


def _at(lab: LabHandle, key: Key, rate: int, seconds: float) -> dict[str, Any]:
    params = ask_agent(lab, f"host{TARGET}", "params")
    to = str(ip_interface(params["dedicated_ip_address"]).ip), params["remote_control_port"]
    datagrams = _forged(key, params["cluster_ip_address"])
    client, pool = lab.crowd()
    count = int(rate * seconds)
    sockets = ("--packet", rf"\[{ETHERTYPE}\]"), ("--udp", f":{to[1]} ")
    before = [_dropped(lab, *each) for each in sockets]
    with (
        lab.start(f"host{TARGET}", observe) as observer,
        lab.start(
            client, lambda channel: _flood(channel, to, pool, datagrams, count, rate)
        ) as flood,
    ):
        observer.expect()
        flood.expect()
        answers = lab.run("host1", partial(_give_orders, seconds=seconds))
        took_s = flood.result()
        seen = observer.stop()
    lost, thrown = (_dropped(lab, *each) - was for each, was in zip(sockets, before, strict=True))
    return {
        "datagrams_per_s": round(count / max(seconds, took_s)),
        "datagrams_dropped": thrown,
        "orders": len(answers),
        "not_answered": sum(not ok for ok, _ in answers),
        "median_ms": round(median(ms for _, ms in answers), 1),
        "worst_ms": round(max(ms for _, ms in answers), 1),
        "agent_percent": round(100 * seen["agent_cores"], 1),
        "heartbeats_lost": lost,
        "lease_left_min_ms": seen["lease_left_min_ms"],
        "times_not_converged": seen["samples_not_converged"],
        "convergences": seen["convergences"],
    }


def show(results: list[dict[str, Any]]) -> None:
    """The rates side by side."""
    texts = {
        "datagrams_dropped": "datagrams that the kernel dropped",
        "orders": "orders, one after the other",
        "not_answered": "not answered",
        "median_ms": "answered after, ms, median",
        "worst_ms": "worst",
        "agent_percent": "the agent, % of a core",
        "heartbeats_lost": "heartbeats lost",
        "lease_left_min_ms": "shortest lease, ms",
        "convergences": "convergences",
    }
    rows = [(text, *(result[key] for result in results)) for key, text in texts.items()]
    heads = [f"{result['datagrams_per_s']:,} per second" for result in results]
    print_table("Orders in a flood of datagrams", ["", *heads], rows, LESSON)


@in_a_lab
@click.option("--seconds", type=click.FloatRange(1, 60), default=SECONDS, show_default=True)
@either_family
def command(seconds: float) -> Experiment[Any]:
    """Entry point of ``softnlb lab run remote``."""
    spec = LabSpec(hosts=3, timers="fast", record=False)
    good = none_of("not_answered", "heartbeats_lost", "times_not_converged", "convergences")
    return Experiment(spec, partial(measure, seconds=seconds), show, good, rows="rates")
