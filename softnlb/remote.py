"""Remote control, the host's end: the verbs of NLB for whoever has the cluster key.

Bounded whatever comes: work for a moment, then rest, and nothing remembered of whoever has no
key.  Silence to everything that is not authentic; what forged datagrams displace in the socket's
buffer is asked again.
"""

import hmac
import secrets
import selectors
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convergence.auth import Key
from convergence.events import LogEvent, Severity
from convergence.rules import IPAddress
from convergence.telling import Rarely
from softnlb.control import Handler, respond
from softnlb.errors import SoftnlbError
from softnlb.heartbeat_socket import enlarge
from softnlb.kernel import one_sentence
from softnlb.remote_frame import (
    DATAGRAM_MAX_BYTES,
    NONCE_BYTES,
    Datagram,
    Kind,
    RemoteError,
    decode,
    encode,
)
from softnlb.remote_verbs import REMOTE_VERBS

if TYPE_CHECKING:
    from softnlb.agent import Agent

QUESTIONS = frozenset({"query", "queryport"})

WORK_S, REST_MS = 0.004, 4
"""So long in one go, then so long for everything else: half a processor at the most."""

RECEIVE_BUFFER_BYTES = 1 << 20
"""What comes at 20,000 datagrams per second while the agent is busy for 50 ms."""

TICKET_MS = 10_000
"""For so long, or for twice as long, a ticket is good."""

OBEYED_MAX = 1024
REPEATS_MAX = 10
"""An answer that was lost is sent again; the order is carried out once."""

_PKTINFO = struct.Struct("@i4s4s")
_IP_PKTINFO = 8
_PKTINFO6_BYTES = 20

ALL_NODES = IPv6Address("ff02::1")
"""Where there is no broadcast."""

Client = tuple[Any, ...]
"""A socket address of either family."""
_REFUSALS = {
    "unknown-key": "it names a key that this host does not have",
    "wrong-key": "the key of that id is another one here, or it was altered",
}


@dataclass(slots=True)
class _Obeyed:
    answer: bytes
    until_ms: int
    repeats: int = 0


def _opened(interface: str, port: int) -> socket.socket:
    """For both families; of IPv4 alone where the kernel knows no other."""
    six = socket.has_ipv6 and Path("/proc/sys/net/ipv6").exists()
    family = socket.AF_INET6 if six else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        name = interface.encode() + b"\0"
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        if six:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        enlarge(opened, RECEIVE_BUFFER_BYTES)
        opened.bind(("", port))
    except BaseException:
        opened.close()
        raise
    return opened


def _destination(ancillary: list[tuple[int, int, bytes]]) -> IPAddress | None:
    """What a datagram was sent to."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return IPv4Address(_PKTINFO.unpack(data[: _PKTINFO.size])[2])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return _unmapped(IPv6Address(data[:16]))
    return None


def _name(client: Client) -> str:
    return str(_unmapped(IPv6Address(client[0])) if ":" in client[0] else client[0])


def _unmapped(address: IPv6Address) -> IPAddress:
    return address.ipv4_mapped or address


class RemoteControl:
    """A UDP socket on the cluster interface, which a selector watches but while this rests."""

    def __init__(self, agent: "Agent", handler: Handler, loop: selectors.BaseSelector) -> None:
        """``agent`` has the configuration in force; ``handler`` carries out the verbs."""
        self._agent = agent
        self._handler = handler
        self._loop = loop
        self._now_ms = agent.now_ms
        self._tell = agent.tell
        self._rarely = Rarely()
        self._secret = secrets.token_bytes(32)
        self._obeyed: dict[bytes, _Obeyed] = {}
        self._rests_until_ms: int | None = None
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Listen as the configuration says, or no longer.

        Raises MachineError when the port cannot be had.
        """
        self.close()
        config = self._agent.config
        if config.remote_control_port is not None:
            with one_sentence():
                self._socket = _opened(config.interface, config.remote_control_port)
            self._listen(self._socket)

    def reopen(self) -> None:
        """``open`` for a host that runs: when that fails, it tells so and goes on."""
        try:
            self.open()
        except SoftnlbError as error:
            text = f"Remote control does not work: {error}"
            self._agent.tell(LogEvent("remote-control-failed", Severity.ERROR, text))

    def _listen(self, opened: socket.socket) -> None:
        self._loop.register(opened, selectors.EVENT_READ, partial(self._handle, opened))

    def next_deadline_ms(self) -> int | None:
        """When the rest ends."""
        return self._rests_until_ms

    def advance(self, now_ms: int) -> None:
        """Listen again after a rest."""
        if self._socket and self._rests_until_ms is not None and now_ms >= self._rests_until_ms:
            self._rests_until_ms = None
            self._listen(self._socket)

    def _handle(self, opened: socket.socket) -> None:
        until_s = time.thread_time() + WORK_S
        while time.thread_time() < until_s:
            try:
                data, ancillary, _flags, client = opened.recvmsg(
                    DATAGRAM_MAX_BYTES + 1, socket.CMSG_SPACE(_PKTINFO6_BYTES)
                )
            except OSError:  # nothing more, or an ICMP error of an earlier answer
                return
            answer = self._answer(data, ancillary, client)
            if answer is not None:
                with suppress(OSError):  # as a datagram lost on the way: the client asks again
                    opened.sendto(answer, client)
        self._loop.unregister(opened)
        self._rests_until_ms = self._now_ms() + REST_MS

    def _is_for_us(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """To a cluster or dedicated IP address, or to everybody on the subnet of one."""
        config = self._agent.config
        dedicated = config.dedicated_ip_address
        known: set[IPAddress] = {address.ip for address in config.cluster_ip_addresses}
        known |= {*config.dedicated_ip_addresses, ALL_NODES}
        if isinstance(dedicated, IPv4Interface):
            known.add(dedicated.network.broadcast_address)
        return _destination(ancillary) in known

    def _answer(
        self, data: bytes, ancillary: list[tuple[int, int, bytes]], client: Client
    ) -> bytes | None:
        keys = self._agent.config.keyring.keys
        try:
            datagram = decode(data, keys)
        except RemoteError as error:
            if error.why in _REFUSALS:
                self._tell_refusal(client, _REFUSALS[error.why])
            return None
        if not self._is_for_us(ancillary):
            return None
        key = next(key for key in keys if key.id == int.from_bytes(data[8:12], "little"))
        if datagram.kind is Kind.HELLO and self._is_meant(datagram.body):
            ticket = self._ticket(datagram.question, client)
            return encode(self._from_us(Kind.TICKET, datagram.question, ticket), key)
        if datagram.kind is Kind.ORDER and self._gave(datagram, client):
            return self._obey_once(datagram, client, key)
        return None

    def _obey_once(self, order: Datagram, client: Client, key: Key) -> bytes | None:
        now_ms = self._now_ms()
        for question in [q for q, obeyed in self._obeyed.items() if obeyed.until_ms <= now_ms]:
            del self._obeyed[question]
        obeyed = self._obeyed.get(order.question)
        if obeyed is None:
            if len(self._obeyed) >= OBEYED_MAX:
                return None
            answer = self._from_us(Kind.ANSWER, order.question, order.ticket)
            answer.body.update(self._obey(order.body, _name(client)))
            obeyed = _Obeyed(encode(answer, key), now_ms + 2 * TICKET_MS)
            self._obeyed[order.question] = obeyed
        obeyed.repeats += 1
        return obeyed.answer if obeyed.repeats <= REPEATS_MAX else None

    def _from_us(self, kind: Kind, question: bytes, ticket: bytes) -> Datagram:
        return Datagram(kind, question, ticket, self._agent.config.host_id, {})

    def _is_meant(self, body: dict[str, Any]) -> bool:
        config = self._agent.config
        if body.get("cluster") not in [str(one.ip) for one in config.cluster_ip_addresses]:
            return False
        ours = ["all", str(config.host_id), *map(str, config.dedicated_ip_addresses)]
        return body.get("host") in ours

    def _ticket(self, question: bytes, client: Client, before: int = 0) -> bytes:
        """Of this client now, or so many times TICKET_MS ago.

        It follows from what it is for: a HELLO leaves nothing behind, however often it is played
        again, so many of them displace nothing.
        """
        meant = repr((question, client, self._now_ms() // TICKET_MS - before)).encode()
        return hmac.digest(self._secret, meant, "sha256")[:NONCE_BYTES]

    def _gave(self, order: Datagram, client: Client) -> bool:
        good = (self._ticket(order.question, client, before) for before in (0, 1))
        return order.ticket in good

    def _obey(self, body: dict[str, Any], client: str) -> dict[str, Any]:
        verb = body.get("verb")
        if not isinstance(verb, str) or verb not in REMOTE_VERBS:
            return respond({"verb": "no verb of remote control"}, self._handler)
        if verb not in QUESTIONS:
            text = f"Remote control from {client}: {verb}."
            fields: dict[str, object] = {"verb": verb, "client": client}
            self._tell(LogEvent("remote-order", Severity.INFO, text, fields))
        answer = respond(dict(body), self._handler)
        try:
            encode(Datagram(Kind.ANSWER, bytes(NONCE_BYTES), body=answer), self._any_key())
        except ValueError:
            return {"ok": False, "exit_code": 1, "error": f"{verb}: the answer is too long"}
        return answer

    def _any_key(self) -> Key:
        return self._agent.config.keyring.keys[0]

    def _tell_refusal(self, client: Client, why: str) -> None:
        if self._rarely.may_tell("remote-control-refused", client[0].encode(), self._now_ms()):
            text = f"Remote control from {_name(client)} refused: {why}."
            fields: dict[str, object] = {"client": _name(client)}
            self._tell(LogEvent("remote-control-refused", Severity.WARNING, text, fields))

    def close(self) -> None:
        """Listen no longer."""
        if self._socket is not None:
            if self._rests_until_ms is None:
                self._loop.unregister(self._socket)
            self._socket.close()
        self._socket = self._rests_until_ms = None
