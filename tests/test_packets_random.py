"""Generated packets and tables, truncated and malformed ones included: all planes agree, always.

The sockets are none; what sockets change is in the cases of tests/packets.
"""

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convergence.rules import (
    ALL_BUCKETS,
    DEFAULT_RULE,
    Affinity,
    FilteringMode,
    PortRule,
    Protocol,
)
from softnlb.filter import FilterRule, FilterTable, NoSockets, decide
from softnlb.verdicts import now_ms
from tests.netns import Segment
from tests.packets import CLUSTER_MAC, EXTENSIONS, HOST_MAC, build, flow_of
from tests.plane import inside
from tests.programs import Runner, as_programs_say, runners

PACKETS_PER_TABLE = 40
TABLES = int(os.environ.get("SOFTNLB_RANDOM_TABLES", "60"))
"""For a long run: SOFTNLB_RANDOM_TABLES=6000 is more than 100,000 packets; -s prints how many."""
LONGEST_BYTES = 3400
"""A test run has one page for the frame and the kernel's own room around it."""
VIPS = tuple(IPv4Address("10.1.0.100") + number for number in range(4))
VIPS6 = tuple(IPv6Address("2001:db8::100") + number for number in (0, 1, 32, 1 << 64))
OTHERS = tuple(map(IPv4Address, ("10.1.0.1", "10.1.0.99", "10.1.0.104", "239.255.0.100")))

maps = st.one_of(st.sampled_from((0, ALL_BUCKETS)), st.integers(0, ALL_BUCKETS))
ports = st.one_of(
    st.sampled_from((0, 79, 80, 81, 255, 256, 500, 1723, 4500, 65535)), st.integers(0, 65535)
)


@st.composite
def port_rules(draw: st.DrawFn) -> PortRule:
    start, end = sorted((draw(ports), draw(ports)))
    return PortRule(
        draw(st.sampled_from((None, *VIPS, *VIPS6))),
        start,
        end,
        draw(st.sampled_from(Protocol)),
        draw(st.sampled_from(FilteringMode)),
        draw(st.sampled_from(Affinity)),
    )


@st.composite
def tables(draw: st.DrawFn) -> FilterTable:
    rules = (*draw(st.lists(port_rules(), max_size=32)), DEFAULT_RULE)
    enabled = st.integers(0, 9).map(bool)
    return FilterTable(
        interface="eth0",
        cluster_mac=CLUSTER_MAC,
        cluster_ip_addresses=draw(st.sampled_from((VIPS[:1], VIPS, (*VIPS, *VIPS6), VIPS6))),
        local_ip_addresses=(*VIPS, *VIPS6, OTHERS[0]),
        hash_seed=draw(st.integers(0, 0xFFFF_FFFF)),
        rules=tuple(FilterRule(rule, draw(maps), draw(maps), draw(enabled)) for rule in rules),
        valid_until_ms=draw(st.sampled_from((0, now_ms() + 3_600_000))),
        started=draw(enabled),
        draining=not draw(enabled),
        filter_icmp=draw(st.booleans()),
        remote_control_port=draw(st.sampled_from((None, 80, 2504))),
    )


def fields(**choices: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    """Some of these fields; what is left out is regular."""
    return st.fixed_dictionaries({}, optional=choices)


numbers = {bits: st.integers(0, 2**bits - 1).map(str) for bits in (4, 8, 16, 32)}
port_texts = ports.map(str)
ip_fields = fields(
    src=numbers[32].map(lambda number: str(IPv4Address(int(number)))),
    dst=st.sampled_from((*map(str, VIPS), *map(str, VIPS), *map(str, OTHERS))),
    options=st.sampled_from(("0", "4", "40")),
    ihl=numbers[4],
    len=st.one_of(st.integers(0, 80).map(str), numbers[16]),
    frag=st.sampled_from(("0", "0", "8", "1480", "65528")),
    more=st.just(""),
    version=st.sampled_from(("4", "4", "4", "4", "5", "6")),
    proto=st.one_of(st.sampled_from(("1", "6", "17", "47", "50", "51", "58")), numbers[8]),
)
ip6_fields = fields(
    src=numbers[32].map(lambda number: str(IPv6Address("2001:db8::") + (int(number) << 40))),
    dst=st.sampled_from(tuple(map(str, (*VIPS6, *VIPS6, VIPS6[0] + 7)))),
    len=st.one_of(st.integers(0, 80).map(str), numbers[16]),
    version=st.sampled_from(("6", "6", "6", "4", "5")),
    next=st.one_of(
        st.sampled_from(("0", "6", "17", "43", "44", "47", "50", "58", "60")), numbers[8]
    ),
)
some_fields = fields(
    len=st.one_of(st.sampled_from(("0", "1", "2")), numbers[8]),
    next=st.one_of(st.sampled_from(("6", "17", "43", "44", "51", "58", "60")), numbers[8]),
    frag=st.sampled_from(("0", "0", "8", "1480", "65528")),
    more=st.just(""),
)
extensions = st.lists(st.tuples(st.sampled_from(tuple(EXTENSIONS)), some_fields), max_size=4)
transports = st.one_of(
    st.tuples(
        st.just("tcp"),
        fields(
            sport=port_texts,
            dport=port_texts,
            flags=st.lists(st.sampled_from("SAFRPU"), unique=True).map(lambda f: "".join(f) or "-"),
            ack=numbers[32],
            doff=numbers[4],
        ),
    ),
    st.tuples(st.just("udp"), fields(sport=port_texts, dport=port_texts, len=numbers[16])),
    st.tuples(st.sampled_from(("icmp", "icmp6")), fields(type=numbers[8], code=numbers[8])),
)
ethernet = fields(
    dst=st.sampled_from(("cluster", "cluster", "host", "broadcast")),
    vlan=st.sampled_from(("0", "0,0", "5", "0,5", "0,0,0")),
    type=st.sampled_from(("0x0800", "0x0806", "0x86dd", "0x8100", "0x0030")),
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Most are packets with something wrong somewhere; some are no packets at all."""
    layers = [("eth", draw(st.one_of(st.just({}), ethernet)))]
    if draw(st.integers(0, 19)) == 0:
        layers.append(("arp", draw(fields(target=st.sampled_from(tuple(map(str, VIPS + OTHERS)))))))
    elif draw(st.booleans()):
        regular = st.sampled_from(tuple(map(str, VIPS6))).map(lambda vip: {"dst": vip})
        layers.append(("ip6", draw(st.one_of(regular, ip6_fields))))
        layers += draw(st.one_of(st.just([]), extensions))
        layers.append(draw(transports))
    else:
        regular = st.sampled_from(tuple(map(str, VIPS))).map(lambda vip: {"dst": vip})
        layers.append(("ip", draw(st.one_of(regular, ip_fields))))
        layers.append(draw(transports))
    layers.append(("data", {"data": str(draw(st.integers(0, 64)))}))
    frame = build(layers)[:LONGEST_BYTES]
    if draw(st.integers(0, 4)) == 0:
        frame = frame[: draw(st.integers(14, len(frame)))]
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(12, len(frame) - 1))
        frame = frame[:at] + bytes((draw(st.integers(0, 255)),)) + frame[at + 1 :]
    return frame


@pytest.fixture(scope="module")
def programs() -> Iterator[list[Runner]]:
    segment = Segment()
    made = runners()
    with inside(segment.switch):
        yield made
    for runner in made:
        print(f"\n{runner.name}: {runner.runs} packets")
        runner.close()
    segment.close()


@settings(
    max_examples=TABLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(table=tables(), packets=st.lists(frames(), min_size=10, max_size=PACKETS_PER_TABLE))
def test_all_planes_agree(programs: list[Runner], table: FilterTable, packets: list[bytes]) -> None:
    for runner in programs:
        runner.install(table)
    for frame in packets:
        expected = as_programs_say(decide(table, flow_of(frame), NoSockets(), now_ms))
        for runner in programs:
            if not runner.takes(frame):
                continue
            assert runner.run(frame) == expected, (runner.name, frame.hex())
            kept_to_cluster = expected[0] == "keep" and frame[:6] == CLUSTER_MAC
            if runner.name == "softnlb_xdp" and kept_to_cluster:
                assert runner.frame == HOST_MAC + frame[6:]
            else:
                assert runner.frame == frame
