"""Applies a LinkPlan to this machine, keeps it in place, and undoes it.

Order is safety: everything else stands before a cluster IP address is added, and a cluster IP
address goes before anything else falls.  What is changed is on the disk before it is changed.
"""

import os
import socket
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from modes import arp, ndp
from modes.mac import colon_mac
from modes.plan import LinkPlan
from softnlb import interface, memberships, netlink, nft, record, shared_sysctls
from softnlb.errors import SoftnlbError
from softnlb.interface import Interface
from softnlb.interface_lock import InterfaceLock
from softnlb.kernel import one_sentence, read_sysctl, write_sysctl
from softnlb.monitors import Monitors
from softnlb.record import Record
from softnlb.undo import undo

RECORD = "link.json"
"""The file of what was changed, in the host's directory."""


class Link:
    """The cluster interface of a started host.

    Every method may raise SoftnlbError or MachineError with one sentence for the operator.
    """

    def __init__(self, plan: LinkPlan, state_file: Path) -> None:
        self.plan = plan
        self._state_file = state_file
        self._addresses = tuple(address.ip for address in plan.cluster_ip_addresses)
        self._sockets = ExitStack()
        self._memberships = ExitStack()
        self._lock = InterfaceLock(plan.interface, state_file.parent.name)
        self._addresses_on = False
        self._recorded: Record | None = None
        self.unrecorded: str | None = None
        """Why the record of what was changed is not on the disk; None when it is."""

    # ------------------------------------------------------------ up

    def apply(self) -> None:
        """Make everything hold but the cluster IP addresses themselves.

        Repairs first what a crashed agent left behind.  Refuses (SoftnlbError) when another agent
        holds the interface or something else has configured a cluster IP address.
        """
        self._lock.take()
        try:
            with one_sentence():
                _clean(self._state_file)
                self._sockets.callback(os.close, shared_sysctls.need())
                self._route = netlink.Netlink()
                self._nft = netlink.Netlink(netlink.NETFILTER)
                self._sockets.callback(self._route.close)
                self._sockets.callback(self._nft.close)
                # Kept open: closing one takes the kernel a grace period of 10 ms.
                self._announcer = self._sockets.enter_context(
                    socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
                )
                self._interface = self._find()
                self._refuse_foreign_addresses()
                self._monitors = Monitors(self._interface.index)
                self._sockets.callback(self._monitors.close)
                self._recorded = self._record()
                self._write_record(self._recorded)
                self._make_it_hold()
        except BaseException:
            self.restore()
            raise

    def _write_record(self, recorded: Record) -> None:
        """A full disk must not keep a host down: then only a crash would leave things behind."""
        self.unrecorded = None
        try:
            recorded.write(self._state_file)
        except OSError as error:
            self.unrecorded = error.strerror or str(error)

    def _find(self) -> Interface:
        found = interface.find(self._route, self.plan.interface)
        if found is None:
            raise SoftnlbError(f"there is no interface {self.plan.interface} on this host")
        if not found.ethernet:
            raise SoftnlbError(f"{self.plan.interface} is not an Ethernet interface")
        return found

    def _refuse_foreign_addresses(self) -> None:
        present = {address for _index, address in interface.ip_addresses(self._route)}
        for address in self._addresses:
            if address in present:
                raise SoftnlbError(
                    f"{address} is already configured on this host by something else: "
                    "remove it there, softnlb adds and removes it itself"
                )

    def _record(self) -> Record:
        plan = self.plan
        return Record(
            interface=plan.interface,
            former_mac=colon_mac(self._interface.mac),
            interface_mac=colon_mac(plan.interface_mac) if plan.interface_mac else None,
            secondary_mac=colon_mac(plan.cluster_mac) if plan.secondary_mac else None,
            cluster_ip_addresses=tuple(map(str, self._addresses)),
            nft_tables=plan.nft_tables,
            sysctls=self._sysctls_to_set(),
        )

    def _sysctls_to_set(self) -> tuple[tuple[str, str, str], ...]:
        present = ((name, read_sysctl(name), value) for name, value in self.plan.sysctls)
        return tuple(change for change in present if change[1] != change[2])

    def _make_it_hold(self) -> None:
        """Every step may be repeated, whatever of it already holds."""
        plan = self.plan
        for name, _former, value in self._sysctls_to_set():
            write_sysctl(name, value)
        if plan.interface_mac and plan.interface_mac != self._interface.mac:
            interface.set_mac(self._route, self._interface, plan.interface_mac)
            self._interface = self._find()
        nft.apply(plan.nft_ruleset)
        self._snapshot = nft.snapshot(self._nft, plan.nft_tables)
        if plan.secondary_mac:
            interface.add_secondary_mac(self._route, self._interface, plan.cluster_mac)
        self._memberships.close()
        self._memberships = memberships.join(plan, self._interface.index)
        self._withdrawal = tuple(
            interface.delete_ip_address(self._interface, address) for address in self._addresses
        )

    def add_cluster_ip_addresses(self) -> None:
        """From now on this host answers for the cluster IP addresses."""
        self._addresses_on = True
        with one_sentence():
            for address in self._addresses:
                interface.add_ip_address(self._route, self._interface, address)

    def announce(self) -> None:
        """Tell all neighbours the cluster MAC, for caches that hold something else: gratuitous ARP,
        unsolicited neighbour advertisements."""
        if not self.plan.announces:
            return
        with one_sentence():
            for address in self._addresses:
                own, cluster = self._interface.mac, self.plan.cluster_mac
                if isinstance(address, IPv4Address):
                    frame = arp.announcement(own, cluster, address)
                else:
                    frame = ndp.announcement(own, cluster, address)
                self._announcer.sendto(frame, (self.plan.interface, 0))

    # ------------------------------------------------------------ down

    def withdraw_cluster_ip_addresses(self) -> None:
        """Take the cluster IP addresses off at once; no error when they are off."""
        if not self._addresses_on:
            return
        self._addresses_on = False
        for request in self._withdrawal:
            try:
                self._route.send(request)
            except OSError:
                # Already gone, or the interface is: off is off.
                continue

    def restore(self) -> None:
        """Undo everything that was changed; safe to call at any time, and twice."""
        if not self._lock.held:
            return
        self.withdraw_cluster_ip_addresses()
        self._memberships.close()
        self._sockets.close()
        try:
            with one_sentence():
                _clean(self._state_file, self._recorded)
        finally:
            self._lock.release()

    # ------------------------------------------------------------ staying up

    def monitors(self) -> tuple[socket.socket, ...]:
        """Sockets that become readable when anybody changes the network of this host."""
        return self._monitors.sockets

    def disturbed(self, monitor: socket.socket) -> bool:
        """Read what a monitor heard: could it concern us?  Then ask ``intact``."""
        return self._monitors.read(monitor)

    def intact(self) -> bool:
        """Whether all that ``apply`` made still holds, and the addresses are on if they should be.

        A dozen netlink messages, below a millisecond.
        """
        plan = self.plan
        try:
            present = interface.find(self._route, plan.interface)
            if present is None or present.index != self._interface.index:
                return False
            if present.mac != self._interface.mac:
                return False
            if plan.secondary_mac and plan.cluster_mac not in interface.secondary_macs(
                self._route, present
            ):
                return False
            if self._addresses_on and not {
                (present.index, address) for address in self._addresses
            } <= interface.ip_addresses(self._route):
                return False
            if any(read_sysctl(name) != value for name, value in plan.sysctls):
                return False
            return nft.snapshot(self._nft, plan.nft_tables) == self._snapshot
        except OSError:
            return False

    def repair(self) -> None:
        """Withdraw the cluster IP addresses, then put back what is gone; adding is the caller's."""
        self.withdraw_cluster_ip_addresses()
        with one_sentence():
            present = self._find()
            if present.index != self._interface.index:
                raise SoftnlbError(
                    f"{present.name} was removed and made anew: start the host again"
                )
            self._interface = present
            # What somebody else has set meanwhile is what to leave behind, unless we set it first.
            recorded = self._recorded or self._record()
            known = {name for name, _former, _value in recorded.sysctls}
            fresh = tuple(change for change in self._sysctls_to_set() if change[0] not in known)
            self._recorded = replace(recorded, sysctls=recorded.sysctls + fresh)
            self._write_record(self._recorded)
            self._make_it_hold()


def cleanup(state_file: Path) -> list[str]:
    """Undo what a crashed agent left behind, from its record; one sentence for each thing undone.

    Raises SoftnlbError when the agent still runs.
    """
    left = record.read(state_file)
    if left is None:
        state_file.unlink(missing_ok=True)
        return []
    lock = InterfaceLock(left.interface, state_file.parent.name)
    lock.take()
    try:
        with one_sentence():
            return _clean(state_file)
    finally:
        lock.release()


def _clean(state_file: Path, recorded: Record | None = None) -> list[str]:
    """Undo what is recorded, in memory if it is: a disk may have been full."""
    left = recorded or record.read(state_file)
    done = []
    if left is not None:
        with shared_sysctls.leaving(left) as mine:
            done = undo(mine)
    with suppress(OSError):  # a file system that became read-only: the record says its boot
        state_file.unlink(missing_ok=True)
    return done
