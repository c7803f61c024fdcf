"""The verbs that NLB did not have: agent, config, explain, doctor, cleanup, lab."""

from pathlib import Path

import click

from softnlb.cli_common import json_option, print_json

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A configuration file.",
)


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The configuration of this host.",
)
@click.option(
    "--data-plane",
    type=click.Choice(["auto", "nfqueue", "ebpf"]),
    default="auto",
    help="Overrides data_plane of the file.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Start although heartbeats for this cluster are heard that cannot be verified.",
)
def agent(config_path: Path, data_plane: str, force: bool) -> int:
    """Be a host of the cluster, in the foreground, until SIGTERM."""
    from softnlb.agent import run

    return run(config_path, data_plane=data_plane, force=force)


@click.group()
def config() -> None:
    """Check a configuration file."""


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


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def lab(args: tuple[str, ...]) -> object:
    """Run throw-away clusters on this machine: up, status, exec, fault, run, down."""
    from importlib import import_module

    group: click.Group = import_module("labs.cli").lab
    return group.main(args=list(args), prog_name="softnlb lab", standalone_mode=False)
