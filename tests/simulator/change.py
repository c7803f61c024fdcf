"""Changes of the whole cluster in the simulator: other rules, and what of them is the same."""

import hashlib
from dataclasses import replace

from convergence.machine import HostConfig
from convergence.rules import DEFAULT_RULE, Affinity, FilteringMode, PortRule

CHANGES = ("80/443s/8080", "80", "80n/443s", "0-65535", "80/443", "80-90/443s/8080s", "80/8080s")
"""Rule sets that episodes change to, see ``rules``."""


def rules(text: str) -> tuple[PortRule, ...]:
    """Rule sets as scenario files write them: 80/443s/8000-8100n (s: single host, n: affinity
    none, d: disabled)."""
    found = []
    for one in text.split("/"):
        ports = one.rstrip("snd")
        letters = one[len(ports) :]
        start, _, end = ports.partition("-")
        mode = FilteringMode.MULTIPLE_HOSTS
        if "s" in letters:
            mode = FilteringMode.SINGLE_HOST
        elif "d" in letters:
            mode = FilteringMode.DISABLED
        affinity = Affinity.NONE if "n" in letters else Affinity.SINGLE
        rule = PortRule(None, int(start), int(end or start), filtering_mode=mode, affinity=affinity)
        found.append(rule)
    return tuple(found)


def written(found: tuple[PortRule, ...]) -> str:
    """The text that ``rules`` reads."""
    letters = {FilteringMode.SINGLE_HOST: "s", FilteringMode.DISABLED: "d"}
    return "/".join(
        (
            f"{one.start_port}"
            if one.start_port == one.end_port
            else f"{one.start_port}-{one.end_port}"
        )
        + letters.get(one.filtering_mode, "n" if one.affinity is Affinity.NONE else "")
        for one in found
    )


def changed(config: HostConfig, change: bytes) -> HostConfig:
    """The configuration after a change; the digest follows from the rules alone."""
    wanted = rules(change.decode())
    return replace(
        config,
        rules=wanted,
        load_weights=(50,) * len(wanted),
        handling_priorities=(config.host_id,) * len(wanted),
        config_digest=digest(wanted),
        kept_digests=(),
    )


def digest(wanted: tuple[PortRule, ...]) -> bytes:
    """8 bytes over a rule set."""
    return hashlib.sha256(repr(wanted).encode()).digest()[:8]


def both_take(
    one: tuple[PortRule, ...],
    my_maps: tuple[int, ...],
    other: tuple[PortRule, ...],
    their_maps: tuple[int, ...],
) -> list[str]:
    """Connections that two hosts which go by different rules would both accept.

    Looks at one port on each side of every edge.  Where the rule is the same, buckets mean the
    same clients; where it is not, any two buckets may hold the same client.
    """
    edges = {0, 65535}
    for rule in (*one, *other):
        edges |= {rule.start_port, rule.end_port, max(0, rule.start_port - 1)}
        edges.add(min(65535, rule.end_port + 1))
    found = []
    for port in sorted(edges):
        mine, theirs = _slot(one, port), _slot(other, port)
        same = (*one, DEFAULT_RULE)[mine] == (*other, DEFAULT_RULE)[theirs]
        my_bits, their_bits = my_maps[mine], their_maps[theirs]
        both = my_bits & their_bits if same else my_bits if their_bits else 0
        if both:
            found.append(f"port {port} buckets {both:#x}")
    return found


def _slot(found: tuple[PortRule, ...], port: int) -> int:
    for slot, rule in enumerate(found):
        if rule.start_port <= port <= rule.end_port:
            return slot
    return len(found)
