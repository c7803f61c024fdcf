"""The verb bench: what the data planes cost on this machine."""

import click

from convergence.rules import HOST_ID_MAX
from softnlb.cli_common import json_option


def _host_counts(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        counts = tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text}: expected numbers with commas between") from None
    if not all(1 <= count <= HOST_ID_MAX for count in counts):
        raise click.BadParameter(f"{text}: a cluster has 1 to {HOST_ID_MAX} hosts")
    return counts


@click.command()
@click.option(
    "--hosts",
    default="2,8,32",
    show_default=True,
    callback=_host_counts,
    metavar="N,N,...",
    help="Sizes of the clusters that are flooded.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=60),
    default=0.5,
    show_default=True,
    help="Length of each single measurement.",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=7),
    default=7,
    show_default=True,
    help="Rounds, each of which measures everything once.",
)
@json_option
def bench(hosts: tuple[int, ...], seconds: float, pairs: int, as_json: bool) -> int:
    """Measure the data planes beside no filter, xt_cluster and nft jhash.

    \b
      softnlb bench                                  all of it, five minutes
      softnlb bench --hosts 32 --pairs 15 --json

    The cost of the eBPF programs per packet, frames per second that a client can send to clusters
    of several sizes, connections per second, bulk TCP.  Everything happens in namespaces of its
    own.
    """
    from importlib import import_module

    status: int = import_module("labs.bench.command").run(as_json, hosts, seconds, pairs)
    return status
