"""Short JSON Schemas of tool arguments, made from msgspec structs and their docstrings.

Every byte of a tool list is read by a model at the start of each session, so what a model does not
need is left out: titles, references, nulls, empty defaults. Field descriptions are the ones that
stand in the struct's docstring.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Final, cast

import msgspec

from daemon.json_types import any_json

if TYPE_CHECKING:
    from daemon.json_types import Json

_FIELD: Final = re.compile(r"^    (\w+): (.*)$")
_NO_DEFAULT: Final[tuple[Json, ...]] = (None, "", [], {}, False)
_DROPPED: Final = frozenset({"title", "description"})


def input_schema(struct: type[msgspec.Struct]) -> dict[str, Json]:
    """JSON Schema of a struct, without references.

    Args:
        struct: the arguments' type; not recursive.

    Returns:
        A schema of `type: object` that refuses unknown properties.
    """
    (schema,), components = msgspec.json.schema_components(
        [struct], schema_hook=any_json, ref_template="{name}"
    )
    known = cast("dict[str, Json]", components)
    short = _shorten(cast("Json", schema), known)
    if not isinstance(short, dict):
        raise TypeError(f"{struct.__name__} has no object schema")
    short.setdefault("additionalProperties", False)
    properties = short.setdefault("properties", {})
    if isinstance(properties, dict):
        _describe(properties, field_descriptions(struct))
    return short


def field_descriptions(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What the `Attributes:` part of a docstring says of each field."""
    described: dict[str, list[str]] = {}
    current: list[str] | None = None
    _, _, attributes = (inspect.getdoc(struct) or "").partition("Attributes:\n")
    for line in attributes.splitlines():
        found = _FIELD.match(line)
        if found is not None:
            current = described.setdefault(found[1], [found[2]])
        elif current is not None and line.startswith("     "):
            current.append(line.strip())
        elif line.strip() and not line.startswith(" "):
            break
    return {name: " ".join(words).rstrip(".") for name, words in described.items()}


def _describe(properties: dict[str, Json], words: dict[str, str]) -> None:
    for name, schema in properties.items():
        if isinstance(schema, dict) and name in words:
            schema["description"] = words[name]


def _shorten(schema: Json, known: dict[str, Json]) -> Json:
    if isinstance(schema, (list, tuple)):
        return [_shorten(item, known) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _shorten(known[reference], known)
    options = schema.get("anyOf")
    if isinstance(options, (list, tuple)):
        return _any_of(schema, [_shorten(option, known) for option in options])
    short: dict[str, Json] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            # A property may be called `title`: names are not keywords.
            short[key] = {name: _shorten(item, known) for name, item in value.items()}
        elif key == "default":
            _add_default(short, value)
        elif key == "required":
            if value:
                short[key] = value
        elif key not in _DROPPED:
            short[key] = _shorten(value, known)
    if short.get("additionalProperties") == {}:
        del short["additionalProperties"]  # any value, as without a word
    return short


def _any_of(schema: dict[str, Json], options: list[Json]) -> Json:
    """`X or null` is an optional `X`: models leave it out instead of sending null."""
    real = [option for option in options if option != {"type": "null"}]
    short: dict[str, Json] = {}
    if len(real) == 1 and isinstance(real[0], dict):
        short = dict(real[0])
    else:
        short["anyOf"] = real
    _add_default(short, schema.get("default"))
    return short


def _add_default(short: dict[str, Json], value: Json) -> None:
    if value not in _NO_DEFAULT:
        short["default"] = value
