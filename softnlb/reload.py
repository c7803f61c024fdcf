"""Reading the configuration of a running host again, and applying what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convergence.events import Command
from softnlb.config import load_in_child
from softnlb.control import socket_path
from softnlb.errors import SoftnlbError

if TYPE_CHECKING:
    from softnlb.agent import Agent


def reload(agent: Agent) -> str:
    """Read the file again; returns what was done about it.

    Raises ConfigError, and SoftnlbError for what a running agent cannot change; then nothing was
    changed.
    """
    present = agent.config
    fresh = load_in_child(present.path)
    if fresh == present:
        return "nothing changed"
    if fresh.but_for_what_can_change() == present.but_for_what_can_change():
        for slot, weight in enumerate(fresh.load_weights):
            if weight != present.load_weights[slot]:
                agent.rule_command(Command.SET_WEIGHT, (slot,), weight)
        agent.config = fresh
        if fresh.health_probes == present.health_probes:
            return "load weights changed"
        agent.look_at_services()
        return "health probes changed"
    if socket_path(fresh) != socket_path(present) or fresh.interface != present.interface:
        raise SoftnlbError(
            "the cluster IP address, host id and interface of a running agent cannot change: "
            "stop this agent and start it again"
        )
    agent.adopt(fresh)
    return "configuration changed, the host left and joins again"
