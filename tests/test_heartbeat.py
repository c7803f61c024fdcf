"""The heartbeat frame: bytes and meaning, garbage, and what public dissectors read in it."""

import shutil
import struct
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convergence.heartbeat import (
    AGE_NONE,
    EXTENSION_OFFSET,
    FRAME_BYTES,
    Foreign,
    Heartbeat,
    HeartbeatError,
    Statement,
    code_tag,
    decode,
    encode,
)
from convergence.rules import ALL_BUCKETS, PortRule, Protocol
from labs import tcpdump

CLUSTER = IPv4Address("192.168.100.80")
RULES = (
    PortRule(None, 25, 25, Protocol.TCP),
    PortRule(None, 80, 80, Protocol.TCP),
    PortRule(None, 1024, 65535, Protocol.TCP),
)


def statement(**changes: object) -> Statement:
    """A host's statement with a value of its own in every field."""
    fields: dict[str, object] = {
        "host_id": 2,
        "cluster_ip_address": CLUSTER.packed,
        "dedicated_ip_address": IPv4Address("192.168.100.82").packed,
        "host_code": 0x4F3BE335,
        "default_host_id": 1,
        "rule_codes": (*(rule.code for rule in RULES), 0),
        "current": (0x0FFFFFFFC0000000, 0, 0x123456789ABCDEF, ALL_BUCKETS),
        "new": (0x0FFFFFFF00000000, 1, 2, 3),
        "idle": (0x3FFFFFFF, 4, 5, 6),
        "ready": (0x0FFFFFFFC0000001, 7, 8, 9),
        "weights": (50, 30, 100, 2),
        "phase": 5,
        "flags": 2,
        "generation": 77,
        "view": 0b111,
        "view_digest": 0x1122334455667788,
        "config_digest": b"digest!!",
    }
    fields.update(changes)
    return Statement(**fields)  # type: ignore[arg-type]


def heartbeat(**changes: object) -> Heartbeat:
    ages = bytes((3, AGE_NONE, 7)) + bytes((AGE_NONE,)) * 29
    tags = bytes((17, 0, 19)) + bytes(29)
    return Heartbeat(
        statement(**changes),
        4711,
        ages,
        tags,
        key_id=9,
        packets_handled=80268987,
        accepts=0xDEADBEEF,
    )


# One line per field: offset, bytes on the wire, meaning.  NLB's part as in reference/nlb.md 5.2.
WIRE_LINES = """
0     bf01dec0          signature of a heartbeat
4     06020000          version 2.6
8     02000000          host id 2
12    c0a86450          cluster IP address 192.168.100.80, network order
16    c0a86452          dedicated IP address 192.168.100.82
20    0100              my host id, zero-based
22    0000              default host id, zero-based
24    0100              convergence state: steady
26    0400              rule slots, with the default rule
28    35e33b4f          host code 0x4f3be335
32    bbcec804          packets handled 80268987
36    0000000000000000  teaming, reserved
44    19900161          rule code of TCP 25
48    50000561          rule code of TCP 80
52    00f4ff6f          rule code of TCP 1024-65535
56    00000000          the default rule has none
176   000000c0ffffff0f  current map of slot 0: buckets 30-59
440   00000000ffffff0f  new map of slot 0
704   ffffff3f00000000  idle map of slot 0
968   010000c0ffffff0f  ready map of slot 0
1232  320000001e000000  load weights 50, 30
1364  734e4c42          magic of the extension
1368  01050200          version 1, phase Converged, flag draining
1372  4d000000          generation 77
1376  07000000          view: hosts 1, 2, 3
1380  8877665544332211  view digest
1388  6469676573742121  configuration digest
1396  6712000000000000  sequence 4711
1404  09000000          key id 9
1408  efbeadde          the signatures that the sender accepts
1412  03ff07ff          ages: host 1 three units, host 3 seven
1444  11001300          tags of what was heard
1476  00                for how long it has listened
1477  000000            reserved
1480  00000000000000000000000000000000  no MAC yet
"""


@pytest.mark.parametrize("line", WIRE_LINES.strip().splitlines(), ids=lambda line: line[:30])
def test_wire_line(line: str) -> None:
    offset, wire, _meaning = line.split(maxsplit=2)
    expected = bytes.fromhex(wire)
    place = int(offset)
    assert encode(heartbeat())[place : place + len(expected)] == expected


def test_frame_size() -> None:
    assert len(encode(heartbeat())) == FRAME_BYTES == 1496


def test_values_of_the_real_frame() -> None:
    """reference/nlb.md 5.4: the public capture's header and rule codes, from our encoder."""
    ports = (25, 80, 135, 143, 443, 587, 993)
    rules = [PortRule(None, port, port, Protocol.TCP) for port in ports]
    rules.append(PortRule(None, 1024, 65535, Protocol.TCP))
    codes = (*(rule.code for rule in rules), 0)
    nothing = (0,) * 9
    payload = encode(
        heartbeat(
            rule_codes=codes,
            current=nothing,
            new=nothing,
            idle=nothing,
            ready=nothing,
            weights=nothing,
        )
    )
    captured = bytes.fromhex(
        "bf01dec0" "06020000" "02000000" "c0a86450" "c0a86452" "0100" "0000" "0100" "0900"
        "35e33b4f" "bbcec804" "00000000" "00000000"
        "19900161" "50000561" "87700861" "8ff00861" "bbb11b61" "4bb22461" "e1133e61" "00f4ff6f"
        "00000000"
    )  # fmt: skip
    assert payload[: len(captured)] == captured


def test_rule_codes_collide_for_large_ports() -> None:
    """convergence.md: the code cannot decide agreement; the configuration digest does."""
    udp = PortRule(None, 8000, 8100, Protocol.UDP)
    both = PortRule(None, 8000, 8100, Protocol.BOTH)
    assert udp.code == both.code == 0x63FA5F40


maps = st.lists(st.integers(0, ALL_BUCKETS), min_size=4, max_size=4).map(tuple)


@settings(max_examples=60)
@given(
    current=maps,
    new=maps,
    idle=maps,
    ready=maps,
    weights=st.lists(st.integers(0, 100), min_size=4, max_size=4).map(tuple),
    host_id=st.integers(1, 32),
    default_host_id=st.integers(1, 32),
    host_code=st.integers(0, 0xFFFFFFFF),
    phase=st.integers(0, 5),
    flags=st.integers(0, 15),
    generation=st.integers(0, 0xFFFFFFFF),
    view=st.integers(0, 0xFFFFFFFF),
    view_digest=st.integers(0, (1 << 64) - 1),
)
def test_round_trip(**fields: object) -> None:
    host_id = fields["host_id"]
    assert isinstance(host_id, int) and isinstance(fields["view"], int)
    fields["view"] |= 1 << host_id - 1
    sent = heartbeat(**fields)
    back = decode(encode(sent))
    assert isinstance(back, Heartbeat)
    assert back.statement == sent.statement
    for name in ("sequence", "ages", "tags", "key_id", "packets_handled", "accepts"):
        assert getattr(back, name) == getattr(sent, name)


def test_an_unchanged_statement_is_the_same_object() -> None:
    """architecture.md: the hot path is a frame in which nothing changed."""
    first = decode(encode(heartbeat()))
    assert isinstance(first, Heartbeat)
    later = heartbeat()
    later.sequence = 4712
    second = decode(encode(later), first)
    assert isinstance(second, Heartbeat)
    assert second.statement is first.statement
    assert second.sequence == 4712
    changed = decode(encode(heartbeat(generation=78)), second)
    assert isinstance(changed, Heartbeat)
    assert changed.statement.generation == 78


def test_a_windows_frame_is_foreign_and_no_error() -> None:
    payload = encode(heartbeat())[:EXTENSION_OFFSET] + bytes(FRAME_BYTES - EXTENSION_OFFSET)
    found = decode(payload)
    assert found == Foreign(2, CLUSTER.packed, IPv4Address("192.168.100.82").packed)


@pytest.mark.parametrize(
    ("offset", "value", "kind"),
    [
        (0, b"\xc0", "signature"),
        (4, b"\x05", "version"),
        (8, b"\x00", "host-id"),
        (8, b"\x21", "host-id"),
        (20, b"\x05", "host-id"),
        (22, b"\x20", "host-id"),
        (26, b"\x00\x00", "slots"),
        (26, b"\x22\x00", "slots"),
        (183, b"\x10", "map"),
        (1232, b"\x65", "weight"),
        (1368, b"\x02", "version"),
        (1369, b"\x06", "state"),
        (1370, b"\x10", "state"),
        (1371, b"\x01", "state"),
        (1376, b"\x05", "view"),
        (1477, b"\x01", "reserved"),
    ],
)
def test_a_field_out_of_range_is_refused(offset: int, value: bytes, kind: str) -> None:
    payload = bytearray(encode(heartbeat()))
    payload[offset : offset + len(value)] = value
    with pytest.raises(HeartbeatError) as caught:
        decode(bytes(payload))
    assert caught.value.kind == kind


@pytest.mark.parametrize("size", [0, 1, 13, 1495, 1497, 3000])
def test_a_wrong_length_is_refused(size: int) -> None:
    with pytest.raises(HeartbeatError) as caught:
        decode((encode(heartbeat()) * 3)[:size])
    assert caught.value.kind == "length"


@settings(max_examples=300)
@given(st.binary(max_size=1600) | st.binary(min_size=FRAME_BYTES, max_size=FRAME_BYTES))
def test_garbage_raises_heartbeat_error_and_nothing_else(garbage: bytes) -> None:
    for payload in (garbage, encode(heartbeat())[: FRAME_BYTES - len(garbage)] + garbage):
        try:
            found = decode(payload)
        except HeartbeatError:
            continue
        assert isinstance(found, Heartbeat | Foreign)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, FRAME_BYTES - 1), st.integers(0, 255)), max_size=6))
def test_damaged_frames_raise_heartbeat_error_and_nothing_else(
    damage: list[tuple[int, int]],
) -> None:
    payload = bytearray(encode(heartbeat()))
    for place, value in damage:
        payload[place] = value
    try:
        found = decode(bytes(payload))
    except HeartbeatError:
        return
    assert isinstance(found, Heartbeat | Foreign)


def test_the_tag_tells_a_joining_host_from_one_that_takes_part() -> None:
    assert code_tag(0x01020304) == 0x40
    assert code_tag(0x01020304, joining=True) == 0xB0
    assert {code_tag(code) for code in range(256)} == set(range(0, 256, 16))


# ---------------------------------------------------------------- public dissectors


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pcap with one of our frames, broadcast from the masked source MAC of host 2."""
    ethernet = bytes.fromhex("ffffffffffff0202c0a86450886f")
    frame = ethernet + encode(heartbeat())
    assert len(frame) == 1510
    path: Path = tmp_path_factory.mktemp("pcap") / "heartbeat.pcap"
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(header + struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
    return path


def dissect(*command: str) -> str:
    assert shutil.which(command[0]), f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_tshark_reads_what_was_put_in(capture: Path) -> None:
    names = (
        "unique_host_id",
        "cluster_ip",
        "host_ip",
        "my_host_ip",
        "default_host_ip",
        "convergence_state",
        "number_of_port_rules",
        "unique_host_code",
        "packets_handled",
        "portruleconfiguration.data",
        "currentmap.data",
        "newmap.data",
        "idlemap.data",
        "readymap.data",
        "loadweights.data",
    )
    wanted = [part for name in names for part in ("-e", f"msnlb.{name}")]
    text = dissect("tshark", "-r", str(capture), "-T", "fields", *wanted)
    read = dict(zip(names, text.rstrip("\n").split("\t"), strict=True))
    assert read["cluster_ip"] == "192.168.100.80"
    assert read["host_ip"] == "192.168.100.82"
    simple = [int(read[name], 0) for name in (*names[:1], *names[3:9])]
    assert simple == [2, 1, 0, 1, 4, 0x4F3BE335, 80268987]
    said = statement()
    for name, values in (
        ("portruleconfiguration.data", said.rule_codes),
        ("currentmap.data", said.current),
        ("newmap.data", said.new),
        ("idlemap.data", said.idle),
        ("readymap.data", said.ready),
        ("loadweights.data", said.weights),
    ):
        shown = tuple(int(value, 0) for value in read[name].split(","))
        assert shown == values + (0,) * (33 - len(values)), name
    whole = dissect("tshark", "-V", "-r", str(capture))
    assert "NLB Cluster Membership HeartBeat" in whole
    assert "malformed" not in whole.lower()


def test_tcpdump_reads_what_was_put_in(capture: Path) -> None:
    # As in a lab: in a user namespace tcpdump cannot become another user.
    wrapped = (sys.executable, tcpdump.__file__, shutil.which("tcpdump") or "tcpdump")
    text = dissect(*wrapped, "-nvvv", "-r", str(capture))
    assert "MS NLB heartbeat" in text
    assert "host priority: 2" in text
    assert "cluster IP: 192.168.100.80" in text
    assert "host IP: 192.168.100.82" in text
