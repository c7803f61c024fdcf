"""A lab whose cluster has an IPv4 and an IPv6 address: each client has one host in either."""

import json
import socket

import pytest

from labs.experiment import await_converged
from labs.handle import LabHandle
from labs.lab_file import check
from labs.topology import end_point
from labs.up import start_lab
from softnlb.config import ConfigError
from tests.labs import lab_name

VIPS = ("10.1.0.100", "2001:db8:1::100")
FILE = {
    "lab": {"hosts": 3},
    "cluster": {
        "ip_address": "10.1.0.100/24",
        "additional_ip_addresses": ["2001:db8:1::100/64"],
        "timers": "fast",
    },
    "port_rule": [{"ports": 80, "affinity": "none"}],
}


@pytest.fixture(scope="module")
def both():
    name = lab_name("both")
    start_lab(check({**FILE, "lab": {"name": name, "hosts": 3}}, "both.toml"))
    handle = LabHandle(name)
    yield handle
    handle.down()


def hosts_of(lab: LabHandle, node: str, vip: str, count: int) -> dict[tuple[str, int], int]:
    """The host that answers each of as many connections, by the client's address and port."""

    def connect(_: object) -> list[tuple[str, int, int]]:
        seen = []
        for _ in range(count):
            with socket.create_connection((vip, 80), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with connection.makefile("rb") as answer:
                    body = answer.read().partition(b"\r\n\r\n")[2]
                seen.append((*connection.getsockname()[:2], json.loads(body)["host_id"]))
        return seen

    return {(address, port): host_id for address, port, host_id in lab.run(node, connect)}


def explained(lab: LabHandle, vip: str, clients: list[tuple[str, int]]) -> list[int]:
    """The hosts that ``softnlb explain`` names for them."""

    def ask(_: object) -> list[int]:
        from softnlb.control import call, find_hosts

        (path,) = find_hosts()
        server = end_point(vip, 80)
        return [
            call(path, "explain", client=end_point(*one), server=server, protocol="tcp")["owner"]
            for one in clients
        ]

    return list(lab.run("host1", ask))


@pytest.mark.parametrize("node", ["client1", "client2"])
@pytest.mark.parametrize("vip", VIPS)
def test_clients_of_either_family_reach_the_host_that_explain_names(
    both: LabHandle, node: str, vip: str
) -> None:
    seen = hosts_of(both, node, vip, 30)
    assert set(seen.values()) == {1, 2, 3}
    assert explained(both, vip, list(seen)) == list(seen.values())


def test_both_families_learn_the_mac_address_of_the_primary(both: LabHandle) -> None:
    for vip in VIPS:
        assert hosts_of(both, "client2", vip, 1)
        assert "02:bf:0a:01:00:64" in both.output("client2", ["ip", "neighbour", "show", vip])


def test_a_dead_hosts_clients_are_served_by_the_others_in_either_family(both: LabHandle) -> None:
    """The last test: host 2 is gone."""
    both.fault("kill", "host2")
    await_converged(both, [1, 3])
    for vip in VIPS:
        assert set(hosts_of(both, "client1", vip, 20).values()) == {1, 3}


def problems(**changed: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check({**FILE, **changed}, "x.toml")
    return str(caught.value)


def test_what_does_not_fit_a_cluster_of_both_families_is_refused() -> None:
    cluster = FILE["cluster"]
    other = {"name": "b", "address": "10.1.0.201/24"}
    twice = {**other, "additional_addresses": ["10.1.0.202/24"]}
    assert "one of each IP version" in problems(bystander=[twice])
    taken = {**other, "additional_addresses": ["2001:db8:1::2/64"]}
    refused = problems(bystander=[taken])
    assert "host[2].additional_dedicated_ip_addresses" in refused and "not that of b" in refused
    inside = {**other, "name": "c", "router": "r", "address": "10.2.0.2/24"}
    inside["additional_addresses"] = ["2001:db8:1::9/64"]
    router = {"name": "r", "address": "10.1.0.254/24"}
    assert "a network of its own" in problems(router=[router], client=[inside])
    alone = [{"id": 1, "address": "10.1.0.1/24"}]
    assert "host[1].additional_dedicated" in problems(lab={}, host=alone)
    for wrong in (5, ["2001:db8::x/64"], ["2001:db8:1::100/64", 7]):
        assert "cluster.additional_ip_addresses" in problems(
            cluster={**cluster, "additional_ip_addresses": wrong}
        )
