"""What an operator may order: start, stop, drainstop, and the rules of this host."""

from dataclasses import replace

from convergence import affinity, conflicts, lease, orphans, phases, reporting
from convergence.events import Command, CommandError, CommandReceived, Severity
from convergence.rules import FilteringMode
from convergence.stages import Phase, RuleState, Stage
from convergence.state import State

RULE_COMMANDS = {
    Command.ENABLE_RULE: RuleState.ENABLED,
    Command.DISABLE_RULE: RuleState.DISABLED,
    Command.DRAIN_RULE: RuleState.DRAINING,
}


def obey(state: State, event: CommandReceived) -> None:
    """Carry out a command; raises CommandError and changes nothing when it makes no sense."""
    command = event.command
    if command is Command.START:
        start(state, event)
    elif command is Command.STOP:
        stop(state)
    elif command is Command.DRAINSTOP:
        drainstop(state)
    elif command is Command.DRAIN_COMPLETE:
        drain_complete(state)
    elif command is Command.SET_WEIGHT:
        set_weight(state, event)
    elif command is Command.SET_PRIORITIES:
        set_priorities(state, event)
    elif command is Command.SET_KEYRING:
        set_keyring(state, event)
    else:
        set_rules(state, event)


def start(state: State, event: CommandReceived) -> None:
    """Begin to listen; interrupts a drain or a stop that has not come to leaving."""
    if state.stage is Stage.STARTED:
        state.forced = state.forced or event.force
        return
    if state.stage_after_leaving is not Stage.STOPPED:
        state.stage_after_leaving = Stage.STARTED
        return
    if state.stage in (Stage.DRAINING, Stage.STOPPING):
        state.stage = Stage.STARTED
        state.log("drain-interrupted", Severity.INFO, "Start interrupted the draining.")
        if not state.joining:
            phases.change_view(state, "this host no longer drains")
        return
    if not 0 < event.host_code <= 0xFFFF_FFFF:
        raise CommandError("start needs a random host code of 32 bits")
    if event.host_code in state.own_codes:
        raise CommandError("this host code was used before")
    state.stage = Stage.STARTED
    state.release_all()
    state.forced = event.force
    state.held_by.clear()
    state.held_until_ms = 0
    state.duplicate = None
    state.stage_after_leaving = Stage.STOPPED
    state.embargo_until_ms = 0
    state.left.clear()
    state.told.clear()
    state.hinted.clear()
    state.unheard_since.clear()
    state.new_code(event.host_code)
    orphans.start(state)
    affinity.start(state)
    lease.listen(state, "start")
    state.next_send_ms = state.now_ms
    text = f"Host {state.config.host_id} started."
    state.log("started", Severity.INFO, text, host_id=state.config.host_id)


def stop(state: State) -> None:
    """Hand the buckets over, then leave, then be stopped."""
    if state.stage in (Stage.STOPPED, Stage.STOPPING):
        return
    if state.stage is Stage.LEAVING:
        state.stage_after_leaving = Stage.STOPPED
        return
    was_draining = state.stage is Stage.DRAINING
    state.stage = Stage.STOPPING
    state.unclaim()
    state.stop_by_ms = state.now_ms + state.death_ms
    if not was_draining and not state.joining:
        phases.change_view(state, "this host stops")
        phases.advance(state)
    go_on_stopping(state)


def drainstop(state: State) -> None:
    """Nothing new; stay a member until ``drain_complete``."""
    if state.stage is Stage.DRAINING:
        return
    if state.stage_after_leaving is Stage.STARTED:
        state.stage_after_leaving = Stage.DRAINING
        return
    if state.stage is not Stage.STARTED:
        raise CommandError("only a started host can drain")
    state.stage = Stage.DRAINING
    state.affinity.ceased = False
    state.log("draining", Severity.INFO, f"Host {state.config.host_id} started draining.")
    state.changed()
    if not state.joining:
        phases.change_view(state, "this host drains")
        phases.advance(state)


def is_draining(state: State) -> bool:
    """The host drains, or will when it has left and joined again."""
    return Stage.DRAINING in (state.stage, state.stage_after_leaving)


def is_stopping(state: State) -> bool:
    """The host hands over, or leaves, and is stopped then."""
    leaves = state.stage is Stage.LEAVING and state.stage_after_leaving is Stage.STOPPED
    return leaves or state.stage is Stage.STOPPING


def drain_complete(state: State) -> None:
    """The last connection has ended: leave.

    A client that the host remembers was accepted until now, so one may have come after the look at
    the connections.  The host accepts nobody any more, first, and leaves when another look finds
    no connection either.
    """
    if not is_draining(state):
        raise CommandError("the host is not draining")
    if state.stage is Stage.DRAINING and affinity.cease(state):
        return
    stop(state)


def go_on_stopping(state: State) -> None:
    """After every input: has the hand-over ended, has everybody let go of me?"""
    if state.stage is Stage.STOPPING:
        handed_over = state.phase is Phase.CONVERGED and not any(state.current)
        if state.others and not handed_over and state.now_ms < state.stop_by_ms:
            return
        state.stage = Stage.LEAVING
        state.release_all()
        state.stop_by_ms = state.now_ms + state.death_ms
        state.changed()
        if state.joining or not _is_held(state):
            # Nobody has me, but a lone host must know that I shall not begin beside it, and a
            # newcomer that it need not wait for me.
            reporting.install(state)
            reporting.send(state)
            _left(state)
    if state.stage is Stage.LEAVING and (state.now_ms >= state.stop_by_ms or not _is_held(state)):
        _left(state)


def _is_held(state: State) -> bool:
    """Somebody that I hear still has me in its view, be it a member of mine or not."""
    return any(
        peer.statement.view & state.bit
        and peer.counts
        and state.now_ms - peer.received_ms < state.death_ms
        for known in (state.view, state.heard.primary)
        for peer in known.values()
    )


def _left(state: State) -> None:
    state.release_all()
    if state.stage_after_leaving is not Stage.STOPPED:
        state.stage = state.stage_after_leaving
        state.stage_after_leaving = Stage.STOPPED
        lease.start_afresh(state, "left a broken pair")
        return
    state.stage = Stage.STOPPED
    state.joining = False
    state.view.clear()
    state.heard.primary.clear()
    state.heard.rivals.clear()
    state.strangers.clear()
    state.recompute_view()
    phases.enter(state, "forget", "stopped")
    state.log("stopped", Severity.INFO, f"Host {state.config.host_id} stopped.")


def end_listening(state: State) -> None:
    """Begin to take part when I have listened for long enough and nothing holds me back.

    Two periods when a started host was heard, for it will bring me in; T x P otherwise.
    """
    listened_ms = state.now_ms - state.started_ms
    companions = any(
        peer.counts and state.now_ms - peer.received_ms < state.death_ms
        for peer in state.heard.primary.values()
    )
    wanted = 2 * state.period_ms if companions else state.death_ms
    if listened_ms < wanted or conflicts.held_back(state):
        return
    state.listen(False)
    state.recompute_view()
    phases.restart(state, "listened", state.generation + 1)


def _slots(state: State, event: CommandReceived) -> tuple[int, ...]:
    rules = len(state.config.rules)
    slots = event.slots
    bad = [slot for slot in slots if not 0 <= slot < rules]
    if bad:
        raise CommandError(f"no port rule in slot {bad[0]}; there are {rules}")
    return slots


def set_weight(state: State, event: CommandReceived) -> None:
    """Load weight 0..100 of these multiple-hosts rules, of all without slots."""
    if not 0 <= event.load_weight <= 100:
        raise CommandError(f"load weight {event.load_weight} is not within 0..100")
    for slot in _slots(state, event) or range(len(state.config.rules)):
        if state.config.rules[slot].filtering_mode is FilteringMode.MULTIPLE_HOSTS:
            state.load_weights[slot] = event.load_weight
    _own_weights_changed(state, "this host changed its weights")


def set_priorities(state: State, event: CommandReceived) -> None:
    """Handling priorities 1..32, one per rule; they count for single-host rules."""
    wanted = event.handling_priorities
    if len(wanted) != len(state.config.rules):
        raise CommandError("one handling priority per port rule")
    state.config = replace(state.config, handling_priorities=wanted)
    _own_weights_changed(state, "this host changed its handling priorities")


def set_keyring(state: State, event: CommandReceived) -> None:
    """Sign with, and accept, other keys from now on; no member notices but by the key id.

    Refused when this host and a member would then not believe each other: both would serve.
    """
    keyring = event.keyring
    for peer in sorted(state.view.values(), key=lambda one: one.host_id):
        said = peer.heartbeat
        if not keyring.believes(said.key_id, state.config.keyring):
            signs = f"signs with key {said.key_id}" if said.key_id else "does not sign"
            raise CommandError(f"host {peer.host_id} {signs}, which these keys do not accept")
        if not keyring.is_accepted_by(said.accepts):
            key = keyring.signing_key
            signed = f"heartbeats signed with this key {key.id}" if key else "unsigned heartbeats"
            raise CommandError(f"host {peer.host_id} does not accept {signed} yet: reload it first")
    state.config = replace(state.config, keyring=keyring)
    # The next step at a member may wait for what this host accepts now.
    state.changed()
    signing = keyring.signing_key
    accepted = [key.id for key in keyring.keys]
    signs = f"signed with key {signing.id}" if signing else "unsigned"
    others = ", ".join(str(one) for one in accepted) or "none"
    text = f"Authentication: {keyring.authentication}, {signs}, accepted keys {others}."
    state.log(
        "keys-changed",
        Severity.INFO,
        text,
        authentication=str(keyring.authentication),
        signing_key_id=signing.id if signing else None,
        accepted_key_ids=accepted,
    )


def set_rules(state: State, event: CommandReceived) -> None:
    """Enable, disable or drain rules on this host.

    A disabled rule's buckets are dropped at once, a draining rule's are handed over.
    """
    wanted = RULE_COMMANDS[event.command]
    for slot in _slots(state, event):
        if state.rule_states[slot] is wanted:
            continue
        state.rule_states[slot] = wanted
        state.unclaim(slot)
        if wanted is RuleState.DISABLED:
            state.hold(slot, 0)
        state.log(
            f"rule-{wanted.value}",
            Severity.INFO,
            f"Port rule {slot + 1} is {wanted.value}.",
            slot=slot,
        )
    _own_weights_changed(state, "this host changed its rules")


def _own_weights_changed(state: State, reason: str) -> None:
    if state.stage in (Stage.STOPPED, Stage.LEAVING):
        return
    before = state.view_digest
    state.recompute_view()
    if state.view_digest != before and not state.joining:
        phases.restart(state, reason, state.generation + 1)
        phases.advance(state)
