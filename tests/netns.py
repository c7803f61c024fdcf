"""Throw-away network namespaces for tests.

A namespace lives as long as the file descriptor that this process holds, so nothing can be left
behind, and the machine's own network is never touched.
"""

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

_CLONE_NEWNET = 0x4000_0000
_CLONE_NEWUSER = 0x1000_0000
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def machines_root() -> bool:
    """As opposed to root of a user namespace, who cannot be other users."""
    with open("/proc/self/uid_map") as file:
        return os.geteuid() == 0 and file.read().split() == ["0", "0", "4294967295"]


def enter_user_namespace() -> None:
    """Become root of a new user namespace, so that the rest works for an ordinary user too.

    Only while this process has a single thread.
    """
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Namespace:
    """A network namespace, its loopback interface up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.descriptor = -1

        def make() -> None:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare")
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            # A second of duplicate address detection per interface, which no test is about.
            with open("/proc/sys/net/ipv6/conf/default/accept_dad", "w") as file:
                file.write("0")

        _in_thread(make)
        self.run("ip link set lo up")

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function`` run inside; sockets that it opens stay inside wherever they are used."""

        def inside() -> T:
            _check(_libc.setns(self.descriptor, _CLONE_NEWNET), "setns")
            return function(*arguments)

        return _in_thread(inside)

    def run(self, command: str | list[str], check: bool = True, **options: Any) -> str:
        """Standard output of a command (a shell line, or arguments) run inside."""
        shell = isinstance(command, str)
        done = self.call(
            lambda: subprocess.run(
                command, shell=shell, check=False, text=True, capture_output=True, **options
            )
        )
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {command}: {done.stderr or done.stdout}")
        return str(done.stdout)

    def start(self, arguments: list[str], **options: Any) -> "subprocess.Popen[str]":
        """A process inside; end it yourself."""
        return self.call(lambda: subprocess.Popen(arguments, text=True, **options))

    def close(self) -> None:
        """Its interfaces, and the other ends of its cables, go with it."""
        os.close(self.descriptor)


def _in_thread(function: Callable[[], T]) -> T:
    """Run in a thread of its own, which is what may change its namespace."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Segment:
    """An Ethernet segment: a bridge in a namespace of its own, and a namespace per node.

    Every node has one interface, eth0; its cable is the bridge port of the node's name.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.nodes: dict[str, Namespace] = {}
        self.switch = self.namespace("switch")
        self.switch.run("ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up")

    def namespace(self, name: str) -> Namespace:
        """A namespace without a cable."""
        made = Namespace(name)
        self._stack.callback(made.close)
        return made

    def node(self, name: str, address: str, mac: str | None = None) -> Namespace:
        """A node with an address in prefix notation on its eth0."""
        made = self.namespace(name)
        self.nodes[name] = made
        self.plug(made, "eth0", name)
        if mac:
            made.run(f"ip link set eth0 address {mac}")
        made.run(f"ip address add {address} dev eth0 && ip link set eth0 up")
        return made

    def plug(self, node: Namespace, interface: str, port: str) -> None:
        """One more cable from the switch to a node, still down at the node's end."""
        target = f"/proc/{os.getpid()}/fd/{node.descriptor}"
        self.switch.run(
            f"ip link add {port} type veth peer name {interface} netns {target} && "
            f"ip link set {port} master br0 up"
        )

    def close(self) -> None:
        self._stack.close()


def wait_for(condition: Callable[[], T], timeout_s: float = 5.0) -> T:
    """The first true value of ``condition``; AssertionError after the time-out."""
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {timeout_s} s in vain for {condition}")
        pause.wait(0.01)
