"""A number of rows, one a member, that all of them come to know by sums alone.

Each member sends a table of zeros with its own row filled in; the sum of all tables holds the rows
of all. A row begins with a marker that says what it is about, so that a row which two members
filled, or one that stands in another's place, is seen in the sum, and who left its own empty is
named. Each member looks for its own row in the sum: nobody else knows what it said. Wide tables go
in several sums: who merges a table alone can judge it.

Sans-IO, by generators: they yield a `Sum` to be made and are sent what was `Heard`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

import numpy as np

from federated.errors import UsageError
from federated.rounds.statistics.exact import are_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    F64: TypeAlias = NDArray[np.float64]
    Bools: TypeAlias = NDArray[np.bool_]

ELEMENTS_MAX: Final = 120_000
"""Of a table: below a million bytes one member merges it, and judges it as a whole.
Source: docs/specs/rounds.md s.5."""
MARKER_BYTES: Final = 5
"""Markers of 64 members still add up exactly in float64."""


@dataclass(frozen=True)
class Sum:
    """A sum to be made among the members.

    Attributes:
        vector: float64[n], ours.
        check: why no member that follows the rules sends a vector; empty if one may.
    """

    vector: F64
    check: Callable[[F64], str]


@dataclass(frozen=True)
class Heard:
    """A sum that was made.

    Attributes:
        vector: float64[n].
        included: places of the members whose vectors are in it, as its coordinator says; None: a
            member that came late has not heard.
    """

    vector: F64
    included: frozenset[int] | None


T = TypeVar("T")
Talk: TypeAlias = Generator[Sum, Heard, T]
"""Sums one after the other, and what they come to."""

Fault: TypeAlias = Callable[[int, int, "F64", "F64"], str]
"""Why the member at a place cannot have, from a position on, this head and piece of a body; empty
if it can."""


@dataclass(frozen=True)
class Table:
    """Who fills which row.

    Attributes:
        names: of the members by place, for people.
        place: ours.
    """

    names: Sequence[str]
    place: int

    def exchange(
        self, about: bytes, head: F64, body: F64, fault: Fault, stride: int = 1
    ) -> Talk[tuple[F64, Bools]]:
        """Bring our row and learn everybody's.

        Args:
            about: what the row is about, equal at all members.
            head: float64[h] that each piece of a wide row repeats.
            body: float64[b].
            fault: judges a row's head with each piece of its body, then with the whole of it.
            stride: pieces of a body are cut at multiples of it.

        Returns:
            float64[members, h + b], and bool[members]: whose rows are there. The others, who were
            not included, ours perhaps among them, have zeros.

        Raises:
            UsageError: naming the member whose row is missing or cannot be, or because ours is not
                what we sent.
        """
        names = self.names
        room = (ELEMENTS_MAX // len(names) - 1 - len(head)) // stride * stride
        if room < stride:
            raise UsageError("so many machines cannot be asked for so much at once: lower k")
        found = np.zeros((len(names), len(head) + len(body)))
        gone = np.zeros(len(names), bool)
        for start in range(0, max(1, len(body)), room):
            piece = _Piece(self, about, start, len(head), fault)
            heard = yield piece.asked(head, body[start : start + room])
            rows = piece.read(heard)
            gone |= rows[:, 0] == 0
            found[:, : len(head)] = np.maximum(found[:, : len(head)], rows[:, 1 : 1 + len(head)])
            found[:, len(head) + start :][:, :room] = rows[:, 1 + len(head) :]
        # Who was missing in one piece counts in none: its row would be torn.
        found[gone] = 0
        for place in np.flatnonzero(~gone).tolist():
            self.refuse(
                place, fault(place, 0, found[place, : len(head)], found[place, len(head) :])
            )
        return found, ~gone

    def refuse(self, place: int, wrong: str) -> None:
        """Refuse a member's row, if something is wrong with it.

        Raises:
            UsageError: naming the member.
        """
        if wrong:
            raise UsageError(f"{self.names[place]} sent {wrong}: ask again without it")


class _Piece:
    """One sum of a table."""

    def __init__(self, table: Table, about: bytes, start: int, head: int, fault: Fault) -> None:
        self._table = table
        self._start = start
        digest = sha256(about + start.to_bytes(4, "big")).digest()[:MARKER_BYTES]
        self._marker = 1.0 + int.from_bytes(digest, "big")
        self._head = head
        self._fault = fault

    def asked(self, head: F64, body: F64) -> Sum:
        self._ours = np.concatenate([[self._marker], head, body])
        self._width = len(self._ours)
        rows = np.zeros((len(self._table.names), self._width))
        rows[self._table.place] = self._ours
        return Sum(rows.ravel(), self.check)

    def check(self, vector: F64) -> str:
        """What is wrong with one member's table, by whoever merges it."""
        rows = vector.reshape(len(self._table.names), self._width)
        filled = np.flatnonzero((rows != 0).any(axis=1))
        if len(filled) != 1:
            return f"{len(filled)} rows filled instead of its own one"
        return self._row_fault(int(filled[0]), rows[filled[0]])

    def _row_fault(self, place: int, row: F64) -> str:
        if row[0] != self._marker:
            return "a row about something else than was asked"
        if not are_whole(row) or (row < 0).any():
            return "something else than whole numbers from 0 on"
        return self._fault(place, self._start, row[1 : 1 + self._head], row[1 + self._head :])

    def read(self, heard: Heard) -> F64:
        """Everybody's rows.

        Raises:
            UsageError: naming the member whose row is missing or cannot be, or because ours is not
                what we sent.
        """
        rows = heard.vector.reshape(len(self._table.names), self._width)
        filled = frozenset(np.flatnonzero((rows != 0).any(axis=1)).tolist())
        included = filled if heard.included is None else heard.included
        wrong = {place for place in filled if rows[place, 0] != self._marker} | filled - included
        if wrong:
            # Whose own row is empty although its vector is in the sum filled another one.
            self._refuse_filling(sorted(included - filled), sorted(wrong))
        place = self._table.place
        if place in filled | included and not np.array_equal(rows[place], self._ours):
            raise UsageError(
                "who merged changed our row: nothing is made of that; ask again without it"
            )
        for place in sorted(filled):
            self._table.refuse(place, self._row_fault(place, rows[place]))
        return rows

    def _refuse_filling(self, liars: Sequence[int], others: Sequence[int]) -> None:
        names = self._table.names
        who = " and ".join(names[place] for place in liars) or "somebody"
        whose = " and ".join(f"{names[place]}'s" for place in others)
        raise UsageError(
            f"{who} filled {whose} row instead of its own: nothing is made of that; ask again"
            " without it"
        )


@dataclass(frozen=True)
class Done(Generic[T]):
    """A talk's end."""

    value: T


def advance(talk: Talk[T], heard: Heard | None) -> Sum | Done[T]:
    """Go on with a talk; None: begin.

    Raises:
        UsageError: it cannot go on, and why.
    """
    try:
        return next(talk) if heard is None else talk.send(heard)
    except StopIteration as ended:
        return Done(ended.value)


def play(talks: Sequence[Talk[T]]) -> list[T]:
    """Several members' talks in one process: for trials, examples and tests."""
    steps = [advance(talk, None) for talk in talks]
    while asked := [step for step in steps if isinstance(step, Sum)]:
        total = np.sum([one.vector for one in asked], axis=0)
        heard = Heard(total, frozenset(range(len(talks))))
        steps = [advance(talk, heard) for talk in talks]
    return [step.value for step in steps if isinstance(step, Done)]
