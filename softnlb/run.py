"""One agent as a process: its log, its privileges, its exit status."""

import logging
import os
import sys
from pathlib import Path

from softnlb import control_group, privileges
from softnlb.agent import Agent
from softnlb.config import ClusterConfig, ConfigError, load_in_child
from softnlb.control import ControlServer, socket_path
from softnlb.errors import SoftnlbError
from softnlb.notify import Notifier

PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

log = logging.getLogger("softnlb")


class JournalFormatter(logging.Formatter):
    """``<N>`` before each line, which the journal takes as its priority; it has the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        """A priority for each line, as a traceback has many."""
        mark = f"<{PRIORITIES.get(record.levelname, 6)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


def to_the_journal() -> bool:
    """Whether standard error is the journal's (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        facts = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def begin_log() -> None:
    """Standard error, in the journal's form when the journal reads it."""
    handler = logging.StreamHandler(sys.stderr)
    if to_the_journal():
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def run(
    config_path: Path,
    data_plane: str = "auto",
    force: bool = False,
    config: ClusterConfig | None = None,
    attach: str = "auto",
) -> int:
    """Be a host until SIGTERM.  Returns the exit status; errors are one sentence on stderr.

    ``config``: what the file says, when the caller has read it already; a lab reads the files of
    all its hosts at once.
    """
    begin_log()
    os.umask(0o022)
    try:
        config = config or load_in_child(config_path)
        for warning in config.warnings:
            log.warning("%s", warning)
        group = control_group.group_id(config.control_group)
        if config.control_group is not None and group is None:
            log.warning("There is no group %s: only root may command.", config.control_group)
        control = ControlServer(socket_path(config), group_id=group)
        # Before anything else, for a thread keeps the privileges that it was started with.
        plane = data_plane if data_plane != "auto" else config.data_plane
        privileges.drop(ebpf=plane != "nfqueue")
        Agent(config, data_plane, attach, control, Notifier()).run(force)
    except SoftnlbError as error:
        # The lines of a configuration error begin with the file instead.
        prefix = "" if isinstance(error, ConfigError) else "softnlb: "
        print(f"{prefix}{error}", file=sys.stderr)
        return error.exit_code
    return 0
