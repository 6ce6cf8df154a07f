"""Files as notes: Markdown a note a section, text packed paragraphs, JSON Lines a note a line.

Read by the command line tool in the first milliseconds of its life, so this module imports nothing
heavier than `json`: no dataclasses, pathlib, logging or msgspec. Notes come out as dictionaries
with the fields of `memory.model.NoteIn`. Each carries a key made of its own content, so an import
that was killed midway, or repeated after the file grew, stores nothing twice. What is imported is
unsigned: its role is `tool`, which caps its trust. Source: docs/specs/memory.md, *Import*.
"""

# pathlib is as expensive as the rest of the command together.
# ruff: noqa: PTH119, PTH122, PTH123, PTH202

from __future__ import annotations

import hashlib
import json
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
    Note: TypeAlias = dict[str, Json]

FILE_BYTES_MAX = 64 * 1024 * 1024
"""Largest Markdown or text file; JSON Lines are read line by line and may be longer."""

LINE_BYTES_MAX = 256 * 1024
"""Longest JSON line: a note of 64 KiB with every character escaped still fits."""

NOTE_CHARS_MAX = 12_000
"""A longer section becomes several notes: four bytes a character still fit a note's 64 KiB."""

PACKED_CHARS = 1_500
"""Paragraphs of a text file are packed into notes of about this length: a printed page's half."""

TITLE_CHARS_MAX = 500

MARKDOWN = (".md", ".markdown")
JSON_LINES = (".jsonl", ".ndjson")

_NAMES = (
    "text title tags scope kind role speaker thread pos at valid_from valid_to claim supersedes"
    " derived_from source ttl_s idempotency_key"
)
FIELDS = tuple(_NAMES.split())
"""Fields of a note; `memory.model.NoteIn` has the same, a test compares them."""

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_BLANK = re.compile(r"\n[ \t]*\n\s*")


class ImportFileError(ValueError):
    """A file that cannot be read as notes; the message begins with file and line."""


def read_notes(path: str, *, scope: str | None = None, tags: Sequence[str] = ()) -> Iterator[Note]:
    """Notes of one file, in order, as they are read.

    Args:
        path: the file; its name's ending decides how it is read.
        scope: where the notes belong; a JSON line may say otherwise.
        tags: added to each note's own.

    Yields:
        Fields for `memory.remember`.

    Raises:
        ImportFileError: malformed content, named by file and line.
        OSError: the file cannot be read.
    """
    lowered = path.lower()
    if lowered.endswith(JSON_LINES):
        notes = _json_notes(path)
    elif lowered.endswith(MARKDOWN):
        notes = _document_notes(path, _markdown_sections(_read_text(path)))
    else:
        notes = _document_notes(path, _packed_paragraphs(_read_text(path)))
    for note in notes:
        if scope is not None:
            note.setdefault("scope", scope)
        if tags:
            own = note.get("tags")
            note["tags"] = [*(own if isinstance(own, list) else []), *tags]
        note.setdefault("idempotency_key", content_key(note))
        yield note


def content_key(note: Note) -> str:
    """An idempotency key that is the same for the same note, wherever and whenever it is read."""
    parts = [note.get(name) for name in ("kind", "claim", "title", "text")]
    data = json.dumps(parts, ensure_ascii=False, sort_keys=True).encode(errors="replace")
    return "import:" + hashlib.blake2b(data, digest_size=20).hexdigest()


# ---- documents


def _read_text(path: str) -> tuple[str, str]:
    """(text, SHA-256 of the file)."""
    size = os.path.getsize(path)
    if size > FILE_BYTES_MAX:
        raise ImportFileError(f"{path}:1: larger than {FILE_BYTES_MAX >> 20} MiB; split it first")
    with open(path, "rb") as file:
        data = file.read()
    digest = hashlib.sha256(data).hexdigest()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ImportFileError(f"{path}:{line}: not UTF-8 text; convert the file first") from exc
    return text.replace("\r\n", "\n").replace("\r", "\n"), digest


def _document_notes(path: str, read: tuple[str, Iterator[tuple[str, str]]]) -> Iterator[Note]:
    """Sections (title, text) as notes of one thread, in the document's order."""
    digest, sections = read
    uri = path.replace(os.sep, "/")
    stem = os.path.splitext(os.path.basename(path))[0]
    pos = 0
    for title, text in sections:
        parts = list(_fit(text))
        for number, part in enumerate(parts, 1):
            pos += 1
            shown = title or stem
            if len(parts) > 1:
                shown = f"{shown} ({number} of {len(parts)})"
            yield {
                "text": part,
                "title": shown[:TITLE_CHARS_MAX],
                "role": "tool",
                "thread": uri[-120:],
                "pos": pos,
                "source": {"uri": uri[:2000], "tool": "covey import", "sha256": digest},
            }


def _markdown_sections(read: tuple[str, str]) -> tuple[str, Iterator[tuple[str, str]]]:
    text, digest = read
    return digest, _sections(_without_front_matter(text.split("\n")))


def _sections(lines: list[str]) -> Iterator[tuple[str, str]]:
    """(heading path, text below the heading) of each section that has text."""
    path: list[tuple[int, str]] = []
    body: list[str] = []
    fence = ""
    for line in lines:
        heading = None if fence else _heading(line, body)
        fence = _fence_after(line, fence)
        if heading is None:
            body.append(line)
            continue
        level, title = heading
        if _SETEXT.fullmatch(line) and not _ATX.fullmatch(line):
            body.pop()
        yield from _section(path, body)
        path = [(above, name) for above, name in path if above < level]
        path.append((level, title))
        body = []
    yield from _section(path, body)


def _section(path: list[tuple[int, str]], body: list[str]) -> Iterator[tuple[str, str]]:
    text = "\n".join(body).strip("\n")
    if text.strip():
        yield " > ".join(name for _, name in path if name), text


def _heading(line: str, body: list[str]) -> tuple[int, str] | None:
    """(level, title) if the line is a heading, or underlines the one before."""
    atx = _ATX.fullmatch(line)
    if atx:
        return len(atx[1]), (atx[2] or "").strip()
    setext = _SETEXT.fullmatch(line)
    # One line of words, alone, above the rule; else the rule is a thematic break or a table.
    if setext and body and body[-1].strip() and (len(body) < 2 or not body[-2].strip()):
        above = body[-1]
        if not above.startswith(("    ", "\t", "-", "*", "+", ">", "|")):
            return (1 if setext[1][0] == "=" else 2), above.strip()
    return None


def _fence_after(line: str, fence: str) -> str:
    """The fence we are in after this line; empty outside code."""
    found = _FENCE.match(line)
    if found is None:
        return fence
    if not fence:
        return found[1]
    closes = found[1][0] == fence[0] and len(found[1]) >= len(fence) and line.strip() == found[1]
    return "" if closes else fence


def _without_front_matter(lines: list[str]) -> list[str]:
    """A YAML block between two `---` lines at the top describes the file; it is no note."""
    if lines and lines[0].rstrip() == "---":
        for at, line in enumerate(lines[1:200], 1):
            if line.rstrip() in ("---", "..."):
                return lines[at + 1 :]
    return lines


def _packed_paragraphs(read: tuple[str, str]) -> tuple[str, Iterator[tuple[str, str]]]:
    text, digest = read
    return digest, _packed(text)


def _packed(text: str) -> Iterator[tuple[str, str]]:
    packed = ""
    for paragraph in _BLANK.split(text.strip()):
        if packed and len(packed) + len(paragraph) > PACKED_CHARS:
            yield "", packed
            packed = ""
        packed = f"{packed}\n\n{paragraph}" if packed else paragraph
    if packed.strip():
        yield "", packed


def _fit(text: str) -> Iterator[str]:
    """The text in pieces a note can hold, cut where a reader would pause."""
    rest = text
    while len(rest) > NOTE_CHARS_MAX:
        window = rest[:NOTE_CHARS_MAX]
        cut = max(
            window.rfind("\n\n"), window.rfind("\n", NOTE_CHARS_MAX // 2), NOTE_CHARS_MAX // 2
        )
        if cut == NOTE_CHARS_MAX // 2:
            space = window.rfind(" ", NOTE_CHARS_MAX // 2)
            cut = space if space > 0 else NOTE_CHARS_MAX
        yield rest[:cut].rstrip()
        rest = rest[cut:].lstrip("\n")
    if rest.strip():
        yield rest


# ---- JSON Lines


def _json_notes(path: str) -> Iterator[Note]:
    digest = _file_sha256(path)
    uri = path.replace(os.sep, "/")
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                raise ImportFileError(f"{path}:{number}: the line is over {LINE_BYTES_MAX} bytes")
            if line.strip():
                yield _json_note(line, f"{path}:{number}", uri, digest)


def _file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _json_note(line: bytes, where: str, uri: str, digest: str) -> Note:
    try:
        note: Json = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise ImportFileError(f"{where}: not UTF-8 text") from exc
    except (ValueError, RecursionError) as exc:
        raise ImportFileError(f"{where}: not a JSON object on one line ({exc})") from exc
    if not isinstance(note, dict):
        raise ImportFileError(f"{where}: a note is a JSON object with at least a text")
    # What an export adds: who had signed it. The line's source says where it is from.
    note.pop("covey", None)
    for name in note:
        if name not in FIELDS:
            raise ImportFileError(f"{where}: unknown field {_shown(name)}{_nearest(name)}")
    text = note.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ImportFileError(f"{where}: text is missing or empty")
    # Nobody signed this line, whoever it names: it may not claim more than a tool's word.
    if note.get("role") != "web":
        note["role"] = "tool"
    note.setdefault("source", {"uri": uri[:2000], "tool": "covey import", "sha256": digest})
    return note


def _shown(name: str) -> str:
    return json.dumps(name[:40])


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, FIELDS, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(FIELDS)}"
