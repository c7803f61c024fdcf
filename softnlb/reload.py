"""Reading the configuration of a running host again, and applying what changed."""

from __future__ import annotations

import select
from functools import partial
from typing import TYPE_CHECKING

from convergence.events import (
    Command,
    CommandError,
    CommandReceived,
    HostState,
    LogEvent,
    Severity,
    Tick,
)
from softnlb.config import load_in_child
from softnlb.control import socket_path
from softnlb.errors import ReturnCode, SoftnlbError

if TYPE_CHECKING:
    from softnlb.agent import Agent
    from softnlb.config import ClusterConfig

RELOAD_MS = 10_000
"""Reading a configuration takes 0.3 s; a file system that hangs, for ever."""


def reload(agent: Agent) -> str:
    """Read the file again and tell what was done about it, or why nothing was."""
    try:
        done = _reload(agent)
    except SoftnlbError as error:
        text = f"The configuration is not reloaded: {error}"
        agent.tell(LogEvent("reload-failed", Severity.ERROR, text))
        raise
    agent.tell(LogEvent("reloaded", Severity.INFO, f"Configuration reloaded: {done}."))
    return done


def _reload(agent: Agent) -> str:
    """Read the file again; returns what was done about it.

    Raises ConfigError, and SoftnlbError for what a running agent cannot change; then nothing was
    changed.
    """
    if agent.changes.saving:
        raise SoftnlbError(
            "the file is being written after a change of the cluster: try again",
            code=ReturnCode.CONVERGING,
        )
    if agent.machine.host_state != HostState.DRAINING:
        agent.pending = None  # a start ended the drain whose end it waited for
    present = agent.pending or agent.config
    fresh = load_in_child(present.path, partial(_serve_until, agent))
    if fresh == present:
        return "nothing changed"
    joined = agent.pending is None
    if joined and fresh.but_for_what_can_change() == present.but_for_what_can_change():
        return _apply(agent, present, fresh)
    if socket_path(fresh) != socket_path(present) or fresh.interface != present.interface:
        raise SoftnlbError(
            "the cluster IP address, host id and interface of a running agent cannot change: "
            "stop this agent and start it again",
            code=ReturnCode.BAD_PARAMS,
        )
    was_stopped = agent.serving is None
    stays_stopped = agent.machine.is_stopping and not agent.restart
    if agent.machine.awaits_last_connection or stays_stopped:
        agent.pending = fresh
        return "configuration changed, in force when the host has stopped"
    _adopt(agent, fresh)
    if was_stopped:
        return "configuration changed, in force from the next start on"
    again = "joins" if agent.serving is not None else "cannot join"  # a lone host has left by now
    return f"configuration changed, the host left and {again} again"


def _adopt(agent: Agent, fresh: ClusterConfig) -> None:
    """Leave the cluster, when in it, and join again as the fresh configuration says."""
    agent.pending = fresh  # until it has left, all it knows is of the rules that it serves by
    if agent.serving is None:
        begin_anew(agent)
    else:
        agent.stop(restart=not agent.is_ending)


def begin_anew(agent: Agent) -> None:
    """The host has left: take up what a reload has found, and join again if it is to."""
    fresh, agent.pending = agent.pending, None
    if fresh is not None:
        agent.config = fresh
        agent.remote.reopen()
        agent.new_machine()
    if not agent.restart:
        return
    agent.restart = False
    try:
        agent.start()
    except (SoftnlbError, OSError) as error:
        text = f"This host cannot join again and stays stopped: {error}"
        agent.tell(LogEvent("restart-failed", Severity.ERROR, text))


def _serve_until(agent: Agent, descriptor: int) -> bool:
    """Heartbeats and deadlines only, until it is readable; False when that takes too long.

    A host that is silent while it reads a file would be given up by the others.
    """
    give_up_ms = agent.now_ms() + RELOAD_MS
    while (now_ms := agent.now_ms()) < give_up_ms:
        waiting = select.poll()
        waiting.register(descriptor)
        heartbeats = agent.serving.heartbeats if agent.serving is not None else None
        if heartbeats is not None:
            waiting.register(heartbeats, select.POLLIN)
        deadline_ms = min(agent.machine.next_deadline_ms(), give_up_ms)
        ready = waiting.poll(max(0, deadline_ms - now_ms))
        if any(number == descriptor for number, _ in ready):
            return True
        agent.frames()
        if agent.now_ms() >= agent.machine.next_deadline_ms():
            agent.step(Tick(agent.now_ms()))
    return False


def _apply(agent: Agent, present: ClusterConfig, fresh: ClusterConfig) -> str:
    """What concerns this host alone, while it goes on serving."""
    done = []
    if fresh.keyring != present.keyring:
        try:
            agent.step(CommandReceived(agent.now_ms(), Command.SET_KEYRING, keyring=fresh.keyring))
        except CommandError as error:
            sentence = f"the keys stay as they are: {error}"
            raise SoftnlbError(sentence, code=ReturnCode.BAD_PARAMS) from error
        done.append("keys changed")
    if fresh.load_weights != present.load_weights:
        for slot, weight in enumerate(fresh.load_weights):
            if weight != present.load_weights[slot]:
                agent.rule_command(Command.SET_WEIGHT, (slot,), weight)
        done.append("load weights changed")
    if fresh.handling_priorities != present.handling_priorities:
        priorities = fresh.handling_priorities
        agent.step(
            CommandReceived(agent.now_ms(), Command.SET_PRIORITIES, handling_priorities=priorities)
        )
        done.append("handling priorities changed")
    agent.config = fresh
    if fresh.dedicated_ip_addresses != present.dedicated_ip_addresses:
        if agent.serving is not None:
            agent.serving.reconfigure(fresh)
            agent.serving.install_again()
        done.append("dedicated IP addresses changed")
    if fresh.health_probes != present.health_probes:
        agent.look_at_services()
        done.append("health probes changed")
    return ", ".join(done) or "in force from the next start on"
