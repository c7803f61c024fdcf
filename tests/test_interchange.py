"""From NLB and to NLB: `softnlb config import` and `softnlb config export`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convergence.rules import Affinity, FilteringMode, Protocol
from modes.plan import Mode
from softnlb import nlb_show
from softnlb.cli_more import config
from softnlb.config import ClusterConfig, ConfigError, load
from softnlb.errors import SoftnlbError, UsageError
from softnlb.nlb_import import read
from tests.test_nlb import DISPLAY

SHOWN = Path(__file__).parent / "fuzz" / "corpus" / "nlb"
FILE = """
[cluster]
ip_address = "10.1.0.100/24"
additional_ip_addresses = ["10.1.0.101/24"]
mode = "igmp"
timers = "fast"
hash_seed = 7
[host]
id = 2
interface = "Bob's"
dedicated_ip_address = "10.1.0.2/25"
retain_suspended = true
[[port_rule]]
ports = "80"
protocol = "tcp"
timeout = 20
load_weight = 30
[[port_rule]]
cluster_ip_address = "10.1.0.101"
ports = "53-54"
protocol = "udp"
filtering_mode = "single"
handling_priority = 4
[[port_rule]]
ports = "23"
filtering_mode = "disabled"
"""
SCRIPT = """\
$ErrorActionPreference = 'Stop'
$interface = 'Bob''s'  # the name of the adapter in Windows
New-NlbCluster -InterfaceName $interface -ClusterPrimaryIP 10.1.0.100 -SubnetMask 255.255.255.0 \
-DedicatedIP 10.1.0.2 -DedicatedIPSubnetMask 255.255.255.128 -OperationMode IGMPMULTICAST -Force
Add-NlbClusterVip -InterfaceName $interface -IP 10.1.0.101 -SubnetMask 255.255.255.0
Set-NlbClusterNode -InterfaceName $interface -HostPriority 2 -InitialHostState Started \
-RetainSuspended $true -Force
Get-NlbClusterPortRule -InterfaceName $interface | Remove-NlbClusterPortRule -Force
Add-NlbClusterPortRule -InterfaceName $interface -StartPort 80 -EndPort 80 -Protocol TCP \
-Mode MULTIPLE -Affinity SINGLE -Timeout 20
Set-NlbClusterPortRuleNodeWeight -InterfaceName $interface -Port 80 -LoadWeight 30
Add-NlbClusterPortRule -InterfaceName $interface -IP 10.1.0.101 -StartPort 53 -EndPort 54 \
-Protocol UDP -Mode SINGLE
Set-NlbClusterPortRuleNodeHandlingPriority -InterfaceName $interface -IP 10.1.0.101 -Port 53 \
-HandlingPriority 4
Add-NlbClusterPortRule -InterfaceName $interface -StartPort 23 -EndPort 23 -Protocol BOTH \
-Mode DISABLED
"""


def run(*words: str) -> Result:
    """``softnlb config WORDS``; what it refuses is raised."""
    return CliRunner().invoke(config, words, catch_exceptions=False)


def imported(tmp_path: Path, *words: str) -> ClusterConfig:
    """The configuration that the import prints, read again."""
    file = tmp_path / "cluster.toml"
    file.write_text(run("import", *words).stdout)
    return load(file)


def test_the_text_of_nlb_display(tmp_path: Path) -> None:
    found = imported(tmp_path, str(SHOWN / "display.txt"), "--interface", "ens3")
    assert str(found.cluster_ip_addresses[0]) == "192.168.100.80/24"
    assert (found.mode, found.host_id, found.interface) == (Mode.MULTICAST, 1, "ens3")
    assert (found.initial_state, found.retain_suspended) == ("started", True)
    web, tls, single = found.port_rules
    assert (web.start_port, web.protocol, web.affinity) == (80, Protocol.TCP, Affinity.SINGLE)
    assert (str(tls.cluster_ip_address), tls.affinity) == ("192.168.100.80", Affinity.NONE)
    assert single.filtering_mode is FilteringMode.SINGLE_HOST
    assert found.load_weights[:2] == (50, 30)
    assert found.handling_priorities[2] == 1
    assert (
        "RemoteControlEnabled = ENABLED: wants a key here"
        in run("import", str(SHOWN / "display.txt")).stderr
    )


def test_what_our_own_nlb_display_shows(capsys: pytest.CaptureFixture[str]) -> None:
    nlb_show.display(DISPLAY)
    found = read(capsys.readouterr().out)
    assert found.cluster["ip_address"] == "10.1.0.100/24"
    assert found.cluster["cluster_mac"] == "03-bf-0a-01-00-64"
    assert (found.cluster["mode"], found.cluster["arp_for_vip"]) == ("multicast", False)
    assert found.cluster["filter_icmp"] is True
    assert "mask_source_mac" not in found.cluster, "as it is by itself"
    assert found.host["dedicated_ip_address"] == "10.1.0.2/26"
    assert [rule["filtering_mode"] for rule in found.rules] == ["multiple", "single", "disabled"]
    assert found.rules[0]["load_weight"] == "equal"
    assert found.rules[1] | {"cluster_ip_address": "10.1.0.101"} == found.rules[1]
    # NLB's list of parameters has the primary address only.
    assert found.cluster["additional_ip_addresses"] == ["10.1.0.101/24"]
    assert [str(one)[:16] for one in found.unmapped] == ["VIP = 10.1.0.101"]


def test_a_cluster_without_rules_has_the_default_host_for_everything(tmp_path: Path) -> None:
    """A file without rules would have one for all ports, on all hosts."""
    text = (SHOWN / "display.txt").read_text()
    lines = [line for line in text.splitlines() if not line.split()[3:4] or "=" in line]
    source = tmp_path / "shown.txt"
    source.write_text("\n".join(lines))
    (rule,) = imported(tmp_path, str(source)).port_rules
    assert (rule.start_port, rule.end_port) == (0, 65535)
    assert rule.filtering_mode is FilteringMode.SINGLE_HOST
    told = run("import", str(source)).stderr
    assert "NumberOfRules = 3: 0 could be read" in told
    assert "port rules = none: all traffic goes to one host" in told


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("StartPort", "a", "port rule a-80 = a-80: ports of a rule that is left out"),
        ("EndPort", None, "port rule 80-None = 80-None: ports of a rule that is left out"),
        ("Protocol", [6], "port rule 80-80 = [6]: Protocol of a rule that is left out"),
        ("Affinity", 7, "port rule 80-80 = 7: Affinity of a rule that is left out"),
        ("LoadWeight", "x", "port rule 80-80, LoadWeight = x: expected a whole number"),
    ],
)
def test_what_a_rule_cannot_be_is_told_and_the_import_goes_on(
    key: str, value: object, told: str
) -> None:
    cluster = {"IPAddress": "10.1.0.100", "SubnetMask": "255.255.255.0", "OperationMode": "UNICAST"}
    rule = {"StartPort": 80, "EndPort": 80, "Protocol": 1, "Mode": 2, "Affinity": 1}
    other = rule | {"StartPort": 443, "EndPort": 443}
    found = read(json.dumps([cluster, rule | {key: value}, other, {"IPAddress": None}]))
    assert [str(one) for one in found.unmapped] == [told]
    assert found.rules[-1]["ports"] == "443"


def test_a_switch_of_the_multicast_modes_takes_no_arp_from_a_unicast_cluster() -> None:
    """NLB answers ARP in unicast mode whatever MulticastARPEnable says; arp_for_vip is for both."""
    text = (SHOWN / "display.txt").read_text()
    off = text.replace("MulticastARPEnable        = ENABLED", "MulticastARPEnable = DISABLED")
    unicast = off.replace(
        "MulticastSupportEnable    = ENABLED", "MulticastSupportEnable = DISABLED"
    )
    assert read(off).cluster["arp_for_vip"] is False
    found = read(unicast)
    assert (found.cluster["mode"], "arp_for_vip" in found.cluster) == ("unicast", False)
    assert "MulticastARPEnable" in [one.name for one in found.unmapped]


def test_the_objects_of_powershell_of_the_host_that_is_named(tmp_path: Path) -> None:
    source = str(SHOWN / "get.json")
    second = imported(tmp_path, source, "--host", "web2")
    assert (second.host_id, str(second.dedicated_ip_address)) == (2, "10.1.0.2/24")
    assert (second.initial_state, second.mode) == ("stopped", Mode.IGMP)
    assert [str(one.ip) for one in second.cluster_ip_addresses] == ["10.1.0.100", "10.1.0.101"]
    assert imported(tmp_path, source, "--host", "1").digest == second.digest
    with pytest.raises(UsageError, match="name one with --host: 1, 2"):
        run("import", source)


def test_what_has_no_equal_is_named_and_ends_the_import_when_asked() -> None:
    source = str(SHOWN / "get.json")
    told = run("import", source, "--host", "1")
    assert "timeout = 20" in told.stdout
    for text in ("9000-9000 = SCTP", "ClusterName"):
        assert text in told.stderr
        assert (
            f"# not taken over: {next(x for x in told.stderr.splitlines() if text in x)[16:]}"
            in (told.stdout)
        )
    told = run("import", source, "--host", "1", "--json")
    names = [one["name"] for one in json.loads(told.stdout)["not_taken_over"]]
    assert any("9000-9000" in name for name in names)
    with pytest.raises(SoftnlbError, match=r"SCTP(.|\n)*BAD_PARAMS"):
        run("import", source, "--host", "1", "--stop")


def test_a_result_that_is_no_configuration_is_refused_by_key(tmp_path: Path) -> None:
    source = tmp_path / "shown.txt"
    source.write_text((SHOWN / "display.txt").read_text().replace("100.81", "100.999"))
    with pytest.raises(ConfigError, match=r"host\.dedicated_ip_address"):
        run("import", str(source))
    source.write_text("Cluster 10.1.0.100\n")
    with pytest.raises(UsageError, match="no cluster in it"):
        run("import", str(source))
    source.write_bytes((SHOWN / "display.txt").read_text().encode("utf-16"))
    assert run("import", str(source)).stdout.count("[[port_rule]]") == 3


def test_the_script_builds_the_same_cluster(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(FILE)
    told = run("export", str(file))
    comments = [line for line in told.stdout.splitlines() if line.startswith("#")]
    code = [line for line in told.stdout.splitlines() if not line.startswith("#")]
    assert "\n".join(code) + "\n" == SCRIPT
    assert [line[2:] for line in comments[1:]] == told.stderr.splitlines()
    assert "AliveMsgPeriod" in told.stderr and "hash_seed 7" in told.stderr


def test_the_script_has_every_dedicated_address_and_names_what_only_the_registry_has(
    tmp_path: Path,
) -> None:
    more = """
cluster_mac = "02-11-22-33-44-55"
mask_source_mac = false
arp_for_vip = false"""
    text = FILE.replace('mode = "igmp"', f'mode = "unicast"{more}')
    own = 'additional_dedicated_ip_addresses = ["10.1.0.22/24"]'
    file = tmp_path / "cluster.toml"
    file.write_text(text.replace("id = 2", f"id = 2\n{own}"))
    told = run("export", str(file))
    dip = "Add-NlbClusterNodeDip -InterfaceName $interface -IP 10.1.0.22 -SubnetMask 255.255.255.0"
    assert dip in told.stdout.splitlines()
    for name in ("IPToMACEnable", "MaskSourceMAC", "MulticastARPEnable"):
        assert name in told.stderr
