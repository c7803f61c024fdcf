"""``softnlb lab``: throw-away clusters on this machine."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from labs.cli_export import export
from labs.cli_watch import capture, report
from labs.course.cli import COMMANDS
from modes.plan import Mode
from softnlb.cli_common import json_option, print_json

if TYPE_CHECKING:
    from labs.topology import LabSpec


@click.group(name="lab", context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """A whole cluster with switch, router and clients, in namespaces of its own.

    \b
    softnlb lab up --hosts 4 --timers fast      start one
    softnlb lab exec client1 -- curl -s http://10.1.0.100/
    softnlb lab fault kill host2                break something
    softnlb lab run flooding                    an experiment with a table
    softnlb lab start 1                         the course, lab 1 of 12
    softnlb lab down                            all of it is gone

    Exit status: 0 ok, 1 failed or refused, 2 usage, 3 no such lab running, 5 this machine lacks
    something.
    """


Verb = Callable[..., Any]

name_option = click.option("--name", default="lab", show_default=True, help="Name of the lab.")


def verb(function: Verb) -> Verb:
    """Give a verb --name and --json."""
    return name_option(json_option(function))


@lab.command()
@click.option("--hosts", default=4, show_default=True, help="Cluster hosts, 1 to 32.")
@click.option(
    "--mode", type=click.Choice([str(mode) for mode in Mode]), default="unicast", show_default=True
)
@click.option(
    "--timers",
    type=click.Choice(["nlb", "fast"]),
    default="nlb",
    show_default=True,
    help="nlb: a heartbeat each second; fast: every 100 ms.",
)
@click.option(
    "--data-plane",
    type=click.Choice(["auto", "nfqueue", "ebpf"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--attach",
    type=click.Choice(["auto", "tc", "xdp", "xdp-generic"]),
    default="auto",
    show_default=True,
    help="Where the ebpf data plane hooks in.",
)
@click.option(
    "--switch",
    type=click.Choice(["dumb", "linux", "mac"]),
    help="dumb: no snooping; linux: by IP group; mac: by MAC address.  "
    "Default: mac for IGMP, else dumb.",
)
@click.option(
    "--affinity",
    type=click.Choice(["none", "single", "network"]),
    default="single",
    show_default=True,
    help="Client affinity of the lab's one port rule.",
)
@click.option("--ipv6", is_flag=True, help="Every address of the lab is IPv6.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@verb
@click.pass_context
def up(
    context: click.Context,
    /,
    name: str,
    as_json: bool,
    file: Path | None,
    switch: str | None,
    mode: str,
    **choices: Any,
) -> None:
    """Start a lab and wait for convergence.

    FILE is a lab of your own in TOML (`softnlb lab init` writes one), or an exported topology
    (NAME.clab.yml); without it the usual lab starts, as the options want it.  Of several cluster
    IP addresses experiments, event log and captures follow the first.
    """
    from labs.topology import LabSpec
    from labs.up import start_lab
    from softnlb.progress import hush, steps, waiting

    if file is not None:
        spec = _own_lab(context, file, name)
    else:
        spec = LabSpec(
            name=name,
            mode=Mode(mode),
            switch=switch or ("mac" if mode == Mode.IGMP else "dumb"),
            **choices,
        )
    total = 0

    def stage(text: str, ms: int) -> None:
        nonlocal total
        total += ms
        if not as_json:
            hush()
            click.echo(f"  {ms:6d} ms  {text}", err=True)

    with steps(quiet=as_json):
        status = start_lab(spec, stage, waiting)
    if as_json:
        print_json(status | {"up_ms": total})
        return
    from labs.drawing import lab_map, next_steps

    click.echo(f"  {total:6d} ms  in all", err=True)
    click.echo("\n" + lab_map(status) + "\n")
    click.echo(next_steps(status))


def _own_lab(context: click.Context, file: Path, name: str) -> "LabSpec":
    """The lab of a file; of the options only --name may change it."""
    from dataclasses import replace

    from labs.lab_file import load
    from softnlb.errors import UsageError

    if file.name.endswith(".clab.yml"):
        from labs.containerlab_read import read as load

    def given(option: str) -> bool:
        return context.get_parameter_source(option) == ParameterSource.COMMANDLINE

    for option in ("hosts", "mode", "timers", "data_plane", "attach", "switch", "affinity", "ipv6"):
        if given(option):
            raise UsageError(f"--{option.replace('_', '-')} goes into {file}")
    spec = load(file)
    return replace(spec, name=name) if given("name") else spec


@lab.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
def init(as_json: bool, file: Path | None) -> None:
    """Write a commented example of a lab file.

    To FILE, which must not exist yet, or to standard output.
    """
    from softnlb.errors import SoftnlbError

    text = Path(__file__).with_name("example.toml").read_text()
    if file is not None:
        try:
            with file.open("x") as out:
                out.write(text)
        except OSError as error:
            raise SoftnlbError(f"{file}: {error.strerror}") from error
    if as_json:
        print_json({"file": str(file) if file else None, "text": text})
    elif file is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{file}: written; softnlb lab up {file} starts it")


@lab.command()
def schema() -> None:
    """Print the JSON schema of a lab file, for editors."""
    from labs.lab_schema import json_schema

    print_json(json_schema())


@lab.command()
@verb
def status(name: str, as_json: bool) -> None:
    """Show hosts, states and buckets."""
    from labs.handle import LabHandle

    facts = LabHandle(name).status()
    if as_json:
        print_json(facts)
        return
    from labs.drawing import print_status

    print_status(facts)


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@verb
def execute(name: str, as_json: bool, node: str, command: tuple[str, ...]) -> int:
    """Run a command in a node.

    softnlb lab exec client1 -- curl -s http://10.1.0.100/

    Passes on standard streams and the exit status.  With --json the command's output and status
    come as one document.
    """
    from labs.handle import LabHandle

    handle = LabHandle(name)
    if not as_json:
        return handle.execute(node, list(command))
    result = handle.complete(node, list(command))
    print_json({"node": node, "command": list(command), **result})
    return int(result["exit_status"])


@lab.command()
@click.argument("node")
@verb
def shell(name: str, as_json: bool, node: str) -> int:
    """A shell in a node."""
    from labs.handle import LabHandle

    os.environ["PS1"] = f"[{name}] {node}# "
    interactive = [os.environ.get("SHELL", "/bin/sh")]
    return LabHandle(name).execute(node, interactive)


@lab.command()
@click.argument("fault")
@click.argument("arguments", nargs=-1)
@verb
def fault(name: str, as_json: bool, fault: str, arguments: tuple[str, ...]) -> None:
    """Break something, or mend it.

    softnlb lab fault kill host2

    \b
    kill start             power a host off and on
    agent-kill stop cont   its agent: SIGKILL, SIGSTOP, SIGCONT
    freeze thaw            every process of the host
    unplug replug          its cable
    loss PERCENT           frames lost at its port; loss-from and loss-to: in one direction only
    mute deaf partition    what the switch does to it; heal ends these and the losses
    app-down app-up        its HTTP service
    leak-mac mask-mac      whether it sends from the cluster MAC address
    flush-rules            `nft flush ruleset` in the host; the agent repairs it
    clear-fdb              the switch forgets, and learns again
    snooping on|off, querier on|off                the switch's IGMP

    `softnlb lab status` shows what is broken.
    """
    from labs.handle import LabHandle

    message = LabHandle(name).fault(fault, *arguments)
    if as_json:
        print_json({"fault": fault, "arguments": list(arguments), "message": message})
    else:
        click.echo(message)


@lab.command()
@click.option("--all", "everything", is_flag=True, help="Every lab of this user.")
@verb
def down(name: str, as_json: bool, everything: bool) -> None:
    """End a lab; nothing of it is left."""
    import time

    from labs.handle import LabHandle
    from labs.state import running_labs

    began = time.monotonic()
    names = running_labs() if everything else [name]
    for each in names:
        LabHandle(each).down()
    ms = round((time.monotonic() - began) * 1000)
    if as_json:
        print_json({"down": names, "ms": ms})
    else:
        click.echo(f"{', '.join(names) or 'no lab'}: down after {ms} ms")


@lab.command(name="open")
@click.argument("port", type=click.IntRange(0, 65535), default=8080)
@verb
def open_port(name: str, as_json: bool, port: int) -> None:
    """Show the cluster to your browser.

    Relays 127.0.0.1:PORT of this machine through a client to the cluster IP address.
    """
    from labs.handle import LabHandle
    from labs.relay import relay

    def opened(actual: int, client: str) -> None:
        url = f"http://127.0.0.1:{actual}/"
        if as_json:
            print_json({"url": url})
        else:
            click.echo(f"{url} is the cluster, seen through {client}; Ctrl-C ends it")
        sys.stdout.flush()

    relay(LabHandle(name), port, opened)


class Runs(click.Group):
    """The experiments: every module in labs/runs is one, imported when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the experiments."""
        from pkgutil import iter_modules

        import labs.runs

        return sorted(module.name for module in iter_modules(labs.runs.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The experiment of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        from importlib import import_module

        command: click.Command = import_module(f"labs.runs.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The first line of each module says what it is: none needs to be imported for that."""
        folder = Path(__file__).with_name("runs")
        rows = []
        for name in self.list_commands(ctx):
            with (folder / f"{name}.py").open() as file:
                rows.append((name, file.readline().strip().strip('"')))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


for _command in (capture, export, report, *COMMANDS):
    lab.add_command(_command)
lab.add_command(
    Runs(
        name="run",
        help="Run an experiment.\n\nIt starts labs of its own, measures, prints a table and leaves "
        "nothing running.",
    )
)


if __name__ == "__main__":
    from softnlb.cli import run

    sys.exit(run(["lab", *sys.argv[1:]]))
