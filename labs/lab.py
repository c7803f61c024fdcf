"""The lab itself, inside its namespaces: builds the nodes and knows what runs in them."""

import contextlib
import functools
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from labs.agents import ConfigReader, ask, host_status, start_agent
from labs.events import EventLog
from labs.node import NodeProcess, run_batch, run_tool
from labs.plan import INTERFACE, Node, build
from labs.process import MachineProc, Process, enter_node, fork, processes_in
from labs.recorder import Watched, record
from labs.service import nginx, serve
from labs.snooping import mirror
from labs.switch import PortFaults, fault_ruleset, lay_out, port_lines, trunk_lines
from labs.topology import LabSpec
from softnlb.errors import MachineError, SoftnlbError

CONVERGE_TIMEOUT_S = 60.0
SERVERS = {"http": serve, "nginx": nginx}
POLL_S = 0.02
RECORDER_TIMEOUT_S = 2.0


class Lab:
    """Everything that runs in the lab.  Lives in the supervisor."""

    def __init__(self, spec: LabSpec, proc: MachineProc) -> None:
        self.spec = spec
        self.proc = proc
        self.layout = build(spec.complete_document())
        self.plan = {node.name: node for node in self.layout.nodes}
        self.behind = {cable.client: cable.router for cable in self.layout.cables}
        self.personalities = {s.bridge: s.personality for s in self.layout.switches}
        self.querier = next(s.bridge for s in self.layout.switches if s.asks)
        self.nodes: dict[str, NodeProcess] = {}
        self.agents: dict[str, Process] = {}
        self.services: dict[str, list[Process]] = {}
        self.faults = PortFaults()
        self.unplugged: set[str] = set()
        self.frozen: set[str] = set()
        self.leaking: set[str] = set()
        self.switched: dict[str, str] = {}
        """What was switched on or off at the switch: "snooping" and "querier"."""
        self.secret = False
        """Whether the course broke something that the student shall find."""
        self.log: EventLog | None = None
        self._recorder: socket.socket | None = None
        self._recorder_ready: int | None = None
        self._others: list[Process] = []
        self._reader: ConfigReader | None = None

    # ------------------------------------------------------------ building

    def start_nodes(self) -> None:
        """Begin to make the nodes, which takes the kernel a while."""
        self.nodes = {name: NodeProcess(node, self.proc) for name, node in self.plan.items()}

    def build_network(self) -> None:
        """Switch, cables, addresses, once the nodes exist."""
        for node in self.nodes.values():
            node.await_namespaces()
        if self.spec.agents:
            self._reader = ConfigReader(self._running(self.hosts()), self.proc)
        lines: list[str] = []
        for trunk in self.layout.trunks:
            lines += trunk_lines(trunk, self.personalities)
        for node in self.nodes.values():
            if node.node.port is not None:
                lines += port_lines(node.node, node.pid, self.personalities[node.node.bridge])
        for cable in self.layout.cables:
            router, client = self.nodes[cable.router].pid, self.nodes[cable.client].pid
            peer = f"peer name {INTERFACE} netns {client}"
            lines.append(f"link add {cable.interface} netns {router} type veth {peer}")
        self.in_node("switch", lambda: lay_out(self.layout.switches, lines))
        snooping = [name for name, kind in self.personalities.items() if kind == "mac"]
        if snooping:
            body = functools.partial(mirror, snooping)
            process, ready = self._start("switch:mirror", "switch", body)
            self._others.append(process)
            _await_start("the snooping of the switch", ready)
        self._start_recorder()
        for node in self.nodes.values():
            node.configure()
        for node in self.nodes.values():
            node.await_configured()

    def _start_recorder(self) -> None:
        self.log = log = EventLog()
        log.add("lab", name=self.spec.name, wall_s=time.time(), **self.describe())
        if self.spec.record:
            ports = [node.port for node in self.plan.values() if node.port is not None]
            address = str(self.layout.cluster_ip_address)
            self._recorder, inside = socket.socketpair()
            self._recorder.settimeout(RECORDER_TIMEOUT_S)
            hosts = {n.name: n.host_id for n in self.plan.values() if n.host_id is not None}
            watched = Watched(ports, address, self.spec.period_ms, hosts)
            body = functools.partial(record, log, watched, inside)
            process, self._recorder_ready = self._start("switch:recorder", "switch", body)
            self._others.append(process)
            inside.close()

    def bring_log_up_to_date(self) -> None:
        """Return when the event log has all that happened so far."""
        if self._recorder is not None:
            with contextlib.suppress(OSError):
                self._recorder.send(b".")
                self._recorder.recv(1)

    def start_services(self, names: list[str]) -> None:
        """The HTTP service of these hosts; returns when clients may connect."""
        starting = []
        for name in names:
            self.services[name] = []
            for kind, ports in _by_kind(self.plan[name].services).items():
                if kind == "nginx" and shutil.which("nginx") is None:
                    raise MachineError(
                        'nginx is not installed: install it, or write kind = "http" in the lab file'
                    )
                node = self.plan[name]
                body = functools.partial(SERVERS[kind], node.host_id, ports, ipv6=node.ipv6)
                process, ready = self._start(f"{kind}:{name}", name, body)
                self.services[name].append(process)
                starting.append((f"the {kind} service of {name}", ready))
        for what, ready in starting:
            _await_start(what, ready)
        if self._recorder_ready is not None:
            ready, self._recorder_ready = self._recorder_ready, None
            _await_start("the recorder at the switch", ready)

    def start_agents(self, names: list[str]) -> None:
        """The agents of these hosts; they are not awaited."""
        reader = self._reader or ConfigReader(self._running(names), self.proc)
        self._reader = None
        configs = reader.configs()
        for name in names:
            self.agents[name] = start_agent(configs[name], self.nodes[name], self.proc)

    def start_node(self, name: str) -> None:
        """Build a killed node again, and its cable."""
        old = self.nodes[name]
        if old.alive:
            raise SoftnlbError(f"{name} is running")
        node = self.plan[name]
        fresh = NodeProcess(node, self.proc)
        fresh.await_namespaces()
        lines = port_lines(node, fresh.pid, self.personalities[node.bridge])
        self.in_node("switch", lambda: run_batch("ip", lines))
        fresh.configure()
        fresh.await_configured()
        self.nodes[name] = fresh
        for broken in (self.unplugged, self.frozen, self.leaking):
            broken.discard(name)

    # ------------------------------------------------------------ helpers

    def hosts(self) -> list[str]:
        """Names of the cluster hosts in order of their ids."""
        ids = {name: node.host_id or 0 for name, node in self.plan.items() if node.kind == "host"}
        return sorted(ids, key=lambda name: ids[name])

    def _running(self, names: list[str]) -> list[NodeProcess]:
        return [self.nodes[name] for name in names]

    def host(self, name: str) -> NodeProcess:
        """A host by name.  Raises SoftnlbError for anything else."""
        if name not in self.plan or self.plan[name].kind != "host":
            raise SoftnlbError(f"{name} is not a host of this lab: {', '.join(self.hosts())}")
        return self.nodes[name]

    def port(self, name: str) -> str:
        """The switch port of a node.  Raises SoftnlbError when it has none."""
        node: Node | None = self.plan.get(name)
        if node is None or node.port is None:
            ports = [node.name for node in self.plan.values() if node.port is not None]
            raise SoftnlbError(f"{name} has no cable to the switch: {', '.join(ports)}")
        return node.port

    def in_node(self, name: str, body: Callable[[], object]) -> None:
        """Run ``body`` in a child inside a node and wait.  Raises SoftnlbError with its text."""
        read_end, write_end = os.pipe()

        def inside() -> int:
            os.close(read_end)
            try:
                enter_node(self.nodes[name].pid)
                body()
            except (SoftnlbError, OSError) as error:
                os.write(write_end, str(error).encode()[:4000])
                return 1
            return 0

        child = fork(f"in:{name}", self.proc, inside, log=None)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            trouble = pipe.read()
        _, status = os.waitpid(child.pid, 0)
        child.ended = True
        if status != 0:
            raise SoftnlbError(trouble or f"a helper in {name} ended with status {status}")

    def install_faults(self) -> None:
        """Make the switch play ``self.faults``."""
        text = fault_ruleset(self.faults)
        self.in_node("switch", lambda: run_tool(["nft", "-f", "-"], text))

    def switch_ports(self, lines: list[str]) -> None:
        """Carry out ``ip -batch`` lines in the switch."""
        self.in_node("switch", lambda: run_batch("ip", lines))

    def kill_processes(self, name: str) -> None:
        """SIGKILL for every process of a node, the holder of its namespaces last."""
        holder = self.nodes[name].pid
        while True:
            others = [pid for pid in processes_in(holder) if pid != holder]
            if not others:
                break
            for pid in others:
                _kill(pid, signal.SIGKILL)
            self.reap()
        _kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        self.nodes[name].process.ended = True

    def reap(self) -> None:
        """Collect children that have ended."""
        running = {
            process.pid: process
            for process in (
                *self.agents.values(),
                *(process for each in self.services.values() for process in each),
                *(node.process for node in self.nodes.values()),
                *self._others,
            )
            if not process.ended
        }
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in running:
                running[pid].ended = True

    def _start(self, title: str, name: str, body: Callable[[int], int]) -> tuple[Process, int]:
        """Fork ``body`` into a node; it tells the returned descriptor when it is ready."""
        read_end, write_end = os.pipe()

        def inside() -> int:
            os.close(read_end)
            enter_node(self.nodes[name].pid)
            return body(write_end)

        process = fork(title, self.proc, inside, log=None)
        os.close(write_end)
        return process, read_end

    # ------------------------------------------------------------ what it looks like

    def await_convergence(self, abandoned: Callable[[], bool]) -> None:
        """Return when every host that starts by itself is converged with the others.

        Raises SoftnlbError.
        """
        deadline = time.monotonic() + CONVERGE_TIMEOUT_S
        waiting = [name for name in self.hosts() if self.plan[name].starts]
        everybody = [self.plan[name].host_id for name in waiting]
        while waiting:
            name = waiting[0]
            self.reap()
            if self.agents[name].ended:
                raise SoftnlbError(f"the agent of {name} ended: {self._last_words(name)}")
            try:
                seen = ask(self.nodes[name], "query")
            except SoftnlbError:
                seen = {}
            if seen.get("state") == "converged" and seen.get("members") == everybody:
                waiting.pop(0)
                continue
            if time.monotonic() > deadline:
                raise SoftnlbError(
                    f"{name} is not converged after {CONVERGE_TIMEOUT_S:g} s: {seen or 'silent'}"
                )
            if abandoned():
                raise SoftnlbError("nobody waits for this lab any more")
            select.select([], [], [], POLL_S)

    def _last_words(self, name: str) -> str:
        try:
            with open(f"/proc/{self.nodes[name].pid}/root/run/softnlb/agent.log") as log:
                lines = log.read().strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "without a word"

    def status(self) -> dict[str, Any]:
        """What ``lab status --json`` prints."""
        self.reap()
        hosts = []
        for name in self.hosts():
            agent = self.agents.get(name)
            if name in self.frozen and self.nodes[name].alive:
                state, buckets = "frozen", 0
            else:
                state, buckets = host_status(self.nodes[name], agent)
            hosts.append(
                {
                    "host_id": self.plan[name].host_id,
                    "state": state,
                    "pid": agent.machine_pid if agent is not None and not agent.ended else None,
                    "dedicated_ip_address": str(self.plan[name].address),
                    "buckets": buckets,
                }
            )
        return {
            "name": self.spec.name,
            "mode": str(self.spec.mode),
            "hosts": hosts,
            "faults": self._faults(hosts),
            **self.describe(),
        }

    def _faults(self, hosts: list[dict[str, Any]]) -> dict[str, Any]:
        """What is broken now, by name of the fault; what is whole is left out."""
        if self.secret:
            return {"unplugged": [], "hidden": "find it"}
        names = dict(zip(self.hosts(), (host["state"] for host in hosts), strict=True))
        down = [name for name, each in self.services.items() if any(p.ended for p in each)]
        found = {
            "killed": [name for name, state in names.items() if state == "killed"],
            "agent_killed": [
                name for name, state in names.items() if state == "no agent" and self.spec.agents
            ],
            "agent_stopped": [name for name, state in names.items() if state == "paused"],
            "frozen": sorted(self.frozen),
            "app_down": [name for name in down if self.nodes[name].alive],
            "leaking_mac": sorted(self.leaking),
            **self.switched,
        }
        broken = {name: value for name, value in found.items() if value}
        return self.faults.describe() | {"unplugged": sorted(self.unplugged)} | broken

    def describe(self) -> dict[str, Any]:
        """What a program needs to enter the lab; asks no agent, so it takes no time."""
        return {
            "nodes": [self._describe(name) for name in self.plan],
            "spec": self.spec.to_json(),
            "supervisor_pid": self.proc.own_pid(),
            "cluster_ip_address": str(self.layout.cluster_ip_address),
            "switches": [asdict(switch) for switch in self.layout.switches],
        }

    def _describe(self, name: str) -> dict[str, Any]:
        node, running = self.plan[name], self.nodes[name]
        address = None
        if node.address is not None:
            address = f"{node.address}/{node.prefix}"
        return {
            "name": name,
            "kind": node.kind,
            "host_id": node.host_id,
            "address": address,
            "pid": running.process.machine_pid if running.alive else None,
            "port": node.port,
            "bridge": node.bridge or None,
            "router": self.behind.get(name),
        }


def _by_kind(services: tuple[tuple[str, int], ...]) -> dict[str, list[int]]:
    ports: dict[str, list[int]] = {}
    for kind, port in services:
        ports.setdefault(kind, []).append(port)
    return ports


def _await_start(what: str, ready: int) -> None:
    with os.fdopen(ready, "rb") as pipe:
        if pipe.read() != b"1":
            raise SoftnlbError(f"{what} could not be started")


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
