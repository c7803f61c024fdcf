"""The flooded segment of a cluster, bare: a client, a bridge, hosts; and a filter on each host.

Every host's interface has the cluster MAC for its own, so that no filter needs to put the packet
type right; the bridge does not learn, and floods whatever the client sends to the cluster.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

from labs.namespaces import CLONE_NEWNET, set_namespace, unshare
from labs.node import QUIET, run_batch, write_sysctls
from labs.topology import CLUSTER_IP_ADDRESS

CLUSTER_MAC, CLIENT_MAC = "02:bf:0a:01:00:64", "02:c1:0a:01:00:c8"
CLIENT_ADDRESS = "10.1.0.200"
CLIENT_POOL = IPv4Network("10.2.64.0/18")
"""Source addresses of the client: what is hashed, so that every host owns some."""

FLOOD_POOL = IPv4Network("10.2.128.0/18")
"""Source addresses of frames to whose answers the client's stack shall not react."""

HOST_SYSCTLS = (
    *QUIET,
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
)


class Rig:
    """``hosts`` hosts.  All namespaces end with the descriptors that this process holds."""

    def __init__(self, hosts: int) -> None:
        self._machine = _own_namespace()
        self._switch = self._fresh()
        self.client = self._fresh()
        self.hosts = [self._fresh() for _ in range(hosts)]
        ends = [(self.client, CLIENT_MAC), *((host, CLUSTER_MAC) for host in self.hosts)]
        lines = ["link set lo up", "link add bridge type bridge mcast_snooping 0"]
        for number, (end, mac) in enumerate(ends):
            target = f"/proc/{os.getpid()}/fd/{end}"
            lines += [
                f"link add port{number} type veth peer name eth0 address {mac} netns {target}",
                f"link set port{number} master bridge up",
                f"link set port{number} type bridge_slave learning off",
            ]
        with self.inside(self._switch):
            run_batch("ip", [*lines, "link set bridge up"])
        with self.inside(self.client):
            run_batch("ip", _client_setup())
        for number, host in enumerate(self.hosts, 1):
            with self.inside(host):
                run_batch("ip", _host_setup(number))

    @contextmanager
    def inside(self, namespace: int) -> Iterator[None]:
        """This process in one of the namespaces."""
        set_namespace(namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            set_namespace(self._machine, CLONE_NEWNET)

    def _fresh(self) -> int:
        unshare(CLONE_NEWNET)
        write_sysctls(HOST_SYSCTLS)
        made = _own_namespace()
        set_namespace(self._machine, CLONE_NEWNET)
        return made


def _own_namespace() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _client_setup() -> list[str]:
    return [
        "link set lo up",
        f"addr add {CLIENT_ADDRESS}/24 dev eth0",
        "link set eth0 up",
        f"neigh add {CLUSTER_IP_ADDRESS} lladdr {CLUSTER_MAC} dev eth0 nud permanent",
        f"route add local {CLIENT_POOL} dev lo",
    ]


def _host_setup(number: int) -> list[str]:
    return [
        "link set lo up",
        f"addr add 10.1.0.{number}/24 dev eth0",
        f"addr add {CLUSTER_IP_ADDRESS}/32 dev eth0",
        "link set eth0 up",
        f"neigh add {CLIENT_ADDRESS} lladdr {CLIENT_MAC} dev eth0 nud permanent",
        f"route add {CLIENT_POOL} via {CLIENT_ADDRESS}",
        f"route add {FLOOD_POOL} via {CLIENT_ADDRESS}",
    ]
