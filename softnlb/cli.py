"""The command `softnlb`: the group of all verbs, and how an error becomes an exit status.

A verb's module is imported when the verb is typed, and what is heavy inside the verb that needs it:
every command starts fast.
"""

import os
import sys
from importlib import import_module

import click

from softnlb import __version__
from softnlb.errors import SoftnlbError, bad_params

_NLB_VERBS = (
    "query display params ip2mac queryport start stop drainstop suspend resume reload"
    " enable disable drain"
)
VERBS = {name: f"cli_verbs.{name}" for name in _NLB_VERBS.split()} | {
    "rule": "cli_rule.rule",
    "set": "cli_rule.set_cluster",
    "affinity": "cli_affinity.affinity",
    "events": "cli_events.events",
    "agent": "cli_more.agent",
    "config": "cli_more.config",
    "decode": "cli_decode.decode",
    "explain": "cli_explain.explain",
    "plan": "cli_plan.plan",
    "doctor": "cli_more.doctor",
    "cleanup": "cli_more.cleanup",
    "bench": "cli_bench.bench",
    "lab": "cli_more.lab",
}
"""Verb -> its module and function."""

EXIT_STATUS = """
\b
Exit status:
  0  done
  1  refused: unknown host, another agent on the interface, no such port rule
  2  wrong usage, or a wrong configuration file; nothing was applied
  3  the agent or the lab is not running
  5  a privilege or a kernel feature is missing (see: softnlb doctor)

With --json an error is {"error", "exit_code", "hint"} on stdout, and "code" where NLB has a name
for the refusal; its sentence is always on stderr.
"""

HINTS = {
    2: "softnlb --help shows the verbs, softnlb VERB --help how one is used",
    3: "softnlb agent --config FILE starts a host, softnlb lab up a whole lab",
    5: "softnlb doctor shows what is missing and how to get it",
}


class Verbs(click.Group):
    """The verbs, each imported when it is typed; for the list of them, all."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name."""
        if cmd_name not in VERBS:
            return None
        module, _, function = VERBS[cmd_name].partition(".")
        command: click.Command = getattr(import_module(f"softnlb.{module}"), function)
        return command


@click.group(
    cls=Verbs, epilog=EXIT_STATUS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="softnlb", message="%(prog)s %(version)s")
def cli() -> None:
    """Network Load Balancing: up to 32 hosts share one IP address.

    \b
    Try:
      softnlb lab up --hosts 4          a throw-away cluster on this machine
      softnlb query                     how the host on this machine is
      softnlb drainstop --wait          let a host finish its connections, then stop it
    """


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Carry out one command line and return its exit status."""
    try:
        status = cli.main(args=args, prog_name="softnlb", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "softnlb"
        refusal = bad_params(f"{error.format_message()} See: {command} --help")
        return _fail(args, str(refusal), error.exit_code, f"{command} --help", refusal)
    except click.ClickException as error:
        return _fail(args, error.format_message(), error.exit_code, None)
    except SoftnlbError as error:
        return _fail(args, str(error), error.exit_code, HINTS.get(error.exit_code), error)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if isinstance(status, int) else 0


def _fail(
    args: list[str],
    sentence: str,
    exit_code: int,
    hint: str | None,
    error: SoftnlbError | None = None,
) -> int:
    problems = getattr(error, "problems", None)  # a ConfigError; its lines begin with the file
    prefix = "softnlb: " if problems is None else ""
    click.echo(f"{prefix}{sentence}", err=True)
    own_args = args[: args.index("--")] if "--" in args else args
    if "--json" in own_args:
        from dataclasses import asdict

        from softnlb.cli_common import print_json

        document: dict[str, object] = {"error": sentence, "exit_code": exit_code, "hint": hint}
        if error is not None and error.code is not None:
            document["code"] = error.code.name
        if problems is not None:
            document["problems"] = [asdict(problem) for problem in problems]
        print_json(document)
    return exit_code
