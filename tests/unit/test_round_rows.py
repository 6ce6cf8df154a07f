"""Tables of rows that all members come to know by sums: who is missed, who fills another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.statistics.rows import Done, Heard, Sum, Table, advance

if TYPE_CHECKING:
    from federated.rounds.statistics.rows import F64, Bools, Talk

    Rows = tuple[F64, Bools]

NAMES = ("one", "two", "three")
MOST = 100.0
"""What a member's numbers may add up to."""


def too_much(place: int, start: int, head: F64, piece: F64) -> str:
    del place, start, head
    return "too much" if piece.sum() > MOST else ""


def talks(bodies: list[list[float]]) -> list[Talk[Rows]]:
    """Members that bring their place as a head, and a body each."""
    return [
        Table(NAMES, at).exchange(b"about", np.array([at + 1.0]), np.array(body), too_much)
        for at, body in enumerate(bodies)
    ]


def vectors(steps: list[Sum | Done[Rows]]) -> list[F64]:
    return [step.vector for step in steps if isinstance(step, Sum)]


def all_of(steps: list[Sum | Done[Rows]]) -> Heard:
    """A sum of all, none of whom who merges refuses."""
    said = vectors(steps)
    for step in steps:
        assert isinstance(step, Sum)
        assert not any(step.check(vector) for vector in said)
    return Heard(np.sum(said, axis=0), frozenset(range(len(said))))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables so narrow that two numbers of a body go at once."""
    monkeypatch.setattr("federated.rounds.statistics.rows.ELEMENTS_MAX", 4 * len(NAMES))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("piece", [0, 1, 2])
def test_who_is_missed_in_one_piece_of_a_row_counts_in_none(piece: int) -> None:
    members = talks([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]])
    steps = [advance(one, None) for one in members]
    for number in range(3):
        here = [at for at in range(3) if (number, at) != (piece, 1)]
        said = vectors(steps)
        heard = Heard(np.sum([said[at] for at in here], axis=0), frozenset(here))
        steps = [advance(one, heard) for one in members]
    for step in steps:
        assert isinstance(step, Done)
        found, there = step.value
        assert found.tolist() == [[1, 1, 2, 3, 4, 5], [0] * 6, [3, 11, 12, 13, 14, 15]]
        assert there.tolist() == [True, False, True]


@pytest.mark.usefixtures("narrow")
def test_a_row_whose_pieces_could_be_and_that_could_not_is_refused() -> None:
    members = talks([[1, 2, 3, 4, 5], [0, 60, 0, 60, 0], [0] * 5])
    steps = [advance(one, None) for one in members]
    for _ in range(2):
        steps = [advance(one, all_of(steps)) for one in members]
    with pytest.raises(UsageError, match="two sent too much"):
        advance(members[0], all_of(steps))


def test_who_fills_the_row_of_one_that_is_not_there_is_named() -> None:
    """Its marker and its numbers could be that member's: only who is said to be in tells."""
    members = talks([[1], [2], [3]])
    said = vectors([advance(one, None) for one in members])
    stolen = said[2].reshape(3, -1)[[0, 2, 1]].ravel()
    with pytest.raises(UsageError, match="three filled two's row instead of its own"):
        advance(members[0], Heard(said[0] + stolen, frozenset({0, 2})))
