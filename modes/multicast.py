"""The two multicast modes: the interface keeps its own MAC address and joins the cluster's.

Multicast joins 03-BF-w-x-y-z; IGMP multicast joins the group 239.255.y.z, whose MAC address is
01-00-5E-7F-y-z, so that a switch that snoops IGMP knows the ports of the hosts; an IPv6 cluster
does the same with MLD, ff05::efff:y.z and 33-33-EF-FF-y-z.
"""

from modes import mac, nft
from modes.plan import InterfaceAddress, LinkChoices, LinkPlan, Mode


def plan(
    interface: str,
    cluster_ip_addresses: tuple[InterfaceAddress, ...],
    igmp: bool,
    plane_sets_packet_type: bool,
    choices: LinkChoices,
) -> LinkPlan:
    """What multicast or IGMP mode wants of ``interface``; the first address is the primary."""
    addresses = tuple(address.ip for address in cluster_ip_addresses)
    primary = addresses[0]
    if igmp:
        cluster_mac = mac.group_mac(primary)  # whatever is chosen: it is the group's
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
        group=mac.group(primary) if igmp else None,
        heartbeat_destination=cluster_mac,
        announces=choices.arp_for_vip,
        nft_tables=nft.tables(interface, addresses),
        nft_ruleset=nft.ruleset(
            interface,
            cluster_mac,
            addresses,
            plane_sets_packet_type,
            choices=choices,
        ),
        sysctls=nft.sysctls(interface, addresses),
    )
