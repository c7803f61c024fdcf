"""Kernel settings that every cluster on this machine needs: the last to leave puts them back.

Whoever starts first changes them and has the former values.  When it leaves before the others, it
leaves those values to them in a file; the lock says whether there are others.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from softnlb.control import run_dir
from softnlb.record import Record

Changes = tuple[tuple[str, str, str], ...]
"""As ``Record.sysctls``."""


def need() -> int:
    """A descriptor: while it is open nobody puts the shared settings back.  Raises OSError."""
    descriptor = _open_lock()
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def leaving(left: Record) -> Iterator[Record]:
    """The record with the settings that may be put back within this block; the caller's own
    descriptor is closed by then."""
    shared = tuple(change for change in left.sysctls if "/conf/all/" in change[0])
    own = tuple(change for change in left.sysctls if change not in shared)
    bequest = _file(left.interface)
    try:
        bequest.parent.mkdir(parents=True, exist_ok=True)
        # Before the lock is asked for, so that whoever leaves last finds it.
        if shared:
            bequest.write_text(json.dumps(_read(bequest) + shared))
        descriptor = _open_lock()
    except OSError:  # a full disk: another cluster sets right again what it misses
        yield left
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield replace(left, sysctls=own)
    else:
        files = sorted(bequest.parent.glob(f"*.{_namespace()}.sysctls"))
        everything = tuple(change for file in files for change in _read(file))
        yield replace(left, sysctls=own + everything)
        for file in files:
            with suppress(OSError):
                file.unlink()
    finally:
        os.close(descriptor)


def _namespace() -> int:
    """Network namespaces may share the directory."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def _file(interface: str) -> Path:
    return run_dir() / f"{interface}.{_namespace()}.sysctls"


def _open_lock() -> int:
    path = run_dir() / f"sysctls.{_namespace()}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _read(path: Path) -> Changes:
    try:
        return tuple((name, former, value) for name, former, value in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return ()
