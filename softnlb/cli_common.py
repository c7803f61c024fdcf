"""What the verbs of the command line share: options, targets, and how a result is printed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from softnlb.errors import ReturnCode, SoftnlbError
from softnlb.remote_verbs import REMOTE_VERBS

Result = dict[str, Any]
Function = Callable[..., Any]

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, also for an error."
)

target_argument = click.argument("target", required=False, metavar="[CLUSTER[:HOST]|all]")

TARGET_HELP = """
    CLUSTER is a cluster IP address, HOST a host id or a dedicated IP address. Without a target it
    is the only host on this machine; "all" is every host on this machine. Where remote control is
    on, HOST may be any host of the cluster, and CLUSTER alone is all of them.
"""


def with_target_help(function: Function) -> Function:
    """Say in the help of a verb what a target is."""
    function.__doc__ = (function.__doc__ or "") + "\n" + TARGET_HELP
    return function


def config_option(text: str, required: bool = False) -> Callable[[Function], Function]:
    """--config FILE of a verb, with its own help."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        required=required,
        metavar="FILE",
        help=text,
    )


def ask(target: str | None, verb: str, **args: Any) -> list[tuple[Path, Result]]:
    """Ask each host that the target names; raises SoftnlbError at the first that refuses.

    Where remote control is on, CLUSTER is every host of the cluster, and CLUSTER:HOST may be any.
    Of several hosts each has its own result; that of one that refuses has an "error".
    """
    from softnlb.control import call, find_hosts

    member = _member_of(target) if verb in REMOTE_VERBS else None
    if member is None:
        return [(path, call(path, verb, **args)) for path in find_hosts(target)]
    return _ask_cluster(member, str(target), verb, args)


def _member_of(target: str | None) -> Path | None:
    """A host here of the cluster whose other hosts the target names, too."""
    from softnlb.control import call, cluster_of, find_hosts, is_host, parse_target

    cluster, host = parse_target("" if target in (None, "all") else str(target))
    ours = [path for path in find_hosts("all") if cluster == cluster_of(path)]
    if not ours or (host and any(is_host(path, host) for path in ours)):
        return None
    return ours[0] if call(ours[0], "params").get("remote_control_port") else None


def _ask_cluster(
    member: Path, target: str, verb: str, args: dict[str, Any]
) -> list[tuple[Path, Result]]:
    from softnlb.control import call, parse_target
    from softnlb.remote_client import ask_remote, cluster_of_member

    cluster = cluster_of_member(call(member, "params"))
    _, host = parse_target(target)
    results: dict[int, Result] = {}
    if host:
        expected = {int(host)} if host.isdecimal() else set()
    else:
        expected = set(call(member, "query")["members"]) - {cluster.own_host_id}
    answers = ask_remote(cluster, host or "all", expected, verb, **args)
    if not host:
        # This host last: an order may take away the member that the others are asked from.
        results[cluster.own_host_id] = call(member, verb, **args)
    elif not answers:
        answers = {0: {"ok": False, "error": f"no host {target} answers", "code": "NOT_FOUND"}}
    for host_id, answer in answers.items():
        if answer.get("ok"):
            results[host_id] = dict(answer["result"])
        elif host:
            code = ReturnCode.__members__.get(str(answer.get("code")))
            sentence = str(answer.get("error")).removesuffix(f" ({code.name})" if code else "")
            raise SoftnlbError(f"{target}: {sentence}", code=code)
        else:
            results[host_id] = {"error": str(answer.get("error"))}
    return [
        (member.with_name(f"{cluster.address}:{host_id}.sock"), result)
        for host_id, result in sorted(results.items())
    ]


def print_json(document: Any) -> None:
    """One JSON document on stdout, readable and with the keys in their order."""
    click.echo(json.dumps(document, indent=2 if sys.stdout.isatty() else None))


def show(
    target: str | None, as_json: bool, results: list[Result], human: Callable[[Result], None]
) -> None:
    """Print the results: for the target "all" a list, else the one result."""
    refused = [result for result in results if "error" in result]
    if as_json:
        print_json(results if target == "all" or len(results) > 1 else results[0])
    else:
        for number, result in enumerate(one for one in results if "error" not in one):
            if number:
                click.echo()
            human(result)
    if refused:
        raise SoftnlbError("; ".join(f"{one.get('host')}: {one['error']}" for one in refused))
