"""ARP for a cluster IP address: every host answers, and every answer carries the cluster MAC.

The Ethernet source stays the host's own, so that the switch never learns the cluster MAC on a port.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address

from modes.mac import colon_mac

ETHERTYPE = 0x0806
BROADCAST = b"\xff" * 6
_REQUEST, _REPLY = 1, 2
_ETHERNET_IPV4 = bytes.fromhex("0001080006 04")


def output_chain(cluster_mac: bytes | None, addresses: Iterable[IPv4Address]) -> str:
    """The nft chain (family arp) that puts the cluster MAC into the payload of replies; without
    one, none leaves.

    A request never leaves with a cluster IP address as its sender: it would teach the cluster MAC
    or this host's own MAC to whoever is asked, and routers stop answering (Microsoft KB960916).
    """
    vips = ", ".join(map(str, addresses))
    reply = "drop" if cluster_mac is None else f"arp saddr ether set {colon_mac(cluster_mac)}"
    return f"""\
    chain output {{
        type filter hook output priority 0; policy accept;
        arp saddr ip != {{ {vips} }} accept
        arp operation request drop
        arp operation reply {reply}
    }}
"""


def announcement(source: bytes, cluster_mac: bytes, address: IPv4Address) -> bytes:
    """A gratuitous ARP frame: an unasked reply to everybody, with the cluster MAC in its payload.

    A reply and not a request, because requests must not carry a cluster IP address as sender.
    """
    sender = cluster_mac + address.packed
    payload = _ETHERNET_IPV4 + _REPLY.to_bytes(2) + sender + sender
    return BROADCAST + source + ETHERTYPE.to_bytes(2) + payload


def probe(sender_mac: bytes, address: IPv4Address) -> bytes:
    """The payload of an ARP probe (RFC 5227): who has ``address``, asked by nobody.

    The empty sender address keeps the question out of every ARP cache.
    """
    target = bytes(6) + address.packed
    return _ETHERNET_IPV4 + _REQUEST.to_bytes(2) + sender_mac + bytes(4) + target


def is_answer(payload: bytes, address: IPv4Address) -> bool:
    """Whether this ARP payload says that ``address`` is alive; any bytes may come."""
    return (
        len(payload) >= 28
        and payload[:6] == _ETHERNET_IPV4
        and payload[6:8] == _REPLY.to_bytes(2)
        and payload[14:18] == address.packed
    )
