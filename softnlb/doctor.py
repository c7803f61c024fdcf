"""Whether this machine can run hosts and labs: tries it, and names a remedy for what is missing.

Kernel features are tried in a network namespace of their own, which the kernel removes together
with everything in it.  Where namespaces are forbidden, rules are only checked (``nft -c``).
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from convergence.rules import IPAddress
from softnlb.probes import tool

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

PROBES_TIMEOUT_S = 30.0
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13

CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")

OK, MISSING, CONFLICT = "ok", "missing", "conflict"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    ``state``: ok, missing or conflict.  ``needed``: without it neither hosts nor labs work.
    ``detail``: what was found; ``remedy``: what helps, empty when nothing is to do.
    """

    name: str
    state: str
    needed: bool
    detail: str
    remedy: str = ""


TOOLS = (
    ("nft", "nftables", True, "layer 2 rules"),
    ("ip", "iproute2", True, "links and addresses"),
    ("bridge", "iproute2", True, "the switch of a lab"),
    ("unshare", "util-linux", False, "namespaces for this report"),
    ("tcpdump", "tcpdump", False, "captures in a lab"),
    ("curl", "curl", False, "a client in a lab"),
    ("keepalived", "keepalived", False, "IP failover in softnlb lab run compare"),
    ("dnsmasq", "dnsmasq-base", False, "DNS round robin in softnlb lab run compare"),
    ("haproxy", "haproxy", False, "the balancer in softnlb lab run compare"),
    ("ipvsadm", "ipvsadm", False, "IPVS in softnlb lab run compare"),
    ("arptables", "arptables iptables", False, "xt_cluster in softnlb lab run compare"),
)

FEATURES = (
    ("nft-ingress", "nft hook netdev ingress", True, "a kernel with CONFIG_NETFILTER_INGRESS"),
    ("nft-egress", "nft hook netdev egress", True, "Linux 5.16 or later"),
    ("nft-arp", "nft family arp", True, "a kernel with CONFIG_NF_TABLES_ARP"),
    ("nft-unicast", "nft rules of unicast mode", True, "nft 1.0 and Linux 5.16 or later"),
    ("nft-multicast", "nft rules of the multicast modes", True, "nft 1.0 and Linux 5.16 or later"),
    ("packet-socket", "AF_PACKET sockets", True, "a kernel with CONFIG_PACKET"),
    (
        "ebpf",
        "ebpf data plane",
        False,
        "root, libbpf1 and Linux 5.10 or later with CONFIG_DEBUG_INFO_BTF; without it, nfqueue",
    ),
    (
        "nfqueue",
        "nfqueue data plane",
        True,
        "pip install 'softnlb[nfqueue]'; a kernel with NFQUEUE",
    ),
    ("links", "bridge and veth", True, "the kernel modules bridge and veth"),
)


def examine(config: "ClusterConfig | None" = None) -> list[Check]:
    """Look at this machine; with a configuration also for what would get in its way."""
    namespaces, flags = _namespaces()
    privileges = _privileges(labs_work=namespaces.state == OK)
    checks = [*_facts(), *_tools(), privileges, namespaces]
    checks += _features(flags, privileges.state == OK)
    if config is not None:
        checks += _conflicts(config)
    return checks


def exit_code(checks: list[Check]) -> int:
    """5 when something needed is missing, 1 when something is in the way, else 0."""
    if any(check.needed and check.state == MISSING for check in checks):
        return 5
    return 1 if any(check.state == CONFLICT for check in checks) else 0


# ---------------------------------------------------------------- what is there


def _facts() -> Iterator[Check]:
    yield Check("kernel", OK, False, platform.release())
    yield Check("Python", OK, False, platform.python_version())
    source = CLOCK_SOURCE.read_text().strip() if CLOCK_SOURCE.is_file() else "unknown"
    yield Check("clock source", OK, False, source)


def _tools() -> Iterator[Check]:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    for name, package, needed, purpose in TOOLS:
        found = shutil.which(name, path=path)
        if not found:
            remedy = f"sudo apt-get install {package}"
            yield Check(name, MISSING, needed, f"not installed ({purpose})", remedy)
        else:
            yield Check(name, OK, needed, _nft_version(found) if name == "nft" else found)


def _nft_version(nft: str) -> str:
    try:
        done = subprocess.run([nft, "--version"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.strip()


def _privileges(labs_work: bool) -> Check:
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    names = {CAP_NET_ADMIN: "CAP_NET_ADMIN", CAP_NET_RAW: "CAP_NET_RAW"}
    lacking = [name for bit, name in names.items() if not effective >> bit & 1]
    if not lacking:
        return Check("privileges", OK, not labs_work, "a host can run here")
    detail = f"no {' and no '.join(lacking)}: no host can run here"
    if labs_work:
        detail += ", labs can"
    return Check("privileges", MISSING, not labs_work, detail, "for a host: sudo softnlb agent")


def _namespaces() -> tuple[Check, list[str]]:
    """The check, and the flags of unshare(1) for the probes; no flags where it is forbidden."""
    root = os.geteuid() == 0
    flags = ["--net"] if root else ["--user", "--map-root-user", "--net"]
    more = ["--mount", "--uts", "--pid", "--fork", "--kill-child"]
    complaint = tool(["unshare", *flags, *more, "true"])
    if complaint is None:
        kind = "network namespaces" if root else "user namespaces, without root"
        return Check("namespaces", OK, False, f"labs work in {kind}"), flags
    remedy = "run labs outside this container, or give it the capability SYS_ADMIN"
    if not root and APPARMOR.is_file() and APPARMOR.read_text().strip() == "1":
        remedy = (
            "AppArmor keeps user namespaces from ordinary users:"
            " sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    works = tool(["unshare", *flags, "true"]) is None
    return Check("namespaces", MISSING, False, complaint, remedy), flags if works else []


# ---------------------------------------------------------------- what the kernel can do


def _features(flags: list[str], privileged: bool) -> Iterator[Check]:
    if not flags and not privileged:
        detail = "cannot be tried: neither privileges nor namespaces"
        yield Check("kernel features", MISSING, True, detail, "sudo softnlb doctor")
        return
    results, failure = _try_features(flags)
    for key, name, needed, remedy in FEATURES:
        if key not in results and failure is None:
            continue  # only a namespace to throw away can show it
        reason = failure or results[key]
        if reason is None:
            yield Check(name, OK, needed, "works" if flags else "accepted")
        else:
            yield Check(name, MISSING, needed, reason, remedy)


def _try_features(flags: list[str]) -> tuple[dict[str, str | None], str | None]:
    """Results of softnlb.probes, or why there are none."""
    command = [sys.executable, "-m", "softnlb.probes"]
    command = ["unshare", *flags, *command] if flags else [*command, "--check"]
    house = str(Path(__file__).parent.parent)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            timeout=PROBES_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": house},
        )
        return json.loads(done.stdout), None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {}, f"could not be tried: {error}"


# ---------------------------------------------------------------- what is in the way

BOOT_FILES = (
    "etc/network/interfaces",
    "etc/network/interfaces.d/*",
    "etc/netplan/*.yaml",
    "etc/systemd/network/*.network",
    "etc/NetworkManager/system-connections/*",
    "etc/keepalived/*.conf",
)


def boot_files_with(address: IPAddress, root: Path = Path("/")) -> list[Path]:
    """Configuration files of the system that name this address."""
    found = []
    for pattern in BOOT_FILES:
        for path in sorted(root.glob(pattern)):
            try:
                text = path.read_text(errors="replace")
            except OSError:  # a directory, or not ours to read
                continue
            if address in _addresses_in(text, address.version):
                found.append(path)
    return found


def _addresses_in(text: str, version: int) -> set[IPAddress]:
    """The addresses of this IP version that a text names, however they are written."""
    found = set()
    for word in re.findall(r"[0-9.]+" if version == 4 else r"[0-9A-Fa-f:.]+", text):
        with suppress(ValueError):
            found.add(ip_address(word))
    return found


def _conflicts(config: "ClusterConfig") -> Iterator[Check]:
    remedy = "take it out there: only softnlb may add a cluster IP address"
    for address in config.cluster_ip_addresses:
        name = f"cluster IP {address.ip}"
        files = [str(path) for path in boot_files_with(address.ip)]
        if files:
            yield Check(name, CONFLICT, True, f"configured at boot by {', '.join(files)}", remedy)
        else:
            yield Check(name, OK, True, "configured at boot by nothing else")
    if not Path(f"/sys/class/net/{config.interface}").exists():
        detail = f"there is no interface {config.interface}"
        yield Check("interface", CONFLICT, True, detail, "correct [host] interface")
