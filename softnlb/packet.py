"""Bytes of an IP packet -> Flow.  Pure, and it raises on nothing that the network may send."""

from ipaddress import ip_address
from struct import Struct
from typing import NamedTuple

from convergence.rules import IPAddress
from softnlb.errors import bad_params

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
GRE, ESP, AH = 47, 50, 51
PPTP_PORT, IKE_PORT, IKE_NAT_PORT = 1723, 500, 4500
ARP = 0x0806
"""Ethertype, used as the ``protocol`` of an ARP request: no IP protocol number is that large."""

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

ECHO_REQUEST, ECHO_REQUEST_V6 = 8, 128

PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "gre": GRE, "esp": ESP, "ah": AH}
"""By the name that a user writes."""

_BORROWED_PORTS = {GRE: PPTP_PORT, ESP: IKE_PORT, AH: IKE_PORT}
"""Source and destination port, of the connection that such a packet belongs to: a tunnel of PPTP is
agreed upon by TCP, a security association by IKE."""

_IPV4 = Struct("!BxHxxHxBxx4s4s")
_IPV6 = Struct("!4xHBx16s16s")
_TCP = Struct("!HHIIBB")
_TCP_BYTES, _UDP_BYTES, _ICMP_BYTES = 20, 8, 8
_PORTS = Struct("!HH")

# RFC 8200 section 4: extension headers that a receiver has to step over; all but the fragment
# header carry their own length in units of 8 bytes, less the first (RFC 4302: AH in units of 4).
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION))
_EXTENSIONS_MAX = 8
"""A chain of as many is malformed, so that nobody follows one for ever; honest ones have six."""


class Flow(NamedTuple):
    """One packet as far as a verdict needs it.  A tuple, because one is built for every packet.

    ``source``, ``destination``: 4 or 16 bytes, empty when the IP header itself is cut off.
    Ports, ``flags`` (TCP, as in the header), ``sequence`` and ``acknowledgment`` are 0, and
    ``icmp_type`` and ``icmp_code`` are -1, where the packet has none or its header is not here:
    a later fragment, or ``malformed``.  GRE, ESP and AH have no ports and get those of PPTP and
    IKE.  ``fragment_offset`` is in bytes.
    """

    interface: str
    destination_mac: bytes | None
    vlan_id: int
    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    flags: int = 0
    sequence: int = 0
    acknowledgment: int = 0
    icmp_type: int = -1
    icmp_code: int = -1
    fragment_offset: int = 0
    more_fragments: bool = False
    malformed: bool = False

    @property
    def source_ip_address(self) -> IPAddress:
        """The source as an address object; only for a flow that has one."""
        return ip_address(self.source)

    @property
    def destination_ip_address(self) -> IPAddress:
        """The destination as an address object; only for a flow that has one."""
        return ip_address(self.destination)


def parse(
    ip_bytes: bytes, interface: str, destination_mac: bytes | None = None, vlan_id: int = 0
) -> Flow:
    """The flow of an IPv4 or IPv6 packet that begins at its IP header and may be cut short."""
    version = ip_bytes[0] >> 4 if ip_bytes else 0
    if version == 4 and len(ip_bytes) >= 20:
        return _parse_ipv4(ip_bytes, interface, destination_mac, vlan_id)
    if version == 6 and len(ip_bytes) >= 40:
        return _parse_ipv6(ip_bytes, interface, destination_mac, vlan_id)
    return Flow(interface, destination_mac, vlan_id, b"", b"", 0, malformed=True)


def _parse_ipv4(data: bytes, interface: str, mac: bytes | None, vlan_id: int) -> Flow:
    first, total_bytes, fragment, protocol, source, destination = _IPV4.unpack_from(data)
    header_bytes = (first & 0x0F) * 4
    offset = (fragment & 0x1FFF) * 8
    more = bool(fragment & 0x2000)
    head = (interface, mac, vlan_id, source, destination, protocol)
    if header_bytes < 20 or total_bytes < header_bytes:
        return Flow(*head, fragment_offset=offset, more_fragments=more, malformed=True)
    return _parse_transport(data, header_bytes, total_bytes, head, offset, more)


def _parse_ipv6(data: bytes, interface: str, mac: bytes | None, vlan_id: int) -> Flow:
    payload_bytes, protocol, source, destination = _IPV6.unpack_from(data)
    total_bytes = 40 + payload_bytes
    end = min(len(data), total_bytes)
    at, offset, more, headers = 40, 0, False, 0
    while (protocol in _EXTENSIONS or headers == _EXTENSIONS_MAX) and offset == 0:
        headers += 1
        if at + 8 > end or headers > _EXTENSIONS_MAX:
            head = (interface, mac, vlan_id, source, destination, protocol)
            return Flow(*head, more_fragments=more, malformed=True)
        kind, protocol, length = protocol, data[at], data[at + 1]
        if kind == _FRAGMENT:
            fragment = data[at + 2] << 8 | data[at + 3]
            offset, more = fragment & 0xFFF8, bool(fragment & 1)
            at += 8
        elif kind == _AUTHENTICATION:
            at += (length + 2) * 4
        else:
            at += (length + 1) * 8
    head = (interface, mac, vlan_id, source, destination, protocol)
    return _parse_transport(data, at, total_bytes, head, offset, more)


def _parse_transport(
    data: bytes,
    at: int,
    total_bytes: int,
    head: tuple[str, bytes | None, int, bytes, bytes, int],
    offset: int,
    more: bool,
) -> Flow:
    """``at``: where the transport header begins; ``total_bytes``: what the IP header promises."""
    if offset:
        return Flow(*head, 0, 0, 0, 0, 0, -1, -1, offset, more)
    protocol = head[5]
    room = min(len(data), total_bytes) - at
    if protocol == TCP:
        if room >= _TCP_BYTES:
            source, destination, seq, ack, words, flags = _TCP.unpack_from(data, at)
            header_bytes = (words >> 4) * 4
            if header_bytes >= _TCP_BYTES and at + header_bytes <= total_bytes:
                return Flow(*head, source, destination, flags, seq, ack, -1, -1, 0, more)
    elif protocol == UDP:
        if room >= _UDP_BYTES:
            source, destination = _PORTS.unpack_from(data, at)
            return Flow(*head, source, destination, 0, 0, 0, -1, -1, 0, more)
    elif protocol == (ICMP if len(head[3]) == 4 else ICMPV6):
        # Either in the other's IP version is a protocol like any that has no ports.
        if room >= _ICMP_BYTES:
            return Flow(*head, 0, 0, 0, 0, 0, data[at], data[at + 1], 0, more)
    elif room >= 0:
        port = _BORROWED_PORTS.get(protocol, 0)
        return Flow(*head, port, port, 0, 0, 0, -1, -1, 0, more)
    return Flow(*head, more_fragments=more, malformed=True)


def flow_from_text(client: str, server: str, protocol: str, interface: str = "") -> Flow:
    """The flow that opens a connection: a TCP SYN, a UDP datagram or an echo request.

    ``client`` and ``server`` are "10.0.0.7:40000" or "[2001:db8::7]:40000"; the port may be left
    out for the other protocols: icmp, gre, esp or ah.  Raises UsageError.
    """
    number = PROTOCOLS.get(protocol.lower())
    if number is None:
        raise bad_params(f"protocol {protocol!r}: expected {', '.join(PROTOCOLS)}")
    source, source_port = _end_point(client, "client", number)
    destination, destination_port = _end_point(server, "server", number)
    if source.version != destination.version:
        raise bad_params(f"client {client} and server {server}: expected the same IP version")
    head = (interface, None, 0, source.packed, destination.packed)
    if number in _BORROWED_PORTS:
        return Flow(*head, number, _BORROWED_PORTS[number], _BORROWED_PORTS[number])
    if number != ICMP:
        flags = SYN if number == TCP else 0
        return Flow(*head, number, source_port, destination_port, flags)
    if source.version == 4:
        return Flow(*head, ICMP, icmp_type=ECHO_REQUEST, icmp_code=0)
    return Flow(*head, ICMPV6, icmp_type=ECHO_REQUEST_V6, icmp_code=0)


def _end_point(text: str, name: str, protocol: int) -> tuple[IPAddress, int]:
    address, colon, port = text.rpartition(":")
    bare = text.count(":") != 1 and not address.endswith("]")
    if bare:
        address, colon, port = text, "", ""
    try:
        ip = ip_address(address.strip("[]"))
        if colon:
            number = int(port)
        elif protocol not in (TCP, UDP):
            number = 0
        else:
            raise ValueError
        if not 0 <= number <= 65535:
            raise ValueError
    except ValueError:
        raise bad_params(
            f"{name} {text!r}: expected an IP address and a port, as in 10.0.0.7:80"
        ) from None
    return ip, number
