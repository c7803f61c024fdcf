"""The machine that was measured, and the CPU time that a measurement used."""

import os
import platform
from pathlib import Path
from typing import Any

from labs.experiment import pause

SETTLED_S = 0.02
SETTLED_WITHIN_S = 5.0
IDLE_SHARE = 0.05


def describe() -> dict[str, Any]:
    """What a reader must know to compare figures."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.lower().startswith(("model name", "hardware", "cpu model"))
    ]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / (1 << 30), 1),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def cpu_s() -> float:
    """CPU time so far of every process of this pid namespace, with the interrupts that hit it."""
    total = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                total += int(Path("/proc", entry, "schedstat").read_text().split()[0])
            except FileNotFoundError:
                continue
    return total * 1e-9


def settled_cpu_s() -> float:
    """``cpu_s`` once nobody works any more: queues are empty, the next measurement can begin."""
    before = cpu_s()
    for _ in range(round(SETTLED_WITHIN_S / SETTLED_S)):
        pause(SETTLED_S)
        now = cpu_s()
        if now - before < SETTLED_S * IDLE_SHARE:
            return now
        before = now
    return before
