"""The addresses that NLB derives from the primary cluster IP address (reference: Microsoft Q193601,
KB4494444): cluster MAC addresses, the multicast group, and each host's own masked MAC address.

A MAC address is 6 bytes.  The cluster's is always derived from the *primary* cluster IP address,
whichever cluster IP address a client asks for.
"""

from functools import reduce
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address

HOST_IDS = range(1, 33)


def w_x_y_z(address: IPAddress) -> IPv4Address:
    """The four bytes that stand for an address where there is room for four: for IPv4 the address
    itself, for IPv6 the XOR of its four 32-bit words."""
    packed = address.packed
    words = (int.from_bytes(packed[at : at + 4], "big") for at in range(0, len(packed), 4))
    return IPv4Address(reduce(lambda one, other: one ^ other, words))


def unicast_mac(address: IPAddress) -> bytes:
    """02-BF-w-x-y-z."""
    return b"\x02\xbf" + w_x_y_z(address).packed


def multicast_mac(address: IPAddress) -> bytes:
    """03-BF-w-x-y-z."""
    return b"\x03\xbf" + w_x_y_z(address).packed


def group(address: IPAddress) -> IPAddress:
    """239.255.y.z or ff05::efff:y.z: the group of IGMP mode, whose members a snooping switch lets
    the cluster's frames out to."""
    low = b"\xef\xff" + w_x_y_z(address).packed[2:]
    if address.version == 4:
        return IPv4Address(low)
    return IPv6Address(b"\xff\x05" + bytes(10) + low)


def group_mac(address: IPAddress) -> bytes:
    """The MAC address of the group: 01-00-5E-7F-y-z (RFC 1112 section 6.4) or 33-33-EF-FF-y-z
    (RFC 2464 section 7)."""
    head = b"\x01\x00\x5e\x7f" if address.version == 4 else b"\x33\x33\xef\xff"
    return head + w_x_y_z(address).packed[2:]


def host_mac(host_id: int, address: IPAddress) -> bytes:
    """02-h-w-x-y-z: what the switch learns of host ``host_id`` in unicast mode.

    Raises ValueError for a host id outside 1..32.
    """
    if host_id not in HOST_IDS:
        raise ValueError(f"host id {host_id} is not in 1..32")
    return bytes((0x02, host_id)) + w_x_y_z(address).packed


def format_mac(mac: bytes) -> str:
    """As NLB prints it: 02-BF-C0-A8-64-50."""
    return mac.hex("-").upper()


def colon_mac(mac: bytes) -> str:
    """As Linux tools print it: 02:bf:c0:a8:64:50."""
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """Six bytes from either notation.  Raises ValueError for anything else."""
    pairs = text.replace("-", ":").split(":")
    if len(pairs) != 6 or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{text!r} is not a MAC address")
    return bytes(int(pair, 16) for pair in pairs)


def ip2mac(address: IPAddress) -> dict[str, str]:
    """All addresses of a cluster, as `softnlb ip2mac --json` prints them."""
    kind = "igmp" if address.version == 4 else "mld"
    return {
        "cluster_ip_address": str(address),
        "unicast": format_mac(unicast_mac(address)),
        "multicast": format_mac(multicast_mac(address)),
        f"{kind}_multicast": format_mac(group_mac(address)),
        f"{kind}_group": str(group(address)),
    }
