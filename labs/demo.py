"""What ``make demo`` runs: a cluster of four hosts, its three modes, a drainstop, a dead host."""

import sys
import time

from rich.console import Console

from labs.experiment import ask_agent, await_converged, lab_for, own_name
from labs.runs import drainstop, failover, flooding
from labs.topology import LabSpec
from softnlb.cli_show import console
from softnlb.errors import SoftnlbError
from softnlb.progress import hush, steps

HOLD = 200

NEXT = """\
Nothing is left running.  Go on with a lab of your own:

  .venv/bin/softnlb lab up --hosts 4 --timers fast
  .venv/bin/softnlb lab exec client1 -- curl -s http://10.1.0.100/
  .venv/bin/softnlb lab exec host1 -- softnlb display
  .venv/bin/softnlb lab open 8080              the cluster in your browser
  .venv/bin/softnlb lab fault kill host2       break it; fault --help lists what else there is
  .venv/bin/softnlb lab capture -w lab.pcapng  every port of the switch in one file
  .venv/bin/softnlb lab run --help             the experiments one by one
  .venv/bin/softnlb lab down"""


def main() -> int:
    """The demo; returns the exit status."""
    shown = console()
    began = time.monotonic()
    try:
        with steps():
            _demo(shown)
    except SoftnlbError as error:
        print(f"softnlb: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return 130
    shown.print(f"All of this took {time.monotonic() - began:.0f} s.  {NEXT}", soft_wrap=True)
    return 0


def _demo(shown: Console) -> None:
    shown.print(
        "Four hosts share the cluster IP address 10.1.0.100.  They, a switch, a router and the "
        "clients\nare real Linux network stacks in namespaces; this machine's network is not "
        "touched.\n",
        soft_wrap=True,
    )
    shown.rule("[bold]1  Three modes, one switch", align="left")
    flooding.show(flooding.flooding(None))
    spec = LabSpec(name=own_name("demo"), hosts=4, timers="fast")
    with lab_for(None, spec) as lab:
        hush()
        shown.rule("[bold]2  Planned maintenance: drainstop", align="left")
        drainstop.show(drainstop.measure(lab, host_id=3, hold=HOLD))
        ask_agent(lab, "host3", "start", force=False)
        await_converged(lab, [1, 2, 3, 4])
        hush()
        shown.rule("[bold]3  Unplanned: a host loses its power", align="left")
        failover.show([failover.measure(lab, host_id=2, hold=HOLD)])


if __name__ == "__main__":
    sys.exit(main())
