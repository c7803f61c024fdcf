"""The doctor: what it finds here, what it says of what is missing, what it leaves behind."""

import json
import re
import subprocess
import sys
import threading
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from softnlb import doctor, probes
from softnlb.cli import run
from softnlb.config import load
from softnlb.doctor import CONFLICT, MISSING, OK, Check, boot_files_with, examine, exit_code

CONFIG = """
[cluster]
ip_address = "10.1.0.100/24"
[host]
id = 1
interface = "lo"
dedicated_ip_address = "10.1.0.1/24"
"""


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def traces() -> list[str]:
    """What probes would have left behind in the network of this machine."""
    commands = (["ip", "-o", "link"], ["nft", "list", "ruleset"], ["iptables-save"])
    done = [subprocess.run(c, capture_output=True, text=True, timeout=30) for c in commands]
    lines = [line for d in done for line in d.stdout.splitlines()]
    return [line for line in lines if re.search("softnlb_doctor|softnlb[012]|probe", line)]


def test_this_machine_has_what_the_other_tests_need_and_stays_as_it_was():
    checks = by_name(examine())
    assert {name: c.detail for name, c in checks.items() if c.needed and c.state != OK} == {}
    for name in (
        "kernel",
        "clock source",
        "nft",
        "namespaces",
        "nft family arp",
        "bridge and veth",
    ):
        assert checks[name].detail
    assert checks["nft family arp"].detail == "works"  # tried, not only accepted
    assert traces() == []


@pytest.mark.parametrize(
    ("lost", "features", "status"),
    [
        # A container with the network's capabilities, in which unshare is forbidden.
        ("-sys_admin", "accepted", 0),
        # A container with nothing.
        ("-sys_admin,-net_admin,-net_raw", "cannot be tried: neither privileges nor namespaces", 5),
    ],
)
def test_in_containers_that_forbid_unshare(lost, features, status):
    program = "import sys; from softnlb.cli import run; sys.exit(run(['doctor', '--json']))"
    command = ["setpriv", f"--bounding-set={lost}", f"--inh-caps={lost}", sys.executable]
    done = subprocess.run(
        [*command, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    report = json.loads(done.stdout)
    assert report["exit_code"] == status
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["namespaces"]["state"] == MISSING
    assert "container" in checks["namespaces"]["remedy"]
    assert features in {check["detail"] for check in report["checks"]}
    assert traces() == []


def test_a_tool_that_is_missing_is_named_with_its_package(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path: None)
    checks = by_name(examine())
    assert (checks["nft"].state, checks["nft"].needed) == (MISSING, True)
    assert checks["nft"].remedy == "sudo apt-get install nftables"
    assert (checks["curl"].state, checks["curl"].needed) == (MISSING, False)
    assert run(["doctor"]) == 5
    text = capsys.readouterr().out
    assert "nft: sudo apt-get install nftables" in text
    assert "missing (optional)" in text
    assert "Something needed is missing." in text


def test_a_feature_that_is_missing_is_told_with_the_kernels_words(monkeypatch):
    results = dict.fromkeys(probes.probes(check=False)) | {"nft-arp": "Operation not supported"}
    monkeypatch.setattr(doctor, "_try_features", lambda flags: (results, None))
    checks = examine()
    arp = by_name(checks)["nft family arp"]
    assert (arp.state, arp.detail) == (MISSING, "Operation not supported")
    assert "CONFIG_NF_TABLES_ARP" in arp.remedy
    assert exit_code(checks) == 5


def test_probes_that_hang_are_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "PROBES_TIMEOUT_S", 0.001)
    checks = by_name(examine())
    assert "timed out" in checks["nfqueue data plane"].detail


def test_a_tool_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(probes, "TOOL_TIMEOUT_S", 0.01)
    assert "timed out" in (probes.tool(["tail", "-f", "/dev/null"]) or "")
    assert "not installed" in (probes.tool(["no-such-program"]) or "")


def test_a_probe_that_raises_is_a_reason_and_no_traceback(monkeypatch):
    def broken() -> str | None:
        raise OSError("no such thing")

    monkeypatch.setattr(probes, "probes", lambda check: {"a": broken, "b": lambda: None})
    assert probes.run(check=True) == {"a": "OSError: no such thing", "b": None}


def test_probes_run_side_by_side(monkeypatch):
    both = threading.Barrier(2)

    def meets() -> str | None:
        both.wait(10)  # raises when the other one has not begun by then
        return None

    monkeypatch.setattr(probes, "probes", lambda check: {"a": meets, "b": meets})
    assert probes.run(check=True) == {"a": None, "b": None}


@pytest.mark.parametrize(
    ("restricted", "remedy"),
    [
        ("1\n", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ("0\n", "outside this container"),
    ],
)
def test_apparmors_restriction_is_told_in_one_sentence(monkeypatch, tmp_path, restricted, remedy):
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor, "tool", lambda command: "Operation not permitted")
    monkeypatch.setattr(doctor, "APPARMOR", tmp_path / "restrict")
    (tmp_path / "restrict").write_text(restricted)
    checks = by_name(examine())
    assert checks["namespaces"].state == MISSING
    assert remedy in checks["namespaces"].remedy


def test_exit_statuses():
    fine = Check("a", OK, True, "")
    optional = Check("b", MISSING, False, "")
    needed = Check("c", MISSING, True, "")
    conflict = Check("d", CONFLICT, True, "")
    assert exit_code([fine, optional]) == 0
    assert exit_code([fine, conflict]) == 1
    assert exit_code([conflict, needed]) == 5


def test_files_that_configure_an_address_at_boot(tmp_path: Path):
    files = {
        "etc/network/interfaces": "iface eth0 inet static\n  address 10.1.0.100/24\n",
        "etc/netplan/01.yaml": "addresses: [10.1.0.100/24]\n",
        "etc/systemd/network/a.network": "Address=10.1.0.10/24\n",
        "etc/systemd/network/b.network": "Address=110.1.0.100/24\n",
        "etc/keepalived/keepalived.conf": "virtual_ipaddress {\n 10.1.0.100\n}\n",
        "etc/hosts": "10.1.0.100 www\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = boot_files_with(IPv4Address("10.1.0.100"), tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "etc/network/interfaces",
        "etc/netplan/01.yaml",
        "etc/keepalived/keepalived.conf",
    ]


def test_with_a_configuration_conflicts_are_looked_for(monkeypatch, tmp_path, capsys):
    path = tmp_path / "host.toml"
    path.write_text(CONFIG)
    fine = by_name(examine(load(path)))
    assert fine["cluster IP 10.1.0.100"].state == OK
    assert "interface" not in fine
    interfaces = Path("/etc/network/interfaces")
    monkeypatch.setattr(doctor, "boot_files_with", lambda address: [interfaces])
    path.write_text(CONFIG.replace('"lo"', '"none0"'))
    assert run(["doctor", "--config", str(path), "--json"]) == 1
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["interface"]["state"] == CONFLICT
    assert checks["cluster IP 10.1.0.100"]["state"] == CONFLICT
    assert str(interfaces) in checks["cluster IP 10.1.0.100"]["detail"]


def test_an_ordinary_user_learns_that_labs_work_and_hosts_do_not(monkeypatch):
    status = Path("/proc/self/status").read_text().replace("CapEff:", "CapEff:\t0 ")
    monkeypatch.setattr(Path, "read_text", lambda path, **options: status)
    check = doctor._privileges(labs_work=True)
    assert (check.state, check.needed) == (MISSING, False)
    assert "labs can" in check.detail
    assert doctor._privileges(labs_work=False).needed
