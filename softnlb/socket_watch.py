"""When the host's sockets are looked at: to prove buckets idle, and to see the end of a drain."""

from convergence.events import HostState
from convergence.machine import Machine
from softnlb.filter import FilterTable
from softnlb.scanner import Scan, Scanner

SCAN_MS = 1000
DRAIN_SCAN_MS = 200
"""Between two scans: an operator watches a drain, nobody waits for an idle map."""


SWEEP_MS = 10_000
"""Between two looks at who has a connection, where extended affinity forgets the silent; its
shortest time-out is a minute."""


def remembers_clients(table: FilterTable) -> bool:
    """Some rule has extended affinity."""
    return any(rule.rule.remembers_clients for rule in table.rules)


class SocketWatch:
    """The scanner and its timetable; ``fileno`` becomes readable when a scan has ended."""

    def __init__(self) -> None:
        self._scanner = Scanner()
        self._last: Scan | None = None
        self._next_scan_ms = 0
        self._table: FilterTable | None = None
        self._sweeps = False
        self._began_ms = 0
        self._drain_began_ms: int | None = None
        self._drain_deadline_ms: int | None = None

    def fileno(self) -> int:
        """For a selector."""
        return self._scanner.fileno()

    def results(self) -> list[Scan]:
        """The scans that ended since the last call."""
        found = self._scanner.results()
        if found:
            self._last = found[-1]
        return found

    def void(self) -> None:
        """Believe no scan that is running: its buckets were those of other rules, or of a time
        when this host still accepted connections."""
        self._scanner.void()

    def next_deadline_ms(self, machine: Machine) -> int | None:
        """When ``advance`` has something to do at the latest; None: there is nothing to look at."""
        if machine.host_state != HostState.DRAINING:
            due_ms = machine.scan_due_ms()
            if self._sweeps:
                again_ms = self._began_ms + SWEEP_MS
                due_ms = again_ms if due_ms is None else min(due_ms, again_ms)
            return None if due_ms is None else max(due_ms, self._next_scan_ms)
        if self._drain_deadline_ms is None:
            return self._next_scan_ms
        return min(self._next_scan_ms, self._drain_deadline_ms)

    def advance(self, machine: Machine, table: FilterTable, now_ms: int) -> None:
        """Begin the scan that is due."""
        if table is not self._table:
            self._table, self._sweeps = table, remembers_clients(table)
        due_ms = self.next_deadline_ms(machine)
        if due_ms is None or now_ms < due_ms:
            return
        draining = machine.host_state == HostState.DRAINING
        self._next_scan_ms = now_ms + (DRAIN_SCAN_MS if draining else SCAN_MS)
        self._began_ms = now_ms
        self._scanner.want(table, now_ms, count=draining)

    def begin_drain(self, now_ms: int, timeout_s: float | None) -> None:
        """From now on count the connections until none is left or the time is up, seconds."""
        self._drain_began_ms = now_ms
        self._drain_deadline_ms = None if timeout_s is None else now_ms + int(timeout_s * 1000)
        self._next_scan_ms = 0

    def end_drain(self) -> None:
        """Nobody waits for the last connection any more."""
        self._drain_began_ms = self._drain_deadline_ms = None

    def drained(self, machine: Machine, now_ms: int) -> bool:
        """True when the last connection has ended or the time is up.

        Who still drains then asked for another look, at the connections that are left from now on.
        """
        began_ms = self._drain_began_ms
        if began_ms is None:
            return False
        if not machine.awaits_last_connection:
            self.end_drain()
            return False
        late = self._drain_deadline_ms is not None and now_ms >= self._drain_deadline_ms
        scan = self._last
        empty = scan is not None and scan.began_ms > began_ms and scan.connections == 0
        if late or empty:
            self._drain_began_ms = now_ms
        return late or empty

    def close(self) -> None:
        """End the thread that scans."""
        self._scanner.close()
