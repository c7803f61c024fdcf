"""Linux namespaces by their system calls: unshare, setns, mount and prctl through ctypes.

Python 3.11 has none of them, and a lab must enter namespaces inside processes that go on running
Python, which ``unshare(1)`` and ``nsenter(1)`` cannot do.
"""

import ctypes
import os
import signal
from pathlib import Path

from softnlb.errors import MachineError

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``flags`` for fresh ones.  Raises OSError."""
    _call("unshare", flags)


def set_namespace(fd: int, flag: int) -> None:
    """Enter the namespace behind ``fd``.  A pid namespace is entered by children only."""
    _call("setns", fd, flag)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2).  Raises OSError."""
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())


def set_process_name(name: str) -> None:
    """What ``ps`` shows, at most 15 bytes."""
    _call("prctl", _PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent() -> None:
    """SIGKILL for this process when the one that forked it ends."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _refusal() -> str:
    """One sentence: why this user gets no namespaces here, and what helps."""
    switches = {
        "kernel.apparmor_restrict_unprivileged_userns": "0",
        "kernel.unprivileged_userns_clone": "1",
    }
    for switch, wanted in switches.items():
        path = Path("/proc/sys", *switch.split("."))
        if path.exists() and path.read_text().strip() != wanted:
            return (
                "this machine does not let ordinary users build networks of their own: "
                f"run `sudo sysctl -w {switch}={wanted}`, or start the lab as root"
            )
    if os.geteuid() == 0:
        return (
            "this machine does not let even root create namespaces (a container without "
            "CAP_SYS_ADMIN?): run the lab on the machine itself, or in a privileged container"
        )
    return (
        "this machine does not let ordinary users create namespaces: raise "
        "`user.max_user_namespaces` with sysctl, or start the lab as root"
    )


def leave_machine() -> None:
    """Move into fresh mount, network and pid namespaces, and a user namespace when not root.

    The caller forks next: its child is process 1 of the new pid namespace, and when that process
    ends, however it ends, the kernel ends everything else in there.

    Raises MachineError with the remedy where the machine forbids it.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid != 0:
            unshare(CLONE_NEWUSER)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWUTS)
        mount("none", "/", "none", MS_REC | MS_PRIVATE)
    except OSError as error:
        raise MachineError(_refusal()) from error
    # More capabilities than before make a process undumpable, and then nobody, not even its own
    # user, may look up its namespaces in /proc.
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)


def in_user_namespace() -> bool:
    """Whether this process is root of a user namespace only."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def mount_proc() -> None:
    """A /proc that shows this pid namespace.  Raises MachineError."""
    try:
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError as error:
        raise MachineError(
            "this machine does not allow a fresh /proc (a container with a masked /proc?): "
            "run the lab outside the container, or with `--security-opt systempaths=unconfined`"
        ) from error


def mount_tmpfs(target: str) -> None:
    """An empty file system in memory at ``target``."""
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64m")


def set_host_name(name: str) -> None:
    """Name of this UTS namespace, which a shell shows in its prompt."""
    _call("sethostname", name.encode(), len(name.encode()))


def make_writable(directory: str, *additions: str) -> None:
    """Make ``directory`` a private copy of itself that may hold ``additions`` as new directories.

    The entries become symbolic links to the machine's own, so nothing is copied and nothing can
    be changed on the machine; an ordinary user may do it too.  Needs a writable /run.
    """
    aside = "/run/aside"
    os.mkdir(aside)
    mount(directory, aside, "none", MS_BIND | MS_REC)
    mount_tmpfs(directory)
    inner = f"{directory}/.machine"
    os.mkdir(inner)
    mount(aside, inner, "none", MS_BIND | MS_REC)
    _call("umount2", aside.encode(), 2)
    os.rmdir(aside)
    for entry in os.listdir(inner):
        if entry not in additions:
            # A link is copied, because a relative one is wrong one directory further down.
            path = f"{inner}/{entry}"
            target = os.readlink(path) if os.path.islink(path) else f".machine/{entry}"
            os.symlink(target, f"{directory}/{entry}")
    for addition in additions:
        os.mkdir(f"{directory}/{addition}")
