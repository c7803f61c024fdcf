"""Neighbour discovery (RFC 4861) for an IPv6 cluster address: every host answers, and every answer
carries the cluster MAC.  The IPv6 side of ``arp.py``.

The kernel would answer with the interface's own MAC address, and a rule cannot correct it, because
the checksum would have to follow: so its answers for a cluster IP address are dropped, and the
agent sends its own.
"""

from collections.abc import Container, Iterable
from ipaddress import IPv6Address

ETHERTYPE = 0x86DD
SOLICITATION, ADVERTISEMENT = 135, 136
_ICMPV6 = 58
_HOP_LIMIT = 255  # a packet from beyond a router has less
_SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS = 1, 2
_SOLICITED_NODE = IPv6Address("ff02::1:ff00:0").packed[:13]
_SOLICITED, _OVERRIDE = 0x40, 0x20
_UNSPECIFIED = bytes(16)
_ALL_NODES = IPv6Address("ff02::1").packed
_ALL_NODES_MAC = bytes.fromhex("333300000001")


def output_chain(addresses: Iterable[IPv6Address], dedicated: IPv6Address | None) -> str:
    """The nft chain (family ip6) that keeps the kernel from teaching its own MAC address.

    A solicitation takes its source from the packet that waits for the answer, and names the
    interface's MAC address: from a cluster IP address it would teach that (compare Microsoft
    KB960916).  It leaves in the name of the dedicated IP address, or not at all without one.
    """
    vips = ", ".join(map(str, addresses))
    ask = "drop" if dedicated is None else f"ip6 saddr set {dedicated}"
    return f"""\
    chain output {{
        type filter hook output priority 0; policy accept;
        ip6 saddr != {{ {vips} }} accept
        icmpv6 type nd-neighbor-advert drop
        icmpv6 type nd-neighbor-solicit {ask}
    }}
"""


def announcement(source: bytes, cluster_mac: bytes, address: IPv6Address) -> bytes:
    """An unsolicited advertisement to all nodes: a frame that leads them to the cluster MAC."""
    packet = _advertisement(_ALL_NODES, cluster_mac, address, _OVERRIDE)
    return _ALL_NODES_MAC + source + ETHERTYPE.to_bytes(2, "big") + packet


def answer(
    packet: bytes, asker_mac: bytes, cluster_mac: bytes, ours: Container[IPv6Address]
) -> tuple[bytes, bytes] | None:
    """Destination MAC and IPv6 packet that answer a solicitation for one of ``ours``; None for any
    other bytes.  ``packet`` begins with the IPv6 header and came from ``asker_mac``.
    """
    if not _is_solicitation(packet):
        return None
    target = IPv6Address(packet[48:64])
    if target not in ours:
        return None
    asker = packet[8:24]
    if asker == _UNSPECIFIED:  # somebody else wants the address for itself: tell everybody
        return _ALL_NODES_MAC, _advertisement(_ALL_NODES, cluster_mac, target, _OVERRIDE)
    return asker_mac, _advertisement(asker, cluster_mac, target, _OVERRIDE | _SOLICITED)


def probe(own_mac: bytes, own: IPv6Address, target: IPv6Address) -> tuple[bytes, bytes]:
    """Destination MAC and IPv6 packet of a solicitation: who has ``target``?"""
    last = target.packed[-3:]
    group = _SOLICITED_NODE + last
    rest = bytes(4) + target.packed + bytes((_SOURCE_LINK_ADDRESS, 1)) + own_mac
    return b"\x33\x33\xff" + last, _packet(own.packed, group, SOLICITATION, rest)


def is_answer(packet: bytes, target: IPv6Address) -> bool:
    """Whether this IPv6 packet is an advertisement of ``target``; any bytes may come."""
    return (
        len(packet) >= 64
        and packet[6] == _ICMPV6
        and packet[7] == _HOP_LIMIT
        and packet[40] == ADVERTISEMENT
        and packet[48:64] == target.packed
    )


def _is_solicitation(packet: bytes) -> bool:
    return (
        len(packet) >= 64
        and packet[0] >> 4 == 6
        and packet[6] == _ICMPV6
        and packet[7] == _HOP_LIMIT
        and packet[40] == SOLICITATION
        and packet[41] == 0
        and packet[8] != 0xFF
    )


def _advertisement(
    destination: bytes, cluster_mac: bytes, target: IPv6Address, flags: int
) -> bytes:
    option = bytes((_TARGET_LINK_ADDRESS, 1)) + cluster_mac
    rest = bytes((flags, 0, 0, 0)) + target.packed + option
    return _packet(target.packed, destination, ADVERTISEMENT, rest)


def _packet(source: bytes, destination: bytes, kind: int, rest: bytes) -> bytes:
    length = 4 + len(rest)
    pseudo = source + destination + length.to_bytes(4, "big") + bytes((0, 0, 0, _ICMPV6))
    checksum = _checksum(pseudo + bytes((kind, 0, 0, 0)) + rest)
    head = bytes((0x60, 0, 0, 0)) + length.to_bytes(2, "big") + bytes((_ICMPV6, _HOP_LIMIT))
    message = bytes((kind, 0)) + checksum.to_bytes(2, "big") + rest
    return head + source + destination + message


def _checksum(data: bytes) -> int:
    """RFC 1071; the length is even."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
