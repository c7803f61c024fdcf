"""Whether many rules and hosts cost more per packet than one rule: the eBPF programs, in ns.

Two copies of the program run by turns on the same packet, one with the rule alone, one with 31 more
before it; each is one of 32 hosts.  BPF_PROG_TEST_RUN, so these are lower bounds, as in ``cost``.
"""

import statistics
from contextlib import ExitStack
from typing import Any

from convergence.rules import BUCKETS, DEFAULT_RULE, Affinity, PortRule, Protocol
from labs.bench.cost import (
    CLUSTER_MAC,
    FIRST_PORT,
    IPV4,
    MAC,
    PLANES,
    REPEAT,
    expect,
    tcp,
    udp,
)
from labs.bench.filters import LEASE_MS
from softnlb import libbpf
from softnlb.ebpf_program import Program
from softnlb.filter import (
    FilterRule,
    FilterTable,
    Reason,
    default_hash_seed,
    hash_key,
    hash_of,
)
from softnlb.packet import SYN
from softnlb.verdicts import now_ms

RUNS, RULES, HOSTS = 21, 32, 32
SEED = default_hash_seed(IPV4.vips[0])


def rules_costs() -> list[dict[str, Any]]:
    """A row for each kind of packet and program: 32 rules beside 1; in fresh namespaces.

    Raises DataPlaneUnavailable where eBPF cannot work.
    """
    last = FIRST_PORT + RULES - 1
    one, many = _table((last,)), _table(tuple(range(FIRST_PORT, last + 1)))
    packets = [
        ("foreign SYN dropped", tcp(SYN, _client_port(False), last), Reason.NOT_MINE),
        ("owner's SYN kept", tcp(SYN, _client_port(True), last), Reason.OWNER),
        ("owner's datagram kept", udp(_client_port(True), last), Reason.OWNER),
    ]
    rows = []
    for name, plane in PLANES.items():
        with ExitStack() as loaded:
            programs = []
            for table in (one, many):
                program = Program(name)
                loaded.callback(program.close)
                program.write(table, MAC)
                programs.append(program)
            for packet, frame, reason in packets:
                for program in programs:
                    expect(program, packet, frame, reason)
                rows.append(_beside(packet, plane, programs, frame))
    return rows


def _beside(packet: str, plane: str, programs: list[Program], frame: bytes) -> dict[str, Any]:
    samples: list[list[float]] = [[], []]
    for turn in range(RUNS):
        for number in (0, 1) if turn % 2 else (1, 0):
            samples[number].append(libbpf.run(programs[number].descriptor, frame, REPEAT)[1])
    one_ns, many_ns = map(min, samples)
    return {
        "what": f"{packet}: {RULES} rules beside 1",
        "hosts": HOSTS,
        "plane": plane,
        "value": round(many_ns / one_ns, 3),
        "unit": f"x ({many_ns:.0f} : {one_ns:.0f} ns)",
        "median": round(statistics.median(b / a for a, b in zip(*samples, strict=True)), 3),
        "samples": samples,
        "beside": {},
    }


def _table(ports: tuple[int, ...]) -> FilterTable:
    """A rule for each port, of whose buckets this is one host of 32."""
    rules = [PortRule(None, port, port, Protocol.BOTH, affinity=Affinity.NONE) for port in ports]
    mine = sum(1 << bucket for bucket in range(0, BUCKETS, HOSTS))
    return FilterTable(
        "eth0",
        CLUSTER_MAC,
        IPV4.vips,
        IPV4.vips,
        SEED,
        tuple(FilterRule(rule, mine) for rule in (*rules, DEFAULT_RULE)),
        valid_until_ms=now_ms() + LEASE_MS,
    )


def _client_port(mine: bool) -> int:
    """A port of the client whose bucket is this host's, or another's."""
    for port in range(50_000, 60_000):
        key = hash_key(Affinity.NONE, IPV4.client.packed, port)
        if (hash_of(key, SEED) % BUCKETS % HOSTS == 0) == mine:
            return port
    raise AssertionError("ten thousand ports in the same bucket")
