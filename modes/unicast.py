"""Unicast mode: the cluster MAC is a secondary address, and no frame ever leaves with it.

The switch learns 02-h-w-x-y-z of each host and never 02-BF-w-x-y-z: frames for the cluster IP
address flood to every port, those for a dedicated IP address go to one host only.
"""

from ipaddress import IPv4Interface

from modes import arp, mac, nft
from modes.plan import LinkPlan, Mode


def plan(
    interface: str,
    host_id: int,
    cluster_ip_addresses: tuple[IPv4Interface, ...],
    plane_sets_packet_type: bool,
) -> LinkPlan:
    """What unicast mode wants of ``interface``; the first cluster IP address is the primary."""
    addresses = tuple(address.ip for address in cluster_ip_addresses)
    cluster_mac = mac.unicast_mac(addresses[0])
    interface_mac = mac.host_mac(host_id, addresses[0])
    return LinkPlan(
        interface=interface,
        mode=Mode.UNICAST,
        cluster_ip_addresses=cluster_ip_addresses,
        cluster_mac=cluster_mac,
        secondary_mac=True,
        interface_mac=interface_mac,
        join_mac=False,
        igmp_group=None,
        heartbeat_destination=arp.BROADCAST,
        nft_tables=nft.tables(interface),
        nft_ruleset=nft.ruleset(
            interface, cluster_mac, addresses, plane_sets_packet_type, interface_mac
        ),
        # The neighbours know the dedicated IP addresses under the former MAC: the kernel tells
        # them, when the MAC changes and again when it changes back.
        sysctls=(*nft.SYSCTLS, (f"net/ipv4/conf/{interface}/arp_notify", "1")),
    )
