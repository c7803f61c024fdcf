"""Captures of a lab: the comments against what really happened, and heartbeats in words."""

import json
import subprocess
from collections import Counter

import pytest

from labs.experiment import await_converged, burst
from labs.load import Traffic
from labs.runs import capture
from labs.topology import CLUSTER_IP_ADDRESS
from modes.plan import Mode
from softnlb.capture_file import read_capture
from softnlb.cli import run
from softnlb.errors import SoftnlbError
from tests.labs import COMMAND, ROOT, running
from tests.netns import wait_for

REQUESTS = 40
FIELDS = ("frame.interface_name", "frame.comment", "ip.src", "tcp.srcport", "tcp.flags")


def tshark(path, condition, *fields):
    """The fields of the packets of a capture that meet the condition."""
    words = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", str(path), "-Y", condition, "-T", "fields", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def learned_after_replug(handle) -> bool:
    """Whether the switch knows again where host3 is."""
    events = [json.loads(line) for line in handle.events().splitlines()]
    back_s = max(event["at_s"] for event in events if event.get("fault") == "replug")
    return any(
        event.get("change") == "learned" and event["port"] == "host3" and event["at_s"] > back_s
        for event in events
    )


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """Connections, a cable that is pulled and put back, captured through a pipe."""
    path = tmp_path_factory.mktemp("capture") / "lab.pcapng"
    with running("capture", hosts=3, mode=Mode.IGMP, switch="mac", affinity="none") as handle:
        words = [*COMMAND, "capture", "--name", handle.name, "-w", "-"]
        everywhere = [node["name"] for node in handle.status()["nodes"] if node["port"]]
        with (
            path.open("wb") as file,
            subprocess.Popen(
                [*words, *everywhere, "client1:eth0"],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.PIPE,
                text=True,
            ) as tap,
        ):
            assert tap.stderr is not None
            assert "client1:eth0" in tap.stderr.readline()
            result = burst(handle, Traffic(burst=REQUESTS, timeout_s=5.0))
            handle.fault("unplug", "host3")
            handle.fault("replug", "host3")
            wait_for(lambda: learned_after_replug(handle))
            await_converged(handle, [1, 2, 3])
            tap.send_signal(2)
            assert tap.wait(20) == 0
    yield path, result


def test_the_comments_name_the_host_that_answered(captured):
    path, result = captured
    answered = {(c.client, str(c.port)): c.host_id for c in result.new}
    assert len(answered) == REQUESTS
    assert None not in answered.values()
    syns = tshark(path, "tcp.flags.syn == 1 and tcp.flags.ack == 0", *FIELDS)
    kept: Counter[tuple[str, str]] = Counter()
    for port, comment, address, client_port, _flags in syns:
        host_id = answered[address, client_port]
        if port == f"host{host_id}":
            assert comment.endswith(f"host {host_id}: kept (owner: it owns the bucket)"), comment
            kept[address, client_port] += 1
        elif port.startswith("host"):
            assert f"not mine, dropped (not-mine); host {host_id} keeps it" in comment, comment
        else:
            assert comment.endswith(f"for host {host_id}"), comment
    assert set(kept.values()) == {1}
    assert len(kept) == REQUESTS


def test_every_packet_of_the_cluster_has_a_comment(captured):
    path, _ = captured
    judged = capture.judge(path, CLUSTER_IP_ADDRESS)
    assert judged["cluster_packets"] > REQUESTS * 30
    assert judged["without_comment"] == 0


def test_later_segments_are_a_second_chance_for_one_host(captured):
    path, result = captured
    condition = 'tcp.len > 0 and tcp.dstport == 80 and frame.interface_name matches "^host"'
    acks = tshark(path, condition, *FIELDS)
    reasons = Counter(comment.partition("(")[2].partition(":")[0] for _, comment, *_ in acks)
    assert reasons["second-chance"] == len(result.new)


def test_a_node_has_its_own_side_of_the_cable(captured):
    path, _ = captured
    inside = tshark(path, 'frame.interface_name == "client1:eth0" and tcp', *FIELDS)
    at_router = tshark(path, 'frame.interface_name == "router" and tcp', *FIELDS)
    assert len(inside) == len(at_router) > REQUESTS


def test_events_stand_between_the_frames(captured):
    path, _ = captured
    events = [row[0] for row in tshark(path, "systemd_journal", "systemd_journal.message")]
    assert any("fault unplug host3" in text for text in events)
    assert "cable at host3: down" in events
    assert "cable at host3: up" in events
    assert any(text.startswith("MDB: host3 left group 239.255.0.100") for text in events)
    assert any("learned at host3" in text for text in events if text.startswith("FDB: "))


def test_decode_says_in_words_what_heartbeats_say(captured, capsys):
    path, _ = captured
    assert run(["decode", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        "host2 " in line
        and "heartbeat of host 2: converged, members 1 2 3, default host 1; rule 1: 20" in line
        for line in lines
    ), lines[:3]
    assert run(["decode", "--json", "--changes", str(path)]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(documents) < len(lines)
    assert {document["host_id"] for document in documents} == {1, 2, 3}
    assert sorted(len(document["rules"]) for document in documents)[0] == 2


def test_decode_reads_what_tcpdump_writes(captured, tmp_path, capsys):
    path, _ = captured
    old = tmp_path / "old.pcap"
    words = ["tshark", "-r", str(path), "-Y", "eth.type == 0x886f", "-w", str(old), "-F", "pcap"]
    subprocess.run(words, check=True, capture_output=True)
    frames = [frame for frame in read_capture(path) if frame.data[12:14] == b"\x88\x6f"]
    assert [frame.data for frame in read_capture(old)] == [frame.data for frame in frames]
    assert run(["decode", str(old)]) == 0
    assert "members 1 2 3" in capsys.readouterr().out


def test_a_damaged_capture_is_refused_with_a_reason(captured, tmp_path):
    path, _ = captured
    whole = path.read_bytes()[:20_000]
    damaged = tmp_path / "damaged.pcapng"
    for content, reason in (
        (b"", "no capture"),
        (b"hello, world; this is a text", "no capture"),
        (whole[:-3], "ends in the middle"),
        (whole[:40] + b"\xff" * 400, "block"),
    ):
        damaged.write_bytes(content)
        with pytest.raises(SoftnlbError, match=reason):
            list(read_capture(damaged))
    assert run(["decode", str(damaged)]) == 1


def test_a_capture_at_rate_loses_nothing(tmp_path):
    with running("rate", hosts=2, affinity="none") as handle:
        result = capture.measure(handle, 12_000, 12_000, tmp_path / "rate.pcapng")
    assert (result["frames"], result["lost"], result["without_comment"]) == (12_000, 0, 0)
    assert result["cluster_packets"] == 12_000
