"""Join, weight change, drain, agent restart and leave: which long connections survive."""

from typing import Any

import click

from labs.experiment import (
    Experiment,
    ask_agent,
    await_converged,
    either_family,
    finish,
    host_ids,
    in_a_lab,
    none_of,
    pause,
    print_table,
    traffic,
    wait_until,
    witness,
)
from labs.handle import LabHandle
from labs.load import Result, Traffic
from labs.topology import DATA_PLANES, LabSpec
from labs.witness import answered, twice

HOLD, RATE, SETTLE_S = 200, 50.0, 1.5

LESSON = """\
A bucket moves, and the connections in it stay where they are: the old owner still knows their
sockets, and it still receives every frame.  No agent has to be there for that.  Only a host that
stops without a drain takes its own connections with it."""


def set_load_weight(lab: LabHandle, node: str, load_weight: int) -> None:
    """Edit the configuration file of a host and reload it, as an operator would."""
    script = f"s/^load_weight = .*/load_weight = {load_weight}/"
    lab.output(node, ["sed", "-i", script, "/etc/softnlb/cluster.toml"])
    ask_agent(lab, node, "reload")


def _step(
    lab: LabHandle, name: str, leaver: int | None, change: Any, hold: int, settle_s: float
) -> dict[str, Any]:
    """One change in the middle of traffic: what broke, and was anything answered twice."""
    with witness(lab) as watching:
        with traffic(lab, Traffic(hold=hold, rate=RATE)) as task:
            pause(min(0.5, settle_s))
            change()
            pause(settle_s)
            result: Result = finish(task)
        records = answered(watching.stop())
    allowed = 0 if leaver is None else len(result.broken(leaver))
    return {
        "change": name,
        "long_connections": len(result.held),
        "broken": len(result.broken()) - allowed,
        "broken_of_the_host_that_stops": allowed,
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "answered_by_two_hosts": len(twice(records)),
    }


def measure(lab: LabHandle, hold: int = HOLD, settle_s: float = SETTLE_S) -> list[dict[str, Any]]:
    """The last host leaves before and joins under load; then a weight, a drain and its end, an
    agent that is killed and started again; and it stops."""
    everybody = host_ids(lab.status(), "converged")
    last, others = everybody[-1], everybody[:-1]
    node = f"host{last}"
    _stop(lab, last, others)

    def join() -> None:
        ask_agent(lab, node, "start", force=False)
        await_converged(lab, everybody)

    def weigh() -> None:
        set_load_weight(lab, "host1", 100)
        wait_until(
            lambda: lab.status()["hosts"][0]["buckets"] > 60 // len(everybody),
            10.0,
            "host1 has more buckets",
        )

    def drain() -> None:
        ask_agent(lab, node, "drainstop", timeout_s=None)
        await_converged(lab, others)

    def restart() -> None:
        lab.fault("agent-kill", "host2")
        await_converged(lab, [each for each in everybody if each != 2])
        lab.fault("start", "host2")
        await_converged(lab, everybody)

    def drained_and_back() -> dict[str, Any]:
        result = _step(lab, f"{node} drains", None, drain, hold, settle_s)
        wait_until(lambda: last in host_ids(lab.status(), "stopped"), 20.0, f"{node} stops")
        join()
        return result

    return [
        _step(lab, f"{node} joins", None, join, hold, settle_s),
        _step(lab, "host1: load weight 50 to 100", None, weigh, hold, settle_s),
        drained_and_back(),
        _step(lab, "agent of host2 killed, started again", None, restart, hold, settle_s),
        _step(
            lab,
            f"{node} stops without drain",
            last,
            lambda: _stop(lab, last, others),
            hold,
            settle_s,
        ),
    ]


def _stop(lab: LabHandle, host_id: int, others: list[int]) -> None:
    ask_agent(lab, f"host{host_id}", "stop")
    await_converged(lab, others)


def show(results: list[dict[str, Any]]) -> None:
    """One row per change."""
    columns = [
        ("long connections", "long_connections"),
        ("broken", "broken"),
        ("broken, stopped host's own", "broken_of_the_host_that_stops"),
        ("new connections", "new_connections"),
        ("not answered", "new_connections_failed"),
        ("answered twice", "answered_by_two_hosts"),
    ]
    rows = [(result["change"], *(result[key] for _, key in columns)) for result in results]
    print_table("Changes under load", ["", *(head for head, _ in columns)], rows, LESSON)


@in_a_lab
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="auto", show_default=True)
@either_family
def command(data_plane: str) -> Experiment[Any]:
    """Entry point of ``softnlb lab run changes``."""
    spec = LabSpec(timers="fast", data_plane=data_plane)
    return Experiment(
        spec, measure, show, none_of("broken", "answered_by_two_hosts"), rows="changes"
    )
