"""What reads bytes from outside: functions that raise when a promise is not kept."""

import hmac
import json
import select
import selectors
import socket
import struct
import tomllib
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from convergence import change_frame
from convergence.auth import Authentication, Key, Keyring
from convergence.change_frame import ChangeFrame, ChangeName
from convergence.events import Command, CommandReceived, FrameReceived, SendFrame, Tick
from convergence.heartbeat import FRAME_BYTES, Heartbeat
from convergence.heartbeat import decode as decode_heartbeat
from convergence.machine import HostConfig, Machine
from convergence.rules import PortRule, Protocol
from softnlb import agent as agent_module
from softnlb import remote as remote_module
from softnlb.agent import Agent
from softnlb.answers import Answers
from softnlb.config import ClusterConfig, ConfigError, load
from softnlb.errors import UsageError
from softnlb.key_file import read_keys
from softnlb.nlb_import import as_toml, read
from softnlb.planes import Choice
from softnlb.remote import RemoteControl
from softnlb.remote_frame import Datagram, Kind, decode, encode
from softnlb.serving import host_config, table_of

CORPUS = Path(__file__).parent / "corpus"
EXIT_CODES = (1, 2, 3, 5)
SLOT_MS = 20
AFTERWARDS_MS = 1500

Target = Callable[[bytes], None]


def seeds(name: str) -> list[bytes]:
    """The corpus of a target, and what is too large to be kept in files."""
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    if name == "heartbeat":
        found += [heartbeats_of_a_newcomer(count) for count in (30, 60)]
        found.append(found[-1] + changes_by_a_member(found[-1]))
    return found


# ---------------------------------------------------------------- heartbeats


def _machine(host_id: int) -> Machine:
    rules = (PortRule(None, 80, 80, Protocol.TCP), PortRule(None, 443, 443, Protocol.TCP))
    config = HostConfig(
        host_id=host_id,
        cluster_ip_address=IPv4Address("10.1.0.100"),
        dedicated_ip_address=IPv4Address(f"10.1.0.{host_id}"),
        rules=rules,
        load_weights=(50, 50),
        handling_priorities=(host_id, host_id),
        config_digest=b"12345678",
        period_ms=100,
    )
    machine = Machine(config, 0)
    machine.step(CommandReceived(0, Command.START, host_code=0x1000_0000 * host_id))
    return machine


def _tick(machine: Machine, now_ms: int) -> bytes | None:
    """Up to now; the newest frame that it sends."""
    sent = None
    while machine.next_deadline_ms() <= now_ms:
        for output in machine.step(Tick(machine.next_deadline_ms())):
            sent = output.payload if isinstance(output, SendFrame) else sent
    return sent


def heartbeats_of_a_newcomer(count: int) -> bytes:
    """What host 2 sends while it joins host 1, a frame per slot."""
    machines = [_machine(1), _machine(2)]
    newest = [b"", b""]
    frames = []
    for slot in range(1, count + 1):
        for me, machine in enumerate(machines):
            newest[me] = _tick(machine, slot * SLOT_MS) or newest[me]
        for me, machine in enumerate(machines):
            now_ms = slot * SLOT_MS
            machine.step(FrameReceived(now_ms, newest[1 - me], now_ms, bytes(6)))
        frames.append(newest[1].ljust(FRAME_BYTES, b"\0"))
    return b"".join(frames)


def changes_by_a_member(heartbeats: bytes) -> bytes:
    """What host 2 says of changes after these heartbeats: proposals, an abort, answers."""
    last = decode_heartbeat(heartbeats[-FRAME_BYTES:])
    assert isinstance(last, Heartbeat)
    code = last.statement.host_code
    frames = [
        ChangeFrame(
            2,
            last.statement.cluster_ip_address,
            last.statement.dedicated_ip_address,
            code,
            kind,
            ChangeName(coordinator, code, number),
            last.sequence,
            b"87654321",
            b'{"do": "remove"}',
        )
        for number, coordinator, kind in (
            (1, 2, change_frame.Kind.PROPOSED),
            (1, 2, change_frame.Kind.ABORTED),
            (2, 2, change_frame.Kind.PROPOSED),
            (1, 1, change_frame.Kind.STAGED),
            (1, 1, change_frame.Kind.REFUSED),
        )
    ]
    return b"".join(change_frame.encode(frame) for frame in frames)


def heartbeat(data: bytes) -> None:
    """A started host hears these frames, one per slot.  ``step`` never raises on a frame."""
    machine = _machine(1)
    now_ms = 0
    for start in range(0, len(data), FRAME_BYTES):
        now_ms += SLOT_MS
        _tick(machine, now_ms)
        frame = data[start : start + FRAME_BYTES]
        machine.step(FrameReceived(now_ms, frame, now_ms, b"\x02bad!!"))
    _tick(machine, now_ms + AFTERWARDS_MS)
    machine.status(now_ms + AFTERWARDS_MS)


# ---------------------------------------------------------------- the control socket

CONFIG = """
[cluster]
ip_address = "10.1.0.100/24"
[host]
id = 1
interface = "none0"
dedicated_ip_address = "10.1.0.1/24"
[[port_rule]]
ports = "80"
[[port_rule]]
ports = "443"
protocol = "tcp"
filtering_mode = "single"
"""


class _Serving:
    """A started host without an interface."""

    heartbeats = None
    unrecorded = None

    def __init__(self, config: ClusterConfig, *_: object) -> None:
        self.table = table_of(config, None)

    def __getattr__(self, name: str) -> Callable[..., object]:
        answers: dict[str, object] = {
            "monitors": (),
            "intact": True,
            "counters": {},
            "slot_counters": {},
        }
        return lambda *_: answers.get(name)


class Control:
    """An agent without a network and its control socket."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("SOFTNLB_RUN_DIR", str(directory / "run"))
        patch.setenv("SOFTNLB_STATE_DIR", str(directory / "state"))
        patch.setattr(agent_module, "Serving", _Serving)
        patch.setattr(agent_module, "choose", lambda *_: Choice(_Plane(), "fuzzing"))
        patch.setattr(Agent, "_watch", lambda *_: None)
        patch.setattr(Agent, "reload", lambda _: "nothing changed")
        file = directory / "cluster.toml"
        file.write_text(CONFIG)
        self.agent = Agent(load(file), "auto")

    def __call__(self, data: bytes) -> None:
        """Each answer is a result, or an error with an exit status and a sentence."""
        self.agent.suspended = False
        self.agent.start()
        server = self.agent.control
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(server.path))
            client.setblocking(False)
            received = b""
            left = data + b'\n{"verb": "query"}\n'
            while True:
                left = left[_send(client, left) :]
                while select.select([server], [], [], 0)[0]:
                    server.handle()
                try:
                    answer = client.recv(1 << 16)
                except BlockingIOError:
                    if not left:
                        break
                    continue
                except ConnectionResetError:
                    break
                if not answer:
                    break
                received += answer
        while select.select([server], [], [], 0)[0]:
            server.handle()
        answers = [json.loads(line) for line in received.splitlines()]
        assert answers, "no answer"
        for one in answers:
            typed = one["ok"] or (one["exit_code"] in EXIT_CODES and one["error"])
            assert typed and "the agent failed" not in one.get("error", ""), one


class _Plane:
    name = attachment = "none"


def _send(client: socket.socket, data: bytes) -> int:
    try:
        return client.send(data) if data else 0
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return 0


# ---------------------------------------------------------------- remote control

KEY = Key(1, b"k" * 32)
CLIENT = ("10.1.0.9", 40000)


class _Wire:
    """In place of a UDP socket: what comes, and what was sent."""

    def __init__(self) -> None:
        self.coming: list[bytes] = []
        self.sent: list[bytes] = []

    def recvmsg(self, *_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, tuple[str, int]]:
        if not self.coming:
            raise BlockingIOError
        to = struct.pack("@i4s4s", 1, bytes((10, 1, 0, 1)), bytes((10, 1, 0, 1)))
        return self.coming.pop(0), [(socket.IPPROTO_IP, 8, to)], 0, CLIENT

    def sendto(self, data: bytes, _: tuple[str, int]) -> None:
        self.sent.append(data)

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


class _Loop:
    """In place of a selector: what to call when something came."""

    def register(self, _: object, __: int, heard: Callable[[], None]) -> None:
        self.heard = heard

    def unregister(self, _: object) -> None:
        pass


class Remote:
    """The host's end of remote control, with the agent behind the control socket."""

    def __init__(self, control: Control, patch: pytest.MonkeyPatch) -> None:
        self.wire = _Wire()
        here = {**vars(socket), "socket": lambda *_: self.wire}
        patch.setattr(remote_module, "socket", SimpleNamespace(**here))
        self.agent = control.agent
        self.now_ms = 0
        keyring = Keyring((KEY,), Authentication.ENFORCE)
        config = replace(self.agent.config, keyring=keyring, remote_control_port=2504)
        host = SimpleNamespace(config=config, now_ms=lambda: self.now_ms, tell=lambda _: None)
        self.loop = _Loop()
        loop = cast(selectors.BaseSelector, self.loop)
        self.end = RemoteControl(cast(Agent, host), Answers(self.agent).answer, loop)
        self.end.open()

    def _answers(self, data: bytes) -> list[Datagram]:
        self.now_ms += 1000
        self.wire.coming.append(data)
        self.wire.sent.clear()
        self.end.advance(self.now_ms)
        self.loop.heard()
        return [decode(sent, (KEY,)) for sent in self.wire.sent]

    def __call__(self, data: bytes) -> None:
        """Silence to what is not authentic; an order that is gets a typed answer, once."""
        self.agent.suspended = False
        self.agent.start()
        assert self._answers(data) == []
        question = self.now_ms.to_bytes(16, "big")
        hello = Datagram(Kind.HELLO, question, body={"cluster": "10.1.0.100", "host": "1"})
        (ticket,) = self._answers(encode(hello, KEY))
        header = encode(Datagram(Kind.ORDER, question, ticket.ticket), KEY)[:HEADER_BYTES]
        answers = self._answers(_signed(header + data))
        self._answers(_signed(data))
        for one in answers:
            body = one.body
            typed = body["ok"] or (body["exit_code"] in EXIT_CODES and body["error"])
            assert typed and "the agent failed" not in body.get("error", ""), body


HEADER_BYTES = 44


def _signed(covered: bytes) -> bytes:
    """As somebody who has the key would send it."""
    derived = hmac.digest(KEY.secret, b"softnlb remote control 1", "sha256")
    return covered + hmac.digest(derived, covered, "sha256")


# ---------------------------------------------------------------- files


class ConfigFile:
    """A configuration file with a key file beside it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "cluster.toml"
        key = directory / "cluster.key"
        key.write_text(f"1 {'ab' * 32}\n")
        key.chmod(0o600)

    def __call__(self, data: bytes) -> None:
        """Every error at once, in one line each; or a configuration that a host can begin with."""
        self.path.write_bytes(data)
        try:
            config = load(self.path)
        except ConfigError as error:
            assert error.problems
            assert len(str(error).splitlines()) >= len(error.problems)
            return
        assert len(config.digest) == 8
        Machine(host_config(config), 0)
        table_of(config, None)


class KeyFile:
    """A key file."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "fuzzed.key"
        self.path.touch(0o600)

    def __call__(self, data: bytes) -> None:
        """Keys with ids of their own, or what was expected; never a secret in the message."""
        self.path.write_bytes(data)
        try:
            keys = read_keys(self.path)
        except ValueError as error:
            assert not any(word in str(error) for word in ("abababab", "cdcdcdcd"))
            return
        assert keys and len({key.id for key in keys}) == len(keys)
        assert all(32 <= len(key.secret) <= 64 for key in keys)


def nlb(data: bytes) -> None:
    """What NLB shows: a usage error, or text that is TOML."""
    try:
        found = read(data.decode(errors="replace"))
    except UsageError:
        return
    tables = tomllib.loads(as_toml(found))
    assert tables["cluster"]["ip_address"] is not None


def targets(directory: Path, patch: pytest.MonkeyPatch) -> dict[str, Target]:
    """All of them, by the name of their corpus."""
    control = Control(directory, patch)
    return {
        "heartbeat": heartbeat,
        "control": control,
        "remote": Remote(control, patch),
        "config": ConfigFile(directory),
        "key_file": KeyFile(directory),
        "nlb": nlb,
    }


def close(made: dict[str, Target]) -> None:
    """End what the targets opened."""
    control = made["control"]
    assert isinstance(control, Control)
    control.agent.close()
