"""Configuration of one host: a TOML file becomes a frozen ClusterConfig, or every error at once.

pydantic's validator is imported only while a file is read.  A process that must stay small (the
agent) calls ``load_in_child``, which reads the file in a short-lived child.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Literal

from convergence.auth import Keyring
from convergence.rules import DEFAULT_RULE, FilteringMode, IPAddress, PortRule
from modes.plan import AS_NLB_DOES, InterfaceAddress, LinkChoices, Mode
from softnlb.errors import ReturnCode, UsageError

InitialState = Literal["started", "stopped", "suspended"]
DataPlaneChoice = Literal["auto", "nfqueue", "ebpf"]
AttachChoice = Literal["auto", "tc", "xdp", "xdp-generic"]
ProbeType = Literal["tcp", "http", "command"]
ProbeAction = Literal["drain", "disable"]

_IO = ReturnCode.IO_ERROR.name

FILE_MAX_BYTES = 1 << 20

KEY_LAYOUT = 1
"""Which bytes of a packet are hashed (softnlb/filter.py); part of the configuration digest."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error of a configuration file.

    ``key`` is the path of the key, port rules counted from 1 ("port_rule[2].ports"), empty for the
    file as a whole.  ``value`` is what stands there as text, empty when nothing does.  ``code``:
    the name of NLB's return code for the refusal.
    """

    file: str
    key: str
    value: str
    expected: str
    code: str = ReturnCode.BAD_PARAMS.name

    def __str__(self) -> str:
        """One line: file, key, value, what was expected, NLB's return code."""
        if not self.key:
            found = ""
        elif not self.value:
            found = f" {self.key}: missing,"
        else:
            found = f" {self.key} = {self.value}:"
        return f"{self.file}:{found} expected {self.expected} ({self.code})"


class ConfigError(UsageError):
    """Everything that is wrong with a configuration file; nothing of it was applied."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        """One line per problem."""
        return "\n".join(str(problem) for problem in self.problems)


@dataclass(frozen=True, slots=True)
class HealthProbe:
    """How the service behind the port rule of ``slot`` is looked at, and what follows.

    ``address``, ``port``: where, for tcp and http; ``path``: what http asks for; ``command``: its
    words, for command; exit status 0 means alive.  Dead after ``fall`` failed looks in a row, alive
    after ``rise`` good ones; the very first look counts alone.
    """

    slot: int
    type: ProbeType
    address: str
    port: int
    path: str
    command: tuple[str, ...]
    period_ms: int
    timeout_ms: int
    fall: int
    rise: int
    action: ProbeAction


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The configuration of one host, checked.

    ``cluster_ip_addresses``: the primary one first.  ``port_rules``: the user's rules without the
    default rule; ``load_weights`` (0..100) and ``handling_priorities`` (1..32) have one entry per
    rule.  ``health_probes``: of the rules that have one.  ``keyring``: empty when heartbeats are
    not authenticated.  ``warnings``: sentences about what is allowed and probably not meant.
    """

    path: Path
    cluster_ip_addresses: tuple[InterfaceAddress, ...]
    mode: Mode
    alive_message_period_ms: int
    alive_message_tolerance: int
    hash_seed: int
    filter_icmp: bool
    port_rules: tuple[PortRule, ...]
    load_weights: tuple[int, ...]
    handling_priorities: tuple[int, ...]
    host_id: int
    interface: str
    dedicated_ip_address: InterfaceAddress
    initial_state: InitialState
    retain_suspended: bool
    data_plane: DataPlaneChoice
    attach: AttachChoice = "auto"
    keyring: Keyring = Keyring()
    remote_control_port: int | None = None
    """None: off."""
    control_group: str | None = None
    link_choices: LinkChoices = AS_NLB_DOES
    additional_dedicated_ip_addresses: tuple[InterfaceAddress, ...] = ()
    health_probes: tuple[HealthProbe, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def dedicated_ip_addresses(self) -> tuple[IPAddress, ...]:
        """All addresses of this host alone, without their prefix lengths."""
        every = (self.dedicated_ip_address, *self.additional_dedicated_ip_addresses)
        return tuple(address.ip for address in every)

    @property
    def dedicated_ipv6_address(self) -> IPv6Address | None:
        """The first IPv6 address of this host alone."""
        found = (ip for ip in self.dedicated_ip_addresses if isinstance(ip, IPv6Address))
        return next(found, None)

    @property
    def _dedicated_ipv6_addresses(self) -> tuple[InterfaceAddress, ...]:
        """Of the additional ones: the rules of the link name the first."""
        every = self.additional_dedicated_ip_addresses
        return tuple(address for address in every if address.version == 6)

    @property
    def probes_prove(self) -> bool:
        """Whether a host that does not answer ARP probes of its dedicated IP address is gone, or
        neighbour solicitations: not where all hosts have one MAC address."""
        return self.link_choices.mask_source_mac

    @property
    def port_rules_with_default(self) -> tuple[PortRule, ...]:
        """The rules in the order of the heartbeat's slots: the user's, the default rule last."""
        return (*self.port_rules, DEFAULT_RULE)

    def but_for_what_can_change(self) -> ClusterConfig:
        """This configuration without what a host in its cluster can change and stay in it."""
        return replace(
            self,
            load_weights=(),
            handling_priorities=(),
            additional_dedicated_ip_addresses=self._dedicated_ipv6_addresses,
            health_probes=(),
            keyring=Keyring(),
            initial_state="started",
            retain_suspended=False,
            control_group=None,
            warnings=(),
        )

    @property
    def digest(self) -> bytes:
        """8 bytes that are equal on hosts whose shared parameters are equal.

        SHA-256, cut, of canonical JSON.  What differs between hosts by design is left out: host
        id, interface, load weights, handling priorities.  So are the keys: they change on one host
        after the other.
        """
        canonical = json.dumps(self._shared(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).digest()[:8]

    def _shared(self) -> dict[str, object]:
        primary, *additional = self.cluster_ip_addresses
        choices = self.link_choices
        return {
            "alive_message_period_ms": self.alive_message_period_ms,
            "alive_message_tolerance": self.alive_message_tolerance,
            "arp_for_vip": choices.arp_for_vip,
            "cluster_mac": choices.cluster_mac.hex() if choices.cluster_mac else None,
            "mask_source_mac": choices.mask_source_mac,
            "cluster_ip_addresses": [str(primary), *sorted(str(a) for a in additional)],
            "filter_icmp": self.filter_icmp,
            "hash_seed": self.hash_seed,
            "key_layout": KEY_LAYOUT,
            "mode": self.mode.value,
            "port_rules": [_shared_of_rule(rule) for rule in self.port_rules],
            "remote_control_port": self.remote_control_port,
        }


def _shared_of_rule(rule: PortRule) -> dict[str, object]:
    shared: dict[str, object] = {
        "cluster_ip_address": str(rule.cluster_ip_address or "all"),
        "ports": [rule.start_port, rule.end_port],
        "protocol": int(rule.protocol),
        "filtering_mode": int(rule.filtering_mode),
    }
    if rule.filtering_mode == FilteringMode.MULTIPLE_HOSTS:  # elsewhere affinity means nothing
        shared["affinity"] = int(rule.affinity)
    if rule.remembers_clients:
        shared["timeout"] = rule.timeout_min
    return shared


def load(path: str | os.PathLike[str]) -> ClusterConfig:
    """Read and check a configuration file.

    Raises ConfigError with every error of the file: unreadable, not TOML (with the line), unknown
    or missing keys, wrong values, and values that do not fit together.
    """
    from softnlb.config_check import build

    return build(Path(path), read_toml(Path(path)))


def load_in_child(
    path: str | os.PathLike[str], wait: Callable[[int], bool] | None = None
) -> ClusterConfig:
    """As ``load``, but in a forked child: the caller never holds the validator in memory.

    ``wait`` is given a descriptor that becomes readable with the answer, some tenths of a second
    later; False: it took too long.  Safe beside threads that hold no lock which reading a file
    needs, such as the agent's scanner.
    """
    import pickle

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _answer_and_exit(path, write_end)
    os.close(write_end)
    if wait is not None and not wait(read_end):
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    if not answer:
        raise ConfigError(
            (Problem(str(path), "", "", "to be read, but the process that reads it died", _IO),)
        )
    result = pickle.loads(answer)
    if isinstance(result, ClusterConfig):
        return result
    raise ConfigError(result)


def _answer_and_exit(path: str | os.PathLike[str], write_end: int) -> None:
    import pickle

    status = 1
    try:
        try:
            result: ClusterConfig | tuple[Problem, ...] = load(path)
        except ConfigError as error:
            result = error.problems
        with os.fdopen(write_end, "wb") as pipe:
            pickle.dump(result, pipe)
        status = 0
    finally:
        os._exit(status)  # never run the parent's clean-up code in the child


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.  Raises ConfigError when it cannot be read or is not TOML."""
    import tomllib

    code = ReturnCode.BAD_PARAMS.name
    try:
        with path.open("rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
        if len(content) <= FILE_MAX_BYTES:
            return tomllib.loads(content.decode("utf-8-sig"))
        expected = f"a file of at most {FILE_MAX_BYTES} bytes"
    except OSError as error:
        code = _IO
        expected = f"a file that can be read ({(error.strerror or str(error)).lower()})"
    except UnicodeDecodeError as error:
        expected = f"UTF-8 text (byte {error.start} is not)"
    except tomllib.TOMLDecodeError as error:
        expected = f"a TOML file ({error})"  # the text ends with line and column
    except (ValueError, RecursionError):
        expected = "a TOML file without numbers of thousands of digits and the like"
    raise ConfigError((Problem(str(path), "", "", expected, code),))
