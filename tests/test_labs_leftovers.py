"""kill -9 at any point of a lab's life: no link, namespace, rule, process or file is left."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from labs.course.lesson import load
from labs.handle import LabHandle
from labs.state import labs_directory, running_labs
from labs.up import start_lab
from tests.labs import ROOT, lab_name
from tests.netns import wait_for


def machine() -> dict[str, object]:
    """What a lab could leave on the machine, outside of processes."""
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    return {
        "links": sorted(os.listdir("/sys/class/net")),
        "named namespaces": sorted(os.listdir("/run/netns")) if Path("/run/netns").exists() else [],
        "rules": rules,
        "mounts": Path("/proc/self/mounts").read_text(),
    }


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


def gone(name: str) -> bool:
    """Whether neither a process nor a socket of the lab is left."""
    listed = name in running_labs()  # which also removes the socket of a dead lab
    return not listed and not processes_with(name) and not list(labs_directory().glob(f"{name}*"))


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


def test_a_lesson_that_is_killed_in_the_middle_of_its_faults():
    before, name = machine(), lab_name("left")
    start_lab(load(4, 5, name).spec)
    lab = LabHandle(name)
    for fault in (
        ("kill", "host1"),
        ("freeze", "host2"),
        ("unplug", "host3"),
        ("leak-mac", "host4"),
    ):
        lab.fault(*fault)
    command = [
        sys.executable,
        "-m",
        "labs.cli",
        "exec",
        "--name",
        name,
        "host4",
        "--",
        "sleep",
        "60",
    ]
    with subprocess.Popen(command, cwd=ROOT) as shell:
        os.kill(lab.ask("nodes")["supervisor_pid"], signal.SIGKILL)
        wait_for(lambda: name not in running_labs())
        shell.kill()
    wait_for(lambda: gone(name))
    assert machine() == before
