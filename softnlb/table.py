"""Tables of a TOML file: their keys, what each accepts, and every error of a table at once.

The keys are pydantic's core schemas, and its validator reads them.  The rest of pydantic, models
and adapters, is four times as slow to import: it is needed for the JSON schema alone.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from pydantic_core import CoreSchema, SchemaValidator, ValidationError, core_schema

from softnlb.errors import ReturnCode

REQUIRED = object()
"""The default of a key that has none."""


class Key(NamedTuple):
    """``accepts``: a schema; ``expected`` completes the sentence "expected ...", in error messages
    and in the JSON schema alike.  ``default``: as it would stand in the file, or None."""

    accepts: CoreSchema
    expected: str
    default: Any = REQUIRED
    table: "Table | None" = None
    """What a key holds that accepts anything, because its keys are read one by one as well."""


class Table(NamedTuple):
    """How often it may stand in a file: ``at_most`` 1 is [table], everything else [[table]]."""

    about: str
    keys: dict[str, Key]
    at_least: int = 0
    at_most: int | None = 1


class Complaint(NamedTuple):
    """Key path, value as text, what was expected, and NLB's return code for it."""

    key: str
    value: str
    expected: str
    code: ReturnCode | None = None


# ---------------------------------------------------------------- what a key accepts

ANYTHING = core_schema.any_schema()
TEXT = core_schema.str_schema()
TRUTH = core_schema.bool_schema()


def one_of(*texts: str) -> CoreSchema:
    """One of these texts."""
    return core_schema.literal_schema(list(texts))


def number(least: int | None = None, most: int | None = None) -> CoreSchema:
    """A whole number, the limits included."""
    return core_schema.int_schema(ge=least, le=most)


def either(*accepted: CoreSchema) -> CoreSchema:
    """What one of these accepts."""
    return core_schema.union_schema(list(accepted))


def maybe(accepted: CoreSchema) -> CoreSchema:
    """Also None, which stands for a key that is absent."""
    return core_schema.nullable_schema(accepted)


def several(accepted: CoreSchema, least: int | None = None, most: int | None = None) -> CoreSchema:
    """A list of so many."""
    return core_schema.list_schema(accepted, min_length=least, max_length=most)


def made(function: Callable[[Any], object], accepted: CoreSchema = TEXT) -> CoreSchema:
    """What ``function`` makes of an accepted value; it raises ValueError for a wrong one."""
    return core_schema.no_info_after_validator_function(function, accepted)


# ---------------------------------------------------------------- reading


def read_table(
    table: Table, raw: dict[str, Any], path: str
) -> tuple[dict[str, Any], list[Complaint]]:
    """Validate each key of a table on its own, so that one error never hides another.

    Returns the values that are good (defaults filled in; a bad or missing key is absent) and one
    complaint per key that is not.
    """
    complaints = [
        Complaint(f"{path}.{name}", shown(raw[name]), unknown_key(name, table.keys))
        for name in raw.keys() - table.keys
    ]
    values: dict[str, Any] = {}
    for name, key in table.keys.items():
        value = raw.get(name, key.default)
        if value is REQUIRED:
            complaints.append(Complaint(f"{path}.{name}", "", key.expected))
            continue
        try:
            values[name] = SchemaValidator(key.accepts).validate_python(value, strict=True)
        except ValidationError:
            texts = key.accepts["expected"] if key.accepts["type"] == "literal" else ()
            expected = f"{key.expected}{_did_you_mean(value, texts)}"
            complaints.append(Complaint(f"{path}.{name}", shown(value), expected))
    return values, complaints


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What is expected where a key stands that nobody knows."""
    close = _did_you_mean(key, known)
    return f"a known key{close}" if close else f"one of the keys {', '.join(known)}"


def _did_you_mean(value: object, known: Iterable[object]) -> str:
    """The nearest name, also by its last words: "tolerence" finds alive_message_tolerance."""
    names = {name: name for name in known if isinstance(name, str)}
    for name in tuple(names):
        words = name.split("_")
        names |= {"_".join(words[skip:]): name for skip in range(1, len(words))}
    close = get_close_matches(value.lower(), names, n=1) if isinstance(value, str) else []
    return f", did you mean {names[close[0]]}?" if close else ""


def shown(value: object) -> str:
    """A value of the file as text, cut to one short line."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of thousands of digits, as deep a nest
        return "(too long to show)"
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------- for editors


def json_schema(title: str, tables: Mapping[str, Table]) -> dict[str, Any]:
    """JSON schema of a file with these tables."""
    properties = {}
    for name, table in tables.items():
        properties[name] = one = _of_table(table)
        if table.at_most != 1:
            properties[name] = {"type": "array", "items": one}
            if table.at_most is not None:
                properties[name]["maxItems"] = table.at_most
    required = [name for name, table in tables.items() if table.at_least]
    return {"title": title, **_closed(properties, required)}


def _of_table(table: Table) -> dict[str, Any]:
    from pydantic.json_schema import GenerateJsonSchema

    mode: Literal["validation"] = "validation"
    found, _ = GenerateJsonSchema().generate_definitions(
        [(name, mode, key.accepts) for name, key in table.keys.items()]
    )
    properties = {}
    for name, key in table.keys.items():
        shape = _of_table(key.table) if key.table else found[name, mode]
        properties[name] = {**shape, "description": key.expected}
        if key.default is not REQUIRED and key.default is not None:
            properties[name]["default"] = key.default
    required = [name for name, key in table.keys.items() if key.default is REQUIRED]
    return {"description": table.about, **_closed(properties, required)}


def _closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
