"""Idle buckets, and orphaned ones in which a lost connection may be answered with a reset."""

from convergence.events import HostProbed, IdleScanned, ProbeHost
from convergence.heartbeat import address
from convergence.peers import Peer
from convergence.rules import ALL_BUCKETS
from convergence.stages import Stage
from convergence.state import FOREVER, SETTLE_MS, State

SYN_COOKIE_MS = 120_000
"""After a SYN cookie a connection may come into being that no scan could see."""

RELEASES_MAX = 256

PROBE_AGAIN_MS = 10_000
"""Between two questions for the hosts that fell silent and are not proven gone."""


def scanned(state: State, event: IdleScanned) -> None:
    """A scan of this host's sockets: which buckets surely hold no live connection?

    Only buckets that were released at least 3 s before the scan began count.
    """
    if len(event.idle) != len(state.rules):
        raise ValueError(f"{len(event.idle)} idle maps for {len(state.rules)} slots")
    settled_ms = event.began_ms - SETTLE_MS
    state.released = [entry for entry in state.released if entry[0] > settled_ms]
    if len(state.released) > RELEASES_MAX:
        del state.released[:-RELEASES_MAX]
    unsettled = [0] * len(state.rules)
    for _ms, slot, bits in state.released:
        unsettled[slot] |= bits
    cookie = event.syn_cookie_ms
    doubtful = cookie is not None and event.now_ms - cookie < SYN_COOKIE_MS
    for slot, found in enumerate(event.idle):
        mine = state.current[slot] | state.affinity.claimed[slot]
        proven = 0 if doubtful else found & ~mine & ~unsettled[slot] & ALL_BUCKETS
        if proven != state.idle[slot]:
            state.idle[slot] = proven
            state.statement = None
    state.orphans_stale = True


def scan_due_ms(state: State) -> int | None:
    """When the next scan could prove a bucket idle that is not mine and not proven yet.

    A scan walks the kernel's whole table of connections, milliseconds even when it is empty: it
    is not done for nothing.
    """
    if state.stage is Stage.STOPPED:
        return None
    due_ms: int | None = None
    for slot, proven in enumerate(state.idle):
        unproven = ALL_BUCKETS & ~state.current[slot] & ~state.affinity.claimed[slot] & ~proven
        for released_ms, released_slot, bits in state.released:
            if released_slot == slot and released_ms + SETTLE_MS > state.now_ms:
                if unproven & bits:
                    settled_ms = released_ms + SETTLE_MS
                    due_ms = settled_ms if due_ms is None else min(due_ms, settled_ms)
                unproven &= ~bits
        if unproven:
            return state.now_ms
    return due_ms


def start(state: State) -> None:
    """Nothing is proven at a start: count every bucket as released now."""
    state.acquired.clear()
    state.lost.clear()
    state.released = [(state.now_ms, slot, ALL_BUCKETS) for slot in range(len(state.rules))]
    state.idle = [0] * len(state.rules)
    state.orphan = [0] * len(state.rules)
    state.statement = None


def probe(state: State) -> None:
    """Ask whether the kernels of the lost hosts still serve; one that does may be gone later."""
    state.probe_ms = state.now_ms + PROBE_AGAIN_MS if state.lost else FOREVER
    for (host_id, code), peer in state.lost.items():
        where = address(peer.statement.dedicated_ip_address)
        state.outputs.append(ProbeHost(host_id, code, where))


def probed(state: State, event: HostProbed) -> None:
    """Three probes of a lost host's dedicated IP address: its kernel is gone, or still serves."""
    if event.gone and state.lost.pop((event.host_id, event.host_code), None) is not None:
        state.orphans_stale = True


def came_back(state: State, peer: Peer) -> None:
    """The host is back: what it reports idle counts again, under any host code."""
    for key in [key for key in state.lost if key[0] == peer.host_id]:
        del state.lost[key]
        state.orphans_stale = True


def recompute(state: State) -> None:
    """The buckets of mine in which nobody can have a live connection.

    Mine for 3 s; and every other host reported them idle in a frame whose current map lacks them:
    the members, and whoever else was heard within T x P.  A host may serve connections in buckets
    that it has not held for long.  None while a host that fell silent is not proven gone: whatever
    it said last, since then it may have taken over any of them, and I be the one that was cut off.
    """
    now_ms = state.now_ms
    state.acquired = [entry for entry in state.acquired if now_ms - entry[0] < SETTLE_MS]
    orphan = [0 if state.lost else held for held in state.current]
    for _ms, slot, bits in state.acquired:
        orphan[slot] &= ~bits
    strangers = (*state.heard.primary.values(), *state.heard.rivals.values())
    for peer in (
        *state.view.values(),
        *(peer for peer in strangers if now_ms - peer.received_ms < state.death_ms),
    ):
        if not any(orphan):
            break
        said = peer.statement
        for slot, (idle, held) in enumerate(zip(said.idle, said.current, strict=True)):
            orphan[slot] &= idle & ~held
    state.orphan = orphan
    state.orphans_stale = False
    # Time alone brings new ones.
    first_ms = min((entry[0] for entry in state.acquired), default=FOREVER)
    state.orphans_due_ms = first_ms + SETTLE_MS
