"""Extended affinity on both data planes with real clients, and what the agent does with it."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from convergence import clients
from convergence.clients import ListHead
from convergence.events import ExceptionsChanged, ForgetClients, KeepClients, ListClients, LogEvent
from convergence.rules import DEFAULT_RULE, Affinity, PortRule
from labs.listed import ClientLists
from softnlb import client_memory
from softnlb.affinity import Affinity as AgentPart
from softnlb.affinity import Present, answers
from softnlb.client_memory import ClientMemory
from softnlb.errors import SoftnlbError
from softnlb.filter import FilterRule
from softnlb.known_clients import Known
from softnlb.scanner import Scan
from softnlb.socket_watch import SWEEP_MS
from softnlb.verdicts import now_ms
from tests.packets import table_of
from tests.plane import CLIENT, PORT, Bench, inside

STICKY = PortRule(None, PORT, PORT, affinity=Affinity.SINGLE, timeout_min=20)
KEY = bytes((0, *map(int, CLIENT.split("."))))


@pytest.fixture(params=["nfqueue", pytest.param("tc", marks=pytest.mark.bpf)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


def test_a_client_is_remembered_kept_forgotten_and_left_to_others(bench: Bench) -> None:
    bench.listen()
    plane = bench.plane
    began_ms = now_ms()

    def claim(claimed: int) -> None:
        rules = (FilterRule(STICKY, 0, claimed=claimed), FilterRule(DEFAULT_RULE, 0))
        bench.table = replace(bench.table, rules=rules, valid_until_ms=now_ms() + 60_000)
        with inside(bench.host):
            plane.install(bench.table)

    bench.install(rule=STICKY)
    assert bench.answers()
    (known,) = plane.clients()
    assert known.key == KEY and began_ms <= known.heard_ms <= now_ms()
    claim(0)
    assert not bench.answers(), "its bucket is another host's now"
    claim(1 << known.bucket)
    assert bench.answers(), "and the client is kept"
    assert bench.counters()["affinity"] >= 1
    plane.heard([known, Known(b"\0\x0a\x01\0\x09", 3, 0)], began_ms - 5000)
    assert [one.heard_ms for one in plane.clients()] == [began_ms - 5000], "nobody is added"
    assert bench.answers()
    assert plane.clients()[0].heard_ms >= began_ms, "heard again"
    plane.forget([KEY, b"\0\x0a\x01\0\x09"])
    assert plane.clients() == []
    assert not bench.answers()

    bench.install(rule=STICKY)
    plane.leave_to_others({KEY: 7}, ())
    assert not bench.answers(), "the owner leaves it to host 7"
    assert bench.counters()["exception"] >= 1
    plane.leave_to_others({}, (KEY, b"\0\x0a\x01\0\x09"))
    assert bench.answers()
    assert plane.not_remembered() == 0


# ---------------------------------------------------------------- the nfqueue plane's memory


def test_what_has_no_room_is_counted_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_memory, "_OWN_PLACES", 8)
    monkeypatch.setattr(client_memory, "_EXCEPTED_PLACES", 8)
    monkeypatch.setattr(client_memory, "_PROBES", 8)
    memory = ClientMemory(lambda: 5)
    keys = [bytes((0, 10, 0, 0, number)) for number in range(9)]
    for key in keys:
        memory.remember(0, key[1:], 3)
    assert [memory.recall(0, key[1:]) for key in keys] == [True] * 8 + [False]
    assert memory.not_remembered == 1
    assert memory.forget(keys[:2]) and not memory.forget(keys[:2])
    memory.remember(0, keys[8][1:], 4)
    assert {(one.key, one.bucket) for one in memory.known()} == {
        *((key, 3) for key in keys[2:8]),
        (keys[8], 4),
    }
    memory.put(dict.fromkeys(keys[:8], 2))
    with pytest.raises(SoftnlbError, match="no room"):
        memory.put({keys[8]: 2})
    memory.take_back(keys[:1])
    assert [memory.is_excepted(0, key[1:]) for key in keys[:3]] == [False, True, True]
    memory.close()


def test_families_and_slots_are_told_apart() -> None:
    memory = ClientMemory(lambda: 5)
    four, six = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 1)) + bytes(12)
    memory.remember(0, four, 1)
    assert [memory.recall(*one) for one in ((0, four), (1, four), (0, six))] == [True, False, False]
    memory.close()


# ---------------------------------------------------------------- the agent's part


class FakePlane:
    """Remembers what it is told."""

    def __init__(self, known: list[Known]) -> None:
        self.known = {one.key: one for one in known}
        self.refused = 0

    def clients(self) -> list[Known]:
        return list(self.known.values())

    def forget(self, keys: list[bytes]) -> None:
        for key in keys:
            self.known.pop(key, None)

    def heard(self, clients: list[Known], at_ms: int) -> None:
        for one in clients:
            self.known[one.key] = replace(one, heard_ms=at_ms)

    def not_remembered(self) -> int:
        return self.refused


def serving(*known: Known, current: int = 0b11, claimed: int = 0b100) -> Any:
    table = table_of("rule=80/tcp/multiple/network/1", 0)
    rules = (replace(table.rules[0], current=current, claimed=claimed), *table.rules[1:])
    made = SimpleNamespace(plane=FakePlane(list(known)), exceptions={})
    made.table = replace(table, rules=rules)
    made.leave_to_others = lambda added, removed: made.exceptions.update(added)
    return made


def client(number: int, bucket: int, heard_ms: int) -> Known:
    return Known(bytes((0, 10, 0, number, 0)), bucket, heard_ms)


def scan(*connected: Known, at_ms: int = 100_000) -> Scan:
    return Scan(at_ms, (), None, None, frozenset(one.key for one in connected))


def test_a_sweep_forgets_the_silent_and_spares_who_has_a_connection() -> None:
    minute = 60_000
    silent, recent = client(1, 0, 100_000 - minute), client(2, 0, 100_001 - minute)
    connected, gone = client(3, 0, 1), client(4, 5, 99_000)
    host = serving(silent, recent, connected, gone)
    part, told = AgentPart(), []
    machine = SimpleNamespace(listed_clients=())
    assert not part.sweep(host, machine, scan(connected), 100_000, told.append)
    left = host.plane.known
    assert left.keys() == {recent.key, connected.key}, "bucket 5 is neither owned nor claimed"
    assert left[connected.key].heard_ms == 100_000
    later = 100_000 + SWEEP_MS - 1
    assert not part.sweep(host, machine, scan(), later, told.append)
    assert len(host.plane.known) == 2, "not yet time for the next"
    blind = Scan(later, (), None, None, None)
    assert not part.sweep(host, machine, blind, 500_000, told.append)
    assert len(host.plane.known) == 2, "without a look at the sockets nobody is forgotten"


def test_a_sweep_tells_when_somebody_is_on_the_list_no_more() -> None:
    kept, silent = client(1, 2, 99_000), client(2, 2, 0)
    host = serving(kept, silent)
    machine = SimpleNamespace(listed_clients=(kept.key, silent.key))
    part, told = AgentPart(), []
    assert part.sweep(host, machine, scan(), 100_000, told.append)
    machine.listed_clients = (kept.key,)
    assert not part.sweep(host, machine, scan(), 100_000 + SWEEP_MS, told.append)
    machine.listed_clients = None
    assert not part.sweep(host, machine, scan(), 120_000, told.append)


def test_a_full_list_is_told_once_a_minute() -> None:
    host, machine = serving(), SimpleNamespace(listed_clients=())
    part = AgentPart()
    told: list[LogEvent] = []
    for number in range(1, 8):
        host.plane.refused = number
        part.sweep(host, machine, scan(), number * SWEEP_MS, told.append)
    assert [event.name for event in told] == ["affinity-full"] * 2
    assert [event.fields["clients"] for event in told] == [1, 6]


def test_the_answer_names_the_clients_of_claimed_buckets_only_the_last_heard_first() -> None:
    old, young, mine = client(1, 2, 10), client(2, 2, 20), client(3, 0, 30)
    host = serving(old, mine, young)
    part = AgentPart()
    part.carry_out(host, ListClients(9, (0b111, 0)))
    answer = part.answer(host, 50)
    assert (answer.serial, answer.keys) == (9, (young.key, old.key))
    assert part.asked is None
    part.carry_out(host, ForgetClients((old.key,)))
    part.carry_out(host, ExceptionsChanged({mine.key: 4}, ()))
    assert host.plane.known.keys() == {young.key, mine.key} and host.exceptions == {mine.key: 4}
    host.plane.known[b"\1\x0a\0\0\1"] = Known(b"\1\x0a\0\0\1", 0, 0)
    part.carry_out(host, KeepClients((0,)))
    assert host.plane.known.keys() == {young.key, mine.key}
    part.carry_out(host, ListClients(10, (0b111, 0)))
    assert part.answer(None, 50).keys == (), "the host has stopped meanwhile"


def test_the_lists_that_an_operator_sees() -> None:
    one = client(1, 2, 10_000)
    host = serving(one)
    host.exceptions = {client(2, 1, 0).key: 3}
    machine: Any = SimpleNamespace(
        listed_clients=(one.key,), exceptions={3: frozenset(host.exceptions)}
    )
    found = answers(host, machine, 25_900)
    rule = "all:80/tcp multiple hosts, affinity network for 1 min"
    listed = {"rule": rule, "client": "10.0.1.0/24", "bucket": 2, "listed": True, "silent_s": 15}
    assert found["clients"] == [listed]
    assert found["exceptions"] == [{"rule": rule, "client": "10.0.2.0/24", "host_id": 3}]
    assert answers(None, machine, 0) == {"clients": [], "exceptions": []}
    present = Present(host)
    assert present.recall(0, one.key[1:]) and not present.recall(0, b"\x0a\0\x02\0")
    assert present.is_excepted(0, b"\x0a\0\x02\0") and not present.is_excepted(0, one.key[1:])


# ---------------------------------------------------------------- as a capture shows it


def test_comments_go_by_the_newest_whole_list_of_each_member() -> None:
    lists = ClientLists()
    keys = [bytes((0, 10, 0, number >> 8, number & 255)) for number in range(300)]

    def head(host_id: int, serial: int) -> ListHead:
        return ListHead(host_id, bytes(4), bytes(4), 1, 1, serial, 0, bytes(8))

    def hear(host_id: int, serial: int, keys: list[bytes], frames: slice = slice(None)) -> None:
        for payload in clients.encode(head(host_id, serial), keys, 0)[frames]:
            lists.heard(clients.decode(payload))

    hear(1, 1, keys)
    assert lists.of(1, 0b11).recall(0, keys[299][1:])
    assert lists.of(2, 0b11).is_excepted(0, keys[0][1:])
    assert not lists.of(2, 0b10).is_excepted(0, keys[0][1:]), "host 1 is no member"
    assert not lists.of(1, 0b11).is_excepted(0, keys[0][1:])
    hear(1, 2, keys[1:], slice(1))
    assert lists.of(1, 0b11).recall(0, keys[0][1:]), "the next list is not whole yet"
    hear(1, 2, keys[1:], slice(1, None))
    assert not lists.of(1, 0b11).recall(0, keys[0][1:])
    assert lists.of(1, 0b11).recall(0, keys[299][1:])
