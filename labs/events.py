"""The event log of a lab: what happened when, one JSON object per line.

Every line has ``at_s`` (CLOCK_MONOTONIC in seconds, which all nodes and the machine share) and
``event``.  The first one is "lab": the plan, and the wall clock at that moment.

event        from        what else it says
lab          supervisor  name, wall_s, spec, nodes, cluster_ip_address
fault        supervisor  fault, arguments, message, took_s
host         recorder    host_id, state, members, default_host: what its heartbeats began to say
silent       recorder    host_id: no heartbeat for 2.5 periods; ``at_s`` is that of the last one
buckets      recorder    host_id, slot, map (hex): the buckets that it began to accept
agent        recorder    host_id, level, text: a line of its log
fdb          recorder    port, mac, change: learned, moved or forgotten by the switch
mdb          recorder    port, group, change: joined or left
cable        recorder    port, up
frames       recorder    ports: {port: {in, forwarded, flooded, wasted}}, counted by the kernel
clients      a run       node, what, from_s, bin_s, answered {host id: [count]}, failed, gaps
sessions     a run       node, what, count, broken [[at_s, host id, error]]
client       a run       node, what, fault, victim, outcome, pause_s, gaps: of the comparison
note         a run       text
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from softnlb.errors import SoftnlbError

PATH = Path("/run/events.jsonl")
"""In the lab's own file system: it ends with the lab, unless somebody has asked for it."""

SIZE_MAX_BYTES = 48 << 20

Event = dict[str, Any]


class EventLog:
    """Appends to a log; lines of several processes never mix, because each is one write."""

    def __init__(self, path: Path = PATH) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def add(self, event: str, at_s: float | None = None, **facts: Any) -> None:
        """Note an event, now or at ``at_s``.  A log that is full stays as it is."""
        if os.fstat(self._fd).st_size > SIZE_MAX_BYTES:
            return
        moment_s = time.monotonic() if at_s is None else at_s
        line = json.dumps({"at_s": round(moment_s, 4), "event": event, **facts}, default=str)
        os.write(self._fd, line.encode() + b"\n")

    def read(self) -> bytes:
        """All of it, as it is in the file."""
        size = os.fstat(self._fd).st_size
        return os.pread(self._fd, size, 0)

    def close(self) -> None:
        """No more of it."""
        os.close(self._fd)


def parse(lines: Iterable[str], source: str) -> list[Event]:
    """Events in the order of time.  Raises SoftnlbError naming ``source`` and the line."""
    found: list[Event] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            event["at_s"] = float(event["at_s"])
            event["event"] = str(event["event"])
        except (ValueError, KeyError, TypeError) as error:
            raise SoftnlbError(f"{source}, line {number}: not an event of a lab") from error
        found.append(event)
    if not any(event["event"] == "lab" for event in found):
        raise SoftnlbError(f"{source}: no event log of a lab, for it does not say which one")
    return found


def labs_in(events: list[Event]) -> list[list[Event]]:
    """The labs of a log, one after the other: a run may start several and log all in one file."""
    labs: list[list[Event]] = []
    for event in events:
        if event["event"] == "lab":
            labs.append([])
        if labs:
            labs[-1].append(event)
    for lab in labs:
        lab.sort(key=lambda event: float(event["at_s"]))
    return labs


def sentence(event: Event) -> str:
    """An event in words."""
    kind = event["event"]
    if kind == "fault":
        words = " ".join([event["fault"], *event["arguments"]])
        return f"fault {words}: {event['message']}"
    if kind == "host":
        members = " ".join(str(member) for member in event["members"])
        return f"host {event['host_id']} says: {event['state']}, members {members}"
    if kind == "silent":
        return f"host {event['host_id']} has fallen silent"
    if kind == "buckets":
        count = int(event["map"], 16).bit_count()
        return f"host {event['host_id']} accepts {count} buckets of rule {event['slot'] + 1}"
    if kind == "agent":
        return f"host {event['host_id']} logs: {event['text']}"
    if kind == "fdb":
        return f"FDB: {event['mac']} {event['change']} at {event['port'] or 'a port that is gone'}"
    if kind == "mdb":
        return f"MDB: {event['port']} {event['change']} group {event['group']}"
    if kind == "cable":
        return f"cable at {event['port']}: {'up' if event['up'] else 'down'}"
    return str(event.get("text", kind))
