"""The verb bench: what a packet costs in the programs of the ebpf data plane."""

import click

from softnlb.cli_common import json_option, print_json


@click.command()
@json_option
@click.option(
    "--repeat",
    type=click.IntRange(1, 10_000_000),
    default=200_000,
    show_default=True,
    help="Runs of a program on each kind of packet, five times; the least counts.",
)
def bench(as_json: bool, repeat: int) -> None:
    """Measure what each kind of packet costs in the kernel, beside an empty program. Takes root."""
    from softnlb import bench as figures

    costs = figures.measure(repeat)
    machine = figures.machine()
    if as_json:
        print_json({"machine": machine, "costs": [cost._asdict() for cost in costs]})
        return
    click.echo(", ".join(str(value) for value in machine.values()))
    click.echo(
        "ns per packet; 32 port rules, 4 cluster IP addresses; + is beside the empty program"
    )
    click.echo(f"\n{'':36}{'tc':>12}{'XDP':>14}")
    kinds = list(dict.fromkeys(cost.packet for cost in costs))
    for kind in kinds:
        cells = [
            f"{cost.ns:6d}  {cost.ns - cost.empty_ns:+4d}" for cost in costs if cost.packet == kind
        ]
        click.echo(f"{kind:36}" + "  ".join(cells))
    for cost in costs[:: len(kinds)]:
        click.echo(f"{'empty ' + cost.program + ' program':36}{cost.empty_ns:6d}")
