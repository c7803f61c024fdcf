"""The shape of a lab file: its tables, their keys, what each accepts.

[cluster] and [[port_rule]] are those of a host's configuration file, and so are the keys of
[[host]] that the lab does not need for itself: what hosts learn, lab files know.
"""

import re
from ipaddress import ip_interface, ip_network
from typing import Any

from pydantic_core import CoreSchema, core_schema

from softnlb import table
from softnlb.config_schema import CLUSTER, HOST, PORT_RULE, WITH_PREFIX
from softnlb.table import (
    ANYTHING,
    TEXT,
    TRUTH,
    Key,
    Table,
    made,
    maybe,
    number,
    one_of,
    several,
)

NODE_NAME = "a name of at most 15 letters, digits and -, beginning with a letter"


def _node_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,14}", text):
        raise ValueError("not a name")
    return text


def _interface_address(text: str) -> str:
    interface = ip_interface(text)
    network = interface.network
    ends = (network.network_address, network.broadcast_address)
    if "/" not in text or network.num_addresses < 4 or interface.ip in ends:
        raise ValueError("not the address of a node")
    return text


def _network(text: str) -> str:
    return str(ip_network(text))


def _lab_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", text):
        raise ValueError("not a name")
    return text


NAME = made(_node_name)
ADDRESS = made(_interface_address)

NAMED = Key(NAME, NODE_NAME)
AT = Key(ADDRESS, WITH_PREFIX)
ALSO_AT = Key(
    several(ADDRESS),
    "a list of addresses with prefix length, those of the other IP version",
    [],
)
ON_SWITCH = Key(maybe(NAME), "the name of a switch (default: the first)", None)

LAB = Table(
    "[lab]: the lab as a whole.",
    {
        "name": Key(made(_lab_name), "letters, digits, - and _, 40 at most", "lab"),
        "hosts": Key(maybe(number(1, 32)), "a whole number from 1 to 32, or [[host]] tables", None),
        "data_plane": HOST.keys["data_plane"],
        "attach": HOST.keys["attach"],
    },
)

SWITCH = Table(
    "[[switch]]: a bridge.",
    {
        "name": NAMED,
        "personality": Key(
            one_of("dumb", "linux", "mac"),
            '"dumb" (floods multicasts), "linux" (snoops by IP group) or '
            '"mac" (snoops by MAC address, as most hardware does)',
            "dumb",
        ),
        "query_interval_s": Key(
            maybe(number(1, 125)),
            "a whole number from 1 to 125 (default: 125; memberships last four times it)",
            None,
        ),
    },
    at_most=None,
)

TRUNK = Table(
    "[[trunk]]: a cable between two switches.",
    {"between": Key(several(NAME, 2, 2), 'two switches, as in ["switch1", "switch2"]')},
    at_most=None,
)

ROUTER = Table(
    "[[router]]: on a switch with one foot, clients behind it on the others.",
    {
        "name": NAMED,
        "switch": ON_SWITCH,
        "address": AT,
        "additional_addresses": ALSO_AT,
        "arp": Key(
            one_of("any", "strict"),
            '"any" or "strict" (refuses a multicast MAC address for a unicast IP address)',
            "any",
        ),
        "nat": Key(TRUTH, "true (clients behind it share its address) or false", False),
    },
    at_most=None,
)

CLIENT = Table(
    "[[client]]: on a switch, or behind a router.",
    {
        "name": NAMED,
        "router": Key(maybe(NAME), "the name of a router", None),
        "switch": ON_SWITCH,
        "address": AT,
        "additional_addresses": ALSO_AT,
        "pool": Key(
            maybe(made(_network)),
            "a network of addresses that all belong to this client, as in 10.2.64.0/18",
            None,
        ),
    },
    at_most=None,
)

BYSTANDER = Table(
    "[[bystander]]: a machine that takes no part and only suffers.",
    {"name": NAMED, "switch": ON_SWITCH, "address": AT, "additional_addresses": ALSO_AT},
    at_most=None,
)

SERVICE = Table(
    "[[service]]: what the hosts serve.",
    {
        "kind": Key(
            one_of("http", "nginx"), '"http" (built in) or "nginx" (where it is installed)', "http"
        ),
        "port": Key(number(1, 65535), "a port from 1 to 65535", 80),
        "hosts": Key(maybe(several(NAME)), "a list of host names (default: all)", None),
    },
    at_most=None,
)

_OF_THE_LAB = ("id", "interface", "dedicated_ip_address")

LAB_HOST = Table(
    "[[host]]: a host.  The lab's own keys, then those of a host's configuration file.",
    {
        "id": HOST.keys["id"],
        "name": Key(maybe(NAME), f"{NODE_NAME} (default: host and its id)", None),
        "switch": ON_SWITCH,
        "address": AT,
        "load_weights": Key(
            maybe(several(number())), "a list of 0 to 100, one for each port rule", None
        ),
        "handling_priorities": Key(
            maybe(several(number())), "a list of 1 to 32, one for each port rule", None
        ),
        **{name: key for name, key in HOST.keys.items() if name not in _OF_THE_LAB},
    },
    at_most=None,
)


def _texts(*names: str, **more: core_schema.TypedDictField) -> CoreSchema:
    """A table of these texts, all of which must be there, and of ``more``."""
    texts = {name: core_schema.typed_dict_field(TEXT) for name in names}
    return core_schema.typed_dict_schema({**texts, **more}, extra_behavior="forbid")


_LESSON_TEXTS = Key(_texts("title", "story"), "a table with title and story")

COURSE = Table("[course]: makes a lab file a lesson.", {"en": _LESSON_TEXTS, "de": _LESSON_TEXTS})

_LIST = core_schema.typed_dict_field(several(TEXT))
_STEP_TEXTS = Key(
    _texts(
        "predict",
        "observe",
        "explain",
        "wrong",
        choices=_LIST,
        hints=_LIST,
        todo=core_schema.typed_dict_field(TEXT, required=False),
        notes=core_schema.typed_dict_field(several(TEXT), required=False),
    ),
    "a table with predict, choices, observe, explain, wrong, todo, hints, notes",
)
"""What a step says: {vip}, {faulty} and the like stand for the student's own.  ``notes``: what
stands beside each command of ``run``, "" for nothing."""

STEP = Table(
    "[[step]]: predict, run, observe, explain, check.",
    {
        "id": Key(TEXT, "a name that no other step has"),
        "check": Key(TEXT, "the name of a check"),
        "facts": Key(core_schema.dict_schema(TEXT, ANYTHING), "parameters of the check", {}),
        "run": Key(several(TEXT), "a list of commands"),
        "broken": Key(several(TEXT), "a list of faults", []),
        "guess": Key(number(0), "the number of the choice that comes true, from 0"),
        "en": _STEP_TEXTS,
        "de": _STEP_TEXTS,
    },
    at_most=None,
)

MANY = {
    "switch": SWITCH,
    "trunk": TRUNK,
    "router": ROUTER,
    "client": CLIENT,
    "bystander": BYSTANDER,
    "host": LAB_HOST,
    "service": SERVICE,
}
"""The tables that may stand several times, but for the port rules."""

TABLES = {
    "lab": LAB,
    "cluster": CLUSTER,
    "port_rule": PORT_RULE,
    **MANY,
    "course": COURSE,
    "step": STEP,
}


def json_schema() -> dict[str, Any]:
    """JSON schema of a lab file, for editors."""
    return table.json_schema("softnlb lab", TABLES)
