"""The memory that agent and verdict process share, and what runs for every packet."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP

from convergence.rules import ALL_BUCKETS, DEFAULT_RULE, SLOTS_MAX, Affinity, PortRule
from softnlb import verdicts
from softnlb.errors import SoftnlbError
from softnlb.filter import Clock, FilterRule, FilterTable, NoSockets
from softnlb.packet import ACK, Flow, flow_from_text
from softnlb.verdicts import NOTHING, SharedTable, SynAcks, verdict_callback

VIP = "10.1.0.100"
NOW_MS = 5000
TABLE = FilterTable(
    interface="eth0",
    cluster_mac=bytes(6),
    cluster_ip_addresses=(ip_address(VIP),),
    local_ip_addresses=(),
    hash_seed=1,
    rules=(
        FilterRule(PortRule(None, 80, 80, affinity=Affinity.NONE), ALL_BUCKETS),
        FilterRule(DEFAULT_RULE, ALL_BUCKETS),
    ),
    valid_until_ms=NOW_MS + 1,
)
OWNS_NOTHING = replace(TABLE, rules=(replace(TABLE.rules[0], current=0), TABLE.rules[1]))


@pytest.fixture
def shared() -> Iterator[SharedTable]:
    made = SharedTable()
    made.write(NOTHING)
    yield made
    made.close()


class FakePacket:
    """A queued packet that remembers its verdict."""

    def __init__(self, hook: int = 1, **fields: object) -> None:
        segment = TCP(**({"sport": 4000, "dport": 80, "flags": "S"} | fields))
        ends = (VIP, "10.1.0.7") if hook == 3 else ("10.1.0.7", VIP)
        self._payload = bytes(IP(src=ends[0], dst=ends[1]) / segment)
        self.hook = hook
        self.verdict = ""

    def get_payload(self) -> bytes:
        return self._payload

    def accept(self) -> None:
        self.verdict += "accept"

    def drop(self) -> None:
        self.verdict += "drop"


class Host(NoSockets):
    """No connections but the SYN-ACKs that were sent."""

    def __init__(self, syn_acks: SynAcks) -> None:
        self.syn_acks = syn_acks

    def tcp_state(self, flow: Flow) -> str | None:
        return "SYN_RECV"

    def acknowledges_syn_ack(self, flow: Flow) -> bool:
        return self.syn_acks.acknowledged_by(flow)


def callback(shared: SharedTable, clock: Clock) -> Callable[[FakePacket], None]:
    syn_acks = SynAcks()
    return verdict_callback(shared, "eth0", Host(syn_acks), syn_acks, clock)


def test_what_is_written_is_read(shared: SharedTable) -> None:
    for table in (TABLE, OWNS_NOTHING, TABLE):
        shared.write(table)
        sequence, lease = shared.stamp()
        assert (shared.read(sequence), lease) == (table, NOW_MS + 1)
        assert shared.read(sequence - 1) is None


def test_a_table_of_every_rule_and_many_addresses_fits(shared: SharedTable) -> None:
    addresses = tuple(ip_address("10.1.0.0") + number for number in range(32))
    rules = tuple(
        FilterRule(PortRule(None, port, port), ALL_BUCKETS, ALL_BUCKETS)
        for port in range(SLOTS_MAX)
    )
    large = replace(TABLE, cluster_ip_addresses=addresses, rules=rules)
    shared.write(large)
    assert shared.read(shared.stamp()[0]) == large


def test_a_table_that_does_not_fit_is_refused_and_the_old_one_stays(shared: SharedTable) -> None:
    shared.write(TABLE)
    huge = replace(TABLE, local_ip_addresses=tuple(ip_address(n) for n in range(40_000)))
    with pytest.raises(SoftnlbError, match="filter table takes"):
        shared.write(huge)
    assert shared.read(shared.stamp()[0]) == TABLE


def test_a_verdict_under_way_is_waited_for_but_not_for_ever(
    shared: SharedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_VERDICT_MAX_S", 0.01)
    shared.write(TABLE)
    assert shared.wait_for_old_verdicts()
    waited = []

    class Slow(FakePacket):
        def accept(self) -> None:
            waited.append(shared.wait_for_old_verdicts())

    callback(shared, lambda: NOW_MS)(Slow())
    assert waited == [False]
    assert shared.wait_for_old_verdicts()


def test_the_newest_table_and_lease_decide(shared: SharedTable) -> None:
    clock = [NOW_MS]
    verdict = callback(shared, lambda: clock[0])

    def of_a_syn() -> str:
        packet = FakePacket()
        verdict(packet)
        return packet.verdict

    shared.write(TABLE)
    assert of_a_syn() == "accept"
    clock[0] += 1
    assert of_a_syn() == "drop"
    shared.renew(clock[0] + 1)
    assert of_a_syn() == "accept"
    shared.write(replace(OWNS_NOTHING, valid_until_ms=clock[0] + 1))
    assert of_a_syn() == "drop"
    assert shared.counters() == {"owner": 2, "no-lease": 1, "not-mine": 1}
    assert shared.counters(0) == shared.counters()
    assert shared.counters(1) == {}


def test_a_syn_ack_passes_and_tells_our_half_open_connections_from_others(
    shared: SharedTable,
) -> None:
    shared.write(OWNS_NOTHING)
    verdict = callback(shared, lambda: NOW_MS)
    sent = FakePacket(3, sport=80, dport=4000, flags="SA", seq=0xFFFFFFFF)
    ours, others = FakePacket(flags="A", ack=0), FakePacket(flags="A", ack=1)
    for packet in (sent, ours, others):
        verdict(packet)
    assert [p.verdict for p in (sent, ours, others)] == ["accept", "accept", "drop"]


def test_syn_acks_are_remembered_for_65536_connections() -> None:
    memory = SynAcks()
    outgoing = flow_from_text(f"{VIP}:80", "10.1.0.7:1", "tcp")
    answer = flow_from_text("10.1.0.7:1", f"{VIP}:80", "tcp")._replace(flags=ACK)
    for number in range(3 * 65536):
        client = (number + (10 << 24)).to_bytes(4, "big")
        memory.sent(outgoing._replace(destination=client, sequence=number))
    newest, lost = (3 * 65536 - 1, 2 * 65536), (0, 65535)
    for number in (*newest, *lost):
        client = (number + (10 << 24)).to_bytes(4, "big")
        heard = answer._replace(source=client, acknowledgment=number + 1)
        assert memory.acknowledged_by(heard) == (number in newest)
