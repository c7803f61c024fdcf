"""What the event log of a lab says of a take-over."""

from labs.events import Event
from labs.runs.lossy import per_port
from labs.timeline import ALL, inherited_s, longest_gap_s, takeover

LOW, HIGH = (1 << 30) - 1, ALL & ~((1 << 30) - 1)


def buckets(at_s: float, host_id: int, held: int) -> Event:
    return {"event": "buckets", "at_s": at_s, "host_id": host_id, "slot": 0, "map": f"{held:015x}"}


def host(at_s: float, host_id: int, state: str) -> Event:
    return {"event": "host", "at_s": at_s, "host_id": host_id, "state": state}


def lost(at_s: float, host_id: int) -> Event:
    text = "host-lost: Host 2 is lost: no heartbeat for 500 ms."
    return {"event": "agent", "at_s": at_s, "host_id": host_id, "level": "WARNING", "text": text}


BEFORE = [
    buckets(1.0, 1, LOW),
    buckets(1.0, 2, HIGH),
    host(1.0, 1, "converged"),
    host(1.0, 2, "converged"),
    host(1.0, 3, "converged"),
]


def test_takeover_counts_from_the_last_expiry_to_the_last_converged() -> None:
    events = [
        *BEFORE,
        host(10.5, 1, "converging"),
        lost(10.5, 1),
        host(10.52, 3, "converging"),
        lost(10.52, 3),
        buckets(10.6, 3, HIGH),
        host(10.61, 3, "converged"),
        host(10.65, 1, "converged"),
    ]
    seen = takeover(reversed(events), 10.0, 11.0, 2)
    assert [round(value or -1.0, 3) for value in (seen.owned_s, seen.converged_s)] == [0.6, 0.65]
    assert round(seen.convergence_s or -1.0, 3) == 0.13
    assert takeover(events, 10.0, 10.55, 2).owned_s is None
    # The dead host's own map counts for nothing, and another fault's words neither.
    assert takeover(BEFORE, 10.0, 11.0, 2) == takeover([*BEFORE, lost(9.0, 1)], 10.0, 11.0, 2)


def test_longest_gap_is_that_of_any_bucket() -> None:
    events = [
        *BEFORE,
        buckets(10.0, 2, HIGH & ~(1 << 40)),
        buckets(10.03, 1, LOW | 1 << 40),
        buckets(10.1, 2, 0),
        buckets(10.18, 3, HIGH & ~(1 << 40)),
    ]
    assert round(longest_gap_s(events, 9.0, 12.0), 3) == 0.08
    assert round(longest_gap_s(events[:-1], 9.0, 12.0), 3) == 1.9


def test_inheritance_is_what_the_named_heirs_hold() -> None:
    events = [*BEFORE, buckets(10.3, 4, ALL), buckets(10.7, 1, ALL)]
    assert round(inherited_s(events, 10.0, 12.0, 2, {1, 3}) or -1.0, 3) == 0.7
    assert inherited_s(events, 10.0, 10.5, 2, {1, 3}) is None


def test_losing_at_both_ports_makes_the_wanted_loss() -> None:
    kept = 1 - per_port(10.0) / 100
    assert round(kept * kept, 6) == 0.9
