"""A host whose agent is killed: its kernel goes on deciding, and the next agent finds its own."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns import Namespace, Segment, wait_for
from tests.test_agent import VIP, Host

CONNECTIONS = 20
pytestmark = pytest.mark.bpf


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Host, Namespace]]:
    """One host with the ebpf plane, and a client."""
    segment = Segment()
    host = Host(segment, 1, tmp_path)
    host.configure(host='data_plane = "ebpf"')
    yield host, segment.node("client", "10.1.0.200/24")
    host.end(signal.SIGKILL)
    segment.close()


def connect(client: Namespace, timeout_s: float = 5.0) -> socket.socket:
    made = client.call(socket.socket)
    made.settimeout(timeout_s)
    try:
        made.connect((VIP, 80))
    except OSError:
        made.close()
        raise
    return made


def answers(client: Namespace) -> bool:
    try:
        connect(client, 0.3).close()
    except TimeoutError:
        return False
    return True


def test_its_connections_outlive_the_agent_and_its_restart(
    places: tuple[Host, Namespace],
) -> None:
    host, client = places
    host.start()
    host.wait_state("converged")
    listener = host.node.call(socket.socket)
    listener.bind((VIP, 80))
    listener.listen(100)
    pairs = [(connect(client), listener.accept()[0]) for _ in range(CONNECTIONS)]

    def all_work() -> None:
        for near, far in pairs:
            far.settimeout(5)
            near.send(b"ping")
            assert far.recv(10) == b"ping"
            far.send(b"pong")
            assert near.recv(10) == b"pong"

    all_work()
    assert host.end(signal.SIGKILL) == -signal.SIGKILL
    # The lease: nothing new once it is over, everything old for ever.
    wait_for(lambda: not answers(client))
    all_work()
    assert not answers(client)
    host.start()
    host.wait_state("converged")
    all_work()
    assert answers(client)
    for pair in pairs:
        for end in pair:
            end.close()
    listener.close()
    assert host.end() == 0
    assert "bpf" not in host.node.run("tc filter show dev eth0 ingress; ip link show eth0")
