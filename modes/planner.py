"""The one entry: a mode and a host's configuration in, the LinkPlan out."""

from modes import multicast, unicast
from modes.plan import AS_NLB_DOES, InterfaceAddress, LinkChoices, LinkPlan, Mode


def plan_link(
    mode: Mode,
    interface: str,
    host_id: int,
    cluster_ip_addresses: tuple[InterfaceAddress, ...],
    plane_sets_packet_type: bool = False,
    choices: LinkChoices = AS_NLB_DOES,
) -> LinkPlan:
    """What must hold on ``interface`` while host ``host_id`` (1..32) is started.

    The first cluster IP address is the primary one and gives the cluster MAC.
    ``plane_sets_packet_type``: whether the data plane makes the packets that it keeps acceptable to
    the stack, so that nothing is kept without it; otherwise the link's rules do, for all packets.
    """
    if mode is Mode.UNICAST:
        return unicast.plan(
            interface, host_id, cluster_ip_addresses, plane_sets_packet_type, choices
        )
    return multicast.plan(
        interface, cluster_ip_addresses, mode is Mode.IGMP, plane_sets_packet_type, choices
    )
