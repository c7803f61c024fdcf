"""The addresses that NLB derives from the primary cluster IP address (reference: Microsoft Q193601,
KB4494444): cluster MAC addresses, the IGMP group, and each host's own masked MAC address.

A MAC address is 6 bytes.  The cluster's is always derived from the *primary* cluster IP address,
whichever cluster IP address a client asks for.
"""

from ipaddress import IPv4Address

HOST_IDS = range(1, 33)


def _w_x_y_z(address: IPv4Address) -> bytes:
    """The four bytes that stand for a cluster in its MAC addresses: for IPv4 the address itself."""
    return address.packed


def unicast_mac(address: IPv4Address) -> bytes:
    """02-BF-w-x-y-z."""
    return b"\x02\xbf" + _w_x_y_z(address)


def multicast_mac(address: IPv4Address) -> bytes:
    """03-BF-w-x-y-z."""
    return b"\x03\xbf" + _w_x_y_z(address)


def igmp_group(address: IPv4Address) -> IPv4Address:
    """239.255.y.z: the group whose members a snooping switch lets the cluster's frames out to."""
    return IPv4Address(b"\xef\xff" + _w_x_y_z(address)[2:])


def igmp_multicast_mac(address: IPv4Address) -> bytes:
    """01-00-5E-7F-y-z: the MAC address of the IGMP group (RFC 1112 section 6.4)."""
    return b"\x01\x00\x5e\x7f" + _w_x_y_z(address)[2:]


def host_mac(host_id: int, address: IPv4Address) -> bytes:
    """02-h-w-x-y-z: what the switch learns of host ``host_id`` in unicast mode.

    Raises ValueError for a host id outside 1..32.
    """
    if host_id not in HOST_IDS:
        raise ValueError(f"host id {host_id} is not in 1..32")
    return bytes((0x02, host_id)) + _w_x_y_z(address)


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


def ip2mac(address: IPv4Address) -> dict[str, str]:
    """All addresses of a cluster, as `softnlb ip2mac --json` prints them."""
    return {
        "cluster_ip_address": str(address),
        "unicast": format_mac(unicast_mac(address)),
        "multicast": format_mac(multicast_mac(address)),
        "igmp_multicast": format_mac(igmp_multicast_mac(address)),
        "igmp_group": str(igmp_group(address)),
    }
