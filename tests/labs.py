"""Labs for tests: the command as a user types it, and a lab that ends with the test module."""

import json
import os
import subprocess
import sys
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
