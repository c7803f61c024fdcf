"""The whole cluster changed at once under load, also while a host is killed in the middle."""

import json
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
    pause,
    print_table,
    traffic,
    wait_until,
    witness,
)
from labs.handle import LabHandle
from labs.load import Traffic
from labs.topology import DATA_PLANES, LabSpec
from labs.witness import answered, twice

HOSTS, HOLD, RATE = 8, 200, 50.0
COORDINATOR, VICTIM = 1, 3
TIMEOUT_S = 20.0
AFFINITIES = ("network", "none", "single")

NOBODY = "nobody killed"
BEFORE = f"host{VICTIM} before it stages"
AFTER = f"host{VICTIM} when it has staged"
DECIDER = f"host{COORDINATOR}, who decides"

LESSON = """\
Every host keeps the new configuration on its disk before it says so, and one host alone decides.
Whoever dies in the middle has both when it starts again, finds the cluster with one of them, and
goes over to that.  The rule's buckets belong to nobody until all have switched: for some frames."""


def _change(lab: LabHandle, affinity: str) -> None:
    """What `softnlb rule set 0-65535 affinity=... --cluster` asks of the agent."""
    at = {"cluster_ip_address": "all", "ports": "0-65535", "protocol": None}
    change = {"do": "set", "at": at, "rule": {"affinity": affinity}}
    ask_agent(lab, f"host{COORDINATOR}", "change", change=change, timeout_s=TIMEOUT_S)


def _outcome(lab: LabHandle) -> dict[str, Any]:
    """How it ended, once it has."""

    def ended() -> dict[str, Any]:
        status = ask_agent(lab, f"host{COORDINATOR}", "change_state")
        return {} if status["state"] == "staging" else status

    return wait_until(ended, TIMEOUT_S + 10.0, "the change ends")


def _has_told(lab: LabHandle, node: str, event: str, before: int) -> bool:
    return _told(lab, node, event) > before


def _told(lab: LabHandle, node: str, event: str) -> int:
    """How often a host has told this event, its disk says; also of an agent that is dead."""
    state = ["sh", "-c", "cat /var/lib/softnlb/*/events.jsonl* 2>/dev/null || true"]
    names = (json.loads(line)["name"] for line in lab.output(node, state).splitlines() if line)
    return sum(name == event for name in names)


def _strike(lab: LabHandle, case: str, told: dict[str, int]) -> int | None:
    """Kill whom the case names at its moment; None: nobody."""
    if case == NOBODY:
        return None
    if case == AFTER:
        node = f"host{VICTIM}"
        wait_until(
            lambda: _has_told(lab, node, "change-staged", told[node]), TIMEOUT_S, f"{node} stages"
        )
    killed = COORDINATOR if case == DECIDER else VICTIM
    lab.fault("agent-kill", f"host{killed}")
    return killed


def _digests(lab: LabHandle, hosts: list[int]) -> list[str]:
    """What each host serves by."""
    return [
        str(ask_agent(lab, f"host{host_id}", "params")["configuration_digest"]) for host_id in hosts
    ]


def _convergences(lab: LabHandle, hosts: list[int]) -> int:
    """How often each host began to converge, as its history says, in all."""
    return sum(
        line["phase"] == "ConvergingPhase1"
        for host_id in hosts
        for line in ask_agent(lab, f"host{host_id}", "display")["history"]
    )


def measure_case(lab: LabHandle, case: str, affinity: str, hold: int = HOLD) -> dict[str, Any]:
    """One change under load; who was killed is started again and must come back."""
    everybody = host_ids(lab.status(), "converged")
    before = _digests(lab, everybody[:1])[0]
    began = _convergences(lab, everybody)
    told = {f"host{VICTIM}": _told(lab, f"host{VICTIM}", "change-staged")}
    with witness(lab) as watching:
        with traffic(lab, Traffic(hold=hold, rate=RATE)) as task:
            pause(0.3)
            _change(lab, affinity)
            killed = _strike(lab, case, told)
            outcome = {"state": "killed"} if killed == COORDINATOR else _outcome(lab)
            alive = [host_id for host_id in everybody if host_id != killed]
            await_converged(lab, alive)
            digests = set(_digests(lab, alive))
            generations = (_convergences(lab, alive) - began) / len(alive)
            if killed is not None:
                lab.fault("start", f"host{killed}")
                await_converged(lab, everybody)
            pause(0.5)
            result = finish(task)
        records = answered(watching.stop())
    at_the_end = set(_digests(lab, everybody))
    return {
        "case": case,
        "outcome": outcome["state"],
        "reason": outcome.get("reason", ""),
        "hosts": len(everybody),
        "configurations": len(digests),
        "configurations_with_the_killed_host": len(at_the_end),
        "changed": at_the_end != {before},
        "generations": generations if killed is None else None,
        "long_connections": len(result.held),
        "broken": len(result.broken()),
        "new_connections": len(result.new),
        "new_connections_failed": len(result.failed()),
        "answered_by_two_hosts": len(twice(records)),
    }


def measure(lab: LabHandle, hold: int = HOLD) -> list[dict[str, Any]]:
    """Every case, each with another change."""
    cases = (NOBODY, BEFORE, AFTER, DECIDER)
    return [
        measure_case(lab, case, AFFINITIES[number % len(AFFINITIES)], hold)
        for number, case in enumerate(cases)
    ]


def good(result: dict[str, Any]) -> bool:
    """All or none, nothing broken, one generation when nobody dies."""
    whole = result["configurations"] == result["configurations_with_the_killed_host"] == 1
    told = result["outcome"] == "killed" or (result["outcome"] == "done") == result["changed"]
    once = result["generations"] in (None, 1.0)
    return bool(whole and told and once and not result["broken"] + result["answered_by_two_hosts"])


def show(results: list[dict[str, Any]]) -> None:
    """One row per case."""
    columns = [
        ("changed", "changed"),
        ("digests", "configurations_with_the_killed_host"),
        ("generations", "generations"),
        ("long", "long_connections"),
        ("broken", "broken"),
        ("new", "new_connections"),
        ("failed", "new_connections_failed"),
        ("twice", "answered_by_two_hosts"),
    ]
    rows = [
        (result["case"], *("-" if result[key] is None else result[key] for _, key in columns))
        for result in results
    ]
    title = f"A rule of {results[0]['hosts']} hosts changed at once"
    print_table(title, ["killed", *(head for head, _ in columns)], rows, LESSON)
    for result in results:
        if result["reason"]:
            click.echo(f"{result['case']}: {result['reason']}")


@in_a_lab
@click.option("--hosts", default=HOSTS, show_default=True, type=click.IntRange(4, 32))
@click.option("--data-plane", type=click.Choice(DATA_PLANES), default="auto", show_default=True)
@either_family
def command(hosts: int, data_plane: str) -> Experiment[Any]:
    """Entry point of ``softnlb lab run staged``."""
    spec = LabSpec(timers="fast", hosts=hosts, data_plane=data_plane)
    return Experiment(spec, measure, show, lambda results: all(map(good, results)), rows="changes")
