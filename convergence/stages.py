"""Where a host stands: its phase of convergence, the operator's wish, the state of a rule."""

from enum import Enum, IntEnum


class Phase(IntEnum):
    """The phases of convergence; the value rides in the frame."""

    UNKNOWN = 0
    CONVERGING_PHASE1 = 1
    STABLE_PHASE1 = 2
    CONVERGING_PHASE2 = 3
    STABLE_PHASE2 = 4
    CONVERGED = 5

    @property
    def label(self) -> str:
        """The name that NLB shows in its convergence history."""
        return _LABELS[self]


_LABELS = {
    Phase.UNKNOWN: "Unknown",
    Phase.CONVERGING_PHASE1: "ConvergingPhase1",
    Phase.STABLE_PHASE1: "StablePhase1",
    Phase.CONVERGING_PHASE2: "ConvergingPhase2",
    Phase.STABLE_PHASE2: "StablePhase2",
    Phase.CONVERGED: "Converged",
}


class Stage(Enum):
    """What the operator wants of the host, and how far a stop has come."""

    STOPPED = "stopped"
    STARTED = "started"
    DRAINING = "draining"
    """Drainstop: nothing new, a member until the last connection is gone."""
    STOPPING = "stopping"
    """Weight 0: the others take the buckets over."""
    LEAVING = "leaving"
    """Holds nothing; tells the others until none of them has it in its view."""


class RuleState(Enum):
    """What this host does with a rule; the values are those of ``Status.rule_states``."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    DRAINING = "draining"
