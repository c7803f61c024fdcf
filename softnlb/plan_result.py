"""What a plan says: loads of hosts, what moves when one leaves, what switch ports carry."""

from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from convergence.rules import BUCKETS
from softnlb.allocation import Allocation, owners
from softnlb.plan import EVERY_HOST, NOBODY, NOT_CLUSTER, Entry, Load

CLIENTS_TOLD_MAX = 1000
"""Clients in the result, those with the most packets first."""

Result = dict[str, Any]


def result(load: Load, allocation: Allocation, fail: int | None = None) -> Result:
    """Everything that a plan says, as JSON carries it."""
    owner = owners(allocation.maps)
    document: Result = {
        "packets": load.packets,
        "cut_off": load.cut_off,
        "packets_to_the_cluster": sum(entry[2] for entry in load.entries),
        "packets_for_every_host": load.count(EVERY_HOST)[0],
        "packets_for_nobody": load.count(NOBODY)[0],
        "packets_of_others": load.count(NOT_CLUSTER)[0],
        "clients": len({source for _, source in load.clients}),
        "clients_not_told_apart": bool(load.beyond),
        "hosts": _hosts(load, allocation.hosts, owner),
        "switch_ports": _switch_ports(load),
        "takes": _takes(load, owner),
    }
    document["spread"] = _spread(document["hosts"])
    if fail is not None:
        document["fail"] = _moves(load, allocation, fail, owner)
    return document


def _hosts(load: Load, hosts: Sequence[int], owner: Mapping[int, int]) -> list[Result]:
    total = sum(entry[2] for entry in load.entries) or 1
    found = []
    for host in hosts:
        mine = [entry for entry in load.entries if owner.get(entry[0]) == host]
        replies = [entry for at, entry in load.replies.items() if owner.get(at) == host]
        packets = sum(entry[2] for entry in mine)
        found.append(
            {
                "host_id": host,
                "clients": len({entry[1] for entry in mine if entry[1]}),
                "packets": packets,
                "bytes": sum(entry[3] for entry in mine),
                "share": round(packets / total, 4),
                "reply_packets": sum(entry[2] for entry in replies),
                "reply_bytes": sum(entry[3] for entry in replies),
            }
        )
    return found


def _spread(hosts: Sequence[Result]) -> Result:
    """How uneven: the busiest and the idlest host against the mean of all, in packets."""
    packets = [host["packets"] for host in hosts]
    mean = sum(packets) / len(packets)
    if not mean:
        return {"highest_to_mean": None, "lowest_to_mean": None, "deviation": None}
    deviation = (sum((each - mean) ** 2 for each in packets) / len(packets)) ** 0.5
    return {
        "highest_to_mean": round(max(packets) / mean, 3),
        "lowest_to_mean": round(min(packets) / mean, 3),
        "deviation": round(deviation / mean, 3),
    }


def _takes(load: Load, owner: Mapping[int, int]) -> list[Result]:
    """Which host takes which client, the busiest clients first."""
    busiest = sorted(load.clients.values(), key=lambda entry: -entry[2])[:CLIENTS_TOLD_MAX]
    return [_take(entry, owner) for entry in busiest]


def _take(entry: Entry, owner: Mapping[int, int]) -> Result:
    index, source, packets, size = entry
    return {
        "client": str(ip_address(source)),
        "host_id": owner.get(index),
        "slot": index // BUCKETS,
        "bucket": index % BUCKETS,
        "packets": packets,
        "bytes": size,
    }


def _moves(load: Load, allocation: Allocation, fail: int, owner: Mapping[int, int]) -> Result:
    after = owners(allocation.without(fail))
    moved = {index for index, host in owner.items() if after.get(index) != host}
    needless = [index for index in moved if owner[index] != fail]
    clients: Counter[int | None] = Counter()
    packets: Counter[int | None] = Counter()
    gone = set()
    for entry in load.entries:
        if entry[0] in moved:
            new = after.get(entry[0])
            packets[new] += entry[2]
            if entry[1] and (new, entry[1]) not in gone:
                gone.add((new, entry[1]))
                clients[new] += 1
    left = [host for host in allocation.hosts if host != fail]
    buckets = Counter(after.get(index) for index in moved)
    return {
        "host_id": fail,
        "buckets_moved": len(moved),
        "buckets_moved_between_others": len(needless),
        "to": [
            {
                "host_id": host,
                "buckets": buckets[host],
                "clients": clients[host],
                "packets": packets[host],
            }
            for host in left
        ],
        "hosts": _hosts(load, left, after),
        "spread": _spread(_hosts(load, left, after)) if left else None,
    }


def _switch_ports(load: Load) -> Result:
    """What each port carries towards its node, of what clients send to the cluster.

    Every host gets every frame, in every mode: that is how NLB works.  The modes differ in what
    the other ports of the VLAN get.
    """
    everything = [*load.entries, *(load.others.get(n) for n in (EVERY_HOST, NOBODY))]
    frames = sum(entry[2] for entry in everything if entry)
    size = sum(entry[3] for entry in everything if entry)
    seconds = None
    if load.first_second is not None:
        seconds = load.last_second - load.first_second + 1
    full = {
        "frames": frames,
        "bytes": size,
        "mean_bits_per_s": round(size * 8 / seconds) if seconds else None,
        "peak_bits_per_s": load.peak[1] * 8 if seconds else None,
        "peak_frames_per_s": load.peak[0] if seconds else None,
    }
    nothing = {name: 0 if value is not None else None for name, value in full.items()}
    return {
        "host": full,
        "others": {
            "unicast": full,
            "multicast": full,
            "multicast, static MAC entries or snooping by MAC": nothing,
            "igmp, snooping with a querier": nothing,
            "igmp, no snooping": full,
        },
    }
