"""The comparison: classes from records, a measurement with real components, what is skipped."""

import json
import re
from dataclasses import replace

import pytest

from labs.compare import cell, tables
from labs.compare.judge import LONG_WAIT, NO_OUTAGE, RECONNECT, judge, judge_many
from labs.compare.methods import METHODS
from labs.compare.page import page
from labs.compare.tables import features, show
from labs.events import labs_in, parse
from labs.runs import compare
from softnlb.capture_file import read_capture
from softnlb.cli import run

FAULT_S, END_S = 100.0, 115.0


def steps(*stretches):
    """One operation per 0.1 s: (from, to, answered)."""
    return [
        [at / 10, at / 10 + 0.01, 1 if answered else None, None if answered else "TimeoutError"]
        for first, last, answered in stretches
        for at in range(int(first * 10), int(last * 10))
    ]


@pytest.mark.parametrize(
    ("records", "outcome", "pause_s", "over"),
    [
        (steps((95, 115, True)), NO_OUTAGE, 0.1, True),
        (steps((95, 100, True), (101.2, 115, True)), NO_OUTAGE, 1.3, True),
        (steps((95, 100, True), (103, 115, True)), RECONNECT, 3.1, True),
        (steps((95, 100, True), (100, 100.5, False), (100.5, 115, True)), RECONNECT, 0.6, True),
        (steps((95, 100, True), (100, 111, False), (111, 115, True)), LONG_WAIT, 11.1, True),
        (steps((95, 100, True), (100, 115, False)), LONG_WAIT, 15.09, False),
        (steps((95, 100, True)), LONG_WAIT, 15.09, False),
        (steps((90, 95, False), (95, 115, True)), NO_OUTAGE, 0.1, True),
    ],
)
def test_a_client_is_judged_by_its_longest_pause_and_by_what_broke(records, outcome, pause_s, over):
    seen = judge(records, FAULT_S, END_S)
    assert (seen.outcome, seen.over) == (outcome, over)
    assert seen.pause_s == pytest.approx(pause_s, abs=0.02)


def test_ping_knows_pauses_only():
    records = steps((95, 100, True), (100, 100.6, False), (100.6, 115, True))
    assert judge(records, FAULT_S, END_S).outcome == RECONNECT
    assert judge(records, FAULT_S, END_S, tries=False).outcome == NO_OUTAGE


def test_many_clients_are_judged_by_the_last_that_failed():
    good = steps((95, 115, True))
    assert judge_many(good, FAULT_S, END_S).outcome == NO_OUTAGE
    seen = judge_many(good + steps((100, 104, False)), FAULT_S, END_S)
    assert (seen.outcome, seen.over) == (RECONNECT, True)
    assert seen.pause_s == pytest.approx(3.9, abs=0.1)
    assert not judge_many(good + steps((100, 115, False)), FAULT_S, END_S).over


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Direct return with nft: what it does steadily, and when a service dies."""
    out = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell, "WINDOW_S", 7.0)
        cells = [
            cell.run_cell("lb-direct-return", fault, str(out)) for fault in ("steady", "app-down")
        ]
    return out, cells


def test_a_measurement_leaves_its_result_events_and_capture(measured):
    out, (steady, dead) = measured
    assert "error" not in steady, steady
    assert "error" not in dead, dead
    for each in (steady, dead):
        (events,) = labs_in(parse((out / each["events"]).read_text().splitlines(), "x"))
        assert events
        assert sum(1 for _ in read_capture(out / each["capture"])) == each["captured_frames"] > 200
    noted = [e for e in events if e["event"] == "client"]
    assert {e["what"]: e["outcome"] for e in noted} == {
        name: client["outcome"] for name, client in dead["clients"].items()
    }


def test_what_direct_return_is_like(measured):
    _, (steady, _) = measured
    assert sum(steady["shares"].values()) == 240
    assert len(steady["shares"]) == 3
    assert steady["server_sees"] == ["the client"]
    assert steady["affinity"]
    assert not steady["cookie_affinity"]
    assert steady["wasted_per_request"] == 0


def test_a_dead_service_is_a_reconnect_for_its_clients(measured):
    _, (_, dead) = measured
    outcomes = {name: client["outcome"] for name, client in dead["clients"].items()}
    assert outcomes.pop("ping") == NO_OUTAGE
    assert set(outcomes.values()) == {RECONNECT}, outcomes
    assert not dead["victim_still_serves"]


def test_the_tables_name_what_was_measured(measured, capsys):
    out, cells = measured
    method = next(method for method in METHODS if method.name == "lb-direct-return")
    results = {
        "methods": {method.name: method.title},
        "short": {method.name: method.short},
        "balancing": {method.name: method.balancing},
        "faults": {"app-down": "service stopped"},
        "skipped": {},
        "cells": json.loads(json.dumps(cells)),
        "keepalived_gaps": [],
        "took_s": 1.0,
    }
    told = dict(features(results, method.name))
    assert told["dead service noticed"].startswith("yes, ")
    assert told["taken out, it is free of clients"] == "?", "nobody was taken out"
    show(results, out)
    shown = capsys.readouterr().out
    assert "long TCP session" in shown
    assert "?: not measured" in shown
    text = page(results)
    linked = re.findall(r'href="([^"]+)"', text)
    assert {"lb-direct-return-app-down.jsonl", "lb-direct-return-steady.pcapng"} <= set(linked)
    assert all((out / name).is_file() for name in linked)
    assert text.count('class="fair"') == 4, "the four clients that had to connect again"


@pytest.mark.parametrize(("width", "sizes"), [(150, [9]), (80, [3, 3, 3]), (60, [2, 2, 2, 2, 1])])
def test_a_table_has_as_many_methods_as_the_terminal_has_room_for(width, sizes, monkeypatch):
    names = [f"method{n}" for n in range(9)]
    monkeypatch.setattr(tables, "features", lambda results, method: method != "unmeasured")
    parts = tables.side_by_side({"methods": [*names, "unmeasured"]}, width)
    assert [len(part) for part in parts] == sizes
    assert [name for part in parts for name in part] == names
    assert not tables.side_by_side({"methods": ["unmeasured"]}, width)


def test_what_this_machine_lacks_is_skipped_with_what_helps():
    method = replace(METHODS[0], programs=("no-such-program",))
    assert method.skipped() == (
        "no-such-program is not installed: sudo apt-get install keepalived curl"
    )
    method = replace(METHODS[2], kernel="/proc/net/no_such_feature")
    assert method.skipped() == "this kernel has no no_such_feature"
    assert METHODS[2].skipped() == "", "NLB needs nothing but softnlb"


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "out")
    assert run(["lab", "run", "compare", "--method", "nlb-unicast", "--out", nowhere]) == 1
    assert capsys.readouterr().err == f"softnlb: {nowhere}: Not a directory\n"


def test_the_longest_measurements_begin_first():
    jobs = compare.jobs_of(METHODS, list(compare.FAULTS))
    assert len(jobs) == len(METHODS) * 5 + 3
    assert {job[0] for job in jobs[:3]} == {"gaps"}
    assert {job[0] for job in jobs[3:8]} == {"dns-rr"}
