"""Proving that an erased text is gone: what to look for, the search, what living memories explain.

Source: docs/specs/memory.md, *Erasure*.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from memory.erasure import residue
from memory.erasure.report import Residue
from memory.storage.sql import number
from memory.text.fts import stem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import apsw

    from memory.erasure.choosing import Choice, Doomed
    from memory.erasure.report import EraseReport
    from memory.erasure.residue import Needle, Scan
    from memory.seams import Env
    from memory.storage.db import Db

log = logging.getLogger("covey.memory.erasing")


def needles_of(connection: apsw.Connection, choice: Choice, env: Env) -> list[Needle]:
    """What each chosen memory's text is looked for by afterwards; read before it is erased."""
    known: dict[str, tuple[str, int]] = {}

    def frequency(word: str) -> tuple[str, int]:
        lowered = word.lower()
        if lowered not in known:
            spelt = stem(connection, lowered)
            df = number(
                connection,
                "SELECT coalesce((SELECT doc FROM main_vocab WHERE term = ?1), 0)"
                " + coalesce((SELECT doc FROM low_vocab WHERE term = ?1), 0)",
                (spelt,),
            )
            known[lowered] = (spelt, df)
        return known[lowered]

    needles: list[Needle] = []
    for item, one in enumerate(choice.doomed):
        pieces = [
            str(row[0])
            for row in connection.execute(
                "SELECT text FROM chunk WHERE memory = ?1 UNION ALL"
                " SELECT title FROM memory WHERE id = ?1 AND title <> '' UNION ALL"
                " SELECT claim_value FROM memory WHERE id = ?1 AND claim_value IS NOT NULL",
                (one.n,),
            )
        ]
        needles += residue.prepare(item, pieces, env.rng, frequency)
    return needles


async def verify(
    db: Db,
    folder: Path,
    report: EraseReport,
    needles: Sequence[Needle],
    doomed: Sequence[Doomed],
) -> None:
    """Search every file, let living memories explain what they also hold, and report the rest.

    Args:
        db: the open database, which holds what is alive.
        folder: every file below it is searched.
        report: what was found is written into it.
        needles: of `doomed`, made before they were erased.
        doomed: what was erased.

    Raises:
        StoreError: the database cannot serve.
    """
    found = await search(folder, needles)
    if found is None:
        report.notes.append("the files could not be searched: see `covey logs`")
        return
    report.scanned_files, report.scanned_bytes = found.files, found.bytes
    explained = await db.read(partial(_living, needles=needles, found=found))
    report.residue_bytes, report.residue, report.excluded = 0, [], []
    for finding in found.findings:
        needle = needles[finding.needle]
        why = explained.get(needle.data, "")
        entry = Residue(
            doomed[needle.item].id.hex(), finding.file, finding.offset, needle.kind, why
        )
        if why:
            report.excluded.append(entry)
        else:
            report.residue.append(entry)
            report.residue_bytes += len(needle.data)
    unread = [f"{name} could not be read" for name in found.unread]
    report.notes += [note for note in unread if note not in report.notes]


async def search(folder: Path, needles: Sequence[Needle]) -> Scan | None:
    """Search all files below a folder in a process of its own; None if that failed."""
    try:
        done = await trio.run_process(
            [sys.executable, "-I", "-m", "memory.erasure.residue"],
            stdin=residue.request(folder, needles),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    except OSError as exc:
        log.warning("scan_failed", extra={"f": {"errno": exc.errno}})
        return None
    if done.returncode != 0:
        log.warning("scan_failed", extra={"f": {"code": done.returncode}})
        return None
    return residue.read_answer(done.stdout)


# ---- what living memories explain

_HOLDERS: Final = (
    ("chunk", "text"),
    ("chunk", "title"),
    ("memory", "title"),
    ("memory", "speaker"),
    ("memory", "tags"),
    ("memory", "source"),
    ("memory", "claim_value"),
    ("claim", "subject"),
    ("claim", "attribute"),
    ("idem", "key"),
    ("link", "note"),
    ("forgetting", "reason"),
    ("author", "agent"),
    ("agent", "name"),
    ("scope", "name"),
    ("grp", "name"),
    ("device", "name"),
    ("main_vocab", "term"),
    ("low_vocab", "term"),
    ("sqlite_schema", "sql"),
)
"""Where living text stands in the database."""

NAMED_MAX: Final = 200
"""Different needles that are looked up; more than this many found is a failure in any case."""


def _living(
    connection: apsw.Connection, needles: Sequence[Needle], found: Scan
) -> dict[bytes, str]:
    """Needles found that something living holds too, and what that is."""
    explained: dict[bytes, str] = {}
    seen = dict.fromkeys(needles[finding.needle].data for finding in found.findings)
    for data in list(seen)[:NAMED_MAX]:
        text = data.decode("utf-8", "ignore")
        for table, column in _HOLDERS:
            # lower(): an index spells words in lower case; instr on both covers either spelling.
            sql = (
                f"SELECT 1 FROM {table} WHERE instr({column}, ?1)"
                f" OR instr(lower({column}), ?1) LIMIT 1"
            )
            if connection.execute(sql, (text,)).fetchone() is not None:
                explained[data] = f"a living {table} holds it"
                break
    return explained
