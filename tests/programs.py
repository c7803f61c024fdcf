"""The programs of tc and XDP run on single frames, attached to nothing."""

from softnlb import ebpf_clients, libbpf
from softnlb.ebpf_attach import TC_PROGRAM, XDP_PROGRAM
from softnlb.ebpf_program import Program
from softnlb.filter import Decision, FilterTable, Reason, Verdict
from softnlb.known_clients import Known
from tests.packets import HOST_MAC

_TC_DROP, _TC_ELSE = 2, -1
_XDP_DROP, _XDP_PASS = 1, 2

# Duties of the link's rules, which for the programs are packets that are not for the cluster.
_OF_THE_LINK = (Reason.NEVER_FORWARD,)


class Runner:
    """One program; a run tells the verdict by its return value and the reason by the counters."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.program = Program(name)
        self._before = self.program.counters()
        self.frame = b""
        self._excepted: dict[bytes, int] = {}
        self.runs = 0

    def install(self, table: FilterTable) -> None:
        self.program.write(table, HOST_MAC)

    def know(self, clients: str, key: bytes | None, bucket: int | None) -> None:
        """The clients of a case; ``key``: slot and what is hashed of the packet's client."""
        program = self.program
        ebpf_clients.delete(program.clients, [one.key for one in self.known()])
        ebpf_clients.delete(program.exceptions, list(self._excepted))
        self._excepted = {key: 7} if key is not None and "excepted" in clients else {}
        ebpf_clients.put(program.exceptions, self._excepted)
        if key is not None and clients.startswith("known"):
            ebpf_clients.heard(program.clients, [Known(key, bucket or 0, 0)], 1, add=True)

    def known(self) -> list[Known]:
        return list(ebpf_clients.read(self.program.clients))

    def takes(self, frame: bytes) -> bool:
        """False for frames on which the kernel runs no tc program for a test: cut IP headers."""
        shortest = {b"\x08\x00": 14 + 20, b"\x86\xdd": 14 + 40}.get(frame[12:14], 14)
        return self.name == XDP_PROGRAM or len(frame) >= shortest

    def run(self, frame: bytes) -> tuple[Verdict, Reason, int | None]:
        """(verdict, reason, slot); ``frame`` becomes what the program made of it."""
        self.runs += 1
        code, _, self.frame = libbpf.run(self.program.descriptor, frame, output=True)
        before, self._before = self._before, self.program.counters()
        counted = [
            (row - 1 if row else None, Reason(reason))
            for row, (old, new) in enumerate(zip(before, self._before, strict=True))
            for reason in new
            if new[reason] != old.get(reason, 0)
        ]
        ((slot, reason),) = counted
        codes = (_TC_DROP, _TC_ELSE) if self.name == TC_PROGRAM else (_XDP_DROP, _XDP_PASS)
        assert code in codes
        if code == codes[0]:
            return Verdict.DROP, reason, slot
        untouched = reason in (Reason.NOT_CLUSTER, Reason.TAGGED)
        return Verdict.UNTOUCHED if untouched else Verdict.KEEP, reason, slot

    def close(self) -> None:
        self.program.close()


def runners() -> list[Runner]:
    return [Runner(TC_PROGRAM), Runner(XDP_PROGRAM)]


def as_programs_say(decision: Decision) -> tuple[Verdict, Reason, int | None]:
    """A decision of the definition, less the link's duties."""
    if decision.reason in _OF_THE_LINK:
        return Verdict.UNTOUCHED, Reason.NOT_CLUSTER, None
    return decision.verdict, decision.reason, decision.slot
