"""What is compared: each way in which host k of n can throw away the clients of the others."""

from collections.abc import Callable

from convergence.rules import BUCKETS, DEFAULT_RULE, Affinity, PortRule
from labs.bench.rig import CLUSTER_MAC, Rig
from labs.node import run_tool
from labs.topology import CLUSTER_IP_ADDRESS
from softnlb.dataplane import DataPlane
from softnlb.ebpf import EbpfPlane
from softnlb.filter import FilterRule, FilterTable, default_hash_seed
from softnlb.nfqueue import NfqueuePlane
from softnlb.verdicts import now_ms

SEED = default_hash_seed(CLUSTER_IP_ADDRESS)
LEASE_MS = 3_600_000
RULE = PortRule(None, 0, 65535, affinity=Affinity.SINGLE)

Filter = Callable[[int, int], object]
"""Puts the filter on eth0 of the namespace that the process is in: host number (from 1), hosts.
What it returns must live as long as the filter.  Raises SoftnlbError."""


def none(number: int, hosts: int) -> None:
    """Every host takes every packet."""


def xt_cluster(number: int, hosts: int) -> None:
    """The cluster match of iptables, as its manual places it."""
    match = f"-m cluster --cluster-total-nodes {hosts} ! --cluster-local-node {number}"
    rule = f"-t mangle -A PREROUTING -i eth0 -d {CLUSTER_IP_ADDRESS} {match}"
    run_tool(["iptables", *rule.split(), "--cluster-hash-seed", str(SEED), "-j", "DROP"])


def nft_jhash(number: int, hosts: int) -> None:
    """One nft rule at the netdev hook, the earliest that nft has."""
    rule = f"ip daddr {CLUSTER_IP_ADDRESS} jhash ip saddr mod {hosts} seed {SEED}"
    chain = "type filter hook ingress device eth0 priority 0;"
    lines = ["table netdev bench {", "chain c {", chain, f"{rule} != {number - 1} drop", "}", "}"]
    run_tool(["nft", "-f", "-"], "\n".join(lines) + "\n")


def table(number: int, hosts: int) -> FilterTable:
    """What host ``number`` obeys when ``hosts`` share all buckets."""
    current = sum(1 << bucket for bucket in range(number - 1, BUCKETS, hosts))
    return FilterTable(
        interface="eth0",
        cluster_mac=bytes.fromhex(CLUSTER_MAC.replace(":", "")),
        cluster_ip_addresses=(CLUSTER_IP_ADDRESS,),
        local_ip_addresses=(CLUSTER_IP_ADDRESS,),
        hash_seed=SEED,
        rules=(FilterRule(RULE, current), FilterRule(DEFAULT_RULE, current)),
        valid_until_ms=now_ms() + LEASE_MS,
    )


def _plane(make: Callable[[], DataPlane]) -> Filter:
    def put(number: int, hosts: int) -> DataPlane:
        plane = make()
        plane.attach("eth0")
        plane.install(table(number, hosts))
        return plane

    return put


FILTERS: dict[str, Filter] = {
    "no filter": none,
    "xt_cluster": xt_cluster,
    "nft jhash": nft_jhash,
    "nfqueue": _plane(NfqueuePlane),
    "ebpf tc": _plane(lambda: EbpfPlane("tc")),
    "ebpf xdp-generic": _plane(lambda: EbpfPlane("xdp-generic")),
}
PEERS = ("no filter", "xt_cluster", "nft jhash")
PLANES = tuple(name for name in FILTERS if name not in PEERS)


class Filtered(Rig):
    """A rig with the same filter on each host."""

    def __init__(self, name: str, hosts: int) -> None:
        """Raises SoftnlbError when this machine lacks what the filter needs."""
        super().__init__(hosts)
        self.name = name
        self._kept: list[object] = []
        for number, host in enumerate(self.hosts, 1):
            with self.inside(host):
                self._kept.append(FILTERS[name](number, hosts))
