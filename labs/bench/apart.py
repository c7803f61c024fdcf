"""A measurement in a process with namespaces of its own; nothing of it outlives the caller."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from labs.handle import Channel, Task
from labs.namespaces import (
    die_with_parent,
    leave_machine,
    mount_proc,
    mount_tmpfs,
    set_process_name,
)
from labs.process import node_path
from softnlb.errors import MachineError, SoftnlbError


def apart(body: Callable[[], Any]) -> Any:
    """The result of ``body`` (as JSON carries it), run in a process with fresh namespaces.

    The network is empty and /run is the process's own; labs that it starts are in there, too.
    When the caller ends, however it ends, the kernel ends process 1 of the new pid namespace, and
    with it every other process and every namespace in there.

    Raises SoftnlbError, MachineError where the machine gives no namespaces.
    """
    to_parent, from_child = os.pipe()
    unused, to_child = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    caller = os.getpid()
    pid = os.fork()
    if pid == 0:
        _first(body, caller, Channel(unused, from_child))
    os.close(unused)
    os.close(from_child)
    with Task(pid, Channel(to_parent, to_child)) as task:
        answer = task.expect()
        if "machine" in answer:
            raise MachineError(answer["machine"])
        return answer["result"]


def _first(body: Callable[[], Any], caller: int, channel: Channel) -> None:
    """Leave the machine; the fork is process 1 of the new pid namespace.  Does not return."""
    try:
        die_with_parent()
        if os.getppid() != caller:
            os._exit(1)  # it ended before we could ask to be told
        leave_machine()
        process_1 = os.fork()
        if process_1 == 0:
            die_with_parent()
            _reap(lambda: _inside(body, channel))
        os.waitpid(process_1, 0)
    except MachineError as error:
        channel.send({"machine": str(error)})
    except BaseException:
        channel.send({"error": traceback.format_exc()})
    finally:
        os._exit(0)


def _reap(start: Callable[[], None]) -> None:
    """Process 1: bury whatever has lost its parent until the one that was started ends."""
    worker = os.fork()
    if worker == 0:
        start()
    while os.wait()[0] != worker:
        pass
    os._exit(0)


def _inside(body: Callable[[], Any], channel: Channel) -> None:
    try:
        set_process_name("softnlb-bench")
        os.environ["PATH"] = node_path(os.environ.get("PATH", ""))
        os.environ["XDG_RUNTIME_DIR"] = "/run"
        mount_proc()
        mount_tmpfs("/run")
        gc.collect()
        gc.freeze()
        channel.send({"result": body()})
    except MachineError as error:
        channel.send({"machine": str(error)})
    except SoftnlbError as error:
        channel.send({"error": str(error)})
    except BaseException:
        channel.send({"error": traceback.format_exc()})
    finally:
        os._exit(0)
