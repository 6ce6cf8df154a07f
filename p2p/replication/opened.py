"""Opened records of state cells, kept so that a value read often is opened once.

Opening a record takes some 20 us, and a set reads all of its elements. What is kept is plain text:
it is bounded by bytes, goes when its record is erased, and goes by whole cells, the one not read
for longest first. Source: docs/specs/state.md s.4.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeAlias

from p2p.errors import DecodeError
from p2p.replication.shares import record_of
from p2p.replication.state import Entry, Silent, decode_body_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from p2p.replication.sealing import GroupSealer
    from p2p.replication.store import Stored

OPENED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of bodies kept open, with what Python needs for each. Guess: some 40,000 small values."""

OBJECT_BYTES: Final = 800
"""An entry beside its value: ids, numbers, the dataclasses."""

VALUE_FACTOR: Final = 3
"""How much larger a value is in memory than packed, about: small texts and numbers are objects."""

Opened: TypeAlias = "Entry | Silent"
CellKey: TypeAlias = "tuple[bytes, bytes]"
"""(group, tag)."""


def open_row(sealer: GroupSealer, row: Stored) -> tuple[Opened, int] | None:
    """What a record of a cell says, and its size in memory, about.

    Returns:
        None where its body or its key is not here.
    """
    record = record_of(row)
    if record.envelope is None or record.key_tag is None:
        return None
    place = (record.id, record.hlc, record.author, record.incarnation, record.seq)
    supersedes = tuple(record.supersedes)
    try:
        plain = sealer.open_body(record)
        if plain is None:
            return None
        said = decode_body_untrusted(plain)
    except DecodeError:
        return Silent(*place, supersedes), OBJECT_BYTES
    return Entry(*place, supersedes, said), OBJECT_BYTES + VALUE_FACTOR * len(plain)


class OpenedCells:
    """What was opened, by cell.

    Args:
        sealer: opens bodies.
        bytes_max: how much is kept, about.
    """

    def __init__(self, sealer: GroupSealer, bytes_max: int = OPENED_BYTES_MAX) -> None:
        self._sealer = sealer
        self._bytes_max = bytes_max
        self._cells: OrderedDict[CellKey, dict[bytes, tuple[Opened, int]]] = OrderedDict()
        self._where: dict[bytes, CellKey] = {}
        """Cell of each record kept."""
        self.size_bytes = 0
        """Of all that is kept, about."""
        self.drops = 0
        """Times that something was dropped: what was read before must not be kept after."""

    def of(self, cell: CellKey) -> Mapping[bytes, tuple[Opened, int]]:
        """What is kept of a cell: id -> (record, its size). The mapping never changes."""
        found = self._cells.get(cell)
        if found is None:
            return {}
        self._cells.move_to_end(cell)
        return found

    def open(
        self, rows: Iterable[Stored], held: Mapping[bytes, tuple[Opened, int]]
    ) -> dict[bytes, tuple[Opened, int]]:
        """Open rows, in their order, those held apart; what does not open yet is left out."""
        found = {}
        for row in rows:
            one = held.get(row.id) or open_row(self._sealer, row)
            if one is not None:
                found[row.id] = one
        return found

    def keep(self, cell: CellKey, records: dict[bytes, tuple[Opened, int]], drops: int) -> None:
        """Keep what a cell's value is made of, instead of what was kept of it.

        Args:
            cell: which.
            records: as `of`; not to be changed by the caller afterwards.
            drops: `drops` before they were read.
        """
        self._forget(cell)
        if drops != self.drops or not records:
            return
        self._cells[cell] = records
        self._where.update(dict.fromkeys(records, cell))
        self.size_bytes += sum(size for _, size in records.values())
        while self.size_bytes > self._bytes_max:
            self._forget(next(iter(self._cells)))

    def drop_records(self, ids: Iterable[bytes]) -> None:
        """Let go of records that count no more: their bodies may be erased.

        With the rest of their cells; and nothing that was read before is kept afterwards.
        """
        self.drops += 1
        for ident in ids:
            cell = self._where.get(ident)
            if cell is not None:
                self._forget(cell)

    def _forget(self, cell: CellKey) -> None:
        gone = self._cells.pop(cell, None)
        if gone is not None:
            self.size_bytes -= sum(size for _, size in gone.values())
            for ident in gone:
                self._where.pop(ident, None)
