"""IGMP snooping by MAC address, as most hardware switches do it.

The Linux bridge snoops by IP group and drops a frame whose destination MAC is a group's while its
IP destination is the cluster's address.  So the kernel only learns here (its MDB), and this process
mirrors what it learned into an nft table that decides by destination MAC.
"""

import errno
import json
import os
import socket
from ipaddress import ip_address

from labs.node import run_tool
from labs.switch import elements

TABLE = "softnlb_snooping"

RTNLGRP_MDB = 26
SETTLE_S = 0.005
"""Events that arrive this close together are answered by one update."""


def group_mac(group: str) -> str:
    """MAC address of a multicast group: its lower 23 bits behind 01:00:5e (RFC 1112), of an IPv6
    group its lower 32 bits behind 33:33 (RFC 2464).  Raises ValueError."""
    address = ip_address(group)
    if address.version == 6:
        return (b"\x33\x33" + address.packed[-4:]).hex(":")
    _, second, third, fourth = address.packed
    return f"01:00:5e:{second & 0x7F:02x}:{third:02x}:{fourth:02x}"


Member = tuple[str, str, str]
"""(bridge, group MAC, port)."""


def memberships(mdb: str, bridges: list[str]) -> list[Member]:
    """Every member in the output of ``bridge -j mdb show``, of these bridges.

    Groups are IP groups that hosts joined, and MAC addresses that somebody entered by hand.
    """
    found = set()
    for table in json.loads(mdb):
        for entry in table.get("mdb", []):
            bridge, port, group = entry["dev"], entry["port"], entry["grp"]
            if bridge not in bridges or port == bridge:
                continue
            try:
                found.add((bridge, group_mac(group), port))
            except ValueError:  # a MAC address
                found.add((bridge, group, port))
    return sorted(found)


def ports_of(links: str) -> list[tuple[str, str]]:
    """(bridge, port) of each port in the output of ``bridge -j link show``."""
    found = [(entry.get("master"), entry["ifname"]) for entry in json.loads(links or "[]")]
    return sorted((bridge, port) for bridge, port in found if bridge)


def ruleset(members: list[Member], ports: list[tuple[str, str]]) -> str:
    """The table as one nft transaction.  A group that nobody joined is flooded, as on hardware."""
    groups = {(bridge, group) for bridge, group, _ in members}
    known = sorted((g, port) for b, g in groups for bridge, port in ports if bridge == b)
    lines = [
        f"table bridge {TABLE}",
        f"delete table bridge {TABLE}",
        f"table bridge {TABLE} {{",
        # By port, since not every kernel tells nft the name of the bridge.
        elements("ifname . ether_addr", "groups", [f'"{port}" . {g}' for g, port in known]),
        elements("ether_addr . ifname", "members", [f'{g} . "{port}"' for _, g, port in members]),
        "  chain forwarded {",
        "    type filter hook forward priority 10; policy accept;",
        "    ether daddr . oifname @members accept",
        "    oifname . ether daddr @groups drop",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def mirror(bridges: list[str], ready: int) -> int:
    """Follow the MDBs of these bridges until killed; one byte to ``ready`` when the table stands.

    Runs inside the switch.
    """
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    events.bind((0, 1 << (RTNLGRP_MDB - 1)))
    installed: list[Member] | None = None
    while True:
        present = memberships(run_tool(["bridge", "-j", "mdb", "show"]), bridges)
        if present != installed:
            ports = ports_of(run_tool(["bridge", "-j", "link", "show"]))
            run_tool(["nft", "-f", "-"], ruleset(present, ports))
            installed = present
        if ready >= 0:
            os.write(ready, b"1")
            os.close(ready)
            ready = -1
        _await_event(events)


def _await_event(events: socket.socket) -> None:
    events.settimeout(None)
    try:
        while True:
            events.recv(1 << 16)
            events.settimeout(SETTLE_S)
    except TimeoutError:
        return
    except OSError as error:
        # Events were lost, which a fresh look at the MDB makes good.
        if error.errno != errno.ENOBUFS:
            raise
