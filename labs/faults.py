"""What can go wrong in a lab, by name: the verbs of ``softnlb lab fault``."""

import contextlib
import signal
import time
from collections.abc import Callable

from labs import freezer
from labs.lab import Lab
from labs.node import run_tool
from labs.plan import INTERFACE
from labs.switch import querier_line, snooping_line
from modes.mac import unicast_mac
from modes.plan import Mode
from softnlb.errors import SoftnlbError, UsageError


def _targets(lab: Lab, arguments: list[str]) -> list[str]:
    if not arguments:
        raise UsageError("name at least one node")
    for name in arguments:
        if name not in lab.plan:
            raise SoftnlbError(f"{name} is not a node of this lab: {', '.join(lab.plan)}")
    return arguments


def _ports(lab: Lab, arguments: list[str]) -> list[str]:
    return [lab.port(name) for name in _targets(lab, arguments)]


def _hosts(lab: Lab, arguments: list[str]) -> list[str]:
    for name in _targets(lab, arguments):
        lab.host(name)
    return _powered(lab, arguments)


def _powered(lab: Lab, arguments: list[str]) -> list[str]:
    for name in _targets(lab, arguments):
        if not lab.nodes[name].alive:
            raise SoftnlbError(f"{name} was killed: `softnlb lab fault start {name}` first")
    return arguments


def kill(lab: Lab, arguments: list[str]) -> str:
    """Power off: the cable first, so that no FIN or RST of the dying kernel reaches a client."""
    names = _hosts(lab, arguments)
    lab.switch_ports([f"link set dev {lab.port(name)} down" for name in names])
    for name in names:
        lab.kill_processes(name)
        freezer.remove_groups(lab.spec.name, name)
        # The network namespace may live on for a minute: connections without a process, whose FIN
        # nobody hears, hold it.  Its cable goes now, unless the kernel was faster.
        with contextlib.suppress(SoftnlbError):
            lab.switch_ports([f"link delete dev {lab.port(name)}"])
    return f"{', '.join(names)}: powered off"


def start(lab: Lab, arguments: list[str]) -> str:
    """Power on a killed host, or start the agent of a host that has none."""
    for name in _targets(lab, arguments):
        host = lab.host(name)
        if not host.alive:
            lab.start_node(name)
            lab.start_services([name])
            lab.install_faults()
        elif lab.spec.agents and not lab.agents[name].ended:
            raise SoftnlbError(f"{name} is running")
        if lab.spec.agents:
            lab.start_agents([name])
    return f"{', '.join(arguments)}: started"


def _agent_signal(number: int, done: str) -> Callable[[Lab, list[str]], str]:
    def fault(lab: Lab, arguments: list[str]) -> str:
        for name in _hosts(lab, arguments):
            if name not in lab.agents or lab.agents[name].ended:
                raise SoftnlbError(f"{name} has no running agent")
            lab.agents[name].signal(number)
        return f"{', '.join(arguments)}: {done}"

    return fault


def freeze(lab: Lab, arguments: list[str]) -> str:
    """Stop every process of a host; its kernel goes on."""
    for name in _hosts(lab, arguments):
        by = freezer.freeze(lab.spec.name, name, lab.nodes[name].pid)
        lab.frozen.add(name)
    return f"{', '.join(arguments)}: frozen ({by})"


def thaw(lab: Lab, arguments: list[str]) -> str:
    """Continue a frozen host."""
    for name in _hosts(lab, arguments):
        freezer.thaw(lab.spec.name, name, lab.nodes[name].pid)
        lab.frozen.discard(name)
    return f"{', '.join(arguments)}: thawed"


def unplug(lab: Lab, arguments: list[str]) -> str:
    """Pull the cable out of the switch."""
    ports = _ports(lab, _powered(lab, arguments))
    lab.switch_ports([f"link set dev {port} down" for port in ports])
    lab.unplugged.update(ports)
    return f"{', '.join(ports)}: unplugged"


def replug(lab: Lab, arguments: list[str]) -> str:
    """Put the cable back."""
    ports = _ports(lab, _powered(lab, arguments))
    lab.switch_ports([f"link set dev {port} up" for port in ports])
    lab.unplugged.difference_update(ports)
    return f"{', '.join(ports)}: plugged in"


def _loss(verb: str, which: str, direction: str) -> Callable[[Lab, list[str]], str]:
    def fault(lab: Lab, arguments: list[str]) -> str:
        try:
            percent = float(arguments[0].rstrip("%"))
        except (IndexError, ValueError) as error:
            raise UsageError(f"expected: {verb} PERCENT NODE...") from error
        if not 0 <= percent <= 100:
            raise UsageError(f"{verb} {percent:g}: expected 0 to 100 percent")
        losses: dict[str, float] = getattr(lab.faults, which)
        for port in _ports(lab, arguments[1:]):
            losses[port] = percent
            if percent == 0:
                del losses[port]
        lab.install_faults()
        return f"{', '.join(arguments[1:])}: {percent:g} % of the frames{direction} are lost"

    return fault


def mute(lab: Lab, arguments: list[str]) -> str:
    """The switch passes on nothing that comes from the node."""
    lab.faults.mute.update(_ports(lab, arguments))
    lab.install_faults()
    return f"{', '.join(arguments)}: mute"


def deaf(lab: Lab, arguments: list[str]) -> str:
    """The switch sends nothing to the node."""
    lab.faults.deaf.update(_ports(lab, arguments))
    lab.install_faults()
    return f"{', '.join(arguments)}: deaf"


def partition(lab: Lab, arguments: list[str]) -> str:
    """``partition host1,host2``: those ports against all others."""
    side = [name for argument in arguments for name in argument.split(",") if name]
    one = frozenset(_ports(lab, side))
    other = frozenset(node.port for node in lab.plan.values() if node.port is not None) - one
    if not other:
        raise UsageError("that is everybody: name the nodes of one side only")
    lab.faults.partition = (one, other)
    lab.install_faults()
    return f"{', '.join(sorted(one))} | {', '.join(sorted(other))}"


def heal(lab: Lab, arguments: list[str]) -> str:
    """End partition, loss, mute and deaf: of the named nodes, or all of it."""
    if arguments:
        for port in _ports(lab, arguments):
            lab.faults.forget(port)
    else:
        lab.faults.forget()
    lab.install_faults()
    return f"{', '.join(arguments) or 'everything'}: healed"


def app_down(lab: Lab, arguments: list[str]) -> str:
    """End the HTTP service; the agent does not notice, as with NLB."""
    for name in _hosts(lab, arguments):
        for service in lab.services[name]:
            service.signal(signal.SIGKILL, whole_session=True)
    return f"{', '.join(arguments)}: HTTP service ended"


def app_up(lab: Lab, arguments: list[str]) -> str:
    """Start the HTTP service again."""
    for name in _hosts(lab, arguments):
        lab.reap()
        if not any(service.ended for service in lab.services[name]):
            raise SoftnlbError(f"the HTTP service of {name} is running")
        lab.start_services([name])
    return f"{', '.join(arguments)}: HTTP service started"


def clear_fdb(lab: Lab, arguments: list[str]) -> str:
    """The switch forgets every address that it learned."""
    if arguments:
        raise UsageError("clear-fdb takes no node: it is the switch that forgets")
    lab.switch_ports([f"link set {bridge} type bridge fdb_flush" for bridge in lab.personalities])
    return "the switch forgot what it had learned"


def snooping(lab: Lab, arguments: list[str]) -> str:
    """``snooping on`` or ``snooping off``: the kernel's IGMP snooping and its querier.

    Of all switches; what ends the other one leaves each switch as it was.
    """
    on = _on_or_off("snooping", arguments)
    usual = {bridge: kind != "dumb" for bridge, kind in lab.personalities.items()}
    before = lab.switched.get("snooping", arguments[0])
    snoops = dict.fromkeys(usual, on) if before == arguments[0] else usual
    lab.switch_ports([snooping_line(b, state, b == lab.querier) for b, state in snoops.items()])
    _switched(lab, "snooping", arguments[0], snoops == usual)
    lab.switched.pop("querier", None)  # it came or went with the snooping
    states = {state: "on" if state else "off" for state in snoops.values()}
    return f"IGMP snooping is {states[on] if len(states) == 1 else 'as it was'}"


def querier(lab: Lab, arguments: list[str]) -> str:
    """``querier off`` or ``querier on``: whether anybody asks the hosts for their groups."""
    on = _on_or_off("querier", arguments)
    dumb = lab.personalities[lab.querier] == "dumb"
    if lab.switched.get("snooping", "off" if dumb else "on") == "off":
        raise SoftnlbError("the switch does not snoop, so it has no querier: snooping on first")
    lab.switch_ports([querier_line(lab.querier, on)])
    _switched(lab, "querier", arguments[0], on)
    return f"the IGMP querier is {arguments[0]}"


def _on_or_off(verb: str, arguments: list[str]) -> bool:
    if arguments not in (["on"], ["off"]):
        raise UsageError(f"expected: {verb} on, or {verb} off")
    return arguments == ["on"]


def _switched(lab: Lab, what: str, state: str, usual: bool) -> None:
    lab.switched.pop(what, None)
    if not usual:
        lab.switched[what] = state


LEAK = "softnlb_leak"
LEAK_RULES = f"""\
table netdev {LEAK} {{{{
  chain out {{{{
    type filter hook egress device {INTERFACE} priority 100; policy accept;
    ether saddr set {{mac}}
  }}}}
}}}}
"""


def leak_mac(lab: Lab, arguments: list[str]) -> str:
    """A host sends from the cluster MAC address, as NLB does with MaskSourceMAC = 0."""
    if lab.spec.mode != Mode.UNICAST:
        raise SoftnlbError(
            "leak-mac needs unicast mode: a multicast address is nobody's source, "
            "and the switch would throw such frames away"
        )
    rules = LEAK_RULES.format(mac=unicast_mac(lab.layout.cluster_ip_address).hex(":"))
    for name in _hosts(lab, arguments):
        if name not in lab.leaking:
            lab.in_node(name, lambda: run_tool(["nft", "-f", "-"], rules))
            lab.leaking.add(name)
    return f"{', '.join(arguments)}: sends from the cluster MAC address"


def mask_mac(lab: Lab, arguments: list[str]) -> str:
    """The host masks its source MAC address again, and the switch forgets the leaked one."""
    for name in _hosts(lab, arguments):
        if name not in lab.leaking:
            raise SoftnlbError(f"{name} masks its source MAC address")
        lab.in_node(name, lambda: run_tool(["nft", "delete", "table", "netdev", LEAK]))
        lab.leaking.discard(name)
    clear_fdb(lab, [])
    return f"{', '.join(arguments)}: masks its source MAC address"


def flush_rules(lab: Lab, arguments: list[str]) -> str:
    """``nft flush ruleset`` in a host, as a firewall script on a real machine does."""
    for name in _hosts(lab, arguments):
        lab.in_node(name, lambda: run_tool(["nft", "flush", "ruleset"]))
        lab.leaking.discard(name)
    return f"{', '.join(arguments)}: all nft rules flushed"


FAULTS: dict[str, Callable[[Lab, list[str]], str]] = {
    "kill": kill,
    "start": start,
    "agent-kill": _agent_signal(signal.SIGKILL, "agent killed"),
    "stop": _agent_signal(signal.SIGSTOP, "agent stopped (SIGSTOP)"),
    "cont": _agent_signal(signal.SIGCONT, "agent continued"),
    "freeze": freeze,
    "thaw": thaw,
    "unplug": unplug,
    "replug": replug,
    "loss": _loss("loss", "loss", ""),
    "loss-from": _loss("loss-from", "loss_from", " that it sends"),
    "loss-to": _loss("loss-to", "loss_to", " to it"),
    "mute": mute,
    "deaf": deaf,
    "partition": partition,
    "heal": heal,
    "app-down": app_down,
    "app-up": app_up,
    "clear-fdb": clear_fdb,
    "snooping": snooping,
    "querier": querier,
    "leak-mac": leak_mac,
    "mask-mac": mask_mac,
    "flush-rules": flush_rules,
}


def inject(lab: Lab, fault: str, arguments: list[str], secret: bool = False) -> str:
    """Carry out a fault by name; returns one sentence.  Raises UsageError for an unknown one.

    ``secret``: neither status nor event log tells which, until somebody carries out another one.
    """
    if fault not in FAULTS:
        raise UsageError(f"{fault} is not a fault: {', '.join(FAULTS)}")
    lab.reap()
    began_s = time.monotonic()
    message = FAULTS[fault](lab, arguments)
    lab.secret = secret
    if lab.log is not None and secret:
        lab.log.add("fault", began_s, fault="hidden", arguments=[], message="find it", took_s=0)
    elif lab.log is not None:
        took_s = round(time.monotonic() - began_s, 4)
        facts = {"arguments": arguments, "message": message, "took_s": took_s}
        lab.log.add("fault", began_s, fault=fault, **facts)
    return message
