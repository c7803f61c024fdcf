"""``softnlb lab capture``: frames at any ports and nodes, each with a comment, in one pcapng file.

Events of the lab (faults, what the switch learned, what agents said) stand between the frames.
"""

import base64
import contextlib
import json
import os
import pickle
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from labs.commentary import Commentator
from labs.events import PATH, sentence
from labs.handle import Channel, LabHandle, Task
from labs.namespaces import CLONE_NEWNET, set_namespace
from labs.pcapng import Writer
from labs.recorder import SwitchWatch
from labs.ring import Ring
from softnlb.errors import SoftnlbError

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

FOLLOW_S = 0.1
"""Between two looks at the event log."""

SEEN_BY_NETLINK = ("fdb", "mdb", "cable")
NOT_SHOWN = ("frames", "clients", "sessions", "lab")


class Port(NamedTuple):
    """Where frames are caught: a port of the switch, or an interface of a node (its own side)."""

    title: str
    node: str
    interface: str
    at_switch: bool
    host_id: int | None


class Captured(NamedTuple):
    """How many frames were written, and how many the kernel had to leave out."""

    frames: int
    lost: int


def find_ports(lab: LabHandle, words: list[str]) -> list[Port]:
    """What the user named: NODE (its cable at the switch) or NODE:INTERFACE (the node's side).

    Without words every port of the switch.  Raises SoftnlbError for what does not exist.
    """
    nodes = {node["name"]: node for node in lab.ask("nodes")["nodes"]}
    at_switch = [name for name, node in nodes.items() if node["port"]]
    ports = []
    for word in words or at_switch:
        name, colon, interface = word.partition(":")
        if name not in nodes:
            raise SoftnlbError(f"{name} is not a node of this lab: {', '.join(nodes)}")
        node = nodes[name]
        host_id = node["host_id"]
        if node["port"] and not colon:
            ports.append(Port(name, "switch", node["port"], True, host_id))
            continue
        interface = interface or "eth0"
        if interface not in lab.output(name, ["ls", "/proc/sys/net/ipv4/conf"]).split():
            raise SoftnlbError(f"{name} has no interface {interface}")
        ports.append(Port(f"{name}:{interface}", name, interface, False, host_id))
    return ports


def start_capture(
    lab: LabHandle,
    ports: list[Port],
    path: str,
    count: int | None = None,
    seconds: float | None = None,
) -> Task:
    """Begin to capture into a file, "-" for standard output; the task's result is a ``Captured``.

    Raises SoftnlbError when the file cannot be written.
    """
    plan = _Plan(lab, ports)
    # Opened before entering the lab, so that it is a file of the machine.
    try:
        file = os.dup(1) if path == "-" else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    except OSError as error:
        raise SoftnlbError(f"{path}: {error.strerror}") from error

    def body(channel: Channel) -> list[int]:
        with os.fdopen(file, "wb", buffering=1 << 20) as out:
            return list(_Session(plan, channel, out, count, seconds).run())

    task = lab.start("switch", body)
    os.close(file)
    plan.close()
    try:
        task.expect()
    except BaseException:
        task.kill()
        raise
    return task


def capture_to(
    lab: LabHandle, words: list[str], path: str, count: int | None, seconds: float | None
) -> Captured:
    """Capture until Ctrl-C, ``count`` frames or ``seconds``.

    ``path`` "-" is standard output.  Raises SoftnlbError for an unknown port.
    """
    ports = find_ports(lab, words)
    with start_capture(lab, ports, path, count, seconds) as task:
        print(f"capturing at {', '.join(port.title for port in ports)}", file=sys.stderr)
        try:
            return Captured(*task.result())
        except KeyboardInterrupt:
            return Captured(*task.stop())


class _Plan:
    """What a capture must know, gathered on the machine before it enters the lab."""

    def __init__(self, lab: LabHandle, ports: list[Port]) -> None:
        facts = lab.ask("nodes")
        nodes = {node["name"]: node for node in facts["nodes"]}
        self.ports = ports
        self.vip = str(lab.status()["cluster_ip_address"])
        self.hosts = {
            int(node["host_id"]): str(node["address"])
            for node in nodes.values()
            if node["host_id"] is not None
        }
        alive = [name for name, node in nodes.items() if node["kind"] == "host" and node["pid"]]
        self.config = _read_config(lab, alive) if facts["spec"]["agents"] else None
        self.namespaces = {
            port.node: os.open(f"/proc/{nodes[port.node]['pid']}/ns/net", os.O_RDONLY)
            for port in ports
        }
        self.switch_ports = [node["port"] for node in nodes.values() if node["port"]]
        log = Path(f"/proc/{facts['supervisor_pid']}/root{PATH}")
        self.log = os.open(log, os.O_RDONLY)
        self.announced = _announced(os.pread(self.log, os.fstat(self.log).st_size, 0))
        os.lseek(self.log, 0, os.SEEK_END)

    def close(self) -> None:
        """The capturing process has its own copies of the descriptors."""
        for descriptor in (*self.namespaces.values(), self.log):
            os.close(descriptor)


def _read_config(lab: LabHandle, alive: list[str]) -> "ClusterConfig | None":
    """The configuration of the first host that is alive: the port rules are the same on all."""

    def body(_: Channel) -> str:
        from labs.agents import CONFIG
        from softnlb.config import load

        return base64.b64encode(pickle.dumps(load(CONFIG))).decode()

    if not alive:
        return None
    config: ClusterConfig = pickle.loads(base64.b64decode(lab.run(alive[0], body)))
    return config


def _announced(log: bytes) -> dict[int, tuple[dict[int, int], bool]]:
    """Per host id: the buckets that it accepts per slot, and whether it is draining."""
    maps: dict[int, dict[int, int]] = {}
    draining: dict[int, bool] = {}
    for line in log.splitlines():
        if b'"event": "buckets"' in line:
            event = json.loads(line)
            maps.setdefault(event["host_id"], {})[event["slot"]] = int(event["map"], 16)
        elif b'"event": "host"' in line:
            event = json.loads(line)
            draining[event["host_id"]] = event["state"] == "draining"
    return {host_id: (slots, draining.get(host_id, False)) for host_id, slots in maps.items()}


class _Session:
    """A capture at work, in the switch."""

    def __init__(
        self,
        plan: _Plan,
        channel: Channel,
        out: BinaryIO,
        count: int | None,
        seconds: float | None,
    ) -> None:
        self._channel, self._out = channel, out
        self._log = plan.log
        self._rest = b""
        self._left = count
        self._deadline = None if seconds is None else time.monotonic() + seconds
        titles = [port.title for port in plan.ports]
        self._writer = Writer(out, titles, [_description(port) for port in plan.ports])
        hosts = [port.host_id for port in plan.ports]
        self._switch_side = [port.at_switch for port in plan.ports]
        self._commentator = Commentator(plan.config, plan.vip, plan.hosts, hosts)
        for host_id, (slots, draining) in plan.announced.items():
            self._commentator.announced(host_id, [slots[n] for n in sorted(slots)], draining)
        self._rings = _open_rings(plan)
        self._switch = SwitchWatch(self, plan.switch_ports)

    def run(self) -> Captured:
        """Until told to end."""
        self._out.flush()
        self._channel.send({"ready": True})
        sources: list[Any] = [*(ring for ring, _ in self._rings), self._switch.socket]
        sources.append(self._channel)
        frames, ending = 0, False
        follow_s = 0.0
        while not ending:
            now_s = time.monotonic()
            if now_s >= follow_s:
                follow_s = now_s + FOLLOW_S
                self._follow_log()
            wait_s = FOLLOW_S if self._deadline is None else min(FOLLOW_S, self._deadline - now_s)
            readable, _, _ = select.select(sources, [], [], max(0.0, wait_s))
            late = self._deadline is not None and time.monotonic() >= self._deadline
            ending = self._channel in readable or late
            if self._switch.socket in readable:
                self._switch.heard()
            frames += self._write_frames(everything=ending)
            ending = ending or self._left == 0
            if not readable:
                self._out.flush()
        self._follow_log()
        lost = sum(ring.lost() for ring, _ in self._rings)
        self._writer.lost(0, time.time_ns(), lost)
        return Captured(frames, lost)

    def _write_frames(self, everything: bool) -> int:
        """The blocks that are ready; with ``everything``, until there is none."""
        written = 0
        for ring, numbers in self._rings:
            before = -1
            while before < written if everything else before < 0:
                before = written
                for frame in ring.frames():
                    number = numbers.get(frame.interface)
                    if number is None:
                        number = numbers[frame.interface] = self._number(numbers, frame.interface)
                    if number < 0 or self._left == 0:
                        continue
                    to_switch = frame.outgoing is not self._switch_side[number]
                    text = self._commentator.comment(number, to_switch, frame.data)
                    self._writer.frame(
                        number, frame.at_ns, frame.data, frame.length_bytes, to_switch, text
                    )
                    written += 1
                    if self._left is not None:
                        self._left -= 1
        self._out.flush()
        return written

    def _number(self, numbers: "Numbers", index: int) -> int:
        """A port whose cable was laid anew has a new index."""
        try:
            return numbers.names.get(socket.if_indextoname(index), -1)
        except OSError:
            return -1

    def add(self, event: str, at_s: float | None = None, **facts: Any) -> None:
        """What netlink tells, as it comes."""
        text = sentence({"event": event, **facts})
        self._writer.event(time.time_ns(), text, SOFTNLB_EVENT=event)

    def _follow_log(self) -> None:
        data = self._rest + os.read(self._log, 1 << 20)
        *lines, self._rest = data.split(b"\n")
        clocks_s = time.time() - time.monotonic()
        for line in lines:
            event = json.loads(line)
            kind = event["event"]
            if kind not in SEEN_BY_NETLINK and kind not in NOT_SHOWN:
                at_ns = int((event["at_s"] + clocks_s) * 1e9)
                self._writer.event(at_ns, sentence(event), SOFTNLB_EVENT=kind)


class Numbers(dict[int, int]):
    """Interface index to the number of the port in the file, -1 for others; ``names`` by name."""

    def __init__(self, names: dict[str, int]) -> None:
        super().__init__()
        self.names = names


def _open_rings(plan: _Plan) -> list[tuple[Ring, Numbers]]:
    """One ring per network namespace: the switch's is the one we are in."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    rings = []
    for node, namespace in plan.namespaces.items():
        set_namespace(namespace, CLONE_NEWNET)
        with _again(here):
            names = {
                port.interface: number
                for number, port in enumerate(plan.ports)
                if port.node == node
            }
            numbers = Numbers(names)
            unwanted = []
            for index, name in socket.if_nameindex():
                numbers[index] = names.get(name, -1)
                if name not in names and (node != "switch" or name not in plan.switch_ports):
                    unwanted.append(index)
            rings.append((Ring(unwanted), numbers))
    os.close(here)
    return rings


@contextlib.contextmanager
def _again(here: int) -> Iterator[None]:
    try:
        yield
    finally:
        set_namespace(here, CLONE_NEWNET)


def _description(port: Port) -> str:
    if port.at_switch:
        return f"the switch's end of the cable to {port.title}"
    return f"{port.interface} of {port.node}"
