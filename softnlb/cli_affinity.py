"""`softnlb affinity`: whom extended affinity keeps where."""

from collections.abc import Callable

import click

from softnlb.cli_common import Result, ask, json_option, show, target_argument, with_target_help
from softnlb.cli_show import table


@click.group()
def affinity() -> None:
    """Extended affinity: clients that keep their host.

    A port rule with a timeout remembers its clients until they have been silent for so many
    minutes; other rules have none.
    """


def _show(target: str | None, as_json: bool, part: str, human: Callable[[Result], None]) -> None:
    results = [{"host": path.stem, part: answer[part]} for path, answer in ask(target, "affinity")]
    show(target, as_json, results, human)


@affinity.command("list")
@target_argument
@json_option
@with_target_help
def list_command(target: str | None, as_json: bool) -> None:
    """Show the clients that a host remembers.

    LISTED are those whose bucket is another host's: the others have them as exceptions.
    """
    _show(target, as_json, "clients", _clients)


@affinity.command()
@target_argument
@json_option
@with_target_help
def exceptions(target: str | None, as_json: bool) -> None:
    """Show the clients that a host leaves to others.

    Each is on the list of the host that is named, whoever owns the bucket.
    """
    _show(target, as_json, "exceptions", _exceptions)


def _clients(result: Result) -> None:
    clients = result["clients"]
    listed = sum(client["listed"] for client in clients)
    click.echo(f"{result['host']}: {len(clients)} clients remembered, {listed} of them listed")
    if clients:
        rows = [
            (one["client"], one["rule"], one["bucket"], f"{one['silent_s']} s", _mark(one))
            for one in clients
        ]
        table(["client", "rule", "bucket", "silent for", "listed"], rows)


def _mark(client: Result) -> str:
    return "yes" if client["listed"] else ""


def _exceptions(result: Result) -> None:
    found = result["exceptions"]
    click.echo(f"{result['host']}: {len(found)} clients left to other hosts")
    if found:
        table(
            ["client", "rule", "host"],
            [(one["client"], one["rule"], one["host_id"]) for one in found],
        )
