"""Kernel parameters below /proc/sys, and the kernel's refusals as sentences for the operator."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softnlb.errors import MachineError

_SYSCTLS = Path("/proc/sys")


def read_sysctl(name: str) -> str:
    """The present value of a parameter, named by its path as in ``net/ipv4/ip_forward``."""
    # Read every second: without the buffers, a third of the time.
    descriptor = os.open(f"{_SYSCTLS}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096).decode().strip()
    finally:
        os.close(descriptor)


def write_sysctl(name: str, value: str) -> None:
    """Raises OSError."""
    (_SYSCTLS / name).write_text(value)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns OSError into the MachineError that ends a command."""
    try:
        yield
    except PermissionError as error:
        raise MachineError(
            "changing the network needs root or CAP_NET_ADMIN and CAP_NET_RAW "
            f"and a writable /proc/sys/net ({error}): use sudo"
        ) from error
    except OSError as error:
        raise MachineError(f"the kernel refuses to change the network: {error}") from error


def boot_ms() -> int:
    """The boot-time clock in whole milliseconds; it goes on while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
