"""The verb `explain`: from a client's address and port to the host that takes the connection."""

from pathlib import Path

import click

from softnlb.cli_common import ask, config_option, json_option, show
from softnlb.cli_show import Result, bold
from softnlb.errors import bad_params
from softnlb.packet import PROTOCOLS

AFFINITIES = {
    "none": "client address and port: each connection on its own",
    "single": "client address: all its connections stay together",
    "network": "client network, /24 or IPv6 /64: neighbours stay together",
}

DEFAULT = "no port rule covers the port: it goes to the default host"

COMPANIONS = {
    "gre": "GRE goes with PPTP, TCP port 1723",
    "esp": "ESP goes with IKE, UDP port 500",
    "ah": "AH goes with IKE, UDP port 500",
}

REASONS = {
    "owner": "this host owns the bucket and takes the connection",
    "not-mine": "this host sees the packet too, and leaves it to the owner",
    "affinity": "extended affinity: this host remembers the client and keeps it",
    "exception": "extended affinity: another host remembers the client and keeps it",
    "draining": "this host takes no new connections: it is draining",
    "no-lease": "this host would own the bucket, but nobody has heard it lately",
    "disabled": "the rule takes no traffic here",
    "stopped": "this host is stopped",
    "every-host": "every host takes it: port rules are for TCP and UDP",
    "remote-control": "every host hears remote control",
    "not-cluster": "the server is no cluster IP address: not the cluster's business",
}


@click.command()
@click.argument("words", nargs=-1, metavar="[FLOW] [CLUSTER[:HOST]|all]")
@click.option("--client", metavar="ADDRESS:PORT", help="Where the connection comes from.")
@click.option("--server", metavar="VIP:PORT", help="Where it goes.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), help="Default: tcp.")
@config_option("Explain from this file instead of asking a running host.")
@click.option("--hosts", metavar="1,2,4", help="With --config: the hosts that are alive.")
@json_option
def explain(
    words: tuple[str, ...],
    client: str | None,
    server: str | None,
    protocol: str | None,
    config_path: Path | None,
    hosts: str | None,
    as_json: bool,
) -> None:
    """Explain which host keeps a flow, and why.

    FLOW is "tcp 10.0.0.7:40000 > 10.1.0.100:80" (quoted, or without the arrow); --client,
    --server and --protocol say the same.

    Without --config a running host answers. With --config the owner is unknown, because it
    depends on the history of the cluster; --hosts names the live hosts and shows who would own
    the bucket after a fresh start of just these.
    """
    if client is None and server is None and protocol is None:
        protocol, client, server, target = _parse(words)
    elif client is None or server is None:
        raise bad_params("A flow has two ends: give both --client and --server.")
    elif len(words) > 1:
        raise bad_params("Give the flow with --client and --server or as FLOW, not both.")
    else:
        target = words[0] if words else None
    flow = {"client": client, "server": server, "protocol": protocol or "tcp"}
    if config_path is not None:
        if target is not None:
            raise bad_params("A configuration file answers for itself: give --config or a target.")
        results = [_offline(config_path, hosts, **flow)]
    elif hosts is not None:
        raise bad_params("--hosts goes with --config; a running host knows who is alive.")
    else:
        results = [result for _, result in ask(target, "explain", **flow)]
    show(target, as_json, results, lambda result: _human(flow, result))


def _parse(words: tuple[str, ...]) -> tuple[str, str, str, str | None]:
    """Protocol, client, server and target of a FLOW, given as one word or as several."""
    parts = " ".join(words).replace("->", " ").replace(">", " ").split()
    if len(parts) not in (3, 4):
        raise bad_params(
            'A flow is expected, as in "tcp 10.0.0.7:40000 > 10.1.0.100:80", or --client and'
            " --server."
        )
    return parts[0], parts[1], parts[2], parts[3] if len(parts) == 4 else None


def _offline(path: Path, hosts: str | None, client: str, server: str, protocol: str) -> Result:
    from softnlb.config import load
    from softnlb.explain import explain_offline

    try:
        alive = None if hosts is None else [int(host_id) for host_id in hosts.split(",")]
    except ValueError as error:
        raise bad_params(f"{hosts!r} is no list of host ids, expected one as in 1,2,4.") from error
    return explain_offline(load(path), client, server, protocol, alive)


def _human(flow: dict[str, str], result: Result) -> None:
    click.echo(bold(f"{flow['protocol']} {flow['client']} > {flow['server']}"))
    name, _, note = result["reason"].partition(" (")
    if result["rule"] is not None:
        key = " ".join(result["key"][at : at + 2] for at in range(0, len(result["key"]), 2))
        default = DEFAULT if result["rule"] == "default rule" else ""
        _step("rule", result["rule"], COMPANIONS.get(flow["protocol"], default))
        _step("key", key, AFFINITIES[result["affinity"]])
        _step("hash", str(result["hash"]), "murmur3 of the key; every host computes the same")
        _step("bucket", str(result["bucket"]), f"{result['hash']} mod 60")
        _step("owner", *_owner(result))
    verdict = result["verdict"] or "-"
    _step("verdict", verdict, f"{name}: {REASONS[name]}" if name in REASONS else name)
    if note:
        click.echo(f"\n({note}")


def _owner(result: Result) -> tuple[str, str]:
    if result["owner"] is not None:
        return f"host {result['owner']}", f"holds bucket {result['bucket']} of this rule"
    if result["reason"] == "disabled":
        return "nobody", "a disabled rule has no owner"
    if result["verdict"] is None:
        return "-", ""
    return "nobody", "no host holds this bucket at the moment"


def _step(name: str, value: str, why: str) -> None:
    click.echo(f"  {name:<8} {value:<18}  {why}".rstrip())
