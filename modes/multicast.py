"""The two multicast modes: the interface keeps its own MAC address and joins the cluster's.

Multicast joins 03-BF-w-x-y-z; IGMP multicast joins the group 239.255.y.z, whose MAC address is
01-00-5E-7F-y-z, so that a switch that snoops IGMP knows the ports of the hosts.
"""

from ipaddress import IPv4Interface

from modes import mac, nft
from modes.plan import LinkChoices, LinkPlan, Mode


def plan(
    interface: str,
    cluster_ip_addresses: tuple[IPv4Interface, ...],
    igmp: bool,
    plane_sets_packet_type: bool,
    choices: LinkChoices,
) -> LinkPlan:
    """What multicast or IGMP mode wants of ``interface``; the first address is the primary."""
    addresses = tuple(address.ip for address in cluster_ip_addresses)
    primary = addresses[0]
    if igmp:
        cluster_mac = mac.igmp_multicast_mac(primary)  # whatever is chosen: it is the group's
    else:
        cluster_mac = choices.cluster_mac or mac.multicast_mac(primary)
    return LinkPlan(
        interface=interface,
        mode=Mode.IGMP if igmp else Mode.MULTICAST,
        cluster_ip_addresses=cluster_ip_addresses,
        cluster_mac=cluster_mac,
        secondary_mac=False,
        interface_mac=None,
        # Who joins the group has joined its MAC address with it.
        join_mac=not igmp,
        igmp_group=mac.igmp_group(primary) if igmp else None,
        heartbeat_destination=cluster_mac,
        announces=choices.arp_for_vip,
        nft_tables=nft.tables(interface),
        nft_ruleset=nft.ruleset(
            interface,
            cluster_mac,
            addresses,
            plane_sets_packet_type,
            answers_arp=choices.arp_for_vip,
        ),
        sysctls=nft.SYSCTLS,
    )
