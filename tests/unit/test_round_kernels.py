"""Kernels of rounds: against slow float64 references, on every engine, at the edges."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.numeric import engines, gram, kernels, order, rules
from p2p.errors import DecodeError
from tests.helpers.need import missing, need

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from federated.rounds.numeric.engines import Engine

    F32 = NDArray[np.float32]
    F64 = NDArray[np.float64]

LENGTHS = [0, 1, 3, 32_767, 32_768, 65_537, 200_001]
INSTALLED: list[Engine] = [
    "numpy",
    *(["scipy"] if missing("scipy") is None else []),
    *(["numba"] if missing("numba") is None else []),
]
ENGINES = pytest.mark.parametrize("engine", INSTALLED)
LOOP_ENGINES = [engine for engine in INSTALLED if engine != "scipy"]
LOOPS = pytest.mark.parametrize("engine", LOOP_ENGINES)


def test_every_engine_is_tested() -> None:
    need("scipy", "numba")
    assert INSTALLED == ["numpy", "scipy", "numba"]


def rows_of(count: int, n: int, seed: int = 0) -> list[F32]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n, dtype=np.float32) for _ in range(count)]


def exact(rows: list[F32]) -> F64:
    return np.array(rows, np.float64)


# --- sums -----------------------------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_the_weighted_mean_is_the_weighted_mean(count: int, n: int, engine: Engine) -> None:
    rows = rows_of(count, n)
    weights = np.arange(1, count + 1) * 50.0
    found = kernels.weighted_mean(rows, weights, engine=engine)
    assert found.dtype == np.float32
    assert found.shape == (n,)
    np.testing.assert_allclose(found, weights @ exact(rows) / weights.sum(), rtol=0, atol=2e-6)


@ENGINES
def test_a_row_without_weight_is_not_read(engine: Engine) -> None:
    rows = rows_of(6, 1000)
    rows[2][:] = np.nan
    rows[4][:] = np.inf
    coefficients = [0.5, -1.0, 0.0, 2.0, 0.0, 1e-60]
    found = kernels.combine(rows, coefficients, engine=engine)
    expected = 0.5 * exact(rows)[0] - exact(rows)[1] + 2 * exact(rows)[3]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_no_coefficient_at_all_gives_zeros() -> None:
    assert not kernels.combine(rows_of(3, 10), [0, 0, 0], np.full(10, np.nan, np.float32)).any()


def test_a_mean_of_equal_rows_is_the_row_and_of_one_too() -> None:
    (row,) = rows_of(1, 5000)
    assert np.array_equal(kernels.weighted_mean([row], [17.0]), row)
    np.testing.assert_allclose(kernels.weighted_mean([row] * 3, [1, 2, 5]), row, rtol=3e-7)


@ENGINES
def test_the_result_lands_in_the_output_given(engine: Engine) -> None:
    rows, room = rows_of(5, 40_000), np.empty(40_002, np.float32)
    room[[0, -1]] = 7
    given = kernels.combine(rows, np.ones(5), room[1:-1], engine=engine)
    assert np.shares_memory(given, room)
    np.testing.assert_allclose(room[1:-1], exact(rows).sum(axis=0), atol=1e-5)
    assert room[0] == room[-1] == 7


@ENGINES
def test_rows_may_be_read_only_and_anywhere_in_a_buffer(engine: Engine) -> None:
    whole = np.arange(90_000, dtype=np.float32)
    whole.flags.writeable = False
    rows = [whole[1:45_001], whole[45_000:]]
    rows[1] = rows[1][: len(rows[0])]
    found = kernels.combine(rows[:2], [1.0, 1.0], engine=engine)
    assert np.array_equal(found, rows[0] + rows[1])


def strict_reference(rows: list[F32], coefficients: F64) -> F32:
    """One multiplication and one addition an element, in the order of the rows."""
    factors = coefficients.astype(np.float32)
    total = rows[0] * factors[0]
    for row, factor in zip(rows[1:], factors[1:], strict=True):
        total = total + row * factor
    return total


def test_strict_sums_are_the_plain_ones_bit_by_bit_and_however_they_are_cut() -> None:
    rows = rows_of(7, 300_000)
    coefficients = np.linspace(-0.3, 0.9, 7)
    expected = strict_reference(rows, coefficients)
    assert np.array_equal(kernels.combine(rows, coefficients, strict=True), expected)
    found = np.empty(300_000, np.float32)
    for part in kernels.slices(300_000, 70_001):
        kernels.combine([row[part] for row in rows], coefficients, found[part], strict=True)
    assert np.array_equal(found, expected)
    folded = np.full(300_000, np.nan, np.float32)
    for i, row in enumerate(rows):
        kernels.fold(folded, row, float(coefficients[i]), first=i == 0, strict=True)
    assert np.array_equal(folded, expected)


@ENGINES
def test_folding_adds_up(engine: Engine) -> None:
    rows, total = rows_of(4, 100_000), np.full(100_000, np.nan, np.float32)
    weights = [0.25, 1.0, -2.0, 1.0]
    for i, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        kernels.fold(total, row, weight, first=i == 0, engine=engine)
    np.testing.assert_allclose(total, np.array(weights) @ exact(rows), atol=2e-6)


def test_normalised_weights() -> None:
    assert kernels.normalised([1, 2, 1]).tolist() == [0.25, 0.5, 0.25]
    assert kernels.normalised([2.0**53, 2.0**53]).tolist() == [0.5, 0.5]
    for bad in ([], [0.0], [0.0, 0.0], [1.0, -1.0], [np.nan], [np.inf, 1.0], [1e308, 1e308]):
        with pytest.raises(UsageError):
            kernels.normalised(bad)


def test_slices_cover_everything_once_and_hold_at_most_eight_megabytes() -> None:
    for n in (0, 1, kernels.SLICE_ITEMS - 1, kernels.SLICE_ITEMS, 3 * kernels.SLICE_ITEMS + 5):
        parts = list(kernels.slices(n))
        assert [i.start for i in parts] == [0, *(i.stop for i in parts)][: len(parts)]
        assert sum(i.stop - i.start for i in parts) == n
        assert all(0 < (i.stop - i.start) * 4 <= 8_000_000 for i in parts)
    with pytest.raises(UsageError):
        next(kernels.slices(-1))
    with pytest.raises(UsageError):
        next(kernels.slices(1, 0))


@pytest.mark.parametrize("items", [0, engines.SCIPY_ITEMS_MIN, engines.NUMBA_ITEMS_MIN])
def test_an_engine_is_chosen_that_is_there(items: int) -> None:
    chosen = engines.for_sums("auto", items, strict=False)
    assert chosen == "numpy" or items > 0
    assert chosen != "scipy" or engines.saxpy() is not None
    assert chosen != "numba" or engines.has_numba()
    assert engines.for_sums("auto", items, strict=True) == "numpy"
    assert engines.for_loops("auto", 0) == "numpy"


def test_misuse_is_named() -> None:
    rows = rows_of(3, 8)
    bad: list[tuple[list[F32], list[float], str]] = [
        ([], [], "no rows"),
        ([np.zeros((), np.float32)], [1.0], "contiguous"),
        ([np.zeros((2, 2), np.float32)], [1.0], "contiguous"),
        ([cast("F32", np.zeros(4))], [1.0], "float64"),
        ([np.zeros(8, np.float32)[::2]], [1.0], "contiguous"),
        ([np.zeros(8, ">f4")], [1.0], "contiguous"),
        ([np.frombuffer(bytes(9), np.float32, 2, 1)], [1.0], "contiguous"),
        ([rows[0], rows[1][:-1]], [1.0, 1.0], "rows of 8 and of 7"),
        (rows, [1.0, 1.0], "as many finite coefficients"),
        (rows, [1.0, 1.0, float("nan")], "as many finite coefficients"),
        (rows, [1.0, 1.0, 1e39], "too large"),
    ]
    for given, coefficients, message in bad:
        with pytest.raises(UsageError, match=message), np.errstate(over="ignore"):
            kernels.combine(given, coefficients)
    frozen = np.zeros(8, np.float32)
    frozen.flags.writeable = False
    for out, message in (
        (rows[1], "overlaps"),
        (frozen, "read-only"),
        (np.zeros(7, np.float32), "rows of 8 and of 7"),
    ):
        with pytest.raises(UsageError, match=message):
            kernels.combine(rows, [1, 1, 1], out)
    with pytest.raises(UsageError, match="overlaps"):
        kernels.fold(rows[0], rows[0], 1.0)
    with pytest.raises(UsageError, match="finite"):
        kernels.fold(rows[0], rows[1], float("inf"))
    with pytest.raises(UsageError, match="strict"):
        kernels.combine(rows, [1, 1, 1], strict=True, engine="scipy")


# --- order statistics -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(17))
def test_the_network_sorts_every_word_of_zeros_and_ones(count: int) -> None:
    # The 0-1 principle: a network that sorts these sorts everything.
    places = np.array(list(itertools.product([0, 1], repeat=count)), np.int8).T.copy()
    for low, high in order.network(count):
        assert low < high < count
        smaller = np.minimum(places[low], places[high])
        places[high] = np.maximum(places[low], places[high])
        places[low] = smaller
    assert (np.diff(places, axis=0) >= 0).all()


def test_networks_are_as_small_as_published() -> None:
    assert [len(order.network(count)) for count in (8, 16, 32)] == [19, 63, 191]
    assert len(order.pruned(16, 7, 8)) == 52
    assert len(order.pruned(16, 2, 13)) == 52
    assert len(order.pruned(16, 0, 15)) == 0  # a mean needs no order


@pytest.mark.parametrize("count", range(1, 13))
def test_a_pruned_network_brings_every_word_of_zeros_and_ones_to_the_right_sum(count: int) -> None:
    words = np.array(list(itertools.product([0, 1], repeat=count)), np.int8).T
    for cut in range((count - 1) // 2 + 1):
        places = words.copy()
        for low, high, wants_low, wants_high in order.pruned(count, cut, count - 1 - cut):
            smaller = np.minimum(places[low], places[high])
            larger = np.maximum(places[low], places[high])
            # What nobody wants is not even computed: spoil it.
            places[low] = smaller if wants_low else 99
            places[high] = larger if wants_high else 99
        found = places[cut : count - cut].sum(axis=0)
        assert np.array_equal(found, np.sort(words, axis=0)[cut : count - cut].sum(axis=0))


@LOOPS
@pytest.mark.parametrize("count", [*range(1, 18), 32, 64])
def test_the_median_is_the_median(count: int, engine: Engine) -> None:
    rows = rows_of(count, 333, seed=count)
    rows[0][:5] = rows[-1][:5] = 0  # ties
    found = order.median(rows, engine=engine)
    np.testing.assert_allclose(found, np.median(exact(rows), axis=0), rtol=2e-7)


@LOOPS
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, 33])
def test_the_trimmed_mean_is_the_mean_of_what_is_left(count: int, engine: Engine) -> None:
    rows = rows_of(count, 333, seed=count)
    ordered = np.sort(exact(rows), axis=0)
    for cut in range((count - 1) // 2 + 1):
        found = order.trimmed_mean(rows, cut, engine=engine)
        np.testing.assert_allclose(found, ordered[cut : count - cut].mean(axis=0), atol=3e-7)
    assert np.array_equal(order.trimmed_mean(rows, count), order.median(rows))


@LOOPS
@pytest.mark.parametrize("n", [0, 1, order.BLOCK - 1, order.BLOCK, 2 * order.BLOCK + 3])
def test_order_statistics_of_any_length(n: int, engine: Engine) -> None:
    rows, room = rows_of(5, n), np.empty(n, np.float32)
    before = [row.copy() for row in rows]
    assert order.median(rows, room, engine=engine) is room
    assert all(np.array_equal(row, kept) for row, kept in zip(rows, before, strict=True))
    assert np.array_equal(room, np.median(np.array(rows), axis=0) if n else room)


def test_order_statistics_have_the_same_bits_on_every_engine() -> None:
    need("numba")
    rng = np.random.default_rng(4)
    values = np.array([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 3e38, 0.1], np.float32)
    for count in (1, 2, 7, 16, 31):
        rows = [rng.choice(values, 40_000) for _ in range(count)]
        scales, owners = rng.choice([0, 0.5, 1], count), [i // 2 for i in range(count)]
        for cut in {0, count // 8, count}:
            one, other = (
                order.trimmed_mean(rows, cut, scales=scales, owners=owners, engine=engine)
                for engine in LOOP_ENGINES
            )
            assert np.array_equal(one.view(np.uint32), other.view(np.uint32))


@LOOPS
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_zero_has_one_sign(count: int, engine: Engine) -> None:
    for value in (0.0, -0.0):
        rows = [np.full(9, value, np.float32) for _ in range(count)]
        rows[0] = -rows[0]
        assert not np.signbit(order.median(rows, engine=engine)).any()
        assert not np.signbit(order.trimmed_mean(rows, 1, engine=engine)).any()


@LOOPS
def test_scales_leave_rows_out_and_shorten_others(engine: Engine) -> None:
    rows = rows_of(6, 100)
    rows[3][:] = np.nan
    scales = np.array([1, 0.5, 1, 0, 1, 0.25])
    kept = exact(rows)[[0, 1, 2, 4, 5]] * scales[[0, 1, 2, 4, 5], None]
    found = order.median(rows, scales=scales, engine=engine)
    np.testing.assert_allclose(found, np.median(kept, axis=0), rtol=2e-7)
    trimmed = order.trimmed_mean(rows, 1, scales=scales, engine=engine)
    np.testing.assert_allclose(trimmed, np.sort(kept, axis=0)[1:-1].mean(axis=0), atol=2e-7)
    assert not order.median(rows, scales=np.zeros(6)).any()


@pytest.mark.attack
def test_an_owner_of_many_devices_has_one_vote() -> None:
    honest, liar = rows_of(3, 50), np.full(50, 1e6, np.float32)
    rows, owners = [*honest, *([liar] * 9)], ["a", "b", "c", *("liar",) * 9]
    found = order.median(rows, owners=owners)
    expected = np.median(np.array([*exact(honest), liar]), axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (order.median(rows) == liar).all(), "control: without owners the devices win"


def test_rows_of_an_owner_are_averaged_after_they_are_scaled() -> None:
    rows = rows_of(4, 20)
    found = order.median(rows, scales=[1, 0.5, 1, 1], owners=["x", "x", "y", "z"])
    first = (exact(rows)[0] + 0.5 * exact(rows)[1]) / 2
    expected = np.median(np.array([first, *exact(rows)[2:]]), axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_order_statistics_name_misuse() -> None:
    rows = rows_of(65, 2)
    with pytest.raises(UsageError, match="bucket first"):
        order.median(rows)
    assert order.median(rows, owners=[i // 2 for i in range(65)]).shape == (2,)
    with pytest.raises(UsageError, match="not negative"):
        order.trimmed_mean(rows[:3], -1)
    with pytest.raises(UsageError, match="as many"):
        order.median(rows[:3], scales=[1, 1])
    with pytest.raises(UsageError, match="as many"):
        order.median(rows[:3], owners=["a"])
    with pytest.raises(UsageError, match="finite"):
        order.median(rows[:3], scales=[1, 1, np.nan])
    with pytest.raises(UsageError, match="no rows"):
        order.median([])
    with pytest.raises(UsageError, match="overlaps"):
        order.median(rows[:3], rows[1])
    with pytest.raises(UsageError, match="scipy has no function"):
        order.median(rows[:3], engine="scipy")


# --- products -------------------------------------------------------------------------------------


@LOOPS
@pytest.mark.parametrize("n", [0, 1, 1000, gram.BLOCK + 1, 3 * gram.BLOCK])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_products_are_those_of_float64(count: int, n: int, engine: Engine) -> None:
    rows = rows_of(count, n)
    found = gram.gram(rows, engine=engine)
    together = gram.gram(np.array(rows), engine=engine)
    np.testing.assert_allclose(together, found, rtol=1e-6, atol=1e-3)
    expected = exact(rows) @ exact(rows).T if n else np.zeros((count, count))
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(n, 1))
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(gram.diagonal(rows), np.diagonal(expected), rtol=1e-5)


def test_parts_add_up() -> None:
    rows = rows_of(4, 200_000)
    parts = [gram.gram([row[part] for row in rows]) for part in kernels.slices(200_000, 65_536)]
    np.testing.assert_allclose(sum(parts), gram.gram(rows), rtol=1e-12)


@pytest.mark.attack
@LOOPS
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_spoils_its_own_products_alone(value: float, engine: Engine) -> None:
    rows = rows_of(5, 70_000)
    clean = gram.gram(rows, engine=engine)
    rows[2][69_999] = value
    found = gram.gram(rows, engine=engine)
    assert not np.isfinite(found[2, 2])
    others = np.ix_([0, 1, 3, 4], [0, 1, 3, 4])
    np.testing.assert_allclose(found[others], clean[others], rtol=1e-6, atol=1e-2)
    assert np.isfinite(gram.diagonal(rows)).tolist() == [True, True, False, True, True]


def test_triangles_carry_a_symmetric_matrix() -> None:
    matrix = gram.gram(rows_of(4, 30))
    sent = gram.lower_triangle(matrix)
    assert sent[:3].tolist() == [matrix[0, 0], matrix[1, 0], matrix[1, 1]]
    assert np.array_equal(gram.from_lower_triangle(sent, 4), matrix)
    with pytest.raises(UsageError):
        gram.from_lower_triangle(sent, 5)
    with pytest.raises(UsageError):
        gram.lower_triangle(np.zeros((2, 3)))


def test_products_of_means_are_those_of_the_averaged_rows() -> None:
    rows = rows_of(5, 100)
    matrix = exact(rows) @ exact(rows).T
    owners = gram.owner_matrix(["b", "a", "b", "c", "b"])
    assert owners.tolist() == [[1 / 3, 0, 1 / 3, 0, 1 / 3], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]
    buckets = gram.bucket_matrix([3, 0, 4, 2, 1], 2)
    assert buckets.tolist() == [[0.5, 0, 0, 0.5, 0], [0, 0, 0.5, 0, 0.5], [0, 1, 0, 0, 0]]
    for groups in (owners, buckets):
        means = groups @ exact(rows)
        np.testing.assert_allclose(gram.merged(matrix, groups), means @ means.T, rtol=1e-12)
    with pytest.raises(UsageError):
        gram.merged(matrix, np.eye(4))
    with pytest.raises(UsageError):
        gram.bucket_matrix([0, 0], 1)
    with pytest.raises(UsageError):
        gram.bucket_matrix([0, 1], 0)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-21, 1e15])
def test_products_of_rows_are_believed(scale: float) -> None:
    rows = [row * np.float32(scale) for row in rows_of(6, 70_000)]
    rows[1], rows[2] = rows[0], -rows[0]  # as far as products can go
    rows[5] = rows_of(1, 70_000)[0]
    rows[4] = rows[4].copy()
    rows[4][7] = np.nan
    gram.verify_products(gram.gram(rows))
    gram.verify_products(gram.diagonal(rows))


@pytest.mark.attack
@pytest.mark.parametrize(
    ("place", "value"),
    [((2, 1), np.nan), ((2, 1), np.inf), ((2, 1), 1e9), ((2, 1), -1e9), ((2, 2), -1.0),
     ((0, 0), np.nan), ((0, 0), np.inf), ((0, 0), 1e300), ((2, 2), 0.0)],
)  # fmt: skip
def test_products_that_no_rows_have_are_refused(place: tuple[int, int], value: float) -> None:
    matrix = gram.gram(rows_of(4, 1000))
    gram.verify_products(matrix)
    matrix[place] = matrix[place[::-1]] = value
    with pytest.raises(DecodeError):
        gram.verify_products(matrix)
    if place[0] == place[1] and value != 0:
        with pytest.raises(DecodeError):
            gram.verify_products(np.diagonal(matrix))


@pytest.mark.attack
def test_whatever_products_are_believed_every_rule_survives_them() -> None:
    rng = np.random.default_rng(11)
    telling = np.array([0.0, 1e-300, 1e-28, 1.0, 1e30, 1e59, 1e61, 1e308, np.inf, np.nan, -1.0])
    believed = 0
    for _ in range(3000):
        count = int(rng.integers(1, 7))
        squares = rng.choice(telling, count + 1)
        roots = np.sqrt(np.where(np.isfinite(squares), np.abs(squares), 1))
        lower = np.tril(np.outer(roots, roots) * rng.uniform(-1, 1, (count + 1, count + 1)), -1)
        matrix = lower + lower.T
        np.fill_diagonal(matrix, squares)
        try:
            gram.verify_products(matrix)
        except DecodeError:
            continue
        believed += 1
        for rule in rules.RULES:
            found = rules.coefficients(
                rule,
                matrix,
                np.ones(count),
                owners=range(count),
                clip=rng.choice([None, 1.0, 1e30]),
            )
            assert np.isfinite(found).all(), (rule, matrix)
    assert believed > 500
