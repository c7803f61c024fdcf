"""The switch: a real Linux bridge with one of three personalities, and faults on its ports."""

from dataclasses import dataclass, field

from labs.node import run_batch, write_sysctls
from labs.plan import Node, Switch, Trunk

BRIDGE = "br0"
"""The bridge of the first switch; the others are br1, br2 and so on."""

TABLE = "softnlb_faults"


def bridge_lines(switch: Switch) -> list[str]:
    """Lines for ``ip -batch`` that make the bridge of a switch.

    Snooping needs a querier somewhere, or the kernel floods as if it were off; the short response
    interval (in hundredths of a second) ends the querier's waiting time, and then snooping begins.
    IGMPv3, because in version 2 a host that hears another's report keeps its own to itself, and
    this switch would not learn its port before the next query.  MLDv2 for the same reason.
    """
    snooping = int(switch.personality != "dumb")
    asks = int(snooping and switch.asks)
    every = 100 * switch.query_interval_s
    often = f" mcast_query_interval {every} mcast_startup_query_interval {every}" if every else ""
    often += f" mcast_membership_interval {4 * every}" if every else ""
    often += " mcast_mld_version 2" if switch.ipv6 else ""
    return [
        f"link add {switch.bridge} type bridge stp_state 0 mcast_snooping {snooping}"
        f" mcast_query_response_interval 10 mcast_igmp_version 3 mcast_querier {asks}{often}",
        f"link set {switch.bridge} up",
    ]


def lay_out(switches: tuple[Switch, ...], cables: list[str]) -> None:
    """Build the bridges, then ``cables``, lines for ``ip -batch``.  Runs inside the switch."""
    run_batch("ip", [line for switch in switches for line in bridge_lines(switch)] + cables)
    for switch in switches:
        if switch.ipv6:  # a bridge without an IPv6 address asks nobody by MLD
            path = f"net/ipv6/conf/{switch.bridge}"
            write_sysctls(((f"{path}/accept_dad", "0"), (f"{path}/disable_ipv6", "0")))


def port_lines(node: Node, pid: int, personality: str) -> list[str]:
    """Lines for ``ip -batch`` in the switch that lay the cable to a node held by ``pid``."""
    port = node.port
    return [
        f"link add name {port} type veth peer name {node.interface} netns {pid}",
        *_plugged_in(str(port), node.bridge, personality),
    ]


def trunk_lines(trunk: Trunk, personalities: dict[str, str]) -> list[str]:
    """Lines for ``ip -batch`` in the switch that connect two bridges; personality by bridge."""
    (_, one), (_, other) = trunk.ends
    lines = [f"link add {one} type veth peer name {other}"]
    for bridge, port in trunk.ends:
        lines += _plugged_in(port, bridge, personalities[bridge])
    return lines


def _plugged_in(port: str, bridge: str, personality: str) -> list[str]:
    # Without "dev" ip takes a port called "b" for "broadcast".
    lines = [f"link set dev {port} master {bridge}"]
    if personality == "mac":
        # The kernel snoops by IP group and would black-hole the cluster's frames; with every port
        # a router port it only learns, and the table of labs/snooping.py decides.
        lines.append(f"link set dev {port} type bridge_slave mcast_router 2")
    return [*lines, f"link set dev {port} up"]


def snooping_line(bridge: str, on: bool, asks: bool) -> str:
    """A line for ``ip -batch`` that switches the kernel's snooping; ``asks``: and its querier."""
    asks = on and asks
    return f"link set {bridge} type bridge mcast_snooping {int(on)} mcast_querier {int(asks)}"


def querier_line(bridge: str, on: bool) -> str:
    """A line for ``ip -batch`` that switches the querier alone.

    Without one nobody asks the hosts, and what the switch knows runs out.
    """
    return f"link set {bridge} type bridge mcast_querier {int(on)}"


@dataclass(slots=True)
class PortFaults:
    """Faults that the switch plays, by port name.

    ``mute``: nothing that comes in is passed on.  ``deaf``: nothing goes out.  ``loss``: percent
    of frames lost, in both directions; ``loss_from`` only those that the node sends, ``loss_to``
    only those sent to it.  ``partition``: two sides that do not reach each other.
    """

    mute: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    loss: dict[str, float] = field(default_factory=dict)
    loss_from: dict[str, float] = field(default_factory=dict)
    loss_to: dict[str, float] = field(default_factory=dict)
    partition: tuple[frozenset[str], frozenset[str]] | None = None

    def forget(self, port: str | None = None) -> None:
        """Heal a port, and the partition that it is cut off by; or everything."""
        if port is None:
            self.mute.clear()
            self.deaf.clear()
            self.partition = None
            for losses in (self.loss, self.loss_from, self.loss_to):
                losses.clear()
            return
        if self.partition is not None and port in self.partition[0]:
            self.partition = None
        self.mute.discard(port)
        self.deaf.discard(port)
        for losses in (self.loss, self.loss_from, self.loss_to):
            losses.pop(port, None)

    def describe(self) -> dict[str, object]:
        """For ``lab status --json``: only what is in force."""
        facts: dict[str, object] = {
            "mute": sorted(self.mute),
            "deaf": sorted(self.deaf),
            "loss_percent": dict(sorted(self.loss.items())),
            "loss_from_percent": dict(sorted(self.loss_from.items())),
            "loss_to_percent": dict(sorted(self.loss_to.items())),
            "partition": [sorted(side) for side in self.partition or ()],
        }
        return {name: value for name, value in facts.items() if value}


def elements(kind: str, name: str, members: list[str]) -> str:
    """One nft set with what is in it."""
    listed = f" elements = {{ {', '.join(members)} }};" if members else ""
    return f"  set {name} {{ type {kind};{listed} }}"


def fault_ruleset(faults: PortFaults) -> str:
    """The table that plays the faults, as one nft transaction."""
    one, other = faults.partition or ((), ())
    lines = [
        f"table bridge {TABLE}",
        f"delete table bridge {TABLE}",
        f"table bridge {TABLE} {{",
        elements("ifname", "mute", [f'"{port}"' for port in sorted(faults.mute)]),
        elements("ifname", "deaf", [f'"{port}"' for port in sorted(faults.deaf)]),
        elements("ifname", "one", [f'"{port}"' for port in sorted(one)]),
        elements("ifname", "other", [f'"{port}"' for port in sorted(other)]),
        # The mark goes along through a trunk, where the port no longer tells the side.
        "  chain arrived {",
        "    type filter hook prerouting priority -300; policy accept;",
        "    iifname @one meta mark set 1",
        "    iifname @other meta mark set 2",
        "  }",
        "  chain forwarded {",
        "    type filter hook forward priority 0; policy accept;",
        "    iifname @mute drop",
        "    oifname @deaf drop",
        "    oifname @one meta mark 2 drop",
        "    oifname @other meta mark 1 drop",
    ]
    for losses, directions in (
        (faults.loss, ("iifname", "oifname")),
        (faults.loss_from, ("iifname",)),
        (faults.loss_to, ("oifname",)),
    ):
        for port, percent in sorted(losses.items()):
            # nft refuses a comparison that is always true.
            draw = f"numgen random mod 10000 < {percent * 100:.0f} drop"
            draw = "drop" if percent >= 100 else draw
            lines += [f'    {direction} "{port}" {draw}' for direction in directions]
    return "\n".join([*lines, "  }", "}"]) + "\n"
