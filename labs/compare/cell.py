"""One measurement of the comparison: one method, one fault, in a lab of its own.

Leaves METHOD-FAULT.jsonl (the event log) and METHOD-FAULT.pcapng (what the switch saw) beside the
result.
"""

import itertools
import json
import os
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from labs.capture import find_ports, start_capture
from labs.compare import components as c
from labs.compare import probes
from labs.compare.clients import Record, body
from labs.compare.judge import NO_OUTAGE, Seen, judge, judge_many, share_failed
from labs.compare.methods import METHODS, Method, Setting
from labs.experiment import lab_for, pause
from labs.handle import LabHandle
from softnlb.errors import SoftnlbError

STEADY_S = 1.5
WINDOW_S = 12.0
DNS_WINDOW_S = 26.0
"""After the fault: long enough to see that a wait is a long one."""

CONNECTED = ("ping", "long TCP session", "HTTP keep-alive")
"""Clients that stay where they are as long as they may."""

LAG_MAX_S, ATTEMPTS_MAX = 0.4, 3
"""When the machine did not run the clients themselves for so long, the measurement is repeated."""

SETTLE_S = 3.0
"""When the many clients begin to count as served again, or not, before the end."""


def run_cell(method_name: str, fault: str, out: str) -> dict[str, Any]:
    """Measure; the result as JSON carries it, with "error" when it failed."""
    method = next(method for method in METHODS if method.name == method_name)
    path = Path(out, f"{method.name}-{fault}")
    began_s = time.monotonic()
    result: dict[str, Any]
    try:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            result = measure(method, fault, path) | {"attempts": attempt}
            if result.get("lag_s", 0.0) < LAG_MAX_S:
                break
    except (SoftnlbError, OSError) as error:
        result = {"method": method.name, "fault": fault, "error": str(error)}
    return result | {"took_s": round(time.monotonic() - began_s, 1)}


def measure(method: Method, fault: str, path: Path) -> dict[str, Any]:
    """One method under one fault, "steady" for none.  Raises SoftnlbError."""
    spec = replace(method.spec, name=f"compare-{os.getpid()}-{method.name}-{fault}"[:40])
    with lab_for(None, spec) as lab:
        words = [node["name"] for node in lab.ask("nodes")["nodes"] if node["port"]]
        with start_capture(lab, find_ports(lab, words), str(path.with_suffix(".pcapng"))) as tap:
            setting = method.set_up(lab)
            try:
                if fault == "steady":
                    result = probes.steady(lab, setting.plan)
                else:
                    result = _under_fault(lab, setting, fault)
            finally:
                for task in setting.tasks.values():
                    task.kill()
            captured = tap.stop()
        path.with_suffix(".jsonl").write_bytes(lab.events())
    return {
        "method": method.name,
        "fault": fault,
        **result,
        "events": path.with_suffix(".jsonl").name,
        "capture": path.with_suffix(".pcapng").name,
        "captured_frames": captured[0],
    }


def _under_fault(lab: LabHandle, setting: Setting, fault: str) -> dict[str, Any]:
    window_s = DNS_WINDOW_S if setting.plan.dns and fault in ("kill", "unplug") else WINDOW_S
    with lab.start("client1", body(setting.plan)) as task:
        first = task.expect()["first_address"]
        pause(STEADY_S)
        # The one that serves the one client address, so that the fault meets it.
        victim = f"host{first.rpartition('.')[2]}" if first else probes.server_of(lab, setting.plan)
        fault_s = time.monotonic()
        _inject(lab, setting, fault, victim)
        pause(window_s)
        end_s = time.monotonic()
        seen_by_clients = task.stop()
    records: dict[str, list[Record]] = seen_by_clients["records"]
    many = records["many clients"]
    seen = {
        name: judge_many(noted, fault_s, end_s)
        if name == "many clients"
        else judge(noted, fault_s, end_s, tries=name != "ping")
        for name, noted in records.items()
    }
    _note(lab, victim, fault, fault_s, seen)
    late = [
        record
        for name, noted in records.items()
        for record in noted
        if record[0] > end_s - SETTLE_S and name not in CONNECTED
    ]
    return {
        "victim": victim,
        "window_s": window_s,
        "lag_s": seen_by_clients["lag_s"],
        "clients": {name: asdict(each) for name, each in seen.items()},
        "still_failing_percent": round(
            100 * share_failed(many, end_s - SETTLE_S - 1.0, end_s - 1.0), 1
        ),
        "victim_still_serves": any(f"host{record[2]}" == victim for record in late),
    }


def _inject(lab: LabHandle, setting: Setting, fault: str, victim: str) -> None:
    if fault == "maintenance":
        log = lab.log()
        log.add("note", text=f"maintenance: {victim} is taken out")
        log.close()
        setting.take_out(victim)
    else:
        lab.fault(fault, victim)


def _note(lab: LabHandle, victim: str, fault: str, fault_s: float, seen: dict[str, Seen]) -> None:
    """What each client went through, into the event log."""
    log = lab.log()
    for name, each in seen.items():
        gaps = []
        if each.outcome != NO_OUTAGE:
            gaps = [[each.from_s, round(each.from_s + each.pause_s, 4)]]
        facts = {"what": name, "outcome": each.outcome, "pause_s": each.pause_s, "gaps": gaps}
        log.add("client", fault_s, node="client1", fault=fault, victim=victim, **facts)
    log.close()


# ---------------------------------------------------------------- keepalived against its reference

GAPS = 5
GAP_FAULTS: dict[str, float] = {"kill": 3.06, "unplug": 3.05, "stop": 0.62}
"""Fault to the gap in seconds that reference measurements of keepalived found."""

PAIR = ("host1", "host2")
ADDRESS = "10.1.0.100"


def run_gaps(fault: str, out: str) -> dict[str, Any]:
    """The gap that ping sees when the VRRP master fails, ``GAPS`` times."""
    path = Path(out, f"keepalived-gaps-{fault}.jsonl")
    try:
        spec = replace(METHODS[0].spec, hosts=2, name=f"gaps-{os.getpid()}-{fault}")
        with lab_for(None, spec) as lab:
            gaps = [_gap(lab, fault, number) for number in range(GAPS)]
            path.write_bytes(lab.events())
    except (SoftnlbError, OSError) as error:
        return {"fault": fault, "error": str(error)}
    median_s = round(statistics.median(gaps), 2)
    reference_s = GAP_FAULTS[fault]
    return {
        "fault": fault,
        "gaps_s": gaps,
        "median_s": median_s,
        "reference_s": reference_s,
        "off_percent": round(100 * (median_s / reference_s - 1), 1),
        "events": path.name,
    }


_daemons: dict[str, Any] = {}


def _gap(lab: LabHandle, fault: str, number: int) -> float:
    for index, name in enumerate(PAIR, 1):
        if name not in _daemons:
            _daemons[name] = c.keepalived(lab, name, ADDRESS, index)
    victim = c.await_master(lab, PAIR, ADDRESS)
    # A backup that has just started does not know the master yet.
    pause(1.5)
    with lab.start("client2", probes.pings(ADDRESS)) as task:
        task.expect()
        pause(0.3 + 0.17 * number)
        if fault == "stop":
            _daemons.pop(victim).stop()
        else:
            lab.fault(fault, victim)
        pause(5.0 if GAP_FAULTS[fault] > 1 else 2.0)
        records: list[Record] = task.stop()
    if fault == "kill":
        _daemons.pop(victim).kill()
        lab.fault("start", victim)
    elif fault == "unplug":
        _daemons.pop(victim).stop()
        lab.fault("replug", victim)
    answered = sorted(record[0] for record in records if record[3] is None)
    longest = max((b - a for a, b in itertools.pairwise(answered)), default=0.0)
    return round(longest, 3)


def save(results: dict[str, Any], path: Path) -> None:
    """The whole comparison as one JSON document."""
    path.write_text(json.dumps(results, indent=1) + "\n")
