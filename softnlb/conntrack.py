"""TCP connections to a cluster IP address that are forwarded (containers), from ctnetlink.

They have no socket on this host (linux/netfilter/nfnetlink_conntrack.h).
"""

import errno
import socket
from collections.abc import Collection, Iterator
from typing import NamedTuple

from convergence.rules import IPAddress
from softnlb import netlink
from softnlb.packet import TCP

_GET = 1 << 8 | 1
_TUPLE_ORIGINAL, _STATUS, _PROTOINFO, _STATUS_MASK = 1, 3, 4, 26
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
"""Attributes of an IPv4 and of an IPv6 address."""

_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_DST_NAT = 1 << 5

_STATES = (
    "CLOSE",
    "SYN_RECV",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT1",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_RECV",
)
"""By the number of connection tracking (nf_conntrack_tcp.h), the name of the socket state in which
a host of ours would be; its own CLOSE_WAIT tells only that somebody has sent a FIN."""


class Forwarded(NamedTuple):
    """One forwarded connection; ``state`` as of a socket, addresses of 4 or 16 bytes."""

    state: str
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int


def forwarded(cluster_ip_addresses: Collection[IPAddress]) -> Iterator[Forwarded]:
    """The TCP connections to these addresses whose destination is translated.

    Raises OSError when the kernel refuses; none where it has no connection tracking.
    """
    wanted = frozenset(ip.packed for ip in cluster_ip_addresses)
    for version in sorted({ip.version for ip in cluster_ip_addresses}):
        for body in _dump(_FAMILIES[version]):
            found = _connection(netlink.attributes(body[4:]))
            if found is not None and found.local in wanted:
                yield found


def _dump(family: int) -> list[bytes]:
    """The translated connections of this address family."""
    bit = _DST_NAT.to_bytes(4, "big")
    # Kernels before 5.19 do not know the filter and send everything.
    only = netlink.attribute(_STATUS, bit) + netlink.attribute(_STATUS_MASK, bit)
    kernel = netlink.Netlink(netlink.NETFILTER)
    try:
        return [body for _, body in kernel.dump(_GET, bytes((family, 0, 0, 0)) + only)]
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            return []
        raise
    finally:
        kernel.close()


def _connection(entry: dict[int, bytes]) -> Forwarded | None:
    original = netlink.attributes(entry.get(_TUPLE_ORIGINAL, b""))
    ends = netlink.attributes(original.get(_TUPLE_IP, b""))
    ports = netlink.attributes(original.get(_TUPLE_PROTO, b""))
    information = netlink.attributes(entry.get(_PROTOINFO, b""))
    state = netlink.attributes(information.get(_PROTOINFO_TCP, b"")).get(_TCP_STATE, b"\0")[0]
    translated = int.from_bytes(entry.get(_STATUS, b""), "big") & _DST_NAT
    if not translated or ports.get(_NUMBER) != bytes((TCP,)) or state >= len(_STATES):
        return None
    return Forwarded(
        _STATES[state],
        _address(ends, _DESTINATIONS),
        int.from_bytes(ports.get(_DESTINATION_PORT, b""), "big"),
        _address(ends, _SOURCES),
        int.from_bytes(ports.get(_SOURCE_PORT, b""), "big"),
    )


def _address(ends: dict[int, bytes], attributes: tuple[int, int]) -> bytes:
    return ends.get(attributes[0]) or ends.get(attributes[1], b"")
