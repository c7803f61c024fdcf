"""Which port rules an operator means by an address, a port and a protocol.  Pure.

``arguments`` come from a request: ``cluster_ip_address`` (None and "all" are every address),
``port`` (0..65535 or "all") and ``protocol`` (tcp, udp, both or None).  What they cannot mean is a
SoftnlbError with NLB's return code.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from convergence.rules import IPAddress, PortRule, Protocol
from softnlb.errors import ReturnCode, SoftnlbError


def chosen(
    rules: Sequence[PortRule], addresses: Sequence[IPAddress], arguments: Mapping[str, Any]
) -> tuple[int, ...]:
    """The slots that an order is for: VIP:PORT, VIP:all, all:PORT or all.

    A rule for All is meant by "all" only, never by one of the addresses that it covers.
    """
    address, port, protocol = _read(addresses, arguments)
    slots = tuple(
        slot
        for slot, rule in enumerate(rules)
        if address in (None, str(rule.cluster_ip_address)) and _covers(rule, port, protocol)
    )
    if not slots:
        raise _not_found(address, port)
    return slots


def covering(
    rules: Sequence[PortRule], addresses: Sequence[IPAddress], arguments: Mapping[str, Any]
) -> int:
    """The one slot that the traffic to [VIP:]PORT meets: a rule for the VIP beats one for All."""
    address, port, protocol = _read(addresses, arguments)
    slots = [slot for slot, rule in enumerate(rules) if _covers(rule, port, protocol)]
    if address is not None:
        own = [slot for slot in slots if str(rules[slot].cluster_ip_address) == address]
        slots = own or [slot for slot in slots if rules[slot].cluster_ip_address is None]
    if not slots:
        raise _not_found(address, port)
    if len(slots) > 1:
        sentence = "several port rules match: name the cluster IP address or protocol"
        raise SoftnlbError(sentence, code=ReturnCode.BAD_PARAMS)
    return slots[0]


def shortest(address: object) -> str:
    """An address in its one shortest form, whatever form it came in; other text as it is."""
    try:
        return str(ip_address(str(address)))
    except ValueError:
        return str(address)


def _covers(rule: PortRule, port: int | None, protocol: Protocol) -> bool:
    inside = port is None or rule.start_port <= port <= rule.end_port
    return inside and bool(rule.protocol & protocol)


def _read(
    addresses: Sequence[IPAddress], arguments: Mapping[str, Any]
) -> tuple[str | None, int | None, Protocol]:
    """Address and port, each None for all, and the protocol."""
    address, port = arguments.get("cluster_ip_address"), arguments.get("port", "all")
    address = None if address is None else shortest(address)
    known = [str(each) for each in addresses]
    if address not in (None, "all", *known):
        raise SoftnlbError(
            f"{address} is no cluster IP address; they are {', '.join(known)}",
            code=ReturnCode.NOT_FOUND,
        )
    bad_port = not isinstance(port, int | str) or not str(port).isdecimal() or int(port) > 65535
    if port != "all" and bad_port:
        sentence = "a port is a number from 0 to 65535, or all"
        raise SoftnlbError(sentence, code=ReturnCode.BAD_PARAMS)
    protocol = arguments.get("protocol") or "both"
    if protocol not in ("tcp", "udp", "both"):
        raise SoftnlbError("a protocol is tcp, udp or both", code=ReturnCode.BAD_PARAMS)
    return (
        None if address == "all" else address,
        None if port == "all" else int(port),
        Protocol[protocol.upper()],
    )


def _not_found(address: str | None, port: int | None) -> SoftnlbError:
    asked = f"{address or 'all'}:{'all' if port is None else port}"
    sentence = f"no port rule matches {asked}; a rule for All is named all:PORT"
    return SoftnlbError(sentence, code=ReturnCode.NOT_FOUND)
