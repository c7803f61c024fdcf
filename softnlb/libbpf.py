"""libbpf 1.0 or later, through ctypes: load an object, attach, detach and ask the kernel.

Only imported by the ebpf data plane, so that other hosts need neither.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from softnlb.errors import DataPlaneUnavailable

_LOG_BYTES = 1 << 20
_PROG_INFO_BYTES = 80
_PROG_INFO_ID_AT, _PROG_INFO_NAME_AT = 4, 64

Printer = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class LoadError(DataPlaneUnavailable):
    """The kernel takes the program not; ``log`` is what libbpf and the verifier say about it."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.log = log


class _Log:
    """What libbpf would print, collected; it knows one printer for the whole process."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._libc = ctypes.CDLL(None)
        self.printer = Printer(self._take)

    def _take(self, level: int, form: bytes, arguments: int) -> int:
        if level == 0:
            buffer = ctypes.create_string_buffer(_LOG_BYTES)
            self._libc.vsnprintf(buffer, _LOG_BYTES, form, ctypes.c_void_p(arguments))
            self.lines.append(buffer.value.decode(errors="replace"))
        return 0

    def begin(self) -> None:
        self.lines.clear()


_log = _Log()


@cache
def library() -> ctypes.CDLL:
    """Raises DataPlaneUnavailable when libbpf is not installed."""
    try:
        found = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise DataPlaneUnavailable("libbpf is missing: install the package libbpf1") from None
    for name in (
        "bpf_object__open_file",
        "bpf_object__find_program_by_name",
        "bpf_object__find_map_by_name",
        "bpf_object__next_program",
    ):
        getattr(found, name).restype = ctypes.c_void_p
    found.bpf_program__name.restype = ctypes.c_char_p
    found.libbpf_set_print(_log.printer)
    return found


def checked(result: int, what: str) -> int:
    """The result of a call of libbpf 1, which returns -errno.  Raises OSError."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


class BpfObject:
    """A loaded object file; what is taken out of it stays open when the object is closed."""

    def __init__(self, path: Path, programs: Collection[str]) -> None:
        """Load these programs of the file and all its maps.  Raises LoadError."""
        self._library = library()
        _log.begin()
        self._object: int | None = self._library.bpf_object__open_file(str(path).encode(), None)
        if not self._object:
            raise LoadError(f"{path.name} cannot be read", "".join(_log.lines))
        try:
            self._leave_out_all_but(programs)
            failed = self._library.bpf_object__load(ctypes.c_void_p(self._object))
            if failed:
                raise LoadError(_why(-failed), "".join(_log.lines))
        except BaseException:
            self.close()
            raise

    def _leave_out_all_but(self, programs: Collection[str]) -> None:
        program = None
        while program := self._library.bpf_object__next_program(
            ctypes.c_void_p(self._object), ctypes.c_void_p(program)
        ):
            name = self._library.bpf_program__name(ctypes.c_void_p(program)).decode()
            wanted = ctypes.c_bool(name in programs)
            self._library.bpf_program__set_autoload(ctypes.c_void_p(program), wanted)

    def program(self, name: str) -> int:
        """A descriptor of a program, the caller's own."""
        found = self._library.bpf_object__find_program_by_name(
            ctypes.c_void_p(self._object), name.encode()
        )
        return _own(self._library.bpf_program__fd(ctypes.c_void_p(found)))

    def map(self, name: str) -> int:
        """A descriptor of a map, the caller's own; ".bss" is the map of all zeroed variables."""
        found = self._library.bpf_object__find_map_by_name(
            ctypes.c_void_p(self._object), name.encode()
        )
        return _own(self._library.bpf_map__fd(ctypes.c_void_p(found)))

    def close(self) -> None:
        """Safe to call twice."""
        if self._object:
            self._library.bpf_object__close(ctypes.c_void_p(self._object))
            self._object = None


def _own(descriptor: int) -> int:
    return fcntl.fcntl(checked(descriptor, "libbpf"), fcntl.F_DUPFD_CLOEXEC, 3)


def _why(code: int) -> str:
    # EACCES is the verifier's: what it forbids is the program, not eBPF.
    if code != errno.EPERM:
        return f"the kernel does not take the eBPF program ({os.strerror(code)})"
    if os.geteuid() != 0:
        return "eBPF takes root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    return (
        "the kernel forbids eBPF here: it takes root or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON "
        "outside a user namespace, and no lockdown"
    )


# ---------------------------------------------------------------- programs and maps by descriptor


def possible_cpus() -> int:
    """The processors for which a per-CPU map has values."""
    return checked(library().libbpf_num_possible_cpus(), "possible CPUs")


def lookup(map_fd: int, key: int, value_bytes: int) -> bytes:
    """The value of a key of four bytes; for a per-CPU map the values of all processors."""
    number = ctypes.c_uint32(key)
    value = ctypes.create_string_buffer(value_bytes)
    checked(library().bpf_map_lookup_elem(map_fd, ctypes.byref(number), value), "map lookup")
    return value.raw


def program_id(program_fd: int) -> int:
    """The kernel's number of a program."""
    return int.from_bytes(_info(program_fd)[_PROG_INFO_ID_AT:][:4], "little")


def program_name(identity: int) -> str | None:
    """The name (15 characters at most) of the program with this number, None without one."""
    descriptor = library().bpf_prog_get_fd_by_id(ctypes.c_uint32(identity))
    if descriptor < 0:
        return None
    try:
        return _info(descriptor)[_PROG_INFO_NAME_AT:].split(b"\0")[0].decode(errors="replace")
    finally:
        os.close(descriptor)


def program_fd(identity: int) -> int:
    """A descriptor of the program with this number.  Raises OSError."""
    return checked(library().bpf_prog_get_fd_by_id(ctypes.c_uint32(identity)), "program")


def _info(descriptor: int) -> bytes:
    info = ctypes.create_string_buffer(_PROG_INFO_BYTES)
    length = ctypes.c_uint32(_PROG_INFO_BYTES)
    found = library().bpf_obj_get_info_by_fd(descriptor, info, ctypes.byref(length))
    checked(found, "program information")
    return info.raw


class _TestRun(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int32),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def run(
    program_fd: int, frame: bytes, repeat: int = 1, context: bytes = b"", output: bool = False
) -> tuple[int, float, bytes]:
    """(verdict as a signed number, ns of one run, the frame afterwards if ``output``).

    ``context``: struct __sk_buff or struct xdp_md as the program shall see it.  The sockets are
    those of the network namespace that the calling thread is in.  Raises OSError.
    """
    after = ctypes.create_string_buffer(len(frame) + 256) if output else None
    options: Any = _TestRun(
        sz=ctypes.sizeof(_TestRun),
        data_in=frame,
        data_size_in=len(frame),
        data_out=ctypes.cast(after, ctypes.c_void_p) if after else None,
        data_size_out=len(after) if after else 0,
        ctx_in=context or None,
        ctx_size_in=len(context),
        repeat=repeat,
    )
    checked(library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)), "test run")
    verdict = ctypes.c_int32(options.retval).value
    return verdict, options.duration, after.raw[: options.data_size_out] if after else b""
