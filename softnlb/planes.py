"""Which data plane a host uses, and why."""

from typing import NamedTuple

from softnlb.dataplane import DataPlane
from softnlb.errors import DataPlaneUnavailable


class Choice(NamedTuple):
    """``reason``: one clause for the operator."""

    plane: DataPlane
    reason: str

    @property
    def text(self) -> str:
        """One sentence for the log."""
        return f"Data plane {self.plane.name}, {self.plane.attachment} ({self.reason})."


def choose(wanted: str, attach: str = "auto") -> Choice:
    """The data plane named ``auto``, ``nfqueue`` or ``ebpf``; ``attach`` is where ebpf hooks in.

    ``auto`` is ebpf where its program loads, else nfqueue.  Raises DataPlaneUnavailable with the
    reason; what only a trial on the interface can tell, the plane's ``attach`` does.
    """
    if wanted != "nfqueue":
        # The modules of the other plane cost memory, too.
        from softnlb.ebpf import EbpfPlane

        plane = EbpfPlane(attach)
        try:
            plane.load()
        except DataPlaneUnavailable as error:
            if wanted == "ebpf":
                raise
            return Choice(_nfqueue(), f"auto: no ebpf, because {error}")
        return Choice(plane, "asked for" if wanted == "ebpf" else "auto: ebpf works here")
    return Choice(_nfqueue(), "asked for")


def _nfqueue() -> DataPlane:
    from softnlb.nfqueue import NfqueuePlane

    return NfqueuePlane()
