"""Labs for tests: the command as a user types it, and a lab that ends with the test module."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labs.handle import LabHandle
from labs.state import running_labs
from labs.topology import LabSpec
from labs.up import start_lab

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "labs.cli"]


def lab_name(word: str) -> str:
    """A name that no other test run uses."""
    return f"test-{word}-{os.getpid()}"


def lab(*words: str, text: str = "", timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """``softnlb lab WORDS``."""
    return subprocess.run(
        [*COMMAND, *words],
        input=text,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout_s,
        check=False,
    )


def lab_json(*words: str) -> Any:
    """Its document on standard output; the command must succeed."""
    done = lab(words[0], "--json", *words[1:])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def running(word: str, **choices: Any) -> Iterator[LabHandle]:
    """A lab with fast timers, gone afterwards whatever happened."""
    spec = LabSpec(name=lab_name(word), **{"timers": "fast", **choices})
    start_lab(spec)
    try:
        yield LabHandle(spec.name)
    finally:
        if spec.name in running_labs():
            LabHandle(spec.name).down()


def machine() -> dict[str, object]:
    """What labs could leave on this machine besides processes: links, rules, mounts, files."""
    folders = ("/run/netns", "/run/softnlb", "/etc/softnlb", "/etc/softnlb-lab", "/var/lib/softnlb")
    ours = (str(folder) for folder in (ROOT, ROOT / "labs", ROOT / "tests"))
    return {
        "links": sorted(os.listdir("/sys/class/net")),
        "rules": subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout,
        "mounts": Path("/proc/self/mounts").read_text(),
        "files": {
            folder: sorted(name for name in os.listdir(folder) if name[0] not in "._")
            for folder in (*folders, *ours)
            if Path(folder).exists()
        },
        # The directory for the sockets of a user's labs stays.
        "temporary files": sorted(
            path.name
            for path in Path(tempfile.gettempdir()).glob("*softnlb*")
            if not path.name.removeprefix("softnlb-").isdigit()
        ),
    }
