"""What a host remembers over a restart: the state that NLB keeps."""

import json
import os
from pathlib import Path

from softnlb.config import ClusterConfig
from softnlb.control import state_dir
from softnlb.kernel import one_sentence


def state_directory(config: ClusterConfig) -> Path:
    """The directory of this host's own records, made if missing (0755).

    Raises MachineError when the privilege for it is missing.
    """
    primary = config.cluster_ip_addresses[0].ip
    directory = state_dir() / f"{primary}:{config.host_id}"
    with one_sentence():
        directory.mkdir(parents=True, exist_ok=True)
    return directory


def save(directory: Path, state: str) -> None:
    """Remember that the operator left the host ``state``; survives power loss."""
    temporary = directory / "state.json.new"
    with temporary.open("w") as file:
        json.dump({"state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / "state.json")


def initial(directory: Path, config: ClusterConfig) -> str:
    """The state to begin in: NLB's initial host state, or suspended where that is retained.

    A record that cannot be read counts as none: a broken file must not keep a host down.
    """
    try:
        saved = json.loads((directory / "state.json").read_text()).get("state")
    except (OSError, ValueError, AttributeError):
        saved = None
    if saved == "suspended" and config.retain_suspended:
        return "suspended"
    return config.initial_state
