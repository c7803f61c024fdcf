"""One program of the object in the kernel, with the table it obeys and the packets it counted."""

import ctypes
import mmap
import os
import struct
import time
from pathlib import Path

from softnlb import ebpf_table, libbpf
from softnlb.ebpf_table import REASONS, State
from softnlb.filter import FilterTable

OBJECT = Path(__file__).parent / "bpf" / "filter.bpf.o"

_CONNTRACK = Path("/sys/module/nf_conntrack")
_MEMBARRIER_GLOBAL = 1
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365}
_GRACE_S = 0.02


class Program:
    """Loaded, attached to nothing.  ``descriptor`` and ``identity`` are the kernel's;
    ``clients`` and ``exceptions`` are the descriptors of its maps."""

    def __init__(self, name: str) -> None:
        """Raises LoadError, or DataPlaneUnavailable without libbpf."""
        self._with_conntrack = _CONNTRACK.exists()
        self._ports: ebpf_table.Ports | None = None
        loaded = libbpf.BpfObject(OBJECT, (name,))
        try:
            variables = loaded.map(".bss")
            try:
                memory = mmap.mmap(variables, ctypes.sizeof(State))
            finally:
                os.close(variables)
            self._state = State.from_buffer(memory)
            self._counters = loaded.map("packets")
            self.clients, self.exceptions = loaded.map("clients"), loaded.map("exceptions")
            self.descriptor = loaded.program(name)
        finally:
            loaded.close()
        self.identity = libbpf.program_id(self.descriptor)

    def write(self, table: FilterTable, interface_mac: bytes) -> None:
        """Obey this table from the next packet on.

        A run that has begun goes on with the table before, which lies untouched until the next
        ``write``: ``wait_for_running_programs`` belongs between two.
        """
        if self._ports is None or self._ports.key != ebpf_table.ports_key(table):
            self._ports = ebpf_table.Ports(table)
        fresh = self._state.active ^ 1
        self._ports.write(self._state.tables[fresh])
        ebpf_table.write(table, interface_mac, self._state.tables[fresh])
        self._state.active = fresh

    def renew(self, valid_until_ms: int) -> None:
        """The lease of the present table."""
        present = self._state.tables[self._state.active]
        present.valid_until_ns = ebpf_table.lease_ns(valid_until_ms)

    def ask_conntrack(self, translates: bool) -> None:
        """Whether this host translates addresses: where none does, asking is a waste of time."""
        self._state.translates = translates

    def counters(self) -> list[dict[str, int]]:
        """Packets per reason: first those that met no rule, then those of each slot."""
        size = ebpf_table.COUNTERS_BYTES
        data = libbpf.lookup(self._counters, 0, size * libbpf.possible_cpus())
        words = struct.unpack(f"={len(data) // 8}Q", data)
        width, each = len(REASONS), size // 8
        rows = []
        for at in range(0, each, width):
            sums = [sum(words[at + number :: each]) for number in range(width)]
            rows.append({str(r): n for r, n in zip(REASONS, sums, strict=True) if n})
        return rows

    @property
    def not_remembered(self) -> int:
        """Clients for whom there was no room."""
        return int(self._state.not_remembered)

    def up_to_date(self) -> bool:
        """False when connection tracking has come since: the program was loaded without it."""
        return self._with_conntrack or not _CONNTRACK.exists()

    def close(self) -> None:
        """Where it is attached it stays."""
        os.close(self.descriptor)
        for descriptor in (self._counters, self.clients, self.exceptions):
            os.close(descriptor)


def wait_for_running_programs() -> None:
    """Every run that began before this call has ended when it returns: about 10 ms."""
    number = _MEMBARRIER.get(os.uname().machine)
    if number is None or ctypes.CDLL(None).syscall(number, _MEMBARRIER_GLOBAL, 0, 0):
        # A run lasts microseconds, and nothing else on its processor can delay it this long.
        time.sleep(_GRACE_S)
