"""The memory's front door: remember, recall, get, list, history, forget, stats.

A write returns when it is durable and searchable. Every read is bounded by the caller's scopes.
Source: docs/specs/memory.md.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from memory.bodies import ForgetBody, ProfileBody
from memory.config import MemoryConfig
from memory.errors import RefusedError
from memory.model import NOTES_MAX
from memory.recall import reading
from memory.recall.answering import Recaller
from memory.recall.reading import Filter
from memory.records.noting import check_line, prepare, with_lineage
from memory.records.scanning import scan_own
from memory.records.writing import entry_draft, forget_one, remember_one
from memory.relations.lineage import read_recalled
from memory.storage.sql import blobs, integers
from memory.storage.txn import MemoryEvent
from memory.trust.status import expire

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Sequence

    from memory.embedding.service import Embeddings
    from memory.model import (
        Caller,
        Forgotten,
        History,
        Hit,
        Hits,
        NoteIn,
        Page,
        Query,
        Remembered,
        Stats,
        Version,
    )
    from memory.records.replica import Replica
    from memory.seams import Env, Receipt
    from memory.storage.behaviour import Behaviour
    from memory.storage.db import Db
    from memory.storage.txn import Txn

__all__ = ["Filter", "Memory", "MemoryConfig", "MemoryEvent"]

FORGET_IDS_MAX: Final = 256
EXPIRE_BATCH: Final = 500
"""Memories un-indexed in one transaction."""


class Memory:
    """What the daemon offers of the memory.

    Args:
        db: the open database.
        replica: the record store over it.
        env: clocks.
        device: this node's 32-byte key.
        config: settings.
        behaviour: where to note what was shown, None for nowhere.
        embeddings: vectors of chunks and queries; None searches by words alone.
    """

    def __init__(
        self,
        db: Db,
        replica: Replica,
        env: Env,
        device: bytes,
        config: MemoryConfig | None = None,
        behaviour: Behaviour | None = None,
        *,
        embeddings: Embeddings | None = None,
    ) -> None:
        self._db = db
        self._replica = replica
        self._env = env
        self._device = device
        self._config = config or MemoryConfig()
        self._behaviour = behaviour
        self._withheld: Counter[str] = Counter()
        self._embeddings = embeddings
        self._recaller = Recaller(db, env, self._config, embeddings)
        replica.on_event(self._recaller.hear)

    # ---- writing

    async def remember(
        self,
        who: Caller,
        notes: Sequence[NoteIn],
        receipt: Receipt[Sequence[Remembered]] | None = None,
    ) -> list[Remembered]:
        """Store notes, all or none; when this returns they are on disk and can be found.

        Args:
            who: the caller; its device and agent are the signed author.
            notes: 1 to 256.
            receipt: kept with the notes, in the same transaction.

        Raises:
            RefusedError: `invalid`, `too_large`, `forbidden`, `unknown_scope`, `not_found`,
                `conflict` (an idempotency key used for another text) or `rate` (try again soon).
            StoreError: nothing was stored.
        """
        if not 1 <= len(notes) <= NOTES_MAX:
            raise RefusedError("invalid", f"notes: 1 to {NOTES_MAX} at a time")
        self._check_queue()
        now_ms = self._env.wall_ms()
        prepared = [prepare(who, note, now_ms, self._replica.scanner) for note in notes]
        recent = self._behaviour.recent(who.session) if self._behaviour is not None else ()
        if recent:
            recalled = await self._db.read(lambda connection: read_recalled(connection, recent))
            prepared = [with_lineage(note, recalled) for note in prepared]

        def unit(txn: Txn) -> builtins.list[Remembered]:
            done = [remember_one(self._replica, txn, who, note) for note in prepared]
            if receipt is not None:
                self._replica.put_receipt(txn, receipt.key, receipt.encode(done))
            self._env.fault("memory.remembering")
            return done

        stored = await self._replica.transact(unit)
        # The hard moment to die at: it is on disk, and nobody has been told.
        self._env.fault("memory.remembered")
        return stored

    async def forget(
        self,
        who: Caller,
        ids: Sequence[str],
        reason: str = "",
        receipt: Receipt[Sequence[Forgotten]] | None = None,
    ) -> list[Forgotten]:
        """Stop finding memories. Reversible: the record stays, its text leaves the indexes.

        Own notes are forgotten by a signed record, on all replicas; a peer's is hidden here only.
        An agent may forget what it wrote itself, the person everything.

        Raises:
            RefusedError: `invalid` or `rate`.
            StoreError: nothing changed.
        """
        if not 1 <= len(ids) <= FORGET_IDS_MAX:
            raise RefusedError("invalid", f"ids: 1 to {FORGET_IDS_MAX} at a time")
        self._check_queue()
        why = check_line(reason, "reason", 512) or None
        why = scan_own(self._replica.scanner, ForgetBody("", [], why), person=who.is_owner)[
            0
        ].reason

        def unit(txn: Txn) -> builtins.list[Forgotten]:
            done = [forget_one(self._replica, txn, who, written, why) for written in ids]
            if receipt is not None:
                self._replica.put_receipt(txn, receipt.key, receipt.encode(done))
            return done

        return await self._replica.transact(unit)

    async def set_device_name(self, name: str, groups: Sequence[bytes] = ()) -> None:
        """Publish what this device calls itself, by a profile record.

        Args:
            name: 1 to 64 characters.
            groups: where to write it; by default every group here, if the name is new.

        Raises:
            RefusedError: `invalid`.
        """
        line = check_line(name, "name", 64)
        if not line:
            raise RefusedError("invalid", "a device's name is 1 to 64 characters")

        def unit(txn: Txn) -> None:
            known = txn.connection.execute(
                "SELECT 1 FROM device WHERE key = ? AND name = ? AND hlc > 0", (self._device, line)
            ).fetchone()
            if known is not None and not groups:
                return
            for group in groups or _groups_to_tell(txn):
                self._replica.append_in(txn, group, [entry_draft(ProfileBody("", line))])

        await self._replica.transact(unit)

    async def expire(self) -> int:
        """Un-index memories whose time to live is over; how many. Call it now and then."""
        now_ms = self._env.wall_ms()
        total = 0
        while True:
            due = await self._db.read(
                lambda c: integers(
                    c,
                    "SELECT id FROM memory WHERE expires_ms <= ? AND tier < 2 LIMIT ?",
                    (now_ms, EXPIRE_BATCH),
                )
            )
            if not due:
                return total
            total += await self._replica.transact(lambda txn, due=due: expire(txn, due))  # type: ignore[misc]

    def _check_queue(self) -> None:
        if self._db.queue_full:
            raise RefusedError("rate", "the writer is busy: try again in a second")

    # ---- reading

    async def recall(self, who: Caller, query: Query) -> Hits:
        """Find memories by words and meaning, weighed by trust.

        Raises:
            RefusedError: `invalid`, `too_large` or `forbidden`.
            StoreError: the database cannot serve.
        """
        answered = await self._recaller.answer(who, query)
        self._withheld.update(msgspec.structs.asdict(answered.hits.withheld))
        if self._behaviour is not None:
            self._behaviour.note_shown(
                agent=who.agent,
                session=who.session,
                scope=written_scopes(query.scope),
                query=query.query,
                shown=answered.shown,
            )
        return answered.hits

    async def get(self, who: Caller, ids: Sequence[str]) -> Hits:
        """Whole memories by id or unique prefix; those not here or not readable are left out.

        Raises:
            RefusedError: `invalid`.
        """
        started = self._env.now()
        now_ms = self._env.wall_ms()
        hits = await self._db.read(lambda connection: reading.get(connection, who, ids, now_ms))
        self._note_read(who, hits.hits)
        hits.ms = round((self._env.now() - started) * 1000, 3)
        return hits

    async def list(
        self, who: Caller, what: Filter, *, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """A page of memories, newest first.

        Raises:
            RefusedError: `invalid` or `forbidden`.
        """
        now_ms = self._env.wall_ms()
        page = await self._db.read(
            lambda connection: reading.list_page(
                connection, who, what, cursor=cursor, limit=limit, now_ms=now_ms
            )
        )
        self._note_read(who, page.hits)
        return page

    async def history(self, who: Caller, memory_id: str) -> History:
        """Everything signed about a memory: its versions, links, forget records.

        Raises:
            RefusedError: `not_found` or `invalid`.
        """
        now_ms = self._env.wall_ms()
        found = await self._db.read(
            lambda connection: reading.history(connection, who, memory_id, now_ms)
        )
        self._note_read(who, [version for version in found.versions if version.text is not None])
        return found

    def _note_read(self, who: Caller, texts: Sequence[Hit | Version]) -> None:
        """A text that was read without a question is as known to the reader as one recalled."""
        if self._behaviour is not None:
            records = [bytes.fromhex(text.id) for text in texts]
            self._behaviour.note_read(agent=who.agent, session=who.session, records=records)

    async def stats(self, who: Caller) -> Stats:
        """Counts of what the caller may read, and the database's size."""
        sizes = self._db.sizes()
        stats = await self._db.read(lambda connection: reading.stats(connection, who, sizes))
        if self._embeddings is not None:
            stats.embedding = await self._embeddings.status()
        if who.read.everything:  # of all scopes together, so for who may read them all
            scanner = self._replica.scanner
            stats.redactions = {} if scanner is None else dict(scanner.redactions)
            stats.withheld = dict(self._withheld)
        return stats

    async def receipt(self, key: bytes) -> bytes | None:
        """What a mutating call left under this key, if it was carried out."""
        row = await self._db.read(
            lambda c: c.execute("SELECT result FROM receipt WHERE key = ?", (key,)).fetchone()
        )
        return None if row is None else bytes(row[0])

    def subscribe(self, fn: Callable[[MemoryEvent], None]) -> None:
        """Call `fn` with each `memory.*` event, after its commit, in commit order."""
        self._replica.on_event(fn)


def written_scopes(scope: str | Sequence[str] | None) -> str:
    """The scopes of a query as one text, empty for all the caller may read."""
    return scope if isinstance(scope, str) else " ".join(scope or ())


def _groups_to_tell(txn: Txn) -> list[bytes]:
    """Every group but the private one, which nobody else reads."""
    return blobs(txn.connection, "SELECT id FROM grp WHERE name <> 'private' ORDER BY n")
