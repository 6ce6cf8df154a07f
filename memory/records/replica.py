"""The durable record store: what replication asks of a database, over `memory.storage.db`.

Has the shape of `p2p.replication.store.RecordStore` without importing it. `admit` and `append`
write a record and everything recall shows of it in one transaction, so after a crash both are there
or neither is. Source: docs/specs/memory.md, *Records*.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from memory.errors import RefusedError, UsageError
from memory.records import cells, stored, table
from memory.records.erase import HERE, erase_all
from memory.records.resettling import reown
from memory.scopes import write_scope
from memory.storage.erasedids import ErasedIds
from memory.storage.localrows import put_local, read_local
from memory.storage.marks import HighMark
from memory.storage.sql import blobs
from memory.storage.txn import Lookups, MemoryEvent, Place, TrustEvent, Txn
from memory.text.fts import count_indexed
from memory.trust.evidence import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence
    from pathlib import Path

    import apsw

    from memory.seams import Draft, LocalRow, LogKey, Receipt, Scanner, Sealer, Verified
    from memory.storage.db import Db

T = TypeVar("T")

log = logging.getLogger("covey.memory.replica")

RECEIPT_LIFE_MS: Final = 24 * 3600 * 1000
RECEIPTS_MAX: Final = 10_000
RECEIPT_PRUNE_EVERY: Final = 256
"""Receipts written between two prunings: the table may exceed its limit by this many."""

ERASE_BATCH: Final = 100
"""Records erased in one transaction: secure deletion from the full text takes ~1 ms each, and other
writers wait for it."""

NOTHING_SEALED: Final = "this group has no key here yet: wait for the first sync with a member"


class _Done(Generic[T]):
    """What a unit of ours leaves for the time after COMMIT."""

    __slots__ = ("events", "places", "result", "txn")

    def __init__(
        self, result: T, txn: Txn, events: list[MemoryEvent], places: Mapping[int, Place]
    ) -> None:
        self.result = result
        self.txn = txn
        self.events = events
        self.places = places


class IdIndex:
    """An immutable snapshot of the ids that count in set comparison."""

    __slots__ = ("_packed",)

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed) // 40

    @property
    def packed(self) -> bytes:
        """40 bytes an item: hlc big-endian u64, id 32; sorted."""
        return self._packed


class Replica:
    """Signed records on disk.

    Args:
        db: the open database, or one that will be open before the first call.
        sealer: signs and encrypts what this device writes.
        state_dir: folder of `high.mark` and `erased.ids`.
        scanner: looks through every text that is written or shown; None for none.
    """

    def __init__(
        self, db: Db, sealer: Sealer, state_dir: Path, scanner: Scanner | None = None
    ) -> None:
        self.db = db
        self.scanner = scanner
        self._sealer = sealer
        self._mark = HighMark(state_dir / "high.mark")
        self._mark.load()
        self._erased = ErasedIds(state_dir / "erased.ids")
        self._on_commit: list[Callable[[bytes, Sequence[bytes]], None]] = []
        self._on_turn: list[Callable[[bytes, Sequence[bytes]], None]] = []
        self._on_event: list[Callable[[MemoryEvent], None]] = []
        self._on_erased: list[Callable[[], None]] = []
        self._on_trust: list[Callable[[TrustEvent], None]] = []
        self._on_touched: list[Callable[[Mapping[int, Place]], None]] = []
        self._on_unsettled: list[Callable[[], None]] = []
        self._indexes: dict[tuple[bytes, int], IdIndex] = {}
        self._commits = 0
        self._receipts_written = 0
        self._lookups: Lookups = {}
        db.on_begin = self._lookups.clear
        db.after_commit = self._write_mark
        db.before_close = self._close_files

    # ---- for replication

    async def append(
        self,
        group: bytes,
        drafts: Sequence[Draft],
        receipt: Receipt[Sequence[bytes]] | None = None,
        local: Sequence[LocalRow] = (),
    ) -> Sequence[bytes]:
        """Seal the drafts at the ends of our own logs, in order, in one transaction; their ids.

        Raises:
            RefusedError: `unknown_scope`: the group is unknown or has no key here.
            StoreError: nothing was stored.
        """

        def unit(txn: Txn) -> list[bytes]:
            put_local(txn.connection, local)
            txn.lookups.clear()
            ids = [record.id for record in self.append_in(txn, group, drafts)]
            if receipt is not None:
                self.put_receipt(txn, receipt.key, receipt.encode(ids))
            return ids

        return await self.transact(unit)

    async def compose(
        self,
        group: bytes,
        tag: bytes,
        make: Callable[[Sequence[stored.CellRow]], Sequence[Draft]],
        receipt: Receipt[Sequence[bytes]] | None = None,
        known: Container[bytes] = (),
    ) -> Sequence[bytes]:
        """Append what `make` answers to a state cell's records, read in the same transaction.

        Of records that are `known` it gets the ids only, so that others do not wait for a big cell.

        `make` runs in the writer's thread. What it raises is passed on, and nothing is stored.

        Raises:
            RefusedError: as `append`.
            StoreError: nothing was stored.
        """

        def unit(txn: Txn) -> list[bytes]:
            txn.lookups.clear()
            drafts = make(stored.read_cell(txn.connection, group, tag, whole=False, known=known))
            ids = [record.id for record in self.append_in(txn, group, drafts)]
            if receipt is not None:
                self.put_receipt(txn, receipt.key, receipt.encode(ids))
            return ids

        return await self.transact(unit)

    async def cell(
        self, group: bytes, tag: bytes, *, whole: bool = False, known: Container[bytes] = ()
    ) -> Sequence[stored.CellRow]:
        """The records a state cell's value is made of, or all that count."""
        return await self.db.read(
            lambda c: stored.read_cell(c, group, tag, whole=whole, known=known)
        )

    async def cell_tags(self, group: bytes) -> Sequence[tuple[bytes, bytes]]:
        """(tag, id of one record) of each state cell of a group."""
        return await self.db.read(lambda c: cells.tags(c, group))

    async def state_among(self, ids: Sequence[bytes]) -> Sequence[bytes]:
        """Those of the ids that are state records."""
        return await self.db.read(lambda c: cells.state_among(c, ids))

    async def admit(
        self, group: bytes, batch: Sequence[Verified], local: Sequence[LocalRow] = ()
    ) -> Sequence[table.Verdict]:
        """Store verified records in one transaction; a verdict each, in order."""

        def unit(txn: Txn) -> list[table.Verdict]:
            put_local(txn.connection, local)
            grp = table.group_row(txn.connection, group)
            verdicts = table.admit(txn, grp, batch)
            txn.lookups.clear()
            return verdicts

        return await self.transact(unit)

    async def control(self, group: bytes, after: int = 0) -> Sequence[stored.Stored]:
        """Control records in order of arrival, bodies included."""
        return await self.db.read(lambda c: stored.read_control(c, group, after))

    async def logs(self, group: bytes) -> Sequence[stored.LogState]:
        """All logs of a group, both lanes."""
        return await self.db.read(lambda c: stored.read_logs(c, group))

    async def counts(self, group: bytes) -> Mapping[bytes, int]:
        """Records that are here, by author."""
        return await self.db.read(lambda c: stored.read_counts(c, group))

    async def index(self, group: bytes, lane: int) -> IdIndex:
        """The ids that count in set comparison; the same object until the set changes."""
        cached = self._indexes.get((group, lane))
        if cached is not None:
            return cached
        commits = self._commits
        found = IdIndex(await self.db.read(lambda c: stored.read_index(c, group, lane)))
        # A commit while we read: what we read may lack its records, so it is not kept.
        if self._commits == commits:
            self._indexes[group, lane] = found
        return found

    async def known(self, ids: Sequence[bytes]) -> Mapping[bytes, str]:
        """State of those that are here: live, sealed, void, stub, erased, held."""
        return await self.db.read(lambda c: stored.read_known(c, ids))

    async def tail(
        self, log: LogKey, first: int, last: int, bytes_max: int
    ) -> Sequence[stored.Stored]:
        """Records first..last of a log that are here, cut at `bytes_max`, at least one."""
        return await self.db.read(lambda c: stored.read_log(c, log, first, last, bytes_max))

    async def fetch(self, ids: Sequence[bytes], *, bodies: bool) -> Sequence[stored.Stored]:
        """Those that are here, in the order asked."""
        return await self.db.read(lambda c: stored.read_ids(c, ids, bodies=bodies))

    async def at(self, log: LogKey, seq: int) -> stored.Stored | None:
        """The record at one place of a log."""
        found = await self.db.read(lambda c: stored.read_log(c, log, seq, seq, 0))
        return found[0] if found else None

    async def settle(
        self,
        group: bytes,
        *,
        void: Sequence[bytes] = (),
        revive: Sequence[bytes] = (),
        fork: Sequence[tuple[LogKey, int, bytes, bytes]] = (),
        owners: Sequence[tuple[bytes, bytes, str]] = (),
        erase: Sequence[tuple[bytes, bytes, int]] = (),
    ) -> int:
        """Carry out what the authority fold decided; the number of records changed."""

        def unit(txn: Txn) -> int:
            grp = table.group_row(txn.connection, group)
            changed = sum(table.set_void(txn, group, record_id) for record_id in void)
            changed += sum(table.revive(txn, group, record_id) for record_id in revive)
            for key, seq, a, b in fork:
                changed += table.freeze(txn, grp, key, seq, a, b)
            for device, owner, relation in owners:
                if reown(txn, grp, device, owner, relation):
                    changed += table.count_of_author(txn.connection, grp, device)
            for record_id, by, hlc in erase:
                if not table.is_erased(txn.connection, record_id):
                    changed += len(erase_all(txn, record_id, by, hlc))
            txn.lookups.clear()
            return changed

        return await self.transact(unit)

    async def erased(self, group: bytes, author: bytes) -> Sequence[bytes]:
        """Ids of an author's records that were erased here, ascending."""
        return await self.db.read(lambda c: table.erased_of_author(c, group, author))

    async def unsealed(self, group: bytes, bodies: Sequence[tuple[bytes, bytes]]) -> None:
        """Bodies (id, plain) whose key has come: project them."""

        def unit(txn: Txn) -> None:
            for record_id, plain in bodies:
                table.unseal(txn, group, record_id, plain)
            txn.lookups.clear()

        await self.transact(unit)

    async def sealed(self, group: bytes, epoch: bytes, limit: int) -> Sequence[stored.Stored]:
        """Records still waiting for `epoch`'s key, oldest first."""
        return await self.db.read(lambda c: stored.read_sealed(c, group, epoch, limit))

    async def local(self, table: str, group: bytes | None = None) -> Sequence[LocalRow]:
        """Rows of a local table; `mark` is the side file: group, author, incarnation, lane, seq."""
        if table == "mark":
            return [
                ("mark", (*key, seq))
                for key, seq in sorted(self._mark.positions.items())
                if group is None or key[0] == group
            ]
        return await self.db.read(lambda c: read_local(c, table, group))

    def on_commit(self, fn: Callable[[bytes, Sequence[bytes]], None]) -> None:
        """Call `fn(group, ids)` after each commit that stored records, in commit order."""
        self._on_commit.append(fn)

    def on_turn(self, fn: Callable[[bytes, Sequence[bytes]], None]) -> None:
        """Call `fn(group, ids)` after each commit in which state records that were here turned.

        They began or ceased to count: opened, voided, revived, erased.
        """
        self._on_turn.append(fn)

    # ---- for the memory

    async def recover_erased(self) -> int:
        """Erase again what `erased.ids` names and the database has; how many records.

        For a database that was restored from an old image. Call it once, before anything is served.
        """
        written = self._erased.load()
        known = set(await self.db.read(lambda c: blobs(c, "SELECT id FROM erased")))
        lost = [record_id for record_id in dict.fromkeys(written) if record_id not in known]
        # A crash after the commit and before the file: the file catches up.
        self._erased.append(sorted(known.difference(written)))

        def unit(txn: Txn, ids: Sequence[bytes]) -> int:
            return sum(len(erase_all(txn, record_id, HERE, 0)) for record_id in ids)

        total = 0
        for at in range(0, len(lost), ERASE_BATCH):
            batch = lost[at : at + ERASE_BATCH]
            total += await self.transact(partial(unit, ids=batch))
        if lost:
            log.info("erased_again", extra={"f": {"ids": len(lost)}})
        return total

    @property
    def erased_behind(self) -> bool:
        """Whether `erased.ids` lacks something: its disk refused the write."""
        return self._erased.behind

    def on_erased(self, fn: Callable[[], None]) -> None:
        """Call `fn()` after each commit that erased records, also those that were never here."""
        self._on_erased.append(fn)

    def on_event(self, fn: Callable[[MemoryEvent], None]) -> None:
        """Call `fn` with what happened to memories, after the commit that did it."""
        self._on_event.append(fn)

    def on_trust(self, fn: Callable[[TrustEvent], None]) -> None:
        """Call `fn` with what became of an author's trust, after the commit that did it."""
        self._on_trust.append(fn)

    def on_touched(self, fn: Callable[[Mapping[int, Place]], None]) -> None:
        """Call `fn` with where the memories of a commit are now, in commit order."""
        self._on_touched.append(fn)

    def on_unsettled(self, fn: Callable[[], None]) -> None:
        """Call `fn` after a commit that left work of trust for the background."""
        self._on_unsettled.append(fn)

    async def transact(self, fn: Callable[[Txn], T]) -> T:
        """Run `fn` as one atomic unit and announce what it stored once that is on disk."""

        def unit(connection: apsw.Connection) -> _Done[T]:
            now_ms = self.db.wall_ms()
            txn = Txn(connection, self._lookups, scanner=self.scanner, now_ms=now_ms)
            result = fn(txn)
            count_indexed(connection, txn.indexed)
            cells.rebuild(txn)
            settle(txn, now_ms)
            # Nobody to tell, nothing to look up.
            places = _places(txn) if self._on_touched and txn.touched else {}
            return _Done(result, txn, _events(txn), places)

        done = await self.db.write(unit, self._announce)
        return done.result

    def append_in(
        self, txn: Txn, group: bytes, drafts: Sequence[Draft], *, grp: int | None = None
    ) -> list[Verified]:
        """Seal and store drafts inside the caller's unit.

        Args:
            txn: the caller's unit.
            group: its id.
            drafts: in order.
            grp: the group's row, where the caller has looked it up.

        Raises:
            RefusedError: `unknown_scope`: the group is unknown or has no key here.
        """
        if grp is None:
            grp = table.group_row(txn.connection, group)
        sealed = []
        ends: dict[LogKey, table.LogRow] = {}
        for draft in drafts:
            record, key, row = self._seal(txn, group, grp, draft)
            txn.lookups["log", key] = ends[key] = table.put(txn, grp, record, row, fresh=True)
            sealed.append(record)
        for moved in ends.values():
            table.keep_log(txn.connection, moved)
        return sealed

    def _seal(
        self,
        txn: Txn,
        group: bytes,
        grp: int,
        draft: Draft,
    ) -> tuple[Verified, LogKey, table.LogRow]:
        lane = table.LANE_CONTROL if draft.kind < 32 else table.LANE_DATA
        try:
            key = self._sealer.log(group, lane)
            row = txn.once(("log", key), lambda: table.log_row(txn.connection, grp, key))
            prev, hlc_min = table.log_end(txn.connection, row)
            at = table.Position(key, row.max_seq + 1, prev, hlc_min)
            return self._sealer.seal(draft, at), key, row
        except KeyError as exc:
            raise RefusedError("unknown_scope", NOTHING_SEALED) from exc

    def put_receipt(self, txn: Txn, key: bytes, result: bytes) -> None:
        """Keep a call's result with its effect; old ones go."""
        if not key or len(key) > 128:
            raise UsageError("a receipt's key has 1 to 128 bytes")
        connection = txn.connection
        now_ms = self.db.wall_ms()
        connection.execute("INSERT OR REPLACE INTO receipt VALUES (?, ?, ?)", (key, result, now_ms))
        self._receipts_written += 1
        if self._receipts_written % RECEIPT_PRUNE_EVERY == 1:
            connection.execute("DELETE FROM receipt WHERE at_ms < ?", (now_ms - RECEIPT_LIFE_MS,))
            connection.execute(
                "DELETE FROM receipt WHERE key IN"
                " (SELECT key FROM receipt ORDER BY at_ms DESC LIMIT -1 OFFSET ?)",
                (RECEIPTS_MAX,),
            )

    # ---- after a commit

    def _write_mark(self, results: Sequence[object]) -> None:
        """In the writer's thread, before any caller of the batch wakes."""
        erased: list[bytes] = []
        for done in results:
            if isinstance(done, _Done):
                self._mark.raise_to(done.txn.marks)
                erased += done.txn.erased
        if erased or self._erased.behind:
            self._erased.append(erased)
        self._mark.write()

    def _close_files(self) -> None:
        self._mark.close()
        self._erased.close()

    def _announce(self, done: _Done[T]) -> None:
        txn = done.txn
        self._commits += 1
        for group in txn.changed | txn.stored.keys():
            self._indexes.pop((group, table.LANE_CONTROL), None)
            self._indexes.pop((group, table.LANE_DATA), None)
        for group, ids in txn.stored.items():
            for tell in self._on_commit:
                tell(group, ids)
        for group, ids in txn.turned.items():
            for turn in self._on_turn:
                turn(group, ids)
        if done.places:
            for follow in self._on_touched:
                follow(done.places)
        for event in done.events:
            for hear in self._on_event:
                hear(event)
        if txn.erased:
            for due in self._on_erased:
                due()
        if txn.unsettled:
            for wake in self._on_unsettled:
                wake()
        for change in txn.told:
            for listen in self._on_trust:
                listen(change)


def _events(txn: Txn) -> list[MemoryEvent]:
    """The unit's events, a run of the same kind in one; scopes written while we are inside."""
    events: list[MemoryEvent] = []
    for name, record_id, scope in txn.events:
        written = txn.once(("written", scope), partial(_written, txn.connection, scope))
        last = events[-1] if events else None
        if last is not None and last.name == name and last.scope == written:
            events[-1] = MemoryEvent(name, (*last.ids, record_id.hex()), last.scope)
        else:
            events.append(MemoryEvent(name, (record_id.hex(),), written))
    return events


def _places(txn: Txn) -> dict[int, Place]:
    """(scope, tier) of the touched memories as this unit leaves them, None for erased ones."""
    places: dict[int, Place] = dict.fromkeys(txn.touched)
    rows = txn.connection.execute(
        "SELECT id, scope, tier FROM memory WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(txn.touched)),),
    )
    for memory, scope, tier in cast("list[tuple[int, int, int]]", rows.fetchall()):
        places[memory] = (scope, tier)
    return places


def _written(connection: apsw.Connection, scope: int) -> str:
    row = connection.execute(
        "SELECT s.name, g.name, g.home FROM scope s JOIN grp g ON g.n = s.grp WHERE s.id = ?",
        (scope,),
    ).fetchone()
    assert row is not None, "events name scopes that exist"
    return write_scope(str(row[1]), str(row[0]), home=bool(row[2]))
