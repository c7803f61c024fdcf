"""The process that gives verdicts: a fork of the agent that shares a page of tables with it.

A process of its own, so that a flood of SYNs cannot delay a heartbeat.  It dies with the agent, and
when it dies the kernel drops what is queued: both ways nothing new is kept.
"""

import ctypes
import gc
import mmap
import os
import pickle
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from convergence.rules import SLOTS_MAX
from softnlb.client_memory import ClientMemory
from softnlb.errors import DataPlaneUnavailable, SoftnlbError
from softnlb.filter import Clock, FilterTable, Reason, Sockets, Verdict, decide
from softnlb.packet import Flow, parse
from softnlb.sockdiag import SockDiag

# Words of the shared memory, 8 bytes each, written by one side only but for the processor's own
# atomicity of aligned words.  The table of sequence number n lies in slot n modulo 2.
_SEQUENCE = 0
_LEASE = 1  # and 2: valid_until_ms of the table in either slot
_LENGTH = 3  # and 4: bytes of the table in either slot
_PACKETS = 5  # odd while a verdict is under way
_COUNTERS = 8
_REASONS = tuple(Reason)
_ROW = {reason: number for number, reason in enumerate(_REASONS)}
_WORDS = _COUNTERS + (SLOTS_MAX + 1) * len(_REASONS)
_SLOT_BYTES = 1 << 18
_SLOT_AT = (_WORDS * 8 + 4095) & ~4095

_RANGE_BYTES = 128
"""What of a packet is copied: both headers with all their options, and NetfilterQueue's buffer
holds no more than 4096 bytes."""
_QUEUE_PACKETS = 65535
_QUEUE_FIRST, _QUEUE_NUMBERS = 0x6E00, 256
_RECEIVE_BYTES = 1 << 23
_HOOK_OUTPUT = 3
_VERDICT_MAX_S = 0.2
_START_MAX_S = 10.0
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_SYN_ACKS = 1 << 16

Address = tuple[bytes, bytes, int, int]

NOTHING = FilterTable("", b"", (), (), 0, (), 0, started=False)
"""The table before the first one: it knows no cluster and keeps nothing of it."""


def now_ms() -> int:
    """The boot-time clock, which leases are in: it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class SharedTable:
    """Two slots for tables, an index, a lease and counters, in memory that a fork shares."""

    def __init__(self) -> None:
        self.clients = ClientMemory()
        self._memory = mmap.mmap(-1, _SLOT_AT + 2 * _SLOT_BYTES)
        self.words = memoryview(self._memory).cast("Q")

    def write(self, table: FilterTable) -> None:
        """Agent: the table becomes the one to obey.  Raises SoftnlbError when it is too large."""
        data = pickle.dumps(table, pickle.HIGHEST_PROTOCOL)
        if len(data) > _SLOT_BYTES:
            raise SoftnlbError(f"the filter table takes {len(data)} bytes, more than {_SLOT_BYTES}")
        sequence = self.words[_SEQUENCE] + 1
        at = _SLOT_AT + (sequence & 1) * _SLOT_BYTES
        self._memory[at : at + len(data)] = data
        self.words[_LENGTH + (sequence & 1)] = len(data)
        self.words[_LEASE + (sequence & 1)] = max(0, table.valid_until_ms)
        self.words[_SEQUENCE] = sequence

    def renew(self, valid_until_ms: int) -> None:
        """Agent: the lease of the present table."""
        self.words[_LEASE + (self.words[_SEQUENCE] & 1)] = max(0, valid_until_ms)

    def stamp(self) -> tuple[int, int]:
        """(sequence number, lease) of the present table: unchanged means nothing to read."""
        sequence = self.words[_SEQUENCE]
        return sequence, self.words[_LEASE + (sequence & 1)]

    def read(self, sequence: int) -> FilterTable | None:
        """Verdict process: the table of that number, None when it was replaced meanwhile."""
        at = _SLOT_AT + (sequence & 1) * _SLOT_BYTES
        data = self._memory[at : at + self.words[_LENGTH + (sequence & 1)]]
        if self.words[_SEQUENCE] != sequence:
            return None
        table: FilterTable = pickle.loads(data)
        return table

    def wait_for_old_verdicts(self) -> bool:
        """Agent: True once no verdict that may have used an older table is under way."""
        packet = self.words[_PACKETS]
        if packet & 1:
            deadline = time.monotonic() + _VERDICT_MAX_S
            while self.words[_PACKETS] == packet:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.0001)
        return True

    def counters(self, slot: int | None = None) -> dict[str, int]:
        """Packets per reason: of one rule slot, or of all packets, those without a rule too."""
        rows = range(SLOTS_MAX + 1) if slot is None else (slot + 1,)
        width = len(_REASONS)
        found = {}
        for number, reason in enumerate(_REASONS):
            packets = sum(self.words[_COUNTERS + row * width + number] for row in rows)
            if packets:
                found[str(reason)] = packets
        return found

    def close(self) -> None:
        self.words.release()
        self._memory.close()
        self.clients.close()


class SynAcks:
    """The initial sequence numbers of the SYN-ACKs that left this host, the newest 65,536 at least.

    They tell a client's answer to us from its answer to another owner, and they are what proves a
    SYN cookie without knowing the kernel's secret.
    """

    def __init__(self) -> None:
        self._young: dict[Address, int] = {}
        self._old: dict[Address, int] = {}

    def sent(self, flow: Flow) -> None:
        """A SYN-ACK goes out."""
        if len(self._young) >= _SYN_ACKS:
            self._old, self._young = self._young, {}
        key = (flow.source, flow.destination, flow.source_port, flow.destination_port)
        self._young[key] = flow.sequence

    def acknowledged_by(self, flow: Flow) -> bool:
        """True when an incoming segment acknowledges the newest SYN-ACK of its flow."""
        key = (flow.destination, flow.source, flow.destination_port, flow.source_port)
        sequence = self._young.get(key, self._old.get(key))
        return sequence is not None and (sequence + 1) & 0xFFFF_FFFF == flow.acknowledgment


class HostSockets(SockDiag):
    """The sockets of this host, and the SYN-ACKs that passed through the queue."""

    def __init__(self, interface: str, syn_acks: SynAcks) -> None:
        super().__init__(interface)
        self._syn_acks = syn_acks

    def acknowledges_syn_ack(self, flow: Flow) -> bool:
        return self._syn_acks.acknowledged_by(flow)


def verdict_callback(
    shared: SharedTable,
    interface: str,
    sockets: Sockets,
    syn_acks: SynAcks,
    clock: Clock = now_ms,
) -> Callable[[Any], None]:
    """What runs for every queued packet.  Reads the shared table again only when it changed."""
    words, clients = shared.words, shared.clients
    width = len(_REASONS)
    stamp: tuple[int, int] = (-1, -1)
    table = NOTHING

    def verdict(packet: Any) -> None:
        nonlocal stamp, table
        flow = parse(packet.get_payload(), interface)
        if packet.hook == _HOOK_OUTPUT:
            syn_acks.sent(flow)
            packet.accept()
            return
        words[_PACKETS] += 1
        while (present := shared.stamp()) != stamp:
            fresh = table if present[0] == stamp[0] else shared.read(present[0])
            if fresh is not None:
                table, stamp = replace(fresh, valid_until_ms=present[1]), present
        decision = decide(table, flow, sockets, clock, clients)
        row = 0 if decision.slot is None else decision.slot + 1
        words[_COUNTERS + row * width + _ROW[decision.reason]] += 1
        if decision.verdict is Verdict.DROP:
            packet.drop()
        else:
            packet.accept()
        words[_PACKETS] += 1

    return verdict


class VerdictProcess:
    """The fork, from the agent's side."""

    def __init__(self, shared: SharedTable, interface: str, queue_number: int | None) -> None:
        """Returns when the queue is bound.  Raises DataPlaneUnavailable."""
        reader, writer = os.pipe()
        agent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _child(shared, interface, queue_number, writer, agent)
        os.close(writer)
        self._pidfd = os.pidfd_open(self.pid)
        ready, _, _ = select.select([reader], [], [], _START_MAX_S)
        answer = os.read(reader, 4096).decode() if ready else ""
        os.close(reader)
        if not answer.isdecimal():
            self.kill()
            raise DataPlaneUnavailable(answer or "the verdict process did not start")
        self.queue_number = int(answer)

    def fileno(self) -> int:
        """Readable as soon as the process has ended."""
        return self._pidfd

    def alive(self) -> bool:
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    def kill(self) -> None:
        """End it and wait for that; what is queued is dropped.  Safe to call twice."""
        if self._pidfd < 0:
            return
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1


def _child(
    shared: SharedTable, interface: str, queue_number: int | None, writer: int, agent: int
) -> NoReturn:
    """Everything of the verdict process; it never returns into the agent's code."""
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_NAME, b"softnlb-verdict")
        if os.getppid() != agent:
            os._exit(1)
        # A terminal's or a service manager's signal goes to the agent too, which hands its buckets
        # over first and ends this process after that.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.closerange(3, writer)
        os.closerange(writer + 1, 1 << 16)
        gc.freeze()
        warnings.simplefilter("ignore")
        try:
            syn_acks = SynAcks()
            sockets = HostSockets(interface, syn_acks)
            verdict = verdict_callback(shared, interface, sockets, syn_acks)
            queue, bound = _bind(verdict, queue_number)
        except (ImportError, OSError, DataPlaneUnavailable) as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        os.write(writer, str(bound).encode())
        os.close(writer)
        queue.run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _bind(callback: Callable[[Any], None], queue_number: int | None) -> tuple[Any, int]:
    """A queue of our own: the number given, or the first one that nobody in the namespace uses."""
    from netfilterqueue import COPY_PACKET, NetfilterQueue

    first = _QUEUE_FIRST if queue_number is None else queue_number
    count = _QUEUE_NUMBERS if queue_number is None else 1
    for number in range(first, first + count):
        try:
            queue = NetfilterQueue()
            queue.bind(
                number,
                callback,
                max_len=_QUEUE_PACKETS,
                mode=COPY_PACKET,
                range=_RANGE_BYTES,
                sock_len=_RECEIVE_BYTES,
            )
        except OSError:
            continue
        return queue, number
    raise DataPlaneUnavailable(
        f"nfqueue: none of the queues {first} to {first + count - 1} can be bound: "
        "it takes root or CAP_NET_ADMIN, a kernel with nfnetlink_queue and a free queue"
    )
