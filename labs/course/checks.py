"""What the course looks at in the real lab: each check is a function of it that gives ``Facts``."""

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

from labs.course.judging import Facts
from labs.events import Event
from labs.experiment import ask_agent, burst, finish, pause, traffic, wait_until
from labs.handle import LabHandle
from labs.load import Traffic
from labs.witness import FrameCounters, learned
from softnlb.errors import SoftnlbError

REQUESTS = 24
HELD = 24
SILENCE_S = 1.0
"""A connection that is silent for longer is broken."""

Values = dict[str, Any]
"""The lesson's values and the step's facts together."""


def flood(lab: LabHandle, values: Values) -> Facts:
    """Percent of the clients' frames that the bystander receives."""
    counters = FrameCounters(lab)
    before = counters.read()
    result = burst(lab, Traffic(burst=REQUESTS, timeout_s=2.0))
    after = counters.read()
    sent = max(1, after["router"]["in"] - before["router"]["in"])
    idle = after["bystander"]["out"] - before["bystander"]["out"]
    unserved = len(result.failed())
    percent = round(100 * idle / sent)
    fits = values.get("percent_min", 0) <= percent <= values.get("percent_max", 100)
    broken = lab.status()["faults"]
    fits = fits and all(broken.get(fault) for fault in values.get("faults", []))
    return Facts(
        [str(percent)],
        tolerance=2.0,
        ready=unserved <= values.get("unserved_max", REQUESTS) and fits,
        seen={"sent": sent, "idle": idle, "unserved": unserved, "requests": REQUESTS},
    )


def learned_mac(lab: LabHandle, values: Values) -> Facts:
    """The MAC address that the switch learned at a host's port."""
    burst(lab, Traffic(burst=4, timeout_s=2.0))
    shown = {port: [_colons(mac) for mac in macs] for port, macs in learned(lab).items()}
    clues = {mac: f"{mac} -> {port}" for port, macs in shown.items() for mac in macs}
    return Facts(shown.get(values["faulty"], ["-"]), seen={"ports": shown}, clues=clues)


def _colons(mac: str) -> str:
    return mac.lower().replace("-", ":")


def leak(lab: LabHandle, values: Values) -> Facts:
    """Who sent from the cluster MAC address; it must have been mended."""
    broken = lab.status()["faults"]
    ready = "hidden" not in broken and "leaking_mac" not in broken
    found = {port: " ".join(_colons(mac) for mac in macs) for port, macs in learned(lab).items()}
    clues = {port: f"{port}: {macs}" for port, macs in found.items() if port.startswith("host")}
    return Facts([values["faulty"]], ready=ready, clues=clues)


def neighbour_mac(lab: LabHandle, values: Values) -> Facts:
    """The MAC address that a client without scruples believes the cluster IP address has."""
    lab.complete("client2", ["curl", "-s", "-m", "2", f"http://{values['vip']}/"])
    shown = json.loads(lab.output("client2", ["ip", "-j", "neigh", "show", str(values["vip"])]))
    return Facts([entry["lladdr"] for entry in shown if "lladdr" in entry] or ["-"])


def group(lab: LabHandle, values: Values) -> Facts:
    """The group that the switch saw the hosts join."""
    tables = json.loads(lab.output("switch", ["bridge", "-j", "mdb", "show"]))
    entries = [entry for table in tables for entry in table.get("mdb", [])]
    groups = sorted({entry["grp"] for entry in entries if entry["grp"].startswith("239.")})
    return Facts(groups or ["-"], ready=bool(groups), seen={"entries": len(entries)})


def starved(lab: LabHandle, values: Values) -> Facts:
    """The host that no frame of a client reaches."""
    counters = FrameCounters(lab)
    before = counters.read()
    result = burst(lab, Traffic(burst=2 * REQUESTS, timeout_s=0.4))
    after = counters.read()
    got = {port: after[port]["out"] - before[port]["out"] for port in after if port[:4] == "host"}
    least = min(got, key=lambda port: got[port])
    clues = {port: f"{port}: {frames} frames" for port, frames in got.items()}
    return Facts(
        [least],
        ready=got[least] == 0,
        seen={"failed": len(result.failed()), "tried": len(result.new)},
        clues=clues,
    )


def hosts_for(lab: LabHandle, values: Values) -> Facts:
    """How many hosts serve a client node on a port."""
    plan = Traffic(
        burst=40,
        timeout_s=2.0,
        pool=bool(values["pool"]),
        server=(str(values["vip"]), int(values["port"])),
    )
    served = burst(lab, plan, node=str(values["client"])).served()
    shown = ", ".join(f"host{host_id}: {count}" for host_id, count in served.items())
    return Facts([str(len(served))], ready=bool(served), seen={"served": shown, "tried": 40})


def host_for(lab: LabHandle, values: Values) -> Facts:
    """The one host that serves the listed addresses of client1 on a port."""
    found = []
    for address in values["addresses"]:
        url = f"http://{values['vip']}:{values['port']}/"
        command = ["curl", "-s", "-m", "2", "--interface", address, url]
        found.append(f"host{json.loads(lab.output('client1', command))['host_id']}")
    hosts = sorted(set(found))
    return Facts(hosts, ready=len(hosts) == 1, seen={"found": ", ".join(hosts)})


def curl_status(lab: LabHandle, values: Values) -> Facts:
    """The exit status of curl at a port: 28 for silence, 7 for a refusal."""
    url = f"http://{values['vip']}:{values['port']}/"
    done = lab.complete("client1", ["curl", "-s", "-m", "1", url])
    return Facts([str(done["exit_status"])], ordered=False)


def buckets(lab: LabHandle, values: Values) -> Facts:
    """How many of the 60 buckets a host owns, or all hosts together; and the lab's state."""
    status = lab.status()
    hosts = {f"host{host['host_id']}": host for host in status["hosts"]}
    chosen = values.get("whose", "")
    count = sum(h["buckets"] for name, h in hosts.items() if chosen in ("all", name))
    states = {name: host["state"] for name, host in hosts.items()}
    wanted = values.get("states", {})
    ready = all(states[name] in allowed for name, allowed in _named(wanted, values).items())
    ready = ready and all(status["faults"].get(fault) for fault in values.get("faults", []))
    if "nobody" in values.get("faults_absent", []):
        ready = ready and not any(status["faults"].values())
    # Until then the hosts say "converged" of what was before.
    ready = ready and count == values.get("settled", count)
    shown = ", ".join(f"{name} {host['buckets']}" for name, host in hosts.items())
    return Facts([str(count)], ready=ready, seen={"owned": shown, "states": states})


def _named(wanted: dict[str, Any], values: Values) -> dict[str, list[str]]:
    return {str(values.get(name, name)): list(states) for name, states in wanted.items()}


def members(lab: LabHandle, values: Values) -> Facts:
    """How many members a host sees."""
    try:
        seen = ask_agent(lab, str(values["faulty"]), "query")["members"]
    except SoftnlbError:  # powered off, or just starting
        return Facts(["0"], ready=False)
    broken = lab.status()["faults"]
    ready = all(broken.get(fault) for fault in values["faults"]) and len(seen) < 4
    return Facts([str(len(seen))], ready=ready, seen={"members": " ".join(map(str, seen))})


def takeover(lab: LabHandle, values: Values) -> Facts:
    """Seconds from a host's power-off to the last bucket taken over, by the event log."""
    return taken_over([json.loads(line) for line in lab.events().splitlines()])


def taken_over(events: list[Event]) -> Facts:
    """From the last power-off to the last bucket taken over before somebody did anything else."""
    faults = [(e["at_s"], e["fault"]) for e in events if e["event"] == "fault"]
    killed = [number for number, (_, fault) in enumerate(faults) if fault == "kill"]
    if not killed:
        return Facts(["0"], ready=False)
    began_s, ended_s = [at_s for at_s, _ in (*faults[killed[-1] :], (math.inf, ""))][:2]
    after = [e["at_s"] for e in events if e["event"] == "buckets" and began_s < e["at_s"] < ended_s]
    took_s = max(after, default=began_s) - began_s
    tolerance = max(0.5, took_s / 4)
    seen = {"took_s": f"{took_s:.1f}"}
    return Facts([f"{took_s:.1f}"], tolerance=tolerance, ready=bool(after), seen=seen)


def drain_or_stop(lab: LabHandle, values: Values) -> Facts:
    """Connections of one host that break by a drainstop, or by a stop."""
    node, host_id = str(values["faulty"]), int(values["faulty_id"])

    def state() -> str:
        return next(str(h["state"]) for h in lab.status()["hosts"] if h["host_id"] == host_id)

    if state() != "converged":
        return Facts(["0"], ready=False)
    with traffic(lab, Traffic(hold=HELD, beat_s=0.05, silence_s=SILENCE_S, timeout_s=2.0)) as task:
        words = {"timeout_s": None} if values["verb"] == "drainstop" else {}
        ask_agent(lab, node, str(values["verb"]), **words)
        wait_until(lambda: state() != "converged", 10.0, f"{node} drains or stops")
        pause(SILENCE_S + 0.5)
        result = finish(task)
    wait_until(lambda: state() == "stopped", 10.0, f"{node} has stopped")
    ask_agent(lab, node, "start", force=False)
    wait_until(lambda: state() == "converged", 10.0, f"{node} is back")
    mine = [held for held in result.held if held.host_id == host_id]
    broken = len(result.broken(host_id))
    share = round(100 * broken / max(1, len(mine)))
    return Facts([str(share)], tolerance=10.0, seen={"mine": len(mine), "broken": broken})


def dead_service(lab: LabHandle, values: Values) -> Facts:
    """The host whose service was dead; it must live again."""
    failed = burst(lab, Traffic(burst=2 * REQUESTS, timeout_s=2.0)).failed()
    states = {f"host{host['host_id']}": host["state"] for host in lab.status()["hosts"]}
    clues = {name: f"{name}: {state}" for name, state in states.items()}
    return Facts([values["faulty"]], ready=not failed, seen={"failed": len(failed)}, clues=clues)


def round_robin(lab: LabHandle, values: Values) -> Facts:
    """Percent of requests that fail when clients take the hosts' own addresses in turn."""
    addresses = str(values["dips"]).split()
    failed = []
    for address in addresses:
        done = lab.complete("client1", ["curl", "-s", "-m", "0.5", f"http://{address}/"])
        failed += [address] if done["exit_status"] else []
    percent = round(100 * len(failed) / len(addresses))
    seen = {"failed": " ".join(failed), "tried": len(addresses)}
    return Facts([str(percent)], ready=bool(failed), seen=seen)


def unserved(lab: LabHandle, values: Values) -> Facts:
    """Percent of requests to the cluster IP address that nobody answers."""
    result = burst(lab, Traffic(burst=2 * REQUESTS, timeout_s=1.0))
    percent = round(100 * len(result.failed()) / len(result.new))
    broken = lab.status()["faults"]
    ready = all(broken.get(fault) for fault in values.get("faults", []))
    ready = ready and percent <= values.get("percent_max", 100)
    seen = {"failed": len(result.failed()), "tried": len(result.new)}
    return Facts([str(percent)], tolerance=float(values["tolerance"]), ready=ready, seen=seen)


def waste(lab: LabHandle, values: Values) -> Facts:
    """Percent of the frames at the hosts' ports that the host there throws away."""
    counters = FrameCounters(lab)
    before = counters.read()
    burst(lab, Traffic(burst=REQUESTS, timeout_s=2.0))
    after = counters.read()
    sent = max(1, after["router"]["in"] - before["router"]["in"])
    to_hosts = sum(after[p]["out"] - before[p]["out"] for p in after if p.startswith("host"))
    percent = 100 * (1 - sent / max(1, to_hosts))
    return Facts(
        [f"{percent:.1f}"],
        tolerance=1.5,
        ready=to_hosts > 0,
        seen={"sent": sent, "to_hosts": to_hosts},
    )


def growth(lab: LabHandle, values: Values) -> Facts:
    """How many times as many frames a port carries for all hosts' clients as for a few hosts'."""
    counters = FrameCounters(lab)
    hosts, small = lab.spec().hosts, int(values["small"])
    marks = [counters.read()]
    for size in (small, hosts):
        burst(lab, Traffic(burst=size * int(values["per_host"]), timeout_s=2.0))
        marks.append(counters.read())
    port = str(values["faulty"])
    few, many = (b[port]["out"] - a[port]["out"] for a, b in itertools.pairwise(marks))
    return Facts(
        [f"{many / max(1, few):.1f}"],
        tolerance=1.0,
        ready=few > 0,
        seen={"few": few, "many": many},
    )


CHECKS: dict[str, Callable[[LabHandle, Values], Facts]] = {
    check.__name__: check
    for check in (
        flood,
        learned_mac,
        leak,
        neighbour_mac,
        group,
        starved,
        hosts_for,
        host_for,
        curl_status,
        buckets,
        members,
        takeover,
        drain_or_stop,
        dead_service,
        round_robin,
        unserved,
        waste,
        growth,
    )
}


def look(lab: LabHandle, check: str, values: Values) -> Facts:
    """Carry out a check.  Raises SoftnlbError for a name that does not exist."""
    if check not in CHECKS:
        raise SoftnlbError(f"{check} is not a check: {', '.join(CHECKS)}")
    return CHECKS[check](lab, values)
