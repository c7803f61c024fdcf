"""One node of the lab: a process that holds a network, mount and UTS namespace and sets them up."""

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

from labs.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    mount_tmpfs,
    set_host_name,
    unshare,
)
from labs.plan import Node
from labs.process import MachineProc, Process, fork
from softnlb.errors import SoftnlbError

PRIVATE_DIRECTORIES = ("/run", "/etc/softnlb", "/var/lib/softnlb")

NO_IPV6 = (
    # Its neighbour discovery and MLD would be noise in every capture and count.
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
)

ONLY_CHOSEN_IPV6 = (
    # No wait for duplicates, no question for routers, no address but those of the lab file.
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
)

NO_IPV6_AT_PORTS = (("net/ipv6/conf/default/disable_ipv6", "1"),)
"""Of an IPv6 lab's switch, whose bridges alone need an address, to query by."""

QUIET = (
    # Unprivileged echo sockets, so that ping works for an ordinary user's lab too.
    ("net/ipv4/ping_group_range", "0 0"),
    # A socket that outlives its process keeps its namespace: without this, the kernel holds the
    # nodes of a lab that is down for a minute or two.
    ("net/ipv4/tcp_orphan_retries", "3"),
    # A switch runs nobody's firewall over every frame at every port.
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
)


class NodeProcess:
    """A running node: its plan and the process that holds its namespaces."""

    def __init__(self, node: Node, proc: MachineProc) -> None:
        self.node = node
        self._orders, inside = socket.socketpair()
        self.process: Process = fork(
            f"node:{node.name}", proc, lambda: _hold(node, inside), log=None
        )
        inside.close()

    @property
    def pid(self) -> int:
        """Pid of the holder in the lab."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """False once the node was killed."""
        return not self.process.ended

    def await_namespaces(self) -> None:
        """Return when the namespaces exist, so that cables can be put in."""
        self._expect(b"namespaces")

    def configure(self) -> None:
        """Tell the node that its cables are in; ``await_configured`` waits for the result."""
        self._orders.sendall(b"configure")

    def await_configured(self) -> None:
        """Return when addresses and routes are set."""
        self._expect(b"configured")

    def _expect(self, wanted: bytes) -> None:
        answer = self._orders.recv(4096)
        if answer != wanted:
            text = answer.decode(errors="replace") or "it ended"
            raise SoftnlbError(f"node {self.node.name} could not be set up: {text}")


def _hold(node: Node, orders: socket.socket) -> int:
    try:
        unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS)
        set_host_name(node.name)
        for directory in PRIVATE_DIRECTORIES:
            mount_tmpfs(directory)
        os.mkdir("/run/softnlb")
        write_sysctls(QUIET + _ipv6(node))
        orders.sendall(b"namespaces")
        if orders.recv(64) != b"configure":
            return 1
        run_batch("ip", node.setup)
        write_sysctls(node.sysctls)
        if node.rules:
            run_tool(["nft", "-f", "-"], node.rules)
        orders.sendall(b"configured")
    except (OSError, SoftnlbError) as error:
        with contextlib.suppress(OSError):
            orders.sendall(str(error).encode()[:4000])
        return 1
    while True:
        signal.pause()


def _ipv6(node: Node) -> tuple[tuple[str, str], ...]:
    if not node.ipv6:
        return NO_IPV6
    return NO_IPV6_AT_PORTS if node.kind == "switch" else ONLY_CHOSEN_IPV6


def write_sysctls(settings: tuple[tuple[str, str], ...]) -> None:
    """Write kernel settings; one that this kernel does not have is left out."""
    for path, value in settings:
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/sys", path).write_text(value)


def run_batch(program: str, lines: tuple[str, ...] | list[str]) -> None:
    """Carry out ``lines`` by one ``ip -batch -`` or ``bridge -batch -``.  Raises SoftnlbError."""
    run_tool([program, "-batch", "-"], "\n".join(lines) + "\n")


def run_tool(command: list[str], text: str = "") -> str:
    """Run a system tool on ``text`` and return what it prints.  Raises SoftnlbError."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SoftnlbError(f"{command[0]} is not installed on this machine") from error
    if done.returncode != 0:
        raise SoftnlbError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
