"""Where the machine keeps track of running labs: one socket per lab, and nothing else.

A lab exists as long as somebody answers on its socket, so a file that a crash left behind can
never be taken for a lab.
"""

import os
import stat
from pathlib import Path

from labs.freezer import remove_groups
from softnlb.control import is_live
from softnlb.errors import NotRunningError, SoftnlbError


def labs_directory() -> Path:
    """$XDG_RUNTIME_DIR/softnlb-labs, else /tmp/softnlb-UID; only its owner may look inside.

    Raises SoftnlbError when somebody else owns it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        directory = Path(runtime, "softnlb-labs")
    else:
        directory = Path(f"/tmp/softnlb-{os.geteuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    facts = directory.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise SoftnlbError(f"{directory} is not a directory of yours alone: remove it")
    return directory


def socket_path(name: str) -> Path:
    """The socket of a lab."""
    return labs_directory() / f"{name}.sock"


def forget(name: str) -> None:
    """Remove what a lab that has ended left on the machine; the socket last, for another try."""
    if remove_groups(name):
        socket_path(name).unlink(missing_ok=True)


def running_labs() -> list[str]:
    """Names of the labs that answer; what dead ones left behind is removed."""
    names = []
    for path in sorted(labs_directory().glob("*.sock")):
        if is_live(path):
            names.append(path.stem)
        else:
            forget(path.stem)
    return names


def find(name: str) -> Path:
    """The socket of a running lab.  Raises NotRunningError with what helps."""
    names = running_labs()
    if name in names:
        return socket_path(name)
    others = f" (running: {', '.join(names)})" if names else ""
    raise NotRunningError(f"no lab named {name} is running{others}: `softnlb lab up` starts one")
