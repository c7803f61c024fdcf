"""One agent per interface: a file lock, which the kernel drops with the process that holds it."""

import fcntl
import os
from contextlib import suppress

from softnlb.control import run_dir
from softnlb.errors import SoftnlbError
from softnlb.kernel import one_sentence

NAME_MAX_BYTES = 128


class InterfaceLock:
    """The right to change an interface."""

    def __init__(self, interface: str, host: str) -> None:
        """``host``: what the others are told that holds the interface."""
        self._interface = interface
        self._host = host
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has it."""
        return self._descriptor is not None

    def take(self) -> None:
        """Raises SoftnlbError when somebody else has it, MachineError when no lock can be made."""
        # Network namespaces may share the directory and use the same names.
        namespace = os.stat("/proc/thread-self/ns/net").st_ino
        path = run_dir() / f"{self._interface}.{namespace}.lock"
        with one_sentence():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, NAME_MAX_BYTES).decode(errors="replace")
            os.close(descriptor)
            raise SoftnlbError(
                f"another softnlb agent holds the interface {self._interface}"
                + (f", {holder}: an interface has one cluster, " if holder else ": ")
                + "give this one its own, a VLAN for example"
            ) from None
        self._descriptor = descriptor
        with suppress(OSError):  # a full disk: the lock itself takes no room
            os.truncate(descriptor, 0)
            os.write(descriptor, self._host.encode())

    def release(self) -> None:
        """No error when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
