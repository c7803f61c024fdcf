"""Files that are whole or not there at all, also after a loss of power."""

import os
from contextlib import suppress
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace the content of a file at one stroke, its mode and owner kept.  Raises OSError.

    A symbolic link is followed: what it points to is replaced.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.new")
    try:
        before = path.stat()
        mode, owner = before.st_mode & 0o7777, (before.st_uid, before.st_gid)
    except FileNotFoundError:
        mode, owner = 0o600, None
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, mode)
            if owner is not None:
                with suppress(PermissionError):  # another owner's file in a directory of ours
                    os.fchown(descriptor, *owner)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def prove_writable(path: Path) -> None:
    """Raises OSError when ``write`` could not replace this file."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600)
    os.close(descriptor)
    temporary.unlink()
