"""The state of one host's convergence machine, and the few ways in which it is changed.

``lease``, ``membership``, ``losing``, ``conflicts``, ``phases``, ``orphans`` and ``commands`` are
functions on this state; ``machine`` says in which order they run.
"""

import hashlib
import struct
from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from convergence.auth import Keyring, ReplayGuard
from convergence.change import Staging
from convergence.clients import Affinity
from convergence.events import Convergence, LogEvent, Output, Severity
from convergence.heartbeat import (
    CODE_TAG,
    DRAINING,
    JOINING,
    LEAVING,
    NEWCOMER,
    Statement,
    code_tag,
)
from convergence.peers import HeardHosts, Peer, Word, identity
from convergence.rules import DEFAULT_RULE, HOST_ID_MAX, FilteringMode, PortRule
from convergence.stages import Phase, RuleState, Stage
from convergence.telling import Rarely

FOREVER = 1 << 62
NEVER = -FOREVER

TRIGGER_GAP_MS = 5
"""At most one frame per this time, besides the periodic ones."""

EMBARGO_PERIODS = 2
"""A host left alone waits this much longer, and its lease among two is as much longer."""

SETTLE_MS = 3000
"""Before a released bucket may be called idle, and a taken one may answer orphans."""

HISTORY_MAX = 100
OWN_CODES_MAX = 64
_CODE_SEED = struct.Struct("<IQ")


def view_digest(members: dict[int, bytes]) -> int:
    """The digest of a view: over the identities of its members by host id."""
    digest = hashlib.sha256(b"".join(members[host_id] for host_id in sorted(members))).digest()
    return int.from_bytes(digest[:8], "little")


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What the machine must know of this host and its cluster.

    ``rules``: the user's, without the default rule, which gets the last slot.  ``load_weights``
    (0..100) and ``handling_priorities`` (1..32): one per rule.  ``config_digest``: 8 bytes over
    all that hosts must share; the keyring is not part of that.  ``hash_seed``: with another one
    buckets mean other clients.  ``kept_digests``: of the configurations that this host keeps on
    its disk beside this one.
    """

    host_id: int
    cluster_ip_address: IPv4Address
    dedicated_ip_address: IPv4Address
    rules: tuple[PortRule, ...]
    load_weights: tuple[int, ...]
    handling_priorities: tuple[int, ...]
    config_digest: bytes
    keyring: Keyring = Keyring()
    period_ms: int = 1000
    tolerance: int = 5
    hash_seed: int = 0
    kept_digests: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.host_id <= HOST_ID_MAX:
            raise ValueError(f"host id {self.host_id} is not within 1..{HOST_ID_MAX}")
        if not len(self.rules) == len(self.load_weights) == len(self.handling_priorities):
            raise ValueError("one load weight and one handling priority per port rule")
        if len(self.config_digest) != 8:
            raise ValueError("the configuration digest has 8 bytes")


@dataclass(slots=True)
class Holding:
    """Facts that hold a starting host back: frames that it cannot join with."""

    first_ms: int
    last_ms: int
    count: int = 1


@dataclass
class State:
    """Everything that the machine remembers."""

    config: HostConfig
    now_ms: int
    # fixed
    period_ms: int = field(init=False)
    death_ms: int = field(init=False)
    """Tolerance x period: silence that means death."""
    lease_ms: int = field(init=False)
    rules: tuple[PortRule, ...] = field(init=False)
    rule_codes: tuple[int, ...] = field(init=False)
    # who I am
    stage: Stage = Stage.STOPPED
    code: int = 0
    own_codes: list[int] = field(default_factory=list)
    sequence: int = 0
    joining: bool = False
    admit_by_ms: int | None = None
    """When the newcomers that wait for more newcomers come in anyway."""
    newcomer: bool = True
    forced: bool = False
    started_ms: int = 0
    held_until_ms: int = 0
    held_by: dict[tuple[str, int], Holding] = field(default_factory=dict)
    stop_by_ms: int = 0
    stage_after_leaving: Stage = Stage.STOPPED
    rule_states: list[RuleState] = field(default_factory=list)
    load_weights: list[int] = field(default_factory=list)
    # whom I hear, and who is a member beside me
    heard: HeardHosts = field(default_factory=HeardHosts)
    replay: ReplayGuard = field(default_factory=ReplayGuard)
    strangers: dict[int, Peer] = field(default_factory=dict)
    duplicate: Peer | None = None
    view: dict[int, Peer] = field(default_factory=dict)
    known_identity: dict[int, bytes] = field(default_factory=dict)
    """Per host id what the view digest was computed from."""
    words: dict[tuple[int, int], Word] = field(default_factory=dict)
    """Per host id and code whom it said last to hear."""
    unheard_since: dict[int, int] = field(default_factory=dict)
    """Per host id since when I know that it and I do not hear each other."""
    left: dict[int, int] = field(default_factory=dict)
    """Per host id when I heard that it leaves."""
    told: dict[int, int] = field(default_factory=dict)
    """Per host id when, by the word of an established host that is no member, it was heard last."""
    hinted: dict[int, int] = field(default_factory=dict)
    """Likewise by the word of any host that is no member, be it in that one's view or not."""
    candidates: list[Peer] = field(default_factory=list)
    others: int = 0
    view_digest: int = 0
    # convergence
    phase: Phase = Phase.UNKNOWN
    generation: int = 0
    said_generation: int = 0
    current: list[int] = field(default_factory=list)
    ready: list[int] | None = None
    target: list[int] | None = None
    agree: int = 0
    stable1: int = 0
    stable2: int = 0
    embargo_until_ms: int = 0
    history: deque[Convergence] = field(default_factory=lambda: deque(maxlen=HISTORY_MAX))
    history_length: int = 0
    """Lines ever appended to the history, which forgets the oldest."""
    convergence_count: int = 0
    last_converged_ms: int | None = None
    # the lease
    awake_ms: int = 0
    known_heard_ms: int = 0
    two_view: bool = False
    """Only one other host can give me up, and it waits longer."""
    two_view_sent_ms: int = NEVER
    established_sent_ms: int = FOREVER
    """When I first said that I am no newcomer any more."""
    judge_after_ms: int = 0
    expiry_ms: int = FOREVER
    sends: list[int] = field(default_factory=list)
    # a change of the whole cluster
    staging: Staging = field(default_factory=Staging)
    # idle and orphaned buckets
    idle: list[int] = field(default_factory=list)
    orphan: list[int] = field(default_factory=list)
    orphans_stale: bool = False
    orphans_due_ms: int = FOREVER
    released: list[tuple[int, int, int]] = field(default_factory=list)
    acquired: list[tuple[int, int, int]] = field(default_factory=list)
    lost: dict[tuple[int, int], Peer] = field(default_factory=dict)
    probe_ms: int = FOREVER
    # what goes out
    outputs: list[Output] = field(default_factory=list)
    statement: Statement | None = None
    urgent: bool = False
    last_send_ms: int = 0
    next_send_ms: int = 0
    installed: tuple[tuple[int, ...], ...] | None = None
    installed_until_ms: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    rarely: Rarely = field(default_factory=Rarely)

    def __post_init__(self) -> None:
        config = self.config
        self.period_ms = config.period_ms
        self.death_ms = config.tolerance * config.period_ms
        self.lease_ms = self.death_ms - config.period_ms
        self.index = config.host_id - 1
        self.bit = 1 << self.index
        self.tag = 0
        self.cluster_ip = config.cluster_ip_address.packed
        self.staging.kept = dict.fromkeys(config.kept_digests)
        self.obey(config)

    def obey(self, config: HostConfig) -> None:
        """Go by these rules, holding nothing.  Identity and timers stay as they are."""
        self.config = config
        self.rules = (*config.rules, DEFAULT_RULE)
        self.rule_codes = (*(rule.code for rule in config.rules), 0)
        slots = len(self.rules)
        self.current = [0] * slots
        self.idle = [0] * slots
        self.orphan = [0] * slots
        self.rule_states = [RuleState.ENABLED] * slots
        self.load_weights = list(config.load_weights)
        self.single_host_slots = tuple(
            slot
            for slot, rule in enumerate(config.rules)
            if rule.filtering_mode is FilteringMode.SINGLE_HOST
        )
        self.affinity = Affinity.of(self.rules)

    # ------------------------------------------------------------ what I say

    @property
    def draining(self) -> bool:
        """This host counts as weight 0."""
        return self.stage in (Stage.DRAINING, Stage.STOPPING)

    @property
    def flags(self) -> int:
        """Flags of my frame."""
        return (
            (JOINING if self.joining else 0)
            | (DRAINING if self.draining else 0)
            | (LEAVING if self.stage is Stage.LEAVING else 0)
            | (NEWCOMER if self.newcomer else 0)
        )

    def weights(self) -> tuple[int, ...]:
        """Per slot: load weight, handling priority, or 0 where I take nothing."""
        numbers = []
        for slot, rule in enumerate(self.config.rules):
            if self.rule_states[slot] is not RuleState.ENABLED:
                numbers.append(0)
            elif rule.filtering_mode is FilteringMode.SINGLE_HOST:
                numbers.append(self.config.handling_priorities[slot])
            elif rule.filtering_mode is FilteringMode.MULTIPLE_HOSTS:
                numbers.append(self.load_weights[slot])
            else:
                numbers.append(0)
        numbers.append(self.config.host_id)
        return tuple(numbers)

    def changed(self) -> None:
        """Something that my frame says has changed: say it at once."""
        self.statement = None
        self.urgent = True

    def hold(self, slot: int, bits: int) -> None:
        """Hold exactly these buckets of a slot from now on."""
        old = self.current[slot]
        if bits == old:
            return
        self.current[slot] = bits
        gained, released = bits & ~old, old & ~bits
        if gained:
            self.acquired.append((self.now_ms, slot, gained))
            self.idle[slot] &= ~gained
            self.affinity.own(slot, gained)
        if released:
            self.released.append((self.now_ms, slot, released))
        self.orphans_stale = True
        self.changed()

    def release_all(self) -> None:
        """Hold nothing, and keep no client."""
        for slot in range(len(self.current)):
            self.hold(slot, 0)
        self.unclaim()

    def unclaim(self, *slots: int) -> None:
        """Keep no client in other hosts' buckets of these slots, without any of all."""
        claimed = self.affinity.claimed
        for slot in slots or range(len(claimed)):
            if claimed[slot]:
                self.released.append((self.now_ms, slot, claimed[slot]))
                self.affinity.own(slot, claimed[slot])

    # ------------------------------------------------------------ who is who

    def new_code(self, host_code: int) -> None:
        """Be a new host to the others from now on."""
        self.code = host_code
        self.own_codes.append(host_code)
        del self.own_codes[:-OWN_CODES_MAX]

    def next_code(self) -> int:
        """A host code that follows from the last one; the first one is drawn by the agent."""
        code = self.code
        while True:
            seed = _CODE_SEED.pack(code, self.sequence)
            code = int.from_bytes(hashlib.sha256(seed).digest()[:4], "little")
            if code_tag(code) not in (self.tag, self.tag ^ CODE_TAG):
                return code

    def listen(self, joining: bool) -> None:
        """Begin or end to listen: what I wait for is to be heard as what I am now."""
        self.joining = joining
        self.admit_by_ms = None
        self.tag = code_tag(self.code, joining)
        self.heard.forget_masks()
        self.changed()

    def recompute_view(self) -> None:
        """Derive all that depends on who is a member."""
        members = {peer.host_id: peer.identity for peer in self.view.values()}
        members[self.config.host_id] = self.own_identity()
        self.known_identity = members
        self.view_digest = view_digest(members)
        self.others = 0
        for peer in self.view.values():
            self.others |= peer.bit
            self.expiry_ms = min(self.expiry_ms, peer.received_ms + self.death_ms)
        self.recompute_candidates()
        self.changed()

    def own_identity(self) -> bytes:
        """What the view digest covers of me."""
        return identity(self.config.host_id, self.code, self.draining, self.weights())

    def is_view_with_me(self, said: Statement, *more: Peer) -> bool:
        """Whether the view that this frame shows is one of hosts that I know, and of me as I am."""
        theirs = {self.config.host_id: self.own_identity()}
        for other in (*self.heard.primary.values(), *self.view.values(), *more):
            if said.view & other.bit:
                theirs[other.host_id] = other.identity
        return view_digest(theirs) == said.view_digest

    def recompute_candidates(self) -> None:
        """Hosts that are heard and are no members."""
        view = self.view
        self.candidates = [
            peer for peer in self.heard.primary.values() if view.get(peer.host_id) is not peer
        ]

    @property
    def members(self) -> tuple[int, ...]:
        """Host ids of my view, sorted; none while stopped."""
        if self.stage is Stage.STOPPED:
            return ()
        return tuple(sorted((self.config.host_id, *self.view)))

    @property
    def default_host_id(self) -> int | None:
        """The lowest member that is not draining; among draining ones only, the lowest.

        None for a newcomer.
        """
        if self.stage is Stage.STOPPED or self.newcomer:
            return None
        able = [peer.host_id for peer in self.view.values() if not peer.statement.flags & DRAINING]
        if not self.draining:
            able.append(self.config.host_id)
        return min(able) if able else min(self.members)

    # ------------------------------------------------------------ what is told

    def log(self, name: str, severity: Severity, text: str, **fields: object) -> None:
        """Tell the operator."""
        self.outputs.append(LogEvent(name, severity, text, fields))

    def log_rarely(
        self, name: str, source: bytes, severity: Severity, text: str, **fields: object
    ) -> None:
        """Tell the operator, once per name, source and minute."""
        if self.rarely.may_tell(name, source, self.now_ms):
            self.log(name, severity, text, **fields)

    def count(self, kind: str) -> None:
        """Count a frame that was not believed."""
        self.counters[kind] = self.counters.get(kind, 0) + 1

    def note_history(self, reason: str) -> None:
        """Append the present phase to the convergence history."""
        self.history_length += 1
        self.history.append(Convergence(self.now_ms, self.phase.label, reason, self.members))
