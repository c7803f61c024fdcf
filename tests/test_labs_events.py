"""The event log of a lab: what happened when, seen at the switch."""

import pytest

from labs.client_log import series
from labs.events import labs_in, parse
from labs.experiment import await_converged, burst
from labs.load import Connection, Traffic, gaps
from labs.witness import FrameCounters
from modes.plan import Mode
from softnlb.errors import SoftnlbError
from tests.labs import lab, running

REQUESTS = 60


@pytest.fixture(scope="module")
def logged():
    """The log of three hosts under some load; one of them is powered off and on again."""
    with running("events", hosts=3, mode=Mode.IGMP, switch="mac") as handle:
        counters = FrameCounters(handle)
        burst(handle, Traffic(burst=REQUESTS, timeout_s=5.0))
        seen = counters.read()
        after_burst = parse(handle.events().decode().splitlines(), "lab")
        handle.fault("kill", "host2")
        await_converged(handle, [1, 3])
        handle.fault("start", "host2")
        await_converged(handle, [1, 2, 3])
        burst(handle, Traffic(burst=REQUESTS, timeout_s=5.0))
        (events,) = labs_in(parse(handle.events().decode().splitlines(), "lab"))
    yield {"events": events, "after burst": after_burst, "seen": seen}


def of(events, kind, **facts):
    """Events of a kind that say this."""
    return [e for e in events if e["event"] == kind and facts.items() <= e.items()]


def test_the_log_tells_the_story_of_a_host_that_was_powered_off(logged):
    events = logged["events"]
    (killed,) = of(events, "fault", fault="kill", arguments=["host2"])
    (started,) = of(events, "fault", fault="start")
    (silent,) = of(events, "silent", host_id=2)
    assert killed["at_s"] - 0.2 < silent["at_s"] < killed["at_s"] + 0.2, "its last heartbeat"
    back = next(e for e in of(events, "host", host_id=2) if e["at_s"] > started["at_s"])
    between = [e for e in events if killed["at_s"] < e["at_s"] < back["at_s"]]
    survivors = of(between, "host", host_id=1, members=[1, 3], state="converged")
    assert 0.3 < survivors[0]["at_s"] - killed["at_s"] < 5.0
    maps = {e["host_id"]: int(e["map"], 16) for e in of(between, "buckets", slot=0)}
    assert maps[1] | maps[3] == (1 << 60) - 1
    assert maps[1] & maps[3] == 0
    assert any("host-lost: Host 2 is lost" in e["text"] for e in of(between, "agent", host_id=1))
    assert of(between, "cable", port="host2", up=False)


def test_the_log_has_what_the_switch_learned_and_forgot(logged):
    events = logged["events"]
    for port in ("host1", "host2", "host3"):
        assert of(events, "mdb", port=port, group="239.255.0.100", change="joined"), port
        assert of(events, "fdb", port=port, change="learned"), port
    assert of(events, "fdb", port="host2", change="forgotten")


def test_frames_are_counted_as_the_other_counter_counts_them(logged):
    """The clients' frames reach every host flooded, and each is wasted at all hosts but one."""
    ports = of(logged["after burst"], "frames")[-1]["ports"]
    sent = logged["seen"]["router"]["in"]
    assert sent >= REQUESTS * 4
    assert ports["router"]["in"] >= sent
    hosts = [ports[f"host{n}"] for n in (1, 2, 3)]
    for counted in hosts:
        assert counted["flooded"] >= sent
        assert 0 < counted["wasted"] < sent
    assert sum(counted["wasted"] for counted in hosts) == 2 * sent
    assert ports["bystander"]["wasted"] == 0, "the switch snoops"


def test_a_host_that_came_back_is_counted_on(logged):
    before = of(logged["after burst"], "frames")[-1]["ports"]["host2"]["flooded"]
    after = of(logged["events"], "frames")[-1]["ports"]["host2"]["flooded"]
    assert after > before + REQUESTS * 4


def test_clients_note_who_served_them(logged):
    bursts = of(logged["events"], "clients", node="client1")
    assert len(bursts) == 2
    for seen in bursts:
        assert sum(sum(counts) for counts in seen["answered"].values()) == REQUESTS
        assert set(seen["answered"]) == {"1", "2", "3"}
        assert seen["gaps"] == []


def test_failures_that_are_close_together_are_one_gap():
    connections = [
        Connection("c", 1, 10.0 + n / 10, 0.05, None if 5 <= n < 9 or n == 39 else 1)
        for n in range(40)
    ]
    assert gaps(connections) == [[10.5, 10.9], [13.9, 13.95]]
    counted = series(connections)
    assert sum(counted["failed"]) == 5
    assert sum(counted["answered"]["1"]) == 35


def test_a_gap_lasts_while_nobody_or_not_everybody_is_answered():
    def asked(began_s, host_id):
        return Connection("c", 1, began_s, 0.5, host_id)

    # One client a second, and nobody is answered.
    assert gaps([asked(n, None if 3 <= n < 7 else 1) for n in range(10)]) == [[3, 7]]
    # A host of three is gone, and a while later another one.
    assert gaps([asked(n / 10, None if n in (3, 6, 9) else 1) for n in range(20)]) == [[0.3, 1.0]]
    assert gaps([asked(n / 10, None if n in (3, 9) else 1) for n in range(20)]) == [
        [0.3, 0.4],
        [0.9, 1.0],
    ]


@pytest.mark.parametrize("line", ['{"at_s": "x", "event": "lab"}', "[]", "{", '{"event": "lab"}'])
def test_a_line_that_is_no_event_is_named(line):
    with pytest.raises(SoftnlbError, match="line 2: not an event"):
        parse(['{"at_s": 1, "event": "lab"}', line], "x")


def test_a_run_keeps_the_log_of_its_lab(tmp_path):
    path = tmp_path / "run.jsonl"
    done = lab("run", "flush", "--events", str(path / "no such directory"), "--json")
    assert done.returncode == 1
    with running("kept", hosts=2) as handle:
        done = lab("run", "connections", "--count", "20", "--name", handle.name, "--events", path)
    assert done.returncode == 0, done.stderr
    (events,) = labs_in(parse(path.read_text().splitlines(), "run"))
    assert len(of(events, "clients")) == 1
