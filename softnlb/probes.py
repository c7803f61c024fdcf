"""What the kernel can do, tried out: `python -m softnlb.probes`, in a namespace to throw away.

`softnlb doctor` starts it through unshare(1) and reads one JSON object: name of the probe ->
reason why it failed, null when it worked.  With ``--check`` nothing is tried that would stay
behind in the namespace that one is in: the kernel checks rules without taking them.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Interface

from modes.plan import Mode
from modes.planner import plan_link

TOOL_TIMEOUT_S = 5.0

INGRESS = "type filter hook ingress device lo priority 0; meta pkttype set host"
EGRESS = "type filter hook egress device lo priority 0; counter"
ARP = "type filter hook output priority 0; arp saddr ether set 02:bf:0a:01:00:64"

Probe = Callable[[], str | None]


def tool(command: list[str], text: str = "") -> str | None:
    """Run a program for a few seconds at most; the first line of its complaint, or None."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TOOL_TIMEOUT_S,
        )
    except (FileNotFoundError, PermissionError):
        # A directory of the PATH that this user may not read counts as one that has it not.
        return f"{command[0]} is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[0] if lines else f"{command[0]} ended with status {done.returncode}"


def _nft(text: str, check: bool) -> str | None:
    return tool(["nft", *(["-c"] if check else []), "-f", "-"], text)


def _chain(family: str, body: str, check: bool) -> Probe:
    hook = body.split()[3]
    text = f"table {family} softnlb_doctor {{\n chain {hook} {{\n {body}\n }}\n}}\n"
    return lambda: _nft(text, check)


def _rules(mode: Mode, check: bool) -> Probe:
    """The very rules that a host loads, for an interface of the namespace."""
    addresses = (IPv4Interface("10.1.0.100/24"),)
    return lambda: _nft(plan_link(mode, "lo", 1, addresses).nft_ruleset, check)


def _packet_socket() -> str | None:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    except OSError as error:
        return str(error)
    return None


def _links() -> str | None:
    batch = (
        "link add softnlb0 type bridge\n"
        "link add softnlb1 type veth peer name softnlb2\n"
        "link set softnlb1 master softnlb0\n"
    )
    return tool(["ip", "-batch", "-"], batch) or tool(
        ["bridge", "fdb", "add", "02:bf:0a:01:00:64", "dev", "softnlb2", "self", "permanent"]
    )


def probes(check: bool) -> dict[str, Probe]:
    """All probes that can be tried, by name."""
    # Not imported by the probes themselves: in threads that import at once, CPython lets one of
    # them see a module of which half is missing.
    from softnlb import ebpf, nfqueue

    tried: dict[str, Probe] = {
        "nft-ingress": _chain("netdev", INGRESS, check),
        "nft-egress": _chain("netdev", EGRESS, check),
        "nft-arp": _chain("arp", ARP, check),
        "nft-unicast": _rules(Mode.UNICAST, check),
        "nft-multicast": _rules(Mode.MULTICAST, check),
        "packet-socket": _packet_socket,
        "ebpf": ebpf.probe,
        "nfqueue": nfqueue.probe,  # removes its own traces
    }
    if not check:
        tried["links"] = _links
    return tried


def run(check: bool) -> dict[str, str | None]:
    """Try all of them, side by side: nearly all of their time is that of the kernel and of other
    programs."""
    tried = probes(check)
    with ThreadPoolExecutor(len(tried)) as pool:
        return dict(zip(tried, pool.map(_result, tried.values()), strict=True))


def _result(probe: Probe) -> str | None:
    try:
        return probe()
    except Exception as error:  # whatever this machine does: a report, not a traceback
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    found = run("--check" in sys.argv[1:])
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # whatever a probe started ends with the namespace
