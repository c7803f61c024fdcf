"""The agents of the lab's hosts: forked from the warm supervisor, asked through their sockets."""

import os
import pickle
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labs.node import NodeProcess
from labs.process import MachineProc, Process, enter_node, fork, redirect_output
from softnlb.control import call
from softnlb.errors import NotRunningError, SoftnlbError

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

CONFIG = Path("/etc/softnlb/cluster.toml")
LOG = Path("/run/softnlb/agent.log")

ASK_TIMEOUT_S = 1.0


class ConfigReader:
    """Writes the configuration file of each host into its node, where none is, and reads it.

    One child reads all of them while the supervisor goes on: what it takes to check a file is
    loaded once, and never stays in the memory of an agent.
    """

    def __init__(self, hosts: list[NodeProcess], proc: MachineProc) -> None:
        read_end, write_end = os.pipe()

        def read() -> None:
            from softnlb.config import load

            configs = {}
            for host in hosts:
                enter_node(host.pid)
                os.chdir("/")
                if not CONFIG.exists():
                    CONFIG.write_text(host.node.config)
                configs[host.node.name] = load(CONFIG)
            with os.fdopen(write_end, "wb") as pipe:
                pickle.dump(configs, pipe)

        self._child = fork("lab:config", proc, read, log=None)
        os.close(write_end)
        self._pipe = os.fdopen(read_end, "rb")

    def configs(self) -> dict[str, "ClusterConfig"]:
        """By node name.  Raises SoftnlbError when a file is wrong."""
        with self._pipe:
            answer = self._pipe.read()
        os.waitpid(self._child.pid, 0)
        self._child.ended = True
        if not answer:
            raise SoftnlbError("the configuration of the hosts could not be read")
        configs: dict[str, ClusterConfig] = pickle.loads(answer)
        return configs


def start_agent(config: "ClusterConfig", host: NodeProcess, proc: MachineProc) -> Process:
    """Start the agent of a host in its node."""

    def body() -> int:
        enter_node(host.pid)
        os.chdir("/")
        redirect_output(LOG)
        return run(CONFIG, config=config)

    from softnlb.run import run  # here, so that a lab without agents need not wait for it

    if config.data_plane != "nfqueue":
        import_module("softnlb.ebpf")  # once, instead of once in every agent
    return fork(f"agent:{host.node.name}", proc, body, log=None)


def control_path(host: NodeProcess) -> Path:
    """The control socket of a host's agent, as seen from the supervisor."""
    name = f"{host.node.cluster_ip_address}:{host.node.host_id}"
    return Path(f"/proc/{host.pid}/root/run/softnlb/{name}.sock")


def ask(host: NodeProcess, verb: str, **args: Any) -> dict[str, Any]:
    """Ask a host's agent.  Raises NotRunningError when nobody listens."""
    return call(control_path(host), verb, answer_within_s=ASK_TIMEOUT_S, **args)


def host_status(host: NodeProcess, agent: Process | None) -> tuple[str, int]:
    """(state, buckets that it accepts now in slot 0).

    Besides the agent's own states: "killed" (the node is gone), "no agent" (it has ended),
    "paused" (SIGSTOP) and "silent" (it does not answer).
    """
    if not host.alive:
        return "killed", 0
    if agent is None or agent.ended:
        return "no agent", 0
    if _is_paused(agent):
        return "paused", 0
    try:
        maps = ask(host, "maps")
    except NotRunningError:
        return "starting", 0
    except SoftnlbError:
        return "silent", 0
    return str(maps["state"]), int(maps["buckets"])


def _is_paused(agent: Process) -> bool:
    try:
        stat = Path(f"/proc/{agent.pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")
