"""The history of a host: its events as JSON lines in a bounded file, in the log and in memory.

A disk that is full or cannot be written to costs the file some lines, and nobody anything else.
"""

import json
import logging
import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convergence.events import LogEvent, Severity
from softnlb import __version__

if TYPE_CHECKING:
    from convergence.machine import Machine

FILE = "events.jsonl"
FORMER = "events.jsonl.1"
FILE_MAX_BYTES = 1 << 20
"""Then it becomes the former file, and the one that was that is gone."""

SHOWN_MAX = 100
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LEVELS = {severity: getattr(logging, severity.name) for severity in Severity}

log = logging.getLogger("softnlb")


def agent_started() -> LogEvent:
    """With what tells one run of an agent from another, and one boot of the machine."""
    fields: dict[str, object] = {
        "version": __version__,
        "process_id": os.getpid(),
        "boot_id": BOOT_ID.read_text().strip(),
    }
    text = f"The agent of softnlb {__version__} started, process {os.getpid()}."
    return LogEvent("agent-started", Severity.INFO, text, fields)


class History:
    """``events``: the newest ones, as ``softnlb display`` shows them."""

    def __init__(self, directory: Path, host_id: int) -> None:
        self.events: deque[tuple[float, LogEvent]] = deque(maxlen=SHOWN_MAX)
        self._directory = directory
        self._host_id = host_id
        self.phases_told = 0
        self._sequence = 0
        self._file: int | None = None
        self._lost = 0

    def tell(self, event: LogEvent) -> None:
        """Log an event, keep it, and write it down."""
        self.events.append((time.time(), event))
        log.log(LEVELS[event.severity], "%s: %s", event.name, event.text)
        self.write(event)

    def write(self, event: LogEvent) -> None:
        """Write an event to the file only; never raises."""
        self._sequence += 1
        line = self._line(event)
        try:
            self._append(line)
        except OSError as error:
            self._lost += 1
            self.close()
            if self._lost == 1:
                text = f"Events are not written to the disk any more: {error}."
                told = LogEvent("events-not-written", Severity.ERROR, text)
                self.events.append((time.time(), told))
                log.error("%s: %s", told.name, text)
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            text = f"Events are written to the disk again; {lost} are missing."
            self.tell(LogEvent("events-written-again", Severity.INFO, text, {"lost": lost}))

    def tell_phases(self, machine: "Machine") -> str | None:
        """Write the phases that are new, which would be too much for the log; returns the newest
        in one line."""
        self.phases_told, lines = machine.history_since(self.phases_told)
        for line in lines:
            members: list[int] = list(line.members)
            fields = {"phase": line.phase, "reason": line.reason, "members": members}
            text = f"{line.phase}: {line.reason}."
            self.write(LogEvent("phase", Severity.INFO, text, dict(fields)))
        if not lines:
            return None
        known = ", ".join(map(str, lines[-1].members)) or "none"
        return f"Host {self._host_id}: {lines[-1].phase}, members {known}"

    def _line(self, event: LogEvent) -> bytes:
        told: dict[str, Any] = {
            "time": round(time.time(), 6),
            "boot_ms": time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
            "sequence": self._sequence,
            "host_id": self._host_id,
            "name": event.name,
            "severity": str(event.severity),
            "text": event.text,
        }
        # What an event says of another host must not hide who wrote it.
        told |= {f"about_{key}" if key in told else key: v for key, v in event.fields.items()}
        return json.dumps(told, default=str).encode() + b"\n"

    def _append(self, line: bytes) -> None:
        if self._file is None or os.fstat(self._file).st_nlink == 0:
            self.close()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self._directory / FILE, flags, 0o644)
        size = os.fstat(self._file).st_size
        if size + len(line) > FILE_MAX_BYTES:
            os.rename(self._directory / FILE, self._directory / FORMER)
            self.close()
            self._append(line)
            return
        # A full disk may have taken the half of a line.
        if self._lost and size:
            line = b"\n" + line
        if os.write(self._file, line) < len(line):
            raise OSError("the disk is full")

    def close(self) -> None:
        """No error when called twice; the next event opens the file again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Reader:
    """Reads the file of a host from its beginning, and what is added to it, across its changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: int | None = None
        self._rest = b""
        self._former: list[dict[str, Any]] = []
        try:
            content = (directory / FORMER).read_bytes()
        except OSError:
            return
        self._former = [event for line in content.split(b"\n") if (event := _parsed(line))]

    def read(self) -> list[dict[str, Any]]:
        """The events since the last call; lines that a crash or a full disk tore are left out."""
        found, self._former = self._former, []
        found += self._lines()
        if self._is_former():
            self.close()
            found += self._lines()
        return found

    def _lines(self) -> list[dict[str, Any]]:
        if self._file is None:
            try:
                self._file = os.open(self._directory / FILE, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return []
            self._rest = b""
        data = self._rest
        while part := os.read(self._file, 1 << 16):
            data += part
        *lines, self._rest = data.split(b"\n")
        return [event for line in lines if (event := _parsed(line))]

    def _is_former(self) -> bool:
        if self._file is None:
            return False
        try:
            present = (self._directory / FILE).stat()
        except OSError:
            return False
        return present.st_ino != os.fstat(self._file).st_ino

    def close(self) -> None:
        """No error when called twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("time"), int | float):
        return None
    texts = (event.get(key) for key in ("name", "severity", "text"))
    return event if all(isinstance(text, str) for text in texts) else None
