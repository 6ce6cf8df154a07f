"""TOML and text into frozen dataclasses, strictly, with the place of each fault.

`tomllib` forgets line numbers, so `line_of` finds them again by scanning for the key; it serves
messages only and decides nothing. Nothing here knows which sections exist.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from daemon.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DURATIONS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES_BYTES: Final = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_WITH_UNIT: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")
# Unit and qualifier stand last in our names; a rate (`_per_s`) is a plain number.
_UNIT_OF_NAME: Final = re.compile(r"(?<!_per)_(s|ms|bytes)(?:_min|_max)?$")
# Aliases that the packages import for type checkers alone.
_ALIASES: Final[dict[str, object]] = {"Addr": str}
_TRUTH: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
_HEADER: Final = re.compile(r"\s*\[\s*([A-Za-z0-9_.\"\- ]+?)\s*\]\s*(?:#.*)?$")
_KEY: Final = re.compile(r"\s*([A-Za-z0-9_.\"\-]+)\s*=")


@dataclass(frozen=True, kw_only=True)
class Given:
    """A value somebody set.

    Attributes:
        value: what TOML gave, or the text of a variable or flag.
        where: for messages: `config.toml:14`, `COVEY_RPC__IN_FLIGHT_MAX`, `--set`.
        origin: `file`, `env` or `flag`.
    """

    value: object
    where: str
    origin: Literal["file", "env", "flag"]


def load_toml(text: str, name: str) -> dict[str, object]:
    """Parse TOML.

    Args:
        text: the document.
        name: its name in messages.

    Raises:
        ConfigError: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from None


def flatten(
    table: Mapping[str, object], sections: Iterable[str]
) -> Iterator[tuple[str, str, object]]:
    """Yield (section, key, value) of a TOML document.

    A table whose dotted name is a section, or begins one, is walked into; any other is a value.
    """
    known = set(sections)
    inner = {name[:i] for name in known for i, char in enumerate(name) if char == "."}

    def walk(prefix: str, node: Mapping[str, object]) -> Iterator[tuple[str, str, object]]:
        for key, value in node.items():
            path = f"{prefix}.{key}" if prefix else key
            if isinstance(value, dict) and (path in known or path in inner or not prefix):
                yield from walk(path, value)
            else:
                yield prefix, key, value

    yield from walk("", table)


def line_of(text: str, section: str, key: str) -> int | None:
    """Line (from 1) where `key` of `section` is set, None if it is not found."""
    here = ""
    wanted = f"{section}.{key}" if section else key
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            here = header[1].replace('"', "").replace(" ", "")
            if here == wanted:
                return number
        elif found := _KEY.match(line):
            name = found[1].replace('"', "")
            full = f"{here}.{name}" if here else name
            if full == wanted or full.startswith(f"{wanted}."):
                return number
    return None


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean X?`, or the choices when nothing is near and they are few, or nothing."""
    choices = sorted(words)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(choices)}" if 0 < len(choices) <= 12 else ""


def convert(key: str, kind: object, value: object, *, text: bool) -> object:
    """Make `value` what a field of type `kind` holds.

    Args:
        key: the field's name; its unit allows "10s" and "64MiB".
        kind: its type: bool, int, float, str, Literal, tuple of one of these, X | None, a
            mapping of names to one of these, or a struct.
        value: from TOML, or text.
        text: whether `value` is text of a variable or flag.

    Raises:
        ValueError: it does not fit; the message says what would.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in {Union, types.UnionType}:
        return _optional(key, args, value, text=text)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"must be one of {', '.join(map(str, args))}, not {_show(value)}")
    if origin is Mapping:
        return _table(key, args[1], value)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        try:
            return msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None
    if origin in {tuple, list, frozenset}:
        return _sequence(key, args[0], value, text=text)
    if kind is bool:
        return _boolean(value, text=text)
    if kind is int:
        return _integer(key, value, text=text)
    if kind is float:
        return _number(key, value, text=text)
    if kind is str:
        if isinstance(value, str):
            return value
        raise ValueError(f"must be text in quotes, not {_show(value)}")
    raise ValueError("cannot be set here")


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _optional(key: str, args: tuple[object, ...], value: object, *, text: bool) -> object:
    if type(None) in args and (value == "" or (text and value == "none")):
        return None
    rest = [arg for arg in args if arg is not type(None)]
    last: ValueError | None = None
    for arg in rest:
        try:
            return convert(key, arg, value, text=text)
        except ValueError as error:
            last = error
    raise last or ValueError("cannot be set here")


def _sequence(key: str, item: object, value: object, *, text: bool) -> object:
    if text and isinstance(value, str):
        parts = [part.strip() for part in value.strip().strip("[]").split(",")]
        value = [part.strip("\"'") for part in parts if part]
    if not isinstance(value, list):
        raise ValueError(f"must be a list in brackets, not {_show(value)}")
    return tuple(convert(key, item, one, text=text) for one in value)


def _table(key: str, item: object, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("is a table: write it into the file as [section.key] or {name = value}")
    found = {}
    for name, one in value.items():
        try:
            found[str(name)] = convert(key, item, one, text=False)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def _boolean(value: object, *, text: bool) -> bool:
    if text and isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    if isinstance(value, bool):
        return value
    raise ValueError(f"must be true or false, not {_show(value)}")


def _scaled(key: str, value: str) -> float | None:
    """The number of a text with a unit that the key's own unit can hold, in the key's unit."""
    unit = _UNIT_OF_NAME.search(key)
    found = _WITH_UNIT.fullmatch(value)
    if unit is None or found is None:
        return None
    number, name = float(found[1]), found[2].lower()
    if unit[1] == "bytes":
        return number * _SIZES_BYTES[name] if name in _SIZES_BYTES else None
    if name not in _DURATIONS_S:
        return None
    return number * _DURATIONS_S[name] * (1000 if unit[1] == "ms" else 1)


def _number(key: str, value: object, *, text: bool) -> float:
    if isinstance(value, str):
        scaled = _scaled(key, value)
        if scaled is None and text:
            try:
                scaled = float(value)
            except ValueError:
                scaled = None
        value = scaled
        if value is None:
            raise ValueError(f"must be a number{_units(key)}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number{_units(key)}, not {_show(value)}")
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return float(value)


def _integer(key: str, value: object, *, text: bool) -> int:
    if isinstance(value, str):
        scaled = _scaled(key, value)
        if scaled is not None:
            return int(scaled)
        if text and re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
            return int(value)
        raise ValueError(f"must be a whole number{_units(key)}, not {_show(value)}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number{_units(key)}, not {_show(value)}")
    return value


def _units(key: str) -> str:
    unit = _UNIT_OF_NAME.search(key)
    if unit is None:
        return ""
    return {
        "s": ' of seconds, or text such as "10s"',
        "ms": ' of milliseconds, or text such as "250ms"',
        "bytes": ' of bytes, or text such as "64MiB"',
    }[unit[1]]


def field_types(cls: type) -> dict[str, object]:
    """Types of a class's fields by name, without those that are sections themselves."""
    hints = get_type_hints(cls, localns=_ALIASES)
    if issubclass(cls, msgspec.Struct):
        return {item.name: hints[item.name] for item in msgspec.structs.fields(cls)}
    if dataclasses.is_dataclass(cls):
        names = [item.name for item in dataclasses.fields(cls)]
        return {name: hints[name] for name in names if not dataclasses.is_dataclass(hints[name])}
    raise TypeError(f"{cls.__name__} is no section")
