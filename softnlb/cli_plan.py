"""The verb `plan`: what a cluster would do with the clients of a capture or a table."""

import gc
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softnlb.cli_common import Result, config_option, json_option, print_json
from softnlb.cli_show import bold, table
from softnlb.errors import ReturnCode, UsageError, bad_params

if TYPE_CHECKING:
    from softnlb.config import ClusterConfig

TOLD_BY_DEFAULT = 10
HOSTS_MAX = 32


@click.command()
@config_option("A configuration file of the cluster; that of any host will do.", required=True)
@click.option(
    "--clients",
    "clients_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="A capture (pcap, pcapng; - is standard input), or a table with the name *.csv.",
)
@click.option("--hosts", default="4", metavar="N", help="So many hosts, or their ids as in 1,2,4.")
@click.option(
    "--affinity", type=click.Choice(["none", "single", "network"]), help="Instead of the file's."
)
@click.option(
    "--load-weight",
    "weights",
    multiple=True,
    metavar="HOST=WEIGHT",
    help="Load weight of one host, for all rules; may be given for several.",
)
@click.option("--fail", type=int, metavar="HOST", help="Also: what moves when this host leaves.")
@click.option(
    "--server",
    metavar="ADDRESS",
    help="Count the clients of this address as those of the primary cluster IP address.",
)
@click.option("--top", default=TOLD_BY_DEFAULT, help="Clients to show, the busiest first.")
@json_option
def plan(
    config_path: Path,
    clients_path: Path,
    hosts: str,
    affinity: str | None,
    weights: tuple[str, ...],
    fail: int | None,
    server: str | None,
    top: int,
    as_json: bool,
) -> None:
    """Plan a cluster from a capture of its clients.

    Which host would take which client, the load of each host and its spread, what moves when a
    host leaves, what each switch port would carry in each mode. Nothing needs to run. The hosts
    are those of a fresh start; a cluster with a history may have moved buckets.

    \b
    The columns of a table: client, client_port, port, protocol, packets, bytes; in this order,
    or in the order that its first line names. Only client is needed.
    """
    from softnlb.allocation import Allocation
    from softnlb.config import load
    from softnlb.plan import Reader
    from softnlb.plan_result import result
    from softnlb.progress import step, steps

    config = _with_affinity(load(config_path), affinity)
    allocation = Allocation(config, _hosts(hosts), dict(map(_weight, weights)))
    if fail is not None:
        allocation.without(fail)  # refused now, and not after hours of reading
    reader = Reader(config, server)
    gc.disable()  # nothing is garbage here, and looking for it takes a third of the time
    try:
        with steps(quiet=as_json or not sys.stderr.isatty()):
            step(f"reading {clients_path}")
            _read(reader, config, clients_path, server)
    finally:
        gc.enable()
    document = result(reader.load, allocation, fail)
    if as_json:
        print_json(document)
    else:
        _human(document, config, top)


def _with_affinity(config: "ClusterConfig", affinity: str | None) -> "ClusterConfig":
    from dataclasses import replace

    from convergence.rules import Affinity

    if affinity is None:
        return config
    chosen = Affinity[affinity.upper()]
    return replace(
        config, port_rules=tuple(replace(rule, affinity=chosen) for rule in config.port_rules)
    )


def _hosts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and len(word) < 20 for word in words):
        raise bad_params(f"--hosts {text}: expected a number of hosts, or ids as in 1,2,4")
    ids = [int(word) for word in words]
    if len(set(ids)) < len(ids):
        raise bad_params(f"--hosts {text}: expected each id once")
    return ids if len(ids) > 1 else list(range(1, min(ids[0], HOSTS_MAX + 1) + 1))


def _weight(text: str) -> tuple[int, int]:
    host, _, weight = text.partition("=")
    if not (host.isdecimal() and weight.isdecimal() and len(text) < 20) or int(weight) > 100:
        raise bad_params(f"--load-weight {text}: expected HOST=WEIGHT, as in 1=30, at most 100")
    return int(host), int(weight)


def _read(reader: Any, config: "ClusterConfig", path: Path, server: str | None) -> None:
    from ipaddress import ip_address

    from softnlb.capture_file import packets
    from softnlb.plan import flows_of_csv

    try:
        with ExitStack() as opened:
            if path.suffix.lower() == ".csv":
                lines = opened.enter_context(path.open(newline="", encoding="utf-8-sig"))
                address = ip_address(server) if server else config.cluster_ip_addresses[0].ip
                port = config.port_rules[0].start_port
                reader.read_flows(flows_of_csv(lines, address.packed, port))
                return
            file = sys.stdin.buffer
            if str(path) != "-":
                file = opened.enter_context(path.open("rb"))
            reader.read(packets(file))
    except OSError as error:
        sentence = f"{path}: {(error.strerror or str(error)).lower()}"
        raise UsageError(sentence, code=ReturnCode.IO_ERROR) from error
    except UnicodeDecodeError as error:
        raise bad_params(f"{path}: expected text in UTF-8 (byte {error.start} is not)") from error


def _human(document: Result, config: "ClusterConfig", top: int) -> None:
    total = document["packets_to_the_cluster"]
    click.echo(bold(f"{total} of {document['packets']} packets go to one host of the cluster"))
    if document["cut_off"]:
        click.echo("The capture ends in the middle of a packet.")
    for name, text in (
        ("packets_for_every_host", "for every host (echo, ICMP errors, later fragments)"),
        ("packets_for_nobody", "for nobody (disabled rules, damaged packets)"),
        ("packets_of_others", "not to a cluster IP address"),
    ):
        if document[name]:
            click.echo(f"{document[name]} {text}")
    if not total:
        addresses = ", ".join(str(address.ip) for address in config.cluster_ip_addresses)
        click.echo(f"No packet is for {addresses}: --server ADDRESS takes another one's clients.")
        return
    more = " or more" if document["clients_not_told_apart"] else ""
    click.echo(f"{document['clients']}{more} clients\n")
    _loads(document["hosts"], document["spread"])
    if "fail" in document:
        _failure(document["fail"])
    click.echo(f"\n{bold('Switch ports, towards their nodes')}")
    _ports(document["switch_ports"])
    taken = document["takes"][: max(top, 0)]
    if taken:
        click.echo(f"\n{bold('Clients, the busiest first')}")
        columns = ("client", "host_id", "bucket", "packets", "bytes")
        table(["client", "host", "bucket", "packets", "bytes"], _cells(taken, columns))


def _loads(hosts: list[Result], spread: Result | None) -> None:
    rows = [
        [
            h["host_id"],
            h["clients"],
            h["packets"],
            f"{h['share']:.1%}",
            h["bytes"],
            h["reply_bytes"],
        ]
        for h in hosts
    ]
    table(["host", "clients", "packets", "share", "bytes", "bytes of replies"], rows)
    if spread and spread["deviation"] is not None:
        click.echo(
            f"Spread: the busiest host has {spread['highest_to_mean']:.2f} times the mean, the"
            f" idlest {spread['lowest_to_mean']:.2f}; standard deviation {spread['deviation']:.1%}"
        )


def _failure(fail: Result) -> None:
    leaves = f"When host {fail['host_id']} leaves"
    click.echo(f"\n{bold(leaves)}")
    needless = fail["buckets_moved_between_others"]
    click.echo(f"{fail['buckets_moved']} buckets move, {needless} of them between the others")
    columns = ("host_id", "buckets", "clients", "packets")
    table(["to host", "buckets", "clients", "packets"], _cells(fail["to"], columns))
    click.echo()
    _loads(fail["hosts"], fail["spread"])


def _ports(ports: Result) -> None:
    columns = ("frames", "mean_bits_per_s", "peak_bits_per_s", "peak_frames_per_s")
    rows = [["host, any mode", *(ports["host"][name] for name in columns)]]
    rows += [
        [f"any other, {mode}", *(carried[name] for name in columns)]
        for mode, carried in ports["others"].items()
    ]
    table(["port", "frames", "bits/s mean", "bits/s peak", "frames/s peak"], rows)


def _cells(rows: list[Result], columns: tuple[str, ...]) -> list[list[object]]:
    return [[row[name] for name in columns] for row in rows]
