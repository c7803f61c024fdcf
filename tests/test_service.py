"""The agent as a service: what it may do, what it tells its manager, how it does without a disk."""

import configparser
import grp
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from softnlb import privileges
from softnlb.notify import Notifier
from tests.fake_agent import serving
from tests.netns import machines_root, wait_for
from tests.test_agent import Host, hosts  # noqa: F401
from tests.test_tidy import ROOT

UNIT = ROOT / "softnlb" / "systemd" / "softnlb@.service"
EXPOSURE_MAX = 3.5


def sets_of(pid: int) -> list[dict[str, str]]:
    """The status of every thread of a process and of its children."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        found.append({line.partition(":")[0]: line.partition(":")[2].strip() for line in lines})
        for child in (task / "children").read_text().split():
            found += sets_of(int(child))
    return found


@pytest.mark.parametrize("data_plane", ["nfqueue", pytest.param("ebpf", marks=pytest.mark.bpf)])
def test_only_the_needed_capabilities_are_left(
    hosts: list[Host],  # noqa: F811
    data_plane: str,
) -> None:
    host = hosts[0]
    host.configure(host=f'data_plane = "{data_plane}"')
    host.start()
    host.wait_state("converged")
    allowed = 0
    for name, (number, _purpose) in privileges.NEEDED.items():
        if data_plane == "ebpf" or name not in privileges.EBPF_ONLY:
            allowed |= 1 << number
    assert host.process is not None
    found = sets_of(host.process.pid)
    assert len(found) >= 2  # the loop and the scanner at least
    for task in found:
        for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
            assert int(task[kind], 16) & ~allowed == 0, (task["Name"], kind)
        assert task["NoNewPrivs"] == "1"
    host.ask("stop")
    host.wait_state("stopped")
    host.ask("start")
    host.wait_state("converged")


@contextmanager
def everybodys_directory() -> Iterator[Path]:
    """Where other users reach a socket by its own mode alone, unlike in pytest's directory."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_the_socket_belongs_to_a_group_and_others_are_refused() -> None:
    if not machines_root():
        pytest.skip("only the machine's root can be other users")
    group = grp.getgrnam("nogroup").gr_gid

    def echo(verb: str, _: object) -> dict[str, str]:
        return {"verb": verb}

    def ask(*identity: str) -> str:
        code = (
            "import socket\ns = socket.socket(socket.AF_UNIX)\n"
            f"s.connect('{path}')\ns.sendall(b'{{\"verb\": \"x\"}}\\n')\n"
            "print(s.makefile().readline())"
        )
        command = ["setpriv", *identity, "/usr/bin/python3", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout or done.stderr

    with everybodys_directory() as directory, serving(directory / "1.sock", echo, group):
        path = directory / "1.sock"
        facts = path.stat()
        assert (facts.st_gid, facts.st_mode & 0o777) == (group, 0o660)
        nobody, daemon = "--reuid=65534", f"--groups={group}"
        assert '"ok": true' in ask(nobody, "--regid=1", daemon)
        assert '"ok": true' in ask(nobody, f"--regid={group}", "--clear-groups")
        assert "PermissionError" in ask(nobody, "--regid=1", "--clear-groups")
        # The mode of a file is easily changed; who asks is looked at besides.
        path.chmod(0o666)
        assert "only root and members" in ask(nobody, "--regid=1", "--clear-groups")
        assert '"ok": true' in ask("--reuid=0", "--regid=0", "--clear-groups")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(10)
        yield end


def test_the_manager_is_told_of_a_start_a_life_and_an_end(
    hosts: list[Host],  # noqa: F811
    manager: socket.socket,
) -> None:
    hosts[0].start("env", f"NOTIFY_SOCKET={manager.getsockname()}", "WATCHDOG_USEC=300000")
    told: list[str] = []

    def has(*wanted: str) -> bool:
        told.append(manager.recv(4096).decode())
        return all(any(one in line for line in told) for one in wanted)

    wait_for(lambda: has("READY=1", "STATUS=Host 1: Converged, members 1"), timeout_s=10)
    told.clear()
    # Fed by the loop, three times per time-out.
    wait_for(lambda: has("WATCHDOG=1") and told.count("WATCHDOG=1") >= 5)
    told.clear()
    hosts[0].end()
    wait_for(lambda: has("STOPPING=1"))


def test_a_watchdog_of_another_process_is_not_fed(tmp_path: Path, manager: socket.socket) -> None:
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "1000",
        "WATCHDOG_PID": "1",
    }
    notifier = Notifier(environment)
    assert notifier.next_deadline_ms() is None
    notifier.advance(10**9)
    notifier.ready()
    assert manager.recv(99) == b"READY=1"
    assert "NOTIFY_SOCKET" not in environment
    notifier.close()


def test_a_manager_that_is_gone_or_full_is_no_harm(tmp_path: Path, manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000"})
    for now_ms in range(2000):
        notifier.advance(now_ms)
    notifier.close()
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    gone.ready()
    gone.close()


def test_the_unit_is_what_systemd_accepts_and_hardened(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-s", "install-unit", f"DESTDIR={tmp_path}", "SOFTNLB=/usr/bin/true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (installed,) = tmp_path.rglob("softnlb@.service")
    text = installed.read_text()
    assert "@" not in text.replace("softnlb@web", "").replace("@system-service", "").replace(
        "@resources @privileged", ""
    )
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: the package systemd has it")
    command = [analyze, "security", "--offline=true", f"--threshold={EXPOSURE_MAX * 10:.0f}"]
    judged = subprocess.run([*command, str(installed)], capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout[-2000:] + judged.stderr


def test_the_unit_leaves_what_the_agent_needs() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    kept = unit["Service"]["CapabilityBoundingSet"].split()
    assert set(kept) >= set(privileges.NEEDED)
    assert set(kept) - set(privileges.NEEDED) == {"CAP_CHOWN", "CAP_SETPCAP"}


@pytest.mark.parametrize("deed", ["fill", "remove"])
def test_a_full_or_missing_disk_does_not_stop_the_service(
    hosts: list[Host],  # noqa: F811
    deed: str,
) -> None:
    host = hosts[0]
    before = host.network()
    state = host.directory / "state"
    state.mkdir()
    prepare = {
        "fill": f"mount -t tmpfs -o size=4k none {state}; mkdir -p {state}/10.1.0.100:1; "
        f"cat /dev/zero > {state}/full 2>/dev/null; ",
        "remove": f"mount -t tmpfs -o size=4k none {state}; mount -o remount,ro none {state}; ",
    }[deed]
    host.start("unshare", "-m", "sh", "-c", f'{prepare} exec "$@"', "sh")
    host.wait_state("converged")
    host.ask("suspend")
    host.wait_state("suspended")
    host.ask("resume")
    host.ask("start")
    host.wait_state("converged")
    events = {event["name"] for event in host.ask("display")["events"]}
    assert {"events-not-written", "state-not-saved"} <= events
    assert host.end() == 0
    assert host.network() == before
    assert "Traceback" not in host.log()
