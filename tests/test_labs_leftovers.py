"""kill -9 at any point of a lab's life: no link, namespace, rule, process or file is left."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from labs.course.lesson import load
from labs.faults import FAULTS
from labs.handle import LabHandle
from labs.state import labs_directory, running_labs
from labs.up import start_lab
from tests.labs import ROOT, lab_name, machine, running
from tests.netns import wait_for

NAMESPACES = ("net", "mnt", "pid", "uts", "user", "ipc")
MENDED_BY = {"start", "cont", "thaw", "replug", "heal", "app-up", "mask-mac"}
"""The verbs that only end a fault; of all others none may leave anything."""

ALL_FAULTS = (
    ("snooping", "on"),
    ("querier", "off"),
    ("clear-fdb",),
    ("partition", "host1,router"),
    ("loss", "30", "router"),
    ("loss-from", "30", "client2"),
    ("loss-to", "30", "bystander"),
    ("mute", "host1"),
    ("deaf", "host2"),
    ("flush-rules", "host4"),
    ("leak-mac", "host4"),
    ("app-down", "host4"),
    ("agent-kill", "host4"),
    ("stop", "host3"),
    ("freeze", "host2"),
    ("unplug", "host3"),
    ("kill", "host1"),
)


@contextmanager
def nobody_stays_in(lab: LabHandle) -> Iterator[None]:
    """Afterwards no process of the machine is in a namespace of the lab.

    The namespaces are held open meanwhile, so that their numbers are nobody else's.
    """
    facts = lab.ask("nodes")
    pids = [facts["supervisor_pid"], *(node["pid"] for node in facts["nodes"] if node["pid"])]
    with ExitStack() as held:
        own = {os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES}
        inside = set()
        for path in {f"/proc/{pid}/ns/{kind}" for pid in pids for kind in NAMESPACES}:
            held.enter_context(open(path, "rb"))
            inside.add(os.readlink(path))
        assert len(inside - own) > 3 * len(facts["nodes"]), "net, mnt and uts of each node"
        yield
        wait_for(lambda: not _who_is_in(inside - own))


def _who_is_in(namespaces: set[str]) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/ns"):
        with contextlib.suppress(OSError):
            if namespaces & {os.readlink(path / kind) for kind in NAMESPACES}:
                found.append(path.parent.name)
    return found


def processes_with(word: str) -> list[int]:
    """Processes of the machine that carry a lab's name in their environment or command line."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                if word.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
    return found


def control_groups(name: str) -> list[str]:
    """Of the frozen hosts of a lab."""
    return [path.name for path in Path("/sys/fs/cgroup").rglob(f"softnlb-lab:{name}:*")]


def gone(name: str) -> bool:
    """Whether neither a process nor a socket nor a control group of the lab is left."""
    if name in running_labs():  # which also removes what a dead lab left
        return False
    left = [*processes_with(name), *labs_directory().glob(f"{name}*"), *control_groups(name)]
    return not left


@pytest.mark.parametrize("stage", ["namespaces of its own", "nodes,", "HTTP", "agents"])
def test_a_supervisor_that_is_killed_while_it_starts(stage):
    before, name = machine(), lab_name("left")

    def kill(text: str, _: int) -> None:
        if stage in text:
            for pid in processes_with(name):
                # Some end with those before them.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(Exception, match="ended before the lab was up"):
        start_lab(load(3, 5, name).spec, kill)
    wait_for(lambda: gone(name))
    assert machine() == before


def test_a_lab_that_is_killed_in_the_middle_of_every_fault():
    assert {fault for fault, *_ in ALL_FAULTS} == FAULTS.keys() - MENDED_BY
    before = machine()
    with running("left", switch="linux") as lab, nobody_stays_in(lab):
        said = {fault[0]: lab.fault(*fault) for fault in ALL_FAULTS}
        frozen = [f"softnlb-lab:{lab.name}:host2"] if "(cgroup.freeze)" in said["freeze"] else []
        assert control_groups(lab.name) == frozen
        shell = [sys.executable, "-m", "labs.cli", "exec", "--name", lab.name, "host4", "--"]
        with subprocess.Popen([*shell, "sleep", "60"], cwd=ROOT) as working:
            os.kill(lab.ask("nodes")["supervisor_pid"], signal.SIGKILL)
            wait_for(lambda: lab.name not in running_labs())
            working.kill()
    wait_for(lambda: gone(lab.name))
    assert machine() == before
