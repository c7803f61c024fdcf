"""Real components in the nodes of a lab: configured, started, signalled, and gone with the lab."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from labs.handle import Channel, LabHandle, Task
from labs.namespaces import die_with_parent
from labs.process import node_path
from labs.topology import ROUTER_CLIENT_ADDRESS
from softnlb.errors import SoftnlbError

BALANCER = "bystander"
"""The node that takes no part in the cluster plays the balancer where a method needs one."""

END_S = 3.0


def shell(lab: LabHandle, node: str, script: str) -> str:
    """Carry out a script in a node; its standard output.  Raises SoftnlbError when it fails."""
    return lab.output(node, ["sh", "-ec", script])


def start(
    lab: LabHandle, node: str, command: Sequence[str], files: dict[str, str] | None = None
) -> Task:
    """Start a program in a node, after writing its files.  It ends with the task, or the node.

    What it prints goes to /run/PROGRAM.log there.
    """
    name = os.path.basename(command[0])

    def body(channel: Channel) -> int:
        os.environ["PATH"] = node_path(os.environ.get("PATH", ""))
        # keepalived looks up its own name, and no name server answers in here.
        os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
        for path, text in (files or {}).items():
            Path(path).write_text(text)
            os.chmod(path, 0o600)
        with open(f"/run/{name}.log", "ab") as log, open(os.devnull, "rb") as nothing:
            program = subprocess.Popen(
                command, stdin=nothing, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        channel.send({"ready": True})
        while (order := channel.receive()) is not None:
            program.send_signal(order.get("signal", signal.SIGTERM))
            if "signal" not in order:
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(END_S)
        return program.returncode or 0

    task = lab.start(node, body)
    task.expect()
    return task


def missing(programs: Sequence[str]) -> str:
    """Which of these programs this machine lacks, "" when it has all."""
    import shutil

    path = node_path(os.environ.get("PATH", ""))
    return ", ".join(program for program in programs if shutil.which(program, path=path) is None)


def await_answer(lab: LabHandle, node: str, address: str, timeout_s: float = 15.0) -> None:
    """Return when the service answers at ``address`` as seen from a node.  Raises SoftnlbError."""
    script = f"until curl -s -o /dev/null -m 0.5 http://{address}/; do sleep 0.05; done"
    lab.output(node, ["timeout", str(timeout_s), "sh", "-c", script])


# ---------------------------------------------------------------- keepalived

KEEPALIVED = """\
global_defs {{
  vrrp_version 3
  router_id {name}
  notification_email_from lab@localhost
  smtp_server 127.0.0.1
  enable_script_security
  script_user root
}}
vrrp_script service {{
  script "/usr/bin/curl -s -o /dev/null -m 0.8 http://127.0.0.1/"
  interval 1
  timeout 1
  fall 2
  rise 1
}}
vrrp_instance cluster {{
  state BACKUP
  nopreempt
  interface eth0
  virtual_router_id 80
  priority {priority}
  advert_int {advert_s:g}
  virtual_ipaddress {{ {address}/24 }}
  track_script {{ service }}
}}
"""


def keepalived(lab: LabHandle, node: str, address: str, number: int, advert_s: float = 1.0) -> Task:
    """keepalived on a host; host ``number`` 1 has the highest priority, 101."""
    text = KEEPALIVED.format(name=node, priority=102 - number, advert_s=advert_s, address=address)
    command = "keepalived -n -l -P -f /run/keepalived.conf -p /run/keepalived.pid -r /run/vrrp.pid"
    shell(lab, node, "rm -f /run/keepalived.log")
    task = start(lab, node, command.split(), {"/run/keepalived.conf": text})
    taking_part = "until grep -q Entering /run/keepalived.log; do sleep 0.05; done"
    lab.output(node, ["timeout", "40", "sh", "-c", taking_part])
    return task


def master(lab: LabHandle, names: Sequence[str], address: str) -> str | None:
    """The host that has the address, None while it is not exactly one."""
    have = [name for name in names if f" {address}/" in shell(lab, name, "ip -4 addr show eth0")]
    return have[0] if len(have) == 1 else None


def await_master(lab: LabHandle, names: Sequence[str], address: str, timeout_s: float = 15) -> str:
    """The master, once there is one.  Raises SoftnlbError."""
    from labs.experiment import wait_until

    found = wait_until(lambda: master(lab, names, address), timeout_s, "a VRRP master")
    return str(found)


# ---------------------------------------------------------------- dnsmasq

DNS_TTL_S = 60


DNS_HOSTS = "/run/service.hosts"


def write_names(lab: LabHandle, addresses: Sequence[str]) -> None:
    """What the DNS server is to know of the service; it reads that at SIGHUP."""
    from labs.compare.resolve import NAME

    lines = "".join(f"{address} {NAME}\\n" for address in addresses)
    shell(lab, "router", f"printf '{lines}' > {DNS_HOSTS}")


def dnsmasq(lab: LabHandle, addresses: Sequence[str]) -> Task:
    """A DNS server at the router that knows these addresses of the service."""
    write_names(lab, addresses)
    # No daemon: it would change its user, and in a user namespace there is no other.
    command = ["dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--bind-interfaces"]
    command += ["--conf-file=/dev/null"]
    command += [f"--addn-hosts={DNS_HOSTS}", f"--local-ttl={DNS_TTL_S}"]
    task = start(lab, "router", command)

    def listening(_: Channel) -> bool:
        return asyncio.run(_answers(str(ROUTER_CLIENT_ADDRESS)))

    if not lab.run("client1", listening):
        raise SoftnlbError("dnsmasq does not answer")
    return task


async def _answers(server: str) -> bool:
    from labs.compare.resolve import ask

    for _ in range(100):
        try:
            return bool((await ask(server))[0])
        except (OSError, TimeoutError):
            await asyncio.sleep(0.05)
    return False


# ---------------------------------------------------------------- HAProxy

HAPROXY = """\
global
  stats socket /run/haproxy.sock mode 600 level admin
defaults
  mode tcp
  timeout connect 400ms
  timeout client 1m
  timeout server 1m
  timeout check 300ms
  retries 3
  option redispatch 1
  default-server inter 300ms fall 2 rise 1 check on-marked-down shutdown-sessions
frontend www
  bind {address}:80
  default_backend servers
backend servers
  balance roundrobin
  stick-table type ip size 100k expire 10m
  stick on src
{source}{servers}
frontend cookies
  bind {address}:81
  mode http
  default_backend with_cookies
backend with_cookies
  mode http
  balance roundrobin
  cookie SERVER insert indirect nocache
{source}{cookie_servers}
"""

TLS = """\
frontend tls
  bind {address}:443 ssl crt /run/lab.pem
  default_backend servers
"""

_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    " -subj /CN=www.lab -keyout /run/lab.key -out /run/lab.crt 2>/dev/null;"
    " cat /run/lab.crt /run/lab.key > /run/lab.pem"
)


def haproxy(lab: LabHandle, address: str, servers: dict[str, str], transparent: bool) -> Task:
    """HAProxy at the balancer.  ``servers``: address by name."""
    lines = [f"  server {name} {server}:80" for name, server in servers.items()]
    text = HAPROXY.format(
        address=address,
        source="  source 0.0.0.0 usesrc clientip\n" if transparent else "",
        servers="\n".join(lines),
        cookie_servers="\n".join(f"{line} cookie {line.split()[1]}" for line in lines),
    )
    if not missing(["openssl"]):
        shell(lab, BALANCER, _CERTIFICATE)
        text += TLS.format(address=address)
    command = ["haproxy", "-db", "-f", "/run/haproxy.cfg"]
    return start(lab, BALANCER, command, {"/run/haproxy.cfg": text})


def haproxy_order(lab: LabHandle, order: str) -> str:
    """One order to HAProxy's runtime socket."""

    def body(_: Channel) -> str:
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect("/run/haproxy.sock")
            connection.sendall(order.encode() + b"\n")
            return connection.makefile().read()

    return str(lab.run(BALANCER, body))


# ---------------------------------------------------------------- direct server return

CHECK_S, FALL = 0.5, 4


def rewriting_rules(address: str, own_mac: str, macs: Sequence[str]) -> str:
    """Frames for the service out again where they came in, to the MAC address of a server."""
    targets = ", ".join(f"{n} : {macs[n % len(macs)]}" for n in range(60))
    return f"""\
table netdev dsr
delete table netdev dsr
table netdev dsr {{
  chain ingress {{
    type filter hook ingress device eth0 priority 0; policy accept;
    ip daddr {address} tcp dport 80 ether saddr set {own_mac} \
ether daddr set jhash ip saddr mod 60 seed 1 map {{ {targets} }} fwd to eth0
  }}
}}
"""


def checker(lab: LabHandle, address: str, servers: dict[str, str], macs: dict[str, str]) -> Task:
    """The script that nft does not have: tries every server twice a second, and takes a dead one
    out of the map.  A message {"out": name} takes one out for good."""
    own_mac = macs[BALANCER]

    def body(channel: Channel) -> None:
        import select
        import socket

        from labs.node import run_tool

        fails = dict.fromkeys(servers, 0)
        out: set[str] = set()
        installed: list[str] = []
        while True:
            for name, server in servers.items():
                try:
                    socket.create_connection((server, 80), CHECK_S).close()
                    fails[name] = 0
                except OSError:
                    fails[name] += 1
            alive = [name for name in servers if fails[name] < FALL and name not in out]
            if alive != installed and alive:
                rules = rewriting_rules(address, own_mac, [macs[name] for name in alive])
                run_tool(["nft", "-f", "-"], rules)
                if not installed:
                    channel.send({"ready": True})
                installed = alive
            if select.select([channel], [], [], CHECK_S)[0]:
                order = channel.receive()
                if order is None:
                    return
                out.add(order["out"])

    task = lab.start(BALANCER, body)
    task.expect()
    return task


def mac_of(lab: LabHandle, node: str) -> str:
    """The MAC address of a node's eth0."""
    return shell(lab, node, "cat /proc/net/dev >/dev/null; ip -br link show eth0").split()[2]
