"""Undoes what a record says, in reverse order; what somebody else changed since stays."""

from ipaddress import ip_address

from modes import mac
from modes.nft import removal
from softnlb import interface, netlink, nft
from softnlb.errors import MachineError
from softnlb.kernel import read_sysctl, write_sysctl
from softnlb.record import Record


def undo(record: Record) -> list[str]:
    """One sentence for each thing undone.

    A step that fails keeps none of the others from being tried; then the first error is raised
    (OSError or MachineError).
    """
    done: list[str] = []
    errors: list[OSError | MachineError] = []
    for step in (_undo_addresses, _undo_tables, _undo_secondary_mac, _undo_mac, _undo_sysctls):
        route = netlink.Netlink()
        try:
            done += step(route, record)
        except (OSError, MachineError) as error:
            errors.append(error)
        finally:
            route.close()
    if errors:
        raise errors[0]
    return done


def _undo_addresses(route: netlink.Netlink, record: Record) -> list[str]:
    found = interface.find(route, record.interface)
    if found is None:
        return []
    done = []
    present = interface.ip_addresses(route)
    for address in map(ip_address, record.cluster_ip_addresses):
        if (found.index, address) in present:
            route.send(interface.delete_ip_address(found, address))
            done.append(f"removed {address} from {found.name}")
    return done


def _undo_tables(_route: netlink.Netlink, record: Record) -> list[str]:
    nft.apply(removal(record.nft_tables))
    return [f"removed nft table {family} {name}" for family, name in record.nft_tables]


def _undo_secondary_mac(route: netlink.Netlink, record: Record) -> list[str]:
    found = interface.find(route, record.interface)
    if found is None or record.secondary_mac is None:
        return []
    secondary = mac.parse_mac(record.secondary_mac)
    if secondary not in interface.secondary_macs(route, found):
        return []
    interface.delete_secondary_mac(route, found, secondary)
    return [f"removed the secondary MAC address {record.secondary_mac} from {found.name}"]


def _undo_mac(route: netlink.Netlink, record: Record) -> list[str]:
    found = interface.find(route, record.interface)
    if found is None or record.interface_mac is None:
        return []
    if found.mac != mac.parse_mac(record.interface_mac):
        return []
    interface.set_mac(route, found, mac.parse_mac(record.former_mac))
    return [f"gave {found.name} its MAC address {record.former_mac} back"]


def _undo_sysctls(_route: netlink.Netlink, record: Record) -> list[str]:
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
