"""Edits of generated files: our entry goes in and out, and every other byte stays."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import hypothesis.strategies as st
from hypothesis import given, settings

from daemon.connect import jsonc, place, steps
from daemon.connect.clients import CLIENTS
from daemon.connect.records import Records

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.json_types import Json

GOAL = place.Goal("/opt/covey/bin/covey", {"COVEY_AGENT": "cursor"})
PATH = ["mcpServers", "covey"]

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS
SPACE = st.text(" \t\n", max_size=3)
COMMENT = st.sampled_from(["", "", "// x\n", '/* "covey": { */', "// ],}\n", "/**/"])
NAMES = TEXTS.filter(lambda name: name not in {"covey", "servers", "context_servers"})


@st.composite
def trivia(draw: st.DrawFn) -> str:
    return draw(SPACE) + draw(COMMENT) + draw(SPACE)


@st.composite
def written(draw: st.DrawFn, value: Json) -> str:
    """The value as somebody might have typed it."""
    if isinstance(value, dict):
        parts = [
            f"{draw(trivia())}{json.dumps(key, ensure_ascii=draw(st.booleans()))}{draw(trivia())}:"
            f"{draw(trivia())}{draw(written(item))}{draw(trivia())}"
            for key, item in value.items()
        ]
        opening, closing = "{", "}"
    elif isinstance(value, list):
        parts = [f"{draw(trivia())}{draw(written(item))}{draw(trivia())}" for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, ensure_ascii=draw(st.booleans()))
    trailing = "," if parts and draw(st.booleans()) else ""
    return opening + ",".join(parts) + trailing + draw(trivia()) + closing


VALUES: st.SearchStrategy[Json] = st.recursive(
    cast("st.SearchStrategy[Json]", SCALARS),
    lambda inner: cast(
        "st.SearchStrategy[Json]",
        st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    ),
    max_leaves=8,
)
SERVERS = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=2), max_size=3)


@st.composite
def settings_files(draw: st.DrawFn) -> str:
    document: dict[str, Json] = dict(draw(st.dictionaries(NAMES, VALUES, max_size=3)))
    document.pop("mcpServers", None)
    if draw(st.booleans()):
        servers: Mapping[str, Json] = cast("Mapping[str, Json]", draw(SERVERS))
        document["mcpServers"] = dict(servers)
    else:
        # Else the whole file could pass for a list of servers.
        document["n"] = 1
    text = draw(trivia()) + draw(written(document)) + draw(trivia())
    bom = draw(st.sampled_from(["", jsonc.BOM]))
    crlf = draw(st.booleans())
    return bom + (text.replace("\n", "\r\n") if crlf else text)


@settings(max_examples=60)  # each draws a whole file of somebody's
@given(settings_files())
def test_put_sets_our_entry_alone_and_remove_takes_it_alone(text: str) -> None:
    before = jsonc.decode(text)
    after = place.put(CLIENTS["cursor"], text, GOAL)
    assert isinstance(before, dict)
    servers = before.get("mcpServers", {})
    assert isinstance(servers, dict)
    ours = place.server_of(CLIENTS["cursor"], GOAL)
    assert jsonc.decode(after) == {**before, "mcpServers": {**servers, "covey": ours}}
    assert place.put(CLIENTS["cursor"], after, GOAL) == after
    # Nothing that was there is lost or moved: the text from before is what is left of the new one.
    rest = iter(after)
    assert all(char in rest for char in "".join(text.split()))
    keep = jsonc.depth_of(text, PATH)
    assert jsonc.decode(jsonc.remove(after, PATH, keep=keep)) == before


@settings(max_examples=40)
@given(settings_files() | st.sampled_from(["", "\n", "// x", jsonc.BOM]), st.booleans())
def test_connect_and_disconnect_give_back_the_same_bytes(text: str, hooks: bool) -> None:
    client = CLIENTS["claude-code"]
    what = "hooks" if hooks and '"hooks"' not in text else "server"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.json"
        path.write_bytes(text.encode())
        assert there_and_back(client.name, what, path) == text.encode()


def there_and_back(name: str, what: str, path: Path) -> bytes:
    records = Records(str(path.parent / "records"))
    client = CLIENTS[name]
    planned = steps.plan_connect(
        client,
        what,
        str(path),
        GOAL,
        project=False,
        records=records,
        environ={},  # type: ignore[arg-type]
    )
    steps.do_connect(planned, records, {})
    leaving = steps.plan_disconnect(
        client,
        what,
        str(path),
        project=False,
        records=records,
        environ={},  # type: ignore[arg-type]
    )
    steps.do_disconnect(leaving, records, {})
    return path.read_bytes()


KEYS = st.from_regex(r"[a-z][a-z0-9_-]{0,6}", fullmatch=True).filter(lambda key: key != "covey")
TOML_VALUES = st.sampled_from(
    ["1", "0x1F", "true", "1.5", '"ü \\" #"', "'[a]'", '"""\n[mcp_servers.covey]\n"""', "[1, 2, ]",
     "[\n  1, # x\n  2\n]", "{ a = 1, b = [2] }", "2026-11-25T10:00:00Z"]
)  # fmt: skip


@st.composite
def toml_files(draw: st.DrawFn) -> str:
    lines: list[str] = []

    def pairs() -> None:
        for key in draw(st.lists(KEYS, max_size=3, unique=True)):
            if draw(st.booleans()):
                lines.append(draw(st.sampled_from(["# note", "", "  # covey"])))
            space = draw(st.sampled_from([" ", "", "   "]))
            lines.append(
                f"{key}{space}={space}{draw(TOML_VALUES)} {draw(st.sampled_from(['', '# x']))}"
            )

    pairs()
    for table in draw(st.lists(KEYS, max_size=3, unique=True)):
        prefix = draw(st.sampled_from(["mcp_servers.", "t-"]))
        lines.append(f"[{prefix}{table}]{draw(st.sampled_from(['', ' # t']))}")
        pairs()
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


@settings(max_examples=50)
@given(toml_files())
def test_a_toml_file_is_given_back_to_the_byte(text: str) -> None:
    client = CLIENTS["codex"]
    try:
        before = place.decode(client, text)
    except place.PlaceError:
        return  # a key of the file's own stands twice
    after = place.put(client, text, GOAL)
    assert after.startswith(text), "ours comes last"
    assert isinstance(before, dict)
    others = before.get("mcp_servers", {})
    assert isinstance(others, dict)
    ours = place.server_of(client, GOAL)
    assert place.decode(client, after) == {**before, "mcp_servers": {**others, "covey": ours}}
    left = place.take(client, after, GOAL, keep=0)
    assert left.rstrip("\r\n") == text.rstrip("\r\n"), "by span alone"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(text.encode())
        assert there_and_back("codex", "server", path) == text.encode()
