"""The witness at the switch: which host answered which connection, and who received what.

It believes no agent: it sees each SYN-ACK come in at the port of the host that sent it, and the
kernel counts the frames that the switch sends out at each port.
"""

import json
import select
import time
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from convergence.rules import IPAddress
from labs.handle import Channel, LabHandle
from labs.tap import Tap, syn_ack_filter

TABLE = "softnlb_count"


@dataclass(frozen=True, slots=True)
class Answered:
    """A connection (client address and port) and the ports of the hosts that sent a SYN-ACK.

    ``at_s``: when the last of these hosts sent its first one.
    """

    client: str
    port: int
    hosts: tuple[str, ...]
    at_s: float = 0.0


def watch(channel: Channel, address: IPAddress, hosts: Collection[str]) -> dict[str, Any]:
    """Body of a task in the switch: note every SYN-ACK of the cluster until told to stop.

    ``hosts``: their ports; what crosses a trunk is seen there a second time.
    """
    tap = Tap(syn_ack_filter(address.packed))
    first, last, port = (30, 34, 36) if address.version == 4 else (38, 54, 56)
    ack = port + 6
    # By the sequence number of the SYN, too: in minutes a client may come by a port again.
    seen: dict[tuple[bytes, int, bytes], list[str]] = {}
    at_s: dict[tuple[bytes, int, bytes], float] = {}
    channel.send({"ready": True})
    stopping = False
    while True:
        frame = tap.receive()
        if frame is None:
            if stopping:
                break
            readable, _, _ = select.select([tap.fileno(), channel.fileno()], [], [])
            stopping = channel.fileno() in readable
            continue
        if frame.port not in hosts:
            continue
        number = int.from_bytes(frame.data[port : port + 2])
        client = frame.data[first:last], number, frame.data[ack : ack + 4]
        ports = seen.setdefault(client, [])
        if frame.port not in ports:
            ports.append(frame.port)
            # When the kernel saw it: this process may have waited for its turn.
            at_s[client] = time.monotonic() - (time.time_ns() - frame.at_ns) / 1e9
    answered = [
        [str(ip_address(client[0])), client[1], ports, at_s[client]]
        for client, ports in seen.items()
    ]
    return {"answered": answered, "lost": tap.lost()}


def answered(result: dict[str, Any]) -> list[Answered]:
    """What ``watch`` returned, as records."""
    return [
        Answered(client, port, tuple(hosts), at_s)
        for client, port, hosts, at_s in result["answered"]
    ]


def twice(records: list[Answered]) -> list[Answered]:
    """Connections that more than one host answered: there must be none."""
    return [record for record in records if len(record.hosts) > 1]


def _counting_rules(ports: list[str], address: IPAddress) -> str:
    family = "ip" if address.version == 4 else "ip6"
    lines = [f"table netdev {TABLE}", f"delete table netdev {TABLE}", f"table netdev {TABLE} {{"]
    for direction, hook in (("in", "ingress"), ("out", "egress")):
        for port in ports:
            lines += [
                f"  counter {direction}_{port} {{ }}",
                f"  chain {direction}_{port} {{",
                f"    type filter hook {hook} device {port} priority 0; policy accept;",
                f"    {family} daddr {address} counter name {direction}_{port}",
                "  }",
            ]
    return "\n".join([*lines, "}"]) + "\n"


class FrameCounters:
    """Frames to the cluster IP address per switch port, counted by the kernel without loss."""

    def __init__(self, lab: LabHandle) -> None:
        self._lab = lab
        self._ports = [node["port"] for node in lab.ask("nodes")["nodes"] if node["port"]]
        rules = _counting_rules(self._ports, lab.spec().cluster_ip_address)

        def install(_: Channel) -> None:
            from labs.node import run_tool

            run_tool(["nft", "-f", "-"], rules)

        lab.run("switch", install)

    def read(self) -> dict[str, dict[str, int]]:
        """{"in": frames from the node, "out": frames to the node} per port."""
        output = self._lab.output(
            "switch", ["nft", "-j", "list", "counters", "table", "netdev", TABLE]
        )
        counts: dict[str, dict[str, int]] = {port: {"in": 0, "out": 0} for port in self._ports}
        for entry in json.loads(output)["nftables"]:
            if "counter" in entry:
                direction, _, port = entry["counter"]["name"].partition("_")
                counts[port][direction] = entry["counter"]["packets"]
        return counts


def learned(lab: LabHandle) -> dict[str, list[str]]:
    """The switch's FDB: MAC addresses learned per port, in the hyphen form of Windows."""
    output = lab.output("switch", ["bridge", "-j", "fdb", "show"])
    found: dict[str, list[str]] = {}
    for entry in json.loads(output):
        if entry.get("state", "") != "permanent" and entry.get("master"):
            mac = entry["mac"].upper().replace(":", "-")
            found.setdefault(entry["ifname"], []).append(mac)
    return found
