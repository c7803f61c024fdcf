"""Changes of the whole cluster, the agent's part: staging in a child, switching, the files.

What is staged lies in the host's own directory beside the text that was in force, written before
the machine may show its digest.  So a host that dies in the middle has both when it starts again.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from convergence.change import KEPT_MAX
from convergence.events import (
    ChangeProposed,
    ChangeStaged,
    ConfigurationRecalled,
    ConfigurationSwitched,
    LogEvent,
    RecallConfiguration,
    Severity,
    StageChange,
)
from softnlb import durable
from softnlb.config import ClusterConfig, ConfigError, load
from softnlb.errors import ReturnCode, SoftnlbError
from softnlb.serving import host_config

if TYPE_CHECKING:
    from softnlb.agent import Agent

FILE = "staged.json"
TIMEOUT_MAX_S = 3600.0
REFUSAL_MAX_CHARACTERS = 600


class Known(NamedTuple):
    """A configuration, and the text of the file that says it."""

    config: ClusterConfig
    text: str


def record(directory: Path) -> dict[str, str]:
    """The kept texts by digest in hex, the newest last.  What cannot be read counts as nothing."""
    try:
        found = json.loads((directory / FILE).read_text())["configurations"]
        return {str(name): str(text) for name, text in found.items() if bytes.fromhex(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


class Changes:
    """``loop``: the agent's, which waits for the children."""

    def __init__(self, agent: Agent, loop: selectors.BaseSelector) -> None:
        self._agent = agent
        self._loop = loop
        self._known: dict[bytes, Known] = {}
        self._probes_changed = False
        self.saving = False
        """The file does not say yet what is in force."""
        self._waits_for_the_file: StageChange | None = None

    def kept_digests(self) -> tuple[bytes, ...]:
        """Of what lies staged beside the present configuration; empty when nothing fits it."""
        present = self._agent.config.digest
        digests = tuple(bytes.fromhex(name) for name in record(self._agent.directory))
        return tuple(one for one in digests if one != present) if present in digests else ()

    # ------------------------------------------------------------ what operators ask for

    def propose(self, change: dict[str, Any], timeout_s: float) -> None:
        """Begin to change the whole cluster.  Raises CommandError and SoftnlbError."""
        if not 0 < timeout_s <= TIMEOUT_MAX_S:
            raise SoftnlbError(
                f"a time-out is a number of seconds up to {TIMEOUT_MAX_S:g}",
                code=ReturnCode.BAD_PARAMS,
            )
        if self._agent.serving is None:
            raise SoftnlbError("the host is stopped", code=ReturnCode.STOPPED)
        now_ms = self._agent.now_ms()
        until_ms = now_ms + int(timeout_s * 1000)
        self._agent.step(ChangeProposed(now_ms, json.dumps(change).encode(), until_ms))

    def status(self) -> dict[str, Any]:
        """How the last change that was begun on this host goes, or went."""
        machine = self._agent.machine
        change, outcome = machine.change, machine.change_outcome
        if change is not None and change[0].coordinator == self._agent.config.host_id:
            state, reason = "staging", ""
        elif outcome is None:
            state, reason = "none", ""
        else:
            reason = outcome[1]
            state = "aborted" if reason else "done"
        return {
            "state": state,
            "reason": reason,
            "saved": not self.saving,
            "waiting_for": list(machine.change_waits_for),
            "configuration_digest": self._agent.config.digest.hex(),
        }

    # ------------------------------------------------------------ what the machine asks for

    def obey(self, output: StageChange | RecallConfiguration | ConfigurationSwitched) -> None:
        """Carry out an output of the machine; what takes time a child does."""
        config, directory = self._agent.config, self._agent.directory
        if isinstance(output, StageChange) and self.saving:
            self._waits_for_the_file = output
        elif isinstance(output, StageChange):
            work = partial(_stage, config, directory, output.change)
            self._begin(work, partial(self._staged, output))
        elif isinstance(output, RecallConfiguration):
            text = record(directory).get(output.config_digest.hex())
            if text is not None:
                self._begin(partial(_recall, config.path, text), self._recalled)
        else:
            self._switch(output.config_digest)

    def _begin(self, work: Callable[[], object], done: Callable[[Any], None]) -> None:
        read_end, write_end = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:  # too many processes; a change that nobody stages times out
            os.close(read_end)
            os.close(write_end)
            self.saving = False
            self._tell_not_saved(f"No process can be started: {error.strerror}")
            return
        if pid == 0:
            os.close(read_end)
            _work_and_exit(work, write_end)
        os.close(write_end)
        self._loop.register(
            read_end, selectors.EVENT_READ, partial(self._answered, read_end, pid, done)
        )

    def _answered(self, read_end: int, pid: int, done: Callable[[Any], None]) -> None:
        self._loop.unregister(read_end)
        with os.fdopen(read_end, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        done(pickle.loads(answer) if answer else "the process that reads the configuration died")

    def _staged(self, asked: StageChange, answer: tuple[Known, Known] | str) -> None:
        now_ms = self._agent.now_ms()
        if isinstance(answer, str):
            self._agent.step(ChangeStaged(now_ms, asked.name, None, answer))
            return
        self._known |= {one.config.digest: one for one in answer}
        _present, wanted = answer
        self._agent.step(ChangeStaged(now_ms, asked.name, host_config(wanted.config)))
        agent = self._agent
        needed = {agent.config.digest, *agent.machine.kept_digests}
        self._known = {digest: one for digest, one in self._known.items() if digest in needed}

    def _recalled(self, answer: tuple[Known, Known] | str) -> None:
        if isinstance(answer, str):
            self._tell_not_saved(f"What was staged cannot be taken up: {answer}")
            return
        self._known |= {one.config.digest: one for one in answer}
        now_ms = self._agent.now_ms()
        self._agent.step(ConfigurationRecalled(now_ms, host_config(answer[1].config)))

    def _switch(self, digest: bytes) -> None:
        agent = self._agent
        before, wanted = agent.config, self._known[digest]
        agent.config = replace(wanted.config, keyring=before.keyring)
        agent.sockets.void()
        if agent.serving is not None:
            agent.serving.reconfigure(agent.config)
        self._probes_changed = bool(before.health_probes or agent.config.health_probes)
        if before.remote_control_port != agent.config.remote_control_port:
            agent.remote.reopen()
        former = self._known.get(before.digest)
        base = former.text if former is not None else None
        self.saving = True
        self._begin(partial(_save, before.path, base, wanted.text), self._saved)

    def _saved(self, answer: str) -> None:
        self.saving = False
        waits, self._waits_for_the_file = self._waits_for_the_file, None
        if waits is not None:
            self.obey(waits)
        if answer:
            self._tell_not_saved(f"The file still says what was in force before: {answer}")

    def _tell_not_saved(self, text: str) -> None:
        self._agent.tell(LogEvent("configuration-not-saved", Severity.ERROR, text))

    def after_step(self) -> None:
        """What must not happen while outputs of the machine are carried out."""
        if self._probes_changed:
            self._probes_changed = False
            self._agent.look_at_services()


# ---------------------------------------------------------------- in the child


def _work_and_exit(work: Callable[[], object], write_end: int) -> None:
    status = 1
    try:
        try:
            result = work()
        except ConfigError as error:
            result = "; ".join(_sentence(problem) for problem in error.problems)
        except SoftnlbError as error:
            result = str(error)
        except OSError as error:
            what = error.filename or "the configuration"
            result = f"{what} cannot be written: {error.strerror or error} (IO_ERROR)"
        if isinstance(result, str):
            result = result[:REFUSAL_MAX_CHARACTERS]
        with os.fdopen(write_end, "wb") as pipe:
            pickle.dump(result, pipe)
        status = 0
    finally:
        os._exit(status)  # never run the parent's clean-up code in the child


def _sentence(problem: Any) -> str:
    """One error of the changed file, without the name of the file."""
    return str(problem).removeprefix(f"{problem.file}:").strip()


def _stage(config: ClusterConfig, directory: Path, change: bytes) -> tuple[Known, Known]:
    """Present and changed configuration; both lie in ``directory`` when this returns."""
    from softnlb.rule_edit import checked, edited, refuse_what_needs_a_stop

    present = load(config.path)
    text = config.path.read_text(encoding="utf-8-sig")
    if present.digest != config.digest:
        raise SoftnlbError(
            f"{config.path} says something else than this host serves by: reload it first",
            code=ReturnCode.BAD_PARAMS,
        )
    try:
        wanted = json.loads(change)
    except (ValueError, RecursionError):
        raise SoftnlbError("the change is no JSON", code=ReturnCode.BAD_PARAMS) from None
    new_text = edited(text, wanted)
    fresh = checked(config.path, new_text)
    refuse_what_needs_a_stop(present, fresh)
    durable.prove_writable(config.path)
    texts = record(directory)
    for digest, kept in ((present.digest.hex(), text), (fresh.digest.hex(), new_text)):
        texts.pop(digest, None)
        texts[digest] = kept
    while len(texts) > KEPT_MAX + 1:
        del texts[next(iter(texts))]
    durable.write(directory / FILE, json.dumps({"configurations": texts}))
    return Known(present, text), Known(fresh, new_text)


def _recall(path: Path, text: str) -> tuple[Known, Known]:
    """What the file says, and what was kept beside it."""
    from softnlb.rule_edit import checked

    present = Known(load(path), path.read_text(encoding="utf-8-sig"))
    return present, Known(checked(path, text), text)


def _save(path: Path, base: str | None, text: str) -> str:
    """Replace the file, unless somebody has edited it meanwhile; "" or why not."""
    with suppress(OSError):
        if base is not None and path.read_text(encoding="utf-8-sig") != base:
            return f"{path} was edited meanwhile"
    durable.write(path, text)
    return ""
