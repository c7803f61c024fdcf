"""Starting a lab: run the supervisor and follow what it reports."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labs.state import running_labs
from labs.topology import LabSpec
from softnlb.errors import MachineError, NotRunningError, SoftnlbError, UsageError


def start_lab(
    spec: LabSpec,
    stage: Callable[[str, int], None] = lambda text, ms: None,
    begins: Callable[[str], None] = lambda text: None,
) -> Any:
    """Start a lab and return its status once all hosts are converged.

    ``stage`` is told each finished step and its milliseconds, ``begins`` a long one that begins.
    Raises SoftnlbError with the supervisor's sentence and exit status; nothing is left then.
    """
    if spec.name in running_labs():
        raise SoftnlbError(
            f"a lab named {spec.name} is running: `softnlb lab down --name {spec.name}` ends it"
        )
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "labs.supervisor", json.dumps(spec.to_json()), str(write_end)]
    # A session of its own: neither Ctrl-C nor the end of the terminal reaches the lab.
    with (
        os.fdopen(read_end, "rb") as reports,
        subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(write_end,),
            start_new_session=True,
        ) as starter,
    ):
        os.close(write_end)
        for line in reports:
            message = json.loads(line)
            if "stage" in message:
                stage(message["stage"], message["ms"])
                if message["begins"]:
                    begins(message["begins"])
            elif "ready" in message:
                return message["ready"]
            else:
                raise _error(message["error"], message["exit_code"])
        _, trouble = starter.communicate()
    raise SoftnlbError(f"the supervisor ended before the lab was up: {trouble.decode().strip()}")


def _error(sentence: str, exit_code: int) -> SoftnlbError:
    for kind in (UsageError, NotRunningError, MachineError):
        if kind.exit_code == exit_code:
            return kind(sentence)
    return SoftnlbError(sentence)
