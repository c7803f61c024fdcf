"""The nfqueue plane: nft queues what must be decided, a forked process gives the verdicts."""

import importlib.util
import json
import os
import subprocess

from softnlb import netlink, nfqueue_rules, nft
from softnlb.errors import DataPlaneUnavailable, MachineError, SoftnlbError
from softnlb.filter import FilterTable
from softnlb.verdicts import SharedTable, VerdictProcess

_EARLY_DEMUX = ("/proc/sys/net/ipv4/ip_early_demux", "/proc/sys/net/ipv4/tcp_early_demux")
_NOTHING = FilterTable("", b"", (), (), 0, (), 0, started=False)


class NfqueuePlane:
    """A DataPlane in one nft table and one process; works in a user namespace, too.

    Nothing is filtered before the first ``install`` has told the cluster's addresses: they belong
    on the interface after it.
    """

    name = "nfqueue"

    def __init__(self, queue_num: int | None = None) -> None:
        """``queue_num``: None takes the first queue that nobody in the network namespace uses."""
        self._queue_number = queue_num
        self._interface: str | None = None
        self._shared: SharedTable | None = None
        self._process: VerdictProcess | None = None
        self._netlink: netlink.Netlink | None = None
        self._rules: nft.Snapshot = ()
        self._elements = ""

    def attach(self, interface: str) -> None:
        """Start the verdict process and put the rules in place; nothing is kept until install.

        Raises DataPlaneUnavailable.  What a crashed agent left on the interface is replaced.
        """
        self.detach()
        if reason := _missing():
            raise DataPlaneUnavailable(reason)
        self._interface = interface
        self._shared = SharedTable()
        self._shared.write(_NOTHING)
        try:
            self._process = VerdictProcess(self._shared, interface, self._queue_number)
            self._netlink = netlink.Netlink(netlink.NETFILTER)
            _build(interface, self._process.queue_number)
        except MachineError:
            self.detach()
            raise
        self._rules = self._snapshot()

    def install(self, table: FilterTable) -> None:
        """Obey this table: when this returns, no verdict by an older one is still to come."""
        shared, process, interface = self._attached()
        elements = nfqueue_rules.set_elements(interface, table)
        if elements != self._elements:
            nft.apply(elements)
            self._elements = elements
        shared.write(table)
        if not shared.wait_for_old_verdicts():
            # Stopped in the middle of a verdict: it may wake when the bucket is another host's.
            process.kill()

    def renew(self, valid_until_ms: int) -> None:
        """Extend the lease of the installed table (boot-time clock, ms)."""
        self._attached()[0].renew(valid_until_ms)

    def counters(self) -> dict[str, int]:
        """Packets per reason since attach, the kernel's own decisions included."""
        shared, _process, interface = self._attached()
        found = shared.counters()
        for reason, packets in _kernel_counters(interface).items():
            found[reason] = found.get(reason, 0) + packets
        return {reason: packets for reason, packets in sorted(found.items()) if packets}

    def slot_counters(self, slot: int) -> dict[str, int]:
        """Packets per reason that met the rule of this slot, without those the kernel decided."""
        return self._attached()[0].counters(slot)

    def intact(self) -> bool:
        """False when the verdict process ended or any of the rules is not as attach left it."""
        return (
            self._process is not None and self._process.alive() and self._snapshot() == self._rules
        )

    def fileno(self) -> int:
        """A descriptor that becomes readable when the verdict process ends."""
        return self._attached()[1].fileno()

    @property
    def process_id(self) -> int:
        """Of the process that gives the verdicts."""
        return self._attached()[1].pid

    def detach(self) -> None:
        """Remove every trace of this plane.  Safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        if self._interface is not None:
            cleanup(self._interface)
            self._interface = None
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        self._elements = ""

    def _attached(self) -> tuple[SharedTable, VerdictProcess, str]:
        if self._shared is None or self._process is None or self._interface is None:
            raise SoftnlbError("the nfqueue plane is not attached")
        return self._shared, self._process, self._interface

    def _snapshot(self) -> nft.Snapshot:
        assert self._netlink is not None and self._interface is not None
        name = nfqueue_rules.table_name(self._interface)
        return nft.snapshot(self._netlink, [("ip", name)])


def cleanup(interface: str) -> None:
    """Remove what a plane on this interface left behind; harmless when there is nothing."""
    nft.apply(nfqueue_rules.removal(interface))


def probe() -> str | None:
    """Why nfqueue cannot work here, None when it can.  Tries it, on a table that nobody uses."""
    if reason := _missing():
        return reason
    # No interface can have a slash in its name.
    interface = f"probe/{os.getpid()}"
    shared = SharedTable()
    shared.write(_NOTHING)
    process = None
    try:
        process = VerdictProcess(shared, "lo", None)
        _build(interface, process.queue_number)
    except MachineError as error:
        return str(error)
    finally:
        if process is not None:
            process.kill()
            cleanup(interface)
        shared.close()
    return None


def _missing() -> str | None:
    if importlib.util.find_spec("netfilterqueue") is None:
        return "the Python module NetfilterQueue is missing: pip install 'softnlb[nfqueue]'"
    for path in _EARLY_DEMUX:
        with open(path, encoding="ascii") as setting:
            if setting.read().strip() == "0":
                name = path.removeprefix("/proc/sys/").replace("/", ".")
                return f"{name} is 0, and the kernel finds no connection early: sysctl -w {name}=1"
    return None


def _build(interface: str, queue_number: int) -> None:
    """nft's queue statement where the kernel has it, otherwise the NFQUEUE target."""
    try:
        nft.apply(nfqueue_rules.ruleset(interface, queue_number))
    except MachineError:
        nft.apply(nfqueue_rules.ruleset(interface, None))
        nfqueue_rules.add_queue_rule(interface, queue_number)


def _kernel_counters(interface: str) -> dict[str, int]:
    name = nfqueue_rules.table_name(interface)
    done = subprocess.run(
        ["nft", "-j", "list", "counters", "table", "ip", name],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {}
    found = (
        entry["counter"] for entry in json.loads(done.stdout)["nftables"] if "counter" in entry
    )
    return {counter["name"]: counter["packets"] for counter in found}
