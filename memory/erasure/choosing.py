"""Which memories a call erases: who may name what, and what is concluded from it.

All of it is read in one transaction, before anything is erased. Source: docs/specs/memory.md,
*Erasure*.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from memory.erasure.report import DONE, ErasedItem, EraseReport
from memory.errors import RefusedError
from memory.recall.filters import find_authors
from memory.records.erase import own_derived
from memory.records.noting import check_id
from memory.records.writing import find_record
from memory.scopes import allows, write_scope
from memory.storage.sql import integers, number
from memory.text.cleaning import clean_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from memory.model import Caller

ERASE_IDS_MAX: Final = 256
"""Ids named in one call; a selection by author or subject may find more."""

SHOWN_MAX: Final = 256
"""Memories listed one by one in a report; the counts are of all."""


class EraseWhat(msgspec.Struct, frozen=True, kw_only=True):
    """What to erase; exactly one field is given.

    Attributes:
        ids: full ids or unique prefixes.
        author: agent, `agent@device`, or a device's name, peer id or key.
        subject: claim subject, or a phrase that the text holds; letters' case does not matter.
    """

    ids: tuple[str, ...] = ()
    author: str | None = None
    subject: str | None = None


class Doomed(NamedTuple):
    """A memory to erase."""

    n: int
    id: bytes
    group: bytes
    title: str
    own: bool
    """Written by this device, so that an erase record of ours has effect."""
    relation: str
    derived: bool = False
    ruled: bool = False
    """Erased by every member, at this admin's word."""


class Choice(NamedTuple):
    """What a call came to.

    Attributes:
        doomed: what it erases, what was concluded from the named ones last.
        other: what it was asked for and does not erase, and why.
    """

    doomed: list[Doomed]
    other: list[ErasedItem]


# ---- choosing


def check(who: Caller, what: EraseWhat) -> None:
    """Refuse what no memory needs to be read for.

    Raises:
        RefusedError: `invalid` or `forbidden`.
    """
    given = [bool(what.ids), what.author is not None, what.subject is not None]
    if sum(given) != 1:
        raise RefusedError("invalid", "give ids, or an author, or a subject")
    if len(what.ids) > ERASE_IDS_MAX:
        raise RefusedError("invalid", f"ids: at most {ERASE_IDS_MAX} at a time")
    if what.subject is not None and len(what.subject.strip()) < 3:
        raise RefusedError("invalid", "a subject of less than 3 characters is in too many texts")
    if what.author is not None and not who.is_owner:
        raise RefusedError("forbidden", "only the person erases by author")


_DOOMED: Final = (
    "SELECT m.id, r.id, g.id, m.title, a.class, a.agent, s.name, g.name, g.home FROM memory m"
    " JOIN record r ON r.n = m.id JOIN author a ON a.id = m.author JOIN scope s ON s.id = m.scope"
    " JOIN grp g ON g.n = s.grp WHERE m.id = ?"
)


def choose(connection: apsw.Connection, who: Caller, what: EraseWhat) -> Choice:
    """The memories that `what` names and the caller may erase, and own ones concluded from them.

    Raises:
        RefusedError: `invalid`: an id is none, or its prefix is not unique.
    """
    other: list[ErasedItem] = []
    if what.author is not None:
        rows = [
            memory
            for author in find_authors(connection, what.author)
            for memory in integers(
                connection, "SELECT id FROM memory WHERE author = ? ORDER BY id", (author,)
            )
        ]
    elif what.subject is not None:
        rows = _about(connection, what.subject)
    else:
        rows = _named(connection, what.ids, other)
    chosen: dict[int, Doomed] = {}
    for memory in dict.fromkeys(rows):
        one, allowed = _judge(connection, who, memory)
        if allowed:
            chosen[memory] = one
        elif what.ids and allows(who.read, _scope_of(connection, memory)):
            other.append(ErasedItem(one.id.hex(), "not_yours"))
        elif what.ids:
            other.append(ErasedItem(one.id.hex(), "not_found"))
    _add_derived(connection, chosen)
    return Choice(list(chosen.values()), other)


def _judge(connection: apsw.Connection, who: Caller, memory: int) -> tuple[Doomed, bool]:
    row = connection.execute(_DOOMED, (memory,)).fetchone()
    assert row is not None, "found in this transaction"
    n, ident, group, title, relation, agent, scope, group_name, home = row
    written = write_scope(group_name, scope, home=bool(home))
    mine = relation == "own" and agent == clean_line(who.agent)
    allowed = (who.is_owner or mine) and allows(who.write, written)
    return Doomed(n, ident, group, title, relation == "own", relation), allowed


def _scope_of(connection: apsw.Connection, memory: int) -> str:
    row = connection.execute(_DOOMED, (memory,)).fetchone()
    assert row is not None, "found in this transaction"
    return write_scope(row[7], row[6], home=bool(row[8]))


def _named(connection: apsw.Connection, ids: Sequence[str], other: list[ErasedItem]) -> list[int]:
    rows = []
    for written in ids:
        record_id = find_record(connection, written)
        if record_id is not None:
            rows.append(number(connection, "SELECT n FROM record WHERE id = ?", (record_id,)))
            continue
        lowered = check_id(written)
        whole = bytes.fromhex(lowered) if len(lowered) == 64 else b""
        gone = connection.execute("SELECT 1 FROM erased WHERE id = ?", (whole,)).get
        other.append(ErasedItem(lowered, "erased_before" if gone else "not_found"))
    return rows


def _about(connection: apsw.Connection, subject: str) -> list[int]:
    """Memories whose claim is about it, or whose words hold it as a phrase.

    Every text is read: the index knows stems, and lacks what is forgotten or barely trusted.
    """
    parts = [re.escape(part) for part in subject.casefold().split()]
    phrase = re.compile(r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)")
    wanted = " ".join(subject.casefold().split())
    found: list[int] = []
    rows = cast(
        "list[tuple[int, str]]",
        connection.execute(
            "SELECT m.id, c.subject FROM memory m JOIN claim c ON c.id = m.claim ORDER BY m.id"
        ).fetchall(),
    )
    found += [memory for memory, name in rows if " ".join(name.casefold().split()) == wanted]
    current, text = -1, ""
    for memory, heading, piece in connection.execute(
        "SELECT c.memory, coalesce(m.title, '') || ' | ' || coalesce(m.speaker, '') || ' | '"
        " || coalesce(m.tags, '') || ' | ' || coalesce(m.claim_value, '') || ' | ', c.text"
        " FROM chunk c JOIN memory m ON m.id = c.memory ORDER BY c.memory, c.i"
    ):
        if memory != current:
            if phrase.search(text.casefold()):
                found.append(current)
            current, text = cast("int", memory), str(heading)
        text += str(piece)
    if phrase.search(text.casefold()):
        found.append(current)
    return found


def _add_derived(connection: apsw.Connection, chosen: dict[int, Doomed]) -> None:
    """What this device concluded from them goes too."""
    pending = [one.id for one in chosen.values()]
    while pending:
        for ident in own_derived(connection, pending.pop()):
            n = number(connection, "SELECT n FROM record WHERE id = ?", (ident,))
            if n in chosen:
                continue
            row = connection.execute(_DOOMED, (n,)).fetchone()
            assert row is not None, "own_derived names memories"
            chosen[n] = Doomed(n, ident, row[2], row[3], own=True, relation="own", derived=True)
            pending.append(ident)


# ---- counting


def count(connection: apsw.Connection, choice: Choice) -> EraseReport:
    """A report of what the choice comes to, with titles: as a dry run shows it."""
    report = EraseReport(state=DONE, items=list(choice.other))
    ids = {one.id for one in choice.doomed}
    flagged: set[int] = set()
    for one in choice.doomed:
        status = _status(one)
        if len(report.items) < SHOWN_MAX:
            report.items.append(ErasedItem(one.id.hex(), status, _label(connection, one)))
        report.told += one.own or one.ruled
        report.here += not (one.own or one.ruled)
        report.derived += one.derived
        report.chunks += number(connection, "SELECT count(*) FROM chunk WHERE memory = ?", (one.n,))
        report.vectors += number(
            connection,
            "SELECT count(*) FROM vec v JOIN chunk c ON c.id = v.chunk WHERE c.memory = ?",
            (one.n,),
        )
        report.links += number(
            connection,
            "SELECT (SELECT count(*) FROM link WHERE src = ?1 OR dst = ?1)"
            " + (SELECT count(*) FROM forgetting WHERE target = ?1)",
            (one.id,),
        )
        children = connection.execute(
            "SELECT p.memory, r.id FROM parent p JOIN record r ON r.n = p.memory"
            " WHERE p.parent_id = ?",
            (one.id,),
        )
        flagged.update(cast("int", memory) for memory, ident in children if ident not in ids)
    report.memories = len(choice.doomed)
    report.flagged = len(flagged)
    return report


def _status(one: Doomed) -> str:
    if one.derived:
        return "derived"
    if one.own:
        return "erased"
    return "erased_group" if one.ruled else "erased_here"


def _label(connection: apsw.Connection, one: Doomed) -> str:
    text = one.title or str(
        connection.execute("SELECT text FROM chunk WHERE memory = ? AND i = 0", (one.n,)).get or ""
    )
    return clean_line(text)[:80]
