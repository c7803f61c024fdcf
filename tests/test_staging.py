"""A change of the whole cluster: the frames, what is carried over, and episodes about nothing else.

The scenario files ``change_*`` tell the story in words.
"""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from convergence import staging, switching
from convergence.change_frame import (
    BODY_MAX_BYTES,
    ChangeFrame,
    ChangeName,
    Kind,
    decode,
    encode,
)
from convergence.heartbeat import FRAME_BYTES, HeartbeatError
from convergence.machine import HostConfig
from convergence.rules import PortRule
from convergence.state import State
from tests.simulator.change import changed, rules
from tests.simulator.episode import Episode
from tests.simulator.faults import CHANGE, Fault, Options, options
from tests.simulator.scenario import play

NAME = ChangeName(3, 0xDEADBEEF, 7)
FRAME = ChangeFrame(
    5, bytes((10, 1, 0, 100)), bytes((10, 1, 0, 5)), 99, Kind.PROPOSED, NAME, 1234, b"digest!!",
    b'{"do": "remove"}',
)  # fmt: skip


# ---------------------------------------------------------------- the frame


def test_a_frame_says_what_it_was_made_of() -> None:
    payload = encode(FRAME, key_id=8)
    assert len(payload) == FRAME_BYTES
    assert decode(payload) == FRAME
    longest = replace(FRAME, body=b"x" * BODY_MAX_BYTES)
    assert decode(encode(longest)) == longest
    with pytest.raises(ValueError, match=f"at most {BODY_MAX_BYTES} bytes"):
        encode(replace(FRAME, body=b"x" * (BODY_MAX_BYTES + 1)))


@pytest.mark.parametrize(
    ("place", "value", "kind"),
    [(4, 9, "version"), (36, 1, "version"), (8, 0, "host-id"), (8, 33, "host-id"),
     (25, 0, "host-id"), (24, 0, "change"), (24, 5, "change"), (27, 0x80, "change")],
)  # fmt: skip
def test_a_frame_with_a_wrong_byte_is_refused(place: int, value: int, kind: str) -> None:
    damaged = bytearray(encode(FRAME))
    damaged[place] = value
    with pytest.raises(HeartbeatError) as refused:
        decode(bytes(damaged))
    assert refused.value.kind == kind
    with pytest.raises(HeartbeatError):
        decode(bytes(damaged[:-1]))


# ---------------------------------------------------------------- what is carried over


def config(text: str, address: IPv4Address | None = None) -> HostConfig:
    """A host with these rules, all for one address or for All."""
    found = tuple(replace(rule, cluster_ip_address=address) for rule in rules(text))
    base = HostConfig(1, IPv4Address("10.1.0.100"), IPv4Address("10.1.0.1"), (), (), (), bytes(8))
    ones = (1,) * len(found)
    return replace(base, rules=found, load_weights=ones, handling_priorities=ones)


@pytest.mark.parametrize(
    ("old", "new", "carried"),
    [
        # Rules that stay, in whatever order, and a new one: what it takes nobody gains.
        ("80/443s", "443s/80/8080", (1, 0, None, 2)),
        # What a rule that went had taken falls to the default host now: nobody may hold it yet.
        ("80/443s", "80", (0, None)),
        # Another affinity: the buckets of 80 mean other clients, and it went in between.
        ("80/443s", "80n/443s", (None, 1, None)),
        ("80-90", "80-85", (None, None)),
    ],
)
def test_only_what_gains_no_traffic_is_carried(
    old: str, new: str, carried: tuple[int | None, ...]
) -> None:
    assert switching.carried(config(old), config(new)) == carried


def test_a_rule_for_all_is_not_carried_when_one_for_an_address_goes() -> None:
    """Its ports were the other rule's: who has not switched yet still goes by that one."""
    beside = PortRule(IPv4Address("10.1.0.100"), 80, 80)
    base = config("80/443")
    old = replace(
        base, rules=(*base.rules, beside), load_weights=(1,) * 3, handling_priorities=(1,) * 3
    )
    assert switching.carried(old, base) == (None, 1, None)
    assert switching.carried(base, old) == (0, 1, None, 2)


def test_another_hash_seed_carries_nothing() -> None:
    old = config("80/443")
    assert switching.carried(old, replace(old, hash_seed=1)) == (None, None, None)


# ---------------------------------------------------------------- episodes


@pytest.mark.parametrize("seed", [1, 3, 11, 45, 48, 49, 50, 91, 5096, 5097])
def test_episode(seed: int) -> None:
    violations = Episode(seed, options(seed, CHANGE)).run()
    assert not violations, violations


def removing(*more: Fault) -> Options:
    """Three hosts that share port 443 and then remove the rule for it."""
    found = [Fault(0, "start", host) for host in (1, 2, 3)]
    found += [Fault(1500, CHANGE, 2, 900, value=4), Fault(2000, CHANGE, 2, 300, value=1), *more]
    return Options(CHANGE, (1, 2, 3), 5, faults=tuple(sorted(found, key=lambda one: one.at_ms)))


def carry_everything(old: HostConfig, new: HostConfig) -> tuple[int | None, ...]:
    """Without a thought of who takes the traffic of a rule that goes."""
    places: list[int | None] = [
        old.rules.index(rule) if rule in old.rules else None for rule in new.rules
    ]
    return (*places, len(old.rules))


def never(*_: object) -> None:
    """Instead of following a member that has switched."""


@pytest.mark.parametrize(
    ("name", "broken", "violated"),
    [
        ("carried", carry_everything, "one-owner"),
        ("hear_other", never, "one-configuration"),
    ],
)
def test_a_broken_protocol_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., object], violated: str
) -> None:
    assert not Episode(5, removing()).run()
    monkeypatch.setattr(switching, name, broken)
    # Offering what is kept would repair it, late.
    monkeypatch.setattr(switching, "offer", never)
    found = {one.guarantee for one in Episode(5, removing()).run()}
    assert violated in found


def test_a_change_that_was_aborted_is_switched_to_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A member that switches at the coordinator's abort would be caught."""
    forget = staging._forget

    def stubborn(state: State, reason: str) -> None:
        change = state.staging.change
        if change is not None and change.config is not None and state.config.host_id == 3:
            switching.switch(state, change.config, "no obedience", state.generation + 1)
        forget(state, reason)

    plan = removing(Fault(1950, "pause", 1, 390))
    assert not Episode(5, plan).run()
    monkeypatch.setattr(staging, "_forget", stubborn)
    assert "one-configuration" in {one.guarantee for one in Episode(5, plan).run()}


def test_frames_of_a_change_must_be_new_and_signed() -> None:
    """A recorded proposal is as good as its sender's newest heartbeat, a foreign one as none."""
    text = play(
        "hosts 1-2 key=enforce:secret\nstart 1-2\nrun 1000\nchange 1 80 300\nrun 700\n\n"
        "counters 2\n\nreplay-change 1\nforeign-change 1\nrun 400\ncounters 2\nconfigurations"
    )
    before, after = text.split("\n\n")[1:]
    assert "change-" not in before
    assert "change-late=1" in after
    assert "change-not-verified=1" in after
    assert "host2 serves 80, file 80" in after


def test_a_changed_configuration_is_the_same_on_every_host() -> None:
    one, two = config("80"), replace(config("80/443"), host_id=2)
    assert changed(one, b"80/8080s").config_digest == changed(two, b"80/8080s").config_digest


def test_words_of_another_host_do_not_steer_a_terminal() -> None:
    assert staging._printable(b"no\x1b[2J \xff\n") == "no?[2J \ufffd?"
