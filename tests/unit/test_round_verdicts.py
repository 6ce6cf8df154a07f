"""What a coordinator believes of a reducer's products, and the clip that follows from norms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from federated.rounds.numeric import gram
from federated.rounds.protocol.verdicts import _next_clip, read_gram
from p2p.errors import DecodeError


def sent(matrix: np.ndarray) -> bytes:
    return gram.lower_triangle(matrix).astype("<f8").tobytes()


def honest() -> np.ndarray:
    rng = np.random.default_rng(2)
    return gram.gram([rng.standard_normal(500, dtype=np.float32) for _ in range(4)])


def test_honest_products_are_read() -> None:
    matrix = honest()
    assert np.array_equal(read_gram(sent(matrix), 4, diagonal=False), matrix)
    squares = np.diagonal(matrix)
    assert np.array_equal(read_gram(squares.astype("<f8").tobytes(), 4, diagonal=True), squares)
    with pytest.raises(DecodeError, match="bytes"):
        read_gram(sent(matrix)[:-1], 4, diagonal=False)


def test_a_members_broken_row_is_no_fault_of_the_reducer() -> None:
    matrix = honest()
    matrix[2, :] = matrix[:, 2] = math.nan
    assert np.isnan(read_gram(sent(matrix), 4, diagonal=False)[2, 2])


@pytest.mark.attack
@pytest.mark.parametrize(
    ("place", "value"), [((3, 1), math.nan), ((3, 1), 1e200), ((2, 2), -1.0), ((0, 0), math.inf)]
)
def test_a_reducer_that_lies_is_refused_before_a_rule_computes(
    place: tuple[int, int], value: float
) -> None:
    matrix = honest()
    matrix[place] = value
    with pytest.raises(DecodeError):
        read_gram(sent(matrix), 4, diagonal=False)


@pytest.mark.attack
def test_one_owners_devices_do_not_move_the_clip() -> None:
    squares, owners = np.array([1.0, 1.0, 1.0, *[1e-6] * 9]), ["a", "b", "c", *"d" * 9]
    assert _next_clip(None, squares, owners) == 1.0
    # Three of four are within C, however many devices the fourth brings.
    assert _next_clip(0.5, squares, owners) == pytest.approx(0.5 * math.exp(0.05))


@pytest.mark.attack
def test_who_was_rejected_does_not_pull_the_clip_down() -> None:
    squares = np.array([1.0, 1.0, 4.0, 4.0, 1e12, math.nan])
    assert _next_clip(1.5, squares, range(6)) == 1.5 * math.exp(-0.2 * (2 / 6 - 0.5))
