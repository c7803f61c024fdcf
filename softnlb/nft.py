"""nftables: apply one transaction, and tell whether our tables are still as we made them."""

import struct
import subprocess
from collections.abc import Iterable

from softnlb import netlink
from softnlb.errors import MachineError

_SUBSYSTEM = 10 << 8
_GETCHAIN, _GETRULE = _SUBSYSTEM | 4, _SUBSYSTEM | 7
_FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "ip6": 10}
TABLE = 1
"""Attribute kind of a table's name: the same in tables, chains and rules."""
_NFGENMSG = struct.Struct("=BBH")

Snapshot = tuple[tuple[int, int, bytes], ...]


def apply(transaction: str) -> None:
    """Carry out a transaction: all of it or nothing.

    Raises MachineError when nft is missing or refuses.
    """
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=transaction, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise MachineError("nft is missing: install the package nftables") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise MachineError(
            f"nft refuses the rules of the cluster interface ({reason}): "
            "it takes root or CAP_NET_ADMIN, nft 1.0 and nf_tables with netdev, arp and fib"
        )


def snapshot(nft: netlink.Netlink, tables: Iterable[tuple[str, str]]) -> Snapshot:
    """Chains and rules of the tables, handles included: equal means that nobody touched them."""
    found = []
    for family, name in tables:
        number = _FAMILIES[family]
        table = name.encode() + b"\0"
        # Kernels that cannot filter a dump by table send those of the whole family.
        ours = _NFGENMSG.pack(number, 0, 0) + netlink.attribute(TABLE, table)
        for request in (_GETCHAIN, _GETRULE):
            for kind, body in nft.dump(request, ours):
                content = body[_NFGENMSG.size :]
                if netlink.attributes(content).get(TABLE) == table:
                    found.append((kind, number, content))
    return tuple(found)
