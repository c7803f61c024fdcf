"""How many packets a second `softnlb plan` reads on one core:

    .venv/bin/python -m tests.bench_plan [PACKETS [CLIENTS]]

Writes a capture into a temporary file and plans with it, once for each shape of traffic.
"""

import random
import resource
import struct
import subprocess
import sys
import tempfile
from ipaddress import IPv4Address
from pathlib import Path

CONFIG = """
[cluster]
ip_address = "10.1.0.100/24"
[host]
id = 1
interface = "eth0"
dedicated_ip_address = "10.1.0.1/24"
[[port_rule]]
ports = "80"
affinity = "{affinity}"
[[port_rule]]
ports = "443"
"""
VIP = IPv4Address("10.1.0.100").packed
ETHERNET = bytes.fromhex("02bf0a0100640200000000010800")


def record(client: int, port: int) -> bytes:
    """A TCP segment of 100 bytes to port 80, of which 64 were captured."""
    ip = (
        struct.pack("!BBHHHBBH", 0x45, 0, 86, 0, 0x4000, 63, 6, 0) + client.to_bytes(4, "big") + VIP
    )
    tcp = struct.pack("!HHIIBBHHH", port, 80, 1, 1, 0x50, 0x10, 512, 0, 0)
    frame = (ETHERNET + ip + tcp + bytes(10))[:64]
    return struct.pack("<IIII", 1_700_000_000, 0, len(frame), 100) + frame


def write(path: Path, packets: int, flows: int) -> None:
    """A capture with so many packets of so many flows, in random order."""
    draw = random.Random(1)
    records = [record(draw.randrange(1 << 32), draw.randrange(1024, 65536)) for _ in range(flows)]
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for at in range(0, packets, 10_000):
            count = min(10_000, packets - at)
            chosen = (
                records[at : at + count] if flows == packets else draw.choices(records, k=count)
            )
            file.write(b"".join(chosen))


def cpu_s() -> float:
    """CPU time of the commands so far, in seconds: another load on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a line per shape."""
    packets = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    clients = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    softnlb = Path(sys.executable).with_name("softnlb")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for affinity, flows in (("single", clients), ("none", clients), ("single", packets)):
            config, capture = directory / "cluster.toml", directory / "clients.pcap"
            config.write_text(CONFIG.format(affinity=affinity))
            write(capture, packets, flows)
            before_s = cpu_s()
            command = [softnlb, "plan", "--config", config, "--clients", capture, "--fail", "2"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            took_s = cpu_s() - before_s
            print(
                f"affinity {affinity:<6} {flows:>9} flows: {packets / took_s:>9,.0f} packets/s"
                f" ({packets} in {took_s:.1f} s of one core, start and result included)"
            )


if __name__ == "__main__":
    main()
