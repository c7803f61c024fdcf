"""The eBPF plane by itself: the object, its layout, and what it leaves on an interface."""

import ctypes
import hashlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from convergence.rules import BUCKETS, SLOTS_MAX
from modes import nft
from modes.mac import parse_mac
from softnlb import ebpf, ebpf_attach, ebpf_table, libbpf, planes
from softnlb.ebpf_attach import Clsact, Tcx, Xdp
from softnlb.ebpf_program import OBJECT, Program
from softnlb.errors import DataPlaneUnavailable, SoftnlbError
from softnlb.filter import Reason
from tests.netns import wait_for
from tests.plane import PORT, STRANGER, VIP, Bench, inside, mac_of

pytestmark = pytest.mark.bpf

ROOT = Path(__file__).parent.parent
CLUSTER_MAC = "02:bf:0a:01:00:64"
STRUCT = 4
KINDS = ("tc", "clsact", "xdp", "xdp-generic")


# ---------------------------------------------------------------- the object


class Btf:
    """The type information of the object."""

    def __init__(self) -> None:
        self._library = libbpf.library()
        for name in ("btf__parse", "btf__type_by_id"):
            getattr(self._library, name).restype = ctypes.c_void_p
        self._library.btf__name_by_offset.restype = ctypes.c_char_p
        self._library.btf__resolve_size.restype = ctypes.c_int64
        self._btf = ctypes.c_void_p(self._library.btf__parse(str(OBJECT).encode(), None))

    def members(self, name: str) -> dict[str, tuple[int, int]]:
        """{name: (bit offset, type)} of a struct."""
        found = self._library.btf__find_by_name_kind(self._btf, name.encode(), STRUCT)
        assert found > 0, name
        at = self._library.btf__type_by_id(self._btf, found)
        words = ctypes.cast(at, ctypes.POINTER(ctypes.c_uint32))
        count = words[1] & 0xFFFF
        members = {}
        for number in range(count):
            fields = words[3 + number * 3 : 6 + number * 3]
            text = self._library.btf__name_by_offset(self._btf, fields[0]).decode()
            members[text] = fields[2], fields[1]
        return members

    def size(self, kind: int) -> int:
        return int(self._library.btf__resolve_size(self._btf, kind))


@pytest.mark.parametrize(
    ("name", "python"),
    [
        ("rule", ebpf_table.Rule),
        ("cluster_ip_address", ebpf_table.ClusterIpAddress),
        ("table", ebpf_table.Table),
        ("state", ebpf_table.State),
    ],
)
def test_both_sides_have_the_same_layout(name: str, python: Any) -> None:
    btf = Btf()
    compiled = {
        field: (bits // 8, btf.size(kind)) for field, (bits, kind) in btf.members(name).items()
    }
    ours = {
        field: (getattr(python, field).offset, getattr(python, field).size)
        for field, _ in python._fields_
    }
    assert compiled == ours


def test_reasons_and_sizes_are_the_definitions() -> None:
    btf = Btf()
    ((_, packets),) = btf.members("counters").values()
    assert btf.size(packets) == ebpf_table.COUNTERS_BYTES
    header = (OBJECT.parent / "filter.h").read_text()
    (names,) = re.findall(r"enum reason {([^}]*)}", header)
    reasons = [name.strip() for name in names.split(",") if name.strip()]
    assert reasons == [*(reason.name for reason in Reason), "REASONS"]
    defined = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", header)}
    assert (defined["BUCKETS"], defined["SLOTS_MAX"]) == (BUCKETS, SLOTS_MAX)


DEBIAN_12 = 'PRETTY_NAME="Debian GNU/Linux 12' in Path("/etc/os-release").read_text()


@pytest.mark.skipif(not DEBIAN_12, reason="the pinned compiler and headers are Debian 12's")
def test_the_object_is_what_the_source_makes(tmp_path: Path) -> None:
    """Byte for byte, from another directory; `make bpf` makes it anew."""
    for file in OBJECT.parent.iterdir():
        if file != OBJECT:
            shutil.copy(file, tmp_path)
    made = subprocess.run(["make", "-s", "-C", tmp_path], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    fresh = hashlib.sha256((tmp_path / OBJECT.name).read_bytes()).hexdigest()
    assert fresh == hashlib.sha256(OBJECT.read_bytes()).hexdigest()


def test_the_wheel_contains_the_object(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in listed.split():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(tmp_path / "source")]
    made = subprocess.run([*command, *options], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert opened.read("softnlb/bpf/filter.bpf.o") == OBJECT.read_bytes()
        assert "softnlb/bpf/filter.bpf.c" in opened.namelist()


def test_what_the_verifier_says_is_in_the_error(tmp_path: Path) -> None:
    broken = bytearray(OBJECT.read_bytes())
    # Of `r0 = -1; exit` of the empty program only `exit` is left.
    at = broken.rindex(bytes.fromhex("b4000000ffffffff9500000000000000"))
    broken[at : at + 8] = bytes.fromhex("bf11000000000000")
    path = tmp_path / "broken.bpf.o"
    path.write_bytes(broken)
    with pytest.raises(libbpf.LoadError) as refused:
        libbpf.BpfObject(path, ("softnlb_tc_none",))
    assert "R0 !read_ok" in refused.value.log
    assert "\n" not in str(refused.value) and refused.value.exit_code == 5
    path.write_bytes(b"no object")
    with pytest.raises(libbpf.LoadError, match="cannot be read"):
        libbpf.BpfObject(path, ())


WITHOUT_RIGHTS = """
from softnlb import ebpf, planes
from softnlb.errors import DataPlaneUnavailable
choice = planes.choose("auto")
print(choice.plane.name, choice.reason)
try:
    planes.choose("ebpf")
except DataPlaneUnavailable as error:
    print(error.exit_code, error)
print(ebpf.probe())
"""


def test_without_rights_auto_is_nfqueue_and_says_why() -> None:
    command = ["unshare", "-Urn", sys.executable, "-c", WITHOUT_RIGHTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    automatic, explicit, probe = done.stdout.splitlines()
    assert automatic.startswith("nfqueue auto: no ebpf, because the kernel forbids eBPF here")
    assert explicit.startswith("5 the kernel forbids eBPF here")
    assert probe.startswith("the kernel forbids eBPF here")


def test_with_rights_auto_is_ebpf() -> None:
    choice = planes.choose("auto")
    assert (choice.plane.name, choice.reason) == ("ebpf", "auto: ebpf works here")
    assert planes.choose("nfqueue").plane.name == "nfqueue"
    assert ebpf.probe() is None


# ---------------------------------------------------------------- on an interface


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    kind = request.param
    if kind == "clsact":
        kind = "tc"
        monkeypatch.setattr(Tcx, "present", no_tcx)
    made = Bench(kind)
    yield made
    made.close()


def no_tcx(_: Tcx, __: int) -> tuple[int, ...]:
    raise OSError("a kernel before 6.6")


def on_interface(bench: Bench) -> list[str]:
    """Where our programs sit on the host's eth0."""

    def look() -> list[str]:
        index = socket.if_nametoindex("eth0")
        found = []
        for place in (Tcx(), Clsact(), Xdp(native=True), Xdp(native=False)):
            try:
                identities = place.present(index)
            except OSError:
                continue
            names = [libbpf.program_name(identity) for identity in identities]
            found += [place.name for name in names if name == place.program]
        return found

    return bench.host.call(look)


def qdiscs(bench: Bench) -> str:
    return bench.host.run("tc qdisc show dev eth0; ip -d link show dev eth0")


def test_one_program_while_attached_and_nothing_after(bench: Bench) -> None:
    assert on_interface(bench) == [bench.plane.attachment]
    assert bench.intact()
    with inside(bench.host):
        bench.plane.detach()
        bench.plane.detach()
        assert ebpf.cleanup("eth0") == []
    assert on_interface(bench) == []
    assert "clsact" not in qdiscs(bench) and "xdp" not in qdiscs(bench)
    with pytest.raises(SoftnlbError, match="not attached"):
        bench.plane.install(bench.table)


def test_a_frame_to_the_cluster_mac_is_kept_by_the_program_alone(bench: Bench) -> None:
    """Fail closed: without the program the stack takes no frame to the cluster MAC."""
    bench.listen()
    mac, host_mac = mac_of(bench.client), parse_mac(mac_of(bench.host))
    rules = nft.ruleset("eth0", parse_mac(CLUSTER_MAC), (IPv4Address(VIP),), True, host_mac)
    bench.host.run("nft -f -", input=rules)

    def answered(sport: int) -> bool:
        packet = IP(src=STRANGER, dst=VIP) / TCP(sport=sport, dport=PORT, flags="S")
        bench.wire.send_bytes(bytes(Ether(src=mac, dst=CLUSTER_MAC) / packet))
        return bench.wire.answer(sport) is not None

    assert answered(6001)
    bench.install(0)
    assert not answered(6002)
    bench.install()
    with inside(bench.host):
        assert ebpf.cleanup("eth0")
    assert not answered(6003)
    assert not bench.intact()


def test_somebody_who_takes_the_program_away_is_noticed(bench: Bench) -> None:
    assert bench.intact()
    kind = bench.plane.attachment
    if kind == "tc (clsact)":
        bench.host.run("tc qdisc del dev eth0 clsact")
        assert select.select([bench.plane.fileno()], [], [], 5)[0]
    elif kind == "tc (tcx)":
        with inside(bench.host):
            ebpf.cleanup("eth0")
    else:
        bench.host.run(f"ip link set dev eth0 {kind.replace('-', '')} off")
    assert not bench.intact()
    # What was heard is read: the descriptor does not wake the agent for ever.
    assert not select.select([bench.plane.fileno()], [], [], 0)[0]
    with inside(bench.host):
        bench.plane.attach("eth0")
    assert bench.intact()


AGENT = """
import ctypes, pickle, sys
from softnlb import ebpf_attach
from softnlb.ebpf import EbpfPlane
if sys.argv[2] == "clsact":
    def no_tcx(*_):
        raise OSError
    ebpf_attach.Tcx.present = no_tcx
plane = EbpfPlane(sys.argv[1])
plane.attach("eth0")
plane.install(pickle.loads(bytes.fromhex(sys.argv[3])))
print("installed", flush=True)
sys.stdin.read()
"""


def test_a_killed_agents_host_keeps_its_connections_and_the_next_attach_cleans_up(
    bench: Bench,
) -> None:
    import pickle

    bench.listen()
    kind = bench.plane.attachment
    with inside(bench.host):
        bench.plane.detach()
    words = (kind.split()[0], "clsact" if "clsact" in kind else "")
    table = pickle.dumps(bench.table).hex()
    agent = bench.host.start(
        [sys.executable, "-c", AGENT, *words, table],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert agent.stdout is not None and agent.stdin is not None
    assert agent.stdout.readline() == "installed\n"
    old, accepted = bench.connection()
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    agent.stdin.close()
    agent.stdout.close()
    old.send(b"still here")
    assert accepted.recv(20) == b"still here"
    assert on_interface(bench) == [kind]
    with inside(bench.host):
        bench.plane.attach("eth0")
    assert on_interface(bench) == [kind]
    bench.install()
    assert bench.answers()


def test_the_next_attach_may_be_of_another_kind(bench: Bench) -> None:
    other = ebpf.EbpfPlane("xdp-generic" if bench.plane.attachment != "xdp-generic" else "xdp")
    with inside(bench.host):
        other.attach("eth0")
        assert not bench.plane.intact()
        assert other.intact()
        other.detach()
    assert on_interface(bench) == []


# ---------------------------------------------------------------- beside others


@pytest.fixture
def plain() -> Iterator[Bench]:
    made = Bench("tc")
    yield made
    made.close()


def test_tc_programs_of_others_stay_and_come_after_ours(plain: Bench) -> None:
    other = libbpf.BpfObject(OBJECT, ("softnlb_tc_none",))
    descriptor = other.program("softnlb_tc_none")
    other.close()
    with inside(plain.host):
        index = socket.if_nametoindex("eth0")
        plain.plane.detach()
        Tcx().attach(index, descriptor)
        plain.plane.attach("eth0")
        identities = Tcx().present(index)
        assert [libbpf.program_name(i) for i in identities] == ["softnlb_tc", "softnlb_tc_none"]
        plain.install()
        plain.plane.detach()
        ebpf.cleanup("eth0")
        assert Tcx().present(index) == identities[1:]
    os.close(descriptor)


def test_a_qdisc_of_somebody_else_stays(plain: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tcx, "present", no_tcx)
    plain.host.run("tc qdisc add dev eth0 clsact")
    with inside(plain.host):
        plane = ebpf.EbpfPlane("tc")
        plane.attach("eth0")
        assert plane.attachment == "tc (clsact)" and plane.intact()
        plane.detach()
    assert "clsact" in qdiscs(plain)


def test_an_xdp_program_of_somebody_else_stays_and_is_named(plain: Bench) -> None:
    other = libbpf.BpfObject(OBJECT, ("softnlb_xdp_none",))
    descriptor = other.program("softnlb_xdp_none")
    other.close()
    with inside(plain.host):
        index = socket.if_nametoindex("eth0")
        plain.plane.detach()
        Xdp(native=True).attach(index, descriptor)
        for kind in ("xdp", "xdp-generic"):
            with pytest.raises(DataPlaneUnavailable, match="somebody else"):
                ebpf.EbpfPlane(kind).attach("eth0")
        ebpf.cleanup("eth0")
        (identity,) = Xdp(native=True).present(index)
        assert libbpf.program_name(identity) == "softnlb_xdp_non"
    os.close(descriptor)


def test_native_xdp_where_the_driver_has_none_is_refused_in_a_sentence(plain: Bench) -> None:
    plain.host.run("ip link add sub0 link eth0 type macvlan")
    with inside(plain.host), pytest.raises(DataPlaneUnavailable, match="does not take native XDP"):
        ebpf.EbpfPlane("xdp").attach("sub0")


def test_an_interface_that_is_not_there(plain: Bench) -> None:
    with inside(plain.host):
        with pytest.raises(SoftnlbError, match="no interface nothing0"):
            ebpf.EbpfPlane().attach("nothing0")
        assert ebpf.cleanup("nothing0") == []


# ---------------------------------------------------------------- frames that only a wire carries


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("0800", "not-cluster"),
        ("080045", "not-cluster"),
        ("0800" + "45" + "00" * 18, "not-cluster"),
        # The kernel takes the tag out of the frame before a tc program sees it.
        ("81000005" + "0800" + "45" + "00" * 45, "tagged"),
        ("88a80005" + "0800" + "45" + "00" * 45, "tagged"),
        ("8100000081000007" + "0800" + "45" + "00" * 45, "tagged"),
    ],
)
def test_frames_that_cannot_be_test_run(plain: Bench, frame: str, reason: str) -> None:
    before = plain.counters().get(reason, 0)
    plain.wire.send_bytes(plain.wire.addresses + bytes.fromhex(frame))
    wait_for(lambda: plain.counters().get(reason, 0) > before)


def test_the_maps_memory_goes_with_the_plane() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("bpf-map")

    before, descriptors = mapped(), len(os.listdir("/proc/self/fd"))
    program = Program(ebpf_attach.TC_PROGRAM)
    assert mapped() == before + 1
    program.close()
    del program
    assert mapped() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
