"""Who may write to which segment: the pool's book, without a segment or a socket in it.

Theory of operation. A segment is memory that several processes map. The kernel does not take a
mapping back, so who has mapped a segment once can write to it until its process ends, by a bug or
because it is late. Two rules keep one trainer out of another's update all the same:

- **A segment has one holder.** The process that was first lent it is its holder until that process
  is reported dead, and nobody else is lent it before. Segments of the dead are used again.
- **A lend has a number.** It goes up by one with every lend of the segment. `filled` and `done`
  name it; one that names an earlier lend changes nothing and is refused as stale.

    FREE > LENT(owner, generation) > FILLED > FOLDING > FREE

A trainer whose connection ends while LENT may be alive and writing: its segment is RETIRED until
its process is reported dead. One that is FILLED or FOLDING holds a complete update, which is folded
whether its trainer lives or not.

The daemon's own sums and results are segments too (TOTAL, SHOWN), sealed so that only the daemon
writes; a shown one is not used again before all who read it are done with it or dead. Both kinds
count towards one limit of bytes. What does not fit is refused, and travels over the socket.

A hostile trainer of the same user can spoil its own update, and hold as much memory as the limits
say. Source: docs/specs/pool.md; LIFL, arXiv 2405.10968.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from federated.errors import UsageError
from federated.rounds.pool.records import SEGMENT_MAX, Reason

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

STEP_BYTES: Final = 2 << 20
"""Segments are whole steps, so that updates of almost one size share them: a huge page's size."""
POOL_BYTES_MAX: Final = 2 << 30
FREE_BYTES_MIN: Final = 512 << 20
"""Of the machine's memory, left to others (docs/specs/pool.md s.3)."""
SEGMENTS_MAX: Final = 256
LENDS_MAX: Final = 4
"""Open lends a process: two in flight and two being written is more than a trainer needs."""


class State(enum.Enum):
    """Where a segment is."""

    FREE = "free"
    LENT = "lent"
    FILLED = "filled"
    FOLDING = "folding"
    RETIRED = "retired"
    TOTAL = "total"
    SHOWN = "shown"


class Input(enum.Enum):
    """What happens to a segment."""

    LEND = "lend"
    FILL = "fill"
    GIVE_BACK = "give back"
    TAKE = "take"
    FOLDED = "folded"
    PART = "part"  # the connection of its owner ended
    EXIT = "exit"  # the process of its owner ended
    CLAIM = "claim"
    SHOW = "show"
    WITHDRAW = "withdraw"


TRANSITIONS: Final[Mapping[tuple[State, Input], State]] = {
    (State.FREE, Input.LEND): State.LENT,
    (State.FREE, Input.EXIT): State.FREE,
    (State.FREE, Input.CLAIM): State.TOTAL,
    (State.LENT, Input.FILL): State.FILLED,
    (State.LENT, Input.GIVE_BACK): State.FREE,
    (State.LENT, Input.PART): State.RETIRED,
    (State.LENT, Input.EXIT): State.FREE,
    (State.FILLED, Input.TAKE): State.FOLDING,
    (State.FILLED, Input.FOLDED): State.FREE,
    (State.FILLED, Input.EXIT): State.FILLED,
    (State.FOLDING, Input.FOLDED): State.FREE,
    (State.FOLDING, Input.EXIT): State.FOLDING,
    (State.RETIRED, Input.EXIT): State.FREE,
    (State.TOTAL, Input.SHOW): State.SHOWN,
    (State.TOTAL, Input.WITHDRAW): State.FREE,
    (State.SHOWN, Input.WITHDRAW): State.FREE,
}
"""The only place with transitions; a pair that is not here is our bug."""


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """What the pool may use.

    Attributes:
        bytes_max: of all segments together.
        free_bytes_min: of the machine's memory that a new segment leaves available.
        segments_max: segments at once; each is a descriptor here and in a trainer.
        lends_max: open lends a process.
    """

    bytes_max: int = POOL_BYTES_MAX
    free_bytes_min: int = FREE_BYTES_MIN
    segments_max: int = SEGMENTS_MAX
    lends_max: int = LENDS_MAX

    def __post_init__(self) -> None:
        """Check.

        Raises:
            UsageError: one is negative.
        """
        if min(self.bytes_max, self.free_bytes_min, self.segments_max, self.lends_max) < 0:
            raise UsageError("a limit of the pool is below 0")

    @classmethod
    def of_machine(cls, memory_bytes: int) -> PoolLimits:
        """A quarter of the machine's memory, at most 2 GiB."""
        return cls(bytes_max=min(memory_bytes // 4, POOL_BYTES_MAX))


@dataclass(slots=True)
class Entry:
    """A segment in the book.

    Attributes:
        number: names it, never used again.
        size: bytes, whole steps.
        shown: whether it is one of the daemon's own, which others can only read.
        state: where it is.
        generation: of the last lend or claim.
        holder: process that may have mapped it for writing; None: nobody alive.
        readers: processes that read it as a result.
    """

    number: int
    size: int
    shown: bool
    state: State = State.FREE
    generation: int = 0
    holder: int | None = None
    readers: set[int] = field(default_factory=set)

    def step(self, what: Input) -> None:
        """Change the state.

        Raises:
            KeyError: not in the table.
        """
        self.state = TRANSITIONS[self.state, what]


@dataclass(frozen=True, slots=True)
class Place:
    """A segment handed out.

    Attributes:
        number: of the segment.
        generation: of this lend or claim.
        size: bytes of the segment.
        fresh: whether it has to be made.
        dropped: numbers of segments that had to make room: close them first.
    """

    number: int
    generation: int
    size: int
    fresh: bool
    dropped: tuple[int, ...] = ()


class Book:
    """Segments and who may do what with them.

    Processes are numbers that the caller chooses and does not use again: process ids come back.
    Nothing is lent to a process after `exited`.

    Args:
        limits: what the pool may use.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self._entries: dict[int, Entry] = {}
        self._next = 0
        self.bytes_used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def entry(self, number: int) -> Entry:
        """A segment that is there.

        Raises:
            KeyError: it is not.
        """
        return self._entries[number]

    # ---- what trainers ask

    def lend(self, owner: int, nbytes: int, available_bytes: int) -> Place | Reason:
        """Lend a segment for writing.

        Args:
            owner: the process.
            nbytes: of the update.
            available_bytes: memory that the machine could give a new segment now.

        Returns:
            The place, or FULL or TOO_MANY.
        """
        lends = sum(e.state is State.LENT and e.holder == owner for e in self)
        if lends >= self._limits.lends_max:
            return Reason.TOO_MANY
        usable = [
            e for e in self if e.state is State.FREE and not e.shown and e.holder in (owner, None)
        ]
        found = self._best(usable, nbytes, owner) or self._make(nbytes, available_bytes)
        if found is None:
            return Reason.FULL
        entry, fresh, dropped = found
        entry.step(Input.LEND)
        entry.holder = owner
        entry.generation += 1
        return Place(entry.number, entry.generation, entry.size, fresh, dropped)

    def fill(self, owner: int, number: int, generation: int, *, offset: int, nbytes: int) -> Reason:
        """Take an update that lies in a lent segment.

        Returns:
            NONE; STALE (changes nothing) or SIZE (the lend is over).
        """
        entry = self._lent(owner, number, generation)
        if entry is None:
            return Reason.STALE
        if offset + nbytes > entry.size:
            entry.step(Input.GIVE_BACK)
            return Reason.SIZE
        entry.step(Input.FILL)
        return Reason.NONE

    def give_back(self, owner: int, number: int, generation: int) -> Reason:
        """End a lend that is not needed, or the reading of a result. NONE or STALE."""
        entry = self._lent(owner, number, generation)
        if entry is not None:
            entry.step(Input.GIVE_BACK)
            return Reason.NONE
        shown = self._entries.get(number)
        if shown is None or shown.generation != generation or owner not in shown.readers:
            return Reason.STALE
        shown.readers.discard(owner)
        return Reason.NONE

    def _lent(self, owner: int, number: int, generation: int) -> Entry | None:
        entry = self._entries.get(number)
        if entry is None or entry.state is not State.LENT:
            return None
        return entry if (entry.holder, entry.generation) == (owner, generation) else None

    # ---- what the daemon does

    def take(self, number: int) -> None:
        """Begin to fold a filled segment."""
        self._entries[number].step(Input.TAKE)

    def folded(self, number: int) -> None:
        """The update was folded or refused; its segment may be lent again, to its holder."""
        self._entries[number].step(Input.FOLDED)

    def claim(self, nbytes: int, available_bytes: int) -> Place | None:
        """A segment for one of the daemon's own sums; None: the pool is full."""
        usable = [e for e in self if e.state is State.FREE and e.shown and not e.readers]
        found = self._best(usable, nbytes, None) or self._make(nbytes, available_bytes, shown=True)
        if found is None:
            return None
        entry, fresh, dropped = found
        entry.step(Input.CLAIM)
        entry.generation += 1
        return Place(entry.number, entry.generation, entry.size, fresh, dropped)

    def show(self, number: int) -> None:
        """Let trainers read a sum."""
        self._entries[number].step(Input.SHOW)

    def read(self, number: int, owner: int) -> int:
        """Note that a process reads a shown segment; its generation."""
        entry = self._entries[number]
        assert entry.state is State.SHOWN, "only a result is read"
        entry.readers.add(owner)
        return entry.generation

    def withdraw(self, number: int) -> None:
        """A sum or result is over. It is used again when nobody reads it any more."""
        self._entries[number].step(Input.WITHDRAW)

    def trim(self) -> list[int]:
        """Forget what nobody uses or may have mapped for writing. Returns what is to be closed."""
        idle = [e for e in self if e.state is State.FREE and e.holder is None and not e.readers]
        for entry in idle:
            self._drop(entry)
        return [entry.number for entry in idle]

    def lost(self, number: int) -> None:
        """A fresh segment could not be made, or is closed by the caller."""
        self._drop(self._entries[number])

    # ---- what becomes of processes

    def parted(self, owner: int, numbers: Container[int]) -> list[int]:
        """A connection of a process ended. Returns which of its `numbers` are retired by it."""
        retired = [
            e for e in self if e.number in numbers and e.holder == owner and e.state is State.LENT
        ]
        for entry in retired:
            entry.step(Input.PART)
        return [entry.number for entry in retired]

    def exited(self, owner: int) -> list[int]:
        """A process is dead. Returns the segments that are free for others by it."""
        freed = []
        for entry in self:
            entry.readers.discard(owner)
            if entry.holder == owner:
                before = entry.state
                entry.step(Input.EXIT)
                entry.holder = None
                if entry.state is State.FREE and before is not State.FREE:
                    freed.append(entry.number)
        return freed

    def holds(self, owner: int) -> bool:
        """Whether a process has mapped a segment, for all that we know."""
        return any(e.holder == owner or owner in e.readers for e in self)

    # ---- memory

    @staticmethod
    def _best(
        usable: list[Entry], nbytes: int, owner: int | None
    ) -> tuple[Entry, bool, tuple[int, ...]] | None:
        """The smallest that fits; of equals one that `owner` has mapped already."""
        fitting = [e for e in usable if e.size >= nbytes]
        if not fitting:
            return None
        return min(fitting, key=lambda e: (e.size, e.holder != owner, e.number)), False, ()

    def _make(
        self, nbytes: int, available_bytes: int, *, shown: bool = False
    ) -> tuple[Entry, bool, tuple[int, ...]] | None:
        """A new segment, in place of idle ones if need be."""
        size = max(1, -(-nbytes // STEP_BYTES)) * STEP_BYTES
        room = min(
            self._limits.bytes_max - self.bytes_used,
            available_bytes - self._limits.free_bytes_min,
        )
        dropped: list[Entry] = []
        idle = [e for e in self if e.state is State.FREE and e.holder is None and not e.readers]
        count = len(self._entries)
        while room < size or count - len(dropped) >= self._limits.segments_max:
            if not idle:
                return None
            dropped.append(idle.pop(0))
            room += dropped[-1].size
        if self._next > SEGMENT_MAX:
            return None
        for entry in dropped:
            self._drop(entry)
        entry = Entry(self._next, size, shown)
        self._entries[entry.number] = entry
        self._next += 1
        self.bytes_used += size
        return entry, True, tuple(e.number for e in dropped)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.number]
        self.bytes_used -= entry.size
