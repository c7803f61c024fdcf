"""Going over to another configuration: following a member that switched, or those who kept on.

Why no connection has two owners: a rule's buckets are carried over only when nothing that another
rule took before can fall to it (``carried``); all others are held by nobody until every member has
switched and agreed.  A member that has not switched yet (it *lags*) is kept a member for
T x P, and takes part in no agreement, because its digest differs.
"""

from dataclasses import replace

from convergence import affinity, lease, orphans, phases
from convergence.events import ConfigurationSwitched, RecallConfiguration, Severity
from convergence.heartbeat import JOINING, Heartbeat, Statement
from convergence.peers import Peer
from convergence.rules import ALL_BUCKETS, PortRule
from convergence.stages import Phase, RuleState, Stage
from convergence.state import HostConfig, State

SETTLE_PERIODS = 2
"""A host that gives way to another configuration listens for so long before it goes over."""


def hear_other(state: State, frame: Heartbeat, received_ms: int) -> Heartbeat | None:
    """A heartbeat with another configuration digest: what of it counts, None when nothing does.

    From a member: this host follows it to what it has staged, or bears with it while it lags.
    """
    said = frame.statement
    peer = state.view.get(said.host_id)
    if peer is None or peer.code != said.host_code or said.flags & JOINING:
        return None
    if state.stage is Stage.LEAVING:
        return None
    staging = state.staging
    wanted = staging.kept.get(said.config_digest)
    if said.config_digest == staging.staged and wanted is not None:
        generation = max(state.generation, said.generation)
        switch(state, wanted, f"host {said.host_id} switched", generation)
        return frame
    former = staging.former
    if former is None or former.config_digest != said.config_digest:
        return None
    if len(said.current) != len(former.rules) + 1:
        return None
    if received_ms - staging.switched_ms >= state.death_ms:
        return None
    statement = _translate(said, carried(former, state.config))
    return Heartbeat(
        statement,
        frame.sequence,
        frame.ages,
        frame.tags,
        frame.key_id,
        frame.packets_handled,
        frame.accepts,
        frame.listened,
    )


def settle(state: State, peer: Peer) -> bool:
    """A member that lagged says something new: False while it still lags.

    Its first heartbeat by the present configuration brings its new weights, which begin no
    generation of their own: nobody can have agreed before.
    """
    if peer.statement.config_digest != state.config.config_digest:
        return False
    state.staging.lagging &= ~peer.bit
    if state.phase is Phase.CONVERGING_PHASE1:
        state.recompute_view()
        state.agree = state.stable1 = state.stable2 = 0
        for member in state.view.values():
            phases.note_agreement(state, member)
    return True


def offer(state: State, peer: Peer) -> None:
    """This host gives way to one with another configuration: is it one that is kept?"""
    digest = peer.statement.config_digest
    staging = state.staging
    if not state.joining or digest not in staging.kept:
        return
    if peer.received_ms - peer.since_ms < SETTLE_PERIODS * state.period_ms:
        return
    wanted = staging.kept[digest]
    if wanted is not None:
        switch(state, wanted, "the cluster has another configuration", state.generation)
    elif digest not in staging.recalled:
        staging.recalled.add(digest)
        state.outputs.append(RecallConfiguration(digest))


def carried(old: HostConfig, new: HostConfig) -> tuple[int | None, ...]:
    """Per slot of ``new`` the slot of ``old`` whose holdings go on to count; None: nobody holds it.

    A rule is carried when it is in both and no rule that went could have left it any traffic.
    """
    slots: list[int | None] = [None] * (len(new.rules) + 1)
    if old.hash_seed != new.hash_seed:
        return tuple(slots)
    gone = [rule for rule in old.rules if rule not in new.rules]
    for slot, rule in enumerate(new.rules):
        if rule in old.rules and not any(_meets(rule, one) for one in gone):
            slots[slot] = old.rules.index(rule)
    if not gone:
        slots[-1] = len(old.rules)
    return tuple(slots)


def _meets(one: PortRule, other: PortRule) -> bool:
    """Some traffic could be for either."""
    addresses = (one.cluster_ip_address, other.cluster_ip_address)
    return bool(
        one.protocol & other.protocol
        and one.start_port <= other.end_port
        and other.start_port <= one.end_port
        and (None in addresses or addresses[0] == addresses[1])
    )


def switch(state: State, config: HostConfig, reason: str, generation: int) -> None:
    """Go by this configuration from now on, in this generation; keep the former one at hand."""
    staging = state.staging
    former = state.config
    slots = carried(former, config)
    maps, rules = state.current, former.rules
    states = {_place(rule): state.rule_states[slot] for slot, rule in enumerate(rules)}
    sticky = state.affinity
    state.obey(replace(config, keyring=former.keyring))
    affinity.switch(state, sticky, slots)
    state.outputs.append(ConfigurationSwitched(config.config_digest))
    staging.former, staging.switched_ms, staging.staged = former, state.now_ms, None
    staging.kept.pop(config.config_digest, None)
    staging.keep(former.config_digest, former)
    staging.recalled.clear()
    if staging.change is not None and staging.change.name.coordinator == former.host_id:
        staging.outcome = staging.change.name, ""
    staging.change = None
    staging.lagging = state.others
    state.rule_states[:-1] = [
        states.get(_place(rule), RuleState.ENABLED) for rule in state.rules[:-1]
    ]
    _begin_anew(state, [0 if slot is None else maps[slot] for slot in slots], slots)
    digest = config.config_digest.hex()
    text = f"Configuration switched to digest {digest}: {reason}."
    state.log("configuration-switched", Severity.INFO, text, digest=digest)
    if state.joining:
        state.held_until_ms = 0
        lease.start_afresh(state, reason)
    else:
        state.recompute_view()
        phases.restart(state, reason, generation)


def _begin_anew(state: State, holdings: list[int], slots: tuple[int | None, ...]) -> None:
    """Maps by the new slots; nothing is proven idle; whoever has not switched counts as lagging."""
    lost = dict(state.lost)
    orphans.start(state)
    state.lost.update(lost)
    for slot, bits in enumerate(holdings):
        state.current[slot] = bits
        if bits:
            state.acquired.append((state.now_ms, slot, bits))
    state.released = [
        (state.now_ms, slot, ALL_BUCKETS & ~bits) for slot, bits in enumerate(holdings)
    ]
    state.installed = None
    state.strangers.clear()
    state.heard.rivals.clear()
    for host_id, peer in list(state.heard.primary.items()):
        if state.view.get(host_id) is not peer:
            del state.heard.primary[host_id]
    for peer in (*state.view.values(), *state.lost.values()):
        peer.statement = _translate(peer.statement, slots)
    state.heard.forget_masks()
    state.recompute_candidates()
    state.orphans_stale = True


def _place(rule: PortRule) -> tuple[object, ...]:
    return rule.cluster_ip_address, rule.start_port, rule.end_port, rule.protocol


def _translate(said: Statement, slots: tuple[int | None, ...]) -> Statement:
    """What a host that lags said, by the slots of the present rules; it has proven nothing idle."""
    nothing = (0,) * len(slots)
    return replace(
        said,
        rule_codes=nothing,
        current=tuple(0 if slot is None else said.current[slot] for slot in slots),
        new=nothing,
        idle=nothing,
        ready=nothing,
        weights=tuple(0 if slot is None else said.weights[slot] for slot in slots),
        head=b"",
        tail=b"",
    )
