"""One network interface: its MAC address, secondary MAC addresses and IP addresses, over rtnetlink.

Every call is carried out when it returns.  Raises OSError with the kernel's errno.
"""

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from modes.mac import IPAddress
from softnlb import netlink
from softnlb.errors import MachineError

_NEWLINK, _GETLINK, _SETLINK = 16, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _GETROUTE = 24, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTMSG_SCOPE = 6
_IFLA_ADDRESS, _IFLA_IFNAME = 1, 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_CACHEINFO = 1, 2, 3, 6
_IFA_F_NODAD = 0x02
_CACHEINFO = struct.Struct("=IIII")  # preferred and valid lifetime in s, two time stamps
_FOREVER = 0xFFFF_FFFF
_LABEL_BYTES_MAX = 15
_NDA_LLADDR = 2
_RTA_OIF = 4
_AF_BRIDGE = 7
_NTF_SELF = 0x02
_NUD_PERMANENT = 0x80
_SCOPE_HOST = 254
_IFF_UP = 1
_ETHERNET = 1


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as the kernel describes it now."""

    index: int
    name: str
    mac: bytes
    ethernet: bool
    up: bool


def find(route: netlink.Netlink, name: str) -> Interface | None:
    """The interface of that name in this network namespace."""
    for kind, body in route.dump(_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)):
        if kind != _NEWLINK or len(body) < _IFINFO.size:
            continue
        _family, hardware, index, flags, _change = _IFINFO.unpack_from(body)
        fields = netlink.attributes(body[_IFINFO.size :])
        if fields.get(_IFLA_IFNAME, b"").rstrip(b"\0") == name.encode():
            mac = fields.get(_IFLA_ADDRESS, b"")
            return Interface(index, name, mac, hardware == _ETHERNET, bool(flags & _IFF_UP))
    return None


def set_mac(route: netlink.Netlink, interface: Interface, mac: bytes) -> None:
    """Give the interface another MAC address, while it is up where its driver allows that."""
    change = netlink.attribute(_IFLA_ADDRESS, mac)
    try:
        _set_link(route, interface.index, 0, 0, change)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # Taking the interface down costs its routes: put those back that do not come by
        # themselves, routes without a gateway first.
        routes = _routes(route, interface.index)
        _set_link(route, interface.index, 0, _IFF_UP)
        try:
            _set_link(route, interface.index, 0, 0, change)
        finally:
            _set_link(route, interface.index, _IFF_UP, _IFF_UP)
            present = _routes(route, interface.index)
            for lost in (body for body in routes if body not in present):
                route.request(_NEWROUTE, netlink.CREATE, lost)


def _set_link(
    route: netlink.Netlink, index: int, flags: int, change: int, body: bytes = b""
) -> None:
    route.request(_SETLINK, 0, _IFINFO.pack(0, 0, index, flags, change) + body)


def _routes(route: netlink.Netlink, index: int) -> list[bytes]:
    """The IPv4 routes through an interface, as messages that can be sent again."""
    oif = index.to_bytes(4, "little")
    found = [
        body
        for kind, body in route.dump(_GETROUTE, _RTMSG.pack(socket.AF_INET, *[0] * 8))
        if kind == _NEWROUTE and netlink.attributes(body[_RTMSG.size :]).get(_RTA_OIF) == oif
    ]
    return sorted(found, key=lambda body: -body[_RTMSG_SCOPE])


def secondary_macs(route: netlink.Netlink, interface: Interface) -> set[bytes]:
    """The unicast and multicast MAC addresses that the interface listens to besides its own."""
    found = set()
    for kind, body in route.dump(_GETNEIGH, _IFINFO.pack(_AF_BRIDGE, 0, 0, 0, 0)):
        if kind != _NEWNEIGH or len(body) < _NDMSG.size:
            continue
        # A bridge shows its own addresses without NTF_SELF, but under its own index.
        if _NDMSG.unpack_from(body)[1] == interface.index:
            found.add(netlink.attributes(body[_NDMSG.size :]).get(_NDA_LLADDR, b""))
    return found


def add_secondary_mac(route: netlink.Netlink, interface: Interface, mac: bytes) -> None:
    """As `bridge fdb add MAC dev INTERFACE self permanent`; no error when it is there.

    Raises MachineError when the interface is of a kind that listens to one unicast address only.
    """
    try:
        route.request(
            _NEWNEIGH, netlink.CREATE | netlink.EXCL, _secondary_mac(interface.index, mac)
        )
    except FileExistsError:
        return
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise MachineError(
            f"{interface.name} cannot take a second MAC address, which unicast mode needs: "
            "use a multicast mode, or another kind of interface"
        ) from error


def delete_secondary_mac(route: netlink.Netlink, interface: Interface, mac: bytes) -> None:
    route.request(_DELNEIGH, 0, _secondary_mac(interface.index, mac))


def _secondary_mac(index: int, mac: bytes) -> bytes:
    head = _NDMSG.pack(_AF_BRIDGE, index, _NUD_PERMANENT, _NTF_SELF, 0)
    return head + netlink.attribute(_NDA_LLADDR, mac)


def ip_addresses(route: netlink.Netlink) -> set[tuple[int, IPAddress]]:
    """(interface index, address) of every address of this host."""
    found: set[tuple[int, IPAddress]] = set()
    for kind, body in route.dump(_GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        if kind == _NEWADDR and len(body) >= _IFADDR.size:
            index = _IFADDR.unpack_from(body)[4]
            fields = netlink.attributes(body[_IFADDR.size :])
            local = fields.get(_IFA_LOCAL) or fields.get(_IFA_ADDRESS, b"")
            if len(local) == 4:
                found.add((index, IPv4Address(local)))
            elif len(local) == 16:
                found.add((index, IPv6Address(local)))
    return found


def _ip_address(interface: Interface, address: IPAddress) -> bytes:
    return (
        _ipv4_address(interface, address)
        if isinstance(address, IPv4Address)
        else _ipv6_address(interface, address)
    )


def _ipv6_address(interface: Interface, address: IPv6Address) -> bytes:
    """A cluster IP address: /128, without duplicate address detection, because every host has it,
    and with the preferred lifetime 0, so that the kernel does not choose it as a source."""
    return (
        _IFADDR.pack(socket.AF_INET6, 128, _IFA_F_NODAD, 0, interface.index)
        + netlink.attribute(_IFA_LOCAL, address.packed)
        + netlink.attribute(_IFA_ADDRESS, address.packed)
        + netlink.attribute(_IFA_CACHEINFO, _CACHEINFO.pack(0, _FOREVER, 0, 0))
    )


def _ipv4_address(interface: Interface, address: IPv4Address) -> bytes:
    """A cluster IP address: /32 and of scope host.

    So the kernel never chooses it as a source of its own, whatever other addresses come and go,
    it makes no route to the subnet, and neither it nor a dedicated IP address of the same subnet
    is secondary to the other: deleting one does not delete the other.  The label keeps it out of
    the answer to programs that ask for "the" address of the interface (SIOCGIFADDR).
    """
    label = f"{interface.name}:nlb".encode()[:_LABEL_BYTES_MAX] + b"\0"
    return (
        _IFADDR.pack(socket.AF_INET, 32, 0, _SCOPE_HOST, interface.index)
        + netlink.attribute(_IFA_LOCAL, address.packed)
        + netlink.attribute(_IFA_ADDRESS, address.packed)
        + netlink.attribute(_IFA_LABEL, label)
    )


def add_ip_address(route: netlink.Netlink, interface: Interface, address: IPAddress) -> None:
    """No error when it is there."""
    try:
        route.request(_NEWADDR, netlink.CREATE | netlink.EXCL, _ip_address(interface, address))
    except FileExistsError:
        return


def delete_ip_address(interface: Interface, address: IPAddress) -> bytes:
    """The message that deletes it, to be kept ready for ``Netlink.send``."""
    return netlink.message(_DELADDR, netlink.ACK, _ip_address(interface, address))
