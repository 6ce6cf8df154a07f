"""`covey verify`: is the database what its signed records say it is?

The walk is a generator that is given a connection for each slice and yields between two of them, so
that a running daemon lends a reader for some milliseconds at a time and a stopped node's file is
read straight through. It changes nothing. What it finds is counted by kind, with a few ids and what
to do; never a text. Source: docs/specs/memory.md, *Verify*.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import apsw
import msgspec

from memory.bodies import (
    ENTRY_KIND,
    EndorseBody,
    ForgetBody,
    LinkBody,
    NoteBody,
    ProfileBody,
    VerdictBody,
    decode_body_untrusted,
)
from memory.errors import DecodeError as BodyDecodeError
from memory.storage.connect import translate
from memory.storage.sql import blobs, integers, number
from p2p.errors import DecodeError, PeerError
from p2p.replication.record import (
    BodyError,
    Envelope,
    RecordWire,
    record_id,
    verify_record,
)
from p2p.replication.sealing import aead_context, open_body

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from daemon.restore import Tell
    from p2p.identity import Verifier
    from p2p.replication.record import Record

RECORDS_A_SLICE: Final = 50
"""Signatures of one slice: 5 to 8 ms."""
CHUNKS_A_SLICE: Final = 500
EXAMPLES_MAX: Final = 5

RESTORE: Final = "`covey down`, then `covey restore latest`: it puts the state aside, not away."
REINDEX: Final = (
    "`covey backup`, `covey down`, then `covey restore latest`: it makes these anew from the"
    " records."
)
_WORD: Final = re.compile(r"[a-z]{3,}")

REMEDIES: Final[dict[str, str]] = {
    "structure": RESTORE,
    "signature": RESTORE,
    "header": RESTORE,
    "row": RESTORE,
    "chain": RESTORE,
    "head": RESTORE,
    "body": RESTORE,
    "key": RESTORE,
    "projection": REINDEX,
    "orphan": REINDEX,
    "chunks": REINDEX,
    "text": REINDEX,
    "index": REINDEX,
    "counter": REINDEX,
    "erased": "Restart the daemon: it erases again what erased.ids names; then verify again.",
}
FORGED: Final = frozenset({"structure", "signature", "header", "row", "body"})
"""Checks of which a copy with a finding is not restored."""

_MEANS: Final[dict[str, str]] = {
    "structure": "SQLite finds the file damaged",
    "signature": "records that their author did not sign",
    "header": "records whose header breaks the format or has another id",
    "row": "records whose columns differ from their header",
    "chain": "records that do not follow the one before",
    "head": "logs whose head is not their last record",
    "body": "bodies that are not the ones their headers commit to",
    "key": "bodies without their key",
    "projection": "notes and links that were opened and are not in the memory",
    "orphan": "memories without a record",
    "chunks": "memories whose text lacks a piece",
    "text": "memories whose text is not the one that was signed",
    "index": "pieces of text that the full-text index has not, or has wrong",
    "counter": "scopes whose counters are wrong",
    "erased": "erased records of which something is left",
}


class Finding(msgspec.Struct, kw_only=True):
    """One kind of thing that is wrong.

    Attributes:
        check: its name.
        message: what is wrong.
        count: how many.
        examples: a few ids.
        remedy: what to do.
    """

    check: str
    message: str
    count: int
    examples: list[str]
    remedy: str


class VerifyReport(msgspec.Struct, kw_only=True):
    """What a verification found.

    Attributes:
        sound: nothing is wrong.
        records, memories, chunks, erased: how many were looked at.
        unopened: bodies whose group key is not here: their text was not looked at.
    """

    sound: bool
    records: int
    memories: int
    chunks: int
    erased: int
    unopened: int
    findings: list[Finding]


class Slice(NamedTuple):
    """How far the walk is."""

    done: int
    total: int
    what: str


class _RecordRow(NamedTuple):
    n: int
    id: bytes
    log: int
    seq: int
    hlc: int
    kind: int
    header: bytes
    sig: bytes
    state: str
    group: bytes
    author: bytes
    incarnation: int
    lane: int
    epoch: bytes | None
    opened: int | None
    ct: bytes | None
    salt: bytes | None
    wrap: bytes | None
    control_salt: bytes | None
    payload: bytes | None
    secret: bytes | None


_RecordCells = tuple[
    int, bytes, int, int, int, int, bytes, bytes, str, bytes, bytes, int, int, bytes | None,
    int | None, bytes | None, bytes | None, bytes | None, bytes | None, bytes | None, bytes | None,
]  # fmt: skip
_RECORDS: Final = (
    "SELECT r.n, r.id, r.log, r.seq, r.hlc, r.kind, r.header, r.sig, r.state, g.id, l.author,"
    " l.incarnation, l.lane, b.epoch, b.opened, b.ct, k.salt, k.wrap, c.salt, c.payload, e.secret"
    " FROM record r JOIN grp g ON g.n = r.grp JOIN log l ON l.n = r.log"
    " LEFT JOIN body b ON b.n = r.n LEFT JOIN body_key k ON k.n = r.n"
    " LEFT JOIN control c ON c.n = r.n LEFT JOIN epoch e ON e.grp = g.id AND e.id = b.epoch"
    " WHERE r.n > ? ORDER BY r.n LIMIT ?"
)


class StoreCheck:
    """One verification.

    Args:
        erased: ids in `erased.ids`.
        verify: the signature check.
        whole: also compare table and index entries (`integrity_check`): for a stopped node.
    """

    def __init__(self, erased: Sequence[bytes], verify: Verifier, *, whole: bool = False) -> None:
        self._erased = list(dict.fromkeys(erased))
        self._verify = verify
        self._whole = whole
        self._wrong: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._seen = {"records": 0, "memories": 0, "chunks": 0, "erased": 0, "unopened": 0}

    def report(self) -> VerifyReport:
        """What was found; complete when the walk has ended."""
        findings = [
            Finding(
                check=name,
                message=_MEANS[name],
                count=self._counts[name],
                examples=examples,
                remedy=REMEDIES[name],
            )
            for name, examples in self._wrong.items()
        ]
        return VerifyReport(sound=not findings, findings=findings, **self._seen)

    def walk(self) -> Generator[Slice, apsw.Connection, None]:
        """All checks, a slice at a time.

        Yields:
            How far it is; send a connection back for the next slice. No slice leaves a statement
            open. A damaged page ends the walk as a finding.
        """
        try:
            connection = yield Slice(0, 0, "structure")
            self._structure(connection)
            yield from self._records()
            yield from self._index()
            yield from self._rows()
        except (apsw.CorruptError, apsw.NotADBError) as error:
            self._note("structure", type(error).__name__)

    def forged(self, connection: apsw.Connection) -> list[Finding]:
        """What of the signed records no honest copy has, and nothing else; in one go."""
        walk = self._records()
        next(walk)
        try:
            while step(walk, connection) is not None:
                pass
        except (apsw.CorruptError, apsw.NotADBError) as error:
            self._note("structure", type(error).__name__)
        return [finding for finding in self.report().findings if finding.check in FORGED]

    def _note(self, check: str, example: bytes | str = "") -> None:
        shown = example.hex()[:16] if isinstance(example, bytes) else example
        examples = self._wrong.setdefault(check, [])
        self._counts[check] = self._counts.get(check, 0) + 1
        if shown and len(examples) < EXAMPLES_MAX:
            examples.append(shown)

    def _structure(self, connection: apsw.Connection) -> None:
        pragma = "integrity_check" if self._whole else "quick_check"
        for (found,) in connection.execute(f"PRAGMA {pragma}({EXAMPLES_MAX})").fetchall():
            if found != "ok":
                self._note("structure", str(found)[:100])

    # ---- records

    def _records(self) -> Generator[Slice, apsw.Connection, None]:
        after = done = total = 0
        while True:
            connection = yield Slice(done, total, "records")
            total = total or number(connection, "SELECT count(*) FROM record")
            page = cast(
                "list[_RecordCells]",
                connection.execute(_RECORDS, (after, RECORDS_A_SLICE)).fetchall(),
            )
            if not page:
                break
            for cells in page:
                self._record(connection, _RecordRow(*cells))
            after = page[-1][0]
            done += len(page)
        self._seen["records"] = done
        connection = yield Slice(done, total, "logs")
        for author in blobs(connection, _BAD_HEADS):
            self._note("head", author)

    def _record(self, connection: apsw.Connection, row: _RecordRow) -> None:
        if record_id(row.header) != row.id:
            self._note("header", row.id)
            return
        envelope = self._envelope(row)
        wire = RecordWire(row.header, row.sig, None if envelope is None else envelope.encode())
        try:
            record = verify_record(wire, self._verify)
        except BodyError:
            self._note("body", row.id)
            return
        except DecodeError:
            self._note("header", row.id)
            return
        except PeerError:
            self._note("signature", row.id)
            return
        self._columns(row, record)
        self._chain(connection, row, record)
        if row.kind == ENTRY_KIND and row.opened and envelope is not None:
            self._projected(connection, row, envelope)

    def _envelope(self, row: _RecordRow) -> Envelope | None:
        if row.payload is not None and row.control_salt is not None:
            return Envelope(row.control_salt, None, None, row.payload)
        if row.ct is None:
            return None
        if row.salt is None:
            self._note("key", row.id)
            return None
        return Envelope(row.salt, row.epoch, row.wrap, row.ct)

    def _columns(self, row: _RecordRow, record: Record) -> None:
        head = record.head
        signed = (head.group or record.id, head.author, head.incarnation, head.seq, head.hlc)
        stored = (row.group, row.author, row.incarnation, row.seq, row.hlc)
        if signed != stored or (head.kind, record.lane) != (row.kind, row.lane):
            self._note("row", row.id)

    def _chain(self, connection: apsw.Connection, row: _RecordRow, record: Record) -> None:
        if row.seq == 1:
            return
        before = connection.execute(
            "SELECT id, hlc FROM record WHERE log = ? AND seq = ?", (row.log, row.seq - 1)
        ).fetchone()
        # A gap is no fault: a record stands alone until the one before it comes. A void one is what
        # a fork leaves, and is known to be.
        if before is None or row.state == "void":
            return
        if before[0] != record.head.prev or cast("int", before[1]) >= row.hlc:
            self._note("chain", row.id)

    # ---- what is read off a body

    def _projected(self, connection: apsw.Connection, row: _RecordRow, envelope: Envelope) -> None:
        if row.secret is None:
            self._seen["unopened"] += 1
            return
        context = aead_context(row.group, row.author, row.incarnation, row.seq)
        try:
            body = decode_body_untrusted(open_body(envelope, row.secret, context))
        except BodyError:
            self._note("body", row.id)
            return
        except BodyDecodeError:
            self._in_table(connection, "kept", row)
            return
        match body:
            case NoteBody():
                self._note_text(connection, row, body)
            case LinkBody():
                self._in_table(connection, "link", row)
            case ForgetBody():
                self._in_table(connection, "forgetting", row)
            case ProfileBody() | VerdictBody() | EndorseBody():
                pass  # an older word may give way to a newer one

    def _in_table(self, connection: apsw.Connection, table: str, row: _RecordRow) -> None:
        sql = {
            "kept": "SELECT count(*) FROM kept WHERE n = ?",
            "link": "SELECT count(*) FROM link WHERE n = ?",
            "forgetting": "SELECT count(*) FROM forgetting WHERE n = ?",
        }[table]
        if not number(connection, sql, (row.n,)):
            self._note("projection", row.id)

    def _note_text(self, connection: apsw.Connection, row: _RecordRow, body: NoteBody) -> None:
        from memory.text.cleaning import clean

        expected = connection.execute("SELECT chunks FROM memory WHERE id = ?", (row.n,)).get
        if expected is None:
            self._note("projection", row.id)
            return
        pieces = [
            cast("str", found[0])
            for found in connection.execute(
                "SELECT text FROM chunk WHERE memory = ? ORDER BY i", (row.n,)
            )
        ]
        text = "".join(pieces)
        if len(pieces) != expected:
            self._note("chunks", row.id)
        elif text != clean(body.text) and "[REDACTED:" not in text:
            self._note("text", row.id)

    # ---- the index and the rest

    def _index(self) -> Generator[Slice, apsw.Connection, None]:
        after = done = total = 0
        while True:
            connection = yield Slice(done, total, "full text")
            total = total or number(connection, "SELECT count(*) FROM chunk")
            page = cast(
                "list[tuple[int, int, str]]",
                connection.execute(_CHUNKS, (after, CHUNKS_A_SLICE)).fetchall(),
            )
            if not page:
                break
            for chunk, tier, text in page:
                if not _is_indexed(connection, chunk, tier, text):
                    self._note("index", f"chunk {chunk}")
            after = page[-1][0]
            done += len(page)
        self._seen["chunks"] = done
        for sql in _STRAY:
            connection = yield Slice(done, total, "full text")
            for chunk in integers(connection, sql):
                self._note("index", f"chunk {chunk}")

    def _rows(self) -> Generator[Slice, apsw.Connection, None]:
        connection = yield Slice(0, 0, "memories")
        self._seen["memories"] = number(connection, "SELECT count(*) FROM memory")
        for memory in integers(connection, _ORPHANS):
            self._note("orphan", f"row {memory}")
        for scope in integers(connection, _COUNTERS):
            self._note("counter", f"scope {scope}")
        connection = yield Slice(0, 0, "erased records")
        here = set(blobs(connection, "SELECT id FROM erased"))
        every = sorted(here | set(self._erased))
        self._seen["erased"] = len(every)
        for record in self._erased:
            # One that never was here needs no entry.
            known = connection.execute("SELECT 1 FROM record WHERE id = ?", (record,)).fetchone()
            if record not in here and known is not None:
                self._note("erased", record)
        for record in every:
            if connection.execute(_LEFT, (record,)).fetchone() is not None:
                self._note("erased", record)


_BAD_HEADS: Final = (
    "SELECT l.author FROM log l WHERE l.contiguous > 0 AND NOT EXISTS (SELECT 1 FROM record r"
    " WHERE r.log = l.n AND r.seq = l.contiguous AND r.id = l.head_id)"
)
_CHUNKS: Final = (
    "SELECT c.id, m.tier, c.text FROM chunk c JOIN memory m ON m.id = c.memory WHERE c.id > ?"
    " ORDER BY c.id LIMIT ?"
)
_STRAY: Final = (
    (
        "SELECT d.id FROM main_fts_docsize d WHERE NOT EXISTS (SELECT 1 FROM chunk c"
        " JOIN memory m ON m.id = c.memory WHERE c.id = d.id AND m.tier = 0) LIMIT 100"
    ),
    (
        "SELECT d.id FROM low_fts_docsize d WHERE NOT EXISTS (SELECT 1 FROM chunk c"
        " JOIN memory m ON m.id = c.memory WHERE c.id = d.id AND m.tier = 1) LIMIT 100"
    ),
)
_ORPHANS: Final = (
    "SELECT m.id FROM memory m WHERE NOT EXISTS (SELECT 1 FROM record r JOIN body b ON b.n = r.n"
    " WHERE r.n = m.id AND r.kind = 32 AND r.state <> 'stub') LIMIT 100"
)
_COUNTERS: Final = (
    "SELECT s.id FROM scope s WHERE s.main_chunks <> (SELECT count(*) FROM chunk c"
    " JOIN memory m ON m.id = c.memory WHERE m.scope = s.id AND m.tier = 0) OR s.low_chunks <>"
    " (SELECT count(*) FROM chunk c JOIN memory m ON m.id = c.memory"
    " WHERE m.scope = s.id AND m.tier = 1)"
)
_LEFT: Final = (
    "SELECT 1 FROM record r WHERE r.id = ?1 AND (EXISTS (SELECT 1 FROM body b WHERE b.n = r.n)"
    " OR EXISTS (SELECT 1 FROM body_key k WHERE k.n = r.n)"
    " OR EXISTS (SELECT 1 FROM memory m WHERE m.id = r.n))"
    " UNION ALL SELECT 1 FROM hold h WHERE h.id = ?1"
)
_HAS: Final = (
    "SELECT 1 FROM main_fts_docsize WHERE id = ?",
    "SELECT 1 FROM low_fts_docsize WHERE id = ?",
)
_FINDS: Final = (
    "SELECT 1 FROM main_fts WHERE main_fts MATCH ? AND rowid = ?",
    "SELECT 1 FROM low_fts WHERE low_fts MATCH ? AND rowid = ?",
)


def _is_indexed(connection: apsw.Connection, chunk: int, tier: int, text: str) -> bool:
    """Whether a piece is in its tier's index, found by its longest word, and in no other."""
    for other in (0, 1):
        has = connection.execute(_HAS[other], (chunk,)).fetchone() is not None
        if has != (other == tier):
            return False
    if tier not in (0, 1):
        return True
    word = max(_WORD.findall(text.lower()), key=len, default="")
    if not word:
        return True
    # Among others' letters a run of ours may be a part of a word only.
    if not re.search(rf"(?<!\w){word}(?!\w)", text.lower()):
        return True
    wanted = f'text : "{word}"'
    return connection.execute(_FINDS[tier], (wanted, chunk)).fetchone() is not None


def step(
    walk: Generator[Slice, apsw.Connection, None], connection: apsw.Connection
) -> Slice | None:
    """One slice of a walk; None when it has ended."""
    try:
        return walk.send(connection)
    except StopIteration:
        return None


def verify_file(database: Path, check: StoreCheck, tell: Tell) -> VerifyReport:
    """Verify the database of a stopped node, read-only.

    Raises:
        StoreError: it cannot be opened.
    """
    try:
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        raise translate(error, database) from error
    try:
        connection.set_busy_timeout(2000)
        walk = check.walk()
        at: Slice | None = next(walk)
        while at is not None:
            tell(at.done, at.total or None, at.what)
            at = step(walk, connection)
    except apsw.Error as error:
        raise translate(error, database) from error
    finally:
        connection.close()
    return check.report()
