"""Port rules end to end: loads as the wire shows them, and what operators do with a rule."""

import random
import signal
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from softnlb.cli import run
from softnlb.errors import ReturnCode, SoftnlbError
from tests.netns import Namespace, Segment, wait_for
from tests.test_agent import VIP, Host

CLUSTER_MAC = bytes.fromhex("02bf0a010064")
CLIENTS = 20_000
AT_A_TIME = 1000

WEIGHED = """
[[port_rule]]
ports = "53"
protocol = "udp"
load_weight = {weight}
"""

SEVERAL = """
[[port_rule]]
cluster_ip_address = "10.1.0.100"
ports = "80"
[[port_rule]]
ports = "80-90"
[[port_rule]]
cluster_ip_address = "10.1.0.101"
ports = "443"
protocol = "tcp"
[[port_rule]]
cluster_ip_address = "10.1.0.101"
ports = "443"
protocol = "udp"
"""


@pytest.fixture
def segment() -> Iterator[Segment]:
    """A segment; what runs in it is the test's to end."""
    made = Segment()
    yield made
    made.close()


@pytest.fixture
def hosts(segment: Segment, tmp_path: Path) -> Iterator[list[Host]]:
    """Two hosts, no agent running."""
    made = [Host(segment, host_id, tmp_path) for host_id in (1, 2)]
    yield made
    for host in made:
        host.end(signal.SIGKILL)


def with_rules(host: Host, rules: str) -> None:
    """Write the host's configuration with these rules instead of its own."""
    host.configure(cluster='additional_ip_addresses = ["10.1.0.101/24"]')
    before, _, _ = host.config.read_text().partition("[[port_rule]]")
    host.config.write_text(before + rules)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One converged host with several rules, which the command line of this process finds."""
    segment = Segment()
    host = Host(segment, 1, tmp_path_factory.mktemp("shared"))
    with_rules(host, SEVERAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTNLB_RUN_DIR", str(host.socket.parent))
        try:
            host.start()
            host.wait_state("converged")
            yield host
        finally:
            host.end(signal.SIGKILL)
            segment.close()


def datagram(client: int) -> bytes:
    """A frame with a UDP datagram of 12 bytes to port 53 of the cluster, from this address."""
    addresses = client.to_bytes(4, "big") + IPv4Address(VIP).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    words = sum(struct.unpack("!10H", header))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    header = header[:10] + (words ^ 0xFFFF).to_bytes(2, "big") + header[12:]
    ethernet = CLUSTER_MAC + bytes.fromhex("020000000001") + b"\x08\x00"
    return ethernet + header + struct.pack("!HHHH", 40_000, 53, 20, 0) + bytes(12)


def seen_by(host: Host) -> int:
    """Datagrams that this host has decided about."""
    answer = host.ask("queryport", port=53)
    return int(answer["accepted"] + answer["dropped"])


def send(client: Namespace, hosts: list[Host]) -> None:
    """One datagram from each of many clients; each host must have seen all of them."""
    draw = random.Random(30_60)
    clients = draw.sample(range(0x0B000000, 0x0C000000), CLIENTS)  # 11.0.0.0/8, routed nowhere
    before = [seen_by(host) for host in hosts]
    with client.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for at in range(0, CLIENTS, AT_A_TIME):
            for address in clients[at : at + AT_A_TIME]:
                wire.send(datagram(address))
            for host, first in zip(hosts, before, strict=True):
                wait_for(lambda: seen_by(host) - first == at + AT_A_TIME)  # noqa: B023


def test_weights_30_and_60_share_20000_clients_one_to_two(
    segment: Segment, hosts: list[Host]
) -> None:
    """Microsoft Q198496: weights 30 and 60 mean a third and two thirds."""
    client = segment.node("client", "10.1.0.200/24")
    for host, weight in zip(hosts, (30, 60), strict=True):
        with_rules(host, WEIGHED.format(weight=weight))
        host.start()
    for host, buckets in zip(hosts, (20, 40), strict=True):
        wait_for(lambda: host.state() == "converged", timeout_s=10)  # noqa: B023
        wait_for(lambda: host.ask("queryport", port=53)["buckets"] == buckets)  # noqa: B023
    send(client, hosts)
    shares = [host.ask("queryport", port=53)["accepted"] / CLIENTS for host in hosts]
    assert sum(shares) == 1, "each client has exactly one host"
    assert shares[0] == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("ports", "changed"),
    [
        ("10.1.0.100:80", {0}),
        ("10.1.0.101:443", {2, 3}),
        ("10.1.0.101:all", {2, 3}),
        ("10.1.0.101", {2, 3}),
        ("all:80", {0, 1}),
        ("all:85", {1}),
        ("all", {0, 1, 2, 3}),
    ],
)
def test_operators_name_rules_as_nlb_does(shared: Host, ports: str, changed: set[int]) -> None:
    for verb, state in (("disable", "disabled"), ("drain", "draining"), ("enable", "enabled")):
        assert run([verb, ports]) == 0
        states = [rule["state"] for rule in shared.ask("display")["rules"][:4]]
        wanted = [state if slot in changed else "enabled" for slot in range(4)]
        assert states == wanted


@pytest.mark.parametrize(
    ("address", "port", "protocol", "rule"),
    [
        ("10.1.0.100", 80, None, "10.1.0.100:80/both"),  # a rule for the address beats one for All
        ("10.1.0.101", 80, None, "all:80-90/both"),
        ("10.1.0.101", 443, "udp", "10.1.0.101:443/udp"),
        (None, 85, None, "all:80-90/both"),
    ],
)
def test_queryport_names_the_rule_that_covers_the_port(shared, address, port, protocol, rule):
    answer = shared.ask("queryport", cluster_ip_address=address, port=port, protocol=protocol)
    assert answer["rule"].startswith(rule)
    assert answer["state"] == "enabled"


@pytest.mark.parametrize(
    ("verb", "arguments", "code"),
    [
        ("queryport", {"port": 85, "cluster_ip_address": "10.1.0.99"}, ReturnCode.NOT_FOUND),
        ("queryport", {"port": 22}, ReturnCode.NOT_FOUND),
        ("queryport", {"port": 443}, ReturnCode.BAD_PARAMS),
        ("queryport", {"port": "http"}, ReturnCode.BAD_PARAMS),
        ("launch", {}, ReturnCode.BAD_PARAMS),
        ("drainstop", {"timeout_s": "soon"}, ReturnCode.BAD_PARAMS),
        ("explain", {"client": 1, "server": 2}, ReturnCode.BAD_PARAMS),
        ("disable", {"port": 443, "cluster_ip_address": "10.1.0.100"}, ReturnCode.NOT_FOUND),
    ],
)
def test_what_is_refused_carries_nlbs_return_code(shared, verb, arguments, code):
    with pytest.raises(SoftnlbError) as refused:
        shared.ask(verb, **arguments)
    assert refused.value.code is code
    assert str(refused.value).endswith(f"({code.name})")
