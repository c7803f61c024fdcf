"""The control socket: every line is answered, whatever it holds, and nobody can block it."""

import json
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softnlb.control import (
    CLIENTS_MAX,
    LINE_MAX_BYTES,
    ControlServer,
    Peer,
    call,
    find_hosts,
    is_live,
)
from softnlb.errors import MachineError, NotRunningError, SoftnlbError, UsageError
from tests.fake_agent import FakeAgent, serving


def echo(verb: str, args: dict) -> dict:
    return {"verb": verb, "args": args}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "10.1.0.100:1.sock"


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    connection.settimeout(10)
    return connection


def exchange(path: Path, request: bytes) -> dict:
    """Send bytes, return the first line that comes back."""
    with connect(path) as connection:
        connection.sendall(request)
        return json.loads(connection.makefile("rb").readline())


def test_a_request_reaches_the_handler_and_its_result_comes_back(path):
    with serving(path, echo):
        assert call(path, "stop", port=80) == {"verb": "stop", "args": {"port": 80}}


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", b"{}", b'{"verb": 3}', b"[" * 9000, b"\0" * 70],
)
def test_garbage_is_answered_with_an_error(path, line):
    with serving(path, echo):
        response = exchange(path, line + b"\n")
        assert (response["ok"], response["exit_code"]) == (False, 2)
        assert call(path, "query")["verb"] == "query"


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(st.binary(max_size=60), min_size=1, max_size=5))
def test_any_bytes_get_one_answer_per_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("run") / "1.sock"
    lines = [line.replace(b"\n", b"") for line in lines]
    with serving(path, echo), connect(path) as connection:
        connection.sendall(b"".join(line + b"\n" for line in lines))
        answers = connection.makefile("rb")
        for _ in lines:
            assert json.loads(answers.readline())["ok"] is False


def test_a_line_that_is_too_long_is_refused_and_hung_up_on(path):
    with serving(path, echo), connect(path) as connection:
        connection.sendall(b"x" * (LINE_MAX_BYTES + 1))
        answers = connection.makefile("rb")
        assert json.loads(answers.readline())["exit_code"] == 2
        with suppress(ConnectionResetError):  # it hung up with some of our bytes unread
            assert answers.readline() == b""


def test_a_line_as_long_as_allowed_in_small_pieces(path):
    padding = LINE_MAX_BYTES - len(b'{"verb": "x", "a": ""}')
    line = json.dumps({"verb": "x", "a": "b" * padding}).encode()
    assert len(line) == LINE_MAX_BYTES
    with serving(path, lambda verb, args: {"got": len(args["a"])}), connect(path) as connection:
        for at in range(0, len(line), 5000):
            connection.sendall(line[at : at + 5000])
        connection.sendall(b"\n")
        assert json.loads(connection.makefile("rb").readline())["result"] == {"got": padding}


def test_two_clients_hold_their_lines_open_at_once(path):
    with serving(path, echo), connect(path) as first, connect(path) as second:
        first.sendall(b'{"verb": ')  # and says no more for a while
        second.sendall(b'{"verb": "b"}\n{"verb": "c"}\n')
        answers = second.makefile("rb")
        assert json.loads(answers.readline())["result"]["verb"] == "b"
        assert json.loads(answers.readline())["result"]["verb"] == "c"
        first.sendall(b'"a"}\n')
        assert json.loads(first.makefile("rb").readline())["result"]["verb"] == "a"


def test_a_client_that_does_not_read_delays_nobody(path):
    big = {"text": "y" * 1_000_000}
    with serving(path, lambda verb, args: big), connect(path) as lazy:
        lazy.sendall(b'{"verb": "display"}\n' * 20)
        assert call(path, "display") == big
        answers = lazy.makefile("rb")
        assert all(json.loads(answers.readline())["result"] == big for _ in range(20))


def test_clients_that_vanish_harm_nobody(path):
    with serving(path, lambda verb, args: {"text": "y" * 1_000_000}):
        for _ in range(CLIENTS_MAX * 2):
            with connect(path) as connection:
                connection.sendall(b'{"verb": "a"}\n{"ver')
        assert len(call(path, "display")["text"]) == 1_000_000


def test_too_many_clients_are_turned_away_and_the_rest_served(path):
    with serving(path, echo):
        clients = [connect(path) for _ in range(CLIENTS_MAX)]
        clients[-1].sendall(b'{"verb": "last"}\n')
        assert b"last" in clients[-1].makefile("rb").readline()
        with connect(path) as one_too_many:
            assert one_too_many.recv(1) == b""
        for client in clients:
            client.close()


def test_what_the_handler_refuses_becomes_the_callers_error(path):
    agent = FakeAgent(
        start=SoftnlbError("refused"), stop=MachineError("missing"), reload=UsageError("wrong")
    )
    with serving(path, agent.handle):
        for verb, kind in (("stop", MachineError), ("reload", UsageError), ("start", SoftnlbError)):
            with pytest.raises(kind, match=r"refused|missing|wrong") as caught:
                call(path, verb)
            assert caught.type is kind


def test_a_fault_of_the_handler_is_logged_and_answered(path, caplog):
    with serving(path, FakeAgent(query=ZeroDivisionError("oops")).handle):
        with pytest.raises(SoftnlbError, match="ZeroDivisionError"):
            call(path, "query")
        assert "'query' failed" in caplog.text


def test_the_handler_knows_who_asks(path):
    peers = []
    with serving(path, lambda verb, args: peers.append(server.peer) or {}) as server:
        call(path, "stop")
        assert peers == [Peer(os.getpid(), os.getuid(), os.getgid())]


def test_the_socket_and_its_directory_have_the_documented_modes(path):
    umask = os.umask(0)
    try:
        server = ControlServer(path, echo)
    finally:
        assert os.umask(umask) == 0  # it put back what it found
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    server.close()
    assert not path.exists()


def test_the_socket_of_a_dead_agent_is_replaced(path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert not is_live(path)
    with serving(path, echo):
        assert call(path, "query")["verb"] == "query"


def test_a_second_agent_is_refused_and_the_first_goes_on(path):
    with serving(path, echo):
        with pytest.raises(SoftnlbError, match="Another agent"):
            ControlServer(path, echo)
        assert call(path, "query")["verb"] == "query"


def test_an_agent_that_is_stopped_in_its_tracks_counts_as_live(path):
    server = ControlServer(path, echo)  # listens, and nobody serves it
    with pytest.raises(SoftnlbError, match="Another agent"):
        ControlServer(path, echo)
    with pytest.raises(SoftnlbError, match="does not answer within") as caught:
        call(path, "query", answer_within_s=0.05)
    assert caught.value.exit_code == 1
    server.close()


def test_a_caller_waits_for_room_in_the_queue_of_a_busy_agent(path):
    server = ControlServer(path, echo)
    waiting = []
    while True:  # fill the queue of connections that nobody accepts
        waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        try:
            waiting[-1].connect(str(path))
        except BlockingIOError:
            break
    assert is_live(path)
    with pytest.raises(SoftnlbError, match="does not answer within") as caught:
        call(path, "query", answer_within_s=0.05)
    assert caught.value.exit_code == 1
    for client in waiting:
        client.close()
    server.close()


def test_a_file_that_is_no_socket_is_left_alone(path):
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(SoftnlbError, match="not a socket"):
        ControlServer(path, echo)
    assert path.read_text() == "precious"


def test_a_socket_that_cannot_be_made_is_a_machine_error(tmp_path):
    with pytest.raises(MachineError, match="cannot be made"):
        ControlServer(tmp_path / ("x" * 200), echo)


def test_close_leaves_the_socket_of_a_successor(path):
    first = ControlServer(path, echo)
    path.unlink()
    second = ControlServer(path, echo)
    first.close()
    assert path.exists()
    second.close()


def test_nobody_there(path):
    with pytest.raises(NotRunningError):
        call(path, "query")


@pytest.fixture
def run_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFTNLB_RUN_DIR", str(tmp_path))
    return tmp_path


def test_targets(run_dir):
    with pytest.raises(NotRunningError):
        find_hosts()
    first, second = run_dir / "10.1.0.100:1.sock", run_dir / "10.1.0.200:2.sock"
    agent = FakeAgent(params={"dedicated_ip_address": "10.1.0.1/24"})
    with serving(first, agent.handle):
        assert find_hosts() == find_hosts("10.1.0.100") == [first]
        assert find_hosts("10.1.0.100:1") == find_hosts(":1") == [first]
        assert find_hosts("10.1.0.100:10.1.0.1") == [first]
        other = FakeAgent(params={"dedicated_ip_address": "10.1.0.2/24"})
        with serving(second, other.handle):
            assert find_hosts("all") == [first, second]
            assert find_hosts("10.1.0.200") == find_hosts(":10.1.0.2") == [second]
            with pytest.raises(UsageError, match=r"10\.1\.0\.100:1, 10\.1\.0\.200:2"):
                find_hosts()


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("10.1.0.100:2", SoftnlbError),
        ("10.1.0.10", SoftnlbError),
        ("10.1.0.100:10.1.0.9", SoftnlbError),
        ("web", UsageError),
        ("10.1.0.100:web", UsageError),
        ("10.1.0.100:", UsageError),
    ],
)
def test_targets_that_are_not_here(run_dir, target, kind):
    agent = FakeAgent(params={"dedicated_ip_address": "10.1.0.1/24"})
    with serving(run_dir / "10.1.0.100:1.sock", agent.handle):
        with pytest.raises(kind) as caught:
            find_hosts(target)
        assert caught.type is kind


def test_the_socket_of_a_dead_agent_is_no_host(run_dir):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(run_dir / "10.1.0.100:1.sock"))
    with pytest.raises(NotRunningError):
        find_hosts()
