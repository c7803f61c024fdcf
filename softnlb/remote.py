"""Remote control, the host's end: the verbs of NLB for whoever has the cluster key.

Bounded whatever comes: a handful of datagrams per turn of the loop, so many verifications per
second and source, tables of tickets and sources that never grow.  Silence to everything that is
not authentic.
"""

import secrets
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convergence.auth import Key
from convergence.events import LogEvent, Severity
from convergence.rules import IPAddress
from convergence.telling import Rarely
from softnlb.control import Handler, respond
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

PER_TURN = 8
PER_SECOND = 100
"""Datagrams of one source.  What others send, under whatever address, takes nothing of that."""

VERIFIED_PER_SECOND = 2000
"""Datagrams in all: some hundredths of a processor."""

SOURCES_MAX = 1024
TICKETS_MAX = 64
TICKET_MS = 10_000
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
class _Ticket:
    ticket: bytes
    client: Client
    until_ms: int
    answer: bytes | None = None
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


class _Allowance:
    """So many per second, and as many at once after a second of silence."""

    __slots__ = ("_counted_ms", "_left", "_per_second")

    def __init__(self, per_second: int, now_ms: int) -> None:
        self._per_second = per_second
        self._left = float(per_second)
        self._counted_ms = now_ms

    def take(self, now_ms: int) -> bool:
        """One more, when there is one left."""
        gained = (now_ms - self._counted_ms) * self._per_second / 1000
        self._counted_ms = now_ms
        self._left = min(self._per_second, self._left + gained)
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RemoteControl:
    """A UDP socket on the cluster interface; ``fileno`` is readable when something came.

    Raises MachineError when the port cannot be had.
    """

    def __init__(self, agent: "Agent", handler: Handler) -> None:
        """``agent`` has the configuration in force; ``handler`` carries out the verbs."""
        self._agent = agent
        self._handler = handler
        self._now_ms = agent.now_ms
        self._tell = agent.tell
        self._rarely = Rarely()
        self._tickets: dict[bytes, _Ticket] = {}
        self._allowance = _Allowance(VERIFIED_PER_SECOND, agent.now_ms())
        self._sources: dict[str, _Allowance] = {}
        with one_sentence():
            self._socket = _opened(agent.config.interface, agent.config.remote_control_port or 0)

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def handle(self) -> None:
        """Take what has come, a handful at a time."""
        for _ in range(PER_TURN):
            try:
                data, ancillary, _flags, client = self._socket.recvmsg(
                    DATAGRAM_MAX_BYTES + 1, socket.CMSG_SPACE(_PKTINFO6_BYTES)
                )
            except OSError:  # nothing more, or an ICMP error of an earlier answer
                return
            if self._may_work(client[0]) and self._is_for_us(ancillary):
                self._take(data, client)

    def _may_work(self, source: str) -> bool:
        """Whether this source, and all together, have sent less than they may."""
        now_ms = self._now_ms()
        own = self._sources.pop(source, None) or _Allowance(PER_SECOND, now_ms)
        self._sources[source] = own
        if len(self._sources) > SOURCES_MAX:
            del self._sources[next(iter(self._sources))]
        return own.take(now_ms) and self._allowance.take(now_ms)

    def _is_for_us(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """To a cluster or dedicated IP address, or to everybody on the subnet of one."""
        config = self._agent.config
        dedicated = config.dedicated_ip_address
        known: set[IPAddress] = {address.ip for address in config.cluster_ip_addresses}
        known |= {*config.dedicated_ip_addresses, ALL_NODES}
        if isinstance(dedicated, IPv4Interface):
            known.add(dedicated.network.broadcast_address)
        return _destination(ancillary) in known

    def _take(self, data: bytes, client: Client) -> None:
        keys = self._agent.config.keyring.keys
        try:
            datagram = decode(data, keys)
        except RemoteError as error:
            if error.why in _REFUSALS:
                self._tell_refusal(_name(client), _REFUSALS[error.why])
            return
        key_id = int.from_bytes(data[8:12], "little")
        key = next(key for key in keys if key.id == key_id)
        self._forget_old()
        if datagram.kind is Kind.HELLO and self._is_meant(datagram.body):
            made = self._ticket(datagram.question, client)
            self._send(
                encode(self._from_us(Kind.TICKET, datagram.question, made.ticket), key), made
            )
        elif datagram.kind is Kind.ORDER:
            made_for = self._tickets.get(datagram.question)
            if made_for is None or (made_for.ticket, made_for.client) != (datagram.ticket, client):
                return
            if made_for.answer is None:
                answer = self._from_us(Kind.ANSWER, datagram.question, datagram.ticket)
                answer.body.update(self._obey(datagram.body, _name(client)))
                made_for.answer = encode(answer, key)
            self._send(made_for.answer, made_for)

    def _from_us(self, kind: Kind, question: bytes, ticket: bytes) -> Datagram:
        return Datagram(kind, question, ticket, self._agent.config.host_id, {})

    def _is_meant(self, body: dict[str, Any]) -> bool:
        config = self._agent.config
        if body.get("cluster") not in [str(one.ip) for one in config.cluster_ip_addresses]:
            return False
        ours = ["all", str(config.host_id), *map(str, config.dedicated_ip_addresses)]
        return body.get("host") in ours

    def _ticket(self, question: bytes, client: Client) -> _Ticket:
        """One per question: a HELLO that is played again costs nothing and gains nothing."""
        found = self._tickets.get(question)
        if found is None:
            if len(self._tickets) >= TICKETS_MAX:
                del self._tickets[next(iter(self._tickets))]
            until_ms = self._now_ms() + TICKET_MS
            found = _Ticket(secrets.token_bytes(NONCE_BYTES), client, until_ms)
            self._tickets[question] = found
        return found

    def _forget_old(self) -> None:
        now_ms = self._now_ms()
        for question in [q for q, ticket in self._tickets.items() if ticket.until_ms <= now_ms]:
            del self._tickets[question]

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

    def _send(self, data: bytes, ticket: _Ticket) -> None:
        if ticket.repeats >= REPEATS_MAX:
            return
        ticket.repeats += 1
        try:
            self._socket.sendto(data, ticket.client)
        except OSError:  # as a datagram lost on the way: the client asks again
            return

    def _tell_refusal(self, client: str, why: str) -> None:
        if self._rarely.may_tell("remote-control-refused", client.encode(), self._now_ms()):
            text = f"Remote control from {client} refused: {why}."
            fields: dict[str, object] = {"client": client}
            self._tell(LogEvent("remote-control-refused", Severity.WARNING, text, fields))

    def close(self) -> None:
        """No error when called twice."""
        self._socket.close()
