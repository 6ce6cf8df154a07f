"""`covey export`: the memory as JSON Lines, Markdown or a plain SQLite file."""

from __future__ import annotations

import json
import os
import sys

from daemon.cli import out
from daemon.cli.backup import Meter
from daemon.cli.client import CliError
from daemon.cli.memory import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    import sqlite3
    from collections.abc import Callable, Iterator
    from typing import IO

    from daemon.json_types import Json

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".md": "md", ".db": "sqlite", ".sqlite": "sqlite"}
PAGE = 200

SCHEMA = """
PRAGMA user_version = 1;
CREATE TABLE scope(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE author(
  id INTEGER PRIMARY KEY, agent TEXT NOT NULL, device TEXT NOT NULL, device_name TEXT NOT NULL,
  relation TEXT NOT NULL, UNIQUE (agent, device, relation)
);
CREATE TABLE claim(
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL REFERENCES scope(id), subject TEXT NOT NULL,
  attribute TEXT NOT NULL, UNIQUE (scope, subject, attribute)
);
CREATE TABLE memory(
  id INTEGER PRIMARY KEY, record TEXT NOT NULL UNIQUE, scope INTEGER NOT NULL REFERENCES scope(id),
  author INTEGER NOT NULL REFERENCES author(id), kind TEXT NOT NULL, role TEXT NOT NULL,
  status TEXT NOT NULL, trust REAL NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL,
  tags TEXT NOT NULL, speaker TEXT, thread TEXT, pos INTEGER NOT NULL, at TEXT NOT NULL,
  created TEXT NOT NULL, valid_from TEXT, valid_to TEXT, expires TEXT,
  claim INTEGER REFERENCES claim(id), claim_value TEXT,
  source_uri TEXT, source_tool TEXT, source_sha256 TEXT
);
CREATE INDEX memory_at ON memory(at);
CREATE TABLE chunk(
  memory INTEGER NOT NULL REFERENCES memory(id), i INTEGER NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (memory, i)
);
CREATE TABLE link(src TEXT NOT NULL, dst TEXT NOT NULL, type TEXT NOT NULL, note TEXT NOT NULL);
CREATE INDEX link_src ON link(src);
CREATE INDEX link_dst ON link(dst);
CREATE TABLE about(key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
"""Tables of the SQLite form: ordinary ones, for any SQLite since 3.6; docs/guides/backup.md."""


def configure_export(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey export`."""
    parser.add_argument("file", help="file to write; `-` for standard output")
    parser.add_argument(
        "--format", choices=["jsonl", "md", "sqlite"], help="default by the file's ending"
    )
    parser.add_argument("--scope", action="append", metavar="NAME", help="only this scope; repeat")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.epilog = (
        "JSON Lines come back with `covey import`. What was forgotten, hidden or quarantined is"
        " not in it.\n\n"
        "examples:\n  covey export notes.jsonl\n  covey export notes.db --scope handbook"
    )


def run_export(args: argparse.Namespace) -> int:
    """Write the file."""
    form = _format(args)
    if args.file == "-":
        if form == "sqlite":
            raise CliError("a database cannot go to standard output", 2, remedy="Name a file.")
        count = _write_text(sys.stdout, form, _memories(args, Meter(quiet=True)))
        return 0 if count >= 0 else 1
    if os.path.exists(args.file) and not args.force:
        raise _exists(args.file)
    meter = Meter(quiet=args.quiet or args.json)
    try:
        count = _write_file(args, form, _memories(args, meter))
    finally:
        meter.clear()
    size = os.path.getsize(args.file)
    if args.json:
        out.say_json({"file": args.file, "format": form, "memories": count, "bytes": size})
    else:
        out.say(f"{count:,} memories in {args.file}, {out.size(size)}")
    return 0


def _format(args: argparse.Namespace) -> str:
    if args.format:
        return str(args.format)
    ending = os.path.splitext(args.file)[1].lower()
    if args.file != "-" and ending not in FORMATS:
        raise CliError(
            "the file's ending does not say which format it is to have",
            2,
            remedy="Add --format jsonl, md or sqlite.",
        )
    return FORMATS.get(ending, "jsonl")


def _exists(path: str) -> CliError:
    return CliError(
        f"{path} is there already",
        6,
        name="conflict",
        remedy="Choose another name, or --force to replace it.",
    )


def _memories(args: argparse.Namespace, meter: Meter) -> Iterator[dict[str, Json]]:
    client = connect(args)
    params: dict[str, Json] = {"limit": PAGE}
    if args.scope:
        params["scope"] = list(args.scope)
    done = 0
    while True:
        page = out.mapping(client.call("memory.export", params))
        for memory in out.rows(page.get("memories")):
            done += 1
            yield memory
        meter(done, int(out.number(page.get("total"))), "memories")
        cursor = page.get("cursor")
        if cursor is None:
            return
        params["cursor"] = cursor


def _write_file(args: argparse.Namespace, form: str, memories: Iterator[dict[str, Json]]) -> int:
    """Write beside the name, sync, rename: a file of that name is a whole export."""
    path = args.file
    partial = f"{path}.{os.getpid()}.partial"
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", newline="\n") as file:
            if form == "sqlite":
                count = _write_sqlite(partial, memories)
            else:
                count = _write_text(file, form, memories)
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(partial, path, force=args.force)
    except OSError as error:
        raise CliError(
            f"{path} cannot be written: {error.strerror}", 1, remedy="Choose another place."
        ) from None
    finally:
        for left in (partial, f"{partial}-journal"):
            if os.path.exists(left):
                os.unlink(left)
    return count


def _put_in_place(partial: str, path: str, *, force: bool) -> None:
    if force:
        os.replace(partial, path)
        return
    try:
        # Unlike a rename it never replaces what somebody put there meanwhile.
        os.link(partial, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:
        # A file system without hard links (FAT).
        if os.path.exists(path):
            raise _exists(path) from None
        os.rename(partial, path)


def text_of(memory: dict[str, Json]) -> str:
    """The pieces, joined."""
    chunks = memory.get("chunks")
    return "".join(str(chunk) for chunk in chunks) if isinstance(chunks, list) else ""


def _write_text(file: IO[str], form: str, memories: Iterator[dict[str, Json]]) -> int:
    write: Callable[[dict[str, Json]], str] = json_line if form == "jsonl" else markdown_section
    count = 0
    for memory in memories:
        file.write(write(memory))
        count += 1
    return count


# ---- JSON Lines


def json_line(memory: dict[str, Json]) -> str:
    """A line that `covey import` reads: a note's fields, and where it is from under `covey`.

    Who imports it signs it anew, so author, trust and links do not come back as such; the source
    says where the note is from, if it named none itself.
    """
    note: dict[str, Json] = {"text": text_of(memory)}
    for name in ("title", "tags", "scope", "kind", "speaker", "thread", "at", "valid_from",
                 "valid_to", "claim"):  # fmt: skip
        value = memory.get(name)
        if value not in (None, "", []):
            note[name] = value
    if int(out.number(memory.get("pos"))) > 0:
        note["pos"] = memory.get("pos")
    note["source"] = _source(memory)
    note["covey"] = {
        name: memory[name]
        for name in ("id", "agent", "device", "device_name", "relation", "role", "status", "trust",
                     "created", "expires", "links", "derived_from")
        if memory.get(name) not in (None, [])
    }  # fmt: skip
    return json.dumps(note, ensure_ascii=False, separators=(",", ":")) + "\n"


def _source(memory: dict[str, Json]) -> dict[str, Json]:
    own = {key: value for key, value in out.mapping(memory.get("source")).items() if value}
    author = f"{memory.get('agent')}@{memory.get('device_name')}"
    return {"uri": f"covey:{memory.get('id')}", "tool": author[:128], **own}


# ---- Markdown


def markdown_section(memory: dict[str, Json]) -> str:
    """A section a note: heading, a line of provenance, the text."""
    text = text_of(memory)
    title = str(memory.get("title") or "") or " ".join(text.split())[:60]
    scope, at, trust = memory.get("scope"), memory.get("at"), out.number(memory.get("trust"))
    who = f"{memory.get('agent')}@{memory.get('device_name')}"
    line = f"*{at} · {scope} · {who} · trust {trust:.2f} · {str(memory.get('id'))[:8]}*"
    return f"## {' '.join(title.split())}\n\n{line}\n\n{text.strip()}\n\n"


# ---- SQLite


def _write_sqlite(path: str, memories: Iterator[dict[str, Json]]) -> int:
    import sqlite3

    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.executescript(SCHEMA)
        database.execute("BEGIN")
        count = 0
        for count, memory in enumerate(memories, 1):  # noqa: B007 - the number of them
            _insert(database, memory)
        database.execute("INSERT INTO about VALUES ('format', 'covey export 1')")
        database.execute("INSERT INTO about VALUES ('memories', ?)", (str(count),))
        database.execute("COMMIT")
    except sqlite3.Error as error:
        raise CliError(f"the database cannot be written: {error}", 1) from None
    finally:
        database.close()
    return count


def _insert(database: sqlite3.Connection, memory: dict[str, Json]) -> None:
    scope = _row(database, "scope", ("name",), (_text(memory, "scope"),))
    author = _row(
        database,
        "author",
        ("agent", "device", "relation"),
        tuple(_text(memory, name) for name in ("agent", "device", "relation")),
        ("device_name", _text(memory, "device_name")),
    )
    claim = out.mapping(memory.get("claim"))
    claim_row = None
    if claim:
        key = (scope, _text(claim, "subject"), _text(claim, "attribute"))
        claim_row = _row(database, "claim", ("scope", "subject", "attribute"), key)
    source = out.mapping(memory.get("source"))
    values = {
        "record": _text(memory, "id"), "scope": scope, "author": author,
        "kind": _text(memory, "kind"), "role": _text(memory, "role"),
        "status": _text(memory, "status"), "trust": out.number(memory.get("trust")),
        "title": _text(memory, "title"), "text": text_of(memory),
        "tags": json.dumps(memory.get("tags") or [], ensure_ascii=False),
        "speaker": memory.get("speaker"), "thread": memory.get("thread"),
        "pos": int(out.number(memory.get("pos"))), "at": _text(memory, "at"),
        "created": _text(memory, "created"), "valid_from": memory.get("valid_from"),
        "valid_to": memory.get("valid_to"), "expires": memory.get("expires"),
        "claim": claim_row, "claim_value": claim.get("value"),
        "source_uri": source.get("uri"), "source_tool": source.get("tool"),
        "source_sha256": source.get("sha256"),
    }  # fmt: skip
    marks = ", ".join(f":{name}" for name in values)
    # The names are this file's own; the values are bound.
    inserted = database.execute(
        f"INSERT INTO memory({', '.join(values)}) VALUES ({marks})",  # noqa: S608
        values,
    )
    row = inserted.lastrowid
    chunks = memory.get("chunks")
    pieces = [str(chunk) for chunk in chunks] if isinstance(chunks, list) else []
    database.executemany(
        "INSERT INTO chunk VALUES (?, ?, ?)", [(row, i, text) for i, text in enumerate(pieces)]
    )
    links = [
        (_text(memory, "id"), _text(link, "dst"), _text(link, "type"), _text(link, "note"))
        for link in out.rows(memory.get("links"))
    ]
    links += [
        (_text(memory, "id"), str(parent), "derived_from", "")
        for parent in (memory.get("derived_from") or [])  # type: ignore[union-attr]
    ]
    database.executemany("INSERT INTO link VALUES (?, ?, ?, ?)", links)


def _row(
    database: sqlite3.Connection,
    table: str,
    names: tuple[str, ...],
    key: tuple[str | int, ...],
    more: tuple[str, str] | None = None,
) -> int:
    """Row of a key, made on first use."""
    where = " AND ".join(f"{name} = ?" for name in names)
    select = f"SELECT id FROM {table} WHERE {where}"  # noqa: S608 - this file's own names
    found = database.execute(select, key).fetchone()
    if found is not None:
        return int(found[0])
    columns = names if more is None else (*names, more[0])
    values = key if more is None else (*key, more[1])
    marks = ", ".join("?" * len(columns))
    insert = f"INSERT INTO {table}({', '.join(columns)}) VALUES ({marks})"  # noqa: S608
    return int(database.execute(insert, values).lastrowid or 0)


def _text(fields: dict[str, Json], name: str) -> str:
    value = fields.get(name)
    return "" if value is None else str(value)
