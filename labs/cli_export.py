"""``softnlb lab export``: a lab for machines and tools beyond this one."""

from ipaddress import IPv4Address
from pathlib import Path

import click

from softnlb.cli_common import json_option, print_json
from softnlb.errors import UsageError


@click.group(name="export")
def export() -> None:
    """A lab as files for another tool."""


@export.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--machine",
    "machines",
    multiple=True,
    help="Address of a machine, once for each when there are several; hosts are spread over all.",
)
@json_option
def containerlab(
    directory: Path, file: Path | None, machines: tuple[str, ...], as_json: bool
) -> None:
    """Write DIRECTORY: the lab of FILE (default: the usual one) for containerlab.

    Frames between machines cross VXLAN tunnels.  `softnlb lab up` reads the result, too.
    """
    from labs import lab_file
    from labs.containerlab import export as write
    from labs.topology import LabSpec

    try:
        addresses = tuple(IPv4Address(machine) for machine in machines)
    except ValueError as error:
        raise UsageError(f"--machine: {error}") from error
    spec = lab_file.load(file) if file else LabSpec()
    document = spec.complete_document()
    written = [str(path) for path in write(document, directory, addresses)]
    if as_json:
        print_json({"written": written})
        return
    for path in written:
        click.echo(path)
