"""`softnlb plan`: the same answers as the filter, from any capture, within bounded memory."""

import io
import json
import random
import struct
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, CookedLinux, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, wrpcap

from softnlb import plan
from softnlb.allocation import Allocation
from softnlb.capture_file import packets
from softnlb.cli import run
from softnlb.config import ClusterConfig, load
from softnlb.errors import UsageError
from softnlb.explain import explain_offline
from softnlb.plan import Load, Reader, flows_of_csv
from softnlb.plan_result import result
from tests.bench_plan import write

VIP = "10.1.0.100"
ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:bf:0a:01:00:64")
"""With both addresses, or scapy would look for them on the network."""

CONFIG = """
[cluster]
ip_address = "10.1.0.100/24"
[host]
id = 1
interface = "eth0"
dedicated_ip_address = "10.1.0.1/24"
[[port_rule]]
ports = "80"
affinity = "none"
[[port_rule]]
ports = "443"
[[port_rule]]
ports = "25"
filtering_mode = "single"
[[port_rule]]
ports = "23"
filtering_mode = "disabled"
"""


@pytest.fixture
def config(tmp_path: Path) -> ClusterConfig:
    """Rules of every kind; port 9 is of none."""
    file = tmp_path / "cluster.toml"
    file.write_text(CONFIG)
    return load(file)


def clients(count: int = 300) -> list[Packet]:
    """Segments and datagrams to the ports of the rules and to port 9."""
    draw = random.Random(9)
    made = []
    for _ in range(count):
        address = ".".join(str(draw.randrange(1, 255)) for _ in range(4))
        layer = draw.choice((TCP, UDP))
        ports = {"sport": draw.randrange(1024, 65536), "dport": draw.choice((80, 443, 25, 9))}
        made.append(IP(src=address, dst=VIP) / layer(**ports) / Raw(bytes(20)))
    return made


def read(path: Path, config: ClusterConfig, server: str | None = None) -> Load:
    """What a capture holds for this cluster."""
    reader = Reader(config, server)
    with path.open("rb") as file:
        reader.read(packets(file))
    return reader.load


def test_each_client_goes_to_the_host_that_explain_names(tmp_path, config) -> None:
    sent = clients()
    wrpcap(str(tmp_path / "c.pcap"), [ETHERNET / packet for packet in sent])
    found = result(read(tmp_path / "c.pcap", config), Allocation(config, [1, 2, 3]))
    expected = set()
    for packet in sent:
        layer = packet[TCP] if TCP in packet else packet[UDP]
        protocol = "tcp" if TCP in packet else "udp"
        ends = f"{packet.src}:{layer.sport}", f"{VIP}:{layer.dport}"
        explained = explain_offline(config, *ends, protocol, [1, 2, 3])
        expected.add((packet.src, explained["owner"]))
    assert {(take["client"], take["host_id"]) for take in found["takes"]} == expected
    assert found["packets_to_the_cluster"] == found["packets"] == 300
    assert sum(host["packets"] for host in found["hosts"]) == 300
    assert {host["host_id"] for host in found["hosts"] if host["packets"]} == {1, 2, 3}


def framed(kind: str, sent: list[Packet], path: Path) -> None:
    """The same packets in the frames and the file format of this kind."""
    if kind == "pcapng":
        with PcapNgWriter(str(path)) as writer:
            for packet in sent:
                writer.write(ETHERNET / packet)
        return
    layers = {
        "vlan": lambda p: ETHERNET / Dot1Q(vlan=69) / p,
        "cooked": lambda p: CookedLinux() / p,
    }
    wrap = layers.get(kind, lambda p: ETHERNET / p)
    frames = [wrap(packet) for packet in sent] if kind != "raw" else sent
    types = {"cooked": 113, "raw": 101}
    wrpcap(str(path), frames, linktype=types.get(kind, 1), endianness=">" if kind == "big" else "<")


@pytest.mark.parametrize("kind", ["pcapng", "vlan", "cooked", "raw", "big"])
def test_formats_link_types_and_byte_orders_tell_the_same(tmp_path, config, kind) -> None:
    sent = clients(50)
    framed("ethernet", sent, tmp_path / "plain.pcap")
    framed(kind, sent, tmp_path / "other.pcap")
    plain, other = (read(tmp_path / name, config) for name in ("plain.pcap", "other.pcap"))
    assert other.clients.keys() == plain.clients.keys()
    assert [entry[2] for entry in other.entries] == [entry[2] for entry in plain.entries]


def test_what_is_no_clients_traffic_is_told_apart(tmp_path, config) -> None:
    to_cluster = IP(src="10.9.8.7", dst=VIP)
    reply = IP(src=VIP, dst="10.9.8.7") / TCP(sport=443, dport=5000) / Raw(bytes(86))
    sent = [
        to_cluster / TCP(sport=5000, dport=443),
        reply,
        to_cluster / ICMP(type=8),
        IP(src="10.9.8.7", dst=VIP, frag=3, proto=6) / Raw(bytes(40)),
        to_cluster / TCP(sport=5000, dport=23),
        IP(src="10.9.8.7", dst="10.1.0.1") / TCP(),
        ARP(pdst=VIP),
        IPv6(src="2001:db8::7", dst="2001:db8::100") / TCP(),
        to_cluster / Raw(b"\x11" * 3),
    ]
    wrpcap(str(tmp_path / "c.pcap"), [ETHERNET / packet for packet in sent])
    found = result(read(tmp_path / "c.pcap", config), Allocation(config, [1, 2]))
    assert found["packets"] == 9
    assert found["packets_to_the_cluster"] == 2, "a protocol of no rule is the default host's"
    assert found["packets_for_every_host"] == 2
    assert found["packets_for_nobody"] == 1
    assert found["packets_of_others"] == 3
    taken = [take for take in found["takes"] if take["slot"] == 1]
    (owner,) = [host for host in found["hosts"] if host["host_id"] == taken[0]["host_id"]]
    assert (owner["reply_packets"], owner["reply_bytes"]) == (1, 14 + 20 + 20 + 86)


def test_another_servers_clients_stand_for_the_clusters(tmp_path, config) -> None:
    moved = [ETHERNET / IP(src=p.src, dst="192.0.2.7") / p.payload for p in clients(40)]
    wrpcap(str(tmp_path / "moved.pcap"), moved)
    framed("ethernet", clients(40), tmp_path / "here.pcap")
    here = read(tmp_path / "here.pcap", config)
    assert read(tmp_path / "moved.pcap", config).entries == []
    assert read(tmp_path / "moved.pcap", config, "192.0.2.7").clients == here.clients
    with pytest.raises(UsageError):
        Reader(config, "server.example")


def test_weights_30_and_60_share_20000_clients_one_to_two(tmp_path, config) -> None:
    """Microsoft Q198496; what the wire shows of it is in test_port_rules.py."""
    write(tmp_path / "c.pcap", 20_000, 20_000)
    found = result(read(tmp_path / "c.pcap", config), Allocation(config, [1, 2], {1: 30, 2: 60}))
    assert found["hosts"][0]["share"] == pytest.approx(1 / 3, abs=0.01)
    assert found["hosts"][1]["share"] == pytest.approx(2 / 3, abs=0.01)
    assert found["spread"]["highest_to_mean"] == pytest.approx(4 / 3, abs=0.02)


def test_only_what_the_leaving_host_had_moves(tmp_path, config) -> None:
    framed("ethernet", clients(), tmp_path / "c.pcap")
    found = result(read(tmp_path / "c.pcap", config), Allocation(config, [1, 2, 3, 4]), fail=2)
    fail, before = found["fail"], {host["host_id"]: host for host in found["hosts"]}
    assert fail["buckets_moved_between_others"] == 0
    assert fail["buckets_moved"] == sum(to["buckets"] for to in fail["to"]) == 30
    assert [to["host_id"] for to in fail["to"]] == [1, 3, 4]
    assert sum(to["packets"] for to in fail["to"]) == before[2]["packets"]
    for host, to in zip(fail["hosts"], fail["to"], strict=True):
        assert host["packets"] == before[host["host_id"]]["packets"] + to["packets"]


def test_the_default_host_and_single_host_rules_move_whole(tmp_path, config) -> None:
    framed("ethernet", clients(), tmp_path / "c.pcap")
    allocation = Allocation(config, [1, 2])
    found = result(read(tmp_path / "c.pcap", config), allocation, fail=1)["fail"]
    assert [to["buckets"] for to in found["to"]] == [30 + 30 + 60 + 60]
    assert found["hosts"][0]["share"] == 1


def test_every_host_port_carries_everything_and_others_what_the_mode_says(tmp_path, config) -> None:
    frames = [ETHERNET / packet for packet in clients(60)]
    for number, frame in enumerate(frames):
        frame.time = 1_700_000_000 + (0 if number < 45 else 9)
    wrpcap(str(tmp_path / "c.pcap"), frames)
    ports = result(read(tmp_path / "c.pcap", config), Allocation(config, [1]))["switch_ports"]
    size = sum(len(frame) for frame in frames)
    assert (ports["host"]["frames"], ports["host"]["bytes"]) == (60, size)
    assert ports["host"]["peak_frames_per_s"] == 45
    assert ports["host"]["mean_bits_per_s"] == round(size * 8 / 10)
    assert ports["others"]["unicast"] == ports["host"]
    assert ports["others"]["igmp, snooping with a querier"]["frames"] == 0


def test_memory_is_bounded_and_loads_stay_exact(tmp_path, config, monkeypatch) -> None:
    framed("ethernet", clients(), tmp_path / "c.pcap")
    whole = result(read(tmp_path / "c.pcap", config), Allocation(config, [1, 2, 3]))
    monkeypatch.setattr(plan, "CLIENTS_MAX", 10)
    monkeypatch.setattr(plan, "_FLOWS_MAX", 7)
    bounded = result(read(tmp_path / "c.pcap", config), Allocation(config, [1, 2, 3]))
    assert len(bounded["takes"]) == 10
    assert (whole["clients_not_told_apart"], bounded["clients_not_told_apart"]) == (False, True)
    assert [h["packets"] for h in bounded["hosts"]] == [h["packets"] for h in whole["hosts"]]


@pytest.mark.parametrize("kind", ["ethernet", "pcapng"])
def test_a_file_that_is_cut_off_counts_to_there(tmp_path, config, kind) -> None:
    framed(kind, clients(10), tmp_path / "c.pcap")
    data = (tmp_path / "c.pcap").read_bytes()
    counts, cut_off = [], []
    for size in (*range(24 if kind == "ethernet" else 4, len(data), 7), len(data)):
        reader = Reader(config)
        reader.read(packets(io.BytesIO(data[:size])))
        counts.append(reader.load.packets)
        cut_off.append(reader.load.cut_off)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 10)
    assert cut_off[1] and not cut_off[-1]


@pytest.mark.parametrize("kind", ["ethernet", "pcapng", "cooked"])
def test_damaged_files_are_refused_or_counted_and_nothing_else(tmp_path, config, kind) -> None:
    framed(kind, clients(10), tmp_path / "c.pcap")
    data = (tmp_path / "c.pcap").read_bytes()
    draw = random.Random(4)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(draw.randrange(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        reader = Reader(config)
        try:
            reader.read(packets(io.BytesIO(bytes(damaged))))
        except UsageError as error:
            assert str(error)
        result(reader.load, Allocation(config, [1, 2]), fail=1)


def test_a_packet_of_absurd_size_is_refused(config) -> None:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    record = struct.pack("<IIII", 0, 0, 1 << 31, 100)
    with pytest.raises(UsageError, match="damaged"):
        Reader(config).read(packets(io.BytesIO(head + record)))


TABLE = "client,port,packets\n10.9.8.7,443,5\n\n# a remark\n10.9.8.8,25,2\n10.9.8.7,,\n"


def test_a_table_of_clients(config) -> None:
    reader = Reader(config)
    server = config.cluster_ip_addresses[0].ip.packed
    reader.read_flows(flows_of_csv(io.StringIO(TABLE), server, 443))
    assert sorted(entry[2] for entry in reader.load.entries) == [2, 6]
    assert result(reader.load, Allocation(config, [2, 3]))["clients"] == 2


@pytest.mark.parametrize(
    "line",
    [
        "host7",
        "10.0.0.1,x: client_port",
        "10.0.0.1,1,65536: port",
        "10.0.0.1,1,1,sctp: protocol",
        "10.0.0.1,1,1,tcp,-1: packets",
        f"10.0.0.1,1,1,tcp,{'9' * 400}: packets",
        "10.0.0.1,1,1,tcp,1,1e9: bytes",
        "::1: client",
        f"{'9' * 200_000}: field",
    ],
)
def test_a_table_with_an_error_names_its_line_and_column(config, line) -> None:
    line, _, column = line.partition(": ")
    server = config.cluster_ip_addresses[0].ip.packed
    with pytest.raises(UsageError, match=rf"line 2: {column}.*\(BAD_PARAMS\)$"):
        list(flows_of_csv(io.StringIO(f"10.0.0.1\n{line}\n"), server, 80))


def test_the_command(tmp_path, config, capsys) -> None:
    framed("ethernet", clients(), tmp_path / "c.pcap")
    files = ["--config", str(config.path), "--clients", str(tmp_path / "c.pcap")]
    assert run(["plan", *files, "--hosts", "2,5,7", "--affinity", "single", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [host["host_id"] for host in document["hosts"]] == [2, 5, 7]
    assert run(["plan", *files, "--hosts", "3", "--fail", "1", "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert "When host 1 leaves" in shown and "any other, unicast" in shown
    for wrong in (
        ["--hosts", "0"],
        ["--hosts", "33"],
        ["--hosts", "two"],
        ["--hosts", "1,2,1"],
        ["--hosts", "9999999999"],
        ["--hosts", "9" * 5000],
        ["--load-weight", "1=" + "9" * 5000],
        ["--fail", "9"],
        ["--load-weight", "9=1"],
        ["--load-weight", "1=101"],
        ["--clients", str(tmp_path / "none.pcap")],
        ["--clients", str(config.path)],
    ):
        assert run(["plan", *files, *wrong]) == 2, wrong
        assert capsys.readouterr().err.startswith("softnlb: ")
    table = tmp_path / "clients.csv"
    table.write_text("client,packets\n10.0.0.9,7\n", encoding="utf-8-sig")  # as Excel writes it
    assert run(["plan", *files, "--clients", str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packets"] == 7
    table.write_bytes(b"client\n\xff\n")
    assert run(["plan", *files, "--clients", str(table)]) == 2
    assert "expected text in UTF-8" in capsys.readouterr().err


def test_a_capture_of_other_addresses_leads_to_server(tmp_path, config, capsys) -> None:
    wrpcap(str(tmp_path / "c.pcap"), [ETHERNET / IP(dst="192.0.2.7") / TCP()])
    assert run(["plan", "--config", str(config.path), "--clients", str(tmp_path / "c.pcap")]) == 0
    assert "--server" in capsys.readouterr().out
