"""Multicast MAC addresses and groups that an interface has joined: each lasts as long as a socket,
so a crash leaves none behind."""

import socket
import struct
from contextlib import ExitStack

from modes.plan import LinkPlan

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_MULTICAST = 0


def join(plan: LinkPlan, index: int) -> ExitStack:
    """Join what the plan wants on the interface of that index; leave by closing.

    Raises OSError with the kernel's errno.
    """
    with ExitStack() as joined:
        if plan.join_mac:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            joined.enter_context(opened)
            mac = struct.pack(
                "=iHH8s", index, _PACKET_MR_MULTICAST, len(plan.cluster_mac), plan.cluster_mac
            )
            opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, mac)
        if plan.group is not None:
            four = plan.group.version == 4
            family = socket.AF_INET if four else socket.AF_INET6
            opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            joined.enter_context(opened)
            # The kernel answers the querier from now on, and joins the group's MAC address.
            if four:
                group = struct.pack("=4s4si", plan.group.packed, bytes(4), index)
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            else:
                group = struct.pack("=16si", plan.group.packed, index)
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        return joined.pop_all()
