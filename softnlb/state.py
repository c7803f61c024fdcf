"""What a host remembers over a restart: the state that NLB keeps."""

import json
import os
from contextlib import suppress
from pathlib import Path

from softnlb.config import ClusterConfig
from softnlb.control import state_dir


def state_directory(config: ClusterConfig) -> Path:
    """The directory of this host's own records, made if missing and possible (0755).

    What is written there may fail, now or later: then it is told, and the host serves without.
    """
    primary = config.cluster_ip_addresses[0].ip
    directory = state_dir() / f"{primary}:{config.host_id}"
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
    return directory


def save(directory: Path, state: str) -> None:
    """Remember that the operator left the host ``state``; survives power loss.

    Raises OSError.
    """
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
