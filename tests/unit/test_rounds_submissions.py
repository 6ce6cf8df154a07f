"""What a trainer hands in: what cannot be merged or said is refused before a round hears of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.applying import offsets_after
from federated.rounds.numeric.gram import diagonal
from federated.rounds.numeric.payload import decode_part_untrusted, encode
from federated.rounds.numeric.tensors import Schema, TensorSpec
from federated.rounds.protocol.wire import MemberStatus
from federated.rounds.submissions import (
    SQUARE_MAX,
    Submission,
    check_figures,
    check_update,
    left_over,
)
from tests.helpers.rounds_kit import peers

SCHEMA = Schema((TensorSpec("w", (1000,), "f32"),))
NAMES = peers(4)


@pytest.mark.parametrize("codec", ["f32", "int8", "e3m0"])
def test_the_longest_update_taken_has_a_norm_in_every_codec(codec: str) -> None:
    longest = np.zeros(1000, np.float32)
    longest[3] = np.float32(math.sqrt(SQUARE_MAX) * 0.999999)
    check_update(SCHEMA, longest)
    row = decode_part_untrusted(codec, encode(codec, longest), 1000)
    assert np.isfinite(diagonal([row])).all()  # type: ignore[list-item]


@pytest.mark.parametrize("value", [1e25, 1e18, 3e38])
def test_an_update_without_a_norm_is_refused_with_what_to_do(value: float) -> None:
    with pytest.raises(UsageError, match="begin again"):
        check_update(SCHEMA, np.full(1000, value, np.float32))


@pytest.mark.parametrize(
    "metrics",
    [
        {"": 1.0},
        {"x" * 201: 1.0},
        {"\ud800": 1.0},
        {"loss": math.nan},
        {"loss": -math.inf},
        {str(number): 0.0 for number in range(33)},
    ],
    ids=["nameless", "long", "no text", "no number", "infinite", "many"],
)
def test_figures_that_no_message_carries_are_refused(metrics: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        check_figures(1.0, metrics)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, 2.0**53 + 2])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(UsageError):
        check_figures(weight, {})


def test_what_fits_is_taken() -> None:
    check_figures(2.0**53, {"x" * 200: -1.0} | {str(number): 0.0 for number in range(31)})


def status(peer: bytes, what: str, arrival_s: float) -> MemberStatus:
    return MemberStatus(peer, what, "", arrival_s, 1.0, 1.0)  # type: ignore[arg-type]


def test_a_late_member_that_did_arrive_counts_once() -> None:
    told = (
        status(NAMES[0], "included", 1.0),
        status(NAMES[1], "included", 2.0),
        status(NAMES[2], "late", 9.0),
        status(NAMES[3], "lost", -1.0),
    )
    assert offsets_after((), told, 5.0) == (1.0, 2.0, 5.0)
    assert offsets_after((), (told[2],) * 3, 5.0) == (5.0,)
    assert offsets_after((0.5,), (), 5.0) == (0.5,)


def test_an_update_that_was_left_out_counts_half() -> None:
    one = Submission(3, None, 4.0, {})
    included = [status(NAMES[0], "included", 1.0), status(NAMES[1], "late", 9.0)]
    assert left_over(one, included, NAMES[0]) is None
    assert left_over(one, [], NAMES[0]) is None
    left = left_over(one, included, NAMES[1])
    assert left is not None
    assert left.weight == 2.0
