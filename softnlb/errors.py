"""Errors that end a command, each with its documented exit status."""


class SoftnlbError(Exception):
    """Anything refused: unknown host, second agent on an interface, a rule that is not there."""

    exit_code = 1


class UsageError(SoftnlbError):
    """The command line or a configuration file is wrong; nothing was applied."""

    exit_code = 2


class NotRunningError(SoftnlbError):
    """The agent or lab that was asked for is not running."""

    exit_code = 3


class MachineError(SoftnlbError):
    """A privilege or kernel feature is missing; the text names the remedy in one sentence."""

    exit_code = 5


class DataPlaneUnavailable(MachineError):
    """This data plane cannot work on this machine; the text says why."""
