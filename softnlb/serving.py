"""All that stands on a host while it is started: link, data plane, heartbeats, cluster IPs.

The order is the safety: the cluster IP addresses come last and go first, so that no packet ever
reaches a stack whose filter is missing.
"""

import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

from convergence.events import MapsChanged
from convergence.machine import HostConfig
from modes.mac import w_x_y_z
from modes.plan import LinkPlan
from modes.planner import plan_link
from softnlb.config import ClusterConfig
from softnlb.dataplane import DataPlane
from softnlb.errors import SoftnlbError
from softnlb.filter import FilterRule, FilterTable
from softnlb.heartbeat_socket import HeartbeatSocket
from softnlb.kernel import one_sentence
from softnlb.link import RECORD, Link
from softnlb.neighbour_socket import NeighbourSocket


class Serving:
    """One started period of a host."""

    def __init__(self, config: ClusterConfig, plane: DataPlane, directory: Path) -> None:
        self.plan = link_plan(config, plane.sets_packet_type)
        self._config = config
        self.plane = plane
        self._link = Link(self.plan, directory / RECORD)
        self.table = table_of(config, None)
        self._installed: tuple[MapsChanged, tuple[str, ...]] | None = None
        self.heartbeats: HeartbeatSocket | None = None
        self.neighbours: NeighbourSocket | None = None
        self.exceptions: dict[bytes, int] = {}
        """Clients that other hosts keep: slot and key, and the host's id."""

    def start(self) -> None:
        """Build everything, the cluster IP addresses last; on failure nothing is left behind."""
        try:
            self._link.apply()
            self.plane.attach(self._config.interface)
            self.plane.install(self.table)
            with one_sentence():
                self.heartbeats = HeartbeatSocket(
                    self._config.interface,
                    w_x_y_z(self._config.cluster_ip_addresses[0].ip),
                    self.plan.heartbeat_destination,
                )
                self.neighbours = self._neighbour_socket()
            self._link.add_cluster_ip_addresses()
            self._link.announce()
        except BaseException:
            self.stop()
            raise

    def _neighbour_socket(self) -> NeighbourSocket | None:
        addresses = [address.ip for address in self._config.cluster_ip_addresses]
        six = [address for address in addresses if isinstance(address, IPv6Address)]
        if not six or not self.plan.announces:
            return None
        return NeighbourSocket(self._config.interface, six, self.plan.cluster_mac)

    def stop(self) -> None:
        """Undo everything, the cluster IP addresses first."""
        self._link.withdraw_cluster_ip_addresses()
        if self.neighbours is not None:
            self.neighbours.close()
            self.neighbours = None
        if self.heartbeats is not None:
            self.heartbeats.close()
            self.heartbeats = None
        self.plane.detach()
        self._link.restore()

    def install(self, maps: MapsChanged, rule_states: tuple[str, ...]) -> None:
        """Obey the machine's maps from now on; a disabled rule drops its connections too."""
        self._installed = maps, rule_states
        self.table = table_of(self._config, maps, rule_states)
        self.plane.install(self.table)

    def leave_to_others(self, added: Mapping[bytes, int], removed: Iterable[bytes]) -> None:
        """The clients that other hosts keep, with their host ids."""
        taken_back = [key for key in removed if self.exceptions.pop(key, None) is not None]
        self.exceptions.update(added)
        self.plane.leave_to_others(added, taken_back)

    def reconfigure(self, config: ClusterConfig) -> None:
        """Other rules, ICMP filter, seed or remote control from the next ``install`` on."""
        self._config = config

    def install_again(self) -> None:
        """The same maps, when what else the table says has changed."""
        if self._installed is not None:
            self.install(*self._installed)

    def renew(self, valid_until_ms: int) -> None:
        """Extend the lease of the installed maps."""
        if self._installed is not None:
            maps, rule_states = self._installed
            self._installed = replace(maps, valid_until_ms=valid_until_ms), rule_states
        self.plane.renew(valid_until_ms)

    def announce(self) -> None:
        """Teach all neighbours the cluster MAC, after a take-over or a contested period.

        A cable that is out now loses the frame, as it would lose any other.
        """
        with suppress(SoftnlbError):
            self._link.announce()

    def monitors(self) -> tuple[socket.socket, ...]:
        """Readable when anybody changes the network of this host; then ask ``disturbed``."""
        return self._link.monitors()

    def disturbed(self, monitor: socket.socket) -> bool:
        """Read what a monitor heard: could it concern us?"""
        return self._link.disturbed(monitor)

    def plane_fileno(self) -> int | None:
        """A descriptor that becomes readable when the data plane's own process ends."""
        return self.plane.fileno()

    def intact(self) -> bool:
        """False when somebody removed a piece of the link or of the plane."""
        return self._link.intact() and self.plane.intact()

    def repair(self) -> None:
        """Withdraw the cluster IP addresses at once, then put every piece back."""
        self._link.withdraw_cluster_ip_addresses()
        whole = self.plane.intact()
        if not whole:
            self.plane.detach()
        self._link.repair()
        if not whole:
            self.plane.attach(self._config.interface)
            self.plane.leave_to_others(self.exceptions, ())
            self.plane.install(self.table)
        self._link.add_cluster_ip_addresses()
        self._link.announce()

    @property
    def unrecorded(self) -> str | None:
        """Why what was changed on this machine is not recorded on the disk; None when it is."""
        return self._link.unrecorded

    def counters(self) -> dict[str, int]:
        """Packets per reason."""
        return self.plane.counters()

    def slot_counters(self, slot: int) -> dict[str, int]:
        """Packets per reason that met the rule of this slot."""
        return self.plane.slot_counters(slot)


def link_plan(config: ClusterConfig, plane_sets_packet_type: bool = False) -> LinkPlan:
    """What the mode wants of the cluster interface."""
    return plan_link(
        config.mode,
        config.interface,
        config.host_id,
        config.cluster_ip_addresses,
        plane_sets_packet_type,
        replace(config.link_choices, dedicated_ipv6_address=config.dedicated_ipv6_address),
    )


def table_of(
    config: ClusterConfig, maps: MapsChanged | None, rule_states: tuple[str, ...] = ()
) -> FilterTable:
    """The filter table for these maps; None = that of a stopped host, which keeps nothing."""
    slots = config.port_rules_with_default
    states = rule_states or ("enabled",) * len(slots)
    none = (0,) * len(slots)
    current = maps.current if maps else none
    orphan = maps.orphan if maps else none
    claimed = (maps.claimed if maps else ()) or none
    addresses = tuple(interface.ip for interface in config.cluster_ip_addresses)
    return FilterTable(
        interface=config.interface,
        cluster_mac=link_plan(config).cluster_mac,
        cluster_ip_addresses=addresses,
        local_ip_addresses=(*addresses, *config.dedicated_ip_addresses),
        hash_seed=config.hash_seed,
        rules=tuple(
            FilterRule(rule, current[slot], orphan[slot], states[slot] != "disabled", claimed[slot])
            for slot, rule in enumerate(slots)
        ),
        valid_until_ms=maps.valid_until_ms if maps else 0,
        started=maps is not None,
        draining=maps.draining if maps else False,
        filter_icmp=config.filter_icmp,
        remote_control_port=config.remote_control_port,
    )


def host_config(config: ClusterConfig, kept_digests: tuple[bytes, ...] = ()) -> HostConfig:
    """What the convergence machine needs of a configuration, and of those kept beside it."""
    return HostConfig(
        host_id=config.host_id,
        cluster_ip_address=w_x_y_z(config.cluster_ip_addresses[0].ip),
        dedicated_ip_address=w_x_y_z(config.dedicated_ip_address.ip),
        period_ms=config.alive_message_period_ms,
        tolerance=config.alive_message_tolerance,
        rules=config.port_rules,
        load_weights=config.load_weights,
        handling_priorities=config.handling_priorities,
        config_digest=config.digest,
        keyring=config.keyring,
        hash_seed=config.hash_seed,
        kept_digests=kept_digests,
    )
