"""The verbs that NLB did not have: agent, config, explain, doctor, cleanup, lab."""

from pathlib import Path

import click

from softnlb.cli_common import config_option, json_option, print_json
from softnlb.cli_interchange import export, import_


@click.command()
@config_option("The configuration of this host.", required=True)
@click.option(
    "--data-plane",
    type=click.Choice(["auto", "nfqueue", "ebpf"]),
    default="auto",
    help="Overrides data_plane of the file.",
)
@click.option(
    "--attach",
    type=click.Choice(["auto", "tc", "xdp", "xdp-generic"]),
    default="auto",
    help="Where the ebpf data plane hooks in; overrides attach of the file.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Start although heartbeats for this cluster are heard that cannot be verified.",
)
def agent(config_path: Path, data_plane: str, attach: str, force: bool) -> int:
    """Be a host of the cluster until SIGTERM."""
    from softnlb.run import run

    return run(config_path, data_plane=data_plane, force=force, attach=attach)


@click.group()
def config() -> None:
    """Check a configuration file, or take one over from NLB and back."""


config.add_command(import_)
config.add_command(export)


@config.command()
@click.argument("config_path", type=click.Path(path_type=Path), metavar="FILE")
@json_option
def check(config_path: Path, as_json: bool) -> None:
    """Check a configuration file and show every error at once."""
    from softnlb import cli_show
    from softnlb.config import load

    loaded = load(config_path)
    result = {
        "file": str(loaded.path),
        "ok": True,
        "warnings": list(loaded.warnings),
        "digest": loaded.digest.hex(),
    }
    if as_json:
        print_json(result)
    else:
        cli_show.config_check(result)


@config.command()
def schema() -> None:
    """Print the JSON schema of configuration files, for editors."""
    from softnlb.config_schema import json_schema

    print_json(json_schema())


@click.command()
@config_option("Also look for what would get in the way of this host.")
@json_option
def doctor(config_path: Path | None, as_json: bool) -> int:
    """Try what softnlb needs of this machine.

    Exit status 5 when something needed is missing, 1 when something is in the way.
    """
    from dataclasses import asdict

    from softnlb import cli_show
    from softnlb.config import load
    from softnlb.doctor import examine, exit_code

    checks = examine(load(config_path) if config_path else None)
    status = exit_code(checks)
    result = {"exit_code": status, "checks": [asdict(check) for check in checks]}
    if as_json:
        print_json(result)
    else:
        cli_show.doctor(result)
    return status


@click.command()
@json_option
def cleanup(as_json: bool) -> None:
    """Undo what crashed hosts left on this machine.

    Running hosts are left alone.
    """
    from softnlb import cli_show, ebpf, link, nfqueue, record
    from softnlb.control import is_live, run_dir, state_dir

    undone: list[str] = []
    for file in sorted(state_dir().glob(f"*/{link.RECORD}")):
        if is_live(run_dir() / f"{file.parent.name}.sock"):
            continue
        left = record.read(file)
        undone += link.cleanup(file)
        if left is not None:
            nfqueue.cleanup(left.interface)
            undone += ebpf.cleanup(left.interface)
    if as_json:
        print_json({"undone": undone})
    else:
        cli_show.cleanup(undone)


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def lab(args: tuple[str, ...]) -> object:
    """Run throw-away clusters on this machine."""
    from importlib import import_module

    group: click.Group = import_module("labs.cli").lab
    return group.main(args=list(args), prog_name="softnlb lab", standalone_mode=False)
