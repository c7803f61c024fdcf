"""The recorder: a process at the switch that notes what it sees in the lab's event log.

It believes the wire: heartbeats tell who is a member and who accepts which bucket, netlink what
the switch learned, and counters in the kernel how many frames each port carried.  Only the lines of
the agents' own logs come from the hosts.
"""

import functools
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

from convergence.heartbeat import ETHERTYPE, Heartbeat, HeartbeatError, Statement, decode
from labs.events import EventLog
from labs.frames import FrameTables
from labs.tap import JUMP_EQUAL, LOAD_HALF, PACKET_TYPE, RETURN, Instruction, Tap
from softnlb import netlink
from softnlb.errors import SoftnlbError
from softnlb.heartbeat_words import members_of, state_of

LOOK_S = 1.0
"""Between two looks at counters, logs and clocks."""

SILENT_PERIODS = 2.5
ETHERNET_BYTES = 14

RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_MDB = 1, 3, 26
RTM_NEWLINK, RTM_NEWNEIGH, RTM_DELNEIGH, RTM_NEWMDB, RTM_DELMDB = 16, 28, 29, 84, 85
AF_BRIDGE = 7
NDA_LLADDR, NDA_MASTER, IFLA_IFNAME = 2, 9, 3
NUD_PERMANENT = 0x80
IFF_LOWER_UP = 0x10000
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_LINK = struct.Struct("=BxHiII")
_MDB_ENTRY = struct.Struct("=IBBH16sH")


def heartbeats_in() -> list[Instruction]:
    """Heartbeats that come in from a node (not the copies that the switch sends out)."""
    return [
        (0x28, 0, 0, PACKET_TYPE),
        (JUMP_EQUAL, 3, 0, 4),
        (LOAD_HALF, 0, 0, 12),
        (JUMP_EQUAL, 0, 1, ETHERTYPE),
        (RETURN, 0, 0, 0x4_0000),
        (RETURN, 0, 0, 0),
    ]


class HeartbeatWatch:
    """Notes what changes in the heartbeats of each host."""

    def __init__(self, log: EventLog, period_ms: int) -> None:
        self._log = log
        self._silence_s = SILENT_PERIODS * period_ms / 1000
        self._last: dict[int, tuple[float, Heartbeat]] = {}
        self._silent: set[int] = set()

    def heard(self, payload: bytes, at_s: float) -> None:
        """One heartbeat, without its Ethernet header; what is none is left alone."""
        before = self._last.get(payload[8]) if len(payload) > 8 else None
        try:
            heartbeat = decode(payload, before[1] if before else None)
        except HeartbeatError:
            return
        if not isinstance(heartbeat, Heartbeat):
            return
        said = heartbeat.statement
        host_id = said.host_id
        old = before[1].statement if before else None
        self.look(at_s)
        self._last[host_id] = at_s, heartbeat
        back = host_id in self._silent
        self._silent.discard(host_id)
        if said is old and not back:
            return
        if old is None or back or _appearance(old) != _appearance(said):
            self._log.add(
                "host",
                at_s,
                host_id=host_id,
                state=state_of(said),
                members=members_of(said.view),
                default_host=said.default_host_id,
            )
        for slot, current in enumerate(said.current):
            if old is None or slot >= len(old.current) or old.current[slot] != current or back:
                self._log.add("buckets", at_s, host_id=host_id, slot=slot, map=f"{current:015x}")

    def look(self, now_s: float) -> None:
        """Notes who has fallen silent."""
        for host_id, (at_s, _) in self._last.items():
            if host_id not in self._silent and now_s - at_s > self._silence_s:
                self._silent.add(host_id)
                self._log.add("silent", at_s, host_id=host_id)


def _appearance(said: Statement) -> tuple[object, ...]:
    return state_of(said), said.view, said.default_host_id


class Sink(Protocol):
    """Whatever takes events, as an ``EventLog`` does."""

    def add(self, event: str, at_s: float | None = None, **facts: Any) -> None:
        """Note an event."""


class SwitchWatch:
    """Notes what the switch learns and forgets, and cables."""

    def __init__(self, log: Sink, ports: list[str]) -> None:
        self._log = log
        self.socket = netlink.monitor(netlink.ROUTE, RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_MDB)
        self.laid: list[str] = []
        """Ports whose cable was laid anew; whoever counts there takes them out."""
        self._index = {port: socket.if_nametoindex(port) for port in ports}
        self._no_ports = {name for _, name in socket.if_nameindex()} - self._index.keys()
        self._learned: dict[tuple[bytes, str], str] = {}
        self._up: dict[str, bool] = {}

    def heard(self) -> None:
        """Whatever the kernel has told since the last call."""
        while True:
            try:
                data = self.socket.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:  # some were lost; the next ones tell the new state
                continue
            for kind, body in netlink.messages(data):
                if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                    self._neighbour(kind == RTM_NEWNEIGH, body)
                elif kind in (RTM_NEWMDB, RTM_DELMDB):
                    self._member(kind == RTM_NEWMDB, body)
                elif kind == RTM_NEWLINK:
                    self._link(body)

    def _neighbour(self, new: bool, body: bytes) -> None:
        family, index, state, _flags, _type = _NEIGHBOUR.unpack_from(body)
        found = netlink.attributes(body[_NEIGHBOUR.size :])
        if family != AF_BRIDGE or state & NUD_PERMANENT or NDA_LLADDR not in found:
            return
        mac, port = found[NDA_LLADDR].hex("-").upper(), _name(index)
        entry = found.get(NDA_MASTER, b""), mac  # each of two bridges has a table of its own
        if not new:
            self._learned.pop(entry, None)
            self._log.add("fdb", port=port, mac=mac, change="forgotten")
        elif port and self._learned.get(entry) != port:
            change = "moved" if entry in self._learned else "learned"
            self._learned[entry] = port
            self._log.add("fdb", port=port, mac=mac, change=change)

    def _member(self, new: bool, body: bytes) -> None:
        try:
            mdb = netlink.attributes(body[8:])[1]
            entry = netlink.attributes(netlink.attributes(mdb)[1])[1]
            index, _state, _flags, _vid, address, protocol = _MDB_ENTRY.unpack_from(entry)
        except (KeyError, struct.error):
            return
        ethertype = socket.ntohs(protocol)
        if ethertype in (0x0800, 0x86DD):
            group = str(ip_address(address[:4] if ethertype == 0x0800 else address))
            change = "joined" if new else "left"
            self._log.add("mdb", port=_name(index), group=group, change=change)

    def _link(self, body: bytes) -> None:
        family, _type, index, flags, _change = _LINK.unpack_from(body)
        found = netlink.attributes(body[_LINK.size :])
        if family == AF_BRIDGE or IFLA_IFNAME not in found:
            return
        port, up = found[IFLA_IFNAME].rstrip(b"\0").decode(), bool(flags & IFF_LOWER_UP)
        if port not in self._no_ports and self._index.get(port) != index:
            self._index[port] = index
            self.laid.append(port)
        if port in self._index and self._up.get(port, True) != up:
            self._log.add("cable", port=port, up=up)
        self._up[port] = up


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


class LogWatch:
    """Follows the logs of the agents, through the /proc of the lab."""

    def __init__(self, log: EventLog, hosts: dict[str, int]) -> None:
        self._log, self._hosts = log, hosts
        self._open: dict[str, tuple[int, int]] = {}
        self._rest: dict[str, bytes] = {}

    def look(self) -> None:
        """Notes the lines that were written since the last call."""
        for name in [name for name, (pid, _) in self._open.items() if not _alive(pid, name)]:
            self._read(name)
            os.close(self._open.pop(name)[1])
        for pid, name in _nodes():
            if name not in self._hosts:
                continue
            if name not in self._open:
                try:
                    path = f"/proc/{pid}/root/run/softnlb/agent.log"
                    self._open[name] = pid, os.open(path, os.O_RDONLY)
                except OSError:
                    continue
            self._read(name)

    def _read(self, name: str) -> None:
        data = self._rest.pop(name, b"") + os.read(self._open[name][1], 1 << 16)
        *lines, rest = data.split(b"\n")
        self._rest[name] = rest
        for line in lines:
            words = line.decode(errors="replace").split(" ", 3)
            if len(words) == 4 and words[2] in ("INFO", "WARNING", "ERROR"):
                at_s = _monotonic(words[0], words[1])
                host_id = self._hosts[name]
                self._log.add("agent", at_s, host_id=host_id, level=words[2], text=words[3])


def _monotonic(day: str, moment: str) -> float:
    """When a line of a log was written, on the clock of the event log."""
    try:
        whole, _, ms = moment.partition(",")
        wall_s = time.mktime(time.strptime(f"{day} {whole}", "%Y-%m-%d %H:%M:%S")) + int(ms) / 1000
    except ValueError:
        return time.monotonic()
    return time.monotonic() - (time.time() - wall_s)


def _nodes() -> list[tuple[int, str]]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (name := _node(int(entry))):
            found.append((int(entry), name))
    return found


def _node(pid: int) -> str:
    """The node that a process holds, "" for any other process."""
    try:
        word = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
    return word.removeprefix("node:") if word.startswith("node:") else ""


def _alive(pid: int, name: str) -> bool:
    return _node(pid) == name


@dataclass(frozen=True, slots=True)
class Watched:
    """What there is to watch; ``hosts``: host id by node name."""

    ports: list[str]
    cluster_ip_address: str
    period_ms: int
    hosts: dict[str, int]


def record(log: EventLog, watched: Watched, asked: socket.socket, ready: int) -> int:
    """Watch until killed; one byte to ``ready`` when nothing can be missed any more.

    Each byte from ``asked`` is sent back once the log is up to date.  Runs inside the switch, with
    the lab's /proc.
    """
    heartbeats = HeartbeatWatch(log, watched.period_ms)
    switch = SwitchWatch(log, watched.ports)
    logs = LogWatch(log, watched.hosts)
    frames = FrameTables(watched.ports, watched.cluster_ip_address)
    frames.install()
    tap = Tap(heartbeats_in())
    os.write(ready, b"1")
    os.close(ready)
    next_s = time.monotonic() + LOOK_S
    before: object = None
    asked.setblocking(True)
    sources: list[Any] = [tap, switch.socket, asked]
    while True:
        wait_s = max(0.0, next_s - time.monotonic())
        readable, _, _ = select.select(sources, [], [], wait_s)
        if switch.socket in readable:
            switch.heard()
            while switch.laid:
                _safely(functools.partial(frames.renew, switch.laid.pop()))
        clocks_s = time.time() - time.monotonic()
        for frame in iter(tap.receive, None):
            heartbeats.heard(frame.data[ETHERNET_BYTES:], frame.at_ns / 1e9 - clocks_s)
        now_s = time.monotonic()
        if now_s >= next_s or asked in readable:
            next_s = now_s + LOOK_S
            heartbeats.look(now_s)
            _safely(logs.look)
            counted = _safely(frames.read)
            if counted and counted != before:
                log.add("frames", ports=counted)
                before = counted
        if asked in readable:
            asked.send(asked.recv(1))


def _safely(look: Callable[[], object]) -> object:
    """A node may end while we look at it; the next look sees what is left."""
    try:
        return look()
    except (OSError, SoftnlbError):
        return None
