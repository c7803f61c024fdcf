"""The switch: a real Linux bridge with one of three personalities, and faults on its ports."""

from dataclasses import dataclass, field
from itertools import product

from labs.topology import Node

BRIDGE = "br0"

TABLE = "softnlb_faults"


def bridge_lines(personality: str) -> list[str]:
    """Lines for ``ip -batch`` that make the bridge.

    Snooping needs a querier, or the kernel floods as if it were off; the short response interval
    (in hundredths of a second) ends the querier's waiting time after which snooping begins.
    IGMPv3, because in version 2 a host that hears another's report keeps its own to itself, and
    this switch would not learn its port before the next query.
    """
    snooping = int(personality != "dumb")
    return [
        f"link add {BRIDGE} type bridge stp_state 0 mcast_snooping {snooping}"
        f" mcast_query_response_interval 10 mcast_igmp_version 3 mcast_querier {snooping}",
        f"link set {BRIDGE} up",
    ]


def port_lines(node: Node, pid: int, personality: str) -> list[str]:
    """Lines for ``ip -batch`` in the switch that lay the cable to a node held by ``pid``."""
    port = node.port
    lines = [
        f"link add {port} type veth peer name {node.interface} netns {pid}",
        f"link set {port} master {BRIDGE}",
    ]
    if personality == "mac":
        # The kernel snoops by IP group and would black-hole the cluster's frames; with every port
        # a router port it only learns, and the table of labs/snooping.py decides.
        lines.append(f"link set {port} type bridge_slave mcast_router 2")
    lines.append(f"link set {port} up")
    return lines


def snooping_lines(on: bool) -> list[str]:
    """Lines for ``ip -batch`` that switch the kernel's snooping."""
    return [f"link set {BRIDGE} type bridge mcast_snooping {int(on)} mcast_querier {int(on)}"]


@dataclass(slots=True)
class PortFaults:
    """Faults that the switch plays, by port name.

    ``mute``: nothing that comes in is passed on.  ``deaf``: nothing goes out.  ``loss``: percent
    of frames lost, in both directions.  ``partition``: two sides that do not reach each other.
    """

    mute: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    loss: dict[str, float] = field(default_factory=dict)
    partition: tuple[frozenset[str], frozenset[str]] | None = None

    def forget(self, port: str | None = None) -> None:
        """Heal a port, or all of them and the partition."""
        if port is None:
            self.mute.clear()
            self.deaf.clear()
            self.loss.clear()
            self.partition = None
            return
        self.mute.discard(port)
        self.deaf.discard(port)
        self.loss.pop(port, None)

    def describe(self) -> dict[str, object]:
        """For ``lab status --json``: only what is in force."""
        facts: dict[str, object] = {
            "mute": sorted(self.mute),
            "deaf": sorted(self.deaf),
            "loss_percent": dict(sorted(self.loss.items())),
            "partition": [sorted(side) for side in self.partition or ()],
        }
        return {name: value for name, value in facts.items() if value}


def elements(kind: str, name: str, members: list[str]) -> str:
    """One nft set with what is in it."""
    listed = f" elements = {{ {', '.join(members)} }};" if members else ""
    return f"  set {name} {{ type {kind};{listed} }}"


def fault_ruleset(faults: PortFaults) -> str:
    """The table that plays the faults, as one nft transaction."""
    cut: list[str] = []
    if faults.partition is not None:
        one, other = (sorted(side) for side in faults.partition)
        pairs = [*product(one, other), *product(other, one)]
        cut = [f'"{a}" . "{b}"' for a, b in pairs]
    lines = [
        f"table bridge {TABLE}",
        f"delete table bridge {TABLE}",
        f"table bridge {TABLE} {{",
        elements("ifname", "mute", [f'"{port}"' for port in sorted(faults.mute)]),
        elements("ifname", "deaf", [f'"{port}"' for port in sorted(faults.deaf)]),
        elements("ifname . ifname", "cut", cut),
        "  chain forwarded {",
        "    type filter hook forward priority 0; policy accept;",
        "    iifname @mute drop",
        "    oifname @deaf drop",
        "    iifname . oifname @cut drop",
    ]
    for port, percent in sorted(faults.loss.items()):
        # nft refuses a comparison that is always true.
        draw = "drop" if percent >= 100 else f"numgen random mod 10000 < {percent * 100:.0f} drop"
        lines += [f'    iifname "{port}" {draw}', f'    oifname "{port}" {draw}']
    return "\n".join([*lines, "  }", "}"]) + "\n"
