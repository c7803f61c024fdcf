"""The page that goes with a lab exported for containerlab."""

from collections.abc import Sequence
from ipaddress import IPv4Address

from labs.plan import Plan

_ONE = """\
    containerlab deploy -t {file}
{asked}    docker exec {first} softnlb query
    docker exec {second} softnlb drainstop --wait
    containerlab destroy -t {file} --cleanup
"""

_ASKED = """\
    docker exec {client} curl -s http://{where}/     # which host answers?
"""

_SEVERAL = """\
    on {machine}:  containerlab deploy -t {file}
"""

_TEXT = """\
# {name} for containerlab

Build the image once, in a clone of softnlb, on every machine that runs nodes:

    docker build -t {image} .

Then, in this directory (`containerlab validate -t {file}`, from 0.78 on, checks without deploying):

{verbs}
What differs from the lab on one machine:

* Interfaces begin with eth1, because eth0 is containerlab's own; nodes have no management network.
* The switch is a container with a bridge inside: `docker exec {switch} bridge fdb show`. The
  personality "mac" is a program of softnlb's labs, not in the container: such a switch floods.
* The agents use the eBPF data plane where the machine's kernel has what it needs, else nfqueue;
  `docker exec HOST softnlb params` says which. Logs are in /var/log of each container.
{network}
`softnlb lab up {file}` brings the same lab up in namespaces again, without containers.

On Kubernetes: clabernetes makes a pod of every node. Push the image to a place that your cluster
pulls from, put its name into `topology.defaults.image`, and convert the file with clabverter. The
pods need to be privileged, and frames between them cross tunnels with an MTU of about 1450.
"""

_VXLAN = """\
* Cables between machines are VXLAN tunnels (UDP 14789, one VNI each), so the nodes have an MTU of
  1450. Between the machines nothing may filter that port.
"""


def readme(
    name: str,
    files: Sequence[str],
    machines: Sequence[IPv4Address],
    *,
    image: str,
    plan: Plan,
) -> str:
    """What to type, and what differs from the lab on one machine."""
    switch, address = plan.switches[0].name, plan.cluster_ip_address
    if machines:
        pairs = zip(machines, files, strict=True)
        verbs = "".join(_SEVERAL.format(machine=machine, file=file) for machine, file in pairs)
    else:
        where = f"[{address}]" if address.version == 6 else address
        hosts = [node.name for node in plan.nodes if node.kind == "host"]
        clients = [node.name for node in plan.nodes if node.kind == "client"]
        asked = "".join(_ASKED.format(client=client, where=where) for client in clients[:1])
        verbs = _ONE.format(file=files[0], asked=asked, first=hosts[0], second=hosts[:2][-1])
    network = _VXLAN if machines else ""
    return _TEXT.format(
        name=name, image=image, verbs=verbs, switch=switch, network=network, file=files[0]
    )
