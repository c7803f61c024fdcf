"""Remote control: other hosts obey whoever has the cluster key, and nobody else."""

import json
import os
import secrets
import select
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convergence.auth import Authentication, Key, Keyring, sign
from softnlb.remote import RemoteControl
from softnlb.remote_frame import Datagram, Kind, RemoteError, decode, encode
from tests.netns import Namespace, Segment, wait_for
from tests.test_agent import VIP, Host, start_all

SOFTNLB = Path(sys.executable).with_name("softnlb")
SECRET = "5b" * 32
KEY = Key(7, bytes.fromhex(SECRET))
OTHER = Key(7, b"x" * 32)
QUESTION = b"q" * 16
ORDER = Datagram(Kind.ORDER, QUESTION, b"t" * 16, 0, {"verb": "stop"})


def test_a_datagram_comes_back_as_it_was():
    assert decode(encode(ORDER, KEY), (OTHER, KEY)[1:]) == ORDER


@pytest.mark.parametrize(
    ("data", "keys", "why"),
    [
        (encode(ORDER, KEY), (Key(8, KEY.secret),), "unknown-key"),
        (encode(ORDER, KEY), (), "unknown-key"),
        (encode(ORDER, KEY), (OTHER,), "wrong-key"),
        (encode(ORDER, KEY)[:-1], (KEY,), "wrong-key"),
        (encode(ORDER, KEY)[:40], (KEY,), "malformed"),
        (b"", (KEY,), "malformed"),
        (b"x" * 9000, (KEY,), "malformed"),
        (sign(b"\xbf\x01\xde\xc0" + bytes(1492), KEY), (KEY,), "malformed"),
    ],
)
def test_what_is_not_authentic_is_refused_with_the_reason(data, keys, why):
    with pytest.raises(RemoteError) as refused:
        decode(data, keys)
    assert refused.value.why == why


@given(place=st.integers(0, len(encode(ORDER, KEY)) - 1), bit=st.integers(0, 7))
def test_no_bit_can_be_turned(place, bit):
    data = bytearray(encode(ORDER, KEY))
    data[place] ^= 1 << bit
    with pytest.raises(RemoteError):
        decode(bytes(data), (KEY,))


def test_a_body_that_is_no_object_is_malformed():
    for body in (b"[]", b"", b"\xff", b"[" * 4000):
        data = encode(ORDER, KEY)[:44] + body
        from softnlb.remote_frame import _mac

        with pytest.raises(RemoteError, match="malformed"):
            decode(data + _mac(data, KEY), (KEY,))


# ---------------------------------------------------------------- three hosts


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Host], Namespace]]:
    """Three hosts with remote control, converged, and a client in their subnet."""
    directory = tmp_path_factory.mktemp("remote")
    segment = Segment()
    hosts = [Host(segment, host_id, directory) for host_id in (1, 2, 3)]
    for host in hosts:
        key = host.directory / "cluster.key"
        key.write_text(f"7 {SECRET}")
        key.chmod(0o600)
        host.configure(cluster='key_file = "cluster.key"\nremote_control = true')
    client = segment.node("client", "10.1.0.200/24")
    try:
        start_all(hosts)
        yield hosts, client
    finally:
        for host in hosts:
            host.end(9)
        segment.close()


def softnlb(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SOFTNLB_RUN_DIR": str(host.socket.parent)}
    command = [str(SOFTNLB), *words]
    return host.node.call(
        lambda: subprocess.run(command, env=environment, capture_output=True, text=True)
    )


def orders(host: Host) -> int:
    return sum(event["name"] == "remote-order" for event in host.ask("display")["events"])


def nlb(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SOFTNLB_RUN_DIR": str(host.socket.parent)}
    command = [str(SOFTNLB.with_name("nlb")), *words]
    return host.node.call(
        lambda: subprocess.run(command, env=environment, capture_output=True, text=True)
    )


def test_nlb_reaches_one_host_all_of_a_cluster_or_only_those_here(places):
    hosts, _client = places
    one = nlb(hosts[0], "query", f"{VIP}:2")
    assert "Host 2 has converged. Members of the cluster:\n1, 2, 3" in one.stdout, one.stderr
    for words in (("query", VIP), ("query", "all", "global", "/PASSW", "secret")):
        every = nlb(hosts[0], *words)
        assert every.stdout.count("Members of the cluster:") == 3, every.stdout + every.stderr
        assert every.stdout.count(f"Cluster {VIP}") == 1
    for words in (("query",), ("query", VIP, "/LOCAL"), ("query", "all", "global", "/LOCAL")):
        assert nlb(hosts[0], *words).stdout.count("Members of the cluster:") == 1
    nobody = nlb(hosts[0], "query", f"{VIP}:7")
    assert (nobody.returncode, "Host 7:" in nobody.stdout) == (1, True)
    assert nlb(hosts[0], "query", VIP, "/PORT", "99").returncode == 2


def test_any_member_drains_and_starts_another_host(places):
    hosts, _client = places
    done = softnlb(hosts[0], "drainstop", f"{VIP}:3")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{VIP}:3: the host takes no new connections" in done.stdout
    hosts[2].wait_state("stopped")
    assert [host.state() for host in hosts[:2]] != ["stopped", "stopped"]
    # A stopped host has no cluster IP address and is in nobody's view: it hears all the same.
    started = softnlb(hosts[1], "start", f"{VIP}:10.1.0.3", "--json")
    assert json.loads(started.stdout)["message"] == "the host joins the cluster"
    hosts[2].wait_state("converged")
    wait_for(lambda: hosts[0].ask("query")["members"] == [1, 2, 3])
    assert orders(hosts[2]) == 2


def test_a_cluster_alone_is_all_its_hosts(places):
    hosts, _client = places
    wait_for(lambda: all(host.state() == "converged" for host in hosts))
    answers = json.loads(softnlb(hosts[1], "query", VIP, "--json").stdout)
    assert [answer["host_id"] for answer in answers] == [1, 2, 3]
    assert softnlb(hosts[1], "disable", "all:80", VIP).returncode == 0
    wait_for(lambda: all(host.ask("maps")["buckets"] == 0 for host in hosts))
    assert softnlb(hosts[1], "enable", "all:80", VIP).returncode == 0
    wait_for(lambda: sum(host.ask("maps")["buckets"] for host in hosts) == 60)


def test_what_a_host_refuses_comes_back_in_a_sentence(places):
    hosts, _client = places
    refused = softnlb(hosts[0], "drain", "all:81", f"{VIP}:2")
    assert refused.returncode == 1
    assert "no port rule" in refused.stderr
    document = json.loads(softnlb(hosts[0], "drain", "all:81", f"{VIP}:2", "--json").stdout)
    assert document["code"] == "NOT_FOUND"
    assert document["error"].count("NOT_FOUND") == 1
    nobody = softnlb(hosts[0], "stop", f"{VIP}:9")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.endswith("no answer within 3 s (TIMEOUT)\n")


class Asker:
    """A client that speaks the protocol by hand."""

    def __init__(self, client: Namespace) -> None:
        self.socket = client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.socket.settimeout(0.3)

    def send(self, data: bytes, to: str = VIP) -> None:
        self.socket.sendto(data, (to, 2504))

    def heard(self) -> list[bytes]:
        """All that comes until nothing comes any more."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(9000))
            except TimeoutError:
                return found


def test_the_cluster_ip_address_reaches_every_host_and_an_order_is_obeyed_once(places):
    hosts, client = places
    wait_for(lambda: all(host.state() == "converged" for host in hosts))
    asker, question = Asker(client), secrets.token_bytes(16)
    asker.send(encode(Datagram(Kind.HELLO, question, body={"cluster": VIP, "host": "all"}), KEY))
    tickets = {one.host_id: one.ticket for one in (decode(d, (KEY,)) for d in asker.heard())}
    assert sorted(tickets) == [1, 2, 3]
    before = orders(hosts[1])
    body = {"verb": "enable", "port": "all"}
    order = encode(Datagram(Kind.ORDER, question, tickets[2], body=body), KEY)
    for _ in range(3):
        asker.send(order, "10.1.0.2")
    answers = [decode(data, (KEY,)) for data in asker.heard()]
    assert [(answer.host_id, answer.body["ok"]) for answer in answers] == [(2, True)] * 3
    assert orders(hosts[1]) == before + 1
    # Another sender, another question, a ticket that nobody gave: silence.
    other = Asker(client)
    other.send(order, "10.1.0.2")
    forged = Datagram(Kind.ORDER, secrets.token_bytes(16), tickets[2], body={"verb": "stop"})
    asker.send(encode(forged, KEY), "10.1.0.2")
    assert other.heard() == asker.heard() == []
    assert orders(hosts[1]) == before + 1
    other.socket.close()
    asker.socket.close()


def test_an_answer_is_never_longer_than_what_anybody_could_have_asked_for_free(places):
    """No amplification: a ticket is not longer than the HELLO that asks for it."""
    hello = encode(Datagram(Kind.HELLO, QUESTION, body={"cluster": VIP, "host": "1"}), KEY)
    ticket = encode(Datagram(Kind.TICKET, QUESTION, b"t" * 16, 1), KEY)
    assert len(ticket) <= len(hello)


def test_garbage_is_met_with_silence_and_a_wrong_key_is_told(places):
    hosts, client = places
    asker = Asker(client)
    hello = Datagram(Kind.HELLO, QUESTION, body={"cluster": VIP, "host": "all"})
    for data in (
        b"",
        b"x" * 1400,
        encode(hello, KEY)[:-1] + b"x",
        encode(Datagram(Kind.HELLO, QUESTION, body={"cluster": "10.9.9.9", "host": "all"}), KEY),
        encode(Datagram(Kind.HELLO, QUESTION, body={"cluster": [], "host": {}}), KEY),
        encode(Datagram(Kind.ANSWER, QUESTION, body={"ok": True}), KEY),
        encode(ORDER, KEY),
        encode(hello, OTHER),
        encode(hello, Key(99, KEY.secret)),
    ):
        asker.send(data, "10.1.0.1")
    assert asker.heard() == []
    names = [event["name"] for event in hosts[0].ask("display")["events"]]
    assert names.count("remote-control-refused") == 1  # once per source and minute
    assert "Traceback" not in hosts[0].log()
    asker.socket.close()


def test_only_the_verbs_of_remote_control_are_obeyed(places):
    _hosts, client = places
    asker = Asker(client)
    for verb in ("reload", "display", "params", "maps", "answer", None, {"a": 1}, "x" * 3000):
        question = secrets.token_bytes(16)
        hello = Datagram(Kind.HELLO, question, body={"cluster": VIP, "host": "1"})
        asker.send(encode(hello, KEY), "10.1.0.1")
        (ticket,) = (decode(data, (KEY,)) for data in asker.heard())
        order = Datagram(Kind.ORDER, question, ticket.ticket, body={"verb": verb})
        asker.send(encode(order, KEY), "10.1.0.1")
        (answer,) = (decode(data, (KEY,)) for data in asker.heard())
        assert answer.body["ok"] is False
    asker.socket.close()


def forge(to: Host, per_second: int, running: threading.Event) -> int:
    """Datagrams under every address of the subnet, with a wrong key, to one host; how many.

    Inside the namespace of the client.
    """
    (link,) = json.loads(to.node.run("ip -json link show eth0"))
    data = encode(Datagram(Kind.HELLO, QUESTION, body={"cluster": VIP, "host": "all"}), OTHER)
    header = bytes.fromhex(link["address"].replace(":", "")) + b"\x02bad!!\x08\x00"
    frames = []
    for source in range(1, 255):
        addresses = bytes((10, 1, 0, source, 10, 1, 0, to.host_id))
        ip = struct.pack("!BBHIBBH8s", 0x45, 0, 28 + len(data), 0, 64, 17, 0, addresses)
        total = sum(struct.unpack("!10H", ip))
        checksum = 0xFFFF - (total + total // 0x10000) % 0x10000
        ip = ip[:10] + checksum.to_bytes(2, "big") + ip[12:]
        udp = struct.pack("!4H", 1024 + 251 * source % 60_000, 2504, 8 + len(data), 0)
        frames.append(header + ip + udp + data)
    sent, began_s = 0, time.monotonic()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as mouth:
        mouth.bind(("eth0", 0))
        while running.is_set():
            due = int((time.monotonic() - began_s) * per_second)
            for number in range(sent, due):
                mouth.send(frames[number % len(frames)])
            sent = max(sent, due)
            select.select([], [], [], 0.002)
    return int(sent / (time.monotonic() - began_s))


def used_s(host: Host) -> float:
    """Of a processor, by the agent."""
    fields = Path(f"/proc/{host.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Alone:
    """Remote control on the loopback interface, with a clock that stands still."""

    def __init__(self, node: Namespace) -> None:
        self.orders: list[str] = []
        self._node = node
        config = SimpleNamespace(
            interface="lo",
            remote_control_port=2504,
            keyring=Keyring((KEY,), Authentication.ENFORCE),
            host_id=1,
            cluster_ip_addresses=(ip_interface("127.0.0.1/8"),),
            dedicated_ip_address=ip_interface("127.0.0.1/8"),
            dedicated_ip_addresses=(ip_address("127.0.0.1"),),
        )
        agent = SimpleNamespace(config=config, now_ms=lambda: 1000, tell=lambda event: None)
        self._loop = selectors.DefaultSelector()
        self.control = RemoteControl(agent, self._obey, self._loop)
        node.call(self.control.open)

    def _obey(self, verb: str, arguments: object) -> dict[str, object]:
        self.orders.append(verb)
        return {}

    def turn(self) -> None:
        """All that has come."""
        while found := self._loop.select(0):
            for key, _ in found:
                key.data()
            self.control.advance(1_000_000)

    def asker(self, source: str) -> socket.socket:
        """A client."""
        made = self._node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind((source, 0))
        made.connect(("127.0.0.1", 2504))
        made.setblocking(False)
        return made

    def close(self) -> None:
        """Its sockets."""
        self.control.close()
        self._loop.close()


@pytest.mark.parametrize("key", [OTHER, KEY], ids=["forged", "recorded"])
def test_what_others_send_displaces_no_order(key):
    """3,000 datagrams from 100 addresses at one moment, before the question and the order."""
    node = Namespace("alone")
    alone = Alone(node)
    others = [alone.asker(f"127.0.1.{place}") for place in range(1, 101)]
    client, question = alone.asker("127.0.0.9"), secrets.token_bytes(16)

    def disturb() -> None:
        body = {"cluster": "127.0.0.1", "host": "1"}
        for _ in range(30):
            for other in others:
                data = Datagram(Kind.HELLO, secrets.token_bytes(16), body=body)
                other.send(encode(data, key))
            alone.turn()

    try:
        disturb()
        body = {"cluster": "127.0.0.1", "host": "1"}
        client.send(encode(Datagram(Kind.HELLO, question, body=body), KEY))
        alone.turn()
        ticket = decode(client.recv(9000), (KEY,)).ticket
        disturb()
        order = encode(Datagram(Kind.ORDER, question, ticket, body={"verb": "stop"}), KEY)
        for _ in range(20):
            client.send(order)
        others[0].send(order)
        alone.turn()
        answers = [decode(client.recv(9000), (KEY,)).body["ok"] for _ in range(10)]
        assert (answers, alone.orders) == ([True] * 10, ["stop"])
        with pytest.raises(BlockingIOError):
            client.recv(9000)
    finally:
        for opened in (client, *others):
            opened.close()
        alone.close()
        node.close()


@pytest.mark.parametrize("per_second", [2_000, 20_000])
def test_orders_are_obeyed_in_a_flood_under_forged_addresses(places, per_second):
    hosts, client = places
    wait_for(lambda: all(host.state() == "converged" for host in hosts))
    before = [host.ask("query")["convergence_count"] for host in hosts]
    running = threading.Event()
    running.set()
    with ThreadPoolExecutor() as pool:
        flood = pool.submit(client.call, forge, hosts[1], per_second, running)
        try:
            began_s, cpu_s = time.monotonic(), used_s(hosts[1])
            asked = [softnlb(hosts[0], "query", f"{VIP}:2") for _ in range(4)]
            cores = (used_s(hosts[1]) - cpu_s) / (time.monotonic() - began_s)
        finally:
            running.clear()
    assert flood.result() > 0.7 * per_second
    assert [done.stderr for done in asked] == [""] * 4
    assert cores < 0.75
    assert [host.ask("query")["convergence_count"] for host in hosts] == before


def test_hosts_with_ipv6_addresses_alone_obey_too(tmp_path):
    """There is no broadcast: the command asks all nodes on the link."""
    segment = Segment()
    hosts = [Host(segment, host_id, tmp_path) for host_id in (1, 2)]
    try:
        for host in hosts:
            key = host.directory / "cluster.key"
            key.write_text(f"7 {SECRET}")
            key.chmod(0o600)
            host.configure(cluster='key_file = "cluster.key"\nremote_control = true')
            text = host.config.read_text().replace("10.1.0.100/24", "2001:db8::100/64")
            own = f"2001:db8::{host.host_id}/64"
            host.config.write_text(text.replace(f"10.1.0.{host.host_id}/24", own))
            host.socket = host.socket.with_name(f"2001:db8::100:{host.host_id}.sock")
            host.node.run(f"ip address add {own} dev eth0 nodad")
        start_all(hosts)
        answer = softnlb(hosts[0], "query", "[2001:db8::100]:2001:db8::2")
        assert "Host 2 has converged" in answer.stdout, answer.stderr
        assert softnlb(hosts[1], "stop", "[2001:db8::100]:1").returncode == 0
        wait_for(lambda: hosts[0].state() == "stopped", timeout_s=30)
    finally:
        for host in hosts:
            host.end(9)
        segment.close()


def test_without_a_key_there_is_no_remote_control(tmp_path):
    file = tmp_path / "cluster.toml"
    text = (
        '[cluster]\nip_address = "10.1.0.100/24"\nremote_control = true\n'
        '[host]\nid = 1\ninterface = "eth0"\ndedicated_ip_address = "10.1.0.1/24"\n'
    )
    file.write_text(text)
    done = subprocess.run([SOFTNLB, "config", "check", file], capture_output=True, text=True)
    assert done.returncode == 2
    assert "remote_control" in done.stderr
    assert "key_file" in done.stderr
