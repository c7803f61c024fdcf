"""The nfqueue plane: nft queues what must be decided, a forked process gives the verdicts."""

import importlib.util
import json
import os
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from softnlb import netlink, nfqueue_rules, nft
from softnlb.errors import DataPlaneUnavailable, MachineError, SoftnlbError
from softnlb.filter import FilterTable
from softnlb.known_clients import Known
from softnlb.verdicts import NOTHING, SharedTable, VerdictProcess

_EARLY_DEMUX = ("/proc/sys/net/ipv4/ip_early_demux", "/proc/sys/net/ipv4/tcp_early_demux")


@dataclass(slots=True)
class _Attached:
    """What exists between attach and detach."""

    interface: str
    shared: SharedTable
    process: VerdictProcess
    kernel: netlink.Netlink
    forwards: bool
    rules: nft.Snapshot = ()
    elements: str = ""

    def end_old_verdicts(self) -> None:
        """When this returns, no verdict that began before is still to come."""
        if not self.shared.wait_for_old_verdicts():
            # Stopped in the middle of a verdict: it may wake when the bucket is another host's.
            self.process.kill()

    def snapshot(self) -> nft.Snapshot:
        name = nfqueue_rules.table_name(self.interface)
        return nft.snapshot(self.kernel, [("inet", name)])


class NfqueuePlane:
    """A DataPlane in one nft table and one process; works in a user namespace, too.

    Nothing is filtered before the first ``install`` has told the cluster's addresses: they belong
    on the interface after it.  Attach from a thread that lives as long as the plane: the kernel
    ends the verdict process together with the thread that made it.
    """

    name = "nfqueue"
    attachment = "nft"
    sets_packet_type = False

    def __init__(self, queue_num: int | None = None) -> None:
        """``queue_num``: None takes the first queue that nobody in the network namespace uses."""
        self._queue_number = queue_num
        self._present: _Attached | None = None

    def attach(self, interface: str) -> None:
        """Start the verdict process and put the rules in place; nothing is kept until install.

        Raises DataPlaneUnavailable.  What a crashed agent left on the interface is replaced.
        """
        self.detach()
        self._present = _attach(interface, self._queue_number)

    def install(self, table: FilterTable) -> None:
        """Obey this table: when this returns, no verdict by an older one is still to come."""
        present = self._attached()
        elements = nfqueue_rules.set_elements(present.interface, table)
        if elements != present.elements:
            nft.apply(elements)
            present.elements = elements
        present.shared.write(table)
        present.end_old_verdicts()

    def renew(self, valid_until_ms: int) -> None:
        """Extend the lease of the installed table (boot-time clock, ms)."""
        self._attached().shared.renew(valid_until_ms)

    def clients(self) -> list[Known]:
        """The clients that this host remembers."""
        return self._attached().shared.clients.known()

    def forget(self, keys: Collection[bytes]) -> None:
        """Remember these clients no more: when this returns, none of them is accepted as known."""
        present = self._attached()
        # A verdict under way may have noted meanwhile that the client was heard.
        while present.shared.clients.forget(keys):
            present.end_old_verdicts()

    def heard(self, clients: Collection[Known], now_ms: int) -> None:
        """These clients were heard now, as far as they are remembered."""
        self._attached().shared.clients.heard(clients, now_ms)

    def leave_to_others(self, added: Mapping[bytes, int], removed: Collection[bytes]) -> None:
        """The clients that other hosts keep; in force when this returns."""
        present = self._attached()
        present.shared.clients.put(added)
        if added:
            present.end_old_verdicts()
        present.shared.clients.take_back(removed)

    def not_remembered(self) -> int:
        """Clients for whom there was no room since attach."""
        return self._attached().shared.clients.not_remembered

    def counters(self) -> dict[str, int]:
        """Packets per reason since attach, the kernel's own decisions included."""
        present = self._attached()
        found = present.shared.counters()
        for reason, packets in _kernel_counters(present.interface).items():
            found[reason] = found.get(reason, 0) + packets
        return {reason: packets for reason, packets in sorted(found.items()) if packets}

    def slot_counters(self, slot: int) -> dict[str, int]:
        """Packets per reason that met the rule of this slot, without those the kernel decided."""
        return self._attached().shared.counters(slot)

    def intact(self) -> bool:
        """False when the verdict process ended, any of the rules is not as attach left it, or
        somebody has begun to translate addresses, which takes other rules."""
        present = self._present
        return (
            present is not None
            and present.process.alive()
            and present.snapshot() == present.rules
            and nfqueue_rules.translates_destinations(present.kernel) == present.forwards
        )

    def fileno(self) -> int:
        """A descriptor that becomes readable when the verdict process ends."""
        return self._attached().process.fileno()

    @property
    def process_id(self) -> int:
        """Of the process that gives the verdicts."""
        return self._attached().process.pid

    def detach(self) -> None:
        """Remove every trace of this plane.  Safe to call twice."""
        present, self._present = self._present, None
        if present is not None:
            present.process.kill()
            cleanup(present.interface)
            present.kernel.close()
            present.shared.close()

    def _attached(self) -> _Attached:
        if self._present is None:
            raise SoftnlbError("the nfqueue plane is not attached")
        return self._present


def cleanup(interface: str) -> None:
    """Remove what a plane on this interface left behind; harmless when there is nothing."""
    nft.apply(nfqueue_rules.removal(interface))


def probe() -> str | None:
    """Why nfqueue cannot work here, None when it can.  Tries it, on a table that nobody uses."""
    plane = NfqueuePlane()
    try:
        # No interface can have a slash in its name.
        plane.attach(f"probe/{os.getpid()}")
    except MachineError as error:
        return str(error)
    plane.detach()
    return None


def _attach(interface: str, queue_number: int | None) -> _Attached:
    if reason := _missing():
        raise DataPlaneUnavailable(reason)
    shared = SharedTable()
    shared.write(NOTHING)
    kernel = netlink.Netlink(netlink.NETFILTER)
    process = None
    try:
        process = VerdictProcess(shared, interface, queue_number)
        forwards = nfqueue_rules.translates_destinations(kernel)
        _build(interface, process.queue_number, forwards)
        present = _Attached(interface, shared, process, kernel, forwards)
        present.rules = present.snapshot()
    except BaseException:
        if process is not None:
            process.kill()
            cleanup(interface)
        kernel.close()
        shared.close()
        raise
    return present


def _missing() -> str | None:
    if importlib.util.find_spec("netfilterqueue") is None:
        return "the Python module NetfilterQueue is missing: pip install 'softnlb[nfqueue]'"
    for path in _EARLY_DEMUX:
        with open(path, encoding="ascii") as setting:
            if setting.read().strip() == "0":
                name = path.removeprefix("/proc/sys/").replace("/", ".")
                return f"{name} is 0, and the kernel finds no connection early: sysctl -w {name}=1"
    return None


def _build(interface: str, queue_number: int, forwards: bool) -> None:
    """The NFQUEUE target, which most kernels have, otherwise nft's own queue statement."""
    nft.apply(nfqueue_rules.ruleset(interface, None, forwards))
    try:
        nfqueue_rules.add_queue_rule(interface, queue_number)
    except DataPlaneUnavailable as neither:
        try:
            nft.apply(nfqueue_rules.ruleset(interface, queue_number, forwards))
        except MachineError:
            raise neither from None


def _kernel_counters(interface: str) -> dict[str, int]:
    name = nfqueue_rules.table_name(interface)
    done = subprocess.run(
        ["nft", "-j", "list", "counters", "table", "inet", name],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {}
    listed = json.loads(done.stdout)["nftables"]
    found = (entry["counter"] for entry in listed if "counter" in entry)
    return {counter["name"]: counter["packets"] for counter in found}
