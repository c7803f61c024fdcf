"""A lesson: a lab file with steps and texts in two languages, made a student's own by a seed."""

import os
import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from labs.topology import LabSpec
from modes import mac
from modes.plan import Mode
from softnlb.errors import UsageError

FOLDER = Path(__file__).parent
LANGUAGES = ("en", "de")

Text = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a lesson; ``texts`` by language, with the student's own names filled in.

    ``check``: a function of labs/course/checks.py, ``facts`` its parameters.  ``run``: what the
    student types, ``broken``: faults that the course injects before, ``guess``: the number of the
    choice that comes true, from 0.
    """

    id: str
    check: str
    facts: dict[str, Any]
    run: tuple[str, ...]
    broken: tuple[str, ...]
    guess: int
    texts: dict[str, Text]


@dataclass(frozen=True, slots=True)
class Lesson:
    """One lab of the course for one seed.  ``values``: what stands for {vip} and the like."""

    number: int
    seed: int
    spec: LabSpec
    values: dict[str, str]
    titles: dict[str, str]
    stories: dict[str, str]
    steps: tuple[Step, ...]


def numbers() -> list[int]:
    """The numbers of all lessons."""
    return sorted(int(path.stem) for path in FOLDER.glob("[0-9]*.toml"))


def language(choice: str | None) -> str:
    """The language of the texts: the choice, else that of the environment, else English."""
    if choice is not None:
        return choice
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return "de" if os.environ[name].lower().startswith("de") else "en"
    return "en"


@cache
def titles() -> dict[int, dict[str, str]]:
    """The title of each lesson in each language; reads the files up to the first step."""
    heads = {n: (FOLDER / f"{n:02}.toml").read_text().partition("[[step]]")[0] for n in numbers()}
    tables = {n: tomllib.loads(head) for n, head in heads.items()}
    courses = {n: table["course"] for n, table in tables.items()}
    return {n: {at: texts[at]["title"] for at in LANGUAGES} for n, texts in courses.items()}


def sizes() -> dict[int, int]:
    """How many steps each lesson has."""
    return {n: (FOLDER / f"{n:02}.toml").read_text().count("\n[[step]]\n") for n in numbers()}


def load(number: int, seed: int, name: str) -> Lesson:
    """Lesson ``number`` as the student with ``seed`` gets it, in a lab called ``name``.

    Raises UsageError for a number that does not exist, ConfigError for a wrong file.
    """
    if number not in numbers():
        raise UsageError(f"lab {number}: the course has labs 1 to {numbers()[-1]}")
    from labs.lab_file import check

    path = FOLDER / f"{number:02}.toml"
    draw = random.Random(f"{number}/{seed}")
    raw = tomllib.loads(_readdressed(path.read_text(), draw) if seed else path.read_text())
    raw["lab"] = {**raw.get("lab", {}), "name": name}
    hosts = raw["lab"].get("hosts") or [host["id"] for host in raw["host"]]
    ids = list(range(1, hosts + 1)) if isinstance(hosts, int) else hosts
    faulty = draw.choice(ids)
    _move(raw, faulty)
    spec = check(raw, str(path))
    values = _values(spec, faulty)
    texts = raw["course"]
    return Lesson(
        number=number,
        seed=seed,
        spec=spec,
        values=values,
        titles={at: texts[at]["title"] for at in LANGUAGES},
        stories={at: fill(texts[at]["story"], values) for at in LANGUAGES},
        steps=tuple(_step(table, values) for table in raw["step"]),
    )


def _readdressed(text: str, draw: random.Random) -> str:
    """Other addresses for the networks 10.1.0.0/24 and 10.2.0.0/16 of a lab file."""
    network = f"10.{draw.randint(16, 199)}.{draw.randint(1, 254)}."
    text = text.replace("10.1.0.100", f"{network}{draw.randint(100, 199)}")
    return text.replace("10.1.0.", network).replace("10.2.", f"10.{draw.randint(201, 250)}.")


def _move(raw: dict[str, Any], faulty: int) -> None:
    """The faulty host trades its switch with the one that stands apart, where one does."""
    hosts = raw.get("host", [])
    apart = [host for host in hosts if "switch" in host]
    chosen = [host for host in hosts if host["id"] == faulty]
    if apart and chosen and apart[0] is not chosen[0]:
        chosen[0]["switch"] = apart[0].pop("switch")


def _values(spec: LabSpec, faulty: int) -> dict[str, str]:
    from labs.plan import build

    plan = build(spec.complete_document())
    addresses = {node.name: node.address for node in plan.nodes}
    vip = plan.cluster_ip_address
    cluster_mac = {
        Mode.UNICAST: mac.unicast_mac,
        Mode.MULTICAST: mac.multicast_mac,
        Mode.IGMP: mac.group_mac,
    }[spec.mode](vip)
    pool = spec.client_pool("client1")
    return {
        "vip": str(vip),
        "mac": cluster_mac.hex(":"),
        "faulty": f"host{faulty}",
        "faulty_id": str(faulty),
        "dip": str(addresses[f"host{faulty}"]),
        "dips": " ".join(str(node.address) for node in plan.nodes if node.kind == "host"),
        "host": f"host{1 if faulty != 1 else 2}",
        "near": str(pool[256 * 7 + 5]) if pool else "",
        "near_too": str(pool[256 * 7 + 200]) if pool else "",
        "net": f"{IPv4Interface(f'{pool[256 * 7]}/24').network}" if pool else "",
        "name": spec.name,
        "on": "" if spec.name == "lab" else f" --name {spec.name}",
    }


def fill(text: str, values: dict[str, Any]) -> str:
    """``text`` with {vip} and the like replaced; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda m: str(values.get(m[1], m[0])), text)


def _step(table: dict[str, Any], values: dict[str, str]) -> Step:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return fill(value, values)
        return [filled(each) for each in value] if isinstance(value, list) else value

    return Step(
        id=table["id"],
        check=table["check"],
        facts={key: filled(value) for key, value in table.get("facts", {}).items()},
        run=tuple(filled(table["run"])),
        broken=tuple(filled(table.get("broken", []))),
        guess=table["guess"],
        texts={at: {key: filled(value) for key, value in table[at].items()} for at in LANGUAGES},
    )
