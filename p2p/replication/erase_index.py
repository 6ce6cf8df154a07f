"""What a group's erase records name, and who says that it carried them out: in memory, and bounded.

A member may write erase records without end, 256 ids each, of records that never were. So each
author has a share of the index, and the group a limit that leaves everybody a little. What is over
is not lost: it is on disk like every control record, and upkeep walks through it a piece at a time
(`erasing.Erasing.walk`); only its effect comes later, and an admin's word about others not at all.
Source: docs/specs/record.md s.9.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p.replication.ops import Erase, EraseAck

if TYPE_CHECKING:
    from p2p.replication.ops import Payload
    from p2p.replication.record import Header

RECORD_WEIGHT: Final = 4
"""What a record takes beside the ids it names, in ids."""


@dataclass(frozen=True)
class Erasure:
    """An erase record, as far as it says who wants a body gone."""

    id: bytes
    head: Header


@dataclass(frozen=True)
class EraseRecord:
    """An erase record with what it names."""

    head: Header
    targets: tuple[bytes, ...]


@dataclass(frozen=True)
class EraseWord:
    """A member's record that says it has carried out an erase record."""

    id: bytes
    head: Header
    bodies: int
    partial: bool

    @property
    def member(self) -> bytes:
        """Whose word it is."""
        return self.head.author


@dataclass
class Room:
    """How much a group's members may put into memory, in ids (some 200 bytes each)."""

    author_max: int = 65_536
    """Of one author."""
    group_max: int = 262_144
    """Of all together."""
    author_min: int = 4_096
    """What an author has however full the group is: nobody can take it."""
    used: Counter[bytes] = field(default_factory=Counter)
    total: int = 0

    def take(self, author: bytes, size: int) -> bool:
        """Take room for an author; False: it has none left."""
        mine = self.used[author] + size
        if mine > self.author_max or (
            mine > self.author_min and self.total + size > self.group_max
        ):
            return False
        self.used[author] = mine
        self.total += size
        return True

    def clear(self) -> None:
        """Nothing is taken."""
        self.used.clear()
        self.total = 0


@dataclass
class EraseIndex:
    """Erase records of one group and the words on them."""

    me: bytes = b""
    """This device: its own words are bounded by what it has."""
    targets: dict[bytes, list[Erasure]] = field(default_factory=dict)
    """Id of a data record, here or not yet -> the erase records that name it."""
    records: dict[bytes, EraseRecord] = field(default_factory=dict)
    """Erase records by their id, whether they count or not."""
    words: dict[bytes, dict[bytes, EraseWord]] = field(default_factory=dict)
    """Id of an erase record -> member -> its newest word on it."""
    left_out: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Author of erase records that are not in here -> (incarnation, seq) where the walk stands."""
    room: Room = field(default_factory=Room)
    room_of_words: Room = field(default_factory=Room)

    def clear(self) -> None:
        """Forget all; the store has it."""
        self.targets.clear()
        self.records.clear()
        self.words.clear()
        self.left_out.clear()
        self.room.clear()
        self.room_of_words.clear()

    def note(self, ident: bytes, head: Header, payload: Payload | None) -> None:
        """Remember what an erase record names, or who confirmed one; other payloads are neither."""
        if isinstance(payload, Erase):
            self._note_record(ident, head, payload)
        elif isinstance(payload, EraseAck):
            self._note_words(ident, head, payload)

    def _note_record(self, ident: bytes, head: Header, payload: Erase) -> None:
        if ident in self.records:
            return
        size = len(payload.ids) + RECORD_WEIGHT
        if head.author != self.me and not self.room.take(head.author, size):
            self.left_out.setdefault(head.author, (0, 0))
            return
        self.records[ident] = EraseRecord(head, payload.ids)
        for target in payload.ids:
            self.targets.setdefault(target, []).append(Erasure(ident, head))

    def _note_words(self, ident: bytes, head: Header, payload: EraseAck) -> None:
        for erased, bodies, partial in payload.erased:
            words = self.words.get(erased, {})
            before = words.get(head.author)
            if before is None:
                if head.author != self.me and not self.room_of_words.take(head.author, 1):
                    return
            elif before.head.hlc >= head.hlc:
                continue
            words[head.author] = EraseWord(ident, head, bodies, bool(partial))
            self.words[erased] = words
