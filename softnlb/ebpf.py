"""The ebpf plane: a program on the interface decides, from the table that the agent writes."""

import fcntl
import socket
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from softnlb import ebpf_attach, ebpf_clients, netlink
from softnlb.ebpf_attach import TC_PROGRAM, XDP_PROGRAM, Attachment
from softnlb.ebpf_program import Program, wait_for_running_programs
from softnlb.errors import DataPlaneUnavailable, SoftnlbError
from softnlb.filter import FilterTable
from softnlb.known_clients import Known
from softnlb.nfqueue_rules import translates_destinations

_GROUP_TC = 4
_SIOCGIFHWADDR = 0x8927


@dataclass(slots=True)
class _Attached:
    """What exists between attach and detach."""

    interface: str
    index: int
    interface_mac: bytes
    attachment: Attachment
    program: Program
    monitor: socket.socket
    kernel: netlink.Netlink


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
        self._loaded: Program | None = None
        self._present: _Attached | None = None

    @property
    def attachment(self) -> str:
        """Where the program sits, for people."""
        return self._present.attachment.name if self._present else self._attach

    def load(self) -> Program:
        """Bring the program into the kernel, attached to nothing.

        Raises DataPlaneUnavailable; LoadError has the verifier's log.
        """
        if self._loaded is None:
            self._loaded = Program(XDP_PROGRAM if self._attach.startswith("xdp") else TC_PROGRAM)
        return self._loaded

    def attach(self, interface: str) -> None:
        """Begin to filter; nothing is filtered, nor of another type, until install.

        Raises DataPlaneUnavailable.  What a crashed agent left on the interface is replaced.
        """
        self.detach()
        program, self._loaded = self.load(), None
        try:
            self._present = _attach(interface, self._attach, program)
        except BaseException:
            program.close()
            raise

    def install(self, table: FilterTable) -> None:
        """Obey this table: when this returns, no packet is decided by an older one any more."""
        present = self._attached()
        present.program.write(table, present.interface_mac)
        wait_for_running_programs()

    def renew(self, valid_until_ms: int) -> None:
        """Extend the lease of the installed table (boot-time clock, ms)."""
        self._attached().program.renew(valid_until_ms)

    def clients(self) -> list[Known]:
        """The clients that this host remembers."""
        return list(ebpf_clients.read(self._attached().program.clients))

    def forget(self, keys: Collection[bytes]) -> None:
        """Remember these clients no more: when this returns, none of them is accepted as known."""
        ebpf_clients.delete(self._attached().program.clients, list(keys))
        wait_for_running_programs()

    def heard(self, clients: Collection[Known], now_ms: int) -> None:
        """These clients were heard now, as far as they are remembered."""
        ebpf_clients.heard(self._attached().program.clients, list(clients), now_ms)

    def leave_to_others(self, added: Mapping[bytes, int], removed: Collection[bytes]) -> None:
        """The clients that other hosts keep; in force when this returns."""
        exceptions = self._attached().program.exceptions
        ebpf_clients.put(exceptions, added)
        if added:
            wait_for_running_programs()
        ebpf_clients.delete(exceptions, list(removed))

    def not_remembered(self) -> int:
        """Clients for whom there was no room since attach."""
        return self._attached().program.not_remembered

    def counters(self) -> dict[str, int]:
        """Packets per reason since attach."""
        found: dict[str, int] = {}
        for row in self._attached().program.counters():
            for reason, packets in row.items():
                found[reason] = found.get(reason, 0) + packets
        return dict(sorted(found.items()))

    def slot_counters(self, slot: int) -> dict[str, int]:
        """Packets per reason that met the rule of this slot."""
        return self._attached().program.counters()[slot + 1]

    def intact(self) -> bool:
        """False when the program is no longer where attach put it, or connection tracking has
        come since, which the program can only ask when it is loaded anew.

        Notices on the way when others have begun or ceased to translate addresses.
        """
        present = self._present
        if present is None:
            return False
        _drain(present.monitor)
        present.program.ask_conntrack(translates_destinations(present.kernel))
        try:
            identities = present.attachment.present(present.index)
        except OSError:
            return False
        return present.program.identity in identities and present.program.up_to_date()

    def fileno(self) -> int:
        """Readable when somebody changes tc filters or qdiscs; then ask ``intact``."""
        return self._attached().monitor.fileno()

    def detach(self) -> None:
        """Remove every trace of this plane.  Safe to call twice."""
        present, self._present = self._present, None
        if present is None:
            return
        present.monitor.close()
        present.kernel.close()
        try:
            if present.program.identity in present.attachment.present(present.index):
                present.attachment.detach(present.index, present.program.identity)
        except OSError:
            # The interface is gone, and the program with it.
            pass
        present.program.close()

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
    try:
        EbpfPlane().load().close()
    except DataPlaneUnavailable as error:
        return str(error)
    return None


def _attach(interface: str, attach: str, program: Program) -> _Attached:
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        raise SoftnlbError(f"there is no interface {interface} on this host") from None
    try:
        ebpf_attach.remove_ours(index)
        attachment = ebpf_attach.choose(attach, index)
        attachment.attach(index, program.descriptor)
    except OSError as error:
        raise DataPlaneUnavailable(f"the kernel does not attach the program: {error}") from error
    kernel = netlink.Netlink(netlink.NETFILTER)
    program.ask_conntrack(translates_destinations(kernel))
    return _Attached(
        interface,
        index,
        _mac(interface),
        attachment,
        program,
        netlink.monitor(netlink.ROUTE, _GROUP_TC),
        kernel,
    )


def _mac(interface: str) -> bytes:
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
