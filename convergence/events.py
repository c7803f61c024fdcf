"""Everything that enters and leaves the convergence machine: small frozen records.

Every input carries ``now_ms``, the boot-time clock in whole milliseconds at the moment the agent
handed it over.  Outputs are carried out by the agent in the order in which they stand: a
``MapsChanged`` that releases buckets comes before the ``SendFrame`` that tells the others.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from convergence.auth import Keyring
from convergence.change_frame import ChangeName
from convergence.clients import ClientKey

if TYPE_CHECKING:
    from convergence.state import HostConfig


class CommandError(Exception):
    """The operator's fault: a command that makes no sense here.  Nothing was changed."""


# ---------------------------------------------------------------- inputs


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A heartbeat without its Ethernet header; ``received_ms`` is the kernel's receive time."""

    now_ms: int
    payload: bytes
    received_ms: int
    source_mac: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: due at ``Machine.next_deadline_ms()``, harmless at any other time."""

    now_ms: int


class Command(Enum):
    """What an operator (or the agent's configuration) tells the host to do."""

    START = "start"
    STOP = "stop"
    DRAINSTOP = "drainstop"
    DRAIN_COMPLETE = "drain-complete"
    """From the agent: a draining host has no connection left, or the time-out ended it.

    With extended affinity said twice: after the first time the host still drains, and accepts
    nobody whom it remembers; the second comes from a look at the connections made since."""
    ENABLE_RULE = "enable"
    DISABLE_RULE = "disable"
    DRAIN_RULE = "drain"
    SET_WEIGHT = "set-weight"
    SET_PRIORITIES = "set-priorities"
    SET_KEYRING = "set-keyring"


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A command; a bad one raises ``CommandError`` and changes nothing.

    ``host_code``: a fresh random 32-bit number for START.  ``slots``: the rule slots of a rule
    command.  ``load_weight`` 0..100 for SET_WEIGHT.  ``handling_priorities``, one per rule, for
    SET_PRIORITIES.  ``keyring`` for SET_KEYRING.  ``force``: START although unverifiable or foreign
    heartbeats for this cluster were heard.
    """

    now_ms: int
    command: Command
    host_code: int = 0
    slots: tuple[int, ...] = ()
    load_weight: int = 0
    handling_priorities: tuple[int, ...] = ()
    force: bool = False
    keyring: Keyring = Keyring()


@dataclass(frozen=True, slots=True)
class IdleScanned:
    """A finished scan of the host's sockets that began at ``began_ms``.

    ``idle``: per slot the map of buckets in which no socket but LISTEN or TIME_WAIT was found.
    ``syn_cookie_ms``: when a SYN cookie was last sent, None when never.
    """

    now_ms: int
    began_ms: int
    idle: tuple[int, ...]
    syn_cookie_ms: int | None


@dataclass(frozen=True, slots=True)
class HostProbed:
    """The answer to a ``ProbeHost``: ``gone`` after three unanswered ARP / NS probes."""

    now_ms: int
    host_id: int
    host_code: int
    gone: bool


@dataclass(frozen=True, slots=True)
class ChangeProposed:
    """The operator wants this change made by all members at once.

    ``change``: at most ``change_frame.BODY_MAX_BYTES``.  Aborted at ``until_ms`` at the latest.
    Raises ``CommandError`` when no change can be made now.
    """

    now_ms: int
    change: bytes
    until_ms: int


@dataclass(frozen=True, slots=True)
class ChangeStaged:
    """The answer to a ``StageChange``: staged durably, or not at all and why."""

    now_ms: int
    change: ChangeName
    config: "HostConfig | None"
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class ConfigurationRecalled:
    """The answer to a ``RecallConfiguration``: the configuration as it was kept."""

    now_ms: int
    config: "HostConfig"


@dataclass(frozen=True, slots=True)
class ClientsListed:
    """The answer to ``ListClients``: whom this host remembers there, the last heard first."""

    now_ms: int
    serial: int
    keys: tuple[ClientKey, ...]


@dataclass(frozen=True, slots=True)
class ClientsForgotten:
    """Clients in claimed buckets were silent for too long, or were lost: they are accepted no more,
    and the others must be told."""

    now_ms: int


Input = (
    FrameReceived
    | Tick
    | CommandReceived
    | IdleScanned
    | HostProbed
    | ChangeProposed
    | ChangeStaged
    | ConfigurationRecalled
    | ClientsListed
    | ClientsForgotten
)


# ---------------------------------------------------------------- outputs


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send this heartbeat (1496 bytes, without Ethernet header) now."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class MapsChanged:
    """Install these maps, one per slot (rules in order, the default rule last).

    ``current``: buckets that this host accepts while ``valid_until_ms`` has not passed.
    ``orphan``: buckets in which a segment without a socket may be answered with RST.
    ``draining``: accept nothing new at all.  ``claimed``: other hosts' buckets in which this host
    accepts the clients that it remembers; empty means none in any slot.
    """

    current: tuple[int, ...]
    orphan: tuple[int, ...]
    draining: bool
    valid_until_ms: int
    claimed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    """The maps are unchanged; they are valid until ``valid_until_ms``."""

    valid_until_ms: int


@dataclass(frozen=True, slots=True)
class ProbeHost:
    """Ask by ARP / NS whether the kernel of a host lost by silence still answers."""

    host_id: int
    host_code: int
    dedicated_ip_address: IPv4Address


@dataclass(frozen=True, slots=True)
class ListClients:
    """Answer with ``ClientsListed``: whom the data plane remembers in these buckets, per slot.

    Asked after the maps were installed that no longer hold these buckets, so that none is missing.
    """

    serial: int
    claimed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ForgetClients:
    """Cease to remember these clients before going on: they are not on the list."""

    keys: tuple[ClientKey, ...]


@dataclass(frozen=True, slots=True)
class KeepClients:
    """Remember the clients of the rules in these slots only: other rules, or the end of a drain."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExceptionsChanged:
    """Leave these clients to the hosts with these ids, and these to nobody any more."""

    added: dict[ClientKey, int]
    removed: tuple[ClientKey, ...]


class Severity(StrEnum):
    """How much an operator should care."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Something worth telling; ``name`` is stable, ``text`` is one English sentence."""

    name: str
    severity: Severity
    text: str
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageChange:
    """Apply this change to a copy of the configuration, keep it durably, say ``ChangeStaged``."""

    name: ChangeName
    change: bytes


@dataclass(frozen=True, slots=True)
class ConfigurationSwitched:
    """From now on the configuration with this digest is in force; the maps follow."""

    config_digest: bytes


@dataclass(frozen=True, slots=True)
class RecallConfiguration:
    """The others run a configuration that this host keeps beside its own: it is wanted back."""

    config_digest: bytes


Output = (
    SendFrame
    | MapsChanged
    | LeaseRenewed
    | ProbeHost
    | LogEvent
    | StageChange
    | ConfigurationSwitched
    | RecallConfiguration
    | ListClients
    | ForgetClients
    | KeepClients
    | ExceptionsChanged
)


# ---------------------------------------------------------------- what a user may ask


class HostState(StrEnum):
    """The state that `softnlb query` shows.  SUSPENDED is the agent's: the machine is stopped."""

    CONVERGING = "converging"
    CONVERGED = "converged"
    DRAINING = "draining"
    STOPPED = "stopped"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member as this host sees it; ``current`` is the newest map that it showed, per slot."""

    host_id: int
    host_code: int
    dedicated_ip_address: IPv4Address
    phase: str
    draining: bool
    age_ms: int
    load_weights: tuple[int, ...]
    current: tuple[int, ...]
    key_id: int
    """Of the key that signs its frames; 0: they are not signed."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """One line of the convergence history: a phase entered, and why."""

    at_ms: int
    phase: str
    reason: str
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """All that a query shows of the machine.  ``members`` includes this host, sorted by id."""

    host_id: int
    state: HostState
    phase: str
    generation: int
    default_host_id: int | None
    members: tuple[MemberStatus, ...]
    convergence_count: int
    last_converged_ms: int | None
    history: tuple[Convergence, ...]
    rule_states: tuple[str, ...]
    """Per slot: "enabled", "disabled" or "draining" on this host."""
    valid_until_ms: int
