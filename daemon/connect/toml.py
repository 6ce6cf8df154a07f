"""Edits a client's TOML file: our tables at its end, every other byte as it was.

TOML lets a table stand anywhere, so ours is appended as text and taken out as the same text. Only a
table that somebody changed since, or that the client wrote itself, is edited through `tomlkit`, and
only in a file that `tomlkit` gives back unchanged to the byte. Pure. Every result is decoded by
`tomllib` and compared: a file in which the entry cannot stand (an inline `mcp_servers = {}`, an
array of tables) is a `ShapeError` and not touched. Source: daemon.md 7; TOML 1.0.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, cast

from daemon.connect.jsonc import ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daemon.json_types import Json

__all__ = ["ShapeError", "TomlError", "append_block", "get", "remove", "update"]


class TomlError(Exception):
    """The text is no TOML; says where."""


def decode(text: str) -> dict[str, Json]:
    """The whole text.

    Raises:
        TomlError: it is none.
    """
    try:
        # TOML's line end may be CRLF, its byte order mark is not allowed but met.
        return cast("dict[str, Json]", tomllib.loads(text.removeprefix("\ufeff")))
    except (ValueError, RecursionError) as error:  # not only its own: numbers of 4,300 digits
        raise TomlError(str(error)) from None


def get(text: str, path: Sequence[str]) -> Json:
    """The value at `path`, None where nothing stands.

    Raises:
        TomlError: the text is none.
        ShapeError: something on the way is no table.
    """
    value: Json = decode(text)
    for number, key in enumerate(path):
        if not isinstance(value, dict):
            raise ShapeError(f"{'.'.join(path[:number])} is no table")
        if key not in value:
            return None
        value = value[key]
    return value


def append_block(text: str, block: str, path: Sequence[str], value: Mapping[str, Json]) -> str:
    """Append tables.

    Args:
        text: the file; nothing stands at `path` yet.
        block: the tables as text, which decode to `value` at `path`.
        path: of the entry.
        value: what must stand there afterwards.

    Raises:
        TomlError: the text is none.
        ShapeError: the tables cannot stand there.
    """
    before = decode(text)
    joined = text + separator(text) + native(text, block)
    try:
        after = decode(joined)
    except TomlError as error:
        raise ShapeError(f"{path[0]} is written in a form that takes no more tables") from error
    if get(joined, path) != value or _without(after, path) != _without(before, path):
        raise ShapeError(f"{path[0]} is written in a form that takes no more tables")
    return joined


def separator(text: str) -> str:
    """What stands between the file and our tables: the end of its last line, an empty line."""
    newline = "\r\n" if "\r\n" in text else "\n"
    if not text.removeprefix("\ufeff").strip():
        return ""
    return newline if text.endswith("\n") else newline * 2


def native(text: str, block: str) -> str:
    """Our tables with the line ends of the file."""
    return block.replace("\n", "\r\n") if "\r\n" in text else block


def update(text: str, path: Sequence[str], changes: Mapping[str, Json]) -> str:
    """Set some values of an entry that stands there, and leave its others.

    Raises:
        TomlError: the text is none.
        ShapeError: it cannot be edited without changing other bytes.
    """
    document = _faithful(text)
    entry = document
    for key in path:
        entry = cast("dict[str, Json]", entry[key])
    for key, value in changes.items():
        old = entry.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            for name, item in value.items():
                if old.get(name) != item:
                    old[name] = item
        elif old != value:
            entry[key] = value
    return _checked(text, document, path, {**cast("dict[str, Json]", get(text, path)), **changes})


def remove(text: str, path: Sequence[str], block: str) -> str:
    """Take an entry out.

    Args:
        text: the file.
        path: of the entry; nothing happens where none stands.
        block: our tables as they were appended: if they still stand there as one piece, exactly
            they are cut out, with the empty line before them.

    Raises:
        TomlError: the text is none.
        ShapeError: it cannot be taken out without changing other bytes.
    """
    if get(text, path) is None:
        return text
    rest = _without(decode(text), path)
    piece = native(text, block)
    if text.count(piece) == 1:
        at = text.index(piece)
        newline = "\r\n" if "\r\n" in text else "\n"
        before = text[:at]
        if before.endswith(newline * 2):
            before = before[: -len(newline)]
        cut = before + text[at + len(piece) :]
        if decode(cut) == rest:
            return cut
    document = _faithful(text)
    inner = document
    for key in path[:-1]:
        inner = cast("dict[str, Json]", inner[key])
    del inner[path[-1]]
    return _checked(text, document, path, None)


def _faithful(text: str) -> dict[str, Json]:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    decode(text)
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ShapeError(f"it cannot be edited: {error}") from None
    if tomlkit.dumps(document) != text:
        raise ShapeError("an edit would change other lines of it")
    return cast("dict[str, Json]", document)


def _checked(
    text: str, document: dict[str, Json], path: Sequence[str], wanted: Mapping[str, Json] | None
) -> str:
    import tomlkit

    edited = tomlkit.dumps(document)
    try:
        after = decode(edited)
    except TomlError:
        raise ShapeError("an edit would break it") from None
    if get(edited, path) != wanted or _without(after, path) != _without(decode(text), path):
        raise ShapeError("an edit would change other values of it")
    return edited


def _without(document: Mapping[str, Json], path: Sequence[str]) -> dict[str, Json]:
    """The document without the entry, and without the tables that are empty then."""
    copy = dict(document)
    inner = copy.get(path[0])
    if len(path) == 1 or not isinstance(inner, dict):
        copy.pop(path[0], None)
        return copy
    shorter = _without(inner, path[1:])
    if shorter:
        copy[path[0]] = shorter
    else:
        del copy[path[0]]
    return copy
