"""Sums in places: exact, whatever the order of members and the sizes of their numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from federated.rounds.statistics import exact
from federated.rounds.statistics.plain import Mean, MeanQuery, answer, contribution, fault

VALUES = st.floats(-1e140, 1e140, allow_nan=False)
WEIGHTS = st.floats(5e-324, 2.0**53, allow_nan=False).filter(lambda weight: weight > 0)
PAIRS = st.lists(st.tuples(VALUES, WEIGHTS), min_size=1, max_size=30)


@given(st.fractions(-(2**1000), 2**1000))
def test_places_hold_a_number_to_the_smallest_float(number: Fraction) -> None:
    digits = exact.places(number)
    assert len(digits) == exact.PLACES
    assert all(abs(digit) < 2**40 and digit == int(digit) for digit in digits)
    assert abs(exact.number(np.array(digits)) - number) < Fraction(1, 2**1074)


@given(st.lists(st.tuples(st.floats(-1e140, 1e140), st.floats(-1e140, 1e140)), min_size=1))
def test_a_product_and_what_it_lost_are_the_product(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    rounded, lost = exact.product(a, b)
    for x, y, high, low in zip(a, b, rounded, lost, strict=True):
        wanted = Fraction(float(x)) * Fraction(float(y))
        got = Fraction(float(high)) + Fraction(float(low))
        # Below 2^-1022 the loss itself is rounded.
        assert got == wanted or abs(got - wanted) <= Fraction(1, 2**1070)


@given(st.lists(VALUES, min_size=1, max_size=200))
def test_a_sum_keeps_what_float64_forgets(values: list[float]) -> None:
    numbers = np.array(values)
    wanted = sum((Fraction(value) for value in values), Fraction(0))
    sizes = sum((abs(Fraction(value)) for value in values), Fraction(0))
    assert abs(exact.total(numbers, np.zeros(len(numbers))) - wanted) <= sizes / 2**98


@given(st.lists(PAIRS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_mean_and_variance_are_those_of_all_the_data_in_any_order(
    members: list[list[tuple[float, float]]], rng: object
) -> None:
    query = MeanQuery()
    vectors = []
    for pairs in members:
        values, weights = np.array(pairs).T
        vectors.append(contribution(query, values, weights))
        assert fault(query, vectors[-1]) == ""
    total = np.sum(vectors, axis=0)
    found = answer(query, total, len(members))
    assert isinstance(found, Mean)
    shuffled = list(vectors)
    getattr(rng, "shuffle")(shuffled)  # noqa: B009 - hypothesis draws it
    again = np.zeros(len(total))
    for vector in shuffled:
        again += vector
    assert np.array_equal(again, total), "not one bit hangs on the order"
    everything = [pair for pairs in members for pair in pairs]
    weight = sum((Fraction(w) for _, w in everything), Fraction(0))
    mean = sum((Fraction(v) * Fraction(w) for v, w in everything), Fraction(0)) / weight
    var = sum((Fraction(w) * (Fraction(v) - mean) ** 2 for v, w in everything), Fraction(0))
    var /= weight
    # Weights at the edge of float64 leave their products below the lowest place.
    largest = max(abs(Fraction(v)) for v, _ in everything)
    slack = Fraction(1, 2**1060) * len(everything) / weight
    assert abs(Fraction(found.value) - mean) <= abs(mean) / 2**52 + largest / 2**90 + slack
    wanted = var / 2**50 + largest**2 / 2**88 + slack * (1 + largest) + Fraction(1, 2**1000)
    assert abs(Fraction(found.var) - var) <= wanted


def test_the_variance_of_times_in_milliseconds_is_right() -> None:
    # Read off float64 sums of squares it would be wrong in all its digits.
    rng = np.random.default_rng(7)
    spread = rng.normal(0, 3.0, 3000)
    times = 1.764e12 + np.round(spread * 4) / 4
    query = MeanQuery()
    total = sum((contribution(query, part) for part in np.split(times, 3)), np.zeros(160))
    found = answer(query, total, 3)
    assert isinstance(found, Mean)
    wanted = float(np.var(times - 1.764e12))
    assert abs(found.var - wanted) < 1e-9 * wanted
    naive = float(np.mean(times * times) - np.mean(times) ** 2)
    assert abs(naive - wanted) > wanted, "control: float64 alone loses it"
