"""Where an eBPF program can sit on an interface, and how it comes there and goes again.

None of these ends with the process that attached: a host whose agent was killed goes on filtering,
and keeps its connections and nothing new.  The program's own name tells ours from other programs.
"""

import ctypes
import errno
import os
from typing import Protocol

from softnlb import libbpf
from softnlb.errors import DataPlaneUnavailable
from softnlb.libbpf import checked

TC_PROGRAM, XDP_PROGRAM = "softnlb_tc", "softnlb_xdp"

_TCX_INGRESS = 46
_BEFORE = 1 << 3
_IDS_MAX = 64

_TC_INGRESS, _TC_EGRESS = 1, 2
# Among filters of the same priority the handle tells; priority 1 comes first.
_TC_HANDLE, _TC_PRIORITY = 0x4E4C42, 1

_XDP_NO_REPLACE, _XDP_GENERIC, _XDP_NATIVE = 1, 2, 4


class Attachment(Protocol):
    """One way to attach.  All raise OSError when the kernel refuses."""

    name: str
    program: str

    def attach(self, index: int, program_fd: int) -> None:
        """Put the program on the interface; DataPlaneUnavailable when the place is taken."""

    def present(self, index: int) -> tuple[int, ...]:
        """The numbers of all programs that are there, anybody's."""

    def detach(self, index: int, identity: int) -> None:
        """Take the program with this number off."""


class Tcx:
    """The kernel's own list of tc programs per interface (Linux 6.6): no qdisc, no clash."""

    name, program = "tc (tcx)", TC_PROGRAM

    def attach(self, index: int, program_fd: int) -> None:
        # First of all, so that no other program can keep a packet past the decision.
        attached = libbpf.library().bpf_prog_attach(program_fd, index, _TCX_INGRESS, _BEFORE)
        checked(attached, "tcx attach")

    def present(self, index: int) -> tuple[int, ...]:
        ids = (ctypes.c_uint32 * _IDS_MAX)()
        count = ctypes.c_uint32(_IDS_MAX)
        flags = ctypes.c_uint32()
        found = libbpf.library().bpf_prog_query(
            index, _TCX_INGRESS, 0, ctypes.byref(flags), ids, ctypes.byref(count)
        )
        if found == -errno.ENOENT:
            return ()
        checked(found, "tcx query")
        return tuple(ids[: count.value])

    def detach(self, index: int, identity: int) -> None:
        descriptor = libbpf.program_fd(identity)
        try:
            done = libbpf.library().bpf_prog_detach2(descriptor, index, _TCX_INGRESS)
        finally:
            os.close(descriptor)
        checked(done, "tcx detach")


class _Hook(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    )


class Clsact:
    """A filter on the clsact qdisc, for kernels before tcx."""

    name, program = "tc (clsact)", TC_PROGRAM

    def __init__(self) -> None:
        self._made_qdisc = False

    def attach(self, index: int, program_fd: int) -> None:
        hook = _hook(index, _TC_INGRESS)
        made = libbpf.library().bpf_tc_hook_create(ctypes.byref(hook))
        if made != -errno.EEXIST:
            checked(made, "clsact qdisc")
            self._made_qdisc = True
        options = _filter()
        options.prog_fd = program_fd
        done = libbpf.library().bpf_tc_attach(ctypes.byref(hook), ctypes.byref(options))
        if done == -errno.EEXIST:
            raise DataPlaneUnavailable(
                f"tc filter {_TC_HANDLE:#x} of priority {_TC_PRIORITY} on ingress is somebody "
                "else's: remove it"
            )
        checked(done, "tc filter")

    def present(self, index: int) -> tuple[int, ...]:
        hook, options = _hook(index, _TC_INGRESS), _filter()
        found = libbpf.library().bpf_tc_query(ctypes.byref(hook), ctypes.byref(options))
        if found in (-errno.ENOENT, -errno.EINVAL):
            return ()
        checked(found, "tc query")
        return (options.prog_id,)

    def detach(self, index: int, identity: int) -> None:
        hook, options = _hook(index, _TC_INGRESS), _filter()
        done = libbpf.library().bpf_tc_detach(ctypes.byref(hook), ctypes.byref(options))
        checked(done, "tc detach")
        if self._made_qdisc:
            self._made_qdisc = False
            both = _hook(index, _TC_INGRESS | _TC_EGRESS)
            checked(libbpf.library().bpf_tc_hook_destroy(ctypes.byref(both)), "clsact qdisc")


def _hook(index: int, point: int) -> _Hook:
    return _Hook(sz=ctypes.sizeof(_Hook), ifindex=index, attach_point=point)


def _filter() -> _Options:
    return _Options(sz=ctypes.sizeof(_Options), handle=_TC_HANDLE, priority=_TC_PRIORITY)


class _XdpOptions(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("old_prog_fd", ctypes.c_int))


class Xdp:
    """Before the kernel makes an skb: in the driver (native), or right after it (generic)."""

    program = XDP_PROGRAM

    def __init__(self, native: bool) -> None:
        self.name = "xdp" if native else "xdp-generic"
        self._mode = _XDP_NATIVE if native else _XDP_GENERIC

    def attach(self, index: int, program_fd: int) -> None:
        flags = self._mode | _XDP_NO_REPLACE
        done = libbpf.library().bpf_xdp_attach(index, program_fd, flags, None)
        if done in (-errno.EBUSY, -errno.EEXIST):
            raise DataPlaneUnavailable(
                "the interface has an XDP program of somebody else's: use --attach tc"
            )
        if done in (-errno.EOPNOTSUPP, -errno.EINVAL, -errno.ERANGE):
            raise DataPlaneUnavailable(
                f"the driver does not take native XDP ({os.strerror(-done)}): use --attach tc"
            )
        checked(done, "xdp attach")

    def present(self, index: int) -> tuple[int, ...]:
        found = ctypes.c_uint32()
        asked = libbpf.library().bpf_xdp_query_id(index, self._mode, ctypes.byref(found))
        checked(asked, "xdp query")
        return (found.value,) if found.value else ()

    def detach(self, index: int, identity: int) -> None:
        descriptor = libbpf.program_fd(identity)
        try:
            options = _XdpOptions(sz=ctypes.sizeof(_XdpOptions), old_prog_fd=descriptor)
            library = libbpf.library()
            done = library.bpf_xdp_detach(index, self._mode, ctypes.byref(options))
        finally:
            os.close(descriptor)
        checked(done, "xdp detach")


def choose(attach: str, index: int) -> Attachment:
    """The attachment named auto, tc, xdp or xdp-generic on the interface of this index.

    auto is tc: it keeps segmentation offload and works on every interface, while native XDP turns
    it off on some (on veth it costs two thirds of the throughput) and is worth asking for only on
    a physical interface.
    """
    if attach == "xdp":
        return Xdp(native=True)
    if attach == "xdp-generic":
        return Xdp(native=False)
    try:
        Tcx().present(index)
    except OSError:
        return Clsact()
    return Tcx()


def remove_ours(index: int) -> list[str]:
    """Take every program of this name off the interface: what a crash has left behind."""
    removed = []
    for attachment in (Tcx(), Clsact(), Xdp(native=True), Xdp(native=False)):
        try:
            found = attachment.present(index)
        except OSError:
            # A kernel without this way has nothing there either.
            continue
        for identity in found:
            if libbpf.program_name(identity) == attachment.program:
                attachment.detach(index, identity)
                removed.append(attachment.name)
    return removed
