"""The health_probe table of a port rule: what fits together, and the HealthProbe made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from convergence.rules import IPAddress
from softnlb.config import HealthProbe
from softnlb.config_schema import HEALTH_PROBE
from softnlb.table import Complaint, read_table, shown

Values = dict[str, Any]


def read_probe(rule: Values, path: str) -> Iterator[Complaint]:
    """Read the table in place: its good values take the place of what stood in the file."""
    raw, path = rule["health_probe"], f"{path}.health_probe"
    if not isinstance(raw, dict):
        yield Complaint(path, shown(raw), 'a table, as in { type = "tcp" }')
        return
    probe, complaints = read_table(HEALTH_PROBE, raw, path)
    rule["health_probe"] = probe
    yield from complaints
    if not complaints:
        yield from _together(probe, rule, path)


def _together(probe: Values, rule: Values, path: str) -> Iterator[Complaint]:
    kind = shown(probe["type"])
    if probe["type"] == "command":
        if not probe["command"]:
            yield Complaint(f"{path}.command", "", "the words of a command")
    elif probe["command"]:
        yield Complaint(f"{path}.command", shown(probe["command"]), f"no command beside {kind}")
    elif rule.get("protocol") == "udp":
        yield Complaint(f"{path}.type", kind, '"command", because the rule is for UDP alone')
    elif probe["port"] is None and len(set(rule.get("ports", (0,)))) > 1:
        yield Complaint(f"{path}.port", "", "the port to look at, because the rule has a range")
    if rule.get("filtering_mode") == "disabled":
        yield Complaint(path, kind, "no health probe on a rule that is disabled for all hosts")
    if probe["timeout_ms"] > probe["period_ms"]:
        yield Complaint(f"{path}.timeout_ms", shown(probe["timeout_ms"]), "at most the period_ms")


def health_probes(rules: list[Values], primary: IPAddress) -> Iterator[HealthProbe]:
    """The probes of checked rules; where a rule is for All, they look at the primary address."""
    for slot, rule in enumerate(rules):
        probe = rule["health_probe"]
        if probe is None:
            continue
        place = {
            "address": str(rule["cluster_ip_address"] or primary),
            "port": probe["port"] or rule["ports"][0],
            "command": tuple(probe["command"]),
        }
        yield HealthProbe(slot=slot, **{**probe, **place})
