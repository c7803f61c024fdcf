"""A lab from `up` to `down`: its contract for scripts, exit statuses, and that nothing is left."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from labs.handle import LabHandle
from labs.state import labs_directory, running_labs
from softnlb.control import find_hosts
from tests.labs import COMMAND, ROOT, lab, lab_json, lab_name, running
from tests.netns import wait_for

STATUS_KEYS = {"name", "cluster_ip_address", "mode", "hosts", "nodes"}
HOST_KEYS = {"host_id", "state", "pid", "dedicated_ip_address", "buckets"}


@pytest.fixture(scope="module")
def bare():
    """A lab without agents: network and services only."""
    with running("bare", hosts=2, agents=False) as handle:
        yield handle


def test_up_status_list_down():
    name = lab_name("life")
    try:
        up = lab_json("up", "--hosts", "3", "--timers", "fast", "--name", name)
        assert up.keys() >= STATUS_KEYS
        assert up["name"] == name
        assert up["mode"] == "unicast"
        assert up["cluster_ip_address"] == "10.1.0.100"
        assert [host["state"] for host in up["hosts"]] == ["converged"] * 3
        status = lab_json("status", "--name", name)
        assert status.keys() >= STATUS_KEYS
        assert all(host.keys() == HOST_KEYS for host in status["hosts"])
        assert [host["buckets"] for host in status["hosts"]] == [20, 20, 20]
        assert [host["dedicated_ip_address"] for host in status["hosts"]][2] == "10.1.0.3"
        for host in status["hosts"]:
            comm = Path(f"/proc/{host['pid']}/comm").read_text().strip()
            assert comm == f"agent:host{host['host_id']}", "the pid is the machine's"
        assert name in [spec["name"] for spec in lab_json("list")["labs"]]
        again = lab("up", "--name", name)
        assert again.returncode == 1
        assert "is running" in again.stderr
    finally:
        down = lab("down", "--name", name)
    assert down.returncode == 0
    assert name not in running_labs()


def test_no_such_lab_is_exit_status_3():
    for words in (("status",), ("exec", "host1", "--", "true"), ("fault", "heal"), ("down",)):
        done = lab(*words[:1], "--name", "no-such-lab", *words[1:])
        assert done.returncode == 3, done.stderr
        assert "no lab named no-such-lab" in done.stderr
        assert done.stderr.count("\n") == 1


def test_wrong_use_is_exit_status_2(bare):
    assert lab("up", "--hosts", "99", "--name", "x").returncode == 2
    assert lab("up", "--mode", "anycast").returncode == 2
    assert lab("fault", "--name", bare.name, "frobnicate").returncode == 2
    assert lab("fault", "--name", bare.name, "loss", "much", "host1").returncode == 2
    assert lab("capture", "--name", bare.name, "--json").returncode == 2
    assert lab("run", "no-such-run").returncode == 2


def test_an_unknown_node_is_exit_status_1_and_names_those_that_exist(bare):
    done = lab("exec", "--name", bare.name, "host9", "--", "true")
    assert done.returncode == 1
    assert "bystander" in done.stderr
    assert lab("fault", "--name", bare.name, "kill", "client1").returncode == 1


def test_exec_passes_on_status_and_streams(bare):
    def run(*command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return lab("exec", "--name", bare.name, "host1", "--", *command, text=text)

    assert run("true").returncode == 0
    assert run("sh", "-c", "exit 7").returncode == 7
    assert run("sh", "-c", "kill -9 $$").returncode == 128 + 9
    assert run("no-such-command").returncode == 127
    assert run("cat", text="hello\n").stdout == "hello\n"
    done = run("sh", "-c", "hostname; echo bad >&2")
    assert (done.stdout, done.stderr) == ("host1\n", "bad\n")
    document = lab_json("exec", "--name", bare.name, "host2", "--", "hostname")
    assert document["stdout"] == "host2\n"
    assert document["exit_status"] == 0


def test_a_node_has_directories_of_its_own_and_the_machine_stays_as_it_was(bare):
    bare.output("host1", ["touch", "/etc/softnlb/mine", "/run/mine", "/var/lib/softnlb/mine"])
    for path in ("/etc/softnlb/mine", "/run/mine", "/var/lib/softnlb/mine"):
        assert not Path(path).exists()
        assert bare.complete("host2", ["test", "-e", path])["exit_status"] == 1
    assert bare.output("host1", ["cat", "/etc/passwd"]) == Path("/etc/passwd").read_text()
    path = bare.output("host1", ["sh", "-c", "echo $PATH"]).strip().split(":")
    assert path[0] == str(Path(sys.executable).parent)
    for tool in ("curl", "tcpdump", "python3", "ip", "nft"):
        assert bare.complete("host1", ["sh", "-c", f"command -v {tool}"])["exit_status"] == 0


def test_the_service_says_which_host_answers_and_whom(bare):
    for node, client in (("client1", "10.2.0.2"), ("client2", "10.1.0.200")):
        answer = json.loads(bare.output(node, ["curl", "-s", "-m", "5", "http://10.1.0.2/x"]))
        assert answer["host_id"] == 2
        assert answer["client"].startswith(f"{client}:")
        assert answer["path"] == "/x"
    source = ["--interface", "10.2.100.7"]
    answer = json.loads(bare.output("client1", ["curl", "-s", *source, "http://10.1.0.1/"]))
    assert answer["client"].startswith("10.2.100.7:")
    twice = bare.output("client1", ["curl", "-sv", "http://10.1.0.1/", "http://10.1.0.1/"])
    clients = [json.loads(line)["client"] for line in twice.splitlines()]
    assert clients[0] == clients[1], "keep-alive: one connection for both"


def test_open_relays_a_port_of_the_machine(bare):
    bare.output("host1", ["ip", "address", "replace", "10.1.0.100/24", "dev", "eth0"])
    command = [*COMMAND, "open", "--name", bare.name, "0", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as relay:
        try:
            assert relay.stdout is not None
            url = json.loads(relay.stdout.readline())["url"]
            answer = subprocess.run(["curl", "-s", "-m", "5", url], capture_output=True, check=True)
        finally:
            relay.send_signal(signal.SIGINT)
    assert json.loads(answer.stdout)["client"].startswith("10.2.0.2:")


def test_capture_writes_frames_with_port_names(bare, tmp_path):
    path = tmp_path / "x.pcapng"
    words = ["capture", "--name", bare.name, "host2", "-w", str(path)]
    for nowhere in ("host9", "client1:eth7"):
        assert lab(*words, nowhere).returncode == 1
    with subprocess.Popen(
        [*COMMAND, *words, "--count", "6", "--seconds", "20"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as capture:
        assert capture.stderr is not None
        assert capture.stderr.readline() == "capturing at host2\n"
        bare.output("client2", ["curl", "-s", "http://10.1.0.2/"])
        assert capture.wait(30) == 0
        assert capture.stderr.readline() == "6 frames\n"
    fields = ["-T", "fields", "-e", "frame.interface_name"]
    done = subprocess.run(
        ["tshark", "-r", path, *fields], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["host2"] * 6


def test_an_agent_lives_on_when_the_one_who_asked_hangs_up():
    with running("hang-up", hosts=1) as handle:
        before = handle.status()["hosts"][0]["pid"]

        def hang_up(_: object) -> None:
            (path,) = find_hosts()
            for _ in range(50):
                with socket.socket(socket.AF_UNIX) as asker:
                    asker.connect(str(path))
                    asker.sendall(b'{"verb": "display"}\n')

        handle.run("host1", hang_up)
        after = handle.status()["hosts"][0]
    assert (after["pid"], after["state"]) == (before, "converged")


def processes_of(supervisor_pid: int) -> list[int]:
    """Every process of the machine in the lab's pid namespace."""
    wanted = os.readlink(f"/proc/{supervisor_pid}/ns/pid")
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if os.readlink(path / "ns/pid") == wanted:
                    found.append(int(path.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("whom", ["everything", "the supervisor"])
def test_kill_9_leaves_nothing(whom):
    interfaces = set(os.listdir("/sys/class/net"))
    mounts = Path("/proc/self/mounts").read_text()
    with running("kill", hosts=2) as handle:
        supervisor = handle.ask("nodes")["supervisor_pid"]
        processes = processes_of(supervisor)
        assert len(processes) > 10
        if whom == "everything":
            for pid in reversed(processes):
                os.kill(pid, signal.SIGKILL)
        else:
            os.kill(supervisor, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
        wait_for(lambda: handle.name not in running_labs())
        assert not (labs_directory() / f"{handle.name}.sock").exists(), "the dead socket is removed"
        assert set(os.listdir("/sys/class/net")) == interfaces
        assert Path("/proc/self/mounts").read_text() == mounts


def test_a_failed_start_leaves_nothing_and_says_why():
    """A user namespace may run labs, but load no eBPF program."""
    name = lab_name("fails")
    words = ["up", "--name", name, "--data-plane", "ebpf", "--hosts", "1", "--json"]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *COMMAND, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert "the kernel forbids eBPF here" in json.loads(done.stdout)["error"]
    assert name not in running_labs()


def test_a_lab_survives_the_end_of_its_terminal():
    name = lab_name("hangup")
    script = f"{' '.join(COMMAND)} up --hosts 1 --timers fast --name {name}"
    shell = subprocess.Popen(
        ["setsid", "sh", "-c", f"{script} && kill -HUP 0"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shell.wait(30)
    try:
        assert lab_json("status", "--name", name)["hosts"][0]["state"] == "converged"
    finally:
        LabHandle(name).down()


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite already runs as an ordinary user")
def test_an_ordinary_user_gets_a_lab_too(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rootless")
    for path in (directory, *list(directory.parents)[:2]):
        path.chmod(0o755)
    for package in ("convergence", "labs", "modes", "softnlb"):
        shutil.copytree(ROOT / package, directory / package)
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    python = [*user, sys.executable]
    if subprocess.run([*python, "-c", "import click"], capture_output=True, cwd="/").returncode:
        pytest.skip("the interpreter of this environment is out of reach for other users")
    command = [*python, "-m", "labs.cli"]
    environment = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    name = lab_name("rootless")
    up = run("up", "--hosts", "2", "--timers", "fast", "--name", name, "--json")
    assert up.returncode == 0, up.stderr
    try:
        answer = run("exec", "--name", name, "client1", "--", "curl", "-s", "http://10.1.0.100/")
        assert json.loads(answer.stdout)["host_id"] in (1, 2)
        dump = run("exec", "--name", name, "host1", "--", "tcpdump", "-c", "1", "-i", "eth0")
        assert dump.returncode == 0, dump.stderr
    finally:
        assert run("down", "--name", name).returncode == 0
