"""Remote control, the host's end: the verbs of NLB for whoever has the cluster key.

Bounded whatever comes: a handful of datagrams per turn of the loop, so many verifications per
second, a table of tickets that never grows.  Silence to everything that is not authentic.
"""

import secrets
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING, Any

from convergence.auth import Key
from convergence.events import LogEvent, Severity
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
TICKETS_MAX = 64
TICKET_MS = 10_000
REPEATS_MAX = 10
"""An answer that was lost is sent again; the order is carried out once."""

_PKTINFO = struct.Struct("@i4s4s")
_IP_PKTINFO = 8
_REFUSALS = {
    "unknown-key": "it names a key that this host does not have",
    "wrong-key": "the key of that id is another one here, or it was altered",
}


@dataclass(slots=True)
class _Ticket:
    ticket: bytes
    client: tuple[str, int]
    until_ms: int
    answer: bytes | None = None
    repeats: int = 0


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
        self._allowance = float(PER_SECOND)
        self._counted_ms = agent.now_ms()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        config = agent.config
        with one_sentence():
            name = config.interface.encode() + b"\0"
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._socket.bind(("", config.remote_control_port or 0))

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def handle(self) -> None:
        """Take what has come, a handful at a time."""
        for _ in range(PER_TURN):
            try:
                data, ancillary, _flags, client = self._socket.recvmsg(
                    DATAGRAM_MAX_BYTES + 1, socket.CMSG_SPACE(_PKTINFO.size)
                )
            except OSError:  # nothing more, or an ICMP error of an earlier answer
                return
            if self._may_work() and self._is_for_us(ancillary):
                self._take(data, client)

    def _may_work(self) -> bool:
        now_ms = self._now_ms()
        gained = (now_ms - self._counted_ms) * PER_SECOND / 1000
        self._counted_ms = now_ms
        self._allowance = min(PER_SECOND, self._allowance + gained)
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _is_for_us(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """To a cluster or dedicated IP address, or to everybody on the subnet of one."""
        to = next(
            (
                IPv4Address(_PKTINFO.unpack(data[: _PKTINFO.size])[2])
                for level, kind, data in ancillary
                if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO)
            ),
            None,
        )
        config = self._agent.config
        dedicated = config.dedicated_ip_address
        known = {address.ip for address in config.cluster_ip_addresses}
        known |= set(config.dedicated_ip_addresses)
        if isinstance(dedicated, IPv4Interface):
            known.add(dedicated.network.broadcast_address)
        return to in known

    def _take(self, data: bytes, client: tuple[str, int]) -> None:
        keys = self._agent.config.keyring.keys
        try:
            datagram = decode(data, keys)
        except RemoteError as error:
            if error.why in _REFUSALS:
                self._tell_refusal(client[0], _REFUSALS[error.why])
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
                answer.body.update(self._obey(datagram.body, client[0]))
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

    def _ticket(self, question: bytes, client: tuple[str, int]) -> _Ticket:
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
