"""Rules of rounds: products give what whole vectors give; liars are contained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.numeric import kernels, order, rules
from federated.rounds.numeric.rules import (
    RULES,
    Check,
    Rule,
    adapted_clip,
    capped_weights,
    check_norms,
    coefficients,
    liars_allowed,
    median_norm,
    permutation,
    resolve,
    share_within,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

N = 50
SEED = b"a plan's seed"


def vectors(count: int, seed: int = 0) -> F64:
    """A reference and `count` updates that have something in common."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(N) + rng.standard_normal((count + 1, N)) * rng.uniform(
        0.2, 3, (count + 1, 1)
    )


def claims(count: int) -> F64:
    return np.random.default_rng(99).uniform(50, 140, count)


def own(count: int) -> list[int]:
    return list(range(count))


def merged(rule: Rule, rows: F64, weights: F64, **named: object) -> F64:
    """What the rule gives, through products alone."""
    settings = {"owners": own(len(rows) - 1), "seed": SEED, **named}
    return coefficients(rule, rows @ rows.T, weights, **settings) @ rows  # type: ignore[arg-type]


def equal(rows: F64) -> F64:
    return np.ones(len(rows) - 1)


# --- the direct forms, as their papers write them -------------------------------------------------


def direct_mean(rows: F64, w: F64) -> F64:
    return w @ rows[1:] / w.sum()


def direct_norm_bounded(rows: F64, w: F64) -> F64:
    norms = np.linalg.norm(rows[1:], axis=1)
    return (w / w.sum() * np.minimum(1, np.median(norms) / norms)) @ rows[1:]


def direct_multi_krum(rows: F64, _w: F64) -> F64:
    x, f = rows[1:], liars_allowed(len(rows) - 1)
    scores = []
    for i in range(len(x)):
        apart = sorted(float(np.sum((x[i] - x[j]) ** 2)) for j in range(len(x)) if j != i)
        scores.append(sum(apart[: len(x) - f - 2]))
    best = np.argsort(scores, kind="stable")[: len(x) - f]
    return x[best].mean(axis=0)


def geometric_median(x: F64) -> F64:
    nu = 1e-3 * float(np.median(np.linalg.norm(x, axis=1)))
    centre = x.mean(axis=0)
    for _ in range(8):
        shares = 1 / np.maximum(nu, np.linalg.norm(x - centre, axis=1))
        centre = shares @ x / shares.sum()
    return centre


def direct_rfa(rows: F64, _w: F64) -> F64:
    return geometric_median(rows[1:])


def direct_centred_clipping(rows: F64, w: F64) -> F64:
    centre, tau = rows[0], np.median(np.linalg.norm(rows[1:], axis=1))
    for _ in range(3):
        apart = rows[1:] - centre
        scale = np.minimum(1, tau / np.linalg.norm(apart, axis=1))
        centre = centre + (w / w.sum() * scale) @ apart
    return centre


def direct_fltrust(rows: F64, _w: F64) -> F64:
    root, x = rows[0], rows[1:]
    norms = np.linalg.norm(x, axis=1)
    trust = np.maximum(0, x @ root / norms / np.linalg.norm(root))
    return (trust / norms) @ x * np.linalg.norm(root) / trust.sum()


def direct_bucketing(rows: F64, _w: F64) -> F64:
    x = rows[1:][permutation(SEED, len(rows) - 1)]
    return geometric_median(np.array([x[i : i + 2].mean(axis=0) for i in range(0, len(x), 2)]))


DIRECT: dict[Rule, Callable[[F64, F64], F64]] = {
    "mean": direct_mean,
    "norm_bounded": direct_norm_bounded,
    "multi_krum": direct_multi_krum,
    "rfa": direct_rfa,
    "centred_clipping": direct_centred_clipping,
    "fltrust": direct_fltrust,
    "bucketing_rfa": direct_bucketing,
}


@pytest.mark.parametrize("count", [5, 8, 20, 63])
@pytest.mark.parametrize("rule", DIRECT)
def test_products_give_what_whole_vectors_give(rule: Rule, count: int) -> None:
    for seed in range(5):
        rows, weights = vectors(count, seed), claims(count)
        found = merged(rule, rows, weights)
        expected = DIRECT[rule](rows, weights)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_every_rule_has_a_direct_form_or_is_coordinate_wise() -> None:
    assert {*DIRECT, *rules.COORDINATE_WISE} == set(RULES)


@pytest.mark.parametrize("rule", sorted(rules.DIAGONAL))
def test_squared_norms_are_enough_for_separable_rules(rule: Rule) -> None:
    rows, weights = vectors(9), claims(9)
    whole = coefficients(rule, rows @ rows.T, weights, owners=own(9), clip=6.0)
    alone = coefficients(rule, (rows**2).sum(axis=1), weights, owners=own(9), clip=6.0)
    np.testing.assert_allclose(alone, whole, rtol=1e-14)
    assert alone[0] == 0


@pytest.mark.parametrize("rule", sorted(set(RULES) - rules.DIAGONAL))
def test_other_rules_ask_for_all_products(rule: Rule) -> None:
    with pytest.raises(UsageError, match="products"):
        coefficients(rule, np.ones(10), np.ones(9), owners=own(9))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows_are_enough(rule: Rule, count: int) -> None:
    rows = vectors(count)
    rows[1:] = rows[1]
    rows[0] = rows[1] if rule == "fltrust" else 0
    found = merged(rule, rows, equal(rows))
    if rule in rules.COORDINATE_WISE:
        np.testing.assert_allclose(found, count * rows[1])  # scales of 1, summed up by `merged`
    else:
        np.testing.assert_allclose(found, rows[1], rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_updates_of_zero_merge_to_zero(rule: Rule) -> None:
    rows = np.zeros((6, N))
    found = merged(rule, rows, equal(rows))
    assert np.isfinite(found).all()
    assert not found.any()


def test_centred_clipping_starts_at_the_reference() -> None:
    rows = vectors(5)
    rows[1:] *= 1e-6  # members' norms are tiny: tau lets them pull but little
    found = coefficients("centred_clipping", rows @ rows.T, np.ones(5), owners=own(5))
    assert found[0] > 0.99
    assert found.sum() == pytest.approx(1)


def test_fltrust_without_a_row_that_points_its_way_changes_nothing() -> None:
    rows = vectors(4)
    rows[1:] = -np.abs(rows[1:])
    rows[0] = 1
    assert not merged("fltrust", rows, equal(rows)).any()


# --- norms ----------------------------------------------------------------------------------------


def test_norms_are_kept_shortened_or_rejected_with_a_reason() -> None:
    squares = np.array([0.0, 1.0, 4.0, 9.0, 9.0001, math.inf, math.nan, -1.0])
    assert check_norms(squares, 1.0) == [
        Check(1.0, ""),
        Check(1.0, ""),
        Check(0.5, "clipped"),
        Check(1 / 3, "clipped"),
        Check(0.0, "norm"),
        *[Check(0.0, "not_finite")] * 3,
    ]
    assert [check.reason for check in check_norms(squares[:6], None)] == [*[""] * 5, "not_finite"]


@pytest.mark.attack
def test_a_norm_other_than_the_committed_one_is_rejected() -> None:
    squares = np.array([4.0] * 5)
    committed = [2.0, 2.001, 1.9, 200.0, math.nan]
    found = [check.reason for check in check_norms(squares, 3.0, committed)]
    assert found == ["", "", *["norm_not_committed"] * 3]
    with pytest.raises(UsageError, match="committed"):
        check_norms(squares, 3.0, [2.0])


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_is_a_length(clip: float) -> None:
    with pytest.raises(UsageError, match="clip"):
        check_norms(np.ones(2), clip)


@pytest.mark.attack
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("broken", ["huge", "nan", "infinite"])
def test_a_rejected_row_is_as_if_it_were_not_there(rule: Rule, broken: str) -> None:
    rows, weights = vectors(8), claims(8)
    liar = rows.copy()
    liar[3] = {"huge": 1e6, "nan": np.nan, "infinite": np.inf}[broken]
    with np.errstate(invalid="ignore", over="ignore"):
        products = liar @ liar.T
    clip = float(np.linalg.norm(rows, axis=1).max())
    found = coefficients(
        rule, products, weights, owners=own(8), clip=clip, liars=1, seed=SEED, weight_cap=1e9
    )
    assert found[3] == 0
    assert np.isfinite(found).all()
    without = np.delete(rows, 3, axis=0)
    expected = coefficients(
        rule, without @ without.T, np.delete(weights, 2), owners=own(7), clip=clip, liars=0,
        seed=SEED, weight_cap=1e9,
    )  # fmt: skip
    np.testing.assert_allclose(np.delete(found, 3), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rule", DIRECT)
def test_a_row_beyond_the_clip_counts_as_shortened(rule: Rule) -> None:
    rows, weights = vectors(8), claims(8)
    clip = float(np.median(np.linalg.norm(rows[1:], axis=1)))
    rows[1:] *= np.minimum(1, 2.9 * clip / np.linalg.norm(rows[1:], axis=1))[:, None]
    short = rows.copy()
    norms = np.linalg.norm(rows[1:], axis=1)
    short[1:] *= np.minimum(1, clip / norms)[:, None]
    found = merged(rule, rows, weights, clip=clip)
    expected = merged(rule, short, weights, clip=2 * clip)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_if_nobody_is_left_the_state_stays(rule: Rule) -> None:
    rows = vectors(4) * 1e9
    assert not merged(rule, rows, equal(rows), clip=1.0).any()


def test_scales_of_coordinate_wise_rules_are_the_checks_factors() -> None:
    rows = np.zeros((5, N))
    rows[1:, 0] = [1, 2, 3.5, 0.5]
    found = coefficients("median", rows @ rows.T, np.ones(4), owners=own(4), clip=1.0)
    assert found.tolist() == [0, 1, 0.5, 0, 1]
    kept = [row.astype(np.float32) for row in rows[1:]]
    assert order.median(kept, scales=found[1:])[0] == 1.0


def test_the_clip_follows_half_of_the_norms() -> None:
    squares = np.array([1.0, 4.0, 9.0, math.inf])
    assert median_norm(squares) == 2.0
    assert median_norm(np.array([math.nan])) == 0.0
    assert share_within(squares, 2.0) == 0.5
    assert share_within(squares[:0], 2.0) == 0.0
    assert adapted_clip(2.0, 0.5) == 2.0
    assert adapted_clip(2.0, 1.0) == 2.0 * math.exp(-0.1)
    assert adapted_clip(2.0, 0.0) == adapted_clip(2.0, -3.0) == 2.0 * math.exp(0.1)
    owners = ["a", "b", "b", "c"]
    assert median_norm(squares, owners) == (1 + 2.5) / 2
    assert share_within(squares, 2.0, owners) == (1 + 0.5 + 0) / 3
    for call in (lambda: median_norm(squares, [1]), lambda: share_within(squares, 1.0, [1])):
        with pytest.raises(UsageError, match="owners"):
            call()
    norms = np.random.default_rng(3).lognormal(0, 1, 1001)
    clip = 100.0
    for _ in range(200):
        clip = adapted_clip(clip, share_within(norms**2, clip))
    assert clip == pytest.approx(float(np.median(norms)), rel=0.02)


# --- owners and weights ---------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize("rule", sorted(set(RULES) - rules.COORDINATE_WISE - {"mean"}))
def test_devices_of_one_owner_are_one_vote(rule: Rule) -> None:
    rows = vectors(6)
    rows[0] = rows[1:6].mean(axis=0) if rule == "fltrust" else 0
    many = np.vstack([rows, *[rows[6]] * 9])
    owners = [*own(6), *[5] * 9]
    weights = np.ones(15)
    weights[5:] = 0.1
    found = coefficients(rule, many @ many.T, weights, owners=owners, seed=SEED) @ many
    expected = merged(rule, rows, np.ones(6))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_rows_of_an_owner_are_averaged_before_the_rule() -> None:
    rows, weights = vectors(5), claims(5)
    owners = ["a", "b", "a", "c", "d"]
    averaged = np.vstack([rows[0], (rows[1] + rows[3]) / 2, rows[2], rows[4], rows[5]])
    found = merged("rfa", rows, weights, owners=owners)
    np.testing.assert_allclose(found, direct_rfa(averaged, weights), rtol=1e-12)
    by_weight = averaged.copy()
    by_weight[1] = (weights[0] * rows[1] + weights[2] * rows[3]) / (weights[0] + weights[2])
    sums = np.array([weights[0] + weights[2], weights[1], weights[3], weights[4]])
    found = merged("centred_clipping", rows, weights, owners=owners)
    np.testing.assert_allclose(found, direct_centred_clipping(by_weight, sums), rtol=1e-12)


def test_one_owners_devices_are_averaged_by_their_weights() -> None:
    rows, weights = vectors(4), np.array([1.0, 10.0, 100.0, 1000.0])
    found = merged("mean", rows, weights, owners=["me"] * 4)
    np.testing.assert_allclose(found, direct_mean(rows, weights), rtol=1e-12)


@pytest.mark.attack
def test_a_claimed_weight_is_capped_at_thrice_the_median() -> None:
    found = capped_weights([10, 10, 10, 2.0**53], ["a", "b", "c", "liar"])
    np.testing.assert_allclose(found, np.array([1, 1, 1, 3]) / 6, rtol=1e-9)
    split = capped_weights([10, 10, 10, 2.0**52, 2.0**52], ["a", "b", "c", "liar", "liar"])
    np.testing.assert_allclose(split, np.array([1, 1, 1, 1.5, 1.5]) / 6, rtol=1e-9)
    assert capped_weights([1, 2, 1], own(3)).tolist() == [0.25, 0.5, 0.25]
    assert capped_weights([0, 0, 0, 1], own(4)).tolist() == [0, 0, 0, 1]
    for bad in ([-1.0, 2.0], [0.0, 0.0], [math.nan, 1.0], [2.0**54, 1.0]):
        with pytest.raises(UsageError):
            capped_weights(bad, own(2))
    with pytest.raises(UsageError):
        capped_weights([1.0], own(2))
    with pytest.raises(UsageError):
        capped_weights([1.0], own(1), 0.5)


# --- rules against liars --------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize("rule", sorted(set(RULES) - {"mean", "norm_bounded", "fltrust"}))
def test_liars_that_agree_move_a_robust_rule_but_little(rule: Rule) -> None:
    rng = np.random.default_rng(5)
    truth = np.ones(N)
    rows = np.vstack([truth, truth + 0.3 * rng.standard_normal((20, N))])
    rows[1:5] = -3 * rows[1:5]
    found = coefficients(rule, rows @ rows.T, np.ones(20), owners=own(20), seed=SEED)
    if rule in rules.COORDINATE_WISE:
        parts = [row.astype(np.float32) for row in rows[1:]]
        merged_rows: F64 = (
            order.median(parts, scales=found[1:])
            if rule == "median"
            else order.trimmed_mean(parts, liars_allowed(20), scales=found[1:])
        ).astype(np.float64)
    else:
        merged_rows = found @ rows
    honest = float(np.linalg.norm(rows[5:].mean(axis=0) - truth))
    plain = float(np.linalg.norm(rows[1:].mean(axis=0) - truth))
    assert np.linalg.norm(merged_rows - truth) < max(0.45 * plain, 2 * honest)


@pytest.mark.attack
def test_who_was_rejected_is_no_longer_counted_as_a_liar_to_come() -> None:
    rows = vectors(7)
    rows[1] *= 1e6
    clip = float(np.linalg.norm(rows[2:], axis=1).max())
    found = coefficients("multi_krum", rows @ rows.T, np.ones(7), owners=own(7), clip=clip, liars=2)
    assert np.count_nonzero(found) == 5  # of six that are left, all but the one still to come


def test_liars_need_a_majority_against_them() -> None:
    assert [liars_allowed(n) for n in (1, 3, 4, 5, 10, 20, 64)] == [0, 0, 0, 1, 2, 4, 12]
    assert all(2 * liars_allowed(n) + 3 <= n or liars_allowed(n) == 0 for n in range(1, 65))
    with pytest.raises(UsageError, match="2 f \\+ 3"):
        coefficients("multi_krum", np.eye(7), np.ones(6), owners=own(6), liars=2)
    with pytest.raises(UsageError):
        coefficients("trimmed", np.ones(7), np.ones(6), owners=own(6), liars=-1)


def test_the_permutation_follows_from_the_seed_alone() -> None:
    assert sorted(permutation(SEED, 64)) == list(range(64))
    assert permutation(SEED, 64) == permutation(SEED, 64) != permutation(b"other", 64)
    # Pinned: every coordinator must come to the same buckets, today and later.
    assert permutation(b"", 8) == PINNED


PINNED = [5, 1, 3, 7, 0, 6, 4, 2]


def test_auto_is_resolved_as_written() -> None:
    assert resolve("auto") == "centred_clipping"
    assert resolve("auto", root_data=True) == "fltrust"
    assert resolve("auto", masked=True) == "norm_bounded"
    assert resolve("auto", masked=True, root_data=True) == "norm_bounded"
    assert resolve("mean", masked=True) == "mean"
    assert resolve("median") == "median"
    for rule in sorted(set(RULES) - rules.MASKABLE):
        with pytest.raises(UsageError, match="plain"):
            resolve(rule, masked=True, root_data=True)
    with pytest.raises(UsageError, match="root data"):
        resolve("fltrust")
    with pytest.raises(UsageError, match="no rule"):
        resolve(cast("Rule", "average"))


def test_misuse_is_named() -> None:
    with pytest.raises(UsageError, match="no rule"):
        coefficients(cast("Rule", "auto"), np.eye(3), [1, 1], owners=own(2))
    with pytest.raises(UsageError, match="products"):
        coefficients("mean", np.eye(4), [1, 1], owners=own(2))
    with pytest.raises(UsageError, match="owners"):
        coefficients("mean", np.eye(3), [1, 1], owners=own(3))
    broken = np.eye(3)
    broken[1, 2] = broken[2, 1] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        coefficients("rfa", broken, [1, 1], owners=own(2))
    no_root = np.eye(3)
    no_root[0] = no_root[:, 0] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        coefficients("fltrust", no_root, [1, 1], owners=own(2))
    assert np.isfinite(coefficients("rfa", no_root, [1, 1], owners=own(2))).all()


def test_coefficients_and_kernels_fit() -> None:
    rows = [row.astype(np.float32) for row in vectors(6)]
    exact = np.array(rows, np.float64)
    found = coefficients("centred_clipping", exact @ exact.T, claims(6), owners=own(6))
    merged_rows = kernels.combine(rows, found)
    np.testing.assert_allclose(merged_rows, found @ exact, atol=2e-6)
