"""What one atomic unit of writing carries along, and what to announce after its COMMIT."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar, cast

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

    from memory.seams import LogKey, Scanner

T = TypeVar("T")

Lookups: TypeAlias = "dict[tuple[object, ...], object]"
"""Rows that several units of one transaction need: groups, authors, scopes, ends of own logs.

Each statement gives up the interpreter's lock and waits to get it back, which under load costs
more than the statement. Emptied when a transaction or savepoint begins, and by whatever changes
such rows.
"""


Place: TypeAlias = "tuple[int, int] | None"
"""(scope row, tier) a memory is in; None when it is gone."""


class MemoryEvent(msgspec.Struct, frozen=True):
    """Something that happened to memories; never their text.

    Attributes:
        name: `stored`, `superseded`, `restored`, `forgotten`, `hidden` or `erased`; topic `memory`.
        ids: record ids, hex.
        scope: as a caller would write it, so that subscribers see only what they may read.
    """

    name: str
    ids: tuple[str, ...]
    scope: str


class TrustEvent(NamedTuple):
    """Something about an author's trust, told after its commit.

    Attributes:
        name: `changed` (its memories now belong in another index), `alarm` or `banned`.
        device: its device key.
        agent: agent name, empty for the person.
        before: T before; of an alarm, where it was within the last day.
        after: T now.
    """

    name: str
    device: bytes
    agent: str
    before: float
    after: float


class Txn:
    """One unit in the writer's thread.

    Attributes:
        connection: inside the transaction.
        stored: ids of records stored, by group, in order.
        cells: (group row, tag) of state cells -> their records that turned in the unit.
        changed: groups whose set of counting records changed.
        erased: ids erased, for the side file.
        events: (name, id, scope row) to announce.
        indexed: chunks added by (scope row, tier), for the scopes' counts.
        marks: own log positions reached.
        judged: author rows about whom something is known anew; folded at the end of the unit.
        related: ids of records stored that have to do with others: a cluster, a claim, a statement.
        told: what became of authors' trust, to announce.
        unsettled: whether work of trust is left for the background.
        lookups: rows known from this transaction.
        turned: ids of state records that were here and began or ceased to count, by group.
        touched: memory rows whose chunks were added, removed or changed tier.
        scanner: looks through the texts of what is projected; None for nothing.
        now_ms: Unix milliseconds at the unit's begin: the date of what this node observes.
    """

    __slots__ = (
        "cells",
        "changed",
        "connection",
        "erased",
        "events",
        "indexed",
        "judged",
        "lookups",
        "marks",
        "now_ms",
        "related",
        "scanner",
        "stored",
        "told",
        "touched",
        "turned",
        "unsettled",
    )

    def __init__(
        self,
        connection: apsw.Connection,
        lookups: Lookups | None = None,
        *,
        scanner: Scanner | None = None,
        now_ms: int = 0,
    ) -> None:
        self.cells: dict[tuple[int, bytes], dict[int, None]] = {}
        self.connection = connection
        self.lookups: Lookups = {} if lookups is None else lookups
        self.stored: dict[bytes, list[bytes]] = {}
        self.changed: set[bytes] = set()
        self.erased: list[bytes] = []
        self.events: list[tuple[str, bytes, int]] = []
        self.indexed: dict[tuple[int, int], int] = {}
        self.marks: dict[LogKey, int] = {}
        self.judged: set[int] = set()
        self.related: set[bytes] = set()
        self.told: list[TrustEvent] = []
        self.touched: set[int] = set()
        self.turned: dict[bytes, list[bytes]] = {}
        self.unsettled = False
        self.scanner = scanner
        self.now_ms = now_ms

    def once(self, key: tuple[object, ...], find: Callable[[], T]) -> T:
        """What `find` returns, asked once a transaction; None is asked for again."""
        known = self.lookups.get(key)
        if known is None:
            known = self.lookups[key] = find()
        return cast("T", known)  # each key has one kind of value
