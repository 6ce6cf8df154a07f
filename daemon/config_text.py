"""Settings as text: shown, changed in the file, documented."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import tomlkit
import tomlkit.exceptions

from daemon.config import PRESET_KEY, SECTIONS, Config, decode, keys_of, read_text
from daemon.config_decode import convert
from daemon.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator


class SettingRow(msgspec.Struct, kw_only=True):
    """One setting in force.

    Attributes:
        name: `section.key`.
        value: as TOML would write it.
        origin: `default`, or the file and line, variable or flag that set it.
    """

    name: str
    value: str
    origin: str


def toml_value(value: object) -> str:
    """A value as TOML writes it; empty for one that is not set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list | frozenset):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return tomlkit.item(value).as_string()
    if isinstance(value, msgspec.Struct):
        return toml_value(msgspec.to_builtins(value))
    if isinstance(value, Mapping):
        pairs = [f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items()]
        return "{" + ", ".join(pairs) + "}"
    return str(value)


def settings_of(config: Config) -> list[SettingRow]:
    """All settings in force."""
    found: list[SettingRow] = []
    for section in SECTIONS:
        values = config.section(section)
        for key in keys_of(section):
            name = f"{section}.{key}"
            found.append(
                SettingRow(
                    name=name,
                    value=toml_value(getattr(values, key)),
                    origin=config.origins.get(name, "default"),
                )
            )
    return found


def set_value(path: str, name: str, text: str) -> str:
    """Change one setting in the file, keeping its comments.

    Args:
        path: the configuration file; made if it is not there.
        name: `section.key`.
        text: the value as text, such as `10s`.

    Returns:
        The value as it stands in the file now.

    Raises:
        ConfigError: there is no such setting, the value does not fit, or the file is broken.
    """
    section, _, key = name.rpartition(".")
    before = read_text(path)
    # Reports unknown sections, keys and unfitting values exactly as a start would.
    decode(before, name=path, flags=[f"{name}={text}"])
    value = convert(key, keys_of(section)[key], text, text=True)
    try:
        document = tomlkit.parse(before)
        table: tomlkit.TOMLDocument | tomlkit.items.Table = document
        for part in section.split("."):
            if part not in table:
                table[part] = tomlkit.table(is_super_table=False)
            inner = table[part]
            if not isinstance(inner, tomlkit.items.Table):
                raise ConfigError(f"{path}: [{section}] is not a table")
            table = inner
        if value is None:
            table.pop(key, None)
        else:
            table[key] = list(value) if isinstance(value, tuple) else value
    except tomlkit.exceptions.TOMLKitError as error:
        raise ConfigError(f"{path}: {error}") from None
    after = tomlkit.dumps(document)
    decode(after, name=path)
    _replace_file(path, after)
    return toml_value(value)


def _replace_file(path: str, text: str) -> None:
    """Write a file in one step: whoever reads sees the old or the new one."""
    real = os.path.realpath(path)
    os.makedirs(os.path.dirname(real), mode=0o700, exist_ok=True)
    temporary = f"{real}.{os.getpid()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, real)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def documented() -> Iterator[tuple[str, str, str, str]]:
    """(section, key, default, meaning) of every setting; the meaning is the field's docstring."""
    defaults = decode("")
    for section, cls in SECTIONS.items():
        meanings = field_docs(cls)
        values = defaults.section(section)
        for key in keys_of(section):
            shown = toml_value(getattr(values, key)) or "not set"
            if (section, key) == ("node", "name"):
                shown = "host name"
            meaning = meanings.get(key, "")
            if (section, key) == ("p2p", PRESET_KEY):
                meaning = "Where the other values of this section start: `wan`, `lan` or `test`."
            yield section, key, shown, meaning


def field_docs(cls: type) -> dict[str, str]:
    """Docstrings that stand under the fields of a class, or its `Attributes:` rows."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found: dict[str, str] = {}
    name = ""
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and name
        ):
            found[name] = " ".join(node.value.value.split())
            name = ""
        else:
            name = ""
    return _attribute_rows(inspect.getdoc(cls) or "") | found


def _attribute_rows(doc: str) -> dict[str, str]:
    found: dict[str, str] = {}
    key = ""
    inside = False
    for line in doc.splitlines():
        if line.strip() == "Attributes:":
            inside = True
        elif inside and line.startswith("    "):
            head, colon, rest = line.strip().partition(": ")
            if not line.startswith("     ") and colon and head.isidentifier():
                key = head
                found[key] = rest
            elif key:
                found[key] += " " + line.strip()
        elif inside and line.strip():
            inside = False
    return found


def markdown() -> str:
    """The tables of docs/guides/configuration.md."""
    lines: list[str] = []
    section = ""
    for name, key, default, meaning in documented():
        if name != section:
            section = name
            lines += ["", f"### `[{name}]`", "", "| key | default | meaning |", "|---|---|---|"]
        lines.append(f"| `{key}` | `{default}` | {meaning} |")
    return "\n".join(lines).strip() + "\n"
