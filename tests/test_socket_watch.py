"""A scan of the sockets that ends when other rules are in force tells nothing."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.netns import Segment, wait_for
from tests.test_agent import Host, start_all

SLOW_AGENT = """
import sys
from softnlb import cli, scanner

look = scanner.connected


def connected(table):
    found = look(table)
    open({fifo!r}).read()
    return found


scanner.connected = connected
sys.exit(cli.run(sys.argv[2:]))
"""
"""An agent whose scans end when somebody has written to a pipe and closed it."""

RULE = """
[[port_rule]]
ports = "443"
"""


class SlowHost(Host):
    """Host 1 with such an agent."""

    @contextmanager
    def scan(self) -> Iterator[None]:
        """From when a scan has come so far; it ends when this ends."""
        held: list[int] = []

        def is_looking() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            with suppress(OSError):  # ENXIO: nobody reads
                held.append(os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK))
                return True
            return False

        wait_for(is_looking, 20.0)
        yield
        os.close(held.pop())
        while is_looking():  # the same one, which has not seen the end yet
            os.close(held.pop())

    def start(self, *wrapper: str) -> None:
        self.fifo = self.directory / "scans"
        os.mkfifo(self.fifo)
        super().start(*wrapper, sys.executable, "-c", SLOW_AGENT.format(fifo=str(self.fifo)))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[SlowHost, Host]]:
    """Both have converged."""
    segment = Segment()
    hosts = SlowHost(segment, 1, tmp_path), Host(segment, 2, tmp_path)
    try:
        start_all([*hosts])
        yield hosts
    finally:
        for host in hosts:
            host.end(signal.SIGKILL)
        segment.close()


@pytest.mark.parametrize("way", ["reload", "change"])
def test_rules_that_change_in_the_middle_of_a_scan(pair: tuple[SlowHost, Host], way: str) -> None:
    """Either by another file and `reload`, which begins anew, or on all hosts at once."""
    slow, other = pair

    def rules(host: Host) -> int:
        return len(host.ask("display")["rules"])

    with slow.scan():
        if way == "reload":
            slow.config.write_text(slow.config.read_text() + RULE)
            slow.ask("reload")
        else:
            change = {"do": "add", "rule": {"ports": "443"}}
            other.ask("change", change=change, timeout_s=30.0)
        wait_for(lambda: rules(slow) == 3 and slow.state() != "stopped", 30.0)
    if way == "reload":
        other.config.write_text(other.config.read_text() + RULE)
        other.ask("reload")
    with slow.scan():  # the agent has taken the result of the first, and is well
        wait_for(lambda: slow.state() == other.state() == "converged", 30.0)
    assert rules(slow) == rules(other) == 3
