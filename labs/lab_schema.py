"""The shape of a lab file: its tables, their keys, what each accepts (pydantic).

[cluster] and [[port_rule]] are those of a host's configuration file, and so are the keys of
[[host]] that the lab does not need for itself: what hosts learn, lab files know.  A field's
description completes the sentence "expected ...".
"""

import re
from ipaddress import ip_interface, ip_network
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypedDict

from softnlb.config import AttachChoice, DataPlaneChoice
from softnlb.config_schema import TABLE, WITH_PREFIX, ClusterTable, HostTable, PortRuleTable

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


NodeName = Annotated[str, AfterValidator(_node_name)]
Address = Annotated[str, AfterValidator(_interface_address)]
Network = Annotated[str, AfterValidator(_network)]
LabName = Annotated[str, AfterValidator(_lab_name)]
Port = Annotated[int, Field(ge=1, le=65535)]

MORE_ADDRESSES: Any = Field(
    default_factory=list,
    description="a list of addresses with prefix length, those of the other IP version",
)
SWITCH_DEFAULT = "the name of a switch (default: the first)"


class LabTable(BaseModel):
    """[lab]: the lab as a whole."""

    model_config = TABLE

    name: LabName = Field(default="lab", description="letters, digits, - and _, 40 at most")
    hosts: int | None = Field(
        default=None, ge=1, le=32, description="a whole number from 1 to 32, or [[host]] tables"
    )
    data_plane: DataPlaneChoice = Field(default="auto", description='"auto", "nfqueue" or "ebpf"')
    attach: AttachChoice = Field(
        default="auto", description='"auto", "tc", "xdp" or "xdp-generic": where ebpf hooks in'
    )


class SwitchTable(BaseModel):
    """[[switch]]: a bridge."""

    model_config = TABLE

    name: NodeName = Field(description=NODE_NAME)
    personality: Literal["dumb", "linux", "mac"] = Field(
        default="dumb",
        description='"dumb" (floods multicasts), "linux" (snoops by IP group) or '
        '"mac" (snoops by MAC address, as most hardware does)',
    )
    query_interval_s: int | None = Field(
        default=None,
        ge=1,
        le=125,
        description="a whole number from 1 to 125 (default: 125; memberships last four times it)",
    )


class TrunkTable(BaseModel):
    """[[trunk]]: a cable between two switches."""

    model_config = TABLE

    between: list[NodeName] = Field(
        min_length=2, max_length=2, description='two switches, as in ["switch1", "switch2"]'
    )


class RouterTable(BaseModel):
    """[[router]]: on a switch with one foot, clients behind it on the others."""

    model_config = TABLE

    name: NodeName = Field(description=NODE_NAME)
    switch: NodeName | None = Field(default=None, description=SWITCH_DEFAULT)
    address: Address = Field(description=WITH_PREFIX)
    additional_addresses: list[Address] = MORE_ADDRESSES
    arp: Literal["any", "strict"] = Field(
        default="any",
        description='"any" or "strict" (refuses a multicast MAC address for a unicast IP address)',
    )
    nat: bool = Field(
        default=False, description="true (clients behind it share its address) or false"
    )


class ClientTable(BaseModel):
    """[[client]]: on a switch, or behind a router."""

    model_config = TABLE

    name: NodeName = Field(description=NODE_NAME)
    router: NodeName | None = Field(default=None, description="the name of a router")
    switch: NodeName | None = Field(default=None, description=SWITCH_DEFAULT)
    address: Address = Field(description=WITH_PREFIX)
    additional_addresses: list[Address] = MORE_ADDRESSES
    pool: Network | None = Field(
        default=None,
        description="a network of addresses that all belong to this client, as in 10.2.64.0/18",
    )


class BystanderTable(BaseModel):
    """[[bystander]]: a machine that takes no part and only suffers."""

    model_config = TABLE

    name: NodeName = Field(description=NODE_NAME)
    switch: NodeName | None = Field(default=None, description=SWITCH_DEFAULT)
    address: Address = Field(description=WITH_PREFIX)
    additional_addresses: list[Address] = MORE_ADDRESSES


class ServiceTable(BaseModel):
    """[[service]]: what the hosts serve."""

    model_config = TABLE

    kind: Literal["http", "nginx"] = Field(
        default="http", description='"http" (built in) or "nginx" (where it is installed)'
    )
    port: Port = Field(default=80, description="a port from 1 to 65535")
    hosts: list[NodeName] | None = Field(
        default=None, description="a list of host names (default: all)"
    )


def _host_table() -> type[BaseModel]:
    """[[host]]: the lab's own keys, then those of a host's configuration file."""
    own: dict[str, Any] = {
        "id": HostTable.model_fields["id"],
        "name": (
            NodeName | None,
            Field(default=None, description=f"{NODE_NAME} (default: host and its id)"),
        ),
        "switch": (NodeName | None, Field(default=None, description=SWITCH_DEFAULT)),
        "address": (Address, Field(description=WITH_PREFIX)),
        "load_weights": (
            list[int] | None,
            Field(default=None, description="a list of 0 to 100, one for each port rule"),
        ),
        "handling_priorities": (
            list[int] | None,
            Field(default=None, description="a list of 1 to 32, one for each port rule"),
        ),
    }
    own["id"] = (own["id"].annotation, own["id"])
    of_the_lab = {"id", "interface", "dedicated_ip_address"}
    for name, field in HostTable.model_fields.items():
        if name not in of_the_lab:
            own[name] = (field.annotation, field)
    return create_model("LabHostTable", __doc__="[[host]]: a host.", __config__=TABLE, **own)


LabHostTable = _host_table()


class LessonText(TypedDict):
    """What a lab of the course says in one language."""

    title: str
    story: str


class StepText(TypedDict):
    """What a step says: {vip}, {faulty} and the like stand for the student's own."""

    predict: str
    choices: list[str]
    observe: str
    explain: str
    wrong: str
    todo: NotRequired[str]
    hints: list[str]


TEXTS = "a table with "


class CourseTable(BaseModel):
    """[course]: makes a lab file a lesson."""

    model_config = TABLE

    en: LessonText = Field(description=TEXTS + "title and story")
    de: LessonText = Field(description=TEXTS + "title and story")


class StepTable(BaseModel):
    """[[step]]: predict, run, observe, explain, check."""

    model_config = TABLE

    id: str = Field(description="a name that no other step has")
    check: str = Field(description="the name of a check")
    facts: dict[str, Any] = Field(default_factory=dict, description="parameters of the check")
    run: list[str] = Field(description="a list of commands")
    broken: list[str] = Field(default_factory=list, description="a list of faults")
    guess: int = Field(ge=0, description="the number of the choice that comes true, from 0")
    en: StepText = Field(description=TEXTS + ", ".join(StepText.__annotations__))
    de: StepText = Field(description=TEXTS + ", ".join(StepText.__annotations__))


class LabFile(BaseModel):
    """A softnlb lab file."""

    model_config = ConfigDict(**TABLE, title="softnlb lab")

    lab: LabTable = Field(default_factory=LabTable)
    cluster: ClusterTable
    port_rule: list[PortRuleTable] = Field(default_factory=list, max_length=32)
    switch: list[SwitchTable] = Field(default_factory=list)
    trunk: list[TrunkTable] = Field(default_factory=list)
    router: list[RouterTable] = Field(default_factory=list)
    client: list[ClientTable] = Field(default_factory=list)
    bystander: list[BystanderTable] = Field(default_factory=list)
    host: list[LabHostTable] = Field(default_factory=list)  # type: ignore[valid-type]
    service: list[ServiceTable] = Field(default_factory=list)
    course: CourseTable | None = None
    step: list[StepTable] = Field(default_factory=list)


MODELS: dict[str, type[BaseModel]] = {
    "switch": SwitchTable,
    "trunk": TrunkTable,
    "router": RouterTable,
    "client": ClientTable,
    "bystander": BystanderTable,
    "host": LabHostTable,
    "service": ServiceTable,
}
"""The tables that may stand several times, but for the port rules."""


def json_schema() -> dict[str, Any]:
    """JSON schema of a lab file, for editors."""
    return LabFile.model_json_schema()
