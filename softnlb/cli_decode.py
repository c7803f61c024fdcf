"""The verb `decode`: the heartbeats of a capture in words."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from softnlb.cli_common import json_option
from softnlb.errors import SoftnlbError


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--changes", is_flag=True, help="Only heartbeats that say something new.")
@json_option
def decode(path: Path, changes: bool, as_json: bool) -> None:
    """Say in words what the heartbeats of a capture say.

    FILE is pcap or pcapng, from `softnlb lab capture`, tcpdump or Wireshark. With --json one
    object per line. Copies of one frame at several ports are shown once.
    """
    found = 0
    for line in _lines(path, changes, as_json):
        click.echo(line)
        found += 1
    if not found:
        raise SoftnlbError(f"{path} has no heartbeats in it")


def _lines(path: Path, changes: bool, as_json: bool) -> Iterator[str]:
    from convergence.clients import SIGNATURE_BYTES
    from convergence.heartbeat import ETHERTYPE, Foreign, Heartbeat, HeartbeatError
    from convergence.heartbeat import decode as decode_heartbeat
    from softnlb.capture_file import read_capture
    from softnlb.heartbeat_words import facts, list_facts, list_words, words

    first_ns: int | None = None
    last: dict[int, Heartbeat] = {}
    foreign: set[int] = set()
    for frame in read_capture(path):
        first_ns = frame.at_ns if first_ns is None else first_ns
        if frame.data[12:14] != ETHERTYPE.to_bytes(2, "big"):
            continue
        at_s = round((frame.at_ns - first_ns) / 1e9, 6)
        known: dict[str, Any]
        try:
            if frame.data[14:18] == SIGNATURE_BYTES:
                known = list_facts(frame.data[14:])
                yield _line(at_s, frame.interface, list_words(known), known, as_json)
                continue
            heartbeat = decode_heartbeat(frame.data[14:])
        except HeartbeatError as error:
            text, known = f"no heartbeat: {error}", {"error": str(error)}
        else:
            if isinstance(heartbeat, Foreign):
                if heartbeat.host_id in foreign and changes:
                    continue
                foreign.add(heartbeat.host_id)
                text = f"heartbeat of host {heartbeat.host_id} of NLB itself"
                known = {"host_id": heartbeat.host_id, "foreign": True}
            else:
                before = last.get(heartbeat.statement.host_id)
                if before is not None and (
                    (before.statement.host_code, before.sequence)
                    == (heartbeat.statement.host_code, heartbeat.sequence)
                    or (changes and before.statement == heartbeat.statement)
                ):
                    continue
                last[heartbeat.statement.host_id] = heartbeat
                text, known = words(heartbeat), facts(heartbeat)
        yield _line(at_s, frame.interface, text, known, as_json)


def _line(at_s: float, interface: str, text: str, known: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps({"at_s": at_s, "interface": interface, **known})
    return f"{at_s:10.6f} s  {interface:<10} {text}"
