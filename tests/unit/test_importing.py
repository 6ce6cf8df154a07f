"""Import: what becomes a note, what is refused by file and line, and what a repeat does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from memory.model import NoteIn
from memory.transfer.importing import (
    FIELDS,
    LINE_BYTES_MAX,
    NOTE_CHARS_MAX,
    PACKED_CHARS,
    ImportFileError,
    content_key,
    read_notes,
)
from tests.helpers.memories import open_world

if TYPE_CHECKING:
    from collections.abc import Callable

MARKDOWN = """\
---
title: not a note
---
Before any heading.

# Guide #

Intro line.

## Install

```sh
# not a heading
make setup
```

### Empty

Setext one
==========
under one

Setext two
----------
under two

| a | b |
|---|---|
| 1 | 2 |

* * *

#hashtag is no heading
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    def make(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


def notes_of(path: str, **options: Any) -> list[dict[str, Any]]:
    return list(read_notes(path, **options))


def test_markdown_gives_a_note_a_section_with_its_heading_path(
    write: Callable[[str, str | bytes], str],
) -> None:
    notes = notes_of(write("guide.md", MARKDOWN))
    assert [(n["title"], n["text"].split("\n")[0]) for n in notes] == [
        ("guide", "Before any heading."),
        ("Guide", "Intro line."),
        ("Guide > Install", "```sh"),
        ("Setext one", "under one"),
        ("Setext one > Setext two", "under two"),
    ]
    assert "# not a heading\nmake setup" in notes[2]["text"]
    assert "#hashtag is no heading" in notes[4]["text"]
    assert [n["pos"] for n in notes] == [1, 2, 3, 4, 5]
    assert len({n["thread"] for n in notes}) == 1


def test_every_note_says_where_it_is_from_and_claims_no_more_than_a_tool(
    write: Callable[[str, str | bytes], str],
) -> None:
    path = write("a.md", "# T\nbody\n")
    (note,) = notes_of(path, scope="docs", tags=["handbook"])
    assert note["role"] == "tool"
    assert note["source"]["uri"] == path
    assert note["source"]["sha256"] == hashlib.sha256(b"# T\nbody\n").hexdigest()
    assert (note["scope"], note["tags"]) == ("docs", ["handbook"])


def test_text_packs_paragraphs_and_loses_no_word(
    write: Callable[[str, str | bytes], str],
) -> None:
    paragraphs = [f"Paragraph {n}. " + "word " * 60 for n in range(20)]
    notes = notes_of(write("book.txt", "\r\n\r\n".join(paragraphs) + "\r\n"))
    assert 2 < len(notes) < 20
    assert all(len(n["text"]) <= PACKED_CHARS for n in notes)
    assert " ".join(" ".join(n["text"] for n in notes).split()) == " ".join(
        " ".join(paragraphs).split()
    )
    assert {n["title"] for n in notes} == {"book"}


def test_a_section_too_long_for_a_note_is_cut_where_one_would_pause(
    write: Callable[[str, str | bytes], str],
) -> None:
    body = "\n\n".join("line of words " * 100 for _ in range(30))
    notes = notes_of(write("long.md", f"# Long\n\n{body}\n"))
    assert len(notes) > 2
    assert all(len(n["text"]) <= NOTE_CHARS_MAX for n in notes)
    assert notes[0]["title"] == f"Long (1 of {len(notes)})"
    unbroken = notes_of(write("unbroken.txt", "\U0001f600" * 30_000))
    assert all(len(n["text"].encode()) < 60_000 for n in unbroken)
    assert sum(len(n["text"]) for n in unbroken) == 30_000


def test_json_lines_take_the_fields_of_a_note(
    write: Callable[[str, str | bytes], str],
) -> None:
    path = write(
        "x.jsonl",
        '\ufeff{"text": "one", "title": "T", "tags": ["a"], "kind": "lesson"}\r\n\n'
        '{"text": "two", "role": "owner", "idempotency_key": "mine"}\n'
        '{"text": "three", "role": "web"}',
    )
    notes = notes_of(path, scope="s")
    assert [n["text"] for n in notes] == ["one", "two", "three"]
    assert [n["role"] for n in notes] == ["tool", "tool", "web"]
    assert notes[1]["idempotency_key"] == "mine"
    assert notes[0]["idempotency_key"].startswith("import:")
    for note in notes:
        msgspec.convert(note, NoteIn)


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', ":2:", "JSON object"),
        ("x.jsonl", b"[1]\n", ":1:", "JSON object"),
        ("x.jsonl", b'{"text": "a"}\n\n{"txet": "b"}', ":3:", "did you mean text"),
        ("x.jsonl", b'{"zzzz": 1}', ":1:", "known are"),
        ("x.jsonl", b'{"title": "a"}', ":1:", "text is missing"),
        ("x.jsonl", b'{"text": 5}', ":1:", "text is missing"),
        ("x.jsonl", b'{"text": " "}', ":1:", "text is missing"),
        ("x.jsonl", b'{"text": "\xff"}', ":1:", "UTF-8"),
        ("x.jsonl", b"[" * 100_000, ":1:", "JSON object"),
        ("x.jsonl", b'{"text": "' + b"x" * LINE_BYTES_MAX + b'"}', ":1:", "over"),
        ("x.md", b"fine\nalso fine\nbad \xff\xfe\n", ":3:", "UTF-8"),
        ("x.txt", b"\xff\xfea\x00", ":1:", "UTF-8"),
    ],
)
@pytest.mark.attack
def test_what_cannot_be_read_is_named_by_file_and_line(
    write: Callable[[str, str | bytes], str], name: str, content: bytes, where: str, what: str
) -> None:
    path = write(name, content)
    with pytest.raises(ImportFileError) as caught:
        notes_of(path)
    message = str(caught.value)
    assert message.startswith(path + where)
    assert what in message


def test_an_empty_file_has_no_notes(write: Callable[[str, str | bytes], str]) -> None:
    for name in ("e.md", "e.txt", "e.jsonl"):
        assert notes_of(write(name, "")) == []
        assert notes_of(write(name, "\n \n\n")) == []


def test_keys_follow_the_content_alone(write: Callable[[str, str | bytes], str]) -> None:
    first = notes_of(write("a.md", "# T\nbody\n"))
    moved = notes_of(write("b.md", "preface\n\n# T\nbody\n"))
    assert first[0]["idempotency_key"] == moved[1]["idempotency_key"]
    other = notes_of(write("c.md", "# T\nbodies\n"))
    assert other[0]["idempotency_key"] != first[0]["idempotency_key"]
    assert content_key({"text": "x"}) != content_key({"text": "y"})


def test_the_fields_are_those_of_a_note() -> None:
    assert set(FIELDS) == {field.name for field in msgspec.structs.fields(NoteIn)}


def test_the_module_stays_light() -> None:
    code = (
        "import sys; before = set(sys.modules); import memory.transfer.importing;"
        "heavy = {'dataclasses', 'pathlib', 'logging', 'inspect', 'msgspec', 'trio', 'apsw',"
        " 'typing', 'difflib'};"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_an_import_killed_midway_can_be_repeated(
    tmp_path: Path, write: Callable[[str, str | bytes], str]
) -> None:
    path = write("guide.md", MARKDOWN)
    async with open_world(tmp_path, inline=True) as world:
        batch = [msgspec.convert(note, NoteIn) for note in read_notes(path, scope="docs")]
        await world.memory.remember(world.person, batch[:2])
        done = await world.memory.remember(world.person, batch)
        assert [d.status for d in done] == ["duplicate"] * 2 + ["stored"] * 3
        hit, *_ = (await world.find("make setup", world.person)).hits
        assert (hit.title, hit.trust, hit.author.relation) == ("Guide > Install", 0.7, "tool")
        # The same file in another scope is another set of notes.
        again = [msgspec.convert(note, NoteIn) for note in read_notes(path, scope="other")]
        done = await world.memory.remember(world.person, again)
        assert {d.status for d in done} == {"stored"}
