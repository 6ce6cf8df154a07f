"""Opening SQLite the one way Covey opens it, and naming its errors.

An `apsw` connection runs in a thread of its own (APSW's trio support) or inline: a simulated clock
does not see threads, so under it five virtual seconds pass while a query takes a third of one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar, cast

import apsw
import apsw.aio
import trio

from memory.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

APPLICATION_ID: Final = 0x434F5659
"""`COVY`, in the file header: `file` and a stray `sqlite3` can tell whose database it is."""

BUSY_TIMEOUT_MS: Final = 5_000
"""How long a statement waits for a lock that another process holds."""

PRAGMAS: Final = (
    # FULL: in WAL mode NORMAL acknowledged 468 of 506 commits that a power cut then took back.
    # temp_store=MEMORY and secure_delete=ON: no deleted text in a temporary file or a free page.
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=ON",
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    f"busy_timeout={BUSY_TIMEOUT_MS}",
    "temp_store=MEMORY",
    "journal_size_limit=67108864",
    "cache_size=-16000",
    "mmap_size=0",
)

STATEMENTS_CACHED: Final = 200
"""Prepared statements kept per connection; the store has about 90 different ones."""

CLOSE_GRACE_S: Final = 5.0
"""How long closing may take on the way out: one running statement."""

RESTORE: Final = (
    "stop the daemon with `covey down`; `covey restore latest` puts your newest backup in its place"
)


class Link:
    """One connection, asked from trio one call at a time.

    Args:
        connection: opened by `open_link`.
        inline: whether calls run in the loop itself.
    """

    def __init__(self, connection: apsw.Connection, *, inline: bool) -> None:
        self.connection = connection
        self._inline = inline

    async def run(self, fn: Callable[[], T]) -> T:
        """Run `fn` on the connection's thread and return what it returns.

        A cancelled call interrupts the query; `fn` must leave no transaction open on any path.
        """
        if self._inline:
            await trio.lowlevel.checkpoint()
            return fn()
        # Without this APSW hands the caller's deadline to SQLite and raises TooSlowError in here,
        # in place of the cancellation that the caller's scope expects.
        token = apsw.aio.deadline.set(math.inf)
        try:
            return cast("T", await cast("apsw.AsyncConnection", self.connection).async_run(fn))
        finally:
            apsw.aio.deadline.reset(token)

    async def aclose(self) -> None:
        """Close the connection and end its thread."""
        if self._inline:
            await trio.lowlevel.checkpoint()
            self.connection.close()
        else:
            await cast("apsw.AsyncConnection", self.connection).aclose()


async def open_link(path: Path, *, vfs: str | None, inline: bool, writer: bool) -> Link:
    """Open the database and set the pragmas.

    Raises:
        StoreError: it cannot be opened; the message says what to do.
    """
    name = str(path)
    try:
        if inline:
            link = Link(
                apsw.Connection(name, vfs=vfs, statementcachesize=STATEMENTS_CACHED), inline=True
            )
        else:
            opened = await apsw.Connection.as_async(
                name, vfs=vfs, statementcachesize=STATEMENTS_CACHED
            )
            link = Link(cast("apsw.Connection", opened), inline=False)
    except apsw.Error as exc:
        raise translate(exc, path) from exc
    ready = False
    try:
        await link.run(lambda: _configure(link.connection, path, writer=writer))
        ready = True
    except apsw.Error as exc:
        raise translate(exc, path) from exc
    finally:
        if not ready:
            with trio.move_on_after(CLOSE_GRACE_S, shield=True):
                await link.aclose()
    return link


def _configure(connection: apsw.Connection, path: Path, *, writer: bool) -> None:
    found = connection.execute("PRAGMA application_id").get
    used = connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").get
    if found != APPLICATION_ID and (found or used):
        raise StoreError(
            "corrupt", f"{path} is not a Covey database: move it away or fix the state folder"
        )
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    # A plan does not depend on bound values: else each new value compiles the statement anew, which
    # quadrupled the time of small joins.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    if not writer:
        connection.execute("PRAGMA query_only=ON").fetchall()
    elif not found:
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}").fetchall()


def translate(exc: apsw.Error, path: Path) -> StoreError:
    """Name SQLite's error by situation, with a remedy. Never quotes SQL values or memory text."""
    if isinstance(exc, apsw.FullError):
        return StoreError("full", f"the disk of {path.parent} is full: free space, then try again")
    if isinstance(exc, (apsw.CorruptError, apsw.NotADBError)):
        return StoreError("corrupt", f"{path} is damaged or encrypted ({exc}): {RESTORE}")
    if isinstance(exc, (apsw.BusyError, apsw.LockedError)):
        return StoreError("busy", f"another process holds {path}: stop it, then try again")
    if isinstance(exc, (apsw.CantOpenError, apsw.PermissionsError, apsw.ReadOnlyError)):
        return StoreError("io", f"{path} cannot be opened for writing: check owner and mode")
    if isinstance(exc, apsw.IOError):
        return StoreError("io", f"reading or writing {path} failed ({exc}): check the disk")
    return StoreError("corrupt", f"{path} cannot be used ({type(exc).__name__}): {RESTORE}")
