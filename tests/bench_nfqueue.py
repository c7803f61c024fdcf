"""Figures of the nfqueue plane on this machine: `python -m tests.bench_nfqueue`, as root.

Cost of a verdict, and how many SYNs per second are decided without loss.
"""

import argparse
import os
import threading
import time

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from convergence.rules import ALL_BUCKETS
from tests.plane import STRANGER, VIP, Bench, mac_of


def verdict_cost(bench: Bench, rate: int, seconds: float) -> tuple[float, int, int]:
    """(CPU us of the verdict process per SYN, SYNs sent, SYNs decided) at a rate per second."""
    head = Ether(src=mac_of(bench.client), dst=mac_of(bench.host))
    syn = bytes(head / IP(src=STRANGER, dst=VIP) / TCP(sport=1, dport=80, flags="S"))
    frames = []
    for number in range(4000):
        # Ports spread over all buckets; the sequence number makes up for them in the checksum.
        port = (1 + number * 13) & 0xFFFF
        sequence = 0xFFFF - (port - 1)
        frames.append(
            syn[:34] + port.to_bytes(2, "big") + syn[36:40] + sequence.to_bytes(2, "big") + syn[42:]
        )
    send = bench.wire.send_bytes
    before, cpu_before = decided(bench), cpu_s(bench.plane.process_id)
    sent, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        due = min(int(elapsed * rate), sent + 64)
        while sent < due:
            send(frames[sent % len(frames)])
            sent += 1
    pause, settled = threading.Event(), -1
    while settled != (settled := decided(bench)):
        pause.wait(0.2)
    packets = settled - before
    return (cpu_s(bench.plane.process_id) - cpu_before) / max(1, packets) * 1e6, sent, packets


def decided(bench: Bench) -> int:
    counters = bench.plane.slot_counters(0)
    return sum(counters.values())


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def syn_rates(seconds: float) -> None:
    """Verdicts at rising rates, until the first SYN is lost."""
    for name, current in (("of another host", 0), ("kept", ALL_BUCKETS)):
        bench = Bench()
        bench.listen()
        bench.listener.listen(4096)
        bench.install(current)
        try:
            for rate in (5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 120_000):
                cost_us, sent, packets = verdict_cost(bench, rate, seconds)
                print(
                    f"SYNs {name}: {sent / seconds:,.0f}/s sent, {packets / sent:.1%} decided, "
                    f"{cost_us:.1f} us of the verdict process each"
                )
        finally:
            bench.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=2.0)
    syn_rates(arguments.parse_args().seconds)


if __name__ == "__main__":
    main()
