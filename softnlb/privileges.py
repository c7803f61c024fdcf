"""Gives up every privilege that a running host does not need; for ever, for its children too."""

import ctypes
import os
import struct

from softnlb.errors import MachineError

NEEDED = {
    "CAP_NET_ADMIN": (12, "addresses, MAC addresses, nftables, /proc/sys/net, tc and XDP hooks"),
    "CAP_NET_RAW": (13, "packet sockets: heartbeats, ARP probes and announcements"),
    "CAP_SYS_ADMIN": (21, "types of the conntrack module, and former programs, by their numbers"),
    "CAP_PERFMON": (38, "eBPF programs that read the kernel's socket structures"),
    "CAP_BPF": (39, "load the eBPF program and its maps"),
}
"""Name: number and what for (linux/capability.h)."""

EBPF_ONLY = frozenset({"CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"})

_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAP_SETPCAP = 8
_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def drop(ebpf: bool) -> None:
    """Keep what NEEDED names and this process has; no program that it starts can gain more.

    ``ebpf``: whether the eBPF plane may be used.  Root of a user namespace drops what it has
    there.  Raises MachineError when the kernel refuses: then nothing was started yet.
    """
    wanted = 0
    for name, (number, _purpose) in NEEDED.items():
        if ebpf or name not in EBPF_ONLY:
            wanted |= 1 << number
    permitted = _capget()[1]
    if permitted >> _CAP_SETPCAP & 1:
        number = 0
        while (present := _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
            if present and not wanted >> number & 1:
                _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "drop a capability")
            number += 1
    kept = permitted & wanted
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no-new-privs")
    if os.geteuid() == 0:
        # Root's children get what is permitted here anyway; others need the ambient set.
        _check(
            _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0),
            "clear the ambient capabilities",
        )
    inheritable = 0 if os.geteuid() == 0 else kept
    _capset(kept, kept, inheritable)


def present() -> list[str]:
    """Names of the capabilities in effect, numbers for those that no host needs."""
    effective = _capget()[0]
    names = {number: name for name, (number, _purpose) in NEEDED.items()}
    numbers = (number for number in range(64) if effective >> number & 1)
    return [names.get(number, f"CAP_{number}") for number in numbers]


def _capget() -> tuple[int, int, int]:
    """Effective, permitted and inheritable set."""
    header, data = _header(), ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "read the capabilities")
    low, high = struct.unpack("=3I3I", data.raw)[:3], struct.unpack("=3I3I", data.raw)[3:]
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def _capset(*sets: int) -> None:
    low, high = (one & 0xFFFF_FFFF for one in sets), (one >> 32 for one in sets)
    data = ctypes.create_string_buffer(struct.pack("=3I3I", *low, *high), 24)
    _check(_libc.capset(_header(), data), "drop capabilities")


def _header() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)


def _check(result: int, what: str) -> None:
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MachineError(f"the kernel refuses to {what}: {reason}")
