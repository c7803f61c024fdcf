"""Health probes, which NLB never had: a port rule whose service is dead leaves this host.

Off unless a port rule asks for one.  The looking is done by a program of its own
(softnlb/prober.py); here its words become the commands that an operator would give.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from convergence.events import Command, CommandError, LogEvent, Severity
from softnlb.config import HealthProbe, ProbeAction

PROBER = Path(__file__).with_name("prober.py")
ACTIONS: dict[ProbeAction, tuple[Command, str]] = {
    "drain": (Command.DRAIN_RULE, "draining"),
    "disable": (Command.DISABLE_RULE, "disabled"),
}
"""The command, and the state of a rule that obeyed it (``Status.rule_states``)."""


class Health:
    """The prober of a started host, what it found, and what was done about it.

    ``order``: gives a rule command to the machine; ``tell``: logs an event.
    """

    def __init__(
        self,
        order: Callable[[Command, tuple[int, ...]], None],
        rule_states: Callable[[], tuple[str, ...]],
        tell: Callable[[LogEvent], None],
    ) -> None:
        self._order = order
        self._rule_states = rule_states
        self._tell = tell
        self._probes: dict[int, HealthProbe] = {}
        self._found: dict[int, str] = {}
        self._acted: set[int] = set()
        self._prober: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def start(self, probes: tuple[HealthProbe, ...]) -> None:
        """Begin to look, and forget what earlier looks had found."""
        self._probes = {probe.slot: probe for probe in probes}
        self._found.clear()
        for slot in tuple(self._acted):
            self._enable(slot)
        if not probes:
            return
        try:
            prober = subprocess.Popen(
                [sys.executable, "-I", str(PROBER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            self._tell_end(f"cannot be started ({error.strerror})")
            return
        self._prober = prober
        if prober.stdin is None or prober.stdout is None:
            raise RuntimeError("pipes asked for and not given")
        prober.stdin.write(json.dumps([asdict(probe) for probe in probes]).encode() + b"\n")
        prober.stdin.flush()
        os.set_blocking(prober.stdout.fileno(), False)

    def stop(self) -> None:
        """End the prober; what it did to the rules stays until the next start."""
        prober, self._prober, self._rest = self._prober, None, b""
        if prober is not None:
            prober.kill()
            prober.communicate()

    def fileno(self) -> int | None:
        """Readable when the prober has something to say; None when there is none."""
        if self._prober is None or self._prober.stdout is None:
            return None
        return self._prober.stdout.fileno()

    def read(self) -> bool:
        """Do what the prober's words ask for; False when it has ended."""
        if (descriptor := self.fileno()) is None:
            return False
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            found = json.loads(line)
            self._heard(self._probes[found["slot"]], found["alive"], found["reason"])
        if not data:
            self._tell_end("ended")
        return bool(data)

    def operator_decided(self, slots: tuple[int, ...]) -> None:
        """An operator's command stands, whatever the service does, until it changes again."""
        self._acted.difference_update(slots)

    def of(self, slot: int) -> str | None:
        """ "alive", "unknown", or why the service of a rule is dead; None: nobody looks."""
        return self._found.get(slot, "unknown") if slot in self._probes else None

    def _heard(self, probe: HealthProbe, alive: bool, reason: str) -> None:
        slot = probe.slot
        before = self._found.get(slot)
        self._found[slot] = "alive" if alive else reason
        command, done = ACTIONS[probe.action]
        if alive:
            if before is not None:
                text = f"The service of port rule {slot + 1} is alive again."
                self._tell(LogEvent("service-alive", Severity.INFO, text, {"slot": slot}))
            if slot in self._acted and self._rule_states()[slot] == done:
                self._enable(slot)
            self._acted.discard(slot)
            return
        text = f"The service of port rule {slot + 1} is dead: {reason}."
        self._tell(LogEvent("service-dead", Severity.WARNING, text, {"slot": slot}))
        if self._rule_states()[slot] == "enabled" and self._give(command, slot):
            self._acted.add(slot)

    def _tell_end(self, how: str) -> None:
        text = f"The prober {how}: no service is looked at until the next start of this host."
        self._tell(LogEvent("health-probes-ended", Severity.ERROR, text))

    def _enable(self, slot: int) -> None:
        self._acted.discard(slot)
        self._give(Command.ENABLE_RULE, slot)

    def _give(self, command: Command, slot: int) -> bool:
        try:
            self._order(command, (slot,))
        except CommandError as error:
            self._tell(LogEvent("health-probe-refused", Severity.WARNING, str(error)))
            return False
        return True
