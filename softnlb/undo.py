"""Undoes what a record says, in reverse order; what somebody else changed since stays."""

from ipaddress import IPv4Address

from modes import mac
from modes.nft import removal
from softnlb import interface, netlink, nft
from softnlb.interface import Interface
from softnlb.kernel import read_sysctl, write_sysctl
from softnlb.record import Record


def undo(record: Record) -> list[str]:
    """One sentence for each thing undone.  Raises OSError or MachineError."""
    route = netlink.Netlink()
    try:
        found = interface.find(route, record.interface)
        done = _undo_addresses(route, found, record) if found else []
        nft.apply(removal(record.nft_tables))
        if found:
            done += _undo_macs(route, found, record)
    finally:
        route.close()
    return done + _undo_sysctls(record)


def _undo_addresses(route: netlink.Netlink, found: Interface, record: Record) -> list[str]:
    done = []
    present = interface.ip_addresses(route)
    for address in map(IPv4Address, record.cluster_ip_addresses):
        if (found.index, address) in present:
            route.send(interface.delete_ip_address(found, address))
            done.append(f"removed {address} from {found.name}")
    return done


def _undo_macs(route: netlink.Netlink, found: Interface, record: Record) -> list[str]:
    done = []
    if record.secondary_mac is not None:
        secondary = mac.parse_mac(record.secondary_mac)
        if secondary in interface.secondary_macs(route, found):
            interface.delete_secondary_mac(route, found, secondary)
            done.append(f"removed the cluster MAC address from {found.name}")
    if record.interface_mac is not None and found.mac == mac.parse_mac(record.interface_mac):
        interface.set_mac(route, found, mac.parse_mac(record.former_mac))
        done.append(f"gave {found.name} its MAC address {record.former_mac} back")
    return done


def _undo_sysctls(record: Record) -> list[str]:
    done = []
    for name, former, value in reversed(record.sysctls):
        try:
            if read_sysctl(name) == value:
                write_sysctl(name, former)
                done.append(f"set {name} back to {former}")
        except FileNotFoundError:
            # Went with its interface.
            continue
    return done
