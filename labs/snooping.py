"""IGMP snooping by MAC address, as most hardware switches do it.

The Linux bridge snoops by IP group and drops a frame whose destination MAC is a group's while its
IP destination is the cluster's address.  So the kernel only learns here (its MDB), and this process
mirrors what it learned into an nft table that decides by destination MAC.
"""

import errno
import json
import os
import socket

from labs.node import run_tool
from labs.switch import BRIDGE, elements

TABLE = "softnlb_snooping"

RTNLGRP_MDB = 26
SETTLE_S = 0.005
"""Events that arrive this close together are answered by one update."""


def group_mac(group: str) -> str:
    """MAC address of an IPv4 multicast group: its lower 23 bits behind 01:00:5e."""
    _, second, third, fourth = (int(octet) for octet in group.split("."))
    return f"01:00:5e:{second & 0x7F:02x}:{third:02x}:{fourth:02x}"


def memberships(mdb: str) -> list[tuple[str, str]]:
    """(group MAC, port) of every member in the output of ``bridge -j mdb show``."""
    found = set()
    for table in json.loads(mdb):
        for entry in table.get("mdb", []):
            if entry["port"] != BRIDGE and entry["grp"].count(".") == 3:
                found.add((group_mac(entry["grp"]), entry["port"]))
    return sorted(found)


def ruleset(members: list[tuple[str, str]]) -> str:
    """The table as one nft transaction.  A group that nobody joined is flooded, as on hardware."""
    lines = [
        f"table bridge {TABLE}",
        f"delete table bridge {TABLE}",
        f"table bridge {TABLE} {{",
        elements("ether_addr", "groups", sorted({group for group, _ in members})),
        elements("ether_addr . ifname", "members", [f'{g} . "{port}"' for g, port in members]),
        "  chain forwarded {",
        "    type filter hook forward priority 10; policy accept;",
        "    ether daddr . oifname @members accept",
        "    ether daddr @groups drop",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def mirror(ready: int) -> int:
    """Follow the MDB until killed; one byte to ``ready`` when the table stands.

    Runs inside the switch.
    """
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    events.bind((0, 1 << (RTNLGRP_MDB - 1)))
    installed: list[tuple[str, str]] | None = None
    while True:
        present = memberships(run_tool(["bridge", "-j", "mdb", "show", "dev", BRIDGE]))
        if present != installed:
            run_tool(["nft", "-f", "-"], ruleset(present))
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
