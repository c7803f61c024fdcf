"""What a user chooses about a lab, and the lab that stands when nothing else is said; pure.

    client1 ---- router ---+
                           |
    client2 ---------------+--- switch ---+--- host1 .. hostN
    bystander -------------+

The client of the experiments sits behind a router, because every server sees a routed client
alike; client2 shows the view from the cluster's own subnet, and the bystander takes no part.
"""

from dataclasses import asdict, dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any

from convergence.rules import IPAddress
from modes.plan import Mode
from softnlb.errors import UsageError

CLUSTER_NETWORK = IPv4Network("10.1.0.0/24")
CLUSTER_IP_ADDRESS = IPv4Address("10.1.0.100")
CLIENT_NETWORK = IPv4Network("10.2.0.0/16")
CLIENT_ADDRESS = IPv4Address("10.2.0.2")
CLIENT_POOL = IPv4Network("10.2.64.0/18")
"""Every address in it belongs to client1, so that one node can be many clients."""

ROUTER_CLIENT_ADDRESS = IPv4Address("10.2.0.1")

IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the nodes of the usual lab are; host 1 has the first address of the network."""

    network: IPNetwork
    cluster: IPAddress
    router: IPAddress
    client2: IPAddress
    bystander: IPAddress
    client1: str
    """With the length of its network's prefix."""

    pool: IPNetwork


IPV4 = Addresses(
    CLUSTER_NETWORK,
    CLUSTER_IP_ADDRESS,
    router=IPv4Address("10.1.0.254"),
    client2=IPv4Address("10.1.0.200"),
    bystander=IPv4Address("10.1.0.201"),
    client1=f"{CLIENT_ADDRESS}/{CLIENT_NETWORK.prefixlen}",
    pool=CLIENT_POOL,
)
IPV6 = Addresses(
    IPv6Network("2001:db8:1::/64"),
    IPv6Address("2001:db8:1::100"),
    router=IPv6Address("2001:db8:1::254"),
    client2=IPv6Address("2001:db8:1::200"),
    bystander=IPv6Address("2001:db8:1::201"),
    client1="2001:db8:2::2/64",
    pool=IPv6Network("2001:db8:4000::/34"),
)
"""The pool has as many networks of clients (/64) that affinity may tell apart as one can wish."""

SERVICE_PORT = 80
HOSTS_MAX = 32
TIMERS = {"nlb": (1000, 5), "fast": (100, 5)}
"""Alive message period in ms and tolerance by name."""

SWITCHES = ("dumb", "linux", "mac")
SERVICES = ("http", "nginx")
DATA_PLANES = ("auto", "nfqueue", "ebpf")
ATTACHES = ("auto", "tc", "xdp", "xdp-generic")


Document = dict[str, Any]
"""A lab file with nothing left out: the tables of labs/lab_schema.py, as JSON carries them."""


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
    affinity_timeout_min: int = 0
    """Of that rule; 0: no extended affinity."""
    ipv6: bool = False
    """Every address of the usual lab is IPv6, else IPv4."""

    agents: bool = True
    """False builds the network and the services only."""
    record: bool = True
    """False: nobody follows heartbeats and counts frames for the event log; for benchmarks."""

    document: Document | None = None
    """A checked lab file, which the fields above then only summarize; None is the usual lab."""

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

    def complete_document(self) -> Document:
        """The lab as a file would describe it."""
        return self.document or usual_document(self)

    @property
    def cluster_ip_address(self) -> IPAddress:
        """The primary one."""
        if self.document is None:
            return (IPV6 if self.ipv6 else IPV4).cluster
        return ip_interface(self.document["cluster"]["ip_address"]).ip

    @property
    def period_ms(self) -> int:
        """The alive message period."""
        own = (self.document or {"cluster": {}})["cluster"].get("alive_message_period_ms")
        return int(own or TIMERS[self.timers][0])

    def client_pool(self, client: str) -> IPNetwork | None:
        """The many addresses of a client node; None when it has only its own."""
        for table in self.complete_document()["client"]:
            if table["name"] == client and table["pool"] is not None:
                return ip_network(table["pool"])
        return None


def end_point(address: str, port: int) -> str:
    """10.1.0.100:80 or [2001:db8:1::100]:80."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def usual_document(spec: LabSpec) -> Document:
    """The lab of the picture above."""
    at = IPV6 if spec.ipv6 else IPV4
    prefix = at.network.prefixlen
    hosts = [
        {
            "id": host_id,
            "name": f"host{host_id}",
            "switch": "switch",
            "address": f"{at.network[host_id]}/{prefix}",
        }
        for host_id in range(1, spec.hosts + 1)
    ]
    routed: Document = {"name": "client1", "router": "router", "switch": None}
    routed |= {"address": at.client1, "pool": str(at.pool)}
    near: Document = {"name": "client2", "router": None, "switch": "switch"}
    near |= {"address": f"{at.client2}/{prefix}", "pool": None}
    return {
        "lab": {"name": spec.name, "data_plane": spec.data_plane, "attach": spec.attach},
        "cluster": {
            "ip_address": f"{at.cluster}/{prefix}",
            "mode": str(spec.mode),
            "timers": spec.timers,
        },
        "port_rule": [
            {
                "ports": "0-65535",
                "protocol": "both",
                "filtering_mode": "multiple",
                "affinity": spec.affinity,
                "timeout": spec.affinity_timeout_min,
                "load_weight": 50,
            }
        ],
        "switch": [{"name": "switch", "personality": spec.switch}],
        "trunk": [],
        "router": [
            {
                "name": "router",
                "switch": "switch",
                "address": f"{at.router}/{prefix}",
                "arp": "any",
                "nat": False,
            }
        ],
        "host": hosts,
        "client": [routed, near],
        "bystander": [
            {"name": "bystander", "switch": "switch", "address": f"{at.bystander}/{prefix}"}
        ],
        "service": [
            {"kind": "http", "port": SERVICE_PORT, "hosts": [host["name"] for host in hosts]}
        ],
    }
