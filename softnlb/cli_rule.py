"""`softnlb rule add | set | remove` and `softnlb set`: this host's file, or the whole cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from softnlb.cli_common import config_option, json_option, print_json
from softnlb.control import call, find_hosts, split_address
from softnlb.errors import ReturnCode, SoftnlbError, UsageError, bad_params

Command = Callable[..., Any]

TIMEOUT_S = 10.0


def _options(function: Command) -> Command:
    for option in (
        click.option("--cluster", is_flag=True, help="Change every host, in one convergence."),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0.1, max=3600),
            default=TIMEOUT_S,
            show_default=True,
            metavar="S",
            help="With --cluster: give up after S seconds, everywhere.",
        ),
        click.option("--host", "target", metavar="CLUSTER[:HOST]", help="Where several are here."),
        config_option("Edit this file only; no agent has to run."),
        json_option,
    ):
        function = option(function)
    return function


@click.group()
def rule() -> None:
    """Add, change or remove a port rule.

    \b
    On this host, in its file and at once:       softnlb rule add 8080 protocol=tcp
    On all hosts of the cluster, all or none:    softnlb rule add 8080 protocol=tcp --cluster

    PORTS is [VIP|all:]PORT[-PORT], KEY=VALUE a key of a [[port_rule]] of the file. Comments in
    the file stay. A host whose rules differ from the others' leaves them: use --cluster.
    """


@rule.command()
@click.argument("ports", metavar="PORTS")
@click.argument("keys", nargs=-1, metavar="[KEY=VALUE]...")
@_options
def add(ports: str, keys: tuple[str, ...], **options: Any) -> None:
    """Add a port rule."""
    place = _place(ports, {})
    fields = {"cluster_ip_address": place["cluster_ip_address"], "ports": place["ports"]}
    if fields["cluster_ip_address"] == "all":
        del fields["cluster_ip_address"]
    _make({"do": "add", "rule": {**fields, **_values(keys)}}, f"port rule {ports} added", options)


@rule.command(name="set")
@click.argument("ports", metavar="PORTS")
@click.argument("keys", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "both"]), help="Of the rule meant.")
@_options
def set_rule(ports: str, keys: tuple[str, ...], protocol: str | None, **options: Any) -> None:
    """Change keys of a port rule."""
    at = _place(ports, {"protocol": protocol})
    _make({"do": "set", "at": at, "rule": _values(keys)}, f"port rule {ports} changed", options)


@rule.command()
@click.argument("ports", metavar="PORTS")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "both"]), help="Of the rule meant.")
@_options
def remove(ports: str, protocol: str | None, **options: Any) -> None:
    """Remove a port rule. Its traffic goes to the default host, or to a rule for All."""
    at = _place(ports, {"protocol": protocol})
    _make({"do": "remove", "at": at}, f"port rule {ports} removed", options)


@click.command(name="set")
@click.argument("keys", nargs=-1, required=True, metavar="KEY=VALUE...")
@_options
def set_cluster(keys: tuple[str, ...], **options: Any) -> None:
    """Change keys of [cluster].

    \b
    softnlb set filter_icmp=true --cluster

    A running cluster can change filter_icmp, hash_seed, remote_control and remote_control_port;
    mode, addresses and timers take a stop of all hosts.
    """
    _make({"do": "cluster", "keys": _values(keys)}, f"{', '.join(keys)} set", options)


def _place(ports: str, more: dict[str, Any]) -> dict[str, Any]:
    address, colon, numbers = split_address(ports)
    if not colon:
        address, numbers = "all", address
    start, dash, end = numbers.partition("-")
    if not start.isdecimal() or (dash and not end.isdecimal()):
        raise UsageError(
            f"{ports!r} is no place of a port rule, expected [VIP|all:]PORT[-PORT].",
            code=ReturnCode.BAD_PORT_PARAMS,
        )
    return {"cluster_ip_address": address, "ports": numbers, **more}


def _values(keys: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE as a TOML file would say it: numbers and true or false, all else is text."""
    found: dict[str, Any] = {}
    for key in keys:
        name, sign, value = key.partition("=")
        if not sign or not name:
            raise bad_params(f"{key!r}: expected KEY=VALUE.")
        if name in found:
            raise bad_params(f"{name}: expected once.")
        if value in ("true", "false"):
            found[name] = value == "true"
        elif value.isascii() and value.isdigit() and name != "ports":
            found[name] = int(value)
        else:
            found[name] = value
    return found


def _make(change: dict[str, Any], done: str, options: dict[str, Any]) -> None:
    as_json = options["as_json"]
    if options["config_path"] is not None:
        if options["cluster"]:
            raise bad_params("--config edits one file, --cluster the whole cluster: choose one.")
        _edit(options["config_path"], change)
        result = {"configuration_file": str(options["config_path"]), "message": done}
    else:
        [path] = find_hosts(options["target"])
        if options["cluster"]:
            result = _in_the_cluster(path, change, options["timeout_s"], as_json)
            hosts = ", ".join(str(one) for one in result["members"])
            result["message"] = f"{done} on host {hosts}"
        else:
            _edit(Path(call(path, "params")["configuration_file"]), change)
            answer = call(path, "reload", answer_within_s=30.0)
            result = {**answer, "message": f"{done}: {answer['message']}"}
    if as_json:
        print_json(result)
    else:
        click.echo(result["message"])


def _edit(path: Path, change: dict[str, Any]) -> None:
    """Change a file when the result is right; else nothing, and every error is told."""
    from softnlb import durable
    from softnlb.config import read_toml
    from softnlb.rule_edit import checked, edited

    read_toml(path)
    text = edited(path.read_text(encoding="utf-8-sig"), change)
    checked(path, text)
    try:
        durable.write(path, text)
    except OSError as error:
        raise SoftnlbError(
            f"{path} cannot be written: {error.strerror or error}", code=ReturnCode.IO_ERROR
        ) from error


def _in_the_cluster(
    path: Path, change: dict[str, Any], timeout_s: float, as_json: bool
) -> dict[str, Any]:
    rule_fields = change.get("rule", {})
    if "handling_priority" in rule_fields:
        raise SoftnlbError(
            "port_rule.handling_priority is different on every host: leave it out, or set it there",
            code=ReturnCode.BAD_PORT_PARAMS,
        )
    if set(rule_fields) == {"load_weight"} and change["do"] == "set":
        raise SoftnlbError(
            "port_rule.load_weight is each host's own: set it there, without --cluster",
            code=ReturnCode.BAD_PORT_PARAMS,
        )
    from softnlb.progress import wait_for_change

    call(path, "change", change=change, timeout_s=timeout_s)
    ended = wait_for_change(path, timeout_s, quiet=as_json)
    if ended["state"] != "done":
        raise _refused(str(ended["reason"]))
    return {**call(path, "query"), "configuration_digest": ended["configuration_digest"]}


def _refused(reason: str) -> SoftnlbError:
    """The sentence, and NLB's return code when it ends with one."""
    sentence, _, name = reason.removesuffix(")").rpartition(" (")
    if sentence and name in ReturnCode.__members__:
        return SoftnlbError(f"nothing was changed: {sentence}", code=ReturnCode[name])
    return SoftnlbError(f"nothing was changed: {reason}")
