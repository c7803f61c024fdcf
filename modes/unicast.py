"""Unicast mode: the cluster MAC is a secondary address, and no frame ever leaves with it.

The switch learns 02-h-w-x-y-z of each host and never 02-BF-w-x-y-z: frames for the cluster IP
address flood to every port, those for a dedicated IP address go to one host only.
"""

from modes import arp, mac, nft
from modes.plan import InterfaceAddress, LinkChoices, LinkPlan, Mode


def plan(
    interface: str,
    host_id: int,
    cluster_ip_addresses: tuple[InterfaceAddress, ...],
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
    ipv6 = any(address.version == 6 for address in addresses)
    notify_ipv6 = ((f"net/ipv6/conf/{interface}/ndisc_notify", "1"),) if ipv6 else ()
    interface_mac = mac.host_mac(host_id, addresses[0]) if masked else cluster_mac
    return LinkPlan(
        interface=interface,
        mode=Mode.UNICAST,
        cluster_ip_addresses=cluster_ip_addresses,
        cluster_mac=cluster_mac,
        secondary_mac=masked,
        interface_mac=interface_mac,
        join_mac=False,
        group=None,
        heartbeat_destination=arp.BROADCAST,
        announces=choices.arp_for_vip,
        nft_tables=nft.tables(interface, addresses),
        nft_ruleset=nft.ruleset(
            interface,
            cluster_mac,
            addresses,
            plane_sets_packet_type,
            interface_mac,
            choices,
        ),
        # The neighbours know the dedicated IP addresses under the former MAC: the kernel tells
        # them, when the MAC changes and again when it changes back.
        sysctls=(
            *nft.sysctls(interface, addresses),
            (f"net/ipv4/conf/{interface}/arp_notify", "1"),
            *notify_ipv6,
        ),
    )
