"""Upkeep by hand of what is derived: the full-text indexes and their counters."""

# SQL is put together from this file's own constants; every value is bound.
# ruff: noqa: S608

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memory.storage.sql import number
from memory.tiers import LOW, MAIN

if TYPE_CHECKING:
    import apsw

    from memory.storage.db import Db

_INDEXES: Final = (("main_fts", "main_chunks", MAIN), ("low_fts", "low_chunks", LOW))


async def reindex(db: Db) -> int:
    """Build the full-text indexes anew from the texts; how many chunks they hold.

    An index at a time, each in one transaction: 100,000 chunks take some seconds, in which nothing
    else is written.

    Raises:
        StoreError: the database cannot serve; the indexes are as they were.
    """
    total = 0
    for table, counter, tier in _INDEXES:

        def unit(
            connection: apsw.Connection,
            table: str = table,
            counter: str = counter,
            tier: int = tier,
        ) -> int:
            connection.execute(f"INSERT INTO {table}({table}) VALUES ('rebuild')")
            connection.execute(
                f"UPDATE scope SET generation = generation + 1, {counter} ="
                " (SELECT count(*) FROM chunk c JOIN memory m ON m.id = c.memory"
                " WHERE m.scope = scope.id AND m.tier = ?)",
                (tier,),
            )
            return number(connection, f"SELECT coalesce(sum({counter}), 0) FROM scope")

        total += await db.write(unit)
    return total
