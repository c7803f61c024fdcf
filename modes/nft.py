"""The nft ruleset of a cluster interface, the same in every mode but for the cluster MAC."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from modes import arp, ndp
from modes.mac import IPAddress, colon_mac
from modes.plan import AS_NLB_DOES, LinkChoices


def tables(interface: str, addresses: Iterable[IPAddress]) -> tuple[tuple[str, str], ...]:
    """(family, name) of the tables; a name takes fewer characters than an interface may have."""
    versions = {address.version for address in addresses}
    families = ["netdev", *(("arp", "ip") if 4 in versions else ()), *["ip6"] * (6 in versions)]
    name = re.sub(r"[^A-Za-z0-9_.-]", lambda match: f"_{ord(match[0]):x}", interface)
    return tuple((family, f"softnlb_{name}") for family in families)


def ruleset(
    interface: str,
    cluster_mac: bytes,
    addresses: Iterable[IPAddress],
    plane_sets_packet_type: bool = False,
    interface_mac: bytes | None = None,
    choices: LinkChoices = AS_NLB_DOES,
) -> str:
    """One transaction that replaces the tables, whatever state they are in.

    Every chain is written so that without it a frame for a cluster IP address is *dropped* by the
    kernel: a frame to a secondary unicast MAC is of packet type OTHERHOST, one to a multicast MAC
    is of type MULTICAST, and IP takes neither (see SYSCTLS).  Only these rules make it HOST, or
    the data plane does, for what it keeps (``plane_sets_packet_type``).  ``interface_mac``: None
    where the interface has its own and the cluster MAC is a multicast one.
    """
    addresses = tuple(addresses)
    four = tuple(address for address in addresses if isinstance(address, IPv4Address))
    six = tuple(address for address in addresses if isinstance(address, IPv6Address))
    names = dict(tables(interface, addresses))
    own = f"ether daddr {colon_mac(interface_mac)}" if interface_mac else _UNICAST_IN_MULTICAST
    text = f"""\
{removal(tables(interface, addresses))}
table netdev {names["netdev"]} {{
    chain ingress {{
        type filter hook ingress device "{interface}" priority 0; policy accept;
        vlan id != 0 accept
{_ingress(cluster_mac, four, six, plane_sets_packet_type, own)}    }}
}}
"""
    if four:
        answers = cluster_mac if choices.arp_for_vip else None
        text += f"table arp {names['arp']} {{\n{arp.output_chain(answers, four)}}}\n"
        text += f"table ip {names['ip']} {{\n{_right_interface(interface, 'ip', four)}}}\n"
    if six:
        chains = _right_interface(interface, "ip6", six)
        chains += ndp.output_chain(six, choices.dedicated_ipv6_address)
        text += f"table ip6 {names['ip6']} {{\n{chains}}}\n"
    return text


def _right_interface(interface: str, family: str, addresses: Iterable[IPAddress]) -> str:
    vips = ", ".join(map(str, addresses))
    return f"""\
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifname != {{ "{interface}", "lo" }} {family} daddr {{ {vips} }} drop
    }}
"""


_UNICAST_IN_MULTICAST = "ether daddr & 01:00:00:00:00:00 == 0 meta pkttype multicast"


def _ingress(
    cluster_mac: bytes,
    four: tuple[IPv4Address, ...],
    six: tuple[IPv6Address, ...],
    plane_sets_packet_type: bool,
    own: str,
) -> str:
    """The rules for frames that come in; ``own`` matches what is addressed to this host alone."""
    lists = [
        (family, ", ".join(map(str, addresses)))
        for family, addresses in (("ip", four), ("ip6", six))
        if addresses
    ]
    to_cluster_mac = f"ether daddr != {colon_mac(cluster_mac)} accept"
    if not plane_sets_packet_type:
        hosts = "".join(
            f"        {family} daddr {{ {vips} }} meta pkttype set host accept\n"
            for family, vips in lists
        )
        asked = ", ".join(map(str, four))
        arps = f"        arp daddr ip {{ {asked} }} meta pkttype set host accept\n" if four else ""
        return f"""\
        {to_cluster_mac}
        # Flooded to the cluster MAC but for somebody else, or the cluster IP address is withdrawn:
        # a host that routes must not forward it.  "unicast" is every address that is not ours.
        fib daddr type unicast drop
{hosts}        # A neighbour that checks its cache asks the cluster MAC itself.
{arps}"""
    kept = "".join(
        f"        {family} daddr {{ {vips} }} fib daddr type unicast drop\n"
        f"        {family} daddr {{ {vips} }} accept\n"
        for family, vips in lists
    )
    return f"""\
        # Drivers that have an skb before XDP (veth) leave it the type of the frame as it came.
        {own} meta pkttype set host
        # What XDP keeps has the interface's own MAC address by now: whatever the MAC address, a
        # host that routes must not forward it while the cluster IP address is withdrawn.
{kept}        {to_cluster_mac}
        # Flooded to the cluster MAC but for somebody else.
        fib daddr type unicast drop
"""


def removal(names: Iterable[tuple[str, str]]) -> str:
    """Text that removes the tables; no error where one is already gone."""
    return "\n".join(
        f"add table {family} {name}\ndelete table {family} {name}" for family, name in names
    )


def sysctls(interface: str, addresses: Iterable[IPAddress]) -> tuple[tuple[str, str], ...]:
    """(path below /proc/sys, value) that every mode wants."""
    versions = {address.version for address in addresses}
    ipv6 = ((f"net/ipv6/conf/{interface}/drop_unicast_in_l2_multicast", "1"),)
    return (*(_SYSCTLS_IPV4 if 4 in versions else ()), *(ipv6 if 6 in versions else ()))


_SYSCTLS_IPV4 = (
    # On every interface: a second interface in the subnet must not answer for a cluster IP address
    # and so take packets past the filter.
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    # TCP ignores a segment that came in a multicast or broadcast frame; this makes IP do the same
    # for UDP and ICMP (RFC 1122 section 3.3.6).
    ("net/ipv4/conf/all/drop_unicast_in_l2_multicast", "1"),
)
