"""Asks whether the kernel of a silent host still answers: three ARP probes, 100 ms apart, or three
neighbour solicitations.

A dead agent must not cost the connections that its kernel still serves.  Nor must a host that was
cut off: it would find everybody gone, and reset their connections the moment its cable is back.  So
silence proves something only where anything else was received meanwhile.

A heartbeat has 4 bytes for the dedicated IP address, of IPv6 the XOR of its words.  Hosts of one
subnet mostly differ in the last word alone, and then the address can be told; where that guess is
wrong silence would prove nothing.  So a host is asked while it is heard, and only the silence of an
address that has answered then counts.
"""

import os
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from convergence.events import HostProbed, ProbeHost
from modes import arp, ndp
from softnlb.heartbeat_socket import attach_filter

if TYPE_CHECKING:
    from convergence.machine import Machine
    from softnlb.config import ClusterConfig

PROBES = 3
INTERVAL_MS = 100
AGAIN_MS = 1000
"""Until the next three, when nothing at all was received."""

MEETINGS_MAX = 4
"""Hosts that are asked at a time while they are heard."""

MEET_AGAIN_MS, MEET_AGAIN_AT_MOST_MS = 1_000, 60_000
"""Until one that did not answer is asked again, twice as long each time: on a busy machine an
answer may be late, but the address may also be another one than its heartbeats can tell."""

_FRAMES_PER_CALL = 64
_FRAME_BYTES = 128

_ADVERTISEMENTS = [
    (0x30, 0, 0, 6),  # next header
    (0x15, 0, 3, socket.IPPROTO_ICMPV6),
    (0x30, 0, 0, 40),  # ICMPv6 type
    (0x15, 0, 1, ndp.ADVERTISEMENT),
    (0x06, 0, 0, _FRAME_BYTES),
    (0x06, 0, 0, 0),
]
"""Classic BPF: of all IPv6 what can be an answer."""


class ArpProbe:
    """Driven by the agent's loop: ``receive`` when readable, ``advance`` at each deadline."""

    def __init__(
        self,
        interface: str,
        wanted: ProbeHost,
        now_ms: int,
        ipv6: tuple[IPv6Address, IPv6Address] | None = None,
        mac: bytes | None = None,
    ) -> None:
        """Asks for the first time.  Raises OSError when the interface is missing.

        ``ipv6``: this host's own address and the one to ask for, instead of the IPv4 address.
        ``mac``: where that one answered from, so that no table of groups in a switch is needed.
        """
        self.host_code = wanted.host_code
        self._address = wanted.dedicated_ip_address
        self._ipv6 = ipv6
        self.answered_from = mac
        self._ethertype = ndp.ETHERTYPE if ipv6 else arp.ETHERTYPE
        self._interface = interface
        self._answered = False
        self._sent = 0
        self._received = 0
        self._hearing = False
        self._deadline_ms = now_ms
        self._socket = socket.socket(
            socket.AF_PACKET,
            socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            0,
        )
        # Of the network namespace that the socket is in, wherever it is read.
        self._counters = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ipv6:
                attach_filter(self._socket, _ADVERTISEMENTS)
            self._socket.bind((interface, self._ethertype))
            self._mac: bytes = self._socket.getsockname()[4]
        except BaseException:
            self.close()
            raise
        self.advance(now_ms)

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def next_deadline_ms(self) -> int:
        """When to call ``advance``: at once after an answer."""
        return 0 if self._answered else self._deadline_ms

    def receive(self) -> None:
        """Read what came in."""
        for _ in range(_FRAMES_PER_CALL):
            try:
                payload, (*_, sender) = self._socket.recvfrom(_FRAME_BYTES)
            except OSError:
                # Nothing more, or the interface is down: no answer either way.
                return
            if self._ipv6:
                found = ndp.is_answer(payload, self._ipv6[1])
            else:
                found = arp.is_answer(payload, self._address)
            if found:
                self._answered, self.answered_from = True, sender

    def advance(self, now_ms: int) -> bool | None:
        """True: gone, three probes went unanswered.  False: its kernel answered.  None: wait."""
        self.receive()
        if self._answered:
            return False
        if now_ms < self._deadline_ms:
            return None
        if self._sent == PROBES:
            if self._hearing:
                return True
            self._sent, self._deadline_ms = 0, now_ms + AGAIN_MS
            return None
        # Between the first and the last of them, so that the last one could have been answered.
        received = self._frames_received()
        self._hearing = self._sent > 0 and (self._hearing or received != self._received)
        self._received = received
        self._sent += 1
        self._deadline_ms = now_ms + INTERVAL_MS
        try:
            for destination, question in self._questions():
                where = (self._interface, self._ethertype, 0, 0, destination)
                self._socket.sendto(question, where)
        except OSError:
            # A probe that could not be sent proves nothing: ask again, do not count it.
            self._sent -= 1
        return None

    def _questions(self) -> list[tuple[bytes, bytes]]:
        """Destination MAC and payload of each."""
        if not self._ipv6:
            return [(arp.BROADCAST, arp.probe(self._mac, self._address))]
        group, question = ndp.probe(self._mac, *self._ipv6)
        return [(mac, question) for mac in (group, self.answered_from) if mac]

    def close(self) -> None:
        """No error when called twice."""
        self._socket.close()
        if self._counters >= 0:
            os.close(self._counters)
            self._counters = -1

    def _frames_received(self) -> int:
        """By the interface, of whatever kind, since it came up; 0 when it is gone."""
        for line in os.pread(self._counters, 1 << 16, 0).decode().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self._interface:
                return int(numbers.split()[1])
        return 0


class Probes:
    """The probes under way on an interface, at most one per host id."""

    def __init__(self) -> None:
        self._probes: dict[int, ArpProbe] = {}
        self._met: dict[int, ArpProbe] = {}
        self._answers: dict[int, tuple[int, bytes | None]] = {}
        """By host id the code of a host whose IPv6 address has answered, and the MAC address."""

        self._not_before: dict[int, tuple[int, int]] = {}
        """By host id, ms: when it may be asked again, and how long that was to wait."""

    def ask(self, config: "ClusterConfig", wanted: ProbeHost, now_ms: int) -> None:
        """Begin, unless this host is being asked already or its silence would prove nothing."""
        if not config.probes_prove or wanted.host_id in self._probes:
            return
        own = config.dedicated_ip_address.ip
        code, mac = self._answers.get(wanted.host_id, (None, None))
        with suppress(OSError):  # without the interface nothing is proven
            if isinstance(own, IPv4Address):
                made = ArpProbe(config.interface, wanted, now_ms)
            elif code == wanted.host_code:
                made = _asked(config.interface, own, wanted, now_ms, mac)
            else:
                return
            self._probes[wanted.host_id] = made

    def meet(self, config: "ClusterConfig", machine: "Machine", now_ms: int) -> None:
        """Ask members whose heartbeats are heard for the address that theirs must be, each once;
        those of an IPv4 address need no such question."""
        own = config.dedicated_ip_address.ip
        if isinstance(own, IPv4Address) or not config.probes_prove:
            return
        for member in machine.status(now_ms).members:
            host_id, code = member.host_id, member.host_code
            if host_id == config.host_id or self._answers.get(host_id, (0,))[0] == code:
                continue
            waiting = host_id in self._met or now_ms < self._not_before.get(host_id, (0, 0))[0]
            if not waiting and len(self._met) < MEETINGS_MAX:
                wanted = ProbeHost(host_id, code, member.dedicated_ip_address)
                with suppress(OSError):
                    self._met[host_id] = _asked(config.interface, own, wanted, now_ms)

    def next_deadline_ms(self) -> int | None:
        """When to call ``advance``; None while nobody is asked."""
        asked = (*self._probes.values(), *self._met.values())
        return min((probe.next_deadline_ms() for probe in asked), default=None)

    def advance(self, now_ms: int) -> list[HostProbed]:
        """What has become known by now."""
        for host_id, probe in list(self._met.items()):
            gone = probe.advance(now_ms)
            if gone is not None:
                if gone:
                    waited_ms = self._not_before.get(host_id, (0, MEET_AGAIN_MS // 2))[1]
                    wait_ms = min(2 * waited_ms, MEET_AGAIN_AT_MOST_MS)
                    self._not_before[host_id] = now_ms + wait_ms, wait_ms
                else:
                    self._answers[host_id] = probe.host_code, probe.answered_from
                    self._not_before.pop(host_id, None)
                del self._met[host_id]
                probe.close()
        known = []
        for host_id, probe in list(self._probes.items()):
            gone = probe.advance(now_ms)
            if gone is not None:
                known.append(HostProbed(now_ms, host_id, probe.host_code, gone))
                del self._probes[host_id]
                probe.close()
        return known

    def close(self) -> None:
        """Ask nobody any more."""
        for probe in (*self._probes.values(), *self._met.values()):
            probe.close()
        self._probes.clear()
        self._met.clear()


def dedicated_ipv6(own: IPv6Address, four_bytes: IPv4Address) -> IPv6Address:
    """The address that 4 bytes of a heartbeat mean, if it differs from ours in its last word."""
    words = [int.from_bytes(own.packed[at : at + 4], "big") for at in (0, 4, 8)]
    last = int(four_bytes) ^ words[0] ^ words[1] ^ words[2]
    return IPv6Address(own.packed[:12] + last.to_bytes(4, "big"))


def _asked(
    interface: str, own: IPv6Address, wanted: ProbeHost, now_ms: int, mac: bytes | None = None
) -> ArpProbe:
    address = dedicated_ipv6(own, wanted.dedicated_ip_address)
    return ArpProbe(interface, wanted, now_ms, (own, address), mac)
