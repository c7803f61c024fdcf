"""Packet cases in readable text (tests/packets/README): parsed, and built into frames."""

import socket
import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from convergence.rules import (
    ALL_BUCKETS,
    DEFAULT_RULE,
    Affinity,
    FilteringMode,
    PortRule,
    Protocol,
)
from softnlb.filter import FilterRule, FilterTable, default_hash_seed
from softnlb.packet import ARP, Flow, parse

DIRECTORY = Path(__file__).parent / "packets"
VIP, SECOND_VIP, HOST, CLIENT = "10.1.0.100", "10.1.0.101", "10.1.0.1", "10.1.0.201"
VIP6, CLIENT6 = "2001:db8::100", "2001:db8::201"
CLUSTER_MAC = bytes.fromhex("02bf0a010064")
HOST_MAC = bytes.fromhex("02010a010064")
CLIENT_MAC = bytes.fromhex("020000000201")
FLAGS = {"F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, "A": 0x10, "U": 0x20}
MACS = {"cluster": CLUSTER_MAC, "host": HOST_MAC, "broadcast": b"\xff" * 6}
NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58, "ip": 4, "ip6": 41}
EXTENSIONS = {"hopbyhop": 0, "routing": 43, "fragment": 44, "ah": 51, "destination": 60}
MODES = {
    "multiple": FilteringMode.MULTIPLE_HOSTS,
    "single": FilteringMode.SINGLE_HOST,
    "disabled": FilteringMode.DISABLED,
}
OURS = 1000
"""The initial sequence number of the host where no real socket has one."""

Fields = dict[str, str]
Layers = list[tuple[str, Fields]]


@dataclass(frozen=True)
class Case:
    """One paragraph."""

    name: str
    packet: str
    verdict: str
    reason: str
    table: str = ""
    sockets: str = "none"
    clients: str = "none"
    bucket: int | None = None
    planes: tuple[str, ...] = ("decide", "tc", "xdp")
    live: bool = False

    @property
    def layers(self) -> Layers:
        return layers_of(self.packet)


def load() -> list[Case]:
    """Every case of every file."""
    cases = []
    for path in sorted(DIRECTORY.glob("*.txt")):
        for paragraph in path.read_text().split("\n\n"):
            lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
            if any(lines):
                cases.append(_case(path.stem, [line for line in lines if line]))
    return cases


def _case(group: str, lines: list[str]) -> Case:
    words = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    verdict, reason = words.pop("verdict")
    case = Case(f"{group}: {lines[0]}", " ".join(words.pop("packet")), verdict, reason)
    if "bucket" in words:
        case = replace(case, bucket=int(words.pop("bucket")[0]))
    if "planes" in words:
        case = replace(case, planes=tuple(words.pop("planes")))
    if "live" in words:
        case = replace(case, live=words.pop("live") == ["yes"])
    texts = {key: " ".join(values) for key, values in words.items()}
    return replace(case, **texts)  # type: ignore[arg-type]


def layers_of(text: str) -> Layers:
    """[(layer, {field: text})], with repeated fields joined by a comma; eth is always first."""
    layers: Layers = [("eth", {})]
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals and name not in ("more",):
            if name != "eth":
                layers.append((name, {}))
        elif name in ("data", "hex", "cut", "pad"):
            layers.append((name, {name: value}))
        else:
            fields = layers[-1][1]
            fields[name] = f"{fields[name]},{value}" if name in fields else value
    return layers


def number(fields: Fields, name: str, default: int) -> int:
    return int(fields.get(name, str(default)), 0)


# ---------------------------------------------------------------- frames


def build(layers: Layers, ours: int = OURS) -> bytes:
    """The frame; ``ours``: initial sequence number of the host's SYN-ACK."""
    data = b""
    cut, pad = None, 0
    inner = ""
    source, destination = _addresses(layers)
    for name, fields in reversed(layers[1:]):
        if name == "cut":
            cut = int(fields["cut"])
        elif name == "pad":
            pad = int(fields["pad"])
        elif name == "data":
            data = bytes(int(fields["data"])) + data
        elif name == "hex":
            data = bytes.fromhex(fields["hex"]) + data
        elif name == "ip":
            data = _ip(fields, inner, data)
            inner = "ip"
        elif name == "ip6":
            data = _ip6(fields, inner, data)
            inner = "ip6"
        elif name in EXTENSIONS:
            data = _extension(name, fields, inner) + data
            inner = name
        elif name == "arp":
            data = _arp(fields)
            inner = "arp"
        else:
            data = _transport(name, fields, data, source + destination, ours)
            inner = name
    head = _ethernet(layers[0][1], inner)
    return head + data[:cut] + bytes(pad)


def _addresses(layers: Layers) -> tuple[bytes, bytes]:
    """Of the innermost IP header, as the checksum of the transport header wants them."""
    found = [(name, fields) for name, fields in layers if name in ("ip", "ip6")][-1:]
    name, fields = found[0] if found else ("ip", {})
    client, vip = (CLIENT, VIP) if name == "ip" else (CLIENT6, VIP6)
    return ip_address(fields.get("src", client)).packed, ip_address(fields.get("dst", vip)).packed


def _ethernet(fields: Fields, inner: str) -> bytes:
    destination = fields.get("dst", "cluster")
    mac = MACS.get(destination) or bytes.fromhex(destination.replace(":", ""))
    kind = number(fields, "type", {"arp": 0x0806, "ip6": 0x86DD}.get(inner, 0x0800))
    tags = b"".join(
        struct.pack("!HH", 0x8100, int(tag)) for tag in fields.get("vlan", "").split(",") if tag
    )
    return mac + CLIENT_MAC + tags + kind.to_bytes(2, "big")


def _ip(fields: Fields, inner: str, data: bytes) -> bytes:
    options = bytes([1]) * number(fields, "options", 0)
    words = number(fields, "ihl", 5 + len(options) // 4)
    length = number(fields, "len", 20 + len(options) + len(data))
    fragment = number(fields, "frag", 0) // 8 | (0x2000 if "more" in fields else 0)
    source, destination = (
        IPv4Address(fields.get(end, default)).packed
        for end, default in (("src", CLIENT), ("dst", VIP))
    )
    head = struct.pack(
        "!BBHHHBBH4s4s",
        number(fields, "version", 4) << 4 | words & 15,
        0,
        length & 0xFFFF,
        number(fields, "id", 1),
        fragment,
        number(fields, "ttl", 64),
        number(fields, "proto", NUMBERS.get(inner, 255)),
        0,
        source,
        destination,
    )
    head += options
    return head[:10] + checksum(head) + head[12:] + data


def _next_header(fields: Fields, inner: str) -> int:
    return number(fields, "next", {**NUMBERS, **EXTENSIONS}.get(inner, 59))


def _ip6(fields: Fields, inner: str, data: bytes) -> bytes:
    source, destination = (
        ip_address(fields.get(end, default)).packed
        for end, default in (("src", CLIENT6), ("dst", VIP6))
    )
    head = struct.pack(
        "!IHBB",
        number(fields, "version", 6) << 28,
        number(fields, "len", len(data)) & 0xFFFF,
        _next_header(fields, inner),
        number(fields, "hops", 255),
    )
    return head + source + destination + data


def _extension(name: str, fields: Fields, inner: str) -> bytes:
    """``len``: the field itself; without it that of a header of 8 bytes."""
    following = _next_header(fields, inner)
    if name == "fragment":
        offset = number(fields, "frag", 0) & 0xFFF8 | ("more" in fields)
        return struct.pack("!BBHI", following, 0, offset, 1)
    length = number(fields, "len", 0)
    units = length + 2 if name == "ah" else (length + 1) * 2
    return bytes((following, length)) + bytes(units * 4 - 2)


def _arp(fields: Fields) -> bytes:
    target = IPv4Address(fields.get("target", VIP)).packed
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, number(fields, "op", 1))
    return head + CLIENT_MAC + IPv4Address(CLIENT).packed + bytes(6) + target


def _transport(name: str, fields: Fields, data: bytes, ends: bytes, ours: int) -> bytes:
    if name in ("icmp", "icmp6"):
        head = struct.pack("!BBHI", number(fields, "type", 8), number(fields, "code", 0), 0, 1)
        return head[:2] + checksum(head + data) + head[4:] + data
    ports = struct.pack("!HH", number(fields, "sport", 5000), number(fields, "dport", 80))
    if name == "udp":
        length = number(fields, "len", 8 + len(data))
        return ports + struct.pack("!HH", length & 0xFFFF, 0) + data
    flags = sum(FLAGS[letter] for letter in fields.get("flags", "S") if letter != "-")
    acknowledgment = fields.get("ack", "0")
    if acknowledgment.startswith("ours"):
        acknowledgment = str(ours + int(acknowledgment.removeprefix("ours") or "0"))
    head = ports + struct.pack(
        "!IIBBHHH",
        number(fields, "seq", 101),
        int(acknowledgment, 0) & 0xFFFF_FFFF,
        number(fields, "doff", 5) << 4,
        flags,
        65535,
        0,
        0,
    )
    pseudo = ends + struct.pack("!II", len(head) + len(data), 6)
    return head[:16] + checksum(pseudo + head + data) + head[18:] + data


def checksum(data: bytes) -> bytes:
    """Of the Internet (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def flow_of(frame: bytes, interface: str = "eth0") -> Flow:
    """What ``decide`` is told of a frame: the tag and the kind of packet from layer 2."""
    at, kind, vlan = 14, int.from_bytes(frame[12:14], "big"), 0
    for _ in range(2):
        if kind not in (0x8100, 0x88A8) or len(frame) < at + 4 or vlan:
            break
        vlan = int.from_bytes(frame[at : at + 2], "big") & 0x0FFF
        kind = int.from_bytes(frame[at + 2 : at + 4], "big")
        at += 4
    rest, mac = frame[at:], frame[:6]
    if kind == 0x0800 and rest[:1] and rest[0] >> 4 == 4:
        return parse(rest, interface, mac, vlan)
    if kind == 0x86DD and rest[:1] and rest[0] >> 4 == 6:
        return parse(rest, interface, mac, vlan)
    if kind == 0x0806 and len(rest) >= 28 and rest[:6] == bytes.fromhex("000108000604"):
        return Flow(interface, mac, vlan, rest[14:18], rest[24:28], ARP)
    return Flow(interface, mac, vlan, b"", b"", 0)


# ---------------------------------------------------------------- tables


def table_of(text: str, valid_until_ms: int) -> FilterTable:
    """The table of a case's words."""
    words = [word.partition("=")[::2] for word in text.split()]
    given = dict(words)
    rules = [_rule(value) for name, value in words if name == "rule"]
    rules = rules or [PortRule(None, 80, 80)]
    current, orphan = buckets(given.get("mine", "all")), buckets(given.get("orphan", "none"))
    claimed = buckets(given.get("claimed", "none"))
    disabled = {int(value) for name, value in words if name == "disabled"}
    addresses = (ip_address(VIP), ip_address(SECOND_VIP), ip_address(VIP6))
    return FilterTable(
        interface="eth0",
        cluster_mac=CLUSTER_MAC,
        cluster_ip_addresses=addresses,
        local_ip_addresses=(ip_address(HOST), *addresses),
        hash_seed=int(given.get("seed", default_hash_seed(addresses[0]))),
        rules=tuple(
            FilterRule(rule, current, orphan, slot not in disabled, claimed)
            for slot, rule in enumerate((*rules, DEFAULT_RULE))
        ),
        valid_until_ms=0 if given.get("lease") == "over" else valid_until_ms,
        started="stopped" not in given,
        draining="draining" in given,
        filter_icmp="filter_icmp" in given,
        remote_control_port=int(given["remote_control"]) if "remote_control" in given else None,
    )


def buckets(text: str) -> int:
    """A map from "all", "none" or numbers with commas."""
    if text in ("all", "none"):
        return ALL_BUCKETS if text == "all" else 0
    return sum(1 << int(bucket) for bucket in text.split(","))


def _rule(text: str) -> PortRule:
    words = text.split("/")
    address = ip_address(words.pop(0)) if set(".:") & set(words[0]) else None
    start, _, end = words[0].partition("-")
    protocol = Protocol[words[1].upper()]
    affinity = Affinity[words[3].upper()] if len(words) > 3 else Affinity.SINGLE
    timeout_min = int(words[4]) if len(words) > 4 else 0
    ports = int(start), int(end or start)
    return PortRule(address, *ports, protocol, MODES[words[2]], affinity, timeout_min)


class FakeClients:
    """The clients of a case, for ``decide``; ``remembered`` becomes whom it remembers anew."""

    def __init__(self, clients: str) -> None:
        self._known = clients in ("known", "known-excepted")
        self._excepted = clients in ("excepted", "known-excepted")
        self.remembered: tuple[int, bytes, int] | None = None

    def is_excepted(self, slot: int, key: bytes) -> bool:
        return self._excepted

    def recall(self, slot: int, key: bytes) -> bool:
        return self._known

    def remember(self, slot: int, key: bytes, bucket: int) -> None:
        self.remembered = slot, key, bucket


class FakeSockets:
    """The sockets of a case, for ``decide``."""

    def __init__(self, sockets: str, ours: int = OURS) -> None:
        self._sockets = sockets
        self._tracked = sockets.startswith("conntrack")
        self._ours = ours

    def tcp_state(self, flow: Flow) -> str | None:
        known = {"listen": "LISTEN", "cookie": "LISTEN", "FIN_WAIT2-closed": "FIN_WAIT2"}
        if self._sockets in ("none", "udp", "udp-connected") or self._tracked:
            return None
        return known.get(self._sockets, self._sockets)

    def acknowledges_syn_ack(self, flow: Flow) -> bool:
        known = self._sockets in ("cookie", "SYN_RECV")
        return known and flow.acknowledgment == (self._ours + 1) & 0xFFFF_FFFF

    def conntracked(self, flow: Flow) -> bool:
        ended = self._sockets.endswith(("TIME_WAIT", "CLOSE"))
        ends = flow.flags & (FLAGS["F"] | FLAGS["R"])
        untranslated = self._sockets.endswith("untranslated")
        return self._tracked and not untranslated and bool(not ended or ends)

    def udp_connected(self, flow: Flow) -> bool:
        return self._sockets == "udp-connected"


def ends(layers: Layers) -> tuple[tuple[str, int], tuple[str, int]]:
    """((client, port), (server, port)) of the outermost IP header and the layer in it."""
    ip = next((fields for name, fields in layers if name in ("ip", "ip6")), {})
    inner = next((fields for name, fields in layers if name in ("tcp", "udp")), {})
    client = (ip.get("src", CLIENT), number(inner, "sport", 5000))
    return client, (ip.get("dst", VIP), number(inner, "dport", 80))


def raw_socket(interface: str) -> socket.socket:
    """Whole frames, out of and into the namespace that the thread is in."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    raw.bind((interface, 0))
    return raw
