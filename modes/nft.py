"""The nft ruleset of a cluster interface, the same in every mode but for the cluster MAC."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address

from modes import arp
from modes.mac import colon_mac

_FAMILIES = ("netdev", "arp", "ip")


def tables(interface: str) -> tuple[tuple[str, str], ...]:
    """(family, name) of the tables; a name takes fewer characters than an interface may have."""
    name = re.sub(r"[^A-Za-z0-9_.-]", lambda match: f"_{ord(match[0]):x}", interface)
    return tuple((family, f"softnlb_{name}") for family in _FAMILIES)


def ruleset(
    interface: str,
    cluster_mac: bytes,
    addresses: Iterable[IPv4Address],
    plane_sets_packet_type: bool = False,
    interface_mac: bytes | None = None,
    answers_arp: bool = True,
) -> str:
    """One transaction that replaces the tables, whatever state they are in.

    Every chain is written so that without it a frame for a cluster IP address is *dropped* by the
    kernel: a frame to a secondary unicast MAC is of packet type OTHERHOST, one to a multicast MAC
    is of type MULTICAST, and IP takes neither (see SYSCTLS).  Only these rules make it HOST, or
    the data plane does, for what it keeps (``plane_sets_packet_type``).  ``interface_mac``: None
    where the interface has its own and the cluster MAC is a multicast one.
    """
    addresses = tuple(addresses)
    vips = ", ".join(map(str, addresses))
    names = dict(tables(interface))
    ingress = _WITHOUT_PACKET_TYPE if plane_sets_packet_type else _WITH_PACKET_TYPE
    own = f"ether daddr {colon_mac(interface_mac)}" if interface_mac else _UNICAST_IN_MULTICAST
    chain = ingress.format(cluster_mac=colon_mac(cluster_mac), vips=vips, own=own)
    return f"""\
{removal(tables(interface))}
table netdev {names["netdev"]} {{
    chain ingress {{
        type filter hook ingress device "{interface}" priority 0; policy accept;
        vlan id != 0 accept
{chain}    }}
}}
table arp {names["arp"]} {{
{arp.output_chain(cluster_mac if answers_arp else None, addresses)}}}
table ip {names["ip"]} {{
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifname != {{ "{interface}", "lo" }} ip daddr {{ {vips} }} drop
    }}
}}
"""


_WITH_PACKET_TYPE = """\
        ether daddr != {cluster_mac} accept
        # Flooded to the cluster MAC but for somebody else, or the cluster IP address is withdrawn:
        # a host that routes must not forward it.  "unicast" is every address that is not ours.
        fib daddr type unicast drop
        ip daddr {{ {vips} }} meta pkttype set host accept
        # A neighbour that checks its cache asks the cluster MAC itself.
        arp daddr ip {{ {vips} }} meta pkttype set host accept
"""

_UNICAST_IN_MULTICAST = "ether daddr & 01:00:00:00:00:00 == 0 meta pkttype multicast"

_WITHOUT_PACKET_TYPE = """\
        # Drivers that have an skb before XDP (veth) leave it the type of the frame as it came.
        {own} meta pkttype set host
        # What XDP keeps has the interface's own MAC address by now: whatever the MAC address, a
        # host that routes must not forward it while the cluster IP address is withdrawn.
        ip daddr {{ {vips} }} fib daddr type unicast drop
        ip daddr {{ {vips} }} accept
        ether daddr != {cluster_mac} accept
        # Flooded to the cluster MAC but for somebody else.
        fib daddr type unicast drop
"""


def removal(names: Iterable[tuple[str, str]]) -> str:
    """Text that removes the tables; no error where one is already gone."""
    return "\n".join(
        f"add table {family} {name}\ndelete table {family} {name}" for family, name in names
    )


SYSCTLS = (
    # On every interface: a second interface in the subnet must not answer for a cluster IP address
    # and so take packets past the filter.
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    # TCP ignores a segment that came in a multicast or broadcast frame; this makes IP do the same
    # for UDP and ICMP (RFC 1122 section 3.3.6).
    ("net/ipv4/conf/all/drop_unicast_in_l2_multicast", "1"),
)
