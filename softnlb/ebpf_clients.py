"""The clients of extended affinity in the eBPF program's maps: softnlb/bpf/filter.h in ctypes."""

import ctypes
import errno
from collections.abc import Iterator, Mapping, Sequence

from softnlb.errors import SoftnlbError
from softnlb.known_clients import Known
from softnlb.libbpf import checked, library

EXCEPTIONS_MAX = 65_536
_BATCH = 4096
_IPV6_KEY_BYTES = 17
_EXIST = 2


class Client(ctypes.Structure):
    """struct client."""

    _fields_ = (
        ("address", ctypes.c_uint8 * 16),
        ("slot", ctypes.c_uint8),
        ("ipv6", ctypes.c_uint8),
        ("unused", ctypes.c_uint8 * 2),
    )


class KnownValue(ctypes.Structure):
    """struct known."""

    _fields_ = (
        ("heard_ns", ctypes.c_uint64),
        ("bucket", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


def _write(client: Client, key: bytes) -> None:
    client.address[: len(key) - 1] = key[1:]
    client.slot = key[0]
    client.ipv6 = len(key) == _IPV6_KEY_BYTES


def _array(keys: Sequence[bytes]) -> "ctypes.Array[Client]":
    clients = (Client * len(keys))()
    for client, key in zip(clients, keys, strict=True):
        _write(client, key)
    return clients


def read(clients_fd: int) -> Iterator[Known]:
    """All that the program remembers.  Raises OSError."""
    keys, values = (Client * _BATCH)(), (KnownValue * _BATCH)()
    place = ctypes.c_uint32()
    begin = None
    while True:
        count = ctypes.c_uint32(_BATCH)
        result = library().bpf_map_lookup_batch(
            clients_fd, begin, ctypes.byref(place), keys, values, ctypes.byref(count), None
        )
        if result != -errno.ENOENT:
            checked(result, "map lookup")
        for client, value in zip(keys[: count.value], values[: count.value], strict=True):
            address = bytes(client.address)
            key = bytes((client.slot,)) + (address if client.ipv6 else address[:4])
            yield Known(key, value.bucket, value.heard_ns // 1_000_000)
        if result:
            return
        begin = ctypes.byref(place)


def delete(map_fd: int, keys: Sequence[bytes]) -> None:
    """Remove these, as far as they are there.  Raises OSError."""
    for client in _array(keys):
        result = library().bpf_map_delete_elem(map_fd, ctypes.byref(client))
        if result != -errno.ENOENT:
            checked(result, "map delete")


def heard(clients_fd: int, clients: Sequence[Known], now_ms: int, add: bool = False) -> None:
    """These were heard now, as far as they are remembered; ``add``: all.  Raises OSError."""
    flags = ctypes.c_uint64(0 if add else _EXIST)
    for client, known in zip(_array([one.key for one in clients]), clients, strict=True):
        value = KnownValue(now_ms * 1_000_000, known.bucket)
        result = library().bpf_map_update_elem(
            clients_fd, ctypes.byref(client), ctypes.byref(value), flags
        )
        if result != -errno.ENOENT:
            checked(result, "map update")


def put(exceptions_fd: int, hosts: Mapping[bytes, int]) -> None:
    """Leave each of these clients to the host with this id.  Raises SoftnlbError when full."""
    if not hosts:
        return
    keys = _array(list(hosts))
    values = (ctypes.c_uint32 * len(hosts))(*hosts.values())
    count = ctypes.c_uint32(len(hosts))
    result = library().bpf_map_update_batch(exceptions_fd, keys, values, ctypes.byref(count), None)
    if result:
        raise SoftnlbError(f"no room for {len(hosts)} more clients of other hosts")
