"""Asks whether the kernel of a silent host still answers: three ARP probes, 100 ms apart.

A dead agent must not cost the connections that its kernel still serves.  Nor must a host that was
cut off: it would find everybody gone, and reset their connections the moment its cable is back.  So
silence proves something only where anything else was received meanwhile.
"""

import os
import socket

from convergence.events import HostProbed, ProbeHost
from modes import arp

PROBES = 3
INTERVAL_MS = 100
AGAIN_MS = 1000
"""Until the next three, when nothing at all was received."""

_FRAMES_PER_CALL = 64


class ArpProbe:
    """Driven by the agent's loop: ``receive`` when readable, ``advance`` at each deadline."""

    def __init__(self, interface: str, wanted: ProbeHost, now_ms: int) -> None:
        """Asks for the first time.  Raises OSError when the interface is missing."""
        self.host_code = wanted.host_code
        self._address = wanted.dedicated_ip_address
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
            self._socket.bind((interface, arp.ETHERTYPE))
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
                payload = self._socket.recv(64)
            except OSError:
                # Nothing more, or the interface is down: no answer either way.
                return
            if arp.is_answer(payload, self._address):
                self._answered = True

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
            self._socket.sendto(
                arp.probe(self._mac, self._address),
                (self._interface, arp.ETHERTYPE, 0, 0, arp.BROADCAST),
            )
        except OSError:
            # A probe that could not be sent proves nothing: ask again, do not count it.
            self._sent -= 1
        return None

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

    def ask(self, interface: str, wanted: ProbeHost, now_ms: int) -> None:
        """Begin, unless this host is being asked already."""
        if wanted.host_id not in self._probes:
            self._probes[wanted.host_id] = ArpProbe(interface, wanted, now_ms)

    def next_deadline_ms(self) -> int | None:
        """When to call ``advance``; None while nobody is asked."""
        return min((probe.next_deadline_ms() for probe in self._probes.values()), default=None)

    def advance(self, now_ms: int) -> list[HostProbed]:
        """What has become known by now."""
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
        for probe in self._probes.values():
            probe.close()
        self._probes.clear()
