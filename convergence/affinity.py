"""Extended affinity: a client keeps its host although its bucket moved.  Who may accept whom.

A host remembers the clients that it accepted, in its data plane; the machine knows none of them
until a bucket goes.  When an agreement takes a bucket from a host, it *claims* it: it goes on
accepting the clients that it remembers there, and nobody else.  It lists them to all members.

*Nobody takes a bucket before it has the lists of all members*, made in this generation for this
view, after each of them let go of what it had to.  What is on another member's list is an
*exception*: this host does not accept it, whoever owns the bucket.  So a client has one host:

* A list can only grow by letting go of a bucket, and whoever takes that bucket has the list first.
* It gets shorter when the claimant has ceased to accept, and only then tells the others.
* An exception is kept until its claimant says so, or is a member no more and the others have
  agreed, as they do before they take its buckets: the lease covers the one as it does the other.

Fail closed: lists that are not everywhere one period after a dead member would have been noticed
are given up by their claimants, and so is what does not fit into the others' tables; after a
partition all claims are, for both halves may have accepted a client.  Then the client has the
owner of its bucket, as without a time-out.
"""

from collections.abc import Iterable

from convergence import clients
from convergence.auth import sign
from convergence.clients import (
    EXCEPTIONS_HELD_MAX,
    EXCEPTIONS_MAX,
    NEVER_SENT,
    Affinity,
    ClientKey,
    ListFrame,
    ListHead,
    Received,
)
from convergence.events import (
    ClientsListed,
    ExceptionsChanged,
    ForgetClients,
    KeepClients,
    ListClients,
    SendFrame,
    Severity,
)
from convergence.heartbeat import NEWCOMER
from convergence.peers import Peer
from convergence.stages import Phase, RuleState, Stage
from convergence.state import State

REPEAT_PERIODS_MAX = 32
"""A list that got shorter is repeated, ever more rarely; at least once in this time."""
_NOBODY: frozenset[ClientKey] = frozenset()
_HANDING_OVER = (Phase.CONVERGING_PHASE2, Phase.STABLE_PHASE2)
_LISTING = (*_HANDING_OVER, Phase.CONVERGED)


# ---------------------------------------------------------------- my own list


def start(state: State) -> None:
    """Nothing is known at a start."""
    state.affinity.received.clear()
    state.affinity.ceased = False
    for host_id in list(state.affinity.exceptions):
        _except(state, host_id, _NOBODY)


def switch(state: State, former: Affinity, slots: tuple[int | None, ...]) -> None:
    """Other rules: keep no client, but leave to the others whom they may still keep.

    ``slots``: per slot that of the former rules whose holdings were carried over.  Whoever lags
    goes on accepting the clients of its list; where nothing is carried, nobody takes anything
    before all lists are known again.  Exceptions by old slots go when the old maps have gone.
    """
    affinity = state.affinity
    affinity.serial = affinity.first_serial = former.serial
    if not affinity.slots and not former.slots:
        return
    places = {old: slot for slot, old in enumerate(slots) if old is not None}
    for host_id, keys in former.exceptions.items():
        moved = frozenset(bytes((places[key[0]],)) + key[1:] for key in keys if key[0] in places)
        if moved:
            affinity.exceptions[host_id] = moved
    before = _NOBODY.union(*former.exceptions.values())
    after = _NOBODY.union(*affinity.exceptions.values())
    added = {
        key: host_id
        for host_id, keys in affinity.exceptions.items()
        for key in keys
        if key not in before
    }
    if added:
        state.outputs.append(ExceptionsChanged(added, ()))
    affinity.switched = True
    affinity.outdated = tuple(before - after)
    affinity.kept = tuple(slot for slot in affinity.slots if slots[slot] == slot)


def claim(state: State, before: list[int]) -> None:
    """An agreement took buckets of mine: keep their clients, and list to all whom I keep."""
    affinity = state.affinity
    if not affinity.slots:
        return
    if state.stage in (Stage.STARTED, Stage.DRAINING):
        for slot in affinity.slots:
            if state.rule_states[slot] is RuleState.ENABLED:
                affinity.claimed[slot] |= before[slot] & ~state.current[slot]
    affinity.began_ms = state.now_ms
    affinity.first_serial = affinity.serial + 1
    affinity.due = True


def finish(state: State) -> None:
    """After every input, when the maps are installed: make the list anew, send it, repeat it."""
    affinity = state.affinity
    if affinity.switched:
        affinity.switched = False
        if affinity.outdated:
            state.outputs.append(ExceptionsChanged({}, affinity.outdated))
        state.outputs.append(KeepClients(affinity.kept))
    if not affinity.slots or state.phase not in _LISTING:
        return
    if affinity.due:
        affinity.due = False
        affinity.serial += 1
        affinity.repeat_ms = state.period_ms
        if any(affinity.claimed):
            affinity.keys = None
            affinity.next_send_ms = NEVER_SENT
            claimed = tuple(affinity.claimed)
            state.outputs.append(ListClients(affinity.serial, claimed))
        else:
            affinity.keys = ()
            affinity.next_send_ms = state.now_ms
    if state.now_ms >= affinity.next_send_ms:
        _send(state)


def listed(state: State, event: ClientsListed) -> None:
    """The agent tells whom this host remembers in the buckets that it claims."""
    affinity = state.affinity
    stopped = state.stage is Stage.STOPPED
    if stopped or event.serial != affinity.serial or affinity.keys is not None:
        return
    foreign = _NOBODY.union(*affinity.exceptions.values())
    mine = [key for key in event.keys if key not in foreign]
    share = EXCEPTIONS_MAX // len(state.members)
    if len(mine) > share:
        text = (
            f"This host keeps {len(mine)} clients in buckets of other hosts, and they remember "
            f"{share} for each of {len(state.members)} hosts; the rest may be served elsewhere."
        )
        state.log_rarely("affinity-full", b"", Severity.WARNING, text, clients=len(mine))
        del mine[share:]
    affinity.keys = tuple(mine)
    if len(mine) < len(event.keys):
        # What is accepted here without being listed would be accepted twice.
        kept = frozenset(mine)
        state.outputs.append(ForgetClients(tuple(k for k in event.keys if k not in kept)))
    affinity.next_send_ms = state.now_ms


def forgotten(state: State) -> None:
    """The agent has ceased to remember clients that were listed: tell the others."""
    if any(state.affinity.claimed):
        state.affinity.due = True


def cease(state: State) -> bool:
    """Accept no client any more that this host remembers, and say so; False: it did already."""
    if not state.affinity.slots or state.affinity.ceased:
        return False
    state.affinity.ceased = True
    state.unclaim()
    state.outputs.append(KeepClients(()))
    return True


def _send(state: State) -> None:
    affinity = state.affinity
    keyring = state.config.keyring
    key = keyring.signing_key
    head = ListHead(
        state.config.host_id,
        state.cluster_ip,
        state.config.dedicated_ip_address.packed,
        state.code,
        state.generation,
        affinity.serial,
        state.view_digest,
        state.config.config_digest,
    )
    if state.others:
        for frame in clients.encode(head, affinity.keys or (), key.id if key else 0):
            state.outputs.append(SendFrame(sign(frame, key) if key else frame))
    if state.phase in _HANDING_OVER:
        affinity.next_send_ms = state.now_ms + state.period_ms // 2
        return
    # A shorter list that is lost leaves its clients without a host.
    longest_ms = REPEAT_PERIODS_MAX * state.period_ms
    done = not affinity.keys and affinity.repeat_ms >= longest_ms
    affinity.next_send_ms = NEVER_SENT if done else state.now_ms + affinity.repeat_ms
    affinity.repeat_ms = min(2 * affinity.repeat_ms, longest_ms)


def next_deadline_ms(state: State) -> int:
    """When ``finish`` or ``give_up_late`` has something to do."""
    affinity = state.affinity
    if affinity.switched:
        return state.now_ms
    if not affinity.slots or state.phase not in _LISTING:
        return NEVER_SENT
    deadline_ms = state.now_ms if affinity.due else affinity.next_send_ms
    if state.phase in _HANDING_OVER and any(affinity.claimed):
        deadline_ms = min(deadline_ms, _late_ms(state))
    return deadline_ms


def give_up_late(state: State) -> None:
    """Somebody has not taken what it should, perhaps for want of my list: do without."""
    late = state.now_ms >= _late_ms(state)
    if late and state.phase in _HANDING_OVER and any(state.affinity.claimed):
        give_up(state, "the list of its clients is not known to all members in time")


def _late_ms(state: State) -> int:
    """A member that died meanwhile is a member no more by then, and all begins again."""
    return state.affinity.began_ms + state.death_ms + state.period_ms


def converged(state: State) -> None:
    """All members have what I listed first; what I listed since is repeated."""
    affinity = state.affinity
    if affinity.serial == affinity.first_serial and affinity.keys is not None:
        affinity.next_send_ms = NEVER_SENT


# ---------------------------------------------------------------- letting go of claims


def give_up(state: State, reason: str) -> None:
    """Keep no client in a bucket of others any more."""
    if any(state.affinity.claimed):
        text = f"This host keeps no client in buckets of other hosts any more: {reason}."
        state.log_rarely("affinity-given-up", b"", Severity.WARNING, text, reason=reason)
        state.unclaim()


def beware(state: State, peer: Peer) -> None:
    """A host that is no member and may serve: it knows no list of mine, nor I one of its."""
    if not state.affinity.slots or state.view.get(peer.host_id) is peer or not peer.counts:
        return
    said = peer.statement
    if not said.flags & NEWCOMER or any(said.current):
        give_up(state, f"host {peer.host_id} was parted from this host")


# ---------------------------------------------------------------- the lists of the others


def hear(state: State, frame: ListFrame) -> bool:
    """A verified frame of a list; True when it makes the list complete.

    It counts from a member, for my generation and view.
    """
    head = frame.head
    affinity = state.affinity
    peer = state.view.get(head.host_id)
    if (
        peer is None
        or peer.code != head.host_code
        or head.generation != state.generation
        or head.view_digest != state.view_digest
        or head.config_digest != state.config.config_digest
        or any(key[0] not in affinity.slots for key in frame.keys)
    ):
        return False
    known = affinity.received.get(head.host_id)
    if known is None or _is_older(known.head, head):
        known = affinity.received[head.host_id] = Received(head)
    if known.head != head or known.keys is not None:
        return False
    known.frames[frame.number] = frame.keys
    if len(known.frames) < frame.frames:
        return False
    keys = _NOBODY.union(*known.frames.values())
    held = sum(len(one) for host, one in affinity.exceptions.items() if host != head.host_id)
    known.frames.clear()
    if held + len(keys) > EXCEPTIONS_HELD_MAX:
        text = f"The list of clients of host {head.host_id} does not fit beside the others'."
        state.log_rarely("affinity-exceptions-full", b"", Severity.WARNING, text)
        return False
    known.keys = keys
    _except(state, head.host_id, keys)
    return True


def _is_older(known: ListHead, head: ListHead) -> bool:
    if (known.host_code, known.generation, known.view_digest) != (
        head.host_code,
        head.generation,
        head.view_digest,
    ):
        return True
    return known.serial < head.serial


def ready(state: State) -> bool:
    """Every member's list for this generation and view is here: its buckets may be taken."""
    affinity = state.affinity
    if not affinity.slots:
        return True
    for host_id, peer in state.view.items():
        known = affinity.received.get(host_id)
        if (
            known is None
            or known.keys is None
            or known.head.host_code != peer.code
            or known.head.generation != state.generation
            or known.head.view_digest != state.view_digest
            or known.head.config_digest != state.config.config_digest
        ):
            return False
    return True


def loosen(state: State) -> None:
    """What hosts claimed that are no members any more is void: their buckets are taken now."""
    affinity = state.affinity
    for host_id in [one for one in affinity.exceptions if one not in state.view]:
        _except(state, host_id, _NOBODY)
        affinity.received.pop(host_id, None)


def _except(state: State, host_id: int, keys: frozenset[ClientKey]) -> None:
    """Leave exactly these clients to this host from now on."""
    exceptions = state.affinity.exceptions
    before = exceptions.pop(host_id, _NOBODY)
    if keys:
        exceptions[host_id] = keys
    added = dict.fromkeys(keys - before, host_id)
    removed = _without(before - keys, exceptions.values())
    if added or removed:
        state.outputs.append(ExceptionsChanged(added, tuple(removed)))


def _without(
    keys: frozenset[ClientKey], others: Iterable[frozenset[ClientKey]]
) -> frozenset[ClientKey]:
    """Those that are on nobody else's list."""
    for other in others:
        keys -= other
    return keys
