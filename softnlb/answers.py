"""What a running host answers to the NLB verbs on its control socket."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convergence.events import Command, CommandError, HostState, Status
from convergence.rules import BUCKETS, IPAddress
from modes.mac import format_mac
from softnlb import affinity
from softnlb.errors import ReturnCode, SoftnlbError
from softnlb.explain import explain_flow, rule_fields, rule_text
from softnlb.filter import KEPT
from softnlb.rule_choice import chosen, covering
from softnlb.sockdiag import count_connections

if TYPE_CHECKING:
    from softnlb.agent import Agent

RULE_COMMANDS = {
    "enable": Command.ENABLE_RULE,
    "disable": Command.DISABLE_RULE,
    "drain": Command.DRAIN_RULE,
}

TIMEOUT_MAX_S = 10_000_000


class Answers:
    """One method per verb; each returns the JSON-able result or raises SoftnlbError."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def answer(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer one request; anything unknown or refused is a SoftnlbError."""
        method = getattr(self, f"do_{verb}", None)
        if method is None and verb not in RULE_COMMANDS:
            raise SoftnlbError(f"there is no verb {verb!r}", code=ReturnCode.BAD_PARAMS)
        if self._agent.suspended and verb not in ("resume", "query", "maps", "params", "display"):
            raise SoftnlbError(
                "the host is suspended and listens to resume and query only",
                code=ReturnCode.SUSPENDED,
            )
        try:
            if method is None:
                return self._rule(verb, arguments)
            result: dict[str, Any] = method(arguments)
        except (KeyError, TypeError, ValueError) as error:
            raise SoftnlbError(
                f"{verb}: bad or missing argument: {error}", code=ReturnCode.BAD_PARAMS
            ) from error
        except CommandError as error:
            raise SoftnlbError(f"{verb}: {error}", code=self._why_not()) from error
        return result

    def _why_not(self) -> ReturnCode:
        """What NLB would call the state that does not allow an order."""
        state = self._state(self._status()).upper()
        return ReturnCode.BAD_PARAMS if state == "CONVERGED" else ReturnCode[state]

    # ------------------------------------------------------------ questions

    def do_query(self, _: dict[str, Any]) -> dict[str, Any]:
        """Members, state, default host, convergence."""
        status = self._status()
        last_ms = status.last_converged_ms
        return {
            "cluster_ip_address": str(self._agent.config.cluster_ip_addresses[0].ip),
            "host_id": status.host_id,
            "state": self._state(status),
            "default_host": status.default_host_id,
            "members": [member.host_id for member in status.members],
            "convergence_count": status.convergence_count,
            "last_converged_s_ago": (
                None if last_ms is None else round((self._agent.now_ms() - last_ms) / 1000, 3)
            ),
        }

    def do_maps(self, _: dict[str, Any]) -> dict[str, Any]:
        """Who owns which bucket of which rule, as this host knows it."""
        status = self._status()
        slots = []
        for slot, rule in enumerate(self._agent.config.port_rules_with_default):
            own = self._own_map(status, slot)
            slots.append(
                {"rule": rule_text(rule), "current": own, "owners": self._owners(status, slot)}
            )
        return {
            "host_id": status.host_id,
            "state": self._state(status),
            "buckets": self._own_map(status, 0).bit_count(),
            "slots": slots,
            "valid_for_ms": status.valid_until_ms - self._agent.now_ms(),
        }

    def do_params(self, _: dict[str, Any]) -> dict[str, Any]:
        """The parameters in force, NLB's names where NLB has one."""
        agent = self._agent
        config = agent.config
        return {
            "cluster_ip_address": str(config.cluster_ip_addresses[0].ip),
            "cluster_ip_addresses": [str(address) for address in config.cluster_ip_addresses],
            "mode": str(config.mode),
            "cluster_mac": format_mac(agent.table().cluster_mac),
            "cluster_mac_by_hand": config.link_choices.cluster_mac is not None,
            "mask_source_mac": config.link_choices.mask_source_mac,
            "arp_for_vip": config.link_choices.arp_for_vip,
            "host_id": config.host_id,
            "dedicated_ip_address": str(config.dedicated_ip_address),
            "additional_dedicated_ip_addresses": [
                str(address) for address in config.additional_dedicated_ip_addresses
            ],
            "interface": config.interface,
            "alive_message_period_ms": config.alive_message_period_ms,
            "alive_message_tolerance": config.alive_message_tolerance,
            "hash_seed": config.hash_seed,
            "filter_icmp": config.filter_icmp,
            "initial_state": config.initial_state,
            "retain_suspended": config.retain_suspended,
            **self._data_plane(),
            "authentication": str(config.keyring.authentication),
            "remote_control_port": config.remote_control_port,
            "key_ids": [key.id for key in config.keyring.keys],
            "configuration_digest": config.digest.hex(),
            "configuration_file": str(config.path),
        }

    def _data_plane(self) -> dict[str, Any]:
        choice = self._agent.choice
        if choice is None or self._agent.serving is None:
            return {"data_plane": self._agent.data_plane, "attach": self._agent.attach}
        return {
            "data_plane": choice.plane.name,
            "data_plane_reason": choice.reason,
            "attach": choice.plane.attachment,
        }

    def do_display(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Everything: parameters, state, history, events, counters."""
        status = self._status()
        now_ms = self._agent.now_ms()
        return {
            "params": self.do_params(arguments),
            "query": self.do_query(arguments),
            "members": [
                {
                    "host_id": member.host_id,
                    "dedicated_ip_address": str(member.dedicated_ip_address),
                    "phase": member.phase,
                    "draining": member.draining,
                    "key_id": member.key_id,
                }
                for member in status.members
            ],
            "rules": [
                self._rule_state(status, slot)
                for slot in range(len(self._agent.config.port_rules_with_default))
            ],
            "history": [
                {
                    "s_ago": round((now_ms - line.at_ms) / 1000, 3),
                    "phase": line.phase,
                    "reason": line.reason,
                    "members": list(line.members),
                }
                for line in status.history
            ],
            "events": [
                {
                    "time": at,
                    "name": e.name,
                    "severity": str(e.severity),
                    "text": e.text,
                    **e.fields,
                }
                for at, e in self._agent.history.events
            ],
            "counters": self._counters(),
            "heartbeats_ignored": self._agent.machine.counters,
        }

    def do_queryport(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """State, load and counters of the rule that covers a port."""
        config = self._agent.config
        slot = covering(config.port_rules, self._cluster_ip_addresses(), arguments)
        serving = self._agent.serving
        counters = serving.slot_counters(slot) if serving is not None else {}
        return {
            **self._rule_state(self._status(), slot),
            "accepted": sum(counters.get(reason, 0) for reason in KEPT),
            "dropped": sum(counters.values()) - sum(counters.get(reason, 0) for reason in KEPT),
            "counters": counters,
        }

    def do_connections(self, _: dict[str, Any]) -> dict[str, Any]:
        """The connections that a drain waits for."""
        count, longest_idle_s = count_connections(self._cluster_ip_addresses())
        return {
            "connections": count,
            "longest_idle_s": longest_idle_s,
            "state": self._state(self._status()),
        }

    def do_affinity(self, _: dict[str, Any]) -> dict[str, Any]:
        """Extended affinity: the clients remembered here, and those left to other hosts."""
        agent = self._agent
        return affinity.answers(agent.serving, agent.machine, agent.now_ms())

    def do_explain(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Which rule, bucket and host a flow meets, and what this host would do with it."""
        status = self._status()

        def owner_of(slot: int, bucket: int) -> int | None:
            return self._owners(status, slot).get(str(bucket))

        # The plane is told of a longer lease, the table is not.
        table = replace(self._agent.table(), valid_until_ms=status.valid_until_ms)
        asked = (arguments["client"], arguments["server"], arguments.get("protocol", "tcp"))
        if not all(isinstance(word, str) for word in asked):
            sentence = "explain: client, server and protocol are text"
            raise SoftnlbError(sentence, code=ReturnCode.BAD_PARAMS)
        clients = affinity.Present(self._agent.serving)
        return explain_flow(table, *asked, owner_of, self._agent.now_ms, clients)

    # ------------------------------------------------------------ orders

    def do_start(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Join the cluster."""
        state = self._state(self._status())
        if state in (HostState.CONVERGING, HostState.CONVERGED):
            return self._done("the host is started already")
        self._agent.start(force=bool(arguments.get("force")))
        self._agent.remember("started")
        return self._done("the host joins the cluster")

    def do_stop(self, _: dict[str, Any]) -> dict[str, Any]:
        """Leave the cluster at once, connections included."""
        self._agent.remember("stopped")
        if self._agent.serving is None:
            return self._done("the host is stopped already")
        self._agent.stop()
        return self._done("the host leaves the cluster")

    def do_drainstop(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Accept nothing new; leave after the last connection."""
        timeout_s = _seconds(arguments.get("timeout_s"))
        self._agent.remember("stopped")
        if self._agent.serving is None:
            return self._done("the host is stopped already")
        self._agent.drainstop(timeout_s)
        return self._done("the host takes no new connections and stops after its last one")

    def do_suspend(self, _: dict[str, Any]) -> dict[str, Any]:
        """Stop, and ignore everything but resume and query."""
        if self._agent.serving is not None:
            self._agent.stop()
        self._agent.suspended = True
        self._agent.remember("suspended")
        return self._done("the host is suspended")

    def do_resume(self, _: dict[str, Any]) -> dict[str, Any]:
        """Listen to commands again; does not start the host."""
        if not self._agent.suspended:
            return self._done("the host is not suspended")
        self._agent.suspended = False
        self._agent.remember("stopped")
        return self._done("the host listens to commands again and is stopped")

    def do_reload(self, _: dict[str, Any]) -> dict[str, Any]:
        """Read the configuration file again."""
        return self._done(self._agent.reload())

    def do_change(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Begin to change the whole cluster at once; ``change_state`` tells how it goes."""
        change = arguments["change"]
        if not isinstance(change, dict):
            raise SoftnlbError("change: an object is expected", code=ReturnCode.BAD_PARAMS)
        self._agent.changes.propose(change, float(arguments.get("timeout_s", 10.0)))
        return self._agent.changes.status()

    def do_change_state(self, _: dict[str, Any]) -> dict[str, Any]:
        """How the change goes that was begun here last."""
        return self._agent.changes.status()

    def _rule(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        config = self._agent.config
        slots = chosen(config.port_rules, self._cluster_ip_addresses(), arguments)
        if self._agent.serving is None:
            raise SoftnlbError(
                "the host is stopped: its rules take no command", code=ReturnCode.STOPPED
            )
        self._agent.health.operator_decided(slots)
        self._agent.rule_command(RULE_COMMANDS[verb], slots)
        return self._done(f"{verb}: {len(slots)} port rule{'s' if len(slots) != 1 else ''}")

    # ------------------------------------------------------------ what they share

    def _status(self) -> Status:
        return self._agent.machine.status(self._agent.now_ms())

    def _state(self, status: Status) -> str:
        return str(HostState.SUSPENDED if self._agent.suspended else status.state)

    def _done(self, message: str) -> dict[str, Any]:
        return {"state": self._state(self._status()), "message": message}

    def _counters(self) -> dict[str, int]:
        serving = self._agent.serving
        return serving.counters() if serving is not None else {}

    def _own_map(self, status: Status, slot: int) -> int:
        for member in status.members:
            if member.host_id == status.host_id:
                return member.current[slot]
        return 0

    def _owners(self, status: Status, slot: int) -> dict[str, int]:
        owners = {}
        for member in status.members:
            for bucket in range(BUCKETS):
                if member.current[slot] >> bucket & 1:
                    owners[str(bucket)] = member.host_id
        return owners

    def _rule_state(self, status: Status, slot: int) -> dict[str, Any]:
        config = self._agent.config
        rules = config.port_rules_with_default
        user_rule = slot < len(config.port_rules)
        return {
            "rule": rule_text(rules[slot]),
            **(rule_fields(rules[slot]) if user_rule else {}),
            "state": status.rule_states[slot],
            "load_weight": config.load_weights[slot] if user_rule else None,
            "handling_priority": config.handling_priorities[slot] if user_rule else None,
            "buckets": self._own_map(status, slot).bit_count(),
            "service": self._agent.health.of(slot),
        }

    def _cluster_ip_addresses(self) -> tuple[IPAddress, ...]:
        return tuple(address.ip for address in self._agent.config.cluster_ip_addresses)


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= TIMEOUT_MAX_S:
        sentence = f"a time-out is a number of seconds from 0 to {TIMEOUT_MAX_S}"
        raise SoftnlbError(sentence, code=ReturnCode.BAD_PARAMS)
    return float(value)
