"""The report of an erasure: what went where, and what it does not reach.

Source: docs/specs/memory.md, *Erasure*.
"""

from __future__ import annotations

from typing import Final

import msgspec

DONE: Final = "done"
PARTIAL: Final = "partial"
DRY_RUN: Final = "dry_run"


class ErasedItem(msgspec.Struct, frozen=True):
    """What became, or would become, of one memory.

    Attributes:
        id: record id; as given where nothing was found.
        status: `erased` (and its group is told), `erased_group` (as its admin; the others hide it
            now and erase it in a day), `erased_here` (this machine alone), `derived` (concluded
            here from one of the others), `erased_before`, `not_found` or `not_yours`.
        title: of what a dry run found, so that a person can tell; empty afterwards.
    """

    id: str
    status: str
    title: str = ""


class Residue(msgspec.Struct, frozen=True):
    """Bytes of an erased text in a file.

    Attributes:
        id: of which memory.
        file: path below the state folder.
        offset: where it begins.
        what: `slice`, `word` or `stem`.
        explained: why it is no residue: another living memory holds it; empty if it is one.
    """

    id: str
    file: str
    offset: int
    what: str
    explained: str = ""


class EraseReport(msgspec.Struct, kw_only=True):
    """What went where.

    Attributes:
        state: `done`, `partial` (bytes may still lie in a file; it goes on by itself) or `dry_run`.
        items: the memories, at most 256 of them.
        memories: how many were erased, derived ones included.
        told: how many of them the groups are told to erase.
        here: how many are erased on this machine alone.
        derived: how many own ones went because they were concluded from an erased one.
        flagged: others' memories that were, and stay: marked, with less trust.
        chunks: pieces of text.
        vectors: their vectors.
        links: links and forget records about them.
        backups: copies in the state folder (backups, old states) that lost their keys.
        may_hold: devices (hex) that may still hold a copy: the other members of the groups.
        scanned_files: files searched afterwards.
        scanned_bytes: their size.
        residue_bytes: bytes of the texts found in them; None if the search could not be made.
        residue: where.
        excluded: findings that other living memories explain.
        notes: what else a person should know.
    """

    state: str
    items: list[ErasedItem] = []
    memories: int = 0
    told: int = 0
    here: int = 0
    derived: int = 0
    flagged: int = 0
    chunks: int = 0
    vectors: int = 0
    links: int = 0
    backups: int = 0
    may_hold: list[str] = []
    scanned_files: int = 0
    scanned_bytes: int = 0
    residue_bytes: int | None = None
    residue: list[Residue] = []
    excluded: list[Residue] = []
    notes: list[str] = []


def explain(report: EraseReport, *, clean: bool) -> None:
    """Add to a report what else a person should know; `clean`: nothing is left to clean up."""
    if not clean:
        report.notes.append(
            "another process reads the database, so its log still holds the texts:"
            " they go as soon as it ends"
        )
    if report.here:
        report.notes.append(
            "what other devices wrote is erased on this machine only: its author can erase it"
            " everywhere, on the device that wrote it, and an admin above it for the group"
        )
    if any(item.status == "erased_group" for item in report.items):
        report.notes.append(
            "other members hide it as soon as they hear of it and erase it a day later, unless"
            " somebody above this device takes its word back by removing it"
        )
    if report.may_hold:
        report.notes.append(
            "other members erase it when they hear of it; what somebody read, copied, or keeps in"
            " a backup elsewhere is out of reach"
        )
