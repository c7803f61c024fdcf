"""The record of what an agent changed on this machine, written before each change is made.

It survives a crash of the agent, so that its next start or `softnlb cleanup` can undo the changes;
it does not outlive a reboot, which undoes them all.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softnlb.errors import SoftnlbError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Record:
    """Former values where there were some; MAC addresses as text with colons."""

    interface: str
    former_mac: str
    interface_mac: str | None
    """What the interface was given; None when it kept its own."""
    secondary_mac: str | None
    cluster_ip_addresses: tuple[str, ...]
    nft_tables: tuple[tuple[str, str], ...]
    sysctls: tuple[tuple[str, str, str], ...]
    """(path below /proc/sys, former value, value that was set)."""

    def write(self, path: Path) -> None:
        """Replace the file; on the disk before this returns."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"boot_id": _BOOT_ID.read_text().strip(), **asdict(self)}
        fresh = path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read(path: Path) -> Record | None:
    """The record, or None when there is none of this boot.

    Raises SoftnlbError when the file was damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content.pop("boot_id") != _BOOT_ID.read_text().strip():
            return None
        return Record(
            interface=content["interface"],
            former_mac=content["former_mac"],
            interface_mac=content["interface_mac"],
            secondary_mac=content["secondary_mac"],
            cluster_ip_addresses=tuple(content["cluster_ip_addresses"]),
            nft_tables=tuple((family, name) for family, name in content["nft_tables"]),
            sysctls=tuple((name, former, value) for name, former, value in content["sysctls"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SoftnlbError(
            f"{path} is damaged ({error}): restore the network by hand, then delete it"
        ) from error
