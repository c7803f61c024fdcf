"""The file with the keys of a cluster: one per line, its id and 32 to 64 bytes in hex.

The first key signs, all are accepted.  ``#`` begins a comment.  Who may read the file may join
the cluster, so nobody but its owner may.
"""

import os
import stat
from pathlib import Path

from convergence.auth import Key

FILE_MAX_BYTES = 64 * 1024
SECRET_MIN_BYTES, SECRET_MAX_BYTES = 32, 64
KEY_ID_MAX = 0xFFFF_FFFF
ONE_KEY = "an id and 32 to 64 bytes in hex, as in: 1 5bd1...e7"


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys in the order of the file, at least one.

    Raises OSError, and ValueError with what was expected; neither text holds a secret.
    """
    with open(path, "rb", opener=_open) as file:
        _refuse_what_others_may_read(os.fstat(file.fileno()))
        content = file.read(FILE_MAX_BYTES + 1)
    if len(content) > FILE_MAX_BYTES:
        raise ValueError(f"a file of at most {FILE_MAX_BYTES} bytes")
    keys: dict[int, Key] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        key = _key(number, words)
        if key.id in keys:
            raise ValueError(f"each key id once, line {number} repeats {key.id}")
        keys[key.id] = key
    if not keys:
        raise ValueError(f"a key in it: {ONE_KEY}")
    return tuple(keys.values())


def _open(name: str, flags: int) -> int:
    # A FIFO would keep the reader waiting for a writer.
    return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _refuse_what_others_may_read(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("a regular file")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(f"a file that only its owner may read (mode 600, it has {mode:o})")
    if status.st_uid not in (0, os.geteuid()):
        raise ValueError(f"a file of root or of this user (user id {status.st_uid} owns it)")


def _key(number: int, words: list[bytes]) -> Key:
    try:
        name, digits = (word.decode("ascii") for word in words)
        if not name.isdigit():
            raise ValueError
        key_id, secret = int(name), bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f"in line {number} {ONE_KEY}") from None
    if not 1 <= key_id <= KEY_ID_MAX:
        raise ValueError(f"in line {number} a key id from 1 to {KEY_ID_MAX}")
    if not SECRET_MIN_BYTES <= len(secret) <= SECRET_MAX_BYTES:
        raise ValueError(f"in line {number} 32 to 64 bytes in hex, there are {len(secret)}")
    return Key(key_id, secret)
