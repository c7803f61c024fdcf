"""``softnlb lab capture`` and ``softnlb lab report``: what a lab shows to programs and on paper."""

import sys
from pathlib import Path

import click

from softnlb.cli_common import json_option, print_json


@click.command()
@click.argument("ports", nargs=-1)
@click.option("-w", "--write", "path", default="-", help="pcapng file; - is standard output.")
@click.option("--count", type=click.IntRange(1), help="End after so many frames.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help="End after so many seconds."
)
@click.option("--name", default="lab", show_default=True, help="Name of the lab.")
@json_option
def capture(
    name: str,
    as_json: bool,
    ports: tuple[str, ...],
    path: str,
    count: int | None,
    seconds: float | None,
) -> None:
    """Capture frames, each with a comment: bucket, host, verdict, reason.

    softnlb lab capture host1 client1:eth0 -w lab.pcapng

    NODE is the switch's end of its cable, where every frame shows, also those that the host drops;
    NODE:INTERFACE is the node's own side. Without PORTS all ports of the switch. Each is an
    interface of its own in the file; what the switch learns, faults and the like stand between
    the frames.
    For Wireshark: softnlb lab capture | wireshark -k -i -
    """
    from labs.capture import capture_to
    from labs.handle import LabHandle
    from softnlb.errors import UsageError

    if path == "-" and (as_json or sys.stdout.isatty()):
        raise UsageError("frames are no text: name a file with -w, or pipe them into a program")
    captured = capture_to(LabHandle(name), list(ports), path, count, seconds)
    if as_json:
        print_json({"file": path, **captured._asdict()})
    else:
        lost = f", {captured.lost} lost" if captured.lost else ""
        click.echo(f"{captured.frames} frames{lost}", err=True)


@click.command()
@click.argument("events", required=False, type=click.Path(path_type=Path), metavar="[EVENTS]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: report.html.")
@click.option(
    "--figures", type=click.Path(path_type=Path), metavar="DIR", help="Also as PNG and SVG files."
)
@click.option(
    "--events", "keep", type=click.Path(path_type=Path), metavar="FILE", help="Keep the log, too."
)
@click.option("--name", default="lab", show_default=True, help="Name of the lab.")
@json_option
def report(
    name: str,
    as_json: bool,
    events: Path | None,
    output: Path | None,
    figures: Path | None,
    keep: Path | None,
) -> None:
    """Make one page with figures from an event log.

    EVENTS is what `softnlb lab run ... --events EVENTS` wrote; without it the running lab is asked.
    The page needs no network. With --json the same figures come as numbers.
    """
    from labs.report import build
    from softnlb.errors import SoftnlbError
    from softnlb.progress import step, steps

    with steps(quiet=as_json):
        step("reading the event log")
        told = build.stories(events, name)
    output = output or (None if as_json else Path("report.html"))
    title = f"softnlb: {events.stem if events else 'lab ' + name}"
    try:
        if output is not None:
            with steps(quiet=as_json):
                step("drawing the page")
                output.write_text(build.html(told, title))
        if keep is not None:
            from labs.handle import LabHandle

            keep.write_bytes(events.read_bytes() if events else LabHandle(name).events())
    except OSError as error:
        raise SoftnlbError(f"{error.filename}: {error.strerror}") from error
    written = build.write_figures(told, figures) if figures is not None else []
    if as_json:
        print_json({"labs": [story.to_json() for story in told]})
    else:
        for path in (output, *written):
            click.echo(path)
