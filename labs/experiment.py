"""What the experiments share: a lab to work in, tasks in it, waiting, tables."""

import contextlib
import functools
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

from labs.client_log import note
from labs.handle import LabHandle, Task
from labs.load import SERVER, Result, Traffic, clients
from labs.topology import LabSpec, end_point
from labs.up import start_lab
from labs.witness import watch
from softnlb.cli_common import print_json
from softnlb.cli_show import console
from softnlb.errors import SoftnlbError
from softnlb.progress import hush, step, steps

POLL_S = 0.02
WAIT_TOLD_S, PAUSE_TOLD_S = 1.0, 4.0
"""Whoever waits for longer says for what."""

EVENTS, IPV6 = "softnlb.events", "softnlb.ipv6"

T = TypeVar("T")
Command = Callable[..., Any]
Row = Sequence[object]


def options(body: Command) -> Command:
    """--name, --json and --events of an experiment."""

    @functools.wraps(body)
    def carried_out(*args: Any, events: Path | None, **kwargs: Any) -> Any:
        click.get_current_context().meta[EVENTS] = events
        if events is not None:
            _check_writable(events)
        with steps(quiet=kwargs["as_json"]):
            result = body(*args, **kwargs)
        if kwargs.get("name") is not None:
            _keep_events(LabHandle(kwargs["name"]))
        return result

    function = click.option(
        "--events",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write the event log of every lab there: softnlb lab report makes pictures of it.",
    )(carried_out)
    function = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(
        function
    )
    return click.option(
        "--name", default=None, help="Use this running lab instead of one of its own."
    )(function)


@dataclass(frozen=True, slots=True)
class Experiment(Generic[T]):
    """A lab, what is measured in it, how a user sees it, and whether it is as it should be.

    ``rows``: the name in the JSON document of results that are a list.
    """

    spec: LabSpec
    measure: Callable[[LabHandle], T]
    show: Callable[[T], None]
    good: Callable[[T], object] = lambda _: True
    rows: str = ""


def in_a_lab(body: Callable[..., Experiment[Any]]) -> click.Command:
    """The command that carries out what ``body`` says, in the lab of ``--name`` or a fresh one.

    ``body`` is given the command's own options; its module has the experiment's name and help.
    """
    run = body.__module__.rpartition(".")[2]

    @options
    def command(name: str | None, as_json: bool, **chosen: Any) -> int:
        work = body(**chosen)
        with lab_for(name, replace(work.spec, name=own_name(run))) as lab:
            result = work.measure(lab)
        if as_json:
            print_json({"run": run, **({work.rows: result} if work.rows else result)})
        else:
            work.show(result)
        return int(not work.good(result))

    own: list[click.Parameter] = getattr(body, "__click_params__", [])[::-1]
    return click.command(help=sys.modules[body.__module__].__doc__, params=own)(command)


def none_of(*keys: str) -> Callable[[Any], bool]:
    """Whether all of these are zero in a result, or in each of several."""

    def good(result: Any) -> bool:
        rows = result if isinstance(result, list) else [result]
        return not any(row[key] for row in rows for key in keys)

    return good


def measured(
    title: str, lesson: str, *, without: Sequence[str] = ()
) -> Callable[[dict[str, Any]], None]:
    """Shows a result as a table of two columns; ``title`` may name keys of it."""

    def show(result: dict[str, Any]) -> None:
        rows = [
            (key.replace("_", " ").removesuffix(" s"), f"{value}{' s' * key.endswith('_s')}")
            for key, value in result.items()
            if key not in without
        ]
        print_table(title.format(**result), ["", "measured"], rows, lesson)

    return show


def either_family(body: Command) -> Command:
    """--ipv6 of an experiment whose clients may be of either family."""

    def remember(context: click.Context, _: click.Parameter, chosen: bool) -> None:
        context.meta[IPV6] = chosen

    return click.option(
        "--ipv6",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="The lab's cluster, router and clients have IPv6 addresses.",
    )(body)


def ipv6_chosen() -> bool:
    """Whether the user of this experiment gave --ipv6."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(IPV6))


@contextmanager
def lab_for(name: str | None, spec: LabSpec) -> Iterator[LabHandle]:
    """The running lab called ``name``, or a fresh one as ``spec`` says that ends afterwards."""
    if name is not None:
        step(f"at work in lab {name}")
        yield LabHandle(name)
        hush()
        return
    step(f"a lab starts: {spec.hosts} hosts, {spec.mode}, {spec.timers} timers")
    start_lab(replace(spec, ipv6=spec.ipv6 or ipv6_chosen()))
    lab = LabHandle(spec.name)
    step("it is converged; at work")
    try:
        yield lab
    finally:
        hush()
        # What went wrong is in there, too.
        with contextlib.suppress(SoftnlbError):
            _keep_events(lab)
        lab.down()


def _check_writable(path: Path) -> None:
    """Empty the file before the experiment begins.  Raises SoftnlbError."""
    try:
        path.write_bytes(b"")
    except OSError as error:
        raise SoftnlbError(f"{path}: {error.strerror}") from error


def _keep_events(lab: LabHandle) -> None:
    context = click.get_current_context(silent=True)
    path: Path | None = context.meta.get(EVENTS) if context is not None else None
    if path is not None:
        with path.open("ab") as file:
            file.write(lab.events())


def own_name(experiment: str) -> str:
    """A name for a lab of one's own, so that two runs do not meet."""
    return f"{experiment}-{os.getpid()}"


def wait_until(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true value of ``condition``.  Raises SoftnlbError naming ``what``."""
    began_s, told = time.monotonic(), False
    while True:
        value = condition()
        if value:
            return value
        waited_s = time.monotonic() - began_s
        if waited_s > timeout_s:
            raise SoftnlbError(f"{what}: not within {timeout_s:g} s")
        if waited_s > WAIT_TOLD_S and not told:
            told = True
            step(f"waiting until {what}")
        pause(POLL_S)


def pause(seconds: float) -> None:
    """Let the experiment go on for a while."""
    if seconds > PAUSE_TOLD_S:
        step(f"for {seconds:g} s")
    select.select([], [], [], seconds)


@contextmanager
def traffic(lab: LabHandle, plan: Traffic, node: str = "") -> Iterator[Task]:
    """Clients at work in a node; the block begins when the long connections stand."""
    node = node or lab.client()["name"]
    addressed = _addressed(lab, plan, node)
    with lab.start(node, lambda channel: clients(channel, addressed)) as task:
        task.expect()
        yield task


def _addressed(lab: LabHandle, plan: Traffic, node: str) -> Traffic:
    """The plan with the addresses of this lab, where it names none."""
    spec = lab.spec()
    pool = spec.client_pool(node)
    server, port = plan.server
    return replace(
        plan,
        server=(str(spec.cluster_ip_address) if plan.server == SERVER else server, port),
        pool=plan.pool and pool is not None,
        addresses=str(pool or plan.addresses),
    )


def finish(task: Task) -> Result:
    """Stop the clients, note in the event log what they saw, and return it."""
    result = Result.from_json(task.stop())
    if task.where is not None:
        note(*task.where, result)
    return result


def burst(lab: LabHandle, plan: Traffic, node: str = "") -> Result:
    """A burst of new connections from a node and what became of them."""
    node = node or lab.client()["name"]
    addressed = _addressed(lab, plan, node)
    result = Result.from_json(lab.run(node, lambda channel: clients(channel, addressed)))
    note(lab, node, result)
    return result


@contextmanager
def witness(lab: LabHandle) -> Iterator[Task]:
    """The witness at the switch, listening."""
    address = lab.spec().cluster_ip_address
    hosts = {node["port"] for node in lab.ask("nodes")["nodes"] if node["kind"] == "host"}
    with lab.start("switch", lambda channel: watch(channel, address, hosts)) as task:
        task.expect()
        yield task


def host_ids(status: dict[str, Any], state: str) -> list[int]:
    """Ids of the hosts in that state."""
    return [host["host_id"] for host in status["hosts"] if host["state"] == state]


def await_converged(lab: LabHandle, members: list[int], timeout_s: float = 30.0) -> None:
    """Return when exactly these hosts are converged with each other and own all buckets."""

    def settled() -> bool:
        status = lab.status()
        if host_ids(status, "converged") != members:
            return False
        buckets = sum(h["buckets"] for h in status["hosts"] if h["state"] == "converged")
        return bool(buckets == 60)

    first, last = members[0], members[-1]
    row = len(members) > 4 and members == list(range(first, last + 1))
    named = f"{first} to {last}" if row else ", ".join(map(str, members))
    wait_until(settled, timeout_s, f"hosts {named} are converged")


def busy_ns(pid: int) -> int:
    """Time on a processor of all threads of a process and of its children, by the scheduler."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    own = sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)
    return own + sum(busy_ns(child) for child in children(pid))


def children(pid: int) -> list[int]:
    """Pids of the processes that any thread of a process started."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for thread in threads for word in (thread / "children").read_text().split()]


def ask_agent(lab: LabHandle, node: str, verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask the agent of a host, as the ``softnlb`` command in its node does."""

    def ask(_: object) -> dict[str, Any]:
        from softnlb.control import call, find_hosts

        (path,) = find_hosts()
        return call(path, verb, **arguments)

    answer: dict[str, Any] = lab.run(node, ask)
    return answer


def explained_owners(lab: LabHandle, flows: list[tuple[str, int]]) -> list[int | None]:
    """The host that ``softnlb explain`` names for each client (address, port)."""

    address = lab.spec().cluster_ip_address

    def ask(_: object) -> list[int | None]:
        from softnlb.control import call, find_hosts

        (path,) = find_hosts()
        server = end_point(str(address), 80)
        return [
            call(path, "explain", client=end_point(client, port), server=server, protocol="tcp")[
                "owner"
            ]
            for client, port in flows
        ]

    owners: list[int | None] = lab.run("host1", ask)
    return owners


def print_table(title: str, columns: Sequence[str], rows: Sequence[Row], notes: str = "") -> None:
    """A table on standard output, with a sentence or two on what it shows."""
    from rich import box
    from rich.table import Table

    hush()
    # Wide enough for four modes side by side.
    shown = console(width=110)
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        words = " ".join(
            (column, *(str(cell) for row in rows for cell in row[number : number + 1]))
        ).split()
        table.add_column(
            column,
            justify="left" if number == 0 else "right",
            min_width=max(map(len, words), default=0),
        )
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    if shown.measure(table, options=shown.options.update_width(1000)).minimum > shown.width:
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)  # rather no lines than cut words
        table.show_edge = table.pad_edge = False
        for each in table.columns[1:]:
            each.width = each.min_width
    shown.print(table)
    if notes:
        if shown.width < max(map(len, notes.splitlines())):
            parts = (" ".join(part.split()) for part in notes.split("\n\n"))
            notes = "\n\n".join(click.wrap_text(part, shown.width) for part in parts)
        shown.print(notes + "\n", soft_wrap=True)
