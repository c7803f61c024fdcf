"""Which data plane a host uses."""

from softnlb.dataplane import DataPlane
from softnlb.errors import DataPlaneUnavailable


def choose(wanted: str) -> DataPlane:
    """The data plane named ``auto``, ``nfqueue`` or ``ebpf``.

    Raises DataPlaneUnavailable with the reason; what only a trial can tell, ``attach`` does.
    """
    if wanted == "ebpf":
        raise DataPlaneUnavailable(
            "the ebpf data plane is not built yet: use --data-plane nfqueue or auto"
        )
    from softnlb.nfqueue import NfqueuePlane

    return NfqueuePlane()
