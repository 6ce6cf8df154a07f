"""Questions to everybody's data: refused before anything leaves, and no lie gets a number out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.errors import UsageError
from federated.rounds.statistics.plain import (
    EDGES_MAX,
    QUANTILE_LEAVES,
    QUANTILES_MAX,
    QUERY_BYTES_MAX,
    Histogram,
    HistogramQuery,
    Mean,
    MeanQuery,
    Quantiles,
    QuantilesQuery,
    answer,
    call_id,
    contribution,
    decode_query_untrusted,
    decode_sums_untrusted,
    encode_query,
    length,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from federated.rounds.statistics.plain import Answer, Query

MEAN = MeanQuery()
HISTOGRAM = HistogramQuery(edges=(0.0, 1.0, 2.0, 5.0))
QUANTILES = QuantilesQuery(q=(0.0, 0.25, 0.5, 0.95, 1.0), bounds=(0.0, 60.0))


def ask(query: Query, *members: list[float]) -> Answer:
    """What members with these values are answered."""
    total = np.zeros(length(query))
    for values in members:
        total += contribution(query, np.array(values))
    return answer(query, total, len(members))


# --- answers --------------------------------------------------------------------------------------


def test_a_weighted_mean_is_that_of_all_rows() -> None:
    one = contribution(MEAN, np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    two = contribution(MEAN, np.array([10.0]), np.array([0.5]))
    found = answer(MEAN, one + two, 2)
    assert isinstance(found, Mean)
    assert (found.weight, found.values, found.peers, found.noise_sd) == (4.5, 3, 2, 0.0)
    assert found.value == 12 / 4.5
    assert found.var == pytest.approx((1 + 3 * 4 + 0.5 * 100) / 4.5 - (12 / 4.5) ** 2, rel=1e-14)


def test_equal_values_have_no_variance_at_all() -> None:
    found = ask(MEAN, [0.1] * 7, [0.1] * 3)
    assert isinstance(found, Mean)
    assert (found.value, found.var) == (0.1, 0.0)


def test_a_histogram_counts_edges_once_and_what_is_outside() -> None:
    found = ask(HISTOGRAM, [-1, 0, 0.5, 1], [5, 5.01, 2, 1.5])
    assert isinstance(found, Histogram)
    assert found.counts == (2, 2, 2), "a value on an edge belongs above it, on the last below"
    assert (found.below, found.above) == (1, 1)


def test_quantiles_are_right_to_their_resolution() -> None:
    rng = np.random.default_rng(3)
    parts = [rng.gamma(2.0, 4.0, size) for size in (1000, 50, 3000)]
    found = ask(QUANTILES, *(part.tolist() for part in parts))
    assert isinstance(found, Quantiles)
    everything = np.concatenate(parts)
    assert found.count + found.outside == len(everything)
    inside = np.sort(everything[everything <= 60])
    for share, value in zip(found.q, found.values, strict=True):
        rank = min(len(inside) - 1, int(share * len(inside)))
        low, high = inside[max(0, rank - 1)], inside[min(len(inside) - 1, rank + 1)]
        assert low - found.resolution <= value <= high + found.resolution


def test_quantiles_of_one_value_are_that_value() -> None:
    found = ask(QUANTILES, [7.0])
    assert isinstance(found, Quantiles)
    assert found.values == pytest.approx([7.0] * 5, abs=found.resolution)


def test_quantiles_without_a_value_inside_say_so() -> None:
    with pytest.raises(UsageError, match="no value of any member lies between 0 and 60"):
        ask(QUANTILES, [61.0, -1.0])


@given(st.lists(st.lists(st.floats(-10, 70), min_size=1, max_size=30), min_size=1, max_size=4))
def test_members_together_are_answered_as_one_that_has_all(members: list[list[float]]) -> None:
    everything = [value for values in members for value in values]
    for query in (HISTOGRAM, QUANTILES, MEAN):
        try:
            whole = ask(query, everything)
        except UsageError:
            with pytest.raises(UsageError):
                ask(query, *members)
            continue
        found = ask(query, *members)
        assert msgspec.structs.replace(found, peers=1) == whole


# --- what is refused before it leaves -------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no values": (lambda: contribution(MEAN, np.array([])), "no values"),
    "a table": (lambda: contribution(MEAN, np.ones((2, 2))), "no values"),
    "NaN": (lambda: contribution(MEAN, np.array([1, np.nan])), "value 2 is nan"),
    "infinity": (lambda: contribution(HISTOGRAM, np.array([-np.inf])), "value 1 is -inf"),
    "beyond": (lambda: contribution(MEAN, np.array([1e141])), r"1e\+141.*up to 1e\+140"),
    "no weight": (lambda: contribution(MEAN, np.ones(2), np.array([1, 0.0])), "weight 2 is 0"),
    "debt": (lambda: contribution(MEAN, np.ones(1), np.array([-1.0])), "weight 1 is -1"),
    "NaN weight": (lambda: contribution(MEAN, np.ones(1), np.array([np.nan])), "weight 1 is nan"),
    "claim": (lambda: contribution(MEAN, np.ones(1), np.array([1e16])), r"weight 1.*up to 2\^53"),
    "few weights": (lambda: contribution(MEAN, np.ones(2), np.ones(1)), "2 values and 1 weights"),
    "weights": (lambda: contribution(HISTOGRAM, np.ones(1), np.ones(1)), "in a mean alone"),
    "no edges": (lambda: HistogramQuery(edges=()), "edges: give 2 to 65,536 numbers, not 0"),
    "an edge": (lambda: HistogramQuery(edges=(1.0,)), "not 1"),
    "edges": (lambda: HistogramQuery(edges=tuple(map(float, range(EDGES_MAX + 1)))), "not 65,537"),
    "unsorted": (lambda: HistogramQuery(edges=(1.0, 0.0)), "larger than the one before"),
    "twice": (lambda: HistogramQuery(edges=(1.0, 1.0)), "larger than the one before"),
    "NaN edge": (lambda: HistogramQuery(edges=(0.0, np.nan)), "finite"),
    "endless edge": (lambda: HistogramQuery(edges=(0.0, np.inf)), "finite"),
    "reversed": (lambda: QuantilesQuery(q=(0.5,), bounds=(1.0, 0.0)), "a lower and a higher"),
    "empty": (lambda: QuantilesQuery(q=(0.5,), bounds=(1.0, 1.0)), "a lower and a higher"),
    "NaN bound": (lambda: QuantilesQuery(q=(0.5,), bounds=(np.nan, 1.0)), "finite"),
    "endless": (lambda: QuantilesQuery(q=(0.5,), bounds=(0.0, np.inf)), "finite"),
    "close": (lambda: QuantilesQuery(q=(0.5,), bounds=(1e15, 1e15 + 1)), "too close"),
    "no share": (lambda: QuantilesQuery(q=(), bounds=(0.0, 1.0)), "q: give 1 to 100"),
    "shares": (lambda: QuantilesQuery(q=(0.5,) * (QUANTILES_MAX + 1), bounds=(0, 1)), "not 101"),
    "percent": (lambda: QuantilesQuery(q=(95.0,), bounds=(0.0, 1.0)), "between 0 and 1"),
    "NaN share": (lambda: QuantilesQuery(q=(np.nan,), bounds=(0.0, 1.0)), "between 0 and 1"),
    "a long name": (lambda: MeanQuery(name="n" * 201), "name: at most 200"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_question_is_refused_and_says_what_to_do(what: str) -> None:
    do, says = REFUSED[what]
    with pytest.raises(UsageError, match=says):
        do()


def test_the_largest_numbers_still_add_up() -> None:
    huge = contribution(MEAN, np.full(1000, 1e140), np.full(1000, 2.0**53))
    found = answer(MEAN, huge * 64, 64)
    assert isinstance(found, Mean)
    assert found.value == 1e140
    assert found.var < 1e250, "a hundred bits less than the squares"
    closest = QuantilesQuery(q=(0.5,), bounds=(1e15, 1e15 + QUANTILE_LEAVES / 4))
    assert isinstance(ask(closest, [1e15 + 1000]), Quantiles)
    assert isinstance(ask(HistogramQuery(edges=(-1.7e308, 1.7e308)), [1e139]), Histogram)


# --- calls that meet ------------------------------------------------------------------------------


def test_equal_questions_meet_and_others_do_not() -> None:
    same = [HistogramQuery(edges=(0, 1, 2)), HistogramQuery(edges=(-0.0, 1.0, 2.0))]
    assert len({call_id(query) for query in same}) == 1
    others = [
        *same[:1], HistogramQuery(edges=(0, 1, 2), name="x"), HistogramQuery(edges=(0, 1, 3)),
        MeanQuery(), MeanQuery(name="x"), QuantilesQuery(q=(0.5,), bounds=(0, 1)),
        QuantilesQuery(q=(0.5, 0.6), bounds=(0, 1)), QuantilesQuery(q=(0.5,), bounds=(0, 2)),
    ]  # fmt: skip
    ids = {call_id(query, policy) for query in others for policy in (b"", b"plain")}
    assert len(ids) == 2 * len(others)


@pytest.mark.parametrize("query", [MEAN, HISTOGRAM, QUANTILES, MeanQuery(name="ä")])
def test_a_question_is_decoded_as_it_was(query: Query) -> None:
    assert decode_query_untrusted(encode_query(query)) == query


@pytest.mark.attack
@pytest.mark.parametrize(
    "data",
    [
        b"",
        msgspec.msgpack.encode({"type": "other"}),
        msgspec.msgpack.encode({"type": "mean", "name": "", "extra": 1}),
        msgspec.msgpack.encode({"type": "mean"}),
        msgspec.msgpack.encode({"name": "", "type": "mean"})[:-1],
        msgspec.msgpack.encode({"type": "histogram", "name": "", "edges": [1.0, 0.0]}),
        msgspec.msgpack.encode({"type": "histogram", "edges": [-0.0, 1.0], "name": ""}),
        msgspec.msgpack.encode({"type": "histogram", "edges": [0, 1], "name": ""}),
        msgspec.msgpack.encode({"type": "histogram", "edges": [0.0, float("nan")], "name": ""}),
        msgspec.msgpack.encode({"type": "quantiles", "q": [], "bounds": [0.0, 1.0], "name": ""}),
        b"\x81" * 100_000,
        b"\x90" * (QUERY_BYTES_MAX + 1),
        b"\x81\xa4type\xa2\xed\xa0",
    ],
)
def test_a_hostile_question_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_query_untrusted(data)


# --- sums that lie --------------------------------------------------------------------------------


def lied(query: Query, change: Callable[[NDArray[np.float64]], None]) -> bytes:
    vector = contribution(query, np.array([1.0, 2.0, 3.0]))
    change(vector)
    return vector.astype("<f8").tobytes()


def put(at: int, value: float) -> Callable[[NDArray[np.float64]], None]:
    def change(vector: NDArray[np.float64]) -> None:
        vector[at] = value

    return change


def shrink_squares(vector: NDArray[np.float64]) -> None:
    vector[1 + 2 * 53 :] = 0


LIES: dict[str, bytes] = {
    "too short": bytes(8 * 159),
    "too long": bytes(8 * 161),
    "nothing": bytes(8 * 160),
    "NaN": lied(MEAN, put(0, np.nan)),
    "infinity": lied(MEAN, put(40, np.inf)),
    "half a value": lied(MEAN, put(0, 2.5)),
    "fewer than none": lied(MEAN, put(0, -3)),
    "endless many": lied(MEAN, put(0, 1e300)),
    "a fraction in a place": lied(MEAN, put(5, 0.5)),
    "a place that overflows": lied(MEAN, put(52, 2.0**41)),
    "a negative weight": lied(MEAN, put(53, -1.0)),
    "a weight over 2^53 a value": lied(MEAN, put(30, 2.0**39)),
    "a sum that its squares cannot have": lied(MEAN, shrink_squares),
    "squares below 0": lied(MEAN, put(159, -5.0)),
    "squares over the limit": lied(MEAN, put(159, 5.0)),
}


@pytest.mark.attack
@pytest.mark.parametrize("what", LIES)
def test_sums_that_no_data_lead_to_are_refused(what: str) -> None:
    with pytest.raises(DecodeError):
        decode_sums_untrusted(LIES[what], MEAN)


@pytest.mark.attack
@pytest.mark.parametrize("query", [HISTOGRAM, QUANTILES])
@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf, 1e300])
def test_counts_that_no_data_lead_to_are_refused(query: Query, value: float) -> None:
    for at in (0, 2, -1):
        with pytest.raises(DecodeError):
            decode_sums_untrusted(lied(query, put(at, value)), query)
    with pytest.raises(DecodeError):
        decode_sums_untrusted(bytes(8 * length(query)), query)


def test_control_honest_sums_are_taken() -> None:
    for query in (MEAN, HISTOGRAM, QUANTILES):
        vector = contribution(query, np.array([1.0, 2.0, 3.0]))
        data = (3 * vector).astype("<f8").tobytes()
        assert np.array_equal(decode_sums_untrusted(data, query, 3), 3 * vector)


@pytest.mark.attack
def test_a_lie_in_the_sum_is_an_error_and_no_answer() -> None:
    for query in (MEAN, HISTOGRAM, QUANTILES):
        total = contribution(query, np.array([1.0, 2.0]))
        total[0] = -1.0
        with pytest.raises(UsageError, match="no data can lead to"):
            answer(query, total, 1)
        with pytest.raises(UsageError, match="does not belong"):
            answer(query, total[1:], 1)
