"""The kernel's part of the nfqueue plane: one nft table that queues only what must be decided.

The table hooks local input after early demultiplexing, where ``meta cgroup`` matches a packet
exactly when the kernel has already found the connection it belongs to, never when there is only a
listener (the ``socket`` expression alone looks listeners up, too).  It costs no conntrack and no
look-up of its own.
"""

import re
import socket
from collections.abc import Iterable
from itertools import pairwise

from convergence.rules import FilteringMode, IPAddress
from softnlb import netlink
from softnlb.errors import DataPlaneUnavailable
from softnlb.filter import FilterTable, match_rule
from softnlb.packet import IKE_NAT_PORT, TCP, UDP

COUNTERS = (
    "second-chance", "conntrack", "icmp-error", "wrong-interface", "disabled", "no-socket"
)  # fmt: skip
"""Reasons of what the kernel decides by itself; a counter of the table has the name of each."""

_QUEUE_CHAIN = "undecided"

# Any owner, so true for every packet that has a full socket: of the states only TIME_WAIT has none.
_HAS_SOCKET = "meta cgroup 0-4294967294"
# A request socket (SYN_RECV) passes the first test in the shape of its listener but has no mark.
_IS_SYNCHRONIZED = f"{_HAS_SOCKET} socket mark 0-4294967294"

_IS_OPENING = "tcp flags & (fin | syn | rst | ack) == syn"

# Per flow and second one segment without a socket is enough to answer it with RST, and one more
# holds the third ACK of a handshake; without this an upload to another host floods the queue.
_STRAYS = (
    "update @{set} {{ {family} saddr . {family} daddr . tcp sport . tcp dport "
    "limit rate 1/second burst 3 packets }}"
)
_ICMP_ERRORS = {
    "ip": "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
    "ip6": "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, "
    "parameter-problem }",
}
_NEIGHBOURS = "icmpv6 type { 130-137, 143 }"
"""Multicast listener discovery, router and neighbour discovery."""

_CLUSTER = {"ip": "cluster_ip_addresses", "ip6": "cluster_ipv6_addresses"}
_TYPES = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}

_NFNL_BATCH_BEGIN, _NFNL_BATCH_END = 0x10, 0x11
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_GETCHAIN = _NFNL_SUBSYS_NFTABLES << 8 | 4
_NFT_MSG_NEWRULE = _NFNL_SUBSYS_NFTABLES << 8 | 6
_NFTA_CHAIN_HOOK, _NFTA_CHAIN_TYPE, _NFTA_HOOK_HOOKNUM = 4, 7, 1
_PREROUTING = (0).to_bytes(4, "big")
_NFTA_RULE_TABLE, _NFTA_RULE_CHAIN, _NFTA_RULE_EXPRESSIONS = 1, 2, 4
_NFTA_LIST_ELEM, _NFTA_EXPR_NAME, _NFTA_EXPR_DATA = 1, 1, 2
_NFTA_TARGET_NAME, _NFTA_TARGET_REV, _NFTA_TARGET_INFO = 1, 2, 3
_NESTED = 0x8000
_NFPROTO_INET = 1


def table_name(interface: str) -> str:
    """A name that nft accepts, different for every interface."""
    plain = re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):x}_", interface)
    return f"softnlb_queue_{plain}"


def ruleset(interface: str, nft_queue: int | None, forwards: bool) -> str:
    """One transaction that replaces the table; no cluster IP address is in it yet.

    ``nft_queue``: number for nft's own queue statement, None to leave it to ``add_queue_rule``.
    Without either the chain drops, so no moment is open.  ``forwards``: ports of this host may be
    translated to other addresses (containers), so what opens a connection is decided before that.
    """
    name = table_name(interface)
    queue = "" if nft_queue is None else f"queue num {nft_queue}"
    opening = "accept" if forwards else f"goto {_QUEUE_CHAIN}"
    forwarding = _forwarding(interface) if forwards else ""
    counters = "\n".join(f"counter {reason} {{\n}}" for reason in COUNTERS)
    families = "\n".join(_family(interface, family, opening) for family in _CLUSTER)
    return f"""
table inet {name} {{
}}
delete table inet {name}
table inet {name} {{
    {counters}
    chain {_QUEUE_CHAIN} {{
        {queue}
        drop
    }}
    {families}
    chain input {{
        type filter hook input priority mangle - 10; policy accept;
        ip daddr @cluster_ip_addresses goto cluster_ip
        ip6 daddr @cluster_ipv6_addresses goto cluster_ip6
    }}
    chain synchronizing {{
        tcp flags & (syn | ack) == syn | ack goto {_QUEUE_CHAIN}
    }}
    chain output {{
        type filter hook output priority mangle - 10; policy accept;
        oifname "lo" accept
        ip saddr @cluster_ip_addresses goto synchronizing
        ip6 saddr @cluster_ipv6_addresses goto synchronizing
    }}
    {forwarding}
}}
"""


def _family(interface: str, family: str, opening: str) -> str:
    """Sets and chains for packets of one IP version to a cluster address.

    IPv6 fragments come here before they are put together: the first carries the ports and is
    decided, the others are of use only to the host that kept it.
    """
    strays = _STRAYS.format(set=f"strays_{family}", family=family)
    disabled = f"@disabled_{family}"
    fragments = "frag frag-off != 0 accept" if family == "ip6" else ""
    neighbours = f"{_NEIGHBOURS} accept" if family == "ip6" else ""
    kind = _TYPES[family]
    return f"""
    set {_CLUSTER[family]} {{
        type {kind}
    }}
    set disabled_{family} {{
        type {kind} . inet_proto . inet_service
        flags interval
    }}
    set strays_{family} {{
        type {kind} . {kind} . inet_service . inet_service
        size 131072
        flags dynamic,timeout
        timeout 3s
    }}
    chain segments_{family} {{
        {_IS_OPENING} {opening}
        {family} daddr . meta l4proto . tcp dport {disabled} counter name disabled drop
        {_IS_SYNCHRONIZED} counter name second-chance accept
        {_HAS_SOCKET} goto {_QUEUE_CHAIN}
        {strays} limit rate 10000/second burst 1000 packets goto {_QUEUE_CHAIN}
        counter name no-socket drop
    }}
    chain datagrams_{family} {{
        {family} daddr . meta l4proto . udp dport {disabled} {opening}
        {_HAS_SOCKET} counter name second-chance accept
        {opening}
    }}
    chain cluster_{family} {{
        iifname "lo" accept
        iifname != "{interface}" counter name wrong-interface drop
        {fragments}
        meta l4proto tcp goto segments_{family}
        meta l4proto udp goto datagrams_{family}
        {_ICMP_ERRORS[family]} counter name icmp-error accept
        {neighbours}
        goto {_QUEUE_CHAIN}
    }}
"""


def _forwarding(interface: str) -> str:
    """Chains for connections that leave again through destination NAT and never see a socket.

    Connection tracking knows exactly those whose first packet this host kept: a packet that is
    dropped before the end of its path leaves no entry, also where nf_conntrack_tcp_loose is set.
    """
    return f"""
    chain arriving {{
        ct status dnat ct state established,related counter name conntrack accept
        {_IS_OPENING} goto {_QUEUE_CHAIN}
        meta l4proto udp goto {_QUEUE_CHAIN}
    }}
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname "{interface}" ip daddr @cluster_ip_addresses goto arriving
        iifname "{interface}" ip6 daddr @cluster_ipv6_addresses goto arriving
    }}
    chain leaving {{
        ct state established,related accept
        {_IS_OPENING} accept
        meta l4proto udp accept
        counter name no-socket drop
    }}
    chain forward {{
        type filter hook forward priority mangle - 10; policy accept;
        iifname "{interface}" ct original ip daddr @cluster_ip_addresses goto leaving
        iifname "{interface}" ct original ip6 daddr @cluster_ipv6_addresses goto leaving
    }}
"""


def removal(interface: str) -> str:
    """One transaction that removes the table, whether it is there or not."""
    name = table_name(interface)
    return f"table inet {name} {{\n}}\ndelete table inet {name}\n"


def set_elements(interface: str, table: FilterTable) -> str:
    """One transaction that puts the cluster's addresses and its disabled ports into the sets."""
    lines = []
    for family, version in (("ip", 4), ("ip6", 6)):
        addresses = [ip for ip in table.cluster_ip_addresses if ip.version == version]
        contents = {
            _CLUSTER[family]: [str(ip) for ip in addresses],
            f"disabled_{family}": [
                f"{ip} . {name} . {start}-{end}"
                for ip in addresses
                for name, number in (("tcp", TCP), ("udp", UDP))
                for start, end in _disabled_ports(table, ip, number)
            ],
        }
        for name, elements in contents.items():
            lines.append(f"flush set inet {table_name(interface)} {name}")
            if elements:
                listed = ", ".join(elements)
                lines.append(f"add element inet {table_name(interface)} {name} {{ {listed} }}")
    return "\n".join(lines) + "\n"


def _disabled_ports(table: FilterTable, ip: IPAddress, protocol: int) -> Iterable[tuple[int, int]]:
    """The port ranges of an address whose rule is disabled; rules may overlap, so edges decide."""
    edges = {0, IKE_NAT_PORT, IKE_NAT_PORT + 1, 65536}
    for rule in table.rules:
        edges |= {rule.rule.start_port, rule.rule.end_port + 1}
    ordered = sorted(edges)
    for start, after in pairwise(ordered):
        rule = table.rules[match_rule(table, ip.packed, protocol, start)]
        if rule.rule.filtering_mode == FilteringMode.DISABLED or not rule.enabled:
            yield start, after - 1


def add_queue_rule(interface: str, queue_number: int) -> None:
    """Put the xtables target NFQUEUE before the drop: for kernels without nft's own statement.

    nft cannot write such a rule, iptables only into tables of its own; as one message it shares
    the fate of the table around it.  Raises DataPlaneUnavailable.
    """

    def text(kind: int, value: str) -> bytes:
        return netlink.attribute(kind, value.encode() + b"\0")

    # xt_NFQ_info_v1: first queue number, number of queues; padded as xtables aligns it.
    info = queue_number.to_bytes(2, "little") + (1).to_bytes(2, "little") + bytes(4)
    target = (
        text(_NFTA_TARGET_NAME, "NFQUEUE")
        + netlink.attribute(_NFTA_TARGET_REV, (1).to_bytes(4, "big"))
        + netlink.attribute(_NFTA_TARGET_INFO, info)
    )
    expression = text(_NFTA_EXPR_NAME, "target") + netlink.attribute(
        _NFTA_EXPR_DATA | _NESTED, target
    )
    rule = (
        text(_NFTA_RULE_TABLE, table_name(interface))
        + text(_NFTA_RULE_CHAIN, _QUEUE_CHAIN)
        + netlink.attribute(
            _NFTA_RULE_EXPRESSIONS | _NESTED,
            netlink.attribute(_NFTA_LIST_ELEM | _NESTED, expression),
        )
    )
    batch_head = bytes(2) + _NFNL_SUBSYS_NFTABLES.to_bytes(2, "big")
    rule_head = bytes((_NFPROTO_INET, 0, 0, 0))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETFILTER) as nft:
        nft.settimeout(5)
        nft.send(
            netlink.message(_NFNL_BATCH_BEGIN, 0, batch_head)
            + netlink.message(_NFT_MSG_NEWRULE, netlink.CREATE | netlink.ACK, rule_head + rule)
            + netlink.message(_NFNL_BATCH_END, 0, batch_head)
        )
        _kind, body = next(netlink.messages(nft.recv(4096)))
    error = -int.from_bytes(body[:4], "little", signed=True)
    if error:
        raise DataPlaneUnavailable(
            "the kernel takes neither nft's queue statement nor the NFQUEUE target "
            f"(errno {error}): load nft_queue, or nft_compat with xt_NFQUEUE"
        )


def translates_destinations(kernel: netlink.Netlink) -> bool:
    """True when anything on this machine translates destination addresses of arriving packets.

    Raises OSError when the kernel refuses.
    """
    for _kind, body in kernel.dump(_NFT_MSG_GETCHAIN, bytes(4)):
        chain = netlink.attributes(body[4:])
        hook = netlink.attributes(chain.get(_NFTA_CHAIN_HOOK, b"")).get(_NFTA_HOOK_HOOKNUM)
        if chain.get(_NFTA_CHAIN_TYPE) == b"nat\0" and hook == _PREROUTING:
            return True
    try:
        with open("/proc/net/ip_tables_names", encoding="ascii") as legacy:
            return "nat" in legacy.read().split()
    except OSError:
        return False
