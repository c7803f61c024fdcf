"""The LinkPlan: everything that a mode wants of a host's network interface, as plain data."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface

from modes.mac import IPAddress

InterfaceAddress = IPv4Interface | IPv6Interface


class Mode(StrEnum):
    """The cluster operation mode; IGMP is NLB's multicast mode with IGMP support."""

    UNICAST = "unicast"
    MULTICAST = "multicast"
    IGMP = "igmp"


@dataclass(frozen=True, slots=True)
class LinkChoices:
    """What an operator may choose about layer 2 beside the mode; the same on every host."""

    cluster_mac: bytes | None = None
    """Set by hand; None derives it from the primary cluster IP address."""
    mask_source_mac: bool = True
    """Unicast: False makes the cluster MAC the interface's own, as behind a hub."""
    arp_for_vip: bool = True
    """False answers no ARP request and no neighbour solicitation for a cluster IP address:
    neighbours have static entries."""
    dedicated_ipv6_address: IPv6Address | None = None
    """Of this host, not of all: in whose name it asks for neighbours of an IPv6 cluster."""


AS_NLB_DOES = LinkChoices()


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """What must hold on the cluster interface while the host is started.

    MAC addresses are 6 bytes.  ``interface_mac`` None keeps the interface's own address.
    """

    interface: str
    mode: Mode
    cluster_ip_addresses: tuple[InterfaceAddress, ...]
    """Added after everything else stands, removed before anything else falls."""
    cluster_mac: bytes
    """Destination of every client frame, and the answer to every ARP request for a cluster IP."""
    secondary_mac: bool
    """Unicast: ``cluster_mac`` becomes a secondary address of the interface."""
    interface_mac: bytes | None
    """Unicast: 02-h-w-x-y-z, what the switch learns instead of the cluster MAC; the cluster MAC
    itself where the source is not masked."""
    join_mac: bool
    """Multicast: ``cluster_mac`` joined as a packet membership."""
    group: IPAddress | None
    """IGMP: group to join, 239.255.y.z or ff05::efff:y.z."""
    heartbeat_destination: bytes
    announces: bool
    """Whether take-overs are announced to the neighbours, and their requests answered."""
    nft_tables: tuple[tuple[str, str], ...]
    """(family, name) of every table that the ruleset builds, and nobody else uses."""
    nft_ruleset: str
    """One nft transaction that builds these tables anew: packet type, ARP payload,
    wrong-interface and never-forward drops."""
    sysctls: tuple[tuple[str, str], ...]
    """(path below /proc/sys, value) to set while started."""
