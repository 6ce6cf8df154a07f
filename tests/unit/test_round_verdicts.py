"""What a coordinator believes of a reducer's products, and the clip that follows from norms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.numeric import gram, rules
from federated.rounds.protocol.policy import Policy
from federated.rounds.protocol.verdicts import Verdict, _next_clip, judge, read_gram
from federated.rounds.protocol.wire import Commit
from p2p.errors import DecodeError
from tests.helpers.rounds_kit import make_setting, peers


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


# ---- root data

NAMES = peers(5)
ROOT = NAMES[2]


def judged(rows: np.ndarray, order: list[bytes], policy: Policy) -> Verdict:
    """The verdict over rows (the reference first) of `order`."""
    norms = np.linalg.norm(rows[1:].astype(np.float64), axis=1)
    commits = {
        peer: Commit(bytes(32), 1, 0, bytes(32), (bytes(32),), float(norm), 1.0, {})
        for peer, norm in zip(order, norms, strict=True)
    }
    setting = make_setting(NAMES[0], NAMES, policy=policy, rule="fltrust")
    return judge(setting, order, commits, [gram.gram(list(rows))], bytes(32))


def updates() -> np.ndarray:
    """The last update and five of this round: all but the fourth point one way."""
    rng = np.random.default_rng(3)
    way = rng.normal(size=200)
    rows = np.stack([way + 0.3 * rng.normal(size=200) for _ in range(6)]).astype(np.float32)
    rows[4] *= -50
    return rows


def test_with_root_data_rows_count_by_how_far_they_point_its_way() -> None:
    rows, policy = updates(), Policy(root_data=ROOT)
    made = np.array(judged(rows, NAMES, policy).coefficients)
    others = [1, 2, 4, 5]
    among = rows[[3, *others]]
    wanted = rules.coefficients(
        "fltrust", gram.gram(list(among)), [1.0] * 4, owners=range(4)
    )  # fmt: skip
    assert np.allclose(made[others], wanted[1:])
    assert made[0] == made[3] == made[4] == 0.0, "no row for the last update, the root, the liar"
    merged = made @ rows
    assert np.linalg.norm(merged) <= 1.001 * np.linalg.norm(rows[3])
    assert merged @ rows[3] > 0


def test_without_the_member_that_has_it_the_next_best_rule_holds() -> None:
    rows, policy = updates()[[0, 1, 2, 4, 5]], Policy(root_data=ROOT)
    order = [peer for peer in NAMES if peer != ROOT]
    made = judged(rows, order, policy).coefficients
    wanted = rules.coefficients(
        "centred_clipping", gram.gram(list(rows)), [1.0] * 4, owners=range(4),
        committed=list(np.linalg.norm(rows[1:].astype(np.float64), axis=1)),
    )  # fmt: skip
    assert np.allclose(made, wanted)


def test_the_member_with_root_data_alone_moves_nothing() -> None:
    verdict = judged(updates()[[0, 3]], [ROOT], Policy(root_data=ROOT, min_peers=1))
    assert verdict.coefficients == (0.0, 0.0)


def test_a_policy_says_root_data_where_its_rule_goes_by_it() -> None:
    with pytest.raises(UsageError, match="fltrust needs"):
        Policy(rule="fltrust")
    with pytest.raises(UsageError, match="no use for it"):
        Policy(rule="median", root_data=ROOT)
    assert Policy(rule="fltrust", root_data=ROOT).digest() != Policy(root_data=ROOT).digest()
