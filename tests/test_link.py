"""The life of a Link: applied, disturbed, repaired, crashed, restored."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convergence.events import ProbeHost
from convergence.machine import Machine
from modes.mac import colon_mac, w_x_y_z
from modes.plan import Mode
from modes.planner import plan_link
from softnlb import interface, netlink
from softnlb.arp_probe import INTERVAL_MS, PROBES, ArpProbe, Probes, dedicated_ipv6
from softnlb.config import load
from softnlb.errors import MachineError, SoftnlbError
from softnlb.heartbeat_socket import ETHERTYPE, Frame, HeartbeatSocket
from softnlb.link import Link, cleanup
from softnlb.serving import host_config
from tests.links import VIP, Cluster, Sniffer, cluster
from tests.netns import Namespace, wait_for

SET_LINK = 19
ROOT = Path(__file__).parent.parent

CRASHING_AGENT = """
import sys
import time
from ipaddress import IPv4Interface
from pathlib import Path
from modes.planner import plan_link
from modes.plan import Mode
from softnlb.link import Link
plan = plan_link(Mode(sys.argv[1]), "eth0", 1, (IPv4Interface("10.1.0.100/24"),))
link = Link(plan, Path(sys.argv[2]))
link.apply()
link.add_cluster_ip_addresses()
print("applied", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _private_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTNLB_RUN_DIR", str(tmp_path / "run"))


@pytest.fixture(params=list(Mode))
def one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """One host of each mode, nothing applied yet."""
    with cluster(request.param, 1, tmp_path) as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(Mode.UNICAST, 2, tmp_path) as made:
        yield made


def network(host: Namespace) -> str:
    """Everything about a host's network that an operator could see."""
    return host.run(
        "ip -d address; ip route show table all; ip rule; nft list ruleset; bridge fdb; "
        "ip maddr; sysctl -a --pattern 'net.ipv[46].conf' 2>/dev/null"
    )


def settled_network(host: Namespace) -> str:
    """Once IPv6 has finished its own start-up, which is not our doing."""

    def settled() -> bool:
        seen = host.run("ip address show eth0; ip -6 route show table local dev eth0")
        return "fe80::" in seen and "local fe80::" in seen and "tentative" not in seen

    wait_for(settled)
    return network(host)


def crash(made: Cluster, state_file: Path) -> None:
    """An agent in a process of its own that dies without a chance to clean up."""
    agent = made.hosts[0].start(
        [sys.executable, "-c", CRASHING_AGENT, str(made.mode), str(state_file)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "applied\n"
        agent.send_signal(signal.SIGKILL)


# ---------------------------------------------------------------- undo


def test_restore_leaves_nothing(one: Cluster) -> None:
    host, link = one.pairs[0]
    before = settled_network(host)
    one.start()
    applied = network(host)
    assert "inet 10.1.0.100/32 scope host" in applied
    assert colon_mac(link.plan.cluster_mac) in applied
    host.call(link.restore)
    assert network(host) == before
    assert not (one.directory / f"{one.mode}-1" / "link.json").exists()
    host.call(link.restore)
    assert network(host) == before


def test_a_link_can_be_applied_again(one: Cluster) -> None:
    host, link = one.pairs[0]
    one.start()
    host.call(link.restore)
    one.start()
    assert host.call(link.intact)


def test_cleanup_after_a_crash(one: Cluster, tmp_path: Path) -> None:
    host = one.hosts[0]
    before = settled_network(host)
    crash(one, tmp_path / "link.json")
    assert "10.1.0.100" in network(host)
    done = host.call(cleanup, tmp_path / "link.json")
    assert "removed 10.1.0.100 from eth0" in done
    assert network(host) == before
    assert host.call(cleanup, tmp_path / "link.json") == []


def test_the_next_start_repairs_a_crash(one: Cluster) -> None:
    host, link = one.pairs[0]
    before = settled_network(host)
    crash(one, one.directory / f"{one.mode}-1" / "link.json")
    one.start()
    assert host.call(link.intact)
    host.call(link.restore)
    assert network(host) == before


def test_what_somebody_else_set_since_is_left_alone(pair: Cluster) -> None:
    host, link = pair.pairs[0]
    pair.start()
    host.run("ip link set eth0 address 02:00:00:00:00:05; sysctl -w net.ipv4.conf.all.arp_ignore=2")
    host.call(link.restore)
    assert "02:00:00:00:00:05" in host.run("ip link show eth0")
    assert host.run("sysctl -n net.ipv4.conf.all.arp_ignore") == "2\n"
    assert host.run("sysctl -n net.ipv4.conf.all.arp_announce") == "0\n"


@pytest.mark.parametrize("garbage", ["", "{", "[]", "{}", '{"boot_id": 1}', "null"])
def test_a_damaged_record_is_one_sentence(pair: Cluster, tmp_path: Path, garbage: str) -> None:
    (tmp_path / "link.json").write_text(garbage)
    if garbage == '{"boot_id": 1}':
        # Of another boot: a reboot has undone it all.
        assert pair.hosts[0].call(cleanup, tmp_path / "link.json") == []
        return
    with pytest.raises(SoftnlbError, match="damaged"):
        pair.hosts[0].call(cleanup, tmp_path / "link.json")


# ---------------------------------------------------------------- refusals


def test_a_second_agent_is_refused(pair: Cluster) -> None:
    host, link = pair.pairs[0]
    pair.start()
    before = network(host)
    second = Link(link.plan, pair.directory / "second.json")
    with pytest.raises(SoftnlbError, match="another softnlb agent holds the interface eth0"):
        host.call(second.apply)
    with pytest.raises(SoftnlbError, match="another softnlb agent"):
        host.call(cleanup, pair.directory / "unicast-1" / "link.json")
    host.call(second.restore)
    assert network(host) == before


def test_a_cluster_ip_that_something_else_configured_is_refused(pair: Cluster) -> None:
    host, link = pair.pairs[0]
    host.run("ip address add 10.1.0.100/32 dev lo")
    before = settled_network(host)
    with pytest.raises(SoftnlbError, match=r"10\.1\.0\.100 is already configured"):
        host.call(link.apply)
    assert network(host) == before


@pytest.mark.parametrize(("name", "sentence"), [("eth9", "no interface eth9"), ("lo", "Ethernet")])
def test_an_interface_that_cannot_be(pair: Cluster, name: str, sentence: str) -> None:
    link = Link(plan_link(Mode.UNICAST, name, 1, (VIP,)), pair.directory / "other.json")
    with pytest.raises(SoftnlbError, match=sentence):
        pair.hosts[0].call(link.apply)


def test_a_bridge_can_be_the_cluster_interface(pair: Cluster) -> None:
    # As on a host with virtual machines: the address is on the bridge, the cable is a port of it.
    host = pair.hosts[0]
    host.run(
        "ip link add br0 type bridge; ip link set br0 addrgenmode none; ip address flush dev eth0; "
        "ip link set eth0 master br0; ip address add 10.1.0.1/24 dev br0; ip link set br0 up"
    )
    # What the bridge learns meanwhile is no matter of ours.
    ours = "ip -br address; nft list ruleset; bridge fdb | grep permanent"
    wait_for(lambda: "UP" in host.run("ip -br link show br0"))
    before = host.run(ours)
    link = pair.links[0] = pair.link(1, "br0")
    host.call(link.apply)
    link.add_cluster_ip_addresses()
    assert host.call(link.intact)

    def echo() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("10.1.0.100", 7))
        return opened

    def ask() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.sendto(b"through the bridge", ("10.1.0.100", 7))
        return True

    with host.call(echo) as listener:
        listener.settimeout(5)
        assert pair.client.call(ask)
        assert listener.recv(100) == b"through the bridge"
    assert host.run(ours) != before
    host.call(link.restore)
    assert host.run(ours) == before


def test_an_interface_with_one_mac_only_is_refused(pair: Cluster) -> None:
    host = pair.hosts[0]
    host.run("ip link add mv0 link eth0 type macvlan; ip link set mv0 addrgenmode none")
    before = settled_network(host)
    link = pair.link(1, "mv0")
    with pytest.raises(MachineError, match="mv0 cannot take a second MAC address"):
        host.call(link.apply)
    assert network(host) == before


def test_neighbours_learn_the_new_mac_of_the_dedicated_address_at_once(pair: Cluster) -> None:
    host, link = pair.pairs[0]
    former = host.run("ip -br link show eth0").split()[2]
    # The kernel would believe only one change of an entry per second.
    pair.client.run("sysctl -w net.ipv4.neigh.eth0.locktime=0")
    pair.client.run(f"ip neigh replace 10.1.0.1 lladdr {former} dev eth0 nud reachable")
    pair.start()
    wait_for(lambda: "02:01:0a:01:00:64" in pair.client.run("ip neigh show 10.1.0.1"))
    host.call(link.restore)
    wait_for(lambda: former in pair.client.run("ip neigh show 10.1.0.1"))


def test_without_nft_nothing_is_left(pair: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    host, link = pair.pairs[0]
    before = settled_network(host)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError, match="nft is missing"):
        host.call(link.apply)
    monkeypatch.setenv("PATH", path)
    assert host.call(cleanup, pair.directory / "unicast-1" / "link.json")
    assert network(host) == before


# ---------------------------------------------------------------- staying up

DISTURBANCES = {
    "rules flushed": "nft flush ruleset",
    "one rule flushed": "nft flush chain arp softnlb_eth0 output",
    "a rule put before ours": "nft insert rule netdev softnlb_eth0 ingress accept",
    "cluster IP removed": "ip address del 10.1.0.100/32 dev eth0",
    "MAC changed": "ip link set eth0 address 02:00:00:00:00:05",
    "secondary MAC removed": "bridge fdb del 02:bf:0a:01:00:64 dev eth0 self permanent",
}


@pytest.mark.parametrize("command", DISTURBANCES.values(), ids=DISTURBANCES)
def test_a_disturbance_is_noticed_and_repaired(pair: Cluster, command: str) -> None:
    host, link = pair.pairs[0]
    before = settled_network(host)
    pair.start()
    for monitor in link.monitors():
        link.disturbed(monitor)
    assert host.call(link.intact)

    host.run(command)
    wait_for(lambda: [m for m in link.monitors() if link.disturbed(m)])
    assert not host.call(link.intact)

    host.call(link.repair)
    assert "10.1.0.100" not in host.run("ip address show eth0")
    link.add_cluster_ip_addresses()
    assert host.call(link.intact)
    host.call(link.restore)
    assert network(host) == before


def test_what_others_do_elsewhere_is_no_disturbance(pair: Cluster) -> None:
    host, link = pair.pairs[0]
    pair.start()
    for monitor in link.monitors():
        link.disturbed(monitor)
    host.run(
        "nft add table ip docker; ip link add other0 type veth peer name other1; "
        "ip address add 192.0.2.1/24 dev other0; ip address del 192.0.2.1/24 dev other0; "
        "ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev eth0; ip neigh del 10.1.0.9 dev eth0"
    )
    assert not [m for m in link.monitors() if link.disturbed(m)]
    assert host.call(link.intact)


def test_settings_are_put_back_too(pair: Cluster) -> None:
    # Another agent on this host leaves and sets arp_ignore back to what it had found.
    host, link = pair.pairs[0]
    host.run("sysctl -w net.ipv4.conf.all.arp_ignore=1")
    pair.start()
    host.run("sysctl -w net.ipv4.conf.all.arp_ignore=0")
    assert not host.call(link.intact)
    host.call(link.repair)
    assert host.run("sysctl -n net.ipv4.conf.all.arp_ignore") == "1\n"
    host.call(link.restore)
    assert host.run("sysctl -n net.ipv4.conf.all.arp_ignore") == "0\n"


def test_an_interface_made_anew_is_not_ours(pair: Cluster) -> None:
    host, link = pair.pairs[0]
    pair.start()
    host.run("ip link del eth0; ip link add eth0 type veth peer name eth1")
    assert not host.call(link.intact)
    with pytest.raises(SoftnlbError, match="made anew"):
        host.call(link.repair)


def test_dedicated_and_cluster_ip_do_not_depend_on_each_other(pair: Cluster) -> None:
    host, link = pair.pairs[0]
    pair.start()
    host.run("ip address del 10.1.0.1/24 dev eth0")
    assert "10.1.0.100" in host.run("ip address show eth0")
    host.run("ip address add 10.1.0.1/24 dev eth0")
    # Wherever the packet goes, the kernel's own choice is the dedicated address.
    for target in ("10.1.0.200", "198.51.100.1"):
        host.run("ip route replace default via 10.1.0.200")
        assert "src 10.1.0.1 " in host.run(f"ip route get {target}")
    link.withdraw_cluster_ip_addresses()
    assert "10.1.0.1/24" in host.run("ip address show eth0")


def test_a_host_reaches_the_cluster_ip_on_itself(pair: Cluster) -> None:
    # Microsoft Q247768: a member that connects to the cluster always reaches itself.
    host = pair.hosts[0]
    pair.start()
    assert "local 10.1.0.100 dev lo" in host.run("ip route get 10.1.0.100")


class StubbornDriver(netlink.Netlink):
    """The real kernel, but for a driver that changes its MAC address only while it is down."""

    def request(self, kind: int, flags: int, body: bytes) -> None:
        found = interface.find(self, "eth0")
        if kind == SET_LINK and netlink.attributes(body[16:]) and found is not None and found.up:
            raise OSError(errno.EBUSY, "busy")
        super().request(kind, flags, body)


def test_a_driver_that_wants_the_interface_down(pair: Cluster) -> None:
    host = pair.hosts[0]
    host.run(
        "ip route add 198.51.100.0/24 via 10.1.0.200; ip route add default via 10.1.0.200 metric 9;"
        "ip route add 203.0.113.0/24 dev eth0 src 10.1.0.1; ip route add table 7 default dev eth0"
    )
    before = host.run("ip -4 route show table all")

    def change() -> None:
        with closing(StubbornDriver()) as route:
            found = interface.find(route, "eth0")
            assert found is not None
            interface.set_mac(route, found, bytes.fromhex("020000000006"))

    host.call(change)
    assert "02:00:00:00:00:06" in host.run("ip link show eth0")
    after = host.run("ip -4 route show table all")
    assert sorted(after.splitlines()) == sorted(before.splitlines())


# ---------------------------------------------------------------- heartbeats


def heartbeat(address: IPv4Address = VIP.ip, length: int = 1496) -> bytes:
    return (b"\xbf\x01\xde\xc0" + bytes(8) + address.packed).ljust(length, b"\x55")


@pytest.fixture
def sockets(one: Cluster) -> Iterator[tuple[Cluster, HeartbeatSocket, HeartbeatSocket]]:
    """A started host's socket, and that of a second host which is the client's node."""
    one.start()
    destination = one.links[0].plan.heartbeat_destination
    mine = one.hosts[0].call(HeartbeatSocket, "eth0", VIP.ip, destination)
    other = one.client.call(HeartbeatSocket, "eth0", VIP.ip, destination)
    yield one, mine, other
    mine.close()
    other.close()


def received(opened: HeartbeatSocket) -> Frame:
    return wait_for(opened.receive)


def test_a_heartbeat_arrives_as_it_was_sent(
    sockets: tuple[Cluster, HeartbeatSocket, HeartbeatSocket],
) -> None:
    made, mine, other = sockets
    with Sniffer(made.client) as sniffer:
        assert mine.send(heartbeat())
        sent = ETHERTYPE.to_bytes(2)
        (frame,) = wait_for(lambda: [f for f in sniffer.read() if f[12:14] == sent])
    own = made.hosts[0].run("ip -br link show eth0").split()[2].replace(":", "")
    destination = made.links[0].plan.heartbeat_destination
    assert frame == destination + bytes.fromhex(own) + sent + heartbeat()
    assert len(frame) == 1510
    assert other.send(heartbeat())
    got = received(mine)
    assert got.payload == heartbeat()
    assert got.source_mac.hex(":") in made.client.run("ip link show eth0")
    assert mine.receive() is None


def test_only_what_has_the_shape_of_a_heartbeat_of_this_cluster(
    sockets: tuple[Cluster, HeartbeatSocket, HeartbeatSocket],
) -> None:
    _made, mine, other = sockets
    other.send(heartbeat(IPv4Address("10.1.0.101")))
    other.send(heartbeat(length=1495))
    other.send(heartbeat(length=64))
    other.send(b"")
    other.send(bytes.fromhex("c001dec0") + heartbeat()[4:])
    other.send(heartbeat())
    assert received(mine).payload == heartbeat()
    assert mine.receive() is None


def test_the_age_is_since_the_kernel_had_it(
    sockets: tuple[Cluster, HeartbeatSocket, HeartbeatSocket],
) -> None:
    made, mine, other = sockets

    def age_after_50_ms() -> int:
        with Sniffer(made.hosts[0]) as sniffer:
            other.send(heartbeat())
            wait_for(sniffer.read)
        arrived_s = time.monotonic()
        wait_for(lambda: time.monotonic() > arrived_s + 0.05)
        return received(mine).age_ms

    # The kernel begins to take times a moment after the first socket asked for them.
    wait_for(lambda: 50 <= age_after_50_ms() < 5000)


def test_a_burst_of_31_hosts_is_not_lost(
    sockets: tuple[Cluster, HeartbeatSocket, HeartbeatSocket],
) -> None:
    _made, mine, other = sockets
    # In a user namespace the kernel's limit stands, and two periods of 31 hosts fit.
    real_root = Path("/proc/self/uid_map").read_text().split()[2] == str(0xFFFF_FFFF)
    burst = 31 * (20 if real_root else 2)
    for _ in range(burst):
        other.send(heartbeat())
    last = heartbeat()[:-4] + b"last"
    other.send(last)
    count = 0
    while received(mine).payload != last:
        count += 1
    assert count == burst


def test_an_interface_that_goes_down_is_no_error(
    sockets: tuple[Cluster, HeartbeatSocket, HeartbeatSocket],
) -> None:
    made, mine, _other = sockets
    made.hosts[0].run("ip link set eth0 down")
    assert not mine.send(heartbeat())
    assert mine.receive() is None
    made.hosts[0].run("ip link del eth0")
    assert not mine.send(heartbeat())
    assert mine.receive() is None


# ---------------------------------------------------------------- probes


def probe(made: Cluster, address: str) -> ArpProbe:
    wanted = ProbeHost(2, 77, IPv4Address(address))
    return made.hosts[0].call(ArpProbe, "eth0", wanted, 0)


def test_a_live_kernel_answers_a_probe(pair: Cluster) -> None:
    pair.start()
    asked = probe(pair, "10.1.0.2")
    assert asked.host_code == 77
    wait_for(lambda: asked.advance(1) is not None)
    assert asked.advance(2) is False
    # Nobody learns anything from the question.
    assert "10.1.0.1 " not in pair.hosts[1].run("ip neigh")
    asked.close()


@given(host=st.integers(0, 0xFFFF_FFFF), network=st.binary(min_size=12, max_size=12))
def test_four_bytes_tell_an_ipv6_address_that_differs_in_its_last_word(host, network):
    own, other = (IPv6Address(network + word.to_bytes(4, "big")) for word in (1, host))
    assert dedicated_ipv6(own, w_x_y_z(other)) == other


def test_an_ipv6_host_is_proven_gone_only_where_its_address_has_answered(pair: Cluster) -> None:
    for number, node in enumerate((*pair.hosts, pair.client), 1):
        node.run(f"ip address add 2001:db8::{number}/64 dev eth0 nodad")
    own = IPv6Address("2001:db8::1")
    pair.start()

    def asked(address: str) -> ArpProbe:
        where = own, IPv6Address(address)
        wanted = ProbeHost(2, 77, w_x_y_z(where[1]))
        return pair.hosts[0].call(ArpProbe, "eth0", wanted, 0, where)

    alive, began_s = asked("2001:db8::2"), time.monotonic()
    wait_for(lambda: alive.advance(int(1000 * (time.monotonic() - began_s))) is not None)
    assert alive.advance(1) is False
    assert colon_mac(alive.answered_from) in pair.hosts[1].run("ip link show dev eth0")
    alive.close()
    gone = asked("2001:db8::9")
    pair.client.run("ip neigh add 10.1.0.1 lladdr ff:ff:ff:ff:ff:ff dev eth0")
    knock(pair.client, "10.1.0.1")
    verdicts = [gone.advance(now_ms) for now_ms in range(0, 400, 10)]
    assert verdicts.index(True) * 10 == PROBES * INTERVAL_MS
    gone.close()


def test_without_the_interface_nothing_is_asked_and_nothing_breaks(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    for vip in ("10.1.0.100/24", "2001:db8::100/64"):
        dedicated = vip.replace("100/", "1/")
        host = f'[host]\nid = 1\ninterface = "nope0"\ndedicated_ip_address = "{dedicated}"\n'
        path.write_text(f'[cluster]\nip_address = "{vip}"\n{host}')
        config, probes = load(path), Probes()
        probes.meet(config, Machine(host_config(config), 0), 0)
        probes.ask(config, ProbeHost(2, 77, IPv4Address("10.1.0.2")), 0)
        assert probes.advance(1000) == []


def test_three_probes_100_ms_apart_prove_a_host_gone(pair: Cluster) -> None:
    pair.start()
    with Sniffer(pair.client) as sniffer:
        asked = probe(pair, "10.1.0.9")
        pair.client.run("ip neigh add 10.1.0.1 lladdr ff:ff:ff:ff:ff:ff dev eth0")
        knock(pair.client, "10.1.0.1")
        verdicts = [asked.advance(now_ms) for now_ms in range(0, 400, 10)]
        assert verdicts.index(True) * 10 == PROBES * INTERVAL_MS
        assert verdicts[:30] == [None] * 30
        arp = socket.htons(0x0806).to_bytes(2, sys.byteorder)
        wait_for(lambda: len([f for f in sniffer.read() if f[12:14] == arp]) == PROBES)
    asked.close()


def knock(node: Namespace, address: str) -> None:
    """One datagram that needs no answer."""
    with node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.sendto(b".", (address, 9))


def test_silence_proves_nothing_to_a_host_that_receives_nothing(pair: Cluster) -> None:
    pair.start()
    asked = probe(pair, "10.1.0.9")
    assert [asked.advance(now_ms) for now_ms in range(0, 1300, 10)] == [None] * 130
    pair.client.run("ip neigh add 10.1.0.1 lladdr ff:ff:ff:ff:ff:ff dev eth0")
    # Heard before the first or after the last of the three: the last one may have met nobody.
    knock(pair.client, "10.1.0.1")
    assert asked.advance(1300) is None
    assert [asked.advance(now_ms) for now_ms in (1400, 1500)] == [None] * 2
    knock(pair.client, "10.1.0.1")
    assert asked.advance(1600) is None
    assert asked.advance(2600) is None
    knock(pair.client, "10.1.0.1")
    assert [asked.advance(now_ms) for now_ms in (2700, 2800, 2900)] == [None, None, True]
    asked.close()


def test_a_probe_that_cannot_be_sent_proves_nothing(pair: Cluster) -> None:
    pair.start()
    pair.hosts[0].run("ip link set eth0 down")
    asked = probe(pair, "10.1.0.9")
    assert [asked.advance(now_ms) for now_ms in range(0, 1000, 50)] == [None] * 20
    asked.close()
