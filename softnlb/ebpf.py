"""The ebpf plane: the kernel decides, from a table that the agent writes into shared memory."""

import ctypes
import mmap
import os
import platform
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from softnlb import ebpf_attach, ebpf_table, libbpf, netlink
from softnlb.ebpf_attach import TC_PROGRAM, XDP_PROGRAM, Attachment
from softnlb.ebpf_table import REASONS, State
from softnlb.errors import DataPlaneUnavailable, SoftnlbError
from softnlb.filter import FilterTable

OBJECT = Path(__file__).parent / "bpf" / "filter.bpf.o"

_CONNTRACK = Path("/sys/module/nf_conntrack")
_GROUP_TC = 4
_SIOCGIFHWADDR = 0x8927
_MEMBARRIER_GLOBAL = 1
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365}
_GRACE_S = 0.02


@dataclass(slots=True)
class _Loaded:
    """Programs and maps in the kernel, attached to nothing."""

    program_fd: int
    counters_fd: int
    state: State
    with_conntrack: bool

    def close(self) -> None:
        os.close(self.program_fd)
        os.close(self.counters_fd)


@dataclass(slots=True)
class _Attached:
    """What exists between attach and detach."""

    interface: str
    index: int
    interface_mac: bytes
    attachment: Attachment
    loaded: _Loaded
    identity: int
    monitor: socket.socket
    ports: ebpf_table.Ports | None = None


class EbpfPlane:
    """A DataPlane in one program on the interface's ingress.

    The program sets the packet type of what it keeps, so the link's rules must not: without the
    program nothing is kept.  It goes on deciding when the agent dies, until the lease is over for
    new connections and without end for old ones.
    """

    name = "ebpf"
    sets_packet_type = True

    def __init__(self, attach: str = "auto") -> None:
        """``attach``: auto, tc, xdp (in the driver) or xdp-generic."""
        self._attach = attach
        self._loaded: _Loaded | None = None
        self._present: _Attached | None = None

    @property
    def attachment(self) -> str:
        """Where the program sits, for people."""
        return self._present.attachment.name if self._present else self._attach

    def load(self) -> None:
        """Bring the program into the kernel, attached to nothing.

        Raises DataPlaneUnavailable; LoadError has the verifier's log.
        """
        if self._loaded is None:
            self._loaded = _load(XDP_PROGRAM if self._attach.startswith("xdp") else TC_PROGRAM)

    def attach(self, interface: str) -> None:
        """Begin to filter; nothing is filtered, nor of another type, until install.

        Raises DataPlaneUnavailable.  What a crashed agent left on the interface is replaced.
        """
        self.detach()
        self.load()
        loaded, self._loaded = self._loaded, None
        assert loaded is not None
        try:
            self._present = _attach(interface, self._attach, loaded)
        except BaseException:
            loaded.close()
            raise

    def install(self, table: FilterTable) -> None:
        """Obey this table: when this returns, no packet is decided by an older one any more."""
        present = self._attached()
        if present.ports is None or present.ports.key != ebpf_table.ports_key(table):
            present.ports = ebpf_table.Ports(table)
        state = present.loaded.state
        fresh = state.active ^ 1
        present.ports.write(state.tables[fresh])
        ebpf_table.write(table, present.interface_mac, state.tables[fresh])
        state.active = fresh
        _wait_for_running_programs()

    def renew(self, valid_until_ms: int) -> None:
        """Extend the lease of the installed table (boot-time clock, ms)."""
        state = self._attached().loaded.state
        state.tables[state.active].valid_until_ns = ebpf_table.lease_ns(valid_until_ms)

    def counters(self) -> dict[str, int]:
        """Packets per reason since attach."""
        found: dict[str, int] = {}
        for row in self._rows():
            for reason, packets in row.items():
                found[reason] = found.get(reason, 0) + packets
        return dict(sorted(found.items()))

    def slot_counters(self, slot: int) -> dict[str, int]:
        """Packets per reason that met the rule of this slot."""
        return self._rows()[slot + 1]

    def _rows(self) -> list[dict[str, int]]:
        cpus = libbpf.possible_cpus()
        size = ebpf_table.COUNTERS_BYTES
        data = libbpf.lookup(self._attached().loaded.counters_fd, 0, size * cpus)
        words = struct.unpack(f"={len(data) // 8}Q", data)
        width, each = len(REASONS), size // 8
        rows = []
        for at in range(0, each, width):
            sums = [sum(words[at + number :: each]) for number in range(width)]
            rows.append({str(r): n for r, n in zip(REASONS, sums, strict=True) if n})
        return rows

    def intact(self) -> bool:
        """False when the program is no longer where attach put it, or connection tracking has
        come since, which the program can only ask when it is loaded anew."""
        present = self._present
        if present is None:
            return False
        _drain(present.monitor)
        try:
            identities = present.attachment.present(present.index)
        except OSError:
            return False
        conntrack_came = _CONNTRACK.exists() and not present.loaded.with_conntrack
        return present.identity in identities and not conntrack_came

    def fileno(self) -> int:
        """Readable when somebody changes tc filters or qdiscs; then ask ``intact``."""
        return self._attached().monitor.fileno()

    def detach(self) -> None:
        """Remove every trace of this plane.  Safe to call twice."""
        present, self._present = self._present, None
        if present is None:
            return
        present.monitor.close()
        try:
            if present.identity in present.attachment.present(present.index):
                present.attachment.detach(present.index, present.identity)
        except OSError:
            # The interface is gone, and the program with it.
            pass
        present.loaded.close()

    def _attached(self) -> _Attached:
        if self._present is None:
            raise SoftnlbError("the ebpf plane is not attached")
        return self._present


def cleanup(interface: str) -> list[str]:
    """Remove what a plane on this interface left behind; harmless when there is nothing."""
    try:
        index = socket.if_nametoindex(interface)
        removed = ebpf_attach.remove_ours(index)
    except (OSError, DataPlaneUnavailable):
        return []
    return [f"removed the filter program from {interface} ({name})" for name in removed]


def probe() -> str | None:
    """Why ebpf cannot work here, None when it can.  Loads the program and attaches it nowhere."""
    plane = EbpfPlane()
    try:
        plane.load()
    except DataPlaneUnavailable as error:
        return str(error)
    return None


def _load(program: str) -> _Loaded:
    with_conntrack = _CONNTRACK.exists()
    loaded = libbpf.BpfObject(OBJECT, (program,))
    try:
        bss = loaded.map(".bss")
        try:
            memory = mmap.mmap(bss, ctypes.sizeof(State))
        finally:
            os.close(bss)
        return _Loaded(
            loaded.program(program),
            loaded.map("packets"),
            State.from_buffer(memory),
            with_conntrack,
        )
    finally:
        loaded.close()


def _attach(interface: str, attach: str, loaded: _Loaded) -> _Attached:
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        raise SoftnlbError(f"there is no interface {interface} on this host") from None
    try:
        ebpf_attach.remove_ours(index)
        attachment = ebpf_attach.choose(attach, index)
        attachment.attach(index, loaded.program_fd)
    except OSError as error:
        raise DataPlaneUnavailable(f"the kernel does not attach the program: {error}") from error
    return _Attached(
        interface,
        index,
        _mac(interface),
        attachment,
        loaded,
        libbpf.program_id(loaded.program_fd),
        netlink.monitor(netlink.ROUTE, _GROUP_TC),
    )


def _mac(interface: str) -> bytes:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        request = struct.pack("40s", interface.encode())
        return fcntl.ioctl(asked, _SIOCGIFHWADDR, request)[18:24]


def _drain(monitor: socket.socket) -> None:
    while True:
        try:
            monitor.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            # More than it could hold: whatever was lost, the caller looks for itself.
            continue


def _wait_for_running_programs() -> None:
    """Every run that began before this call has ended when it returns: about 10 ms."""
    number = _MEMBARRIER.get(platform.machine())
    if number is None or ctypes.CDLL(None).syscall(number, _MEMBARRIER_GLOBAL, 0, 0):
        # A run lasts microseconds, and nothing else on its processor can delay it this long.
        time.sleep(_GRACE_S)
