"""What one atomic unit of writing carries along, and what to announce after its COMMIT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import apsw

    from memory.seams import LogKey


class MemoryEvent(msgspec.Struct, frozen=True):
    """Something that happened to memories; never their text.

    Attributes:
        name: `stored`, `superseded`, `restored`, `forgotten` or `hidden`; topic `memory`.
        ids: record ids, hex.
        scope: as a caller would write it, so that subscribers see only what they may read.
    """

    name: str
    ids: tuple[str, ...]
    scope: str


class Txn:
    """One unit in the writer's thread.

    Attributes:
        connection: inside the transaction.
        stored: ids of records stored, by group, in order.
        changed: groups whose set of counting records changed.
        events: (name, id, scope row) to announce.
        marks: own log positions reached.
    """

    __slots__ = ("changed", "connection", "events", "marks", "stored")

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.stored: dict[bytes, list[bytes]] = {}
        self.changed: set[bytes] = set()
        self.events: list[tuple[str, bytes, int]] = []
        self.marks: dict[LogKey, int] = {}
