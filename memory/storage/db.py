"""One SQLite database: a writer with group commit, a few readers, all from trio.

Theory of operation. Writing callers put a unit (a function of the connection) into a bounded queue
and sleep. One task has the writer's thread run what waits in one transaction; units that arrive
while it runs join it, at most 500 or for 4 ms. It commits with one fsync, and only then wakes the
callers: what a caller was told is done survives a power cut. 5.7 k durable inserts a second this
way against 1.5 k one by one. Without the joining, callers that wait for their answers fall into
pairs of a tiny and a large transaction, and pay two fsyncs for one.

A failing unit undoes itself alone. Most fail before they wrote anything, and then there is nothing
to undo. If one fails later, the transaction is rolled back and the batch runs once more with a
savepoint around each unit. Savepoints are not the rule because each makes FTS5 write a segment of
its own: they took a third of the throughput. So a unit may run twice, and must do nothing but use
its connection.

A cancelled caller's unit is dropped if the writer has not taken it yet, else it commits: whoever
retries carries an idempotency key. Nobody cancels the writer within a transaction. Readers run one
short transaction a call; an open reader would hold back the checkpoint and with it erasure.

Source: docs/decisions/0005-sqlite-through-apsw.md, 0006-group-commit-and-durability.md.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

import apsw
import trio

from memory.errors import StoreError, UsageError
from memory.storage.connect import BUSY_TIMEOUT_MS, CLOSE_GRACE_S, Link, open_link, translate
from memory.storage.schema import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from memory.seams import Env

T = TypeVar("T")

log = logging.getLogger("covey.memory.db")

QUEUE_UNITS_MAX: Final = 1_000
"""Units waiting for the writer; one more blocks its caller. About .2 s of work."""

BATCH_UNITS_MAX: Final = 500
"""Units of one transaction: the caller at its front waits for all of them."""

BATCH_OPEN_S: Final = 0.004
"""How long units may join a transaction: about the time of an fsync, so it costs the caller at the
front no more than the transaction it would have waited behind."""

READERS: Final = 3
"""Reading connections: the machine that chose this had two cores."""


READER_GRACE_S: Final = 5.0
"""How long a read may hold back an erasure before it is ended (memory.md s.8)."""

STRANGER_GRACE_S: Final = 1.0
"""How long another process's read is waited for: it may last, and cannot be ended."""

CHECKPOINT_WAIT_MS: Final = 20
"""How long a truncating checkpoint waits for readers at a time: no writer runs meanwhile."""

CHECKPOINT_EVERY_S: Final = 0.03
AFTER_END_S: Final = 1.0
"""How long a cancelled read may take to let go: APSW rolls back within .2 s."""

READ_ENDED: Final = "the query ran too long while an erasure waited for it: ask again"

STOPPING: Final = "the daemon is stopping: try again when it is up"


class _Unit(Generic[T]):
    """A write waiting for its transaction."""

    __slots__ = ("abandoned", "committed", "done", "dropped", "error", "fn", "full", "value")

    def __init__(
        self,
        fn: Callable[[apsw.Connection], T],
        committed: Callable[[T], None] | None,
        full: bool,
    ) -> None:
        self.fn = fn
        self.committed = committed
        self.full = full
        self.done = trio.Event()
        self.abandoned = False
        """Its caller was cancelled."""
        self.dropped = False
        """That was so when the writer came to it: it does not run."""
        self.error: BaseException | None = None
        self.value: T | None = None

    def run(self, connection: apsw.Connection) -> bool:
        """Run; keep the error for the caller. False if it failed and left something to undo."""
        before = connection.total_changes()
        self.value = self.error = None
        try:
            self.value = self.fn(connection)
        except Exception as exc:  # noqa: BLE001 - handed to the caller, whose error it is
            self.error = exc
            return connection.in_transaction and connection.total_changes() == before
        return True

    def run_apart(self, connection: apsw.Connection) -> bool:
        """Run inside a savepoint. False if SQLite has rolled the whole transaction back."""
        connection.execute("SAVEPOINT unit")
        self.run(connection)
        if not connection.in_transaction:
            return False  # a full disk does this
        if self.error is not None:
            connection.execute("ROLLBACK TO unit")
        connection.execute("RELEASE unit")
        return True

    def announce(self) -> None:
        """Tell the committed callback; in the loop, before the caller wakes."""
        if self.error is None and self.committed is not None:
            self.committed(cast("T", self.value))  # set whenever error is None


class Reader:
    """A reading connection, on its own thread."""

    __slots__ = ("_connection",)

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def read(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run `fn` in one read transaction."""
        connection = self._connection
        connection.execute("BEGIN")
        try:
            return fn(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


class Db:
    """A database file. Inert until `run` is started.

    Args:
        path: the database file; its folder must exist.
        env: for the time of a migration and for fault points.
        vfs: name of a registered SQLite VFS, None for the system's.
        inline: run SQLite in the loop: for simulated clocks.
        migrations: package whose numbered `.sql` files make the schema.
    """

    def __init__(
        self,
        path: Path,
        env: Env,
        *,
        vfs: str | None = None,
        inline: bool = False,
        migrations: str = "memory.storage.migrations",
    ) -> None:
        self.path = path
        self._env = env
        self._vfs = vfs
        self._inline = inline
        self._migrations = migrations
        # The loop appends, the writer's thread takes: a deque does both atomically.
        self._queue: deque[_Unit[object]] = deque()
        self._places = trio.Semaphore(QUEUE_UNITS_MAX)
        self._arrived = trio.Event()
        self._idle: list[Link] = []
        self._readers_free = trio.Semaphore(0, max_value=READERS)
        self._reads: set[trio.CancelScope] = set()
        self._writer: Link | None = None
        self._full = True
        """Whether commits are synced now: SQLite refuses to change it inside a transaction."""
        self._scope = trio.CancelScope()
        self._state = "new"
        self._closed = trio.Event()
        self.after_commit: Callable[[Sequence[object]], None] | None = None
        """Given the units' results in the writer's thread after COMMIT, before callers wake."""
        self.on_begin: Callable[[], None] | None = None
        """Called in the writer's thread whenever a transaction or a unit's savepoint begins."""
        self.before_close: Callable[[], None] | None = None
        """Called once on the way out, after the last commit."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, migrate, serve until cancelled or closed, checkpoint.

        Raises:
            StoreError: the file is damaged, from a newer Covey, or cannot be opened.
        """
        if self._state != "new":
            raise UsageError("a Db runs once")
        self._state = "opening"
        try:
            await self._open()
            self._state = "open"
            with self._scope:
                task_status.started()
                await self._write_loop()
        finally:
            self._state = "closed"
            self._refuse_queued()
            with trio.move_on_after(CLOSE_GRACE_S, shield=True):
                await self._close()
            self._closed.set()

    async def aclose(self) -> None:
        """End `run` and wait until the file is checkpointed and closed."""
        self._scope.cancel()
        if self._state != "new":
            await self._closed.wait()

    @property
    def queue_full(self) -> bool:
        """Whether a `write` would have to wait for a place."""
        return self._places.value == 0

    async def read(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run `fn` in one read transaction on its own thread and return its result.

        Raises:
            StoreError: the database cannot serve, or an erasure waited too long for this read.
        """
        return await self.visit(lambda reader: reader.read(fn))

    async def visit(self, fn: Callable[[Reader], T]) -> T:
        """Run `fn` on a reader's thread and return its result.

        It opens its transactions itself, one after another, and may compute between them: one way
        to the thread and back for all of it.

        Raises:
            StoreError: the database cannot serve, or an erasure waited too long for this read.
        """
        self._check_open()
        async with self._readers_free:
            link = self._idle.pop()
            scope = trio.CancelScope()
            self._reads.add(scope)
            try:
                with scope:
                    return await link.run(lambda: fn(Reader(link.connection)))
            except apsw.Error as exc:
                raise translate(exc, self.path) from exc
            finally:
                self._reads.discard(scope)
                self._idle.append(link)
        raise StoreError("busy", READ_ENDED)

    async def write(
        self,
        fn: Callable[[apsw.Connection], T],
        committed: Callable[[T], None] | None = None,
        *,
        full: bool = True,
    ) -> T:
        """Run `fn` as one atomic unit; return its result once it is on disk.

        Args:
            fn: runs in the writer's thread; whatever it raises undoes it, and only it. It may run
                twice, the first time undone: it must do nothing but use its connection.
            committed: called in the loop, in commit order, before any caller of the batch wakes,
                also when the caller was cancelled meanwhile. Must not raise.
            full: whether a power cut after the return may not take it back; else only a crash of
                the process may not. For what can be computed again, never for a caller's word.

        Raises:
            StoreError: the transaction could not be committed; nothing of it is there.
        """
        self._check_open()
        unit = _Unit(fn, committed, full)
        await self._enqueue(cast("_Unit[object]", unit))
        try:
            await unit.done.wait()
        except trio.Cancelled:
            unit.abandoned = True
            raise
        if unit.error is not None:
            if isinstance(unit.error, apsw.Error):
                raise translate(unit.error, self.path) from unit.error
            raise unit.error
        return cast("T", unit.value)  # set whenever error is None

    async def _enqueue(self, unit: _Unit[object]) -> None:
        await self._places.acquire()
        if self._state != "open":
            self._places.release()
            raise StoreError("closed", STOPPING)
        self._queue.append(unit)
        self._arrived.set()

    def sizes(self) -> tuple[int, int]:
        """Bytes of the database file and of its write-ahead log."""
        return _size(str(self.path)), _size(f"{self.path}-wal")

    def wall_ms(self) -> int:
        """Unix milliseconds of the environment, for rows that carry an age."""
        return self._env.wall_ms()

    async def quick_check(self) -> str:
        """`ok`, or SQLite's first findings. Reads the whole file."""
        return await self.read(
            lambda connection: "; ".join(
                str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")
            )
        )

    async def checkpoint(self) -> bool:
        """Copy the write-ahead log into the file and empty it; False if a reader was in the way."""
        self._check_open()
        writer = self._require_writer()
        # Queued behind the batch in work on the same thread, so never inside a transaction.
        busy = await writer.run(
            lambda: writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]
        )
        return busy == 0

    async def settle_wal(self, grace_s: float = READER_GRACE_S) -> bool:
        """Empty the write-ahead log, so that what was deleted is in no file any more.

        Waits for reads under way, ends those that are there after `grace_s`, and gives up where
        somebody else holds the file open: another process that reads it.

        Returns:
            Whether the log is empty; False: call it again later.

        Raises:
            StoreError: the file could not be written.
        """
        began = trio.current_time()
        until = began + grace_s
        while not await self._truncate_wal():
            now = trio.current_time()
            if not self._reads and now >= began + min(grace_s, STRANGER_GRACE_S):
                return False
            if now >= until:
                for scope in list(self._reads):
                    scope.cancel()
                until = now + AFTER_END_S
            await trio.sleep(CHECKPOINT_EVERY_S)
        return True

    async def _truncate_wal(self) -> bool:
        self._check_open()
        writer = self._require_writer()

        def truncate() -> bool:
            connection = writer.connection
            connection.set_busy_timeout(CHECKPOINT_WAIT_MS)
            try:
                row = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            return row is not None and row[0] == 0

        try:
            # Queued behind the batch in work on the same thread, so never inside a transaction.
            return await writer.run(truncate)
        except apsw.BusyError:
            return False  # another process is checkpointing
        except apsw.Error as exc:
            raise translate(exc, self.path) from exc

    # ---- opening and closing

    async def _open(self) -> None:
        writer = await open_link(self.path, vfs=self._vfs, inline=self._inline, writer=True)
        self._writer = writer
        try:
            await writer.run(
                lambda: migrate(writer.connection, self.path, self._env, self._migrations)
            )
        except apsw.Error as exc:
            raise translate(exc, self.path) from exc
        for _ in range(READERS):
            link = await open_link(self.path, vfs=self._vfs, inline=self._inline, writer=False)
            self._idle.append(link)
            self._readers_free.release()

    async def _close(self) -> None:
        if self.before_close is not None:
            self.before_close()
        for link in self._idle:
            await link.aclose()
        self._idle.clear()
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            await writer.run(lambda: _last_checkpoint(writer.connection))
        finally:
            await writer.aclose()

    def _check_open(self) -> None:
        if self._state != "open":
            raise StoreError("closed", STOPPING)

    def _require_writer(self) -> Link:
        assert self._writer is not None, "the writer exists while the state is open"
        return self._writer

    # ---- writing

    async def _write_loop(self) -> None:
        while True:
            if not self._queue:
                self._arrived = trio.Event()
                await self._arrived.wait()
            # A transaction begun is a transaction ended, whatever happens to this task.
            with trio.CancelScope(shield=True):
                await self._commit()

    async def _commit(self) -> None:
        writer = self._require_writer()
        batch: list[_Unit[object]] = []
        failed = await writer.run(lambda: self._transaction(writer.connection, batch))
        for unit in batch:
            if failed is not None and unit.error is None:
                unit.error = failed
            unit.announce()
        for unit in batch:
            self._finish(unit)
        bug = next((unit.error for unit in batch if isinstance(unit.error, AssertionError)), None)
        if bug is not None:
            raise bug  # an invariant of the store is broken: end the process, the disk is intact

    def _finish(self, unit: _Unit[object]) -> None:
        unit.done.set()
        self._places.release()

    def _transaction(
        self, connection: apsw.Connection, batch: list[_Unit[object]]
    ) -> apsw.Error | None:
        """Run what waits and what joins, in the writer's thread.

        Args:
            connection: the writer's.
            batch: filled with the units taken; each has its value or error afterwards.

        Returns:
            The error that undid all of it, or None.
        """
        try:
            self._set_synced(connection, full=any(unit.full for unit in tuple(self._queue)))
            self._begin(connection)
            if not all(unit.run(connection) for unit in self._joining(batch)):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._begin(connection)
                for unit in batch:
                    if self.on_begin is not None:
                        self.on_begin()
                    if not (unit.dropped or unit.run_apart(connection)):
                        return _rolled_back(unit.error)
            if self._env.fault("store.commit"):
                raise apsw.FullError("fault store.commit")
            connection.execute("COMMIT")
        except apsw.Error as exc:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            log.warning("commit_failed", extra={"f": {"error": type(exc).__name__}})
            if not batch:  # not even begun: those who wait are told, not kept waiting for ever
                deque(self._joining(batch), maxlen=0)
            return exc
        self._env.fault("store.committed")
        if self.after_commit is not None:
            self.after_commit([unit.value for unit in batch if unit.error is None])
        return None

    def _set_synced(self, connection: apsw.Connection, *, full: bool) -> None:
        """One unit that must survive a power cut makes its whole transaction do so."""
        if full != self._full:
            connection.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
            self._full = full

    def _begin(self, connection: apsw.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if self.on_begin is not None:
            self.on_begin()

    def _joining(self, batch: list[_Unit[object]]) -> Iterator[_Unit[object]]:
        """Units in order of arrival, while the transaction is open to more."""
        until = self._env.now() + BATCH_OPEN_S
        while self._queue and len(batch) < BATCH_UNITS_MAX:
            if self._queue[0].full and not self._full:
                return  # it came after the transaction had begun without a sync
            unit = self._queue.popleft()
            batch.append(unit)
            unit.dropped = unit.abandoned
            if unit.dropped:
                unit.error = UsageError("its caller was cancelled before it was taken")
                continue
            yield unit
            if self._env.now() > until:
                return

    def _refuse_queued(self) -> None:
        """Wake those whose units will never run."""
        while self._queue:
            unit = self._queue.popleft()
            unit.error = StoreError("closed", STOPPING)
            self._finish(unit)


def _rolled_back(error: BaseException | None) -> apsw.Error:
    """What undid the transaction from inside a unit."""
    return error if isinstance(error, apsw.Error) else apsw.AbortError("transaction rolled back")


def _last_checkpoint(connection: apsw.Connection) -> None:
    """Leave one tidy file. If it cannot be done all is still safe in the write-ahead log."""
    try:
        connection.execute("PRAGMA optimize").fetchall()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except apsw.Error as exc:
        log.warning("last_checkpoint_failed", extra={"f": {"error": type(exc).__name__}})


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a plain stat, no Path object needed
    except FileNotFoundError:
        return 0
