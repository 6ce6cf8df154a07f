"""Results of mutating calls, so that a request sent twice acts once.

The memory writes a receipt inside the transaction of the effect itself; this module only reads them
and throws old ones away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

    from federated.seams import Db

# daemon.md s.6: a client that comes back later than a day starts anew.
KEEP_MS: Final = 24 * 3600 * 1000
KEEP_ROWS: Final = 10_000


class Receipts:
    """Reads the receipt table.

    Args:
        db: the database; its `receipt` table comes with memory's migrations.
        wall_ms: clock of the expiry.
    """

    def __init__(self, db: Db, wall_ms: Callable[[], int]) -> None:
        self._db = db
        self._wall_ms = wall_ms

    async def get(self, key: bytes) -> bytes | None:
        """The stored result (JSON), None if there is none or it is over a day old."""
        oldest = self._wall_ms() - KEEP_MS

        def read(connection: apsw.Connection) -> bytes | None:
            row = connection.execute(
                "SELECT result FROM receipt WHERE key = ? AND at_ms >= ?", (key, oldest)
            ).fetchone()
            return None if row is None else bytes(row[0])

        # In the writer's order, not beside it: the first attempt of a connection that was cut off
        # may be in the batch that is being committed just now.
        return await self._db.write(read)

    async def purge(self) -> int:
        """Drop receipts over a day old, and all but the newest 10,000; how many went."""
        oldest = self._wall_ms() - KEEP_MS

        def write(connection: apsw.Connection) -> int:
            connection.execute(
                "DELETE FROM receipt WHERE at_ms < ? OR key NOT IN"
                " (SELECT key FROM receipt ORDER BY at_ms DESC LIMIT ?)",
                (oldest, KEEP_ROWS),
            )
            return connection.changes()

        return await self._db.write(write)
