"""tcpdump in the lab of an ordinary user, as the program ``tcpdump`` on the PATH of its nodes.

tcpdump started by root becomes another user and drops its groups, and in a user namespace there is
no other user and no setgroups(2).  So it is told to become root, and a seccomp filter lets that one
system call succeed without doing anything.  Run as a script, with the real program as first word.
"""

import ctypes
import os
import platform
import struct
import sys

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_RETURN_ERRNO_0, _RETURN_ALLOW = 0x0005_0000, 0x7FFF_0000

# Classic BPF: load a word of struct seccomp_data, jump if equal, return.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06

SETGROUPS = {"x86_64": (0xC000_003E, 116), "aarch64": (0xC000_00B7, 159)}
"""Per machine: its AUDIT_ARCH and the number of setgroups."""


def ignore_setgroups() -> None:
    """From now on setgroups(2) of this process and its children does nothing and succeeds."""
    if platform.machine() not in SETGROUPS:
        return
    architecture, number = SETGROUPS[platform.machine()]
    steps = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 0, 3, architecture),
        (_LOAD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 1, number),
        (_RETURN, 0, 0, _RETURN_ERRNO_0),
        (_RETURN, 0, 0, _RETURN_ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    memory = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(steps), ctypes.addressof(memory))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(program), 0, 0)


if __name__ == "__main__":
    ignore_setgroups()
    os.execv(sys.argv[1], [sys.argv[1], "-Z", "root", *sys.argv[2:]])
