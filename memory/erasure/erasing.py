"""Erasing memories for a person or an agent: choose, erase, clean up, prove, report.

Theory of operation. One transaction takes a memory out of all tables and puts its id into `erased`
and `erasing`; from then on it is gone for good, whatever happens to this process. What is left is
cleaning: its pages in the write-ahead log, its keys in backups, its rows in the behaviour log. Ids
stay in `erasing` until that is done; a task does it for erasures that came by replication, after a
crash, after a cancelled call, and where another process held the log open: until then an erasure is
`partial`. Last, a search of all files of the node for what the text consisted of (`residue`).

What this device wrote itself is also told to the group, by a signed erase record. A peer's memory,
or one that another device of the same person wrote, is erased here alone, unless the person asks as
an admin of the group whose standing is above the author's: then the group is told first, so that a
crash in between loses nothing, and all members erase it a day later. Nobody is told that something
is "deleted everywhere": the report names who may still hold it.
Source: docs/specs/memory.md, *Erasure*.
"""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

import logging
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

import msgspec
import trio

from memory.bodies import ForgetBody
from memory.erasure import residue
from memory.errors import RefusedError, StoreError
from memory.recall.filters import find_authors
from memory.records.erase import HERE, erase_all, own_derived
from memory.records.writing import check_id, entry_draft, find_record
from memory.scopes import allows, write_scope
from memory.storage.sql import blobs, integers, number
from memory.text.cleaning import clean_line
from memory.text.fts import stem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    import apsw

    from memory.erasure.residue import Needle, Scan
    from memory.model import Caller
    from memory.records.replica import Replica
    from memory.seams import Env, Offload, Receipt
    from memory.storage.db import Db
    from memory.storage.txn import Txn

log = logging.getLogger("covey.memory.erasing")

ERASE_IDS_MAX: Final = 256
"""Ids named in one call; a selection by author or subject may find more."""

BATCH: Final = 50
"""Memories erased in one transaction: secure deletion takes about 2 ms each, and others wait."""

SHOWN_MAX: Final = 256
"""Memories listed one by one in a report; the counts are of all."""

RETRY_S: Final = 2.0
"""Wait before cleaning is tried again while somebody reads the database."""

DONE: Final = "done"
PARTIAL: Final = "partial"
DRY_RUN: Final = "dry_run"


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


class Progress(Protocol):
    """Where a running call reports how far it is."""

    async def __call__(self, done: int, total: int | None, message: str) -> None:
        """Send `done` of `total` with a short message."""
        ...


class Ruling(Protocol):
    """What replication lets this device do as an admin (shape of `replication.membership`)."""

    async def erasable(self, group: bytes, ids: Sequence[bytes]) -> list[bytes]:
        """Those of the records that an admin's word has erased by every member."""
        ...

    async def erase(self, group: bytes, ids: Sequence[bytes]) -> list[bytes]:
        """Give that word."""
        ...


class Outlets(NamedTuple):
    """What erasing needs of the parts that `memory` does not know.

    Attributes:
        tell: has replication tell a group what of ours was erased; the other members' keys.
        shown: forgets in the behaviour log that these records were ever shown.
        shred: destroys these records' keys in all copies here; how many copies (blocking).
        ruling: gives an admin's word on what others wrote.
        quoted: overwrites what quotes these records elsewhere; whether nothing is left of it.
    """

    tell: Callable[[bytes], Awaitable[Sequence[bytes]]]
    shown: Callable[[Sequence[bytes]], Awaitable[None]] | None = None
    shred: Callable[[Sequence[bytes]], int] | None = None
    ruling: Ruling | None = None
    quoted: Callable[[Sequence[bytes]], Awaitable[bool]] | None = None


class _Doomed(NamedTuple):
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


class _Choice(NamedTuple):
    doomed: list[_Doomed]
    other: list[ErasedItem]


class Eraser:
    """Erases.

    Args:
        db: the open database.
        replica: the record store over it.
        env: random numbers of the verifier.
        device: this node's key.
        state_dir: every file below it is searched afterwards.
        offload: where blocking work runs.
        outlets: replication, behaviour log and backups.
    """

    def __init__(
        self,
        db: Db,
        replica: Replica,
        env: Env,
        device: bytes,
        state_dir: Path,
        offload: Offload,
        outlets: Outlets,
    ) -> None:
        self._db = db
        self._replica = replica
        self._env = env
        self._device = device
        self._state_dir = state_dir
        self._offload = offload
        self._outlets = outlets
        self._due = trio.Event()
        self._cleaning = trio.Lock()
        self._calls = 0
        """Calls of `erase` under way."""
        replica.on_erased(self._due_now)

    # ---- cleaning up behind a transaction

    def _due_now(self) -> None:
        self._due.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Finish erasures that nobody waits for, until cancelled."""
        self._due.set()  # of the run before this one
        task_status.started()
        while True:
            await self._due.wait()
            self._due = trio.Event()
            if self._calls:
                continue  # they clean up themselves, and wake us if they do not get to it
            try:
                clean, _ = await self.clean_up()
            except StoreError as exc:
                log.warning("erasure_waits", extra={"f": {"why": exc.reason}})
                clean = False
            if not clean:
                await trio.sleep(RETRY_S)
                self._due.set()

    async def clean_up(self) -> tuple[bool, int]:
        """Take what was erased out of log, backups and behaviour.

        Returns:
            Whether nothing is left, and in how many backups keys were destroyed.

        Raises:
            StoreError: the database cannot serve.
        """
        async with self._cleaning:
            left = await self._db.read(lambda c: blobs(c, "SELECT id FROM erasing ORDER BY id"))
            if not left:
                return True, 0
            copies = 0
            if self._outlets.shred is not None:
                copies = await self._offload.run(partial(self._outlets.shred, left))
            if self._outlets.shown is not None:
                await self._outlets.shown(left)
            if self._outlets.quoted is not None and not await self._outlets.quoted(left):
                return False, copies
            if not await self._db.settle_wal() or self._replica.erased_behind:
                return False, copies

            def unit(connection: apsw.Connection) -> None:
                connection.executemany("DELETE FROM erasing WHERE id = ?", [(one,) for one in left])

            await self._db.write(unit)
            return True, copies

    # ---- erasing

    async def erase(
        self,
        who: Caller,
        what: EraseWhat,
        *,
        dry_run: bool = False,
        for_group: bool = False,
        receipt: Receipt[EraseReport] | None = None,
        progress: Progress | None = None,
    ) -> EraseReport:
        """Erase memories for ever, and say what went where.

        An agent may erase what it wrote itself; the person everything: what this device wrote is
        erased on all replicas, anything else on this machine.

        Args:
            who: the caller; that it may erase at all was checked.
            what: which memories.
            dry_run: list and count only.
            for_group: have what others wrote erased by every member, where this device is an admin
                above its author.
            receipt: kept with the report.
            progress: told how many are done.

        Raises:
            RefusedError: `invalid` or `forbidden`.
            StoreError: nothing more was erased than `progress` heard of.
        """
        _check(who, what)
        choice = await self._db.read(lambda c: _choose(c, who, what))
        if for_group:
            choice = await self._ruled(who, choice)
        report = await self._db.read(lambda c: _count(c, choice))
        if dry_run:
            report.state = DRY_RUN
            return report
        self._calls += 1
        try:
            await self._carry_out(who, choice, report, progress)
        finally:
            self._calls -= 1
            self._due.set()
        if receipt is not None:
            await self._replica.transact(
                lambda txn: self._replica.put_receipt(txn, receipt.key, receipt.encode(report))
            )
        return report

    async def _ruled(self, who: Caller, choice: _Choice) -> _Choice:
        """Mark what this device may have erased by all members."""
        if not who.is_owner or self._outlets.ruling is None:
            raise RefusedError("forbidden", "only the person erases as an admin")
        allowed: set[bytes] = set()
        for group in sorted({one.group for one in choice.doomed}):
            ids = [one.id for one in choice.doomed if one.group == group and not one.own]
            allowed.update(await self._outlets.ruling.erasable(group, ids))
        doomed = [one._replace(ruled=one.id in allowed) for one in choice.doomed]
        return choice._replace(doomed=doomed)

    async def _rule(self, doomed: Sequence[_Doomed]) -> None:
        for group in sorted({one.group for one in doomed if one.ruled}):
            assert self._outlets.ruling is not None, "asked before"
            ids = [one.id for one in doomed if one.ruled and one.group == group]
            await self._outlets.ruling.erase(group, ids)

    async def _carry_out(
        self, who: Caller, choice: _Choice, report: EraseReport, progress: Progress | None
    ) -> None:
        needles = await self._db.read(partial(_needles, choice=choice, env=self._env))
        doomed = choice.doomed
        await self._rule(doomed)
        for at in range(0, len(doomed), BATCH):
            batch = doomed[at : at + BATCH]
            await self._replica.transact(partial(_erase_batch, batch=batch))
            if progress is not None:
                await progress(at + len(batch), len(doomed), "erased")
        self._env.fault("erase.committed")
        await self._tell(report, doomed)
        await self._ask_own_devices(who, report, doomed)
        self._env.fault("erase.told")
        clean, report.backups = await self.clean_up()
        self._env.fault("erase.cleaned")
        await self._verify(report, needles, doomed)
        if report.residue:
            # Another device's copies may have gone at its word meanwhile, and wait to be cleaned.
            clean, _ = await self.clean_up()
            await self._verify(report, needles, doomed)
        # What could not be searched is not known to be gone.
        report.state = DONE if clean and report.residue_bytes == 0 else PARTIAL
        report.items = [msgspec.structs.replace(item, title="") for item in report.items]
        _explain(report, clean=clean)
        log.info(
            "erased",
            extra={
                "f": {
                    "memories": report.memories,
                    "state": report.state,
                    "residue": report.residue_bytes,
                }
            },
        )

    async def _tell(self, report: EraseReport, doomed: Sequence[_Doomed]) -> None:
        holders: set[bytes] = set()
        for group in sorted({one.group for one in doomed}):
            holders.update(await self._outlets.tell(group))
        report.may_hold = sorted(key.hex() for key in holders)

    async def _ask_own_devices(
        self, who: Caller, report: EraseReport, doomed: Sequence[_Doomed]
    ) -> None:
        """What another device of this person wrote is hidden on all replicas: a forget record."""
        theirs = [one for one in doomed if one.relation == "own_device" and not one.ruled]

        def unit(txn: Txn, group: bytes, ids: list[bytes]) -> None:
            body = ForgetBody(clean_line(who.agent), ids, None)
            self._replica.append_in(txn, group, [entry_draft(body)])

        for group in sorted({one.group for one in theirs}):
            ids = sorted(one.id for one in theirs if one.group == group)
            for at in range(0, len(ids), ERASE_IDS_MAX):
                part = ids[at : at + ERASE_IDS_MAX]
                try:
                    await self._replica.transact(partial(unit, group=group, ids=part))
                except RefusedError as exc:
                    report.notes.append(f"its other replicas could not be asked to hide it: {exc}")

    # ---- proving

    async def _verify(
        self, report: EraseReport, needles: Sequence[Needle], doomed: Sequence[_Doomed]
    ) -> None:
        """Search every file, and let living memories explain what they also hold."""
        found = await search(self._state_dir, needles)
        if found is None:
            report.notes.append("the files could not be searched: see `covey logs`")
            return
        report.scanned_files, report.scanned_bytes = found.files, found.bytes
        explained = await self._db.read(partial(_living, needles=needles, found=found))
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


def _explain(report: EraseReport, *, clean: bool) -> None:
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


def _erase_batch(txn: Txn, batch: Sequence[_Doomed]) -> None:
    for one in batch:
        erase_all(txn, one.id, HERE, 0)


# ---- choosing


def _check(who: Caller, what: EraseWhat) -> None:
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


def _choose(connection: apsw.Connection, who: Caller, what: EraseWhat) -> _Choice:
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
    chosen: dict[int, _Doomed] = {}
    for memory in dict.fromkeys(rows):
        one, allowed = _judge(connection, who, memory)
        if allowed:
            chosen[memory] = one
        elif what.ids and allows(who.read, _scope_of(connection, memory)):
            other.append(ErasedItem(one.id.hex(), "not_yours"))
        elif what.ids:
            other.append(ErasedItem(one.id.hex(), "not_found"))
    _add_derived(connection, chosen)
    return _Choice(list(chosen.values()), other)


def _judge(connection: apsw.Connection, who: Caller, memory: int) -> tuple[_Doomed, bool]:
    row = connection.execute(_DOOMED, (memory,)).fetchone()
    assert row is not None, "found in this transaction"
    n, ident, group, title, relation, agent, scope, group_name, home = row
    written = write_scope(group_name, scope, home=bool(home))
    mine = relation == "own" and agent == clean_line(who.agent)
    allowed = (who.is_owner or mine) and allows(who.write, written)
    return _Doomed(n, ident, group, title, relation == "own", relation), allowed


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


def _add_derived(connection: apsw.Connection, chosen: dict[int, _Doomed]) -> None:
    """What this device concluded from them goes too."""
    pending = [one.id for one in chosen.values()]
    while pending:
        for ident in own_derived(connection, pending.pop()):
            n = number(connection, "SELECT n FROM record WHERE id = ?", (ident,))
            if n in chosen:
                continue
            row = connection.execute(_DOOMED, (n,)).fetchone()
            assert row is not None, "own_derived names memories"
            chosen[n] = _Doomed(n, ident, row[2], row[3], own=True, relation="own", derived=True)
            pending.append(ident)


# ---- counting and needles


def _count(connection: apsw.Connection, choice: _Choice) -> EraseReport:
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


def _status(one: _Doomed) -> str:
    if one.derived:
        return "derived"
    if one.own:
        return "erased"
    return "erased_group" if one.ruled else "erased_here"


def _label(connection: apsw.Connection, one: _Doomed) -> str:
    text = one.title or str(
        connection.execute("SELECT text FROM chunk WHERE memory = ? AND i = 0", (one.n,)).get or ""
    )
    return clean_line(text)[:80]


def _needles(connection: apsw.Connection, choice: _Choice, env: Env) -> list[Needle]:
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
