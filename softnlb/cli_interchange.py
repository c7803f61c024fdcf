"""`softnlb config import` and `softnlb config export`: from NLB and to NLB."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from softnlb.cli_common import json_option, print_json
from softnlb.errors import ReturnCode, SoftnlbError, UsageError

FILE_MAX_BYTES = 1 << 20


@click.command(name="import")
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--host", "node", help="Host priority or name, where several hosts are in it.")
@click.option("--interface", default="eth0", show_default=True, help="The interface here.")
@click.option("--dedicated-ip-address", metavar="ADDRESS/LENGTH", help="Where none is in it.")
@click.option("--stop", is_flag=True, help="Stop when a value has no equal, instead of going on.")
@json_option
def import_(
    source: Path,
    node: str | None,
    interface: str,
    dedicated_ip_address: str | None,
    stop: bool,
    as_json: bool,
) -> None:
    """Print a configuration made of NLB's.

    FILE (- is standard input) is the output of `nlb display`, or of Get-NlbCluster,
    Get-NlbClusterNode, Get-NlbClusterNodeDip, Get-NlbClusterVip and Get-NlbClusterPortRule
    as JSON.
    """
    import tomllib

    from softnlb.config_check import build
    from softnlb.nlb_import import as_toml, read

    found = read(_text(source), node)
    found.host["interface"] = interface
    if dedicated_ip_address:
        found.host["dedicated_ip_address"] = dedicated_ip_address
    if stop and found.unmapped:
        sentences = "\n".join(str(one) for one in found.unmapped)
        raise SoftnlbError(f"no equal for:\n{sentences}", code=ReturnCode.BAD_PARAMS)
    text = as_toml(found)
    build(source, tomllib.loads(text))
    if as_json:
        lacking = [asdict(one) for one in found.unmapped]
        print_json({"configuration": text, "not_taken_over": lacking})
        return
    for one in found.unmapped:
        click.echo(f"not taken over: {one}", err=True)
    click.echo(text, nl=False)


def _text(source: Path) -> str:
    try:
        if str(source) == "-":
            content = sys.stdin.buffer.read(FILE_MAX_BYTES + 1)
        else:
            with source.open("rb") as file:
                content = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error
    if len(content) > FILE_MAX_BYTES:
        raise UsageError(f"{source}: more than {FILE_MAX_BYTES} bytes")
    # PowerShell 5 writes UTF-16 where it redirects.
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return content.decode(encoding, errors="replace")


@click.command()
@click.argument("config_path", type=click.Path(path_type=Path), metavar="FILE")
@json_option
def export(config_path: Path, as_json: bool) -> None:
    """Print a PowerShell script that builds the same cluster with NLB."""
    from softnlb.config import load
    from softnlb.nlb_export import script

    text, lacking = script(load(config_path))
    if as_json:
        print_json({"script": text, "not_taken_over": lacking})
        return
    for sentence in lacking:
        click.echo(f"not taken over: {sentence}", err=True)
    click.echo(text, nl=False)
