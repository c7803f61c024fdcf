"""The lab as a plan: nodes, cables and addresses; pure.

    client1 ---- router ---+
                           |
    client2 ---------------+--- switch ---+--- host1 .. hostN
    bystander -------------+

The client of the experiments sits behind a router, because every server sees a routed client
alike; client2 shows the view from the cluster's own subnet, and the bystander takes no part.
"""

from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network

from modes.plan import Mode
from softnlb.errors import UsageError

CLUSTER_NETWORK = IPv4Network("10.1.0.0/24")
CLUSTER_IP_ADDRESS = IPv4Address("10.1.0.100")
CLIENT_NETWORK = IPv4Network("10.2.0.0/16")
CLIENT_ADDRESS = IPv4Address("10.2.0.2")
CLIENT_POOL = IPv4Network("10.2.64.0/18")
"""Every address in it belongs to client1, so that one node can be many clients."""

ROUTER_ADDRESS = IPv4Address("10.1.0.254")
ROUTER_CLIENT_ADDRESS = IPv4Address("10.2.0.1")
CLIENT2_ADDRESS = IPv4Address("10.1.0.200")
BYSTANDER_ADDRESS = IPv4Address("10.1.0.201")

SERVICE_PORT = 80
HOSTS_MAX = 32
TIMERS = {"nlb": (1000, 5), "fast": (100, 5)}
"""Alive message period in ms and tolerance by name."""

SWITCHES = ("dumb", "linux", "mac")
DATA_PLANES = ("auto", "nfqueue", "ebpf")
ATTACHES = ("auto", "tc", "xdp", "xdp-generic")


@dataclass(frozen=True, slots=True)
class LabSpec:
    """What a user chooses about a lab.

    ``switch``: "dumb" floods every multicast, "linux" snoops by IP group as the kernel's bridge
    does, "mac" snoops by MAC address as most hardware switches do.
    """

    name: str = "lab"
    hosts: int = 4
    mode: Mode = Mode.UNICAST
    timers: str = "nlb"
    data_plane: str = "auto"
    attach: str = "auto"
    switch: str = "dumb"
    affinity: str = "single"
    """Client affinity of the lab's one port rule, which covers every port."""
    agents: bool = True
    """False builds the network and the services only."""
    record: bool = True
    """False: nobody follows heartbeats and counts frames for the event log; for benchmarks."""

    def __post_init__(self) -> None:
        if not 1 <= self.hosts <= HOSTS_MAX:
            raise UsageError(f"--hosts {self.hosts}: a cluster has 1 to {HOSTS_MAX} hosts")
        for option, value, choices in (
            ("--timers", self.timers, tuple(TIMERS)),
            ("--switch", self.switch, SWITCHES),
            ("--data-plane", self.data_plane, DATA_PLANES),
            ("--attach", self.attach, ATTACHES),
            ("--affinity", self.affinity, ("none", "single", "network")),
        ):
            if value not in choices:
                raise UsageError(f"{option} {value}: expected one of {', '.join(choices)}")
        if not self.name.replace("-", "").replace("_", "").isalnum() or len(self.name) > 40:
            raise UsageError(f"--name {self.name}: letters, digits, - and _ only, 40 at most")

    def to_json(self) -> dict[str, object]:
        """The spec as it is handed to the supervisor."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, object]) -> "LabSpec":
        """The inverse of ``to_json``."""
        fields = dict(data)
        fields["mode"] = Mode(str(fields["mode"]))
        return cls(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the lab.  ``port``: its interface on the switch, None when not on it.

    ``interface``: the node's own end of that cable.  ``setup``: lines for ``ip -batch`` and
    ``sysctls`` (path below /proc/sys, value), carried out inside once the cables are in.
    """

    name: str
    kind: str
    port: str | None
    interface: str = "eth0"
    host_id: int | None = None
    address: IPv4Address | None = None
    setup: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()


def dedicated_ip_address(host_id: int) -> IPv4Address:
    """10.1.0.1 for host 1, and so on."""
    return CLUSTER_NETWORK[host_id]


def _leaf(name: str, kind: str, address: IPv4Address, host_id: int | None = None) -> Node:
    """A node with one cable, to the switch, and its default route through the router."""
    return Node(
        name=name,
        kind=kind,
        port=name,
        host_id=host_id,
        address=address,
        setup=(
            "link set lo up",
            f"addr add {address}/{CLUSTER_NETWORK.prefixlen} dev eth0",
            "link set eth0 up",
            f"route add default via {ROUTER_ADDRESS}",
        ),
    )


def host_node(host_id: int) -> Node:
    """The node of a cluster host."""
    return _leaf(f"host{host_id}", "host", dedicated_ip_address(host_id), host_id)


def nodes(hosts: int) -> tuple[Node, ...]:
    """Every node of a lab, the switch first because all cables begin there."""
    switch = Node("switch", "switch", None, setup=("link set lo up",))
    router = Node(
        name="router",
        kind="router",
        port="router",
        address=ROUTER_ADDRESS,
        setup=(
            "link set lo up",
            f"addr add {ROUTER_ADDRESS}/{CLUSTER_NETWORK.prefixlen} dev eth0",
            f"addr add {ROUTER_CLIENT_ADDRESS}/{CLIENT_NETWORK.prefixlen} dev eth1",
            "link set eth0 up",
            "link set eth1 up",
            # One neighbour for all of client1's addresses: 16,384 would overflow the ARP table.
            f"route add {CLIENT_POOL} via {CLIENT_ADDRESS}",
        ),
        sysctls=(("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/send_redirects", "0")),
    )
    client1 = Node(
        name="client1",
        kind="client",
        port=None,
        address=CLIENT_ADDRESS,
        setup=(
            "link set lo up",
            f"addr add {CLIENT_ADDRESS}/{CLIENT_NETWORK.prefixlen} dev eth0",
            "link set eth0 up",
            f"route add local {CLIENT_POOL} dev lo",
            f"route add default via {ROUTER_CLIENT_ADDRESS}",
        ),
    )
    return (
        switch,
        router,
        client1,
        _leaf("client2", "client", CLIENT2_ADDRESS),
        _leaf("bystander", "bystander", BYSTANDER_ADDRESS),
        *(host_node(host_id) for host_id in range(1, hosts + 1)),
    )


def cluster_toml(spec: LabSpec, host_id: int) -> str:
    """The configuration file of one host, /etc/softnlb/cluster.toml in its node."""
    prefix = CLUSTER_NETWORK.prefixlen
    return f"""\
[cluster]
ip_address = "{CLUSTER_IP_ADDRESS}/{prefix}"
mode = "{spec.mode}"
timers = "{spec.timers}"

[host]
id = {host_id}
interface = "eth0"
dedicated_ip_address = "{dedicated_ip_address(host_id)}/{prefix}"
data_plane = "{spec.data_plane}"
attach = "{spec.attach}"

[[port_rule]]
ports = "0-65535"
protocol = "both"
filtering_mode = "multiple"
affinity = "{spec.affinity}"
load_weight = 50
"""
