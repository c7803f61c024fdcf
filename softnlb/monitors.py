"""Hears what others change on this host: rtnetlink and nftables events, parsed just enough."""

import errno
import socket

from softnlb import netlink
from softnlb.nft import TABLE

_GROUP_LINK, _GROUP_NEIGHBOUR, _GROUP_IPV4_ADDRESS = 1, 3, 5
_GROUP_NFTABLES = 7
_NEWCHAIN, _DELCHAIN = 3, 5
_NFGENMSG_BYTES = 4
_NEWLINK, _DELLINK, _DELADDR, _DELNEIGH = 16, 17, 21, 29
_AF_BRIDGE = 7
_READS_PER_CALL = 64


class Monitors:
    """Two netlink sockets that become readable when the network of this host is changed."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._route = netlink.monitor(
            netlink.ROUTE, _GROUP_LINK, _GROUP_NEIGHBOUR, _GROUP_IPV4_ADDRESS
        )
        self._nft = netlink.monitor(netlink.NETFILTER, _GROUP_NFTABLES)
        self.sockets = (self._route, self._nft)

    def read(self, monitor: socket.socket) -> bool:
        """Empty one of the sockets; True when something in it could concern us."""
        about_us = self._about_link if monitor is self._route else _about_tables
        concerned = False
        for _ in range(_READS_PER_CALL):
            try:
                data = monitor.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Too much happened at once to be told about it all.
                concerned = True
                continue
            concerned |= any(about_us(kind, body) for kind, body in netlink.messages(data))
        return concerned

    def _about_link(self, kind: int, body: bytes) -> bool:
        # Links, addresses and neighbours all begin with a family and have the index at offset 4.
        if kind not in (_NEWLINK, _DELLINK, _DELADDR, _DELNEIGH) or len(body) < 8:
            return False
        if kind == _DELNEIGH and body[0] != _AF_BRIDGE:
            return False
        return int.from_bytes(body[4:8], "little") == self._index

    def close(self) -> None:
        """No error when called twice."""
        for monitor in self.sockets:
            monitor.close()


def _about_tables(kind: int, body: bytes) -> bool:
    """A table of ours, the data plane's included; or any chain: address translation may be new."""
    if kind & 0xFF in (_NEWCHAIN, _DELCHAIN):
        return True
    return netlink.attributes(body[_NFGENMSG_BYTES:]).get(TABLE, b"").startswith(b"softnlb_")
