"""What the verbs of the command line share: options, targets, and how a result is printed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from softnlb.control import call, find_hosts

Result = dict[str, Any]

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, also for an error."
)

target_argument = click.argument("target", required=False, metavar="[CLUSTER[:HOST]|all]")

TARGET_HELP = """
    CLUSTER is a cluster IP address, HOST a host id or a dedicated IP address. Without a target it
    is the only host on this machine; "all" is every host on this machine.
"""


def with_target_help(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say in the help of a verb what a target is."""
    function.__doc__ = (function.__doc__ or "") + "\n" + TARGET_HELP
    return function


def ask(target: str | None, verb: str, **args: Any) -> list[tuple[Path, Result]]:
    """Ask each host that the target names; raises SoftnlbError at the first that refuses."""
    return [(path, call(path, verb, **args)) for path in find_hosts(target)]


def print_json(document: Any) -> None:
    """One JSON document on stdout, readable and with the keys in their order."""
    click.echo(json.dumps(document, indent=2 if sys.stdout.isatty() else None))


def show(
    target: str | None, as_json: bool, results: list[Result], human: Callable[[Result], None]
) -> None:
    """Print the results: for the target "all" a list, else the one result."""
    if as_json:
        print_json(results if target == "all" else results[0])
        return
    for number, result in enumerate(results):
        if number:
            click.echo()
        human(result)
