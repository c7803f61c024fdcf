"""Answers neighbour solicitations for IPv6 cluster addresses, with the cluster MAC."""

import socket
from collections.abc import Collection
from contextlib import suppress
from ipaddress import IPv6Address

from modes import ndp
from softnlb.heartbeat_socket import attach_filter

ANSWERS_PER_TURN = 64
"""Before the loop looks at its deadlines again."""

_PACKET_BYTES_MAX = 2048
_LOAD_BYTE_AT, _IF_EQUAL, _GIVE = 0x30, 0x15, 0x06
_SOLICITATIONS = [
    (_LOAD_BYTE_AT, 0, 0, 0xFFFF_F004),  # packet type, SKF_AD_OFF + SKF_AD_PKTTYPE
    (_IF_EQUAL, 5, 0, socket.PACKET_OUTGOING),
    (_LOAD_BYTE_AT, 0, 0, 6),  # next header
    (_IF_EQUAL, 0, 3, socket.IPPROTO_ICMPV6),
    (_LOAD_BYTE_AT, 0, 0, 40),  # ICMPv6 type
    (_IF_EQUAL, 0, 1, ndp.SOLICITATION),
    (_GIVE, 0, 0, 0xFFFF),
    (_GIVE, 0, 0, 0),
]
"""Classic BPF: the solicitations that others send."""


class NeighbourSocket:
    """Raises OSError when the interface is missing or the privilege is."""

    def __init__(
        self, interface: str, addresses: Collection[IPv6Address], cluster_mac: bytes
    ) -> None:
        self._interface = interface
        self._addresses = frozenset(addresses)
        self._cluster_mac = cluster_mac
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_PACKET, kind, 0)
        try:
            attach_filter(self._socket, _SOLICITATIONS)
            self._socket.bind((interface, ndp.ETHERTYPE))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def answer(self) -> None:
        """Answer whoever has asked.  What cannot be sent is as good as lost: they ask again."""
        for _ in range(ANSWERS_PER_TURN):
            try:
                packet, (*_, asker_mac) = self._socket.recvfrom(_PACKET_BYTES_MAX)
            except OSError:
                return
            reply = ndp.answer(packet, asker_mac, self._cluster_mac, self._addresses)
            if reply is not None:
                destination, advertisement = reply
                to = (self._interface, ndp.ETHERTYPE, 0, 0, destination)
                with suppress(OSError):
                    self._socket.sendto(advertisement, to)

    def close(self) -> None:
        """No error when called twice."""
        self._socket.close()
