"""Frames per switch port, counted by the kernel: forwarded, flooded, wasted.

A frame that the switch sends out at a port is *forwarded* when the address it goes to lives there,
and *flooded* otherwise.  A flooded frame for the cluster IP address is *wasted* when the node at
that port does not answer the connection that it belongs to.
"""

import json

from labs.node import run_tool

TABLE = "softnlb_frames"
COUNTERS = ("received", "forwarded", "flooded", "cluster", "kept", "answered")
MACS_MAX, FLOWS_MAX = 256, 65535

Counts = dict[str, dict[str, int]]
"""Per port: in (from the node), forwarded, flooded and wasted (to the node)."""


def _port_rules(port: str, address: str) -> list[str]:
    ip, kind = ("ip6", "ipv6_addr") if ":" in address else ("ip", "ipv4_addr")
    learn = "update @macs { ether saddr }"
    # The SYN-ACK shows that the SYN was not wasted, and whose the rest of the connection is.
    syn_ack = f"{ip} saddr {address} tcp flags & (syn | ack) == (syn | ack)"
    answers = f"update @flows {{ {ip} daddr . tcp dport }} counter name answered"
    return [
        *(f"  counter {name} {{ }}" for name in COUNTERS),
        f"  set macs {{ type ether_addr; flags dynamic; size {MACS_MAX}; }}",
        f"  set flows {{ type {kind} . inet_service; flags dynamic, timeout;"
        f" size {FLOWS_MAX}; timeout 2m; }}",
        "  chain in_port {",
        f"    type filter hook ingress device {port} priority 0; policy accept;",
        f"    {learn} counter name received",
        f"    {syn_ack} {answers}",
        "  }",
        "  chain out_port {",
        f"    type filter hook egress device {port} priority 0; policy accept;",
        "    ether daddr @macs counter name forwarded accept",
        "    counter name flooded",
        f"    {ip} daddr {address} counter name cluster"
        f" {ip} saddr . tcp sport @flows counter name kept",
        "  }",
    ]


class FrameTables:
    """One table per port, so that the port of a host that was powered off can be counted anew."""

    def __init__(self, ports: list[str], cluster_ip_address: str) -> None:
        self._ports = ports
        self._address = cluster_ip_address
        self._before = {port: dict.fromkeys(COUNTERS, 0) for port in ports}

    def install(self) -> None:
        """Count from now on.  Runs inside the switch.  Raises SoftnlbError."""
        self._install(self._ports)

    def renew(self, port: str) -> None:
        """A cable was laid at ``port``, maybe not the first: count there.  Raises SoftnlbError."""
        if port in self._ports:
            self._before[port] = self._read()[port]
        else:
            self._ports = [*self._ports, port]
            self._before[port] = dict.fromkeys(COUNTERS, 0)
        self._install([port])

    def read(self) -> Counts:
        """What was counted.  Runs inside the switch.  Raises SoftnlbError."""
        return {port: _shown(counted) for port, counted in self._read().items()}

    def _install(self, ports: list[str]) -> None:
        lines: list[str] = []
        for port in ports:
            table = f"table netdev {TABLE}_{port}"
            lines += [
                table,
                f"delete {table}",
                f"{table} {{",
                *_port_rules(port, self._address),
                "}",
            ]
        run_tool(["nft", "-f", "-"], "\n".join(lines) + "\n")

    def _read(self) -> dict[str, dict[str, int]]:
        found = {port: dict(counted) for port, counted in self._before.items()}
        for entry in json.loads(run_tool(["nft", "-j", "list", "counters"]))["nftables"]:
            counter = entry.get("counter", {})
            port = str(counter.get("table", "")).removeprefix(f"{TABLE}_")
            if port in found:
                found[port][counter["name"]] += int(counter["packets"])
        return found


def _shown(counted: dict[str, int]) -> dict[str, int]:
    wasted = max(0, counted["cluster"] - counted["kept"] - counted["answered"])
    return {
        "in": counted["received"],
        "forwarded": counted["forwarded"],
        "flooded": counted["flooded"],
        "wasted": min(wasted, counted["flooded"]),
    }
