"""The feedback log: what was shown to whom, and what came of it. No text, no words of a query.

Theory of operation. A recall, a get or a page hands over what it showed and goes on at once: the
note waits in RAM and a task of its own writes what has gathered, a second later at most. So a crash
may lose the last second of this log, never anything of the memory, and a slow disk slows no recall.
Two questions are asked of it: which memories a session has just seen (`recent`, from RAM: lineage),
and whether an agent was shown a memory before it confirmed it (`shown_to`). The rest is kept for a
later ranker; nothing in here moves today's order.

The file is one of its own, so that it can be erased without touching the memory. If it is damaged
it is started anew; if it cannot be written at all, the part in RAM still works.
Source: docs/specs/memory.md, *Behaviour log*.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast

import apsw
import trio

from memory.errors import StoreError
from memory.storage.connect import CLOSE_GRACE_S, Link, open_link, translate
from memory.storage.schema import migrate, strange_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from memory.seams import Env

_R = TypeVar("_R")

log = logging.getLogger("covey.memory.behaviour")

MIGRATIONS: Final = "memory.storage.behaviour_migrations"

FLUSH_S: Final = 1.0
"""How long notes gather before they are written: what a crash may lose."""

RECENT_S: Final = 30 * 60.0
"""A text that a session saw this long ago may still be what it now writes down (memory.md s.4)."""

SESSIONS_MAX: Final = 256
"""Sessions remembered in RAM; the one longest idle goes first."""

SESSION_IDS_MAX: Final = 2_000
"""Memories remembered of a session: ten full pages, some 100 answers; the oldest go first."""

WAITING_MAX: Final = 4_096
"""Notes that wait for the disk; over it the oldest is dropped: the log may have holes."""

KEPT_MS: Final = 180 * 86_400_000
"""Age at which an answer leaves the log: as long as trust remembers."""

SEEN_MS: Final = 30 * 86_400_000
"""How long it matters that an agent was shown a memory (memory.md s.7)."""

SHOWN_MAX: Final = 200_000
"""Rows of shown memories, about 30 MB; the oldest answers go first."""

SEEN_MAX: Final = 500_000
"""Pairs of agent and memory, about 40 MB."""

PRUNE_EVERY: Final = 200
"""Flushes between two prunings."""

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16

ASKED: Final = "fixed"
"""The ranker of an answer to a question: the fixed formula."""

READ: Final = "get"
"""In the ranker's place when a memory was read by its id or listed: nothing put it in order."""

OUTCOMES: Final = ("opened", "stale", "wrong", "harmful", "useful")
"""What may come of a shown memory, the weakest first: a stronger word replaces a weaker one."""


class Features(NamedTuple):
    """What an answer's order was made from, a memory at a time; a later ranker learns from it.

    No trust, author or claimed importance is among them: what a ranker could learn of those would
    be a second, unexplained trust (memory.md s.10). What a channel did not give is 0.
    """

    bm25: float = 0.0
    """Normalised lexical score, 0 to 1."""
    cosine: float = 0.0
    """Normalised dense score, 0 to 1."""
    base: float = 0.0
    """Their sum by the fixed weights."""
    bm25_rank: float = 0.0
    """Place by the lexical score alone, from 1."""
    cosine_rank: float = 0.0
    """Place by the dense score alone, from 1."""
    neighbours: float = 0.0
    """What its neighbours in the thread added."""
    thread: float = 0.0
    """What its thread added."""
    author: float = 0.0
    """What a person named in the query added."""
    log_length: float = 0.0
    """Natural logarithm of its tokens."""
    chunks: float = 1.0
    """Pieces of its text."""
    words: float = 0.0
    """Words of the query."""


FEATURES_ID: Final = hashlib.sha256(" ".join(Features._fields).encode()).digest()[:4]
"""Begins every row's features: another list of features is another language."""

_floats: Final = struct.Struct(f"<{len(Features._fields)}f")


class Shown(NamedTuple):
    """A memory in an answer: its record id, its place from 1, what the place was made from."""

    record: bytes
    rank: int
    features: Features | None = None


class _Answer(NamedTuple):
    """An answer that waits for the disk."""

    at_ms: int
    agent: str
    scope: str
    ranker: str
    query: str
    shown: tuple[Shown, ...]


class _Outcome(NamedTuple):
    """A word on a shown memory that waits for the disk."""

    at_ms: int
    agent: str
    record: bytes
    outcome: str


def encode_features(features: Features) -> bytes:
    """Four bytes that name the list of features, then a little-endian float32 each."""
    return FEATURES_ID + _floats.pack(*features)


def query_tag(key: bytes, query: str) -> bytes:
    """A mark by which equal questions are known on this machine; it tells nothing else.

    Args:
        key: 32 random bytes that never leave the file.
        query: the question; case and spacing do not count.
    """
    normal = " ".join(query.casefold().split())
    return hmac.digest(key, normal.encode(errors="replace"), "sha256")[:TAG_BYTES]


class Behaviour:
    """The feedback log over one file. Inert until `run` is started; its notes work before.

    Args:
        path: the file; its folder must exist.
        env: clocks and the key's random bytes.
        inline: run SQLite in the loop: for simulated clocks.
    """

    def __init__(self, path: Path, env: Env, *, inline: bool = False) -> None:
        self._path = path
        self._env = env
        self._inline = inline
        self._link: Link | None = None
        self._key = b""
        self._lock = trio.Lock()
        self._arrived = trio.Event()
        self._waiting: list[_Answer | _Outcome] = []
        self._flushes = 0
        self._sessions: OrderedDict[str, OrderedDict[bytes, float]] = OrderedDict()
        self.dropped = 0
        """Notes lost because the disk was too slow or refused them."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the file and write what gathers, until cancelled; then write the rest."""
        await self._open()
        try:
            task_status.started()
            while True:
                await self._arrived.wait()
                await trio.sleep(FLUSH_S)
                self._arrived = trio.Event()
                await self._flush()
        finally:
            with trio.move_on_after(CLOSE_GRACE_S, shield=True):
                await self._close()

    # ---- notes: never wait

    def note_shown(
        self,
        *,
        agent: str,
        session: str,
        scope: str,
        query: str,
        shown: Sequence[Shown],
        ranker: str = ASKED,
    ) -> None:
        """Note an answer. Returns at once; the log has it a second later.

        Args:
            agent: who got it, empty for the person.
            session: its session, empty for none.
            scope: what was searched, as the caller wrote it, empty for all it may read.
            query: the question; only a mark of it is kept.
            shown: in the order shown.
            ranker: what put it in order.
        """
        if not shown:
            return
        self._remember_session(session, [item.record for item in shown])
        self._queue(_Answer(self._env.wall_ms(), agent, scope, ranker, query, tuple(shown)))

    def note_read(self, *, agent: str, session: str, records: Sequence[bytes]) -> None:
        """Note memories read by id or listed; what was in an earlier answer counts as opened."""
        self.note_shown(
            agent=agent,
            session=session,
            scope="",
            query="",
            shown=[Shown(record, rank) for rank, record in enumerate(records, 1)],
            ranker=READ,
        )

    def note_outcome(self, *, agent: str, record: bytes, outcome: str) -> None:
        """Note what came of a shown memory, as `outcome` does, without waiting."""
        assert outcome in OUTCOMES, outcome
        self._queue(_Outcome(self._env.wall_ms(), agent, record, outcome))

    async def outcome(self, record: bytes, agent: str, outcome: str) -> None:
        """Note what came of a memory that this agent was shown.

        Args:
            record: the memory's record id.
            agent: who says so, empty for the person.
            outcome: one of `OUTCOMES`.
        """
        await trio.lowlevel.checkpoint()
        self.note_outcome(agent=agent, record=record, outcome=outcome)

    # ---- questions

    def recent(self, session: str) -> list[bytes]:
        """Record ids that this session saw in the last 30 minutes, newest first. From RAM.

        A session of a run before this one is unknown: its process saw the daemon go.
        """
        seen = self._sessions.get(session)
        if seen is None:
            return []
        since = self._env.now() - RECENT_S
        return [record for record, at in reversed(seen.items()) if at >= since]

    async def shown_to(self, agent: str, records: Sequence[bytes], since_ms: int) -> set[bytes]:
        """Which of these memories the agent was shown since then, at most 30 days ago.

        What waits for the disk counts; if the file cannot be used only that does.
        """
        asked = set(records)
        found = {
            item.record
            for note in self._waiting
            if isinstance(note, _Answer) and note.agent == agent and note.at_ms >= since_ms
            for item in note.shown
            if item.record in asked
        }
        rows = await self._with_file(
            lambda c: c.execute(
                "SELECT record FROM seen WHERE agent = ? AND at_ms >= ?"
                " AND record IN (SELECT unhex(value) FROM json_each(?))",
                (agent, since_ms, _hex_list(asked)),
            ).fetchall()
        )
        return found | {cast("bytes", row[0]) for row in rows or ()}

    async def shown_to_others(self, record: bytes, agent: str, since_ms: int) -> bool:
        """Whether anybody but the agent was shown this memory since then."""
        if any(
            isinstance(note, _Answer)
            and note.agent != agent
            and note.at_ms >= since_ms
            and any(item.record == record for item in note.shown)
            for note in self._waiting
        ):
            return True
        rows = await self._with_file(
            lambda c: c.execute(
                "SELECT 1 FROM seen WHERE record = ? AND agent <> ? AND at_ms >= ? LIMIT 1",
                (record, agent, since_ms),
            ).fetchall()
        )
        return bool(rows)

    # ---- erasing

    async def erase(self, ids: Sequence[bytes]) -> None:
        """Forget that these memories were ever shown; when this returns the file holds no trace."""
        gone = set(ids)
        for seen in self._sessions.values():
            for record in gone & seen.keys():
                del seen[record]
        self._waiting = [kept for note in self._waiting if (kept := _without(note, gone))]
        await self._with_file(
            lambda c: _emptied(c, lambda c: _delete_records(c, gone), vacuum=False)
        )

    async def forget(self) -> None:
        """Erase the whole log, its key included; a new key makes old marks meaningless."""
        self._waiting.clear()
        self._sessions.clear()
        fresh = self._env.rng.randbytes(KEY_BYTES)

        def unit(connection: apsw.Connection) -> None:
            for table in ("shown", "impression", "seen", "tag_key"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - constant
            connection.execute("INSERT INTO tag_key VALUES (1, ?)", (fresh,))

        await self._with_file(lambda c: _emptied(c, unit, vacuum=True))
        self._key = fresh

    async def flush(self) -> None:
        """Write what waits, now."""
        await self._flush()

    # ---- RAM

    def _remember_session(self, session: str, records: Sequence[bytes]) -> None:
        if not session:
            return
        seen = self._sessions.setdefault(session, OrderedDict())
        self._sessions.move_to_end(session)
        now = self._env.now()
        for record in reversed(records):  # so that the best of an answer is the newest
            seen[record] = now
            seen.move_to_end(record)
        while len(seen) > SESSION_IDS_MAX:
            seen.popitem(last=False)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)

    def _queue(self, note: _Answer | _Outcome) -> None:
        if len(self._waiting) >= WAITING_MAX:
            del self._waiting[0]
            self.dropped += 1
        self._waiting.append(note)
        self._arrived.set()

    # ---- the file

    async def _open(self) -> None:
        """Open and migrate; a damaged file is replaced, an unusable one done without."""
        for attempt in range(2):
            try:
                self._link = await self._open_once()
            except StoreError as exc:
                fields = {"reason": exc.reason, "again": attempt == 0}
                log.warning("behaviour_log_unusable", extra={"f": fields})
                if exc.reason != "corrupt":
                    return
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            else:
                return

    async def _open_once(self) -> Link:
        link = await open_link(self._path, vfs=None, inline=self._inline, writer=True)
        ready = False
        try:
            await link.run(lambda: migrate(link.connection, self._path, self._env, MIGRATIONS))
            self._key = await link.run(lambda: self._load_key(link.connection))
            ready = True
        except apsw.Error as exc:
            raise translate(exc, self._path) from exc
        finally:
            if not ready:
                with trio.move_on_after(CLOSE_GRACE_S, shield=True):
                    await link.aclose()
        self._path.chmod(0o600)
        return link

    def _load_key(self, connection: apsw.Connection) -> bytes:
        row = connection.execute("SELECT key FROM tag_key").fetchone()
        if row is not None:
            return bytes(row[0])
        key = self._env.rng.randbytes(KEY_BYTES)
        connection.execute("INSERT INTO tag_key VALUES (1, ?)", (key,))
        return key

    async def _close(self) -> None:
        await self._flush()
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    async def _with_file(self, fn: Callable[[apsw.Connection], _R]) -> _R | None:
        """Run `fn` on the file's thread; None when there is no file to use."""
        async with self._lock:
            return await self._on_file(fn)

    async def _on_file(self, fn: Callable[[apsw.Connection], _R]) -> _R | None:
        """The same for who holds the lock."""
        link = self._link
        if link is None:
            return None
        try:
            return await link.run(lambda: fn(link.connection))
        except apsw.Error as exc:
            raise translate(exc, self._path) from exc

    async def _flush(self) -> None:
        # A batch begun is a batch ended: half of it would be lost with the caller.
        with trio.move_on_after(CLOSE_GRACE_S, shield=True):
            async with self._lock:
                # Taken under the lock: an erasure sees a note here or in the file, never between.
                notes, self._waiting = self._waiting, []
                if notes:
                    await self._write_all(notes)

    async def _write_all(self, notes: list[_Answer | _Outcome]) -> None:
        self._flushes += 1
        prune = self._flushes % PRUNE_EVERY == 1
        now_ms = self._env.wall_ms()

        def unit(connection: apsw.Connection) -> None:
            for note in notes:
                self._write(connection, note)
            if prune:
                _prune(connection, now_ms)

        try:
            if await self._on_file(lambda c: _atomically(c, unit)) is None:
                self.dropped += len(notes)
        except StoreError as exc:
            self.dropped += len(notes)
            log.warning("behaviour_log_failed", extra={"f": {"reason": exc.reason}})

    def _write(self, connection: apsw.Connection, note: _Answer | _Outcome) -> None:
        if isinstance(note, _Outcome):
            _label(connection, note)
            return
        asked = note.ranker != READ
        connection.execute(
            "INSERT INTO impression(at_ms, agent, scope, ranker, query_tag) VALUES (?, ?, ?, ?, ?)",
            (
                note.at_ms,
                note.agent,
                note.scope,
                note.ranker,
                query_tag(self._key, note.query) if asked else None,
            ),
        )
        impression = connection.last_insert_rowid()
        for item in note.shown:
            features = None if item.features is None else encode_features(item.features)
            connection.execute(
                "INSERT OR IGNORE INTO shown VALUES (?, ?, ?, ?, NULL)",
                (impression, item.record, item.rank, features),
            )
            connection.execute(
                "INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT (agent, record)"
                " DO UPDATE SET at_ms = max(at_ms, excluded.at_ms)",
                (note.agent, item.record, note.at_ms),
            )
            if not asked:
                _label(connection, _Outcome(note.at_ms, note.agent, item.record, "opened"))


def _label(connection: apsw.Connection, said: _Outcome) -> None:
    """Put an outcome on the newest answer to a question that showed it to this agent."""
    row = connection.execute(
        "SELECT s.impression, s.outcome FROM shown s JOIN impression i ON i.id = s.impression"
        " WHERE s.record = ? AND i.agent = ? AND i.query_tag IS NOT NULL"
        " ORDER BY i.at_ms DESC, i.id DESC LIMIT 1",
        (said.record, said.agent),
    ).fetchone()
    if row is None:
        return
    known = str(row[1]) if row[1] is not None else ""
    if known and OUTCOMES.index(known) > OUTCOMES.index(said.outcome):
        return
    connection.execute(
        "UPDATE shown SET outcome = ? WHERE impression = ? AND record = ?",
        (said.outcome, row[0], said.record),
    )


def _prune(connection: apsw.Connection, now_ms: int) -> None:
    """Keep the log within its age and size."""
    connection.execute("DELETE FROM impression WHERE at_ms < ?", (now_ms - KEPT_MS,))
    connection.execute("DELETE FROM seen WHERE at_ms < ?", (now_ms - SEEN_MS,))
    over = int(connection.execute("SELECT count(*) FROM shown").get or 0) - SHOWN_MAX
    if over > 0:
        # Answers have 8 memories or so; counted exactly, oldest first.
        connection.execute(
            "DELETE FROM impression WHERE id <= (SELECT impression FROM shown"
            " ORDER BY impression LIMIT 1 OFFSET ?)",
            (over,),
        )
    over = int(connection.execute("SELECT count(*) FROM seen").get or 0) - SEEN_MAX
    if over > 0:
        connection.execute(
            "DELETE FROM seen WHERE at_ms <= (SELECT at_ms FROM seen ORDER BY at_ms LIMIT 1"
            " OFFSET ?)",
            (over,),
        )


def _atomically(connection: apsw.Connection, unit: Callable[[apsw.Connection], None]) -> bool:
    connection.execute("BEGIN IMMEDIATE")
    try:
        unit(connection)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return True


def _emptied(
    connection: apsw.Connection, unit: Callable[[apsw.Connection], None], *, vacuum: bool
) -> bool:
    """Run a deletion and leave no byte of it in the file or its log."""
    _atomically(connection, unit)
    if vacuum:
        connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return True


def _delete_records(connection: apsw.Connection, ids: Iterable[bytes]) -> None:
    listed = _hex_list(ids)
    where = "record IN (SELECT unhex(value) FROM json_each(?))"
    connection.execute(f"DELETE FROM shown WHERE {where}", (listed,))  # noqa: S608 - constant
    connection.execute(f"DELETE FROM seen WHERE {where}", (listed,))  # noqa: S608 - constant
    connection.execute(
        "DELETE FROM impression WHERE NOT EXISTS"
        " (SELECT 1 FROM shown WHERE shown.impression = impression.id)"
    )


def erase_in_copy(path: Path, ids: Iterable[bytes]) -> None:
    """Forget in a copy of the log that these memories were ever shown.

    Args:
        path: a copy that nobody uses; it may be from elsewhere.
        ids: record ids.

    Raises:
        StoreError: `corrupt`: it is damaged, or brings SQL that no Covey makes.
    """
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            for pragma in ("trusted_schema=OFF", "secure_delete=ON", "temp_store=MEMORY"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            if strange_objects(connection, MIGRATIONS):
                raise StoreError(
                    "corrupt",
                    f"{path.name} holds what no Covey puts there: somebody altered it; take"
                    " another copy",
                )
            _emptied(connection, lambda c: _delete_records(c, ids), vacuum=False)
        finally:
            connection.close()
    except apsw.Error as exc:
        raise translate(exc, path) from exc


def _without(note: _Answer | _Outcome, gone: set[bytes]) -> _Answer | _Outcome | None:
    if isinstance(note, _Outcome):
        return None if note.record in gone else note
    left = tuple(item for item in note.shown if item.record not in gone)
    return note._replace(shown=left) if left else None


def _hex_list(records: Iterable[bytes]) -> str:
    return json.dumps(sorted(record.hex() for record in records))
