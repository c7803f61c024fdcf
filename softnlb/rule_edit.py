"""Changing the text of a configuration file: port rules and keys of [cluster], comments kept.

A *change* is a JSON-able dict, the same for one host's file and for the whole cluster:

    {"do": "add", "rule": FIELDS}
    {"do": "set", "at": PLACE, "rule": FIELDS}
    {"do": "remove", "at": PLACE}
    {"do": "cluster", "keys": {NAME: VALUE}}

FIELDS are keys of a [[port_rule]]; PLACE has "cluster_ip_address", "ports" and "protocol" (None:
whatever it is).  What the values may be the check of the whole file says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from softnlb.errors import ReturnCode, SoftnlbError
from softnlb.rule_choice import shortest

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

Change = dict[str, Any]

IMPLICIT = {"cluster_ip_address": "all", "ports": "0-65535", "protocol": "both"}
"""A file without port rules has this one; keys that a rule lacks have these values, too."""

CAN_CHANGE = (
    "port_rules",
    "load_weights",
    "handling_priorities",
    "health_probes",
    "hash_seed",
    "filter_icmp",
    "remote_control_port",
)
"""Fields of a ClusterConfig that a running cluster can change; the others take a stop."""


def edited(text: str, change: Change) -> str:
    """The text after the change.

    Raises SoftnlbError when the file has no such rule, or another shape than [[port_rule]].
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        rules = document.get("port_rule")
        if rules is None or (
            change["do"] != "cluster" and not isinstance(rules, tomlkit.items.AoT)
        ):
            if rules:
                raise _bad("the port rules of this file are no [[port_rule]] tables")
            rules = tomlkit.aot()
        do = change["do"]
        if do == "cluster":
            document["cluster"].update(change["keys"])
        elif do == "add":
            if not rules:
                raise SoftnlbError(
                    "this file has no port rule, which means one for all ports:"
                    " change it first (softnlb rule set 0-65535 ports=...)",
                    code=ReturnCode.PORT_OVERLAP,
                )
            _add(document, rules, dict(change["rule"]))
        elif do == "set":
            if not rules:
                _add(document, rules, {})
            rules[_place(rules, change["at"])].update(change["rule"])
        elif do == "remove":
            _remove(rules, change["at"])
        else:
            raise _bad(f"no change is called {do!r}")
        return tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise _bad(f"this change cannot be made here: {type(error).__name__} {error}") from error


def _add(document: Any, rules: Any, fields: Change) -> None:
    import tomlkit

    table = tomlkit.table()
    table.update(fields)
    rules.append(table)
    if "port_rule" not in document:
        document["port_rule"] = rules


def _remove(rules: Any, at: Change) -> None:
    place = _place(rules, at)
    if len(rules) == 1:
        raise SoftnlbError(
            "the last port rule cannot be removed: without any, one rule takes all ports",
            code=ReturnCode.BAD_PORT_PARAMS,
        )
    del rules[place]


def _place(rules: Any, at: Change) -> int:
    """The one rule at this place: with exactly these ports, or the port among its."""
    found = [place for place, rule in enumerate(rules) if _is_at({**IMPLICIT, **rule}, at)]
    exact = [place for place in found if _ports({**IMPLICIT, **rules[place]}) == _ports(at)]
    found = exact or found
    asked = f"{at['cluster_ip_address']}:{at['ports']}"
    if not found:
        sentence = f"no port rule matches {asked}; a rule for All is named all:PORT"
        raise SoftnlbError(sentence, code=ReturnCode.NOT_FOUND)
    if len(found) > 1:
        raise _bad(f"several port rules match {asked}: name the protocol")
    return found[0]


def _is_at(rule: Change, at: Change) -> bool:
    start, end = _ports(at)
    first, last = _ports(rule)
    same = shortest(rule["cluster_ip_address"]) == shortest(at["cluster_ip_address"])
    if at.get("protocol") and rule["protocol"] != at["protocol"]:
        return False
    return same and ((start, end) == (first, last) or first <= start == end <= last)


def _ports(rule: Change) -> tuple[int, int]:
    start, _, end = str(rule["ports"]).partition("-")
    return int(start), int(end or start)


def _bad(sentence: str) -> SoftnlbError:
    return SoftnlbError(sentence, code=ReturnCode.BAD_PARAMS)


def checked(path: Path, text: str) -> ClusterConfig:
    """The configuration of this text; errors name ``path``.  Raises ConfigError."""
    import tomllib

    from softnlb.config_check import build

    return build(path, tomllib.loads(text))


def refuse_what_needs_a_stop(present: ClusterConfig, fresh: ClusterConfig) -> None:
    """Raises SoftnlbError when more changes than a running cluster can change at once."""
    from dataclasses import fields

    can = {*CAN_CHANGE, "warnings"}
    differing = [
        field.name
        for field in fields(present)
        if field.name not in can and getattr(present, field.name) != getattr(fresh, field.name)
    ]
    if differing:
        raise _bad(f"{', '.join(differing)} cannot change while the cluster runs")
    # Whoever can change the rules must not be able to run a program on every host.
    commands = {probe.command for probe in fresh.health_probes}
    if not commands <= {probe.command for probe in present.health_probes} | {()}:
        raise _bad("port_rule.health_probe: a command is set on each host, never on all at once")
