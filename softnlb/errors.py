"""Errors that end a command, each with its documented exit status and, where NLB has one for the
case, NLB's return code."""

from enum import IntEnum


class ReturnCode(IntEnum):
    """What NLB's management interface answers (WMI standard return values)."""

    OK = 1000
    ALREADY = 1001
    DRAIN_STOP = 1002
    BAD_PARAMS = 1003
    NOT_FOUND = 1004
    STOPPED = 1005
    CONVERGING = 1006
    CONVERGED = 1007
    DEFAULT = 1008
    DRAINING = 1009
    SUSPENDED = 1013
    MEDIA_DISCONNECTED = 1014
    REBOOT = 1050
    INIT_ERROR = 1100
    BAD_PASSW = 1101
    IO_ERROR = 1102
    TIMEOUT = 1103
    PORT_OVERLAP = 1150
    BAD_PORT_PARAMS = 1151
    MAX_PORT_RULES = 1152
    TRUNCATED = 1153
    REG_ERROR = 1154


class SoftnlbError(Exception):
    """Anything refused: unknown host, second agent on an interface, a rule that is not there.

    ``code``: NLB's name for the refusal; it ends the sentence.
    """

    exit_code = 1

    def __init__(self, *args: object, code: ReturnCode | None = None) -> None:
        super().__init__(*args)
        self.code = code

    def __str__(self) -> str:
        """The sentence, with NLB's return code where there is one."""
        sentence = super().__str__()
        return sentence if self.code is None else f"{sentence} ({self.code.name})"


class UsageError(SoftnlbError):
    """The command line or a configuration file is wrong; nothing was applied."""

    exit_code = 2


def bad_params(sentence: str) -> UsageError:
    """The refusal of what an operator typed or a file says, with NLB's name for it."""
    return UsageError(sentence, code=ReturnCode.BAD_PARAMS)


class NotRunningError(SoftnlbError):
    """The agent or lab that was asked for is not running."""

    exit_code = 3


class MachineError(SoftnlbError):
    """A privilege or kernel feature is missing; the text names the remedy in one sentence."""

    exit_code = 5


class DataPlaneUnavailable(MachineError):
    """This data plane cannot work on this machine; the text says why."""
