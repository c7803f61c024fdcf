"""The methods of the comparison: what each needs, how it is set up, how a server is taken out."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from labs.compare import components as c
from labs.compare.clients import Plan
from labs.experiment import ask_agent, pause
from labs.handle import LabHandle, Task
from labs.topology import CLUSTER_IP_ADDRESS, ROUTER_CLIENT_ADDRESS, LabSpec
from modes.plan import Mode

VIP = str(CLUSTER_IP_ADDRESS)
SERVERS = ("host1", "host2", "host3")
OPERATOR_S = 3.0
"""Between two commands that an operator gives on two servers."""

GROUP_MAC = "01:00:5e:00:01:01"

Tasks = dict[str, Task]


@dataclass(slots=True)
class Setting:
    """A method at work in a lab."""

    plan: Plan
    tasks: Tasks = field(default_factory=dict)
    take_out: Callable[[str], None] = lambda victim: None
    """What an operator does before maintenance of a server."""


@dataclass(frozen=True, slots=True)
class Method:
    """``programs``: what must be installed; ``kernel``: a file that shows a kernel feature."""

    name: str
    short: str
    title: str
    spec: LabSpec
    set_up: Callable[[LabHandle], Setting]
    programs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    kernel: str = ""
    balancing: str = ""
    """How clients are spread, in a word or two."""

    def skipped(self) -> str:
        """Why this machine cannot run it, "" when it can."""
        lacking = c.missing(self.programs)
        if lacking:
            return f"{lacking} is not installed: sudo apt-get install {' '.join(self.packages)}"
        if self.kernel and not Path(self.kernel).exists():
            return f"this kernel has no {Path(self.kernel).name}"
        return ""


def _addresses() -> dict[str, str]:
    return {name: f"10.1.0.{number}" for number, name in enumerate(SERVERS, 1)}


# ---------------------------------------------------------------- the four ways of the talk


def _ip_failover(lab: LabHandle) -> Setting:
    tasks = {name: c.keepalived(lab, name, VIP, number) for number, name in enumerate(SERVERS, 1)}
    c.await_master(lab, SERVERS, VIP)
    return Setting(Plan(VIP), tasks, lambda victim: tasks[victim].channel.send({"stop": True}))


def _dns(lab: LabHandle) -> Setting:
    addresses = _addresses()
    tasks = {"dnsmasq": c.dnsmasq(lab, list(addresses.values()))}

    def take_out(victim: str) -> None:
        c.write_names(lab, [address for name, address in addresses.items() if name != victim])
        tasks["dnsmasq"].channel.send({"signal": signal.SIGHUP})

    return Setting(Plan("", dns=str(ROUTER_CLIENT_ADDRESS)), tasks, take_out)


def _nlb(lab: LabHandle) -> Setting:
    def take_out(victim: str) -> None:
        ask_agent(lab, victim, "drainstop")

    return Setting(Plan(VIP), {}, take_out)


def _single_leg(lab: LabHandle) -> Setting:
    c.shell(lab, c.BALANCER, f"ip addr add {VIP}/24 dev eth0")
    tasks = {"haproxy": c.haproxy(lab, VIP, _addresses(), transparent=False)}
    c.await_answer(lab, "client1", VIP)
    return Setting(Plan(VIP), tasks, lambda victim: _drain(lab, victim))


def _drain(lab: LabHandle, victim: str) -> None:
    for backend in ("servers", "with_cookies"):
        c.haproxy_order(lab, f"set server {backend}/{victim} state drain")


def _two_legs(lab: LabHandle) -> Setting:
    """The balancer is the servers' default gateway and speaks to them as the client."""
    inner = {name: f"10.3.0.{number}" for number, name in enumerate(SERVERS, 1)}
    _second_leg(lab)
    for name, address in inner.items():
        script = f"ip addr flush dev eth0; ip addr add {address}/24 dev eth0; "
        c.shell(lab, name, script + "ip route replace default via 10.3.0.254")
    c.shell(
        lab,
        c.BALANCER,
        f"ip addr add {VIP}/24 dev eth0; sysctl -qw net.ipv4.ip_forward=1;"
        " for i in all default eth0 eth1; do sysctl -qw net.ipv4.conf.$i.rp_filter=0; done;"
        " ip rule add fwmark 1 lookup 100; ip route add local default dev lo table 100;"
        " nft 'table inet two_legs { chain prerouting { type filter hook prerouting priority"
        " mangle; meta l4proto tcp socket transparent 1 meta mark set 1 accept; }; }'",
    )
    tasks = {"haproxy": c.haproxy(lab, VIP, inner, transparent=True)}
    c.await_answer(lab, "client1", VIP)
    return Setting(Plan(VIP), tasks, lambda victim: _drain(lab, victim))


def _second_leg(lab: LabHandle) -> None:
    """A second cable from the switch to the balancer."""
    pid = _pid_in_lab(lab, c.BALANCER)
    c.shell(
        lab,
        "switch",
        f"ip link add leg2 type veth peer name eth1 netns {pid};"
        " ip link set leg2 master br0; ip link set leg2 up",
    )
    c.shell(lab, c.BALANCER, "ip addr add 10.3.0.254/24 dev eth1; ip link set eth1 up")


def _pid_in_lab(lab: LabHandle, node: str) -> int:
    """Pid of the process that holds a node, as the lab's own /proc has it."""
    status = Path(f"/proc/{lab.node_pid(node)}/status").read_text()
    return int(status.partition("NSpid:")[2].splitlines()[0].split()[-1])


def _servers_with_vip(lab: LabHandle) -> dict[str, str]:
    """The service address on each server's loopback, silent to ARP; MAC addresses by node."""
    for name in SERVERS:
        c.shell(
            lab,
            name,
            "sysctl -qw net.ipv4.conf.all.arp_ignore=1; sysctl -qw net.ipv4.conf.all.arp_announce=2"
            f"; ip addr add {VIP}/32 dev lo",
        )
    c.shell(lab, c.BALANCER, f"ip addr add {VIP}/24 dev eth0")
    return {name: c.mac_of(lab, name) for name in (*SERVERS, c.BALANCER)}


def _direct_return(lab: LabHandle) -> Setting:
    macs = _servers_with_vip(lab)
    tasks = {"checker": c.checker(lab, VIP, _addresses(), macs)}
    c.await_answer(lab, "client1", VIP)
    order = tasks["checker"].channel.send
    return Setting(Plan(VIP), tasks, lambda victim: order({"out": victim}))


def _ipvs(lab: LabHandle) -> Setting:
    _servers_with_vip(lab)
    lines = [f"ipvsadm -A -t {VIP}:80 -s sh"]
    lines += [f"ipvsadm -a -t {VIP}:80 -r {address} -g" for address in _addresses().values()]
    c.shell(lab, c.BALANCER, "; ".join(lines))
    c.await_answer(lab, "client1", VIP)

    def take_out(victim: str) -> None:
        address = _addresses()[victim]
        c.shell(lab, c.BALANCER, f"ipvsadm -e -t {VIP}:80 -r {address} -g -w 0")

    return Setting(Plan(VIP), {}, take_out)


def cluster_rules(number: int, taken: tuple[int, ...]) -> str:
    """xt_cluster on server ``number``, responsible for the parts in ``taken``."""
    mask = sum(1 << part - 1 for part in taken)
    match = f"-m cluster --cluster-total-nodes {len(SERVERS)} --cluster-local-nodemask {mask}"
    return (
        "iptables -t mangle -F; iptables -F;"
        f" iptables -t mangle -A PREROUTING -i eth0 -d {VIP} {match} --cluster-hash-seed 1"
        " -j MARK --set-mark 0xffff;"
        f" iptables -A INPUT -i eth0 -d {VIP} -p tcp -m mark ! --mark 0xffff -j DROP"
        if mask
        else f"iptables -t mangle -F; iptables -F; iptables -A INPUT -d {VIP} -j DROP"
    )


def _xt_cluster(lab: LabHandle) -> Setting:
    for number, name in enumerate(SERVERS, 1):
        mac = c.mac_of(lab, name)
        c.shell(
            lab,
            name,
            f"ip maddr add {GROUP_MAC} dev eth0; ip addr add {VIP}/32 dev eth0;"
            f" arptables -A OUTPUT -o eth0 --h-length 6 -s {VIP} -j mangle"
            f" --mangle-mac-s {GROUP_MAC};"
            f" arptables -A INPUT -i eth0 --h-length 6 --destination-mac {GROUP_MAC} -j mangle"
            f" --mangle-mac-d {mac}; " + cluster_rules(number, (number,)),
        )
    c.await_answer(lab, "client1", VIP)

    def take_out(victim: str) -> None:
        out = SERVERS.index(victim) + 1
        heir = out % len(SERVERS) + 1
        c.shell(lab, victim, cluster_rules(out, ()))
        pause(OPERATOR_S)
        c.shell(lab, SERVERS[heir - 1], cluster_rules(heir, (heir, out)))

    return Setting(Plan(VIP), {}, take_out)


BARE = LabSpec(hosts=len(SERVERS), agents=False)
CLUSTER = LabSpec(hosts=len(SERVERS), timers="nlb")

METHODS = (
    Method(
        "ip-failover",
        "IP failover",
        "IP failover (keepalived)",
        BARE,
        _ip_failover,
        ("keepalived", "curl"),
        ("keepalived", "curl"),
        balancing="active / passive",
    ),
    Method(
        "dns-rr",
        "DNS RR",
        "DNS round robin (dnsmasq)",
        BARE,
        _dns,
        ("dnsmasq",),
        ("dnsmasq-base",),
        balancing="round robin of answers",
    ),
    Method(
        "nlb-unicast", "NLB unicast", "NLB, unicast", CLUSTER, _nlb, balancing="hash of the client"
    ),
    Method(
        "nlb-multicast",
        "NLB multicast",
        "NLB, multicast",
        replace(CLUSTER, mode=Mode.MULTICAST),
        _nlb,
        balancing="hash of the client",
    ),
    Method(
        "nlb-igmp",
        "NLB IGMP",
        "NLB, IGMP",
        replace(CLUSTER, mode=Mode.IGMP, switch="mac"),
        _nlb,
        balancing="hash of the client",
    ),
    Method(
        "lb-single-leg",
        "balancer 1 leg",
        "Balancer, single leg (HAProxy)",
        BARE,
        _single_leg,
        ("haproxy", "curl"),
        ("haproxy", "curl"),
        balancing="round robin, then the same",
    ),
    Method(
        "lb-two-legs",
        "balancer 2 legs",
        "Balancer, two legs (HAProxy)",
        BARE,
        _two_legs,
        ("haproxy", "curl"),
        ("haproxy", "curl"),
        balancing="round robin, then the same",
    ),
    Method(
        "lb-direct-return",
        "direct return",
        "Balancer, direct return (nft)",
        BARE,
        _direct_return,
        ("curl",),
        ("curl",),
        balancing="hash of the client",
    ),
    Method(
        "lb-ipvs",
        "IPVS",
        "Balancer, direct return (IPVS)",
        BARE,
        _ipvs,
        ("ipvsadm", "curl"),
        ("ipvsadm", "curl"),
        kernel="/proc/net/ip_vs",
        balancing="hash of the client",
    ),
    Method(
        "xt-cluster",
        "xt_cluster",
        "xt_cluster",
        BARE,
        _xt_cluster,
        ("iptables", "arptables", "curl"),
        ("iptables", "arptables", "curl"),
        balancing="hash of the client",
    ),
)
