"""Who may command a host: root, the user that runs the agent, and the members of one group."""

import grp
import os
import socket
import struct

DEFAULT_GROUP = "softnlb"
_SO_PEERGROUPS = 59
_GROUPS_BYTES_MAX = 1024
"""As much as Python lets getsockopt return: 256 groups."""


def group_id(name: str | None) -> int | None:
    """The number of the named group, of the default one without a name; None: there is none."""
    try:
        return grp.getgrnam(name or DEFAULT_GROUP).gr_gid
    except KeyError:
        return None


def is_allowed(connection: socket.socket, uid: int, gid: int, allowed_gid: int | None) -> bool:
    """Whether the process at the other end may ask, whatever the mode of the socket file is now."""
    if uid in (0, os.geteuid()) or (allowed_gid is not None and gid == allowed_gid):
        return True
    if allowed_gid is None:
        return False
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES_MAX)
    except OSError:  # in more groups than that
        return False
    return (allowed_gid,) in struct.iter_unpack("I", groups)
