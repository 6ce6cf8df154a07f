"""`covey import`: the notes of Markdown, text and JSON Lines files, with progress."""

from __future__ import annotations

import os
import sys

from daemon.cli import out
from daemon.cli.client import CliError
from daemon.cli.memory import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

    from daemon.cli.client import Client
    from daemon.json_types import Json

BATCH_NOTES = 200
"""Below the 256 of one call."""

BATCH_BYTES = 1024 * 1024
"""A batch's text: well below a line's limit, and progress moves."""

EXTENSIONS = (".md", ".markdown", ".txt", ".text", ".rst", ".jsonl", ".ndjson")


def configure_import(parser: argparse.ArgumentParser) -> None:
    """Arguments of `covey import`."""
    parser.add_argument("path", nargs="+", help="files or folders")
    parser.add_argument("--scope", help="where the notes belong")
    parser.add_argument("--tag", action="append", default=[], help="repeat for more")
    parser.add_argument("--dry-run", action="store_true", help="count, store nothing")
    parser.epilog = (
        "Markdown gives a note a section, text a note a paragraph, JSON Lines a note a line.\n"
        "Repeating an import stores nothing twice.\n\n"
        "examples:\n  covey import notes/ --scope handbook\n  covey import export.jsonl --dry-run"
    )


def find_files(paths: list[str]) -> list[str]:
    """Files to read, folders walked in order; hidden ones and foreign kinds are left out.

    Raises:
        CliError: a path does not exist.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                found += [
                    os.path.join(folder, name)
                    for name in sorted(names)
                    if not name.startswith(".") and name.lower().endswith(EXTENSIONS)
                ]
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise CliError(
                f"there is no {path}",
                4,
                name="not_found",
                remedy="Give a file or a folder; a relative path counts from here.",
            )
    return found


def run_import(args: argparse.Namespace) -> int:
    """Read files, store their notes, show how far it is."""
    files = find_files(args.path)
    if not files:
        raise CliError("no file to import there", 4, remedy=f"It reads {', '.join(EXTENSIONS)}.")
    total_bytes = sum(os.path.getsize(path) for path in files) or 1
    counts: dict[str, int] = {"files": 0, "notes": 0, "stored": 0, "duplicate": 0, "skipped": 0}
    client = None if args.dry_run else connect(args)
    done_bytes = 0
    for path in files:
        try:
            _import_file(path, client, args, counts)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            counts["skipped"] += 1
            reason = getattr(error, "strerror", None) or str(error)
            out.note(f"skipped {path}: {reason}")
        else:
            counts["files"] += 1
        done_bytes += os.path.getsize(path)
        _progress(done_bytes / total_bytes, counts, args)
    if sys.stderr.isatty() and not args.quiet:
        sys.stderr.write("\r\x1b[K")
    if args.json:
        out.say_json(dict(counts))
    elif args.dry_run:
        out.say(f"{counts['notes']:,} notes in {counts['files']:,} files; nothing was stored")
    else:
        known = f", {counts['duplicate']:,} were known" if counts["duplicate"] else ""
        out.say(f"{counts['stored']:,} notes from {counts['files']:,} files{known}")
    return 1 if counts["skipped"] and not counts["files"] else 0


def _import_file(
    path: str, client: Client | None, args: argparse.Namespace, counts: dict[str, int]
) -> None:
    from memory.transfer.importing import read_notes

    # The memory's JSON type is its own: the packages share no module.
    for batch in _batches(read_notes(path)):  # type: ignore[arg-type]
        notes: list[Json] = []
        for note in batch:
            fields = dict(note)
            if args.scope:
                fields["scope"] = args.scope
            if args.tag:
                tags = fields.get("tags")
                fields["tags"] = [*(tags if isinstance(tags, list) else []), *args.tag]
            notes.append(fields)
        counts["notes"] += len(notes)
        if client is None:
            continue
        for row in out.rows(client.call("memory.remember", {"notes": notes})):
            status = out.text(row.get("status"))
            counts[status] = counts.get(status, 0) + 1


def _batches(notes: Iterable[Mapping[str, Json]]) -> Iterator[list[Mapping[str, Json]]]:
    batch: list[Mapping[str, Json]] = []
    size = 0
    for note in notes:
        text = note.get("text")
        length = len(text) if isinstance(text, str) else 0
        if batch and (len(batch) >= BATCH_NOTES or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(note)
        size += length
    if batch:
        yield batch


def _progress(ratio: float, counts: dict[str, int], args: argparse.Namespace) -> None:
    if args.quiet or args.json or not sys.stderr.isatty():
        return
    bar = "█" * int(ratio * 30)
    sys.stderr.write(f"\r{bar:<30} {ratio:4.0%}  {counts['notes']:,} notes ")
    sys.stderr.flush()
