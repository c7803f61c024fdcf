"""The one entry: a mode and a host's configuration in, the LinkPlan out."""

from ipaddress import IPv4Interface

from modes import multicast, unicast
from modes.plan import LinkPlan, Mode


def plan_link(
    mode: Mode,
    interface: str,
    host_id: int,
    cluster_ip_addresses: tuple[IPv4Interface, ...],
) -> LinkPlan:
    """What must hold on ``interface`` while host ``host_id`` (1..32) is started.

    The first cluster IP address is the primary one and gives the cluster MAC.
    """
    if mode is Mode.UNICAST:
        return unicast.plan(interface, host_id, cluster_ip_addresses)
    return multicast.plan(interface, cluster_ip_addresses, igmp=mode is Mode.IGMP)
