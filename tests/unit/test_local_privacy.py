"""Local reports: no more is told than epsilon claims, and what is told can be counted."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from benchmarks.round_parts.audit import clopper_pearson, krr_bound, olh_bound, seeded
from federated.errors import UsageError
from federated.rounds.privacy.local import (
    choose,
    estimate,
    hashed,
    krr,
    olh,
    perturb_krr,
    perturb_olh,
    shuffled,
    split_mix,
    support_krr,
    support_olh,
)

EPSILONS = (0.5, 1.0, 2.0, 4.0)
DRAWS = 400_000


def test_limits_of_a_probability_are_those_of_the_tables() -> None:
    # Clopper, Pearson 1934; scipy.stats.beta.ppf gives the same digits.
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 0.3084971), abs=1e-6)
    assert clopper_pearson(5, 10) == pytest.approx((0.1870860, 0.8129140), abs=1e-6)
    assert clopper_pearson(10, 10) == pytest.approx((0.6915029, 1.0), abs=1e-6)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_nobody_can_prove_more_than_epsilon(epsilon: float) -> None:
    assert epsilon - 0.05 < krr_bound(epsilon, seeded(1), draws=DRAWS) <= epsilon
    assert epsilon - 0.08 < olh_bound(epsilon, seeded(2), draws=DRAWS) <= epsilon


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_audit_sees_noise_that_is_broken(epsilon: float) -> None:
    assert krr_bound(epsilon, seeded(3), draws=DRAWS, broken=True) > epsilon
    if epsilon < 4:  # there, of 56 hashes, it adds .018: below what 400,000 reports can prove
        assert olh_bound(epsilon, seeded(4), draws=DRAWS, broken=True) > epsilon


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_probabilities_are_those_of_the_definition(epsilon: float) -> None:
    grown = exp(epsilon)
    rr, hashing = krr(epsilon, 16), olh(epsilon)
    assert rr.keep == pytest.approx(grown / (grown + 15))
    assert rr.q == pytest.approx(1 / (grown + 15))
    assert hashing.values == round(grown) + 1
    assert hashing.keep / ((1 - hashing.keep) / (hashing.values - 1)) == pytest.approx(grown)


def test_few_values_are_told_many_are_hashed() -> None:
    assert not choose(1.0, 10).hashed
    assert choose(1.0, 11).hashed  # 3e + 2 = 10.15
    assert not choose(4.0, 65).hashed
    assert choose(2.0, 65).hashed


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_estimates_have_no_bias_and_the_sd_that_is_said(epsilon: float) -> None:
    values = np.repeat([3, 5], [600, 1_400])
    found: dict[str, list[list[float]]] = {"krr": [], "olh": []}
    source = seeded(5)
    candidates = np.array([3, 5, 9], np.uint64)
    rr, hashing = krr(epsilon, 12), olh(epsilon)
    for _ in range(150):
        told = support_krr(perturb_krr(values, rr, source), rr, candidates)
        found["krr"].append(list(estimate(told, 2_000, rr)[0]))
        reports = perturb_olh(values.astype(np.uint64), hashing, source)
        counted = support_olh(reports, hashing, candidates)
        found["olh"].append(list(estimate(counted, 2_000, hashing)[0]))
    for name, oracle in (("krr", rr), ("olh", hashing)):
        trials = np.array(found[name])
        sd = estimate(np.zeros(1), 2_000, oracle)[1]
        assert np.abs(trials.mean(0) - [600, 1_400, 0]).max() < 5 * 2 * sd / np.sqrt(150)
        assert trials[:, 2].std() == pytest.approx(sd, rel=0.25)


def test_support_in_blocks_is_support_one_by_one() -> None:
    oracle = olh(1.0)
    reports = perturb_olh(np.arange(300, dtype=np.uint64), oracle, seeded(6))
    candidates = np.arange(1_000, dtype=np.uint64)
    slow = [
        sum(
            int(hashed(np.uint64(one), reports.seeds[i : i + 1], oracle.values)[0])
            == int(reports.told[i])
            for i in range(300)
        )
        for one in candidates[:20]
    ]
    assert support_olh(reports, oracle, candidates)[:20].tolist() == slow


def test_the_hash_is_split_mix_of_the_paper() -> None:
    # First outputs of the reference implementation (Vigna's splitmix64.c) for the seed 1234567.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in range(3)], np.uint64)
    assert split_mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    told = hashed(np.arange(70_000, dtype=np.uint64), np.uint64(9), 7)
    assert np.bincount(told.astype(np.int64), minlength=7).min() > 9_500


def test_the_same_source_reports_the_same() -> None:
    values = np.arange(50, dtype=np.uint64)
    one, other = (perturb_olh(values, olh(1.0), seeded(7)) for _ in range(2))
    assert np.array_equal(one.told, other.told)
    assert np.array_equal(one.seeds, other.seeds)
    assert sorted(shuffled(seeded(8), 50)) == list(range(50))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 8.1, float("nan"), float("inf")])
def test_an_epsilon_that_promises_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(UsageError, match="epsilon"):
        olh(epsilon)
    with pytest.raises(UsageError, match="epsilon"):
        krr(epsilon, 4)


def test_values_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="none of 4"):
        perturb_krr(np.array([4]), krr(1.0, 4), seeded(1))
    with pytest.raises(UsageError, match="two values"):
        krr(1.0, 1)
