"""Remote control, the operator's end: asks the other hosts of a cluster, from a member of it."""

import secrets
import select
import socket
import time
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from convergence.auth import Key
from softnlb.config import load
from softnlb.errors import MachineError, ReturnCode, SoftnlbError
from softnlb.remote_frame import (
    DATAGRAM_MAX_BYTES,
    NONCE_BYTES,
    Datagram,
    Kind,
    RemoteError,
    decode,
    encode,
)

REPEAT_S = 0.2
TIMEOUT_S = 3.0
GATHER_S = 1.0
"""How long hosts that nobody knows of have to say that they are there."""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the hosts of a cluster are, and the key that they obey."""

    address: str
    own_host_id: int
    source: str
    everybody: str
    port: int
    key: Key


def cluster_of_member(params: Result) -> Cluster:
    """What the ``params`` of the host of this machine and its key file say.

    Raises SoftnlbError when remote control is off, MachineError without access to the key.
    """
    if not params.get("remote_control_port"):
        raise SoftnlbError("remote control is off: set remote_control = true under [cluster]")
    path = Path(params["configuration_file"])
    try:
        path.read_bytes()
        config = load(path)
    except (PermissionError, SoftnlbError) as error:
        raise MachineError(
            f"Commands to other hosts take the cluster key, and {path} or its key cannot be read "
            f"({error}): use sudo."
        ) from error
    dedicated = config.dedicated_ip_address
    if not config.keyring.keys:
        raise SoftnlbError("remote control takes a cluster key")
    four = isinstance(dedicated, IPv4Interface)
    return Cluster(
        str(config.cluster_ip_addresses[0].ip),
        config.host_id,
        str(dedicated.ip),
        str(dedicated.network.broadcast_address) if four else f"ff02::1%{config.interface}",
        int(params["remote_control_port"]),
        config.keyring.keys[0],
    )


class _Asked:
    """One host: its ticket, where it is, what it answered."""

    def __init__(self, order: bytes, address: tuple[Any, ...]) -> None:
        self.order = order
        self.address = address
        self.answer: Result | None = None


def ask_remote(
    cluster: Cluster, host: str, expected: set[int], verb: str, **args: Any
) -> dict[int, Result]:
    """Answers by host id: {"ok": true, "result"} or {"ok": false, "error", "exit_code"}.

    ``host``: a host id, a dedicated IP address or "all" (but for this one); ``expected``: ids that
    shall answer.  Who does not within 3 s has an error too.
    """
    question = secrets.token_bytes(NONCE_BYTES)
    hello = encode(
        Datagram(Kind.HELLO, question, body={"cluster": cluster.address, "host": host}),
        cluster.key,
    )
    asked: dict[int, _Asked] = {}
    family = socket.AF_INET6 if ":" in cluster.source else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asking.bind((cluster.source, 0))
        began_s = time.monotonic()
        next_s = began_s
        while (now_s := time.monotonic()) < began_s + TIMEOUT_S:
            # Hosts that are stopped are in nobody's view, and may speak up all the same.
            gathered = bool(asked) if host != "all" else now_s > began_s + GATHER_S
            gathered = gathered and expected <= asked.keys()
            if gathered and all(one.answer is not None for one in asked.values()):
                break
            if now_s >= next_s:
                next_s = now_s + REPEAT_S
                if not gathered:
                    asking.sendto(hello, (cluster.everybody, cluster.port))
                for one in asked.values():
                    if one.answer is None:
                        asking.sendto(one.order, one.address)
            if select.select([asking], [], [], max(0.0, next_s - now_s))[0]:
                _hear(asking, cluster, question, {"verb": verb, **args}, asked)
    code = ReturnCode.TIMEOUT.name
    sentence = f"no answer within {TIMEOUT_S:g} s ({code})"
    silent = {"ok": False, "exit_code": 1, "error": sentence, "code": code}
    answers = dict.fromkeys(expected, silent)
    answers |= {host_id: one.answer or silent for host_id, one in asked.items()}
    return dict(sorted(answers.items()))


def _hear(
    asking: socket.socket, cluster: Cluster, question: bytes, body: Result, asked: dict[int, _Asked]
) -> None:
    data, address = asking.recvfrom(DATAGRAM_MAX_BYTES + 1)
    try:
        heard = decode(data, (cluster.key,))
    except RemoteError:
        return
    if heard.question != question or heard.host_id == cluster.own_host_id:
        return
    known = asked.get(heard.host_id)
    if heard.kind is Kind.TICKET and known is None:
        order = Datagram(Kind.ORDER, question, heard.ticket, body=body)
        known = asked[heard.host_id] = _Asked(encode(order, cluster.key), address)
        asking.sendto(known.order, address)
    elif heard.kind is Kind.ANSWER and known is not None and known.address == address:
        known.answer = heard.body
