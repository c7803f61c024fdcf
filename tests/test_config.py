"""Configuration files: what is accepted, and that every error is told at once."""

import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from convergence.auth import Authentication, Key, Keyring
from convergence.rules import DEFAULT_RULE, Affinity, FilteringMode, PortRule, Protocol
from modes.plan import Mode
from softnlb.config import ConfigError, Problem, load, load_in_child
from softnlb.config_schema import json_schema
from softnlb.key_file import read_keys
from tests.conftest import ORDINARY_USER

MINIMAL = """
[cluster]
ip_address = "10.1.0.100/24"
[host]
id = 3
interface = "eth0"
dedicated_ip_address = "10.1.0.3/24"
"""

FULL = """
[cluster]
ip_address = "10.1.0.100/24"
additional_ip_addresses = ["10.1.0.101/24"]
mode = "igmp"
timers = "fast"
alive_message_tolerance = 7
hash_seed = 0xC0FFEE
filter_icmp = true
key_file = "cluster.key"
authentication = "permissive"
[host]
id = 1
interface = "eth0"
dedicated_ip_address = "10.1.0.1/24"
initial_state = "suspended"
retain_suspended = true
data_plane = "nfqueue"
[[port_rule]]
cluster_ip_address = "10.1.0.101"
ports = "8000-8100"
protocol = "udp"
affinity = "network"
load_weight = 0
[[port_rule]]
ports = 80
protocol = "tcp"
filtering_mode = "single"
handling_priority = 4
[[port_rule]]
ports = "443"
filtering_mode = "disabled"
"""


KEYS = f"""
# the new one signs
9 {"ab" * 32}
8 {"CD" * 64}  # the old one
"""


@pytest.fixture
def write(tmp_path: Path):
    """Write a configuration file and return its path."""

    def write_file(text: str) -> Path:
        path = tmp_path / "host.toml"
        path.write_text(text)
        return path

    return write_file


def problems_of(path: Path) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def write_key(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_defaults_are_nlbs(write):
    config = load(write(MINIMAL))
    assert config.cluster_ip_addresses == (IPv4Interface("10.1.0.100/24"),)
    assert (config.mode, config.alive_message_period_ms) == (Mode.UNICAST, 1000)
    assert (config.alive_message_tolerance, config.filter_icmp) == (5, False)
    assert config.hash_seed == 0x0A010064  # the primary address, big-endian
    everything = PortRule(None, 0, 65535, Protocol.BOTH, FilteringMode.MULTIPLE_HOSTS)
    assert config.port_rules == (everything,)
    assert config.port_rules_with_default == (everything, DEFAULT_RULE)
    assert (config.load_weights, config.handling_priorities) == ((50,), (3,))
    assert (config.initial_state, config.retain_suspended) == ("started", False)
    assert (config.data_plane, config.keyring, config.warnings) == ("auto", Keyring(), ())


def test_every_key_arrives(write, tmp_path):
    write_key(tmp_path / "cluster.key", KEYS)
    config = load(write(FULL))
    assert config.mode == Mode.IGMP
    assert (config.alive_message_period_ms, config.alive_message_tolerance) == (100, 7)
    assert (config.hash_seed, config.filter_icmp) == (0xC0FFEE, True)
    keys = (Key(9, b"\xab" * 32), Key(8, b"\xcd" * 64))
    assert config.keyring == Keyring(keys, Authentication.PERMISSIVE)
    assert (config.initial_state, config.retain_suspended) == ("suspended", True)
    assert config.data_plane == "nfqueue"
    first, second, third = config.port_rules
    own = IPv4Address("10.1.0.101")
    assert first == PortRule(own, 8000, 8100, Protocol.UDP, affinity=Affinity.NETWORK)
    assert (second.start_port, second.end_port, second.protocol) == (80, 80, Protocol.TCP)
    assert second.filtering_mode == FilteringMode.SINGLE_HOST
    assert third.filtering_mode == FilteringMode.DISABLED
    assert config.load_weights == (0, 50, 50)
    assert config.handling_priorities == (1, 4, 1)


def test_a_time_out_where_it_means_nothing_is_warned_of_and_not_shared(write):
    plain = load(write(MINIMAL + "[[port_rule]]\n"))
    sticky = load(write(MINIMAL + "[[port_rule]]\ntimeout = 240\n"))
    assert sticky.port_rules[0].timeout_min == 240 and not sticky.warnings
    assert sticky.digest != plain.digest
    for vain in ('affinity = "none"', 'filtering_mode = "single"', 'filtering_mode = "disabled"'):
        without = load(write(MINIMAL + f"[[port_rule]]\n{vain}\n"))
        config = load(write(MINIMAL + f"[[port_rule]]\n{vain}\ntimeout = 20\n"))
        (warning,) = config.warnings
        assert "port rule 1 means nothing, as in NLB" in warning
        assert config.digest == without.digest
    for value in ("-1", "241", '"20"', "1.5"):
        with pytest.raises(ConfigError, match=r"port_rule\[1\]\.timeout"):
            load(write(MINIMAL + f"[[port_rule]]\ntimeout = {value}\n"))


def test_the_child_brings_the_same_and_pydantic_stays_out(write, tmp_path):
    write_key(tmp_path / "cluster.key", KEYS)
    path = write(FULL)
    assert load_in_child(path) == load(path)
    program = (
        "import sys; from softnlb.config import load_in_child; load_in_child(sys.argv[1]);"
        "sys.exit('pydantic_core' in sys.modules or 'tomllib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)


def test_a_file_is_checked_without_pydantics_models(write):
    """They took two fifths of `softnlb config check`."""
    program = (
        "import sys; from softnlb.config import load; load(sys.argv[1]);"
        "sys.exit('pydantic_core' not in sys.modules or 'pydantic' in sys.modules)"
    )
    path = write(MINIMAL)
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)


def test_the_child_brings_all_errors(write):
    path = write(MINIMAL.replace("id = 3", "id = 0").replace("[cluster]", "[cluster]\nx = 1"))
    with pytest.raises(ConfigError) as caught:
        load_in_child(path)
    assert list(caught.value.problems) == problems_of(path)


def test_all_errors_at_once_each_with_file_key_value_and_what_was_expected(write):
    path = write(
        """
        nonsense = 1
        [cluster]
        ip_address = "10.1.0.0/24"
        additional_ip_addresses = ["10.1.0.101/24", "fe80::1/64"]
        mode = "unicats"
        alive_message_period_ms = 99
        alive_message_tolerance = 101
        filter_icmp = "yes"
        tolerence = 5
        [host]
        id = 33
        dedicated_ip_address = "10.1.0.1"
        [[port_rule]]
        ports = "90-80"
        load_weight = 101
        [[port_rule]]
        protocol = "tpc"
        handling_priority = 0
        """
    )
    problems = problems_of(path)
    assert {problem.file for problem in problems} == {str(path)}
    assert [(problem.key, problem.value) for problem in problems] == [
        ("nonsense", "1"),
        ("cluster.tolerence", "5"),
        ("cluster.ip_address", '"10.1.0.0/24"'),
        ("cluster.additional_ip_addresses", '["10.1.0.101/24", "fe80::1/64"]'),
        ("cluster.mode", '"unicats"'),
        ("cluster.alive_message_period_ms", "99"),
        ("cluster.alive_message_tolerance", "101"),
        ("cluster.filter_icmp", '"yes"'),
        ("host.id", "33"),
        ("host.interface", ""),
        ("host.dedicated_ip_address", '"10.1.0.1"'),
        ("port_rule[1].ports", '"90-80"'),
        ("port_rule[1].load_weight", "101"),
        ("port_rule[2].protocol", '"tpc"'),
        ("port_rule[2].handling_priority", "0"),
    ]
    in_rules = [problem.code for problem in problems if problem.key.startswith("port_rule")]
    assert set(in_rules) == {"BAD_PORT_PARAMS"}
    assert {problem.code for problem in problems} == {"BAD_PORT_PARAMS", "BAD_PARAMS"}
    expected = {problem.key: problem.expected for problem in problems}
    assert expected["cluster.tolerence"].endswith("did you mean alive_message_tolerance?")
    assert expected["cluster.mode"].endswith("did you mean unicast?")
    assert expected["cluster.alive_message_period_ms"] == "a whole number from 100 to 10000"
    assert expected["port_rule[2].protocol"].endswith("did you mean tcp?")
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(problems)
    assert f"{path}: host.id = 33: expected a whole number from 1 to 32" in lines[8]
    assert f"{path}: host.interface: missing, expected the name of" in lines[9]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alive_message_period_ms", "10001"),
        ("alive_message_period_ms", "100.0"),
        ("alive_message_period_ms", "true"),
        ("alive_message_tolerance", "2"),
        ("hash_seed", "0x100000000"),
        ("hash_seed", "-1"),
        ("timers", '"slow"'),
        ("additional_ip_addresses", '"10.1.0.101/24"'),
        ("additional_ip_addresses", '["224.0.0.1/24"]'),
        ("additional_ip_addresses", '["10.1.0.100/24"]'),
        ("additional_ip_addresses", '["10.1.0.255/24"]'),
        ("cluster_mac", '"02-bf-0a-01-00"'),
        ("cluster_mac", '"03-bf-0a-01-00-64"'),  # a group's, and the mode is unicast
        ("cluster_mac", '"02-07-0a-01-00-64"'),  # that of host 7
        ("cluster_mac", '"00-00-00-00-00-00"'),
        ("mask_source_mac", '"no"'),
        ("arp_for_vip", "0"),
        ("authentication", '"none"'),
        ("authentication", '"permissive"'),
    ],
)
def test_one_wrong_value_in_the_cluster_table(write, key, value):
    (problem,) = problems_of(write(MINIMAL.replace("[host]", f"{key} = {value}\n[host]")))
    assert problem.key == f"cluster.{key}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interface", '"sixteen-letters-"'),
        ("interface", '"et h0"'),
        ("interface", '""'),
        ("id", '"3"'),
        ("dedicated_ip_address", '"10.1.0.100/24"'),
        ("dedicated_ip_address", '"127.0.0.1/8"'),
        ("initial_state", '"running"'),
        ("data_plane", '"xdp"'),
    ],
)
def test_one_wrong_value_in_the_host_table(write, key, value):
    kept = [line for line in MINIMAL.splitlines() if not line.startswith(f"{key} =")]
    (problem,) = problems_of(write("\n".join([*kept, f"{key} = {value}"])))
    assert problem.key == f"host.{key}"


@pytest.mark.parametrize("ports", ["-1", "65536", "80-", "-80", "80-90-100", "http", "٨٠", ""])
def test_ports_that_are_none(write, ports):
    (problem,) = problems_of(write(f'{MINIMAL}[[port_rule]]\nports = "{ports}"'))
    assert problem.key == "port_rule[1].ports"


def rule(address: str, ports: str, protocol: str) -> str:
    return (
        f'[[port_rule]]\ncluster_ip_address = "{address}"\n'
        f'ports = "{ports}"\nprotocol = "{protocol}"\n'
    )


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        (("all", "80-90", "tcp"), ("all", "90-99", "both"), True),
        (("all", "80-90", "tcp"), ("all", "80-90", "udp"), False),
        (("all", "80-90", "both"), ("all", "91", "both"), False),
        (("10.1.0.100", "80", "tcp"), ("10.1.0.100", "0-65535", "tcp"), True),
        (("10.1.0.100", "80", "tcp"), ("all", "80", "tcp"), False),  # the own rule wins
    ],
)
def test_no_port_lies_in_two_rules_of_one_address(write, first, second, overlap):
    path = write(MINIMAL + rule(*first) + rule(*second))
    if not overlap:
        assert len(load(path).port_rules) == 2
        return
    (problem,) = problems_of(path)
    assert (problem.key, problem.code) == ("port_rule[2].ports", "PORT_OVERLAP")
    assert "port_rule[1]" in problem.expected
    assert str(problem).endswith("(PORT_OVERLAP)")


def test_a_rule_for_an_address_that_is_no_cluster_ip_address(write):
    (problem,) = problems_of(write(MINIMAL + rule("10.1.0.99", "80", "tcp")))
    assert (problem.key, problem.value) == ("port_rule[1].cluster_ip_address", '"10.1.0.99"')
    assert "10.1.0.100" in problem.expected


def test_at_most_32_rules(write):
    rules = [rule("all", str(port), "tcp") for port in range(33)]
    assert len(load(write(MINIMAL + "".join(rules[:32]))).port_rules) == 32
    (problem,) = problems_of(write(MINIMAL + "".join(rules)))
    assert (problem.key, problem.value) == ("port_rule", "33 rules")
    assert problem.code == "MAX_PORT_RULES"


def test_equal_load_counts_as_50_and_is_what_a_rule_has_by_itself(write):
    rules = rule("all", "1", "tcp") + rule("all", "2", "tcp") + 'load_weight = "equal"\n'
    assert load(write(MINIMAL + rules)).load_weights == (50, 50)
    (problem,) = problems_of(write(MINIMAL + rules.replace("equal", "even")))
    assert (problem.key, problem.code) == ("port_rule[2].load_weight", "BAD_PORT_PARAMS")


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("1 " + "ab" * 32, 0o640, "mode 600"),
        ("1 " + "ab" * 32, 0o604, "mode 600"),
        ("1 " + "ab" * 31, 0o600, "32 to 64 bytes"),
        ("1 " + "ab" * 65, 0o600, "32 to 64 bytes"),
        ("1 " + "ab" * 32 + "\n2 secret", 0o600, "in line 2 an id"),
        ("ab" * 32, 0o600, "an id and 32"),
        ("-1 " + "ab" * 32, 0o600, "an id and 32"),
        ("0 " + "ab" * 32, 0o600, "from 1 to 4294967295"),
        ("4294967296 " + "ab" * 32, 0o600, "from 1 to 4294967295"),
        ("9" * 5000 + " " + "ab" * 32, 0o600, "an id and 32"),
        ("1 " + "ab" * 32 + "\n1 " + "cd" * 32, 0o600, "line 2 repeats 1"),
        ("# no key at all\n\n", 0o600, "a key in it"),
        ("#" * 70_000, 0o600, "at most 65536 bytes"),
        (None, 0, "no such file"),
    ],
)
def test_a_key_file_that_will_not_do(write, tmp_path, text, mode, expected):
    if text is not None:
        write_key(tmp_path / "cluster.key", text, mode)
    (problem,) = problems_of(write(MINIMAL.replace("[host]", 'key_file = "cluster.key"\n[host]')))
    assert problem.key == "cluster.key_file"
    assert expected in problem.expected
    assert text is None or text not in str(problem)  # the secret is never printed


def test_a_key_file_of_somebody_else_or_no_file_at_all(tmp_path):
    path = tmp_path / "cluster.key"
    write_key(path, KEYS)
    if not ORDINARY_USER:  # whose namespace has no other user
        os.chown(path, 65534, 65534)
        with pytest.raises(ValueError, match="user id 65534 owns it"):
            read_keys(path)
    path.unlink()
    os.mkfifo(path, 0o600)  # would keep a reader waiting
    with pytest.raises(ValueError, match="regular file"):
        read_keys(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[cluster]\nmode = \n", "line 2"),
        (b"[cluster]\nmode = '\xff'", "UTF-8"),
        (b"#" * (1 << 20) + b"#", "at most 1048576 bytes"),
        (b"cluster = 3\nhost = []\nport_rule = [1]", "[cluster]"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, expected):
    path = tmp_path / "host.toml"
    path.write_bytes(content)
    assert expected in str(problems_of(path)[0])


def test_a_file_that_is_not_there(tmp_path):
    (problem,) = problems_of(tmp_path / "none.toml")
    assert (problem.key, problem.file) == ("", str(tmp_path / "none.toml"))
    assert problem.code == "IO_ERROR"
    assert "no such file" in problem.expected


def test_a_dedicated_ip_address_in_another_subnet_is_allowed_and_told(write):
    (warning,) = load(write(MINIMAL.replace("10.1.0.3/24", "10.2.0.3/24"))).warnings
    assert "10.2.0.3/24" in warning


@pytest.mark.parametrize(
    ("mode", "mac", "accepted"),
    [
        ("unicast", "02:bf:c0:ff:ee:01", True),
        ("multicast", "03-BF-C0-FF-EE-01", True),
        ("multicast", "02-bf-c0-ff-ee-01", False),
        ("multicast", "ff-ff-ff-ff-ff-ff", False),
        ("igmp", "01-00-5e-7f-00-01", False),
    ],
)
def test_a_cluster_mac_has_to_suit_the_mode(write, mode, mac, accepted):
    path = write(MINIMAL.replace("[host]", f'mode = "{mode}"\ncluster_mac = "{mac}"\n[host]'))
    if accepted:
        assert load(path).link_choices.cluster_mac == bytes.fromhex(
            mac.replace("-", ":").replace(":", "")
        )
    else:
        (problem,) = problems_of(path)
        assert problem.key == "cluster.cluster_mac"


def test_what_is_asking_for_trouble_is_told(write):
    text = "mask_source_mac = false\narp_for_vip = false\n"
    unicast = load(write(MINIMAL.replace("[host]", f"{text}[host]")))
    assert not (unicast.link_choices.mask_source_mac or unicast.link_choices.arp_for_vip)
    assert [warning.partition(" = ")[0] for warning in unicast.warnings] == [
        "mask_source_mac",
        "arp_for_vip",
    ]


SHARED_CHANGES = [
    ("1.0.100/24", "1.0.100/25"),
    ('mode = "igmp"', 'mode = "unicast"'),
    ('timers = "fast"', 'timers = "nlb"'),
    ('timers = "fast"', 'timers = "fast"\nmask_source_mac = false'),
    ('timers = "fast"', 'timers = "fast"\narp_for_vip = false'),
    ("tolerance = 7", "tolerance = 8"),
    ("0xC0FFEE", "0xC0FFED"),
    ("filter_icmp = true", "filter_icmp = false"),
    ('"8000-8100"', '"8000-8101"'),
    ('protocol = "udp"', 'protocol = "tcp"'),
    ('affinity = "network"', 'affinity = "none"'),
    ('filtering_mode = "single"', 'filtering_mode = "multiple"'),
]
OWN_CHANGES = [
    ("id = 1\n", "id = 2\n"),
    ('"eth0"', '"eth1"'),
    ("10.1.0.1/24", "10.1.0.2/24"),
    ("load_weight = 0", "load_weight = 7"),
    ("handling_priority = 4", "handling_priority = 5"),
    ('ports = "443"', 'ports = "443"\naffinity = "none"'),  # means nothing on a disabled rule
    ("permissive", "enforce"),
    ('key_file = "cluster.key"\nauthentication = "permissive"\n', ""),
]


@pytest.mark.parametrize(("old", "new"), SHARED_CHANGES + OWN_CHANGES)
def test_the_digest_covers_what_hosts_share_and_nothing_else(write, tmp_path, old, new):
    write_key(tmp_path / "cluster.key", KEYS)
    before = load(write(FULL)).digest
    assert old in FULL
    after = load(write(FULL.replace(old, new))).digest
    assert len(before) == 8
    assert (before != after) == ((old, new) in SHARED_CHANGES)


def test_the_digest_is_the_same_in_every_process(write):
    program = "import sys; from softnlb.config import load; print(load(sys.argv[1]).digest.hex())"
    path = write(MINIMAL)
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, path],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {f"{load(path).digest.hex()}\n".encode()}


def test_a_change_of_load_weight_alone_is_seen_as_such(write):
    first = load(write(MINIMAL + "[[port_rule]]\nload_weight = 50"))
    second = load(write(MINIMAL + "[[port_rule]]\nload_weight = 10"))
    assert first != second
    assert first.but_for_what_can_change() == second.but_for_what_can_change()


def test_the_json_schema_names_every_table():
    schema = json_schema()
    assert set(schema["properties"]) == {"cluster", "host", "port_rule"}
    assert schema["required"] == ["cluster", "host"]
    assert schema["additionalProperties"] is False


def test_the_json_schema_says_of_a_key_what_the_errors_say():
    tables = json_schema()["properties"]
    assert tables["host"]["required"] == ["id", "interface", "dedicated_ip_address"]
    assert tables["host"]["properties"]["id"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 32,
        "description": "a whole number from 1 to 32, unique in the cluster",
    }
    rules = tables["port_rule"]
    assert (rules["type"], rules["maxItems"]) == ("array", 32)
    rule = rules["items"]["properties"]
    assert rule["protocol"]["enum"] == ["tcp", "udp", "both"]
    assert rule["load_weight"]["default"] == "equal"
    assert rule["load_weight"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 100}
    probe = rule["health_probe"]
    assert (probe["required"], probe["additionalProperties"]) == (["type"], False)
    assert probe["properties"]["fall"]["default"] == 3
