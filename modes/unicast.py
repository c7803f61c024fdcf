"""Unicast mode: the cluster MAC is a secondary address, and no frame ever leaves with it.

The switch learns 02-h-w-x-y-z of each host and never 02-BF-w-x-y-z: frames for the cluster IP
address flood to every port, those for a dedicated IP address go to one host only.
"""

from ipaddress import IPv4Interface

from modes import arp, mac, nft
from modes.plan import LinkChoices, LinkPlan, Mode


def plan(
    interface: str,
    host_id: int,
    cluster_ip_addresses: tuple[IPv4Interface, ...],
    plane_sets_packet_type: bool,
    choices: LinkChoices,
) -> LinkPlan:
    """What unicast mode wants of ``interface``; the first cluster IP address is the primary.

    Without a mask the switch learns the cluster MAC from whoever sent last, and only that port
    gets the clients' frames: right behind a hub, an accident everywhere else.
    """
    addresses = tuple(address.ip for address in cluster_ip_addresses)
    cluster_mac = choices.cluster_mac or mac.unicast_mac(addresses[0])
    masked = choices.mask_source_mac
    interface_mac = mac.host_mac(host_id, addresses[0]) if masked else cluster_mac
    return LinkPlan(
        interface=interface,
        mode=Mode.UNICAST,
        cluster_ip_addresses=cluster_ip_addresses,
        cluster_mac=cluster_mac,
        secondary_mac=masked,
        interface_mac=interface_mac,
        join_mac=False,
        igmp_group=None,
        heartbeat_destination=arp.BROADCAST,
        announces=choices.arp_for_vip,
        nft_tables=nft.tables(interface),
        nft_ruleset=nft.ruleset(
            interface,
            cluster_mac,
            addresses,
            plane_sets_packet_type,
            interface_mac,
            choices.arp_for_vip,
        ),
        # The neighbours know the dedicated IP addresses under the former MAC: the kernel tells
        # them, when the MAC changes and again when it changes back.
        sysctls=(*nft.SYSCTLS, (f"net/ipv4/conf/{interface}/arp_notify", "1")),
    )
