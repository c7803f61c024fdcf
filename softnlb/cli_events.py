"""The verb `events`: what hosts of this machine have told, also when no agent runs."""

import json
import time
from pathlib import Path

import click

from softnlb.cli_common import Result, target_argument, with_target_help

POLL_S = 0.2


@click.command()
@target_argument
@click.option("--follow", "-f", is_flag=True, help="Go on, and show each event as it comes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document per line.")
@with_target_help
def events(target: str | None, follow: bool, as_json: bool) -> None:
    """Show the history of a host.

    Every event with its time: convergence by phases with the reasons, hosts lost and joined, what
    operators ordered, what was repaired. docs/events.md lists them. The history is kept on the
    disk, so it is there when the agent is not; without a target all hosts of this machine tell.
    """
    from softnlb.history import Reader

    directories = _directories(target)
    readers = [(directory.name, Reader(directory)) for directory in directories]
    while True:
        found = [(host, event) for host, reader in readers for event in reader.read()]
        for host, event in sorted(found, key=lambda told: told[1]["time"]):
            click.echo(json.dumps({"host": host, **event}) if as_json else _line(host, event))
        if not follow:
            return
        # Nobody can be woken by a file on every kind of file system.
        time.sleep(POLL_S)


def _directories(target: str | None) -> list[Path]:
    from softnlb.control import parse_target, state_dir
    from softnlb.errors import NotRunningError
    from softnlb.history import FILE

    cluster, host = parse_target("" if target in (None, "all") else str(target))
    found = []
    for directory in sorted(path.parent for path in state_dir().glob(f"*/{FILE}")):
        ours, _, host_id = directory.name.rpartition(":")
        if cluster in ("", ours) and host in ("", host_id):
            found.append(directory)
    if not found:
        raise NotRunningError(f"No host{f' {target}' if target else ''} has told anything here.")
    return found


def _line(host: str, event: Result) -> str:
    whole, fraction = divmod(float(event["time"]), 1)
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(whole))
    said = f"{event['name']}: {event['text']}"
    return f"{clock}.{int(fraction * 1000):03}  {host}  {event['severity']:<8} {said}"
