"""Real sockets in any TCP state, on a host that no data plane filters: the stage for packet cases.

The client is a raw socket, so that no kernel answers for it; sock_diag confirms each state.
"""

import select
import socket
import struct
from contextlib import suppress

from softnlb import netlink
from softnlb.packet import TCP, Flow, parse
from softnlb.sockdiag import SockDiag
from tests.netns import Segment, wait_for
from tests.packets import CLIENT, HOST, SECOND_VIP, VIP, Case, build, ends, layers_of, raw_socket
from tests.plane import inside, mac_of

End = tuple[str, int]


class Stage:
    """Sockets at the ends of each case's packet; ``prepare`` may be called again for a case."""

    def __init__(self, syn_cookies: bool = False) -> None:
        self.segment = Segment()
        self.host = self.segment.node("host", f"{HOST}/24")
        client = self.segment.node("client", "10.1.0.200/24")
        for address in (VIP, SECOND_VIP):
            self.host.run(f"ip address add {address}/32 dev eth0")
        self.host.run(
            f"ip neighbour add {CLIENT} lladdr {mac_of(client)} dev eth0 nud permanent && "
            f"sysctl -w net.ipv4.tcp_syncookies={2 if syn_cookies else 1}"
        )
        self._mac = mac_of(self.host)
        with inside(client):
            self._wire = raw_socket("eth0")
        self._listeners: dict[End, socket.socket] = {}
        self._open: list[socket.socket] = []
        self._known: dict[tuple[str, End, End], int] = {}
        with inside(self.host):
            self._diag = SockDiag("eth0")

    def prepare(self, case: Case) -> int:
        """Bring the socket about; returns the host's initial sequence number, 0 without one."""
        client, server = ends(case.layers)
        key = case.sockets, client, server
        if case.sockets != "none" and key not in self._known:
            with inside(self.host):
                self._known[key] = self._make(case.sockets, client, server)
        return self._known.get(key, 0)

    def _make(self, state: str, client: End, server: End) -> int:
        if state.startswith("udp"):
            datagrams = self._socket(socket.SOCK_DGRAM)
            datagrams.bind(server)
            if state == "udp-connected":
                datagrams.connect(client)
            return 0
        if state.startswith("conntrack"):
            _track(state.removeprefix("conntrack-"), client, server)
            return 0
        if state == "SYN_SENT":
            self._connect(client, server)
            return 0
        self._listen(server)
        if state == "listen":
            return 0
        ours = self._syn(client, server)
        if state in ("SYN_RECV", "cookie"):
            return ours
        self._walk(state, client, server, ours)
        wanted = "FIN_WAIT2" if state == "FIN_WAIT2-closed" else state
        flow = Flow("eth0", None, 0, _packed(client), _packed(server), TCP, client[1], server[1])
        wait_for(lambda: self._diag.tcp_state(flow) == wanted)
        return ours

    def _walk(self, state: str, client: End, server: End, ours: int) -> None:
        """From SYN_RECV on; the client's FIN has the sequence number 101."""
        self._send(client, server, f"flags=A seq=101 ack={ours + 1}")
        accepted, _ = self._listeners[server].accept()
        self._open.append(accepted)
        if state in ("FIN_WAIT1", "FIN_WAIT2", "CLOSING"):
            accepted.shutdown(socket.SHUT_WR)
        elif state in ("FIN_WAIT2-closed", "TIME_WAIT"):
            accepted.close()
        fin_of_client = {"CLOSE_WAIT": 1, "LAST_ACK": 1, "CLOSING": 1, "TIME_WAIT": 2}
        if state in fin_of_client:
            acknowledgment = ours + fin_of_client[state]
            self._send(client, server, f"flags=FA seq=101 ack={acknowledgment}")
        elif state.startswith("FIN_WAIT2"):
            self._send(client, server, f"flags=A seq=101 ack={ours + 2}")
        if state == "LAST_ACK":
            wait_for(lambda: accepted.recv(1) == b"")
            accepted.close()

    def _syn(self, client: End, server: End) -> int:
        self._send(client, server, "flags=S seq=100")
        while select.select([self._wire], [], [], 5)[0]:
            frame = self._wire.recv(2048)
            answer = parse(frame[14:], "eth0")
            if answer.destination_port == client[1] and answer.flags & 0x12 == 0x12:
                return answer.sequence
        raise AssertionError(f"no SYN-ACK for {client}")

    def _connect(self, client: End, server: End) -> None:
        opening = self._socket(socket.SOCK_STREAM)
        opening.setblocking(False)
        opening.bind(server)
        with suppress(BlockingIOError):
            opening.connect(client)

    def _listen(self, server: End) -> None:
        if server not in self._listeners:
            listener = self._listeners[server] = self._socket(socket.SOCK_STREAM)
            listener.bind(server)
            listener.listen(1024)

    def _socket(self, kind: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(5)
        self._open.append(made)
        return made

    def _send(self, client: End, server: End, tcp: str) -> None:
        ip = f"ip src={client[0]} dst={server[0]}"
        text = f"eth dst={self._mac} {ip} tcp sport={client[1]} dport={server[1]} {tcp}"
        self._wire.send(build(layers_of(text)))

    def close(self) -> None:
        for made in self._open:
            with suppress(OSError):
                # No lingering: the namespace goes at once.
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made.close()
        self._diag.close()
        self._wire.close()
        self.segment.close()


# linux/netfilter/nfnetlink_conntrack.h
_CT_NEW, _CREATE = 1 << 8, 0x400
_STATES = ("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK")
_STATES += ("TIME_WAIT", "CLOSE")
_CONTAINER = "172.16.0.2"


def _track(state: str, client: End, server: End) -> None:
    """An entry of connection tracking in this state, as an accepted SYN to a published port leaves
    it; ``untranslated``: of a connection that nobody translates."""
    attribute = netlink.attribute
    number = _STATES.index("ESTABLISHED" if state in ("conntrack", "untranslated") else state)
    translated = attribute(13, attribute(1, socket.inet_aton(_CONTAINER)))
    kernel = netlink.Netlink(netlink.NETFILTER)
    kernel.request(
        _CT_NEW,
        _CREATE,
        bytes((socket.AF_INET, 0, 0, 0))
        + attribute(1, _tuple(client, server))
        + attribute(2, _tuple(server, client))
        + attribute(4, attribute(1, attribute(1, bytes((number,)))))
        + attribute(7, struct.pack("!I", 3600))
        + (b"" if state == "untranslated" else translated),
    )
    kernel.close()


def _tuple(source: End, destination: End) -> bytes:
    attribute = netlink.attribute
    addresses = attribute(1, _packed(source)) + attribute(2, _packed(destination))
    ports = attribute(2, struct.pack("!H", source[1])) + attribute(
        3, struct.pack("!H", destination[1])
    )
    return attribute(1, addresses) + attribute(2, attribute(1, bytes((TCP,))) + ports)


def _packed(end: End) -> bytes:
    return socket.inet_aton(end[0])
