"""What the three modes do on the wire, between real kernels."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from modes.mac import colon_mac
from modes.plan import LinkChoices, Mode
from tests.links import CLIENT_IP, ETH_P_IP, VIP, Cluster, Markers, Sniffer, cluster
from tests.netns import wait_for

VIP_IP = str(VIP.ip)


@pytest.fixture(autouse=True)
def _private_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTNLB_RUN_DIR", str(tmp_path / "run"))


@pytest.fixture(params=list(Mode))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """Two hosts of each mode, the cluster IP address on both."""
    with cluster(request.param, 2, tmp_path) as made:
        made.start()
        yield made


@pytest.fixture
def unicast(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(Mode.UNICAST, 2, tmp_path) as made:
        made.start()
        yield made


def parsed(frames: list[bytes]) -> list[Packet]:
    return [Ether(frame) for frame in frames]


def requests(made: Cluster, ether_destination: str, **fields: object) -> list[Packet]:
    """A SYN, a datagram and an echo request for the cluster IP address."""
    head = Ether(dst=ether_destination, src=mac_of(made, "client")) / IP(
        src=CLIENT_IP, dst=VIP_IP, **fields
    )
    return [
        head / TCP(sport=1024, dport=80, flags="S"),
        head / UDP(sport=1024, dport=7) / Raw(b"ask"),
        head / ICMP(id=1, seq=1),
    ]


def mac_of(made: Cluster, node: str) -> str:
    return made.segment.nodes[node].run("ip -br link show eth0").split()[2]


def cluster_mac(made: Cluster) -> str:
    return colon_mac(made.links[0].plan.cluster_mac)


def answers(frames: list[bytes]) -> dict[str, int]:
    """How often each of the three requests was answered, by whomever."""
    count = {"tcp": 0, "udp": 0, "echo": 0}
    for packet in parsed(frames):
        if IP in packet and packet[IP].src == VIP_IP:
            if TCP in packet:
                count["tcp"] += 1
            # A port that nobody listens on answers with port unreachable: it was accepted.
            elif ICMP in packet:
                count["udp" if packet[ICMP].type == 3 else "echo"] += 1
    return count


def ask(made: Cluster, sniffer: Sniffer, ether_destination: str) -> None:
    for packet in requests(made, ether_destination):
        sniffer.send(bytes(packet))


def test_every_host_hears_every_frame_and_would_answer(pair: Cluster) -> None:
    with Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        ask(pair, sniffer, cluster_mac(pair))
        markers.pass_()
        assert answers(sniffer.read()) == {"tcp": 2, "udp": 2, "echo": 2}


def test_nothing_is_accepted_without_our_rules(pair: Cluster) -> None:
    with Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        for host in pair.hosts:
            host.run("nft flush ruleset")
        for destination in (cluster_mac(pair), "ff:ff:ff:ff:ff:ff"):
            ask(pair, sniffer, destination)
        markers.pass_()
        assert answers(sniffer.read()) == {"tcp": 0, "udp": 0, "echo": 0}


def test_broadcast_frames_are_no_way_round(pair: Cluster) -> None:
    with Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        ask(pair, sniffer, "ff:ff:ff:ff:ff:ff")
        markers.pass_()
        assert answers(sniffer.read()) == {"tcp": 0, "udp": 0, "echo": 0}


def test_arp_teaches_the_cluster_mac(pair: Cluster) -> None:
    with Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        pair.client.run(f"echo ask > /dev/udp/{VIP_IP}/7", executable="/bin/bash")
        wait_for(lambda: cluster_mac(pair) in pair.client.run(f"ip neigh show {VIP_IP}"))
        markers.pass_()
        replies = [p for p in parsed(sniffer.read()) if ARP in p and p[ARP].psrc == VIP_IP]
    assert {p[ARP].op for p in replies} == {2}
    assert {p[ARP].hwsrc for p in replies} == {cluster_mac(pair)}
    # The Ethernet source is each host's own, so no switch learns the cluster MAC.
    assert {p.src for p in replies} == {mac_of(pair, "host1"), mac_of(pair, "host2")}


def test_a_neighbour_that_checks_its_cache_is_answered(pair: Cluster) -> None:
    with Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        own = mac_of(pair, "client")
        question = ARP(op=1, hwsrc=own, psrc=CLIENT_IP, pdst=VIP_IP)
        sniffer.send(bytes(Ether(dst=cluster_mac(pair), src=own) / question))
        markers.pass_()
        replies = [p for p in parsed(sniffer.read()) if ARP in p and p[ARP].psrc == VIP_IP]
    assert len(replies) == 2


def test_dedicated_addresses_are_answered_with_their_own_mac(pair: Cluster) -> None:
    with Markers(pair):
        for host_id in (1, 2):
            neighbour = pair.client.run(f"ip neigh show 10.1.0.{host_id}")
            assert mac_of(pair, f"host{host_id}") in neighbour


def test_the_switch_learns_only_the_hosts(unicast: Cluster) -> None:
    with Sniffer(unicast.client) as sniffer, Markers(unicast) as markers:
        for link, host in zip(unicast.links, unicast.hosts, strict=True):
            host.call(link.announce)
        ask(unicast, sniffer, cluster_mac(unicast))
        markers.pass_()
        table = unicast.segment.switch.run("bridge fdb show br br0")
    assert "02:01:0a:01:00:64 dev host1" in table
    assert "02:02:0a:01:00:64 dev host2" in table
    assert "02:bf" not in table


def test_announcements_carry_the_cluster_mac(pair: Cluster) -> None:
    with Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        pair.client.run(f"ip neigh replace {VIP_IP} lladdr 02:00:00:00:00:99 dev eth0 nud stale")
        pair.hosts[0].call(pair.links[0].announce)
        markers.pass_()
        frames = [p for p in parsed(sniffer.read()) if ARP in p and p[ARP].psrc == VIP_IP]
        assert cluster_mac(pair) in pair.client.run(f"ip neigh show {VIP_IP}")
    assert [(p.src, p[ARP].hwsrc, p[ARP].op) for p in frames] == [
        (mac_of(pair, "host1"), cluster_mac(pair), 2)
    ]


@pytest.mark.parametrize("announce", ["2", "0"])
def test_own_arp_requests_never_name_the_cluster(pair: Cluster, announce: str) -> None:
    # Microsoft KB960916: requests with the cluster IP address as sender, and routers fell silent.
    # With the kernel's setting spoilt the rule still holds.
    host = pair.hosts[0]
    host.run(f"sysctl -w net.ipv4.conf.all.arp_announce={announce}")

    def send_from_the_cluster_ip() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((VIP_IP, 0))
            sender.sendto(b"x", ("10.1.0.77", 9))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("10.1.0.78", 9))

    with Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        host.call(send_from_the_cluster_ip)
        markers.pass_()
        asked = [p[ARP] for p in parsed(sniffer.read()) if ARP in p and p[ARP].op == 1]
    about = {(p.psrc, p.pdst) for p in asked if p.pdst in ("10.1.0.77", "10.1.0.78")}
    own = {("10.1.0.1", "10.1.0.78")}
    assert about == (own | {("10.1.0.1", "10.1.0.77")} if announce == "2" else own)


def test_a_second_interface_is_no_way_in(pair: Cluster) -> None:
    host = pair.hosts[0]
    pair.segment.plug(host, "eth1", "host1b")
    host.run("ip address add 10.1.0.51/24 dev eth1 && ip link set eth1 up")
    second = host.run("ip -br link show eth1").split()[2]
    own = mac_of(pair, "client")
    with Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        ask(pair, sniffer, second)
        question = ARP(op=1, hwsrc=own, psrc=CLIENT_IP, pdst=VIP_IP)
        sniffer.send(bytes(Ether(dst=second, src=own) / question))
        markers.pass_()
        frames = sniffer.read()
    assert answers(frames) == {"tcp": 0, "udp": 0, "echo": 0}
    assert not [p for p in parsed(frames) if ARP in p and p[ARP].psrc == VIP_IP]


def test_a_vlan_tag_is_another_network(pair: Cluster) -> None:
    # VLAN id 0 is only a priority; any other id is not ours to drop, nor to take.
    head = Ether(dst=cluster_mac(pair), src=mac_of(pair, "client"))
    elsewhere = IP(src="10.5.0.9", dst="10.5.0.77") / UDP(dport=9)
    inside = Sniffer(pair.hosts[0], protocol=ETH_P_IP)  # behind our rules, unlike a tap
    with inside, Sniffer(pair.client) as sniffer, Markers(pair) as markers:
        for tag in (5, 0):
            sniffer.send(bytes(head / Dot1Q(vlan=tag) / elsewhere / Raw(b"tag %d" % tag)))
            for packet in requests(pair, cluster_mac(pair)):
                sniffer.send(bytes(head / Dot1Q(vlan=tag) / packet[IP]))
        markers.pass_()
        seen = b"".join(inside.read())
        assert (b"tag 5" in seen, b"tag 0" in seen) == (True, False)
        assert answers(sniffer.read()) == {"tcp": 2, "udp": 2, "echo": 2}


def test_igmp_mode_joins_its_group(tmp_path: Path) -> None:
    with cluster(Mode.IGMP, 1, tmp_path) as made:
        with Sniffer(made.client) as sniffer:
            made.start()
            group = bytes.fromhex("efff0064")
            wait_for(lambda: any(group in frame for frame in sniffer.read()))
            reports = [p for p in parsed(sniffer.read()) if IP in p and group in bytes(p)]
        # Sent by the host, not by the cluster.
        assert {(p[IP].proto, p[IP].src) for p in reports} == {(2, "10.1.0.1")}
        assert "239.255.0.100" in made.hosts[0].run("ip maddr show dev eth0")


# ---------------------------------------------------------------- hosts that route


@pytest.fixture(params=list(Mode))
def routers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """Five hosts that all forward, as any Docker host does."""
    with cluster(request.param, 5, tmp_path) as made:
        for host in made.hosts:
            host.run("sysctl -w net.ipv4.ip_forward=1")
        made.start()
        yield made


class Wire:
    """Counts the frames that carry a payload and enter the switch by any port."""

    def __init__(self, made: Cluster) -> None:
        ports = ["client"] + [f"host{host_id}" for host_id in range(1, len(made.hosts) + 1)]
        self._sniffers = [Sniffer(made.segment.switch, port) for port in ports]

    def count(self, payload: bytes) -> int:
        return sum(payload in frame for sniffer in self._sniffers for frame in sniffer.read())

    def close(self) -> None:
        for sniffer in self._sniffers:
            sniffer.close()


@pytest.mark.parametrize("destination", ["10.1.0.3", "10.1.0.99", "198.51.100.1", VIP_IP])
def test_flooded_frames_are_never_forwarded(routers: Cluster, destination: str) -> None:
    # Not even for a cluster IP address that is withdrawn while the rules still stand.
    for link in routers.links:
        link.withdraw_cluster_ip_addresses()
    for host in routers.hosts:
        host.run("ip route add default via 10.1.0.200")
    wire = Wire(routers)
    with Sniffer(routers.client) as sniffer, Markers(routers) as markers:
        frame = Ether(dst=cluster_mac(routers), src=mac_of(routers, "client"))
        datagram = IP(src=CLIENT_IP, dst=destination, ttl=10) / UDP(sport=9, dport=9)
        sniffer.send(bytes(frame / datagram / Raw(b"flooded")))
        markers.pass_()
        assert wire.count(b"flooded") == 1
    wire.close()


def test_a_datagram_for_a_dedicated_address_is_one_frame(routers: Cluster) -> None:
    wire = Wire(routers)
    with Markers(routers) as markers:
        routers.client.run("echo just-one > /dev/udp/10.1.0.3/9", executable="/bin/bash")
        markers.pass_()
        assert wire.count(b"just-one") == 1 + 1  # the datagram, and the ICMP error that quotes it
    wire.close()


# ---------------------------------------------------------------- what an operator may choose

BY_HAND = bytes.fromhex("02bfc0ffee01")


def test_a_cluster_mac_set_by_hand_is_answered_and_taught(tmp_path: Path) -> None:
    """Microsoft Q232454: IPToMACEnable 0."""
    choices = LinkChoices(cluster_mac=BY_HAND)
    with cluster(Mode.UNICAST, 2, tmp_path, choices) as made:
        made.start()
        with Sniffer(made.client) as sniffer, Markers(made) as markers:
            made.client.run(f"echo ask > /dev/udp/{VIP_IP}/7", executable="/bin/bash")
            wait_for(lambda: colon_mac(BY_HAND) in made.client.run(f"ip neigh show {VIP_IP}"))
            markers.pass_()
            sniffer.read()
            sniffer.frames.clear()
            ask(made, sniffer, colon_mac(BY_HAND))
            markers.pass_()
            assert answers(sniffer.read()) == {"tcp": 2, "udp": 2, "echo": 2}


def test_without_the_mask_the_switch_learns_the_cluster_mac_and_one_host_gets_all(
    tmp_path: Path,
) -> None:
    """Microsoft Q193602: MaskSourceMAC 0 is for hubs; this is what goes wrong behind a switch."""
    choices = LinkChoices(mask_source_mac=False)
    with cluster(Mode.UNICAST, 2, tmp_path, choices) as made:
        made.start()
        before = made.hosts[0].run("ip -br link show eth0").split()[2]
        assert before == cluster_mac(made) == mac_of(made, "host2")
        with Sniffer(made.client) as sniffer:
            made.links[1].announce()
            wait_for(lambda: "host2" in fdb(made, cluster_mac(made)))
            ask(made, sniffer, cluster_mac(made))
            wait_for(lambda: sum(answers(sniffer.read()).values()) >= 3)
            assert answers(sniffer.read()) == {"tcp": 1, "udp": 1, "echo": 1}
    assert not (tmp_path / "unicast-1" / "link.json").exists()


def fdb(made: Cluster, mac: str) -> str:
    """The port behind which the switch has seen this address."""
    lines = made.segment.switch.run("bridge fdb show br br0").splitlines()
    return " ".join(line for line in lines if line.startswith(mac))


@pytest.mark.parametrize("mode", [Mode.UNICAST, Mode.MULTICAST])
def test_without_arp_for_the_vip_only_static_entries_lead_to_it(tmp_path: Path, mode: Mode) -> None:
    """Microsoft Q193601: MulticastARPEnable 0."""
    with (
        cluster(mode, 2, tmp_path, LinkChoices(arp_for_vip=False)) as made,
        Sniffer(made.client) as sniffer,
    ):
        made.start()
        for link in made.links:
            link.announce()
        with Markers(made) as markers:
            made.client.run(f"echo ask > /dev/udp/{VIP_IP}/7", executable="/bin/bash")
            markers.pass_()
            heard = [p for p in parsed(sniffer.read()) if ARP in p]
            assert not [p for p in heard if p[ARP].psrc == VIP_IP]
            asked = [data for kind, data in sniffer.frames if kind == socket.PACKET_OUTGOING]
            assert any(ARP in p and p[ARP].pdst == VIP_IP for p in parsed(asked))
            ask(made, sniffer, cluster_mac(made))
            markers.pass_()
            assert answers(sniffer.read()) == {"tcp": 2, "udp": 2, "echo": 2}
