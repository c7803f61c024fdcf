"""The verbs of NLB's own command line, for hosts on this machine."""

from collections.abc import Callable
from typing import Any

import click

from softnlb import cli_show
from softnlb.cli_common import ask, json_option, print_json, show, target_argument, with_target_help
from softnlb.control import call, find_hosts, split_address
from softnlb.errors import bad_params

Command = Callable[..., None]


def _verb(function: Command) -> click.Command:
    """A verb with a target, as the last argument, and --json."""
    return click.command()(target_argument(json_option(with_target_help(function))))


def _order(verb: str, target: str | None, as_json: bool, **args: Any) -> None:
    """Give an order to each host of the target and say what came of it."""
    results = [{"host": path.stem, **result} for path, result in ask(target, verb, **args)]
    show(target, as_json, results, cli_show.order)


# ---------------------------------------------------------------- questions


@_verb
def query(target: str | None, as_json: bool) -> None:
    """Show state, members and default host."""
    results = [
        result if "error" not in result else {"host": path.stem, **result}
        for path, result in ask(target, "query")
    ]
    show(target, as_json, results, cli_show.query)


@_verb
def display(target: str | None, as_json: bool) -> None:
    """Show everything about a host.

    Parameters, port rules, state, convergence history, packets by reason, events.
    """
    results = [result for _, result in ask(target, "display")]
    show(target, as_json, results, cli_show.display)


@_verb
def params(target: str | None, as_json: bool) -> None:
    """Show the parameters in force."""
    results = [result for _, result in ask(target, "params")]
    show(target, as_json, results, cli_show.params)


@click.command()
@click.argument("cluster_ip_address", metavar="CLUSTER_IP_ADDRESS")
@json_option
def ip2mac(cluster_ip_address: str, as_json: bool) -> None:
    """Show the MAC addresses of a cluster IP address.

    A calculation only: nothing needs to run. The addresses come from the primary cluster IP
    address, whatever other addresses the cluster has.
    """
    from ipaddress import ip_address

    from modes.mac import ip2mac as calculate

    try:
        result = calculate(ip_address(cluster_ip_address))
    except ValueError as error:
        raise bad_params(
            f"{cluster_ip_address} is not an IP address,"
            " expected one as in 10.1.0.100 or 2001:db8::100."
        ) from error
    if as_json:
        print_json(result)
    else:
        cli_show.ip2mac(result)


@click.command()
@click.argument("port", metavar="[VIP:]PORT")
@target_argument
@click.option(
    "--protocol", type=click.Choice(["tcp", "udp"]), help="When rules differ by protocol."
)
@json_option
@with_target_help
def queryport(port: str, target: str | None, protocol: str | None, as_json: bool) -> None:
    """Show the port rule that covers a port."""
    address, colon, number = split_address(port)
    if not colon:
        address, number = "", address
    args = {"cluster_ip_address": address or None, "port": _port(number), "protocol": protocol}
    results = [result for _, result in ask(target, "queryport", **args)]
    show(target, as_json, results, cli_show.queryport)


# ---------------------------------------------------------------- orders


@click.command()
@target_argument
@click.option(
    "--force",
    is_flag=True,
    help="Start although heartbeats for this cluster are heard that cannot be verified.",
)
@json_option
@with_target_help
def start(target: str | None, force: bool, as_json: bool) -> None:
    """Join the cluster. Ends a drainstop that is going on."""
    _order("start", target, as_json, force=force)


@click.command()
@target_argument
@click.option("--wait", is_flag=True, help="Return when the host is stopped.")
@json_option
@with_target_help
def stop(target: str | None, wait: bool, as_json: bool) -> None:
    """Leave the cluster at once.

    Connections that this host serves are lost; drainstop waits for them.
    """
    if wait:
        _order_and_wait("stop", target, as_json)
    else:
        _order("stop", target, as_json)


@click.command()
@target_argument
@click.option("--wait", is_flag=True, help="Show the remaining connections; return when stopped.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="S",
    help="After S seconds stop, with connections left or not.",
)
@json_option
@with_target_help
def drainstop(target: str | None, wait: bool, timeout_s: float | None, as_json: bool) -> None:
    """Take nothing new, stop after the last connection."""
    if wait:
        _order_and_wait("drainstop", target, as_json, timeout_s=timeout_s)
    else:
        _order("drainstop", target, as_json, timeout_s=timeout_s)


def _order_and_wait(verb: str, target: str | None, as_json: bool, **args: Any) -> None:
    from softnlb.progress import wait_until_stopped

    results = []
    for path in find_hosts(target):
        call(path, verb, **args)
        result = wait_until_stopped(path, quiet=as_json)
        results.append({"host": path.stem, **result})
    show(target, as_json, results, cli_show.order)


@_verb
def suspend(target: str | None, as_json: bool) -> None:
    """Stop, and obey no verb but resume and query."""
    _order("suspend", target, as_json)


@_verb
def resume(target: str | None, as_json: bool) -> None:
    """End a suspension. The host stays stopped until it is started."""
    _order("resume", target, as_json)


@_verb
def reload(target: str | None, as_json: bool) -> None:
    """Read the configuration file again.

    With errors in it nothing changes.
    """
    _order("reload", target, as_json)


# ---------------------------------------------------------------- orders about port rules


def _rule_verb(function: Command) -> click.Command:
    ports = click.argument("ports", metavar="{VIP|all}[:{PORT|all}]")
    return click.command()(ports(target_argument(json_option(with_target_help(function)))))


def _order_rules(verb: str, ports: str, target: str | None, as_json: bool) -> None:
    address, _, port = split_address(ports)
    number = "all" if port in ("", "all") else _port(port)
    _order(verb, target, as_json, cluster_ip_address=address or "all", port=number)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise bad_params(f"{text!r} is not a port, expected a number from 0 to 65535.")
    return int(text)


@_rule_verb
def enable(ports: str, target: str | None, as_json: bool) -> None:
    """Take traffic of a port rule again."""
    _order_rules("enable", ports, target, as_json)


@_rule_verb
def disable(ports: str, target: str | None, as_json: bool) -> None:
    """Take no traffic of a port rule at all.

    Existing connections of the rule are cut off, too; drain leaves them.
    """
    _order_rules("disable", ports, target, as_json)


@_rule_verb
def drain(ports: str, target: str | None, as_json: bool) -> None:
    """Take no new connections of a port rule.

    Existing ones go on.
    """
    _order_rules("drain", ports, target, as_json)
