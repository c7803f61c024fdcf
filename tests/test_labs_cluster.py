"""Whole clusters in namespaces with real TCP clients: one owner per connection, faults, drains.

The figures that a user sees come from the experiments (`softnlb lab run`); these tests run the
same code with smaller numbers.
"""

import json
from pathlib import Path

import pytest

from labs.experiment import (
    ask_agent,
    await_converged,
    burst,
    host_ids,
    witness,
)
from labs.load import Traffic
from labs.runs import (
    affinity,
    bulk,
    changes,
    connections,
    containers,
    drainstop,
    failover,
    flooding,
    flush,
    forged,
    forwarding,
    keys,
    killed,
    many,
    pause,
    remote,
    scale,
    staged,
    timing,
)
from labs.witness import FrameCounters, answered, learned
from modes.plan import Mode
from softnlb.errors import SoftnlbError, UsageError
from tests.conftest import ORDINARY_USER
from tests.labs import lab, running
from tests.netns import machines_root, wait_for

EVERYBODY = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def shared():
    """Four hosts, unicast, affinity none; each test leaves it converged."""
    with running("cluster", affinity="none") as handle:
        yield handle


@pytest.fixture
def cluster(shared):
    """The shared lab, healed and whole again."""
    yield shared
    shared.fault("heal")
    for host in shared.status()["hosts"]:
        node = f"host{host['host_id']}"
        if host["state"] in ("killed", "no agent"):
            shared.fault("start", node)
        elif host["state"] == "stopped":
            ask_agent(shared, node, "start", force=False)
    await_converged(shared, EVERYBODY)


def test_every_connection_is_answered_by_the_one_host_that_explain_names(cluster):
    result = connections.measure(cluster, 300)
    assert result["connections"] == 300
    assert result["source_addresses"] > 250
    assert result["unanswered"] == 0
    assert result["seen_by_the_witness"] == 300
    assert result["answered_by_two_hosts"] == 0
    assert result["answered_by_another_host_than_explain_names"] == 0
    assert set(result["per_host"]) == set(EVERYBODY), "everybody has a share"


def test_the_witness_and_the_clients_agree(cluster):
    with witness(cluster) as task:
        result = burst(cluster, Traffic(burst=50, timeout_s=10.0))
        records = answered(task.stop())
    by_witness = {(record.client, record.port): record.hosts for record in records}
    assert len(by_witness) == 50
    for seen in result.new:
        assert by_witness[seen.client, seen.port] == (f"host{seen.host_id}",)


def test_the_client_on_the_clusters_own_subnet_is_served_too(cluster):
    result = burst(cluster, Traffic(burst=40, pool=False, timeout_s=10.0), node="client2")
    assert not result.failed()
    assert len(result.served()) > 1


def test_query_in_a_node_shows_the_whole_cluster(cluster):
    done = lab("exec", "--name", cluster.name, "host2", "--", "python3", "-c", QUERY)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["host_id"], answer["state"]) == (2, "converged")
    assert answer["members"] == EVERYBODY
    assert answer["default_host"] == 1


QUERY = "import sys; from softnlb.cli import run; sys.exit(run(['query', '--json']))"


def test_drainstop_breaks_nothing_and_ends_by_itself(cluster):
    result = drainstop.measure(cluster, host_id=3, hold=40)
    assert result["long_connections_of_the_draining_host"] > 0
    assert result["broken"] == 0
    assert result["draining_while_connections_lasted"]
    assert result["new_connections_before"] > 0
    assert result["new_connections_while_draining"] == 0


def test_join_weight_drain_restart_and_leave_break_no_connection_of_others(cluster):
    results = changes.measure(cluster, hold=40, settle_s=0.3)
    changes.set_load_weight(cluster, "host1", 50)
    assert len(results) == 5
    for result in results:
        assert result["broken"] == 0, result
        assert result["answered_by_two_hosts"] == 0, result


def test_a_dead_host_is_replaced_and_no_other_hosts_connection_breaks(cluster):
    result = failover.measure(cluster, host_id=2, hold=40)
    assert result["broken_of_the_dead_host"] > 0
    assert result["broken_of_other_hosts"] == 0
    assert result["outage_s"] < 10.0
    assert set(result["served_afterwards"]) == {1, 3, 4}
    states = {host["host_id"]: host["state"] for host in cluster.status()["hosts"]}
    assert states[2] == "killed"
    with pytest.raises(SoftnlbError, match="was killed"):
        cluster.output("host2", ["true"])


def test_a_paused_agent_takes_nothing_new_and_keeps_what_it_has(cluster):
    result = pause.measure(cluster, host_id=2, pause_s=2.0, hold=20)
    assert result["answered_by_two_hosts"] == 0
    assert result["broken"] == 0
    assert result["new_connections_at_the_paused_host"] == 0


def test_flushed_rules_come_back_and_nobody_answers_twice(cluster):
    result = flush.measure(cluster, host_id=2, times=2)
    assert result["repaired"]
    assert result["answered_by_two_hosts"] == 0
    assert result["broken"] == 0


def test_a_dead_agent_costs_its_connections_nothing(cluster):
    """The kernel goes on serving what it has; new connections go to the others."""
    result = killed.measure(cluster, host_id=3, hold=40, seconds=3.0)
    assert result["long_connections_of_the_host"] > 0
    assert result["broken"] == 0
    assert result["answered_by_two_hosts"] == 0
    assert result["new_connections_at_the_host_after_the_lease"] == 0
    assert result["new_connections"] > 0


@pytest.mark.parametrize(
    ("fault", "mend"),
    [("unplug", "replug"), ("mute", "heal"), ("deaf", "heal"), ("freeze", "thaw")],
)
def test_a_host_that_is_cut_off_leaves_and_comes_back(cluster, fault, mend):
    cluster.fault(fault, "host4")

    def others_went_on():
        query = ask_agent(cluster, "host1", "query")
        return query["state"] == "converged" and query["members"] == [1, 2, 3]

    wait_for(others_went_on, 15.0)
    cluster.fault(mend, "host4")
    await_converged(cluster, EVERYBODY)


@pytest.mark.skipif(
    not machines_root() or "cgroup2" not in Path("/proc/self/mounts").read_text(),
    reason="control groups of version 2, for root, are of the machine",
)
def test_a_frozen_host_lies_in_a_frozen_control_group_until_it_is_thawed_or_killed(cluster):
    agent_pid = cluster.status()["hosts"][1]["pid"]
    group = Path("/proc", str(agent_pid), "cgroup")
    before = group.read_text()
    for mend in ("thaw", "kill"):
        assert "(cgroup.freeze)" in cluster.fault("freeze", "host2")
        assert f"softnlb-lab:{cluster.name}:host2" in group.read_text()
        assert cluster.status()["hosts"][1]["state"] == "frozen"
        cluster.fault(mend, "host2")
        assert not list(Path("/sys/fs/cgroup").rglob(f"softnlb-lab:{cluster.name}:*"))
        if mend == "thaw":
            assert group.read_text() == before
            await_converged(cluster, EVERYBODY)
    cluster.fault("start", "host2")
    await_converged(cluster, EVERYBODY)


def test_a_partition_makes_two_clusters_and_heals_into_one(cluster):
    cluster.fault("partition", "host1,host2")
    for node, members in (("host1", [1, 2]), ("host4", [3, 4])):
        wait_for(lambda n=node, m=members: ask_agent(cluster, n, "query")["members"] == m, 15.0)
    cluster.fault("heal")
    await_converged(cluster, EVERYBODY)


def test_lost_frames_alone_lose_no_host(cluster):
    for host_id in EVERYBODY:
        cluster.fault("loss", "5", f"host{host_id}")
    result = burst(cluster, Traffic(burst=50, concurrency=10, timeout_s=10.0))
    assert len(result.failed()) < 5, "TCP repairs what is lost"
    assert cluster.status()["faults"]["loss_percent"] == {f"host{n}": 5.0 for n in EVERYBODY}


def test_the_application_may_die_without_the_cluster_noticing(cluster):
    """As with NLB: the host keeps its clients and refuses them."""
    cluster.fault("app-down", "host2")
    wait_for(lambda: burst(cluster, Traffic(burst=60)).failed())
    assert host_ids(cluster.status(), "converged") == EVERYBODY
    cluster.fault("app-up", "host2")
    assert not burst(cluster, Traffic(burst=60, timeout_s=5.0)).failed()


def test_faults_that_make_no_sense_are_refused(cluster):
    for words, error in (
        (("kill",), UsageError),
        (("kill", "router"), SoftnlbError),
        (("start", "host1"), SoftnlbError),
        (("app-up", "host1"), SoftnlbError),
        (("snooping", "maybe"), UsageError),
        (("loss", "200", "host1"), UsageError),
        (("mute", "client1"), SoftnlbError),
        (("clear-fdb", "host1"), UsageError),
    ):
        with pytest.raises(error):
            cluster.fault(*words)


def test_the_switch_never_learns_the_cluster_mac(cluster):
    burst(cluster, Traffic(burst=20, timeout_s=5.0))
    macs = learned(cluster)
    assert macs["host1"] == ["02-01-0A-01-00-64"]
    assert not any(mac.startswith("02-BF") for port in macs.values() for mac in port)
    cluster.fault("clear-fdb")


def test_one_datagram_to_a_dedicated_ip_address_stays_one_frame(cluster):
    assert forwarding.measure(cluster)["frames"] == 1


@pytest.mark.parametrize(
    ("mode", "switch", "percent"),
    [(Mode.UNICAST, "dumb", 100.0), (Mode.MULTICAST, "dumb", 100.0), (Mode.IGMP, "mac", 0.0)],
)
def test_flooding_at_the_bystander(mode, switch, percent):
    with running(f"flood-{mode}", mode=mode, switch=switch) as handle:
        result = flooding.measure(handle, 60)
    assert result["answered"] == 60
    assert result["bystander_percent"] == percent
    assert all(result["received_percent"][f"host{n}"] == 100.0 for n in EVERYBODY)
    assert not result["cluster_mac_learned"]


@pytest.mark.parametrize(
    ("mode", "ipv6"), [*((mode, False) for mode in Mode), (Mode.UNICAST, True)]
)
def test_connections_to_containers_survive_moves_in_every_mode(mode, ipv6):
    choices = {"switch": "mac" if mode == Mode.IGMP else "dumb", "affinity": "none", "ipv6": ipv6}
    with running(f"ct-{mode}", hosts=3, mode=mode, **choices) as handle:
        result = containers.measure(handle, hold=20)
    assert containers.good(result), str(result)


def test_clients_keep_their_host_while_others_join_and_drain():
    with running("affinity", affinity_timeout_min=5) as handle:
        result = affinity.measure(handle, clients=60, drain_s=0.5, round_s=0.3)
        left = ask_agent(handle, "host4", "affinity")["exceptions"]
        flow = {"client": f"{left[0]['client']}:4000", "server": "10.1.0.100:80"}
        told = {host: ask_agent(handle, f"host{host}", "explain", **flow) for host in (1, 3, 4)}
    assert affinity.good(result), str(result)
    reasons = {host: (one["verdict"], one["reason"]) for host, one in told.items()}
    assert reasons[4] == ("drop", "exception")
    assert reasons[left[0]["host_id"]] == ("keep", "affinity"), reasons


def test_snooping_by_ip_group_black_holes_nlb_multicast():
    """A lesson of its own: the Linux bridge drops what it was never asked for by that group."""
    with running("blackhole", hosts=2, mode=Mode.MULTICAST, switch="dumb") as handle:
        assert not burst(handle, Traffic(burst=10, timeout_s=5.0)).failed()
        counters = FrameCounters(handle)
        handle.fault("snooping", "on")

        def nothing_arrives():
            before = counters.read()
            failed = burst(handle, Traffic(burst=5)).failed()
            after = counters.read()
            arrived = after["host1"]["out"] - before["host1"]["out"]
            return len(failed) == 5 and arrived == 0

        wait_for(nothing_arrives, 15.0)
        handle.fault("snooping", "off")
        assert not burst(handle, Traffic(burst=10, timeout_s=5.0)).failed()


def test_bulk_measures_pairs_and_says_how_sure_it_is():
    result = bulk.measure(2, 0.2, "nfqueue")
    assert len(result["filter_gbit_s"]) == len(result["no_filter_gbit_s"]) == 2
    assert all(rate > 0.05 for rate in result["filter_gbit_s"])
    for prefix in ("", "cpu_"):
        low, high = result[f"{prefix}interval_95"]
        assert 0 < low <= result[f"{prefix}median_ratio"] <= high


def test_open_connections_cost_the_data_plane_no_memory(cluster):
    result = many.measure(cluster, count=500, rounds=1)
    assert result["connections"] >= 500
    assert result["with"]["maps_kib"] == result["without"]["maps_kib"]
    assert (result["with"]["maps_kib"] > 0) is not ORDINARY_USER, "nfqueue has no maps"
    assert result["with"]["resident_kib"] < result["without"]["resident_kib"] + 4096


def test_timing_measures_the_commands_themselves():
    (result,) = timing.measure((2,))
    assert 0 < result["down_s"] < result["up_s"] < 30


def test_keys_change_without_a_convergence():
    """From no key to enforce, and to another key: each reload on one host after the other."""
    with running("keys", hosts=2) as handle:
        result = keys.measure(handle, hold=20, back=False)
    assert [step["signed_with"] for step in result["steps"]] == [0, 1, 1, 1, 2, 2]
    assert result["convergences"] == result["not_believed"] == 0
    assert result["broken"] == result["new_connections_failed"] == 0
    assert result["answered_by_two_hosts"] == 0
    assert result["long_connections"] == 20


def test_bad_heartbeats_at_20000_a_second_change_nothing():
    # A flood beside other tests on few processors must not look like a dead host.
    with running("forged", hosts=2, record=False, timers="nlb") as handle:
        result = forged.measure(handle, frames=12_000)
    kinds = {row["kind"]: row for row in result["kinds"]}
    assert result["convergences"] == result["broken"] == result["answered_by_two_hosts"] == 0
    assert all(row["samples_not_converged"] == 0 for row in result["kinds"])
    for kind in ("forged", "unsigned", "noise"):
        assert kinds[kind]["reached_the_agent"] > 0
    assert kinds["truncated"]["reached_the_agent"] == 0, "the kernel drops them"
    assert all(len(row["events"]) <= 2 for row in result["kinds"])


def test_orders_are_answered_in_a_flood_of_forged_datagrams():
    with running("remote", hosts=2, record=False) as handle:
        (row,) = remote.measure(handle, seconds=1.0, rates=(10_000,))
        events = ask_agent(handle, "host2", "display")["events"]
    assert row["datagrams_per_s"] > 2_000, "it was a flood"
    assert row["orders"] > row["not_answered"] == 0
    assert 0 < row["median_ms"] <= row["worst_ms"]
    assert 0 < row["agent_percent"] < 90
    assert row["heartbeats_lost"] == row["convergences"] == row["times_not_converged"] == 0
    assert {event["verb"] for event in events if event["name"] == "remote-order"} == {"resume"}
    assert "remote-control-refused" in {event["name"] for event in events}, "the flood came there"


def test_a_rule_of_the_whole_cluster_changes_on_all_hosts_or_on_none(cluster):
    """Under load; one host is killed when it has staged and nobody has switched, and comes back."""
    result = staged.measure_case(cluster, staged.AFTER, "network", hold=40)
    assert staged.good(result), str(result)
    assert result["changed"], result["reason"]
    assert result["long_connections"] == 40


def test_scale_counts_what_ports_and_filters_do():
    row = scale.measure(2, Mode.IGMP, per_host=10)
    assert (row["requests"], row["answered"]) == (20, 20)
    assert row["client_frames"] >= 20 * 4, "SYN, ACK, request, FIN"
    assert row["frames_per_port_min"] == row["frames_per_port_max"] == row["client_frames"]
    assert row["bystander_frames"] == 0
    assert row["cpu_ms_per_host"] > 0


def test_scale_sets_the_theory_beside_what_was_measured():
    def row(hosts: int, cpu_ms: float) -> dict:
        frames = hosts * 10 * 5
        ends = {f"frames_per_port{end}": frames for end in ("", "_min", "_max")}
        facts = {"mode": "igmp", "hosts": hosts, "requests": hosts * 10, "client_frames": frames}
        return {**facts, **ends, "cpu_ms_per_host": cpu_ms}

    rows = [row(2, 1.0), row(4, 2.0), row(8, 8.0)]
    scale.beside_theory(rows, per_host=10)
    assert [each["frames_per_port_theory"] for each in rows] == [100, 200, 400]
    assert [each["cpu_ms_per_host_theory"] for each in rows] == [1.0, 2.0, 4.0]
    assert [scale.off_percent(each) for each in rows] == [0, 0, 0]
    rows[2]["frames_per_port_min"] = 300
    assert scale.off_percent(rows[2]) == 25
