"""docs/parity.md: every name of NLB is in it, and what it names of softnlb exists."""

import re
from typing import NamedTuple

import pytest

from softnlb.config_schema import CLUSTER, HOST, PORT_RULE
from softnlb.nlb import COMMANDS, parse
from tests.test_tidy import ROOT, _is_command

PAGE = ROOT / "docs" / "parity.md"
OPTIONS = {"cluster": CLUSTER, "host": HOST, "port_rule": PORT_RULE}

PARAMETERS = """
Primary IP address|Additional virtual IP addresses|Full Internet name|Network address|Protocol
Remote control|Cluster operation mode|MulticastSupportEnable|IGMPSupport|MulticastIPAddress
IdentityHeartbeatEnabled|IdentityHeartbeatPeriod|UnicastInterHostCommSupportEnabled|BDATeamActive
BDATeamId|BDATeamMaster|BDAReverseHash|HostPriority|Dedicated IP address|Initial host state
ClusterModeOnStart|password|ClusterModeSuspendOnStart|PersistSuspendOnReboot|FilterIcmp
VirtualIpAddress|StartPort|EndPort
FilteringMode|Affinity|Timeout|EqualLoad|LoadWeight|HandlingPriority|PortState|AliveMsgPeriod
AliveMsgTolerance|IPToMACEnable|MaskSourceMAC|MulticastARPEnable|DescriptorsPerAlloc
MaxDescriptorAllocs|ConnectionCleanupDelay|NumActions|NumPackets|NumAliveMsgs|TCPConnectionTimeout
IPSecConnectionTimeout|RemoteControlUDPPort|ParametersVersion|TCP|UDP|ICMP|IP fragments|GRE|IPsec
all local|all global|/LOCAL|/PASSW|/PORT|bdahooks|nlbmgr
"""
CMDLETS = {
    "NlbCluster": "New Get Set Remove Start Stop Suspend Resume",
    "NlbClusterNode": "Add Get Set Remove Start Stop Suspend Resume",
    "NlbClusterNodeDip": "Add Get Set Remove",
    "NlbClusterNodeNetworkInterface": "Get",
    "NlbClusterVip": "Add Get Set Remove",
    "NlbClusterPortRule": "Add Get Set Remove Enable Disable",
    "NlbClusterPortRuleNodeHandlingPriority": "Set",
    "NlbClusterPortRuleNodeWeight": "Set",
    "NlbClusterIpv6Address": "New",
    "NlbClusterDriverInfo": "Get",
}


class Row(NamedTuple):
    """One line of a table."""

    nlb: str
    softnlb: str
    remarks: str
    shown_by: str


def rows() -> list[Row]:
    """Every line of every table, without the heads."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [Row(*line) for line in cells if line[0] not in ("NLB", "---")]


ROWS = rows()


def code(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def test_every_name_of_nlb_is_in_the_table() -> None:
    cmdlets = [f"{verb}-{noun}" for noun, verbs in CMDLETS.items() for verb in verbs.split()]
    assert len(cmdlets) == 35
    wanted = [*PARAMETERS.strip().replace("\n", "|").split("|"), *COMMANDS, *cmdlets]
    named = [re.split(r", | \(|\)", row.nlb) for row in ROWS]
    names = {name for parts in named for name in parts}
    assert not [name for name in wanted if name not in names]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.nlb)
def test_a_row_names_what_exists(row: Row) -> None:
    named = code(row.softnlb)
    assert named or row.softnlb in ("none", "the same")
    if row.softnlb == "none":
        assert row.remarks, "why none?"
    else:
        assert row.shown_by, "which test shows it?"
    for text in [*named, *code(row.remarks)]:
        table, _, key = text.partition(".")
        if text.startswith("softnlb "):
            assert _is_command(text.split()[1:]), text
        elif text.startswith("nlb "):
            assert parse(text.split()[1:])
        elif table in OPTIONS:
            assert key in OPTIONS[table].keys, text
        else:
            assert text.startswith("["), f"neither option nor command: {text}"
    for text in code(row.shown_by):
        file, _, function = text.partition("::")
        path = ROOT / "tests" / file
        assert path.is_file(), text
        assert not function or f"def {function}(" in path.read_text(), text


def test_every_option_of_a_file_is_nlbs_or_known_to_be_ours() -> None:
    """A new key is put into the table, or here."""
    ours = {
        "cluster.hash_seed",
        "cluster.authentication",
        "host.control_group",
        "host.interface",
        "host.data_plane",
        "host.attach",
        "port_rule.health_probe",
    }
    named = {text for row in ROWS for text in code(row.softnlb) + code(row.remarks)}
    keys = {f"{table}.{key}" for table, model in OPTIONS.items() for key in model.keys}
    assert keys - named == ours
