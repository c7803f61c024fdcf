"""The commands `nlb` and `wlbs`: NLB's own grammar, carried out by softnlb.

    nlb COMMAND [VIP:PORT] [CLUSTER[:HOST] | all local | all global] [/LOCAL] [/PORT N] [/PASSW [P]]

Whoever knows nlb.exe can type what they know; whoever learns it here can type it there.  Hosts on
other computers obey the cluster key; a password is read and not needed.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import groupby
from pathlib import Path
from typing import Any

from softnlb import nlb_show
from softnlb.cli_common import ask
from softnlb.control import Result, call, cluster_of, find_hosts, split_address
from softnlb.errors import ReturnCode, SoftnlbError, UsageError, bad_params
from softnlb.remote_verbs import REMOTE_VERBS

QUESTIONS = ("query", "display", "params", "queryport", "ip2mac", "help")
ORDERS = ("start", "stop", "drainstop", "suspend", "resume", "reload")
RULE_ORDERS = ("enable", "disable", "drain")
COMMANDS = (*QUESTIONS, *ORDERS, *RULE_ORDERS)
LOCAL_ONLY = ("reload", "display", "params")
"""Commands that no other host can be asked to carry out, as in NLB."""

REMOTE_CONTROL_PORT = 2504


@dataclass(frozen=True)
class Target:
    """Whom a command is for.  Without a cluster: every cluster of this computer.

    ``host``: a host id or a dedicated IP address, None for every host of the cluster.
    ``everywhere``: the hosts on other computers, too.
    """

    cluster: str | None = None
    host: str | None = None
    everywhere: bool = False


@dataclass(frozen=True)
class Request:
    """A command line, read.  ``password``: what was given, None for nothing."""

    command: str
    argument: str | None = None
    target: Target = field(default_factory=Target)
    password: str | None = None
    port: int = REMOTE_CONTROL_PORT


# ---------------------------------------------------------------- reading


def parse(words: Sequence[str]) -> Request:
    """Read a command line.  Raises UsageError for anything that NLB's grammar does not know."""
    plain, password, port, local, wants_help = _options(words)
    command = plain.pop(0).lower() if plain else "help"
    if command in ("?", "/?", "-?"):
        command = "help"
    if command not in COMMANDS:
        raise bad_params(f"{command!r} is no command; they are {', '.join(sorted(COMMANDS))}.")
    if command == "help" or wants_help:
        return Request("help", plain[0].lower() if command == "help" and plain else command)
    argument = None
    if command in RULE_ORDERS or command in ("queryport", "ip2mac"):
        if not plain:
            raise bad_params(f"{command} needs {nlb_show.ARGUMENTS[command]}.")
        argument = plain.pop(0)
    if command == "ip2mac" and plain:
        raise bad_params("ip2mac is a calculation for one cluster IP address, it has no target.")
    target = _target(plain, local)
    if command in LOCAL_ONLY:
        if target.host or target == Target(everywhere=True):
            raise bad_params(f"{command} is for this computer: [CLUSTER | all local].")
        target = Target(target.cluster)
    return Request(command, argument, target, password, port)


def _options(words: Sequence[str]) -> tuple[list[str], str | None, int, bool, bool]:
    """What is no option, then password, port, /LOCAL and /H."""
    plain: list[str] = []
    password, port, local, wants_help = None, REMOTE_CONTROL_PORT, False, False
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name = word.lower()
        if name == "/local":
            local = True
        elif name in ("/h", "/help", "/?", "-h", "--help"):
            wants_help = True
        elif name == "/passw":
            password = rest.pop(0) if rest and not rest[0].startswith("/") else ""
        elif name == "/port":
            port = _port(rest.pop(0) if rest else "", lowest=1)
        elif word.startswith("/"):
            raise bad_params(f"{word} is no option; they are /LOCAL, /PASSW, /PORT and /H.")
        else:
            plain.append(word)
    return plain, password, port, local, wants_help


def _target(words: list[str], local: bool) -> Target:
    if not words:
        return Target()
    if words[0].lower() == "all":
        scope = words[1].lower() if len(words) == 2 else ""
        if scope not in ("local", "global"):
            raise bad_params("all is followed by local or global.")
        return Target(everywhere=scope == "global" and not local)
    if len(words) > 1:
        raise bad_params(f"{words[1]!r} is one word too many: a target is CLUSTER[:HOST].")
    cluster, _, host = split_address(words[0])
    if host.lower() in ("", "all"):
        return Target(_address(cluster), None, not local)
    return Target(_address(cluster), host if host.isdecimal() else _address(host), not local)


def _address(name: str) -> str:
    """A cluster or a host by its IP address or its name."""
    try:
        return str(ip_address(name))
    except ValueError:
        pass
    import socket

    try:
        return str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError as error:
        sentence = f"{name!r} is no IP address, nor a name that leads to one."
        raise bad_params(sentence) from error


def _port(text: str, lowest: int = 0) -> int:
    if not (text.isascii() and text.isdigit()) or not lowest <= int(text) <= 65535:
        raise bad_params(f"{text!r} is no port, expected a number from {lowest} to 65535.")
    return int(text)


def _rule_arguments(request: Request) -> dict[str, Any]:
    """What the agent is asked about a port rule."""
    text = (request.argument or "").lower()
    if request.command == "queryport":
        address, colon, port = split_address(text)
        if not colon:
            address, port = "", address
        return {"cluster_ip_address": address or None, "port": _port(port)}
    address, _, port = split_address(text)
    return {
        "cluster_ip_address": address,
        "port": "all" if port in ("", "all") else _port(port),
    }


# ---------------------------------------------------------------- carrying out


def carry_out(request: Request) -> int:
    """Do it and print what came of it; returns the exit status."""
    if request.command == "help":
        nlb_show.help_text(request.argument)
        return 0
    if request.command == "ip2mac":
        from modes.mac import ip2mac

        nlb_show.ip2mac(ip2mac(_ip_address(request.argument or "")))
        return 0
    arguments = {}
    if request.command in RULE_ORDERS or request.command == "queryport":
        arguments = _rule_arguments(request)
    shown: Callable[[Result], None] = getattr(nlb_show, request.command, nlb_show.order)
    status, cluster = 0, None
    for path, answer in _answers(request, arguments):
        heading = cluster_of(path)
        nlb_show.cluster(heading if heading != cluster else None)
        cluster = heading
        if isinstance(answer, SoftnlbError):
            print(f"Host {path.stem.rpartition(':')[2]}: {answer}")
            status = status or answer.exit_code
        else:
            shown(answer)
    return status


def _answers(
    request: Request, arguments: dict[str, Any]
) -> Iterator[tuple[Path, Result | SoftnlbError]]:
    """What each host answers, by its control socket (for a host elsewhere, what it would be)."""
    target, command = request.target, request.command
    for cluster, hosts in groupby(_clusters(target), key=cluster_of):
        here = list(hosts)
        if target.everywhere and command in REMOTE_VERBS and _remote_port(here[0], request.port):
            try:
                whom = f"[{cluster}]{f':{target.host}' if target.host else ''}"
                for path, result in ask(whom, command, **arguments):
                    refused = SoftnlbError(str(result["error"])) if "error" in result else None
                    yield path, refused or result
            except SoftnlbError as error:
                yield here[0].with_name(f"{cluster}:{target.host or 'all'}.sock"), error
            continue
        if target.host is not None:
            here = find_hosts(f"[{cluster}]:{target.host}")
        for path in here:
            try:
                yield path, call(path, command, **arguments)
            except SoftnlbError as error:
                yield path, error


def _remote_port(path: Path, port: int) -> bool:
    """Whether the hosts of this cluster obey each other's computers; on the port that was given."""
    listening = call(path, "params").get("remote_control_port")
    if listening and port not in (REMOTE_CONTROL_PORT, listening):
        raise bad_params(f"/PORT {port}: remote control of this cluster is on port {listening}.")
    return bool(listening)


def _ip_address(text: str) -> Any:
    try:
        return ip_address(text)
    except ValueError as error:
        raise bad_params(f"{text!r} is no IP address, expected one as in 10.1.0.100.") from error


def _clusters(target: Target) -> list[Path]:
    """The hosts here of the clusters that are meant."""
    hosts = find_hosts("all")
    if target.cluster is not None:
        hosts = [path for path in hosts if cluster_of(path) == target.cluster]
    if not hosts:
        raise SoftnlbError(
            f"{target.cluster} is no cluster of this computer", code=ReturnCode.NOT_FOUND
        )
    return hosts


def main() -> None:
    """Entry point of the commands `nlb` and `wlbs`."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Carry out one command line and return its exit status, the same as softnlb's."""
    try:
        request = parse(words)
        if request.command != "help":
            nlb_show.banner()
        status = carry_out(request)
        sys.stdout.flush()
    except SoftnlbError as error:
        hint = " nlb help shows the commands." if isinstance(error, UsageError) else ""
        print(f"nlb: {error}{hint}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        return 1
    return status
