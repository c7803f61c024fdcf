"""Explaining a flow: known keys, hashes and buckets, and who would take it."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from convergence.rules import DEFAULT_RULE, Affinity, FilteringMode, PortRule, Protocol
from modes.plan import Mode
from softnlb.config import ClusterConfig
from softnlb.errors import UsageError
from softnlb.explain import UNKNOWN_OWNER, explain_flow, explain_offline, rule_text
from softnlb.filter import FilterRule, FilterTable

VIP, OTHER_VIP = IPv4Address("10.1.0.100"), IPv4Address("10.1.0.101")
CLIENT, SERVER = "10.0.0.7:40000", "10.1.0.100:80"
SEED = 0x0A010064
KEYS = ["rule", "affinity", "key", "hash", "bucket", "owner", "verdict", "reason"]

WEB = PortRule(None, 80, 80, Protocol.TCP, affinity=Affinity.NONE)
RULES = (
    WEB,
    PortRule(None, 443, 443),
    PortRule(OTHER_VIP, 8000, 8100, Protocol.UDP, affinity=Affinity.NETWORK),
    PortRule(None, 22, 22, Protocol.TCP, FilteringMode.SINGLE_HOST),
    PortRule(None, 25, 25, Protocol.BOTH, FilteringMode.DISABLED),
)

CONFIG = ClusterConfig(
    path=Path("host.toml"),
    cluster_ip_addresses=(IPv4Interface("10.1.0.100/24"), IPv4Interface("10.1.0.101/24")),
    mode=Mode.UNICAST,
    alive_message_period_ms=1000,
    alive_message_tolerance=5,
    hash_seed=SEED,
    filter_icmp=False,
    port_rules=RULES,
    load_weights=(50,) * len(RULES),
    handling_priorities=(4,) * len(RULES),
    host_id=4,
    interface="eth0",
    dedicated_ip_address=IPv4Interface("10.1.0.4/24"),
    initial_state="started",
    retain_suspended=False,
    data_plane="auto",
)


def table(current: int = (1 << 60) - 1, **changes: object) -> FilterTable:
    made = FilterTable(
        interface="eth0",
        cluster_mac=b"\x02\xbf\x0a\x01\x00\x64",
        cluster_ip_addresses=(VIP, OTHER_VIP),
        local_ip_addresses=(VIP, OTHER_VIP),
        hash_seed=SEED,
        rules=tuple(FilterRule(rule, current) for rule in (*RULES, DEFAULT_RULE)),
        valid_until_ms=1000,
    )
    return replace(made, **changes)


def explain(made: FilterTable, server: str = SERVER, protocol: str = "tcp", now_ms: int = 0):
    return explain_flow(made, CLIENT, server, protocol, lambda slot, bucket: 3, lambda: now_ms)


# The numbers come from an implementation of murmur3 by hand, below, and were written down.
KNOWN = [
    ("tcp", SERVER, "none", "0a0000079c40", 2011444960, 40),
    ("tcp", "10.1.0.100:443", "single", "0a000007", 3493637500, 40),
    ("udp", "10.1.0.101:8050", "network", "0a000000", 704950142, 2),
]


def murmur3(key: bytes, seed: int) -> int:
    """The 32-bit murmur3 of its public description, to check the library that everybody uses."""
    hashed, tail = seed, len(key) // 4 * 4
    words = [int.from_bytes(key[at : at + 4], "little") for at in range(0, len(key), 4)]
    for number, word in enumerate(words):
        word = word * 0xCC9E2D51 & 0xFFFFFFFF
        word = (word << 15 | word >> 17) & 0xFFFFFFFF
        hashed ^= word * 0x1B873593 & 0xFFFFFFFF
        if number * 4 < tail:
            hashed = (hashed << 13 | hashed >> 19) & 0xFFFFFFFF
            hashed = (hashed * 5 + 0xE6546B64) & 0xFFFFFFFF
    hashed ^= len(key)
    hashed = (hashed ^ hashed >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    hashed = (hashed ^ hashed >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return hashed ^ hashed >> 16


@pytest.mark.parametrize(("protocol", "server", "affinity", "key", "hashed", "bucket"), KNOWN)
def test_known_keys_hashes_and_buckets(protocol, server, affinity, key, hashed, bucket):
    assert murmur3(bytes.fromhex(key), SEED) == hashed
    explained = explain(table(), server, protocol)
    assert list(explained) == KEYS
    assert (explained["affinity"], explained["key"]) == (affinity, key)
    assert (explained["hash"], explained["bucket"]) == (hashed, bucket)
    assert explained["owner"] == 3


@pytest.mark.parametrize(
    ("protocol", "companion", "port"), [("esp", "udp", 500), ("gre", "tcp", 1723)]
)
def test_tunnels_go_where_what_agreed_upon_them_goes(protocol, companion, port):
    rule = PortRule(None, 500, 1723, Protocol.BOTH, FilteringMode.MULTIPLE_HOSTS, Affinity.SINGLE)
    made = table(rules=(FilterRule(rule, (1 << 60) - 1), FilterRule(DEFAULT_RULE)))
    explained = explain_flow(made, "10.0.0.7", str(VIP), protocol, lambda *_: 3, lambda: 0)
    assert explained == explain(made, f"{VIP}:{port}", companion)
    assert explained["rule"].startswith("all:500-1723/")


def test_the_owner_is_asked_for_the_very_slot_and_bucket():
    asked = []
    explain_flow(table(), CLIENT, SERVER, "tcp", lambda *where: asked.append(where), lambda: 0)
    assert asked == [(0, 40)]


@pytest.mark.parametrize(
    ("made", "now_ms", "verdict", "reason"),
    [
        (table(), 0, "keep", "owner"),
        (table(current=~(1 << 40)), 0, "drop", "not-mine"),
        (table(), 1000, "drop", "no-lease"),
        (table(draining=True), 0, "drop", "draining"),
        (table(started=False), 0, "drop", "stopped"),
    ],
)
def test_verdict_and_reason_of_this_host(made, now_ms, verdict, reason):
    explained = explain(made, now_ms=now_ms)
    assert (explained["verdict"], explained["reason"]) == (verdict, reason)
    assert (explained["bucket"], explained["owner"]) == (40, 3)  # also on a host that is stopped


def test_a_disabled_rule_has_no_owner():
    explained = explain(table(), "10.1.0.100:25")
    assert (explained["owner"], explained["verdict"]) == (None, "drop")
    assert explained["reason"] == "disabled"


def test_what_no_rule_covers_meets_the_default_rule():
    assert explain(table(), "10.1.0.100:9999")["rule"] == "default rule"


def test_a_foreign_server_address_is_not_the_clusters_business():
    explained = explain(table(), "10.1.0.99:80")
    assert list(explained) == KEYS
    assert (explained["rule"], explained["hash"]) == (None, None)
    assert (explained["verdict"], explained["reason"]) == ("untouched", "not-cluster")


@pytest.mark.parametrize(
    ("client", "server", "protocol"),
    [
        ("10.0.0.7", SERVER, "tcp"),
        ("10.0.0.7:70000", SERVER, "tcp"),
        (CLIENT, "web:80", "tcp"),
        (CLIENT, "", "tcp"),
        (CLIENT, SERVER, "sctp"),
        ("[2001:db8::7]:1", SERVER, "tcp"),
    ],
)
def test_flows_that_are_none(client, server, protocol):
    with pytest.raises(UsageError):
        explain_offline(CONFIG, client, server, protocol)


@pytest.mark.parametrize("server", [SERVER, "10.1.0.100:22", "10.1.0.100:9999"])
def test_offline_the_owner_is_unknown(server):
    explained = explain_offline(CONFIG, CLIENT, server, "tcp")
    assert list(explained) == KEYS
    assert (explained["owner"], explained["verdict"]) == (None, None)
    assert explained["reason"] == UNKNOWN_OWNER
    assert isinstance(explained["hash"], int)


def test_offline_with_the_live_hosts_it_is_the_fresh_start():
    # Three equal hosts: 20 buckets each, the lowest to the lowest id; bucket 40 is host 4's.
    explained = explain_offline(CONFIG, CLIENT, SERVER, "tcp", (4, 1, 2))
    assert (explained["owner"], explained["verdict"]) == (4, "keep")
    assert explained["reason"].startswith("owner (fresh-start allocation of hosts 1, 2, 4")
    four = explain_offline(CONFIG, CLIENT, SERVER, "tcp", (1, 2, 3, 4))  # 15 each: host 3
    assert (four["owner"], four["verdict"]) == (3, "drop")
    assert four["reason"].startswith("not-mine (fresh-start allocation of hosts 1, 2, 3, 4")


def test_offline_single_host_and_default_rule():
    single = replace(CONFIG, handling_priorities=(1,) * len(RULES))
    ssh = explain_offline(single, CLIENT, "10.1.0.100:22", "tcp", (2, 4))
    assert (ssh["owner"], ssh["verdict"]) == (4, "keep")  # priority 1 here beats 2 there
    default = explain_offline(single, CLIENT, "10.1.0.100:9999", "tcp", (2, 4))
    assert (default["owner"], default["verdict"]) == (2, "drop")
    disabled = explain_offline(single, CLIENT, "10.1.0.100:25", "tcp", (2, 4))
    assert (disabled["owner"], disabled["verdict"]) == (None, "drop")


def test_offline_every_bucket_has_an_owner_among_the_hosts():
    hosts = (1, 4, 32)
    owners = {
        explain_offline(CONFIG, f"10.0.{n // 250}.{n % 250}:{n + 1024}", SERVER, "tcp", hosts)[
            "owner"
        ]
        for n in range(200)
    }
    assert owners == set(hosts)


def test_offline_a_host_id_that_is_none():
    with pytest.raises(UsageError, match="33"):
        explain_offline(CONFIG, CLIENT, SERVER, "tcp", (1, 33))


def test_rules_as_text():
    assert [rule_text(rule) for rule in RULES] == [
        "all:80/tcp multiple hosts, affinity none",
        "all:443/both multiple hosts, affinity single",
        "10.1.0.101:8000-8100/udp multiple hosts, affinity network",
        "all:22/tcp single host",
        "all:25/both disabled",
    ]
    assert rule_text(replace(DEFAULT_RULE)).startswith("all:0-65535")  # equal, but the user's own
    assert rule_text(DEFAULT_RULE) == "default rule"
