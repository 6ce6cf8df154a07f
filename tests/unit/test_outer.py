"""The outer optimiser: its schedule, its arithmetic by hand, and what failures leave of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.numeric import codec as codecs
from federated.rounds.training.arrays import BLOCK
from federated.rounds.training.outer import STALE_SYNCS, Outer
from federated.rounds.training.outer_words import (
    Applied,
    Fetch,
    OuterConfig,
    Request,
    Skipped,
    Sync,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASSIC = OuterConfig(inner_steps=2, fragments=1, overlap=0, alpha=0, codec="f32")
PLAIN_SUM = OuterConfig(
    inner_steps=10, fragments=1, overlap=0, alpha=0, rate=1, momentum=0, codec="f32"
)


def model(*values: float, name: str = "a") -> dict[str, np.ndarray]:
    return {name: np.array(values, np.float32)}


def three() -> dict[str, np.ndarray]:
    """Three layers of one parameter each."""
    return {name: np.zeros(4, np.float32) for name in "abc"}


def syncs(requests: Sequence[Request]) -> list[Sync]:
    return [request for request in requests if isinstance(request, Sync)]


def only(requests: Sequence[Request]) -> Sync:
    [sync] = syncs(requests)
    return sync


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# ---- when


def test_each_fragment_has_its_turn_every_interval_at_its_own_offset() -> None:
    params = three()
    outer = Outer(params)
    seen = []
    for t in range(1, 101):
        for sync in syncs(outer.after_inner_step(t, params)):
            seen.append((t, sync.fragment))
            assert sync.wanted_at == t + 3
            outer.merged(sync.fragment, sync.base_root, np.zeros_like(sync.delta))
    turns = [(30, 0), (40, 1), (50, 2), (60, 0), (70, 1), (80, 2), (90, 0), (100, 1)]
    assert seen == turns


def test_a_turn_is_not_lost_when_steps_are_left_out() -> None:
    params = three()
    outer = Outer(params)
    assert not syncs(outer.after_inner_step(29, params))
    assert [sync.fragment for sync in syncs(outer.after_inner_step(45, params))] == [0, 1]


def test_steps_only_grow() -> None:
    params = model(1.0)
    outer = Outer(params)
    outer.step(params)
    with pytest.raises(UsageError):
        outer.after_inner_step(1, params)
    with pytest.raises(UsageError):
        outer.step(params, tokens=-1)


def test_two_fragments_at_most_are_under_way() -> None:
    params = three()
    outer = Outer(params)
    requests = [request for _ in range(60) for request in outer.step(params)]
    assert [sync.fragment for sync in syncs(requests)] == [0, 1]
    skipped = [request for request in requests if isinstance(request, Skipped)]
    assert skipped == [Skipped(2, "in_flight"), Skipped(0, "in_flight")]
    outer.failed(1, "below_quorum")
    assert outer.last_failure(1) == "below_quorum"
    assert [sync.fragment for _ in range(10) for sync in syncs(outer.step(params))] == [1]


def test_what_trained_on_nothing_sends_nothing() -> None:
    params = model(1.0)
    outer = Outer(params, PLAIN_SUM)
    assert Skipped(0, "idle") in [r for _ in range(10) for r in outer.step(params, tokens=0)]


# ---- what


def test_a_difference_is_against_the_common_copy_in_the_order_of_names() -> None:
    params = {"l.w": f32(1, 2), "l.b": f32(5)}
    outer = Outer(params, PLAIN_SUM)
    params["l.w"] -= 0.5
    params["l.b"] += 1
    sync = only(outer.after_inner_step(10, params, tokens=640))
    assert outer.fragment_names == (("l.b", "l.w"),)
    assert sync.delta.tolist() == [-1, 0.5, 0.5]
    assert (sync.weight, sync.base_root) == (640, outer.root(0))
    params["l.w"] -= 100  # training goes on
    assert sync.delta.tolist() == [-1, 0.5, 0.5]


def test_a_part_of_a_difference_is_encoded_by_itself() -> None:
    rng = np.random.default_rng(1)
    params = {"w": rng.standard_normal(10_000).astype(np.float32)}
    outer = Outer(params, OuterConfig(inner_steps=1, fragments=1, overlap=0))
    params["w"] *= 0.9
    sync = only(outer.step(params))
    whole = codecs.decode_untrusted("e3m0", sync.encoded(), 10_000)
    part = codecs.decode_untrusted("e3m0", sync.encoded(4096, 5904), 5904)
    assert np.array_equal(whole[4096:], part)


def test_without_overlap_it_is_diloco_by_hand() -> None:
    # Two members start at 1 and train to 0 and 0.5, then to other places; H = 2.
    left, right = model(1.0), model(1.0)
    outers = [Outer(left, CLASSIC), Outer(right, CLASSIC)]
    expected = []
    common, momentum = 1.0, 0.0
    for values in ((0.0, 0.5), (0.25, -0.25), (1.0, 0.0)):
        left["a"][:], right["a"][:] = values
        asked = []
        for outer, params in zip(outers, (left, right), strict=True):
            assert not outer.step(params)
            asked.append(only(outer.step(params)))
        mean = sum(asked[k].delta for k in (0, 1)) / np.float32(2)
        for outer, params in zip(outers, (left, right), strict=True):
            assert outer.merged(0, asked[0].base_root, mean) == []
            [applied] = outer.apply(params)
            assert isinstance(applied, Applied)
            assert applied.params["a"] is params["a"]
        d = common - sum(values) / 2
        momentum = 0.9 * momentum + d
        common -= 0.7 * (d + 0.9 * momentum)
        expected.append(common)
        assert left["a"][0] == right["a"][0] == pytest.approx(common, abs=1e-6)
    # d = .75: m = .75, G = 1 - .7 (.75 + .675).
    assert expected[0] == pytest.approx(0.0025, abs=1e-12)


def test_with_overlap_a_result_is_mixed_in_when_it_is_due() -> None:
    config = OuterConfig(inner_steps=10, fragments=1, overlap=3, alpha=0.25, codec="f32")
    params = model(1.0)
    outer = Outer(params, config)
    params["a"][:] = 0.0
    sync = only(outer.after_inner_step(10, params))
    outer.merged(0, sync.base_root, f32(1.0))
    common = 1 - 0.7 * 1.9
    assert outer.common()["a"][0] == pytest.approx(common)
    for t in (11, 12):
        params["a"] += 1.0  # training goes on
        assert outer.after_inner_step(t, params) == []
        assert params["a"][0] == t - 10
    [applied] = outer.after_inner_step(13, params)
    assert isinstance(applied, Applied)
    assert params["a"][0] == pytest.approx(0.25 * 2.0 + 0.75 * common)


def test_a_late_result_is_mixed_in_as_soon_as_it_is_there() -> None:
    config = OuterConfig(inner_steps=10, fragments=1, overlap=3, alpha=0.0, codec="f32")
    params = model(1.0)
    outer = Outer(params, config)
    sync = only(outer.after_inner_step(10, params))
    for t in range(11, 18):
        assert outer.after_inner_step(t, params) == []
    outer.merged(0, sync.base_root, f32(1.0))
    [applied] = outer.after_inner_step(18, params)
    assert isinstance(applied, Applied)
    assert params["a"][0] == pytest.approx(1 - 0.7 * 1.9)


# ---- failures


def test_a_failed_sync_loses_neither_difference_nor_tokens() -> None:
    params = model(8.0)
    outer = Outer(params, PLAIN_SUM)
    for number in range(1, 4):
        params["a"] -= 1.0
        sync = only(outer.after_inner_step(10 * number, params, tokens=64))
        assert sync.delta.tolist() == [number]
        assert sync.weight == 64 * number
        if number < 3:
            outer.failed(0, "below_quorum")
            assert outer.common()["a"].tolist() == [8.0]
    outer.merged(0, sync.base_root, sync.delta)
    outer.apply(params)
    assert outer.common()["a"].tolist() == params["a"].tolist() == [5.0]
    assert only(outer.after_inner_step(40, params, tokens=7)).weight == 7


def test_tokens_of_training_during_a_sync_count_in_the_next() -> None:
    params = model(1.0)
    outer = Outer(params, OuterConfig(inner_steps=10, fragments=1, codec="f32"))
    sync = only(outer.after_inner_step(10, params, tokens=100))
    outer.after_inner_step(14, params, tokens=40)
    outer.merged(0, sync.base_root, f32(0.0))
    assert only(outer.after_inner_step(20, params, tokens=60)).weight == 100


def test_the_weight_of_many_failed_syncs_is_capped() -> None:
    params = model(1.0)
    outer = Outer(params, PLAIN_SUM)
    for t in range(1, 100):
        if syncs(outer.after_inner_step(t, params, tokens=5)):
            outer.failed(0, "below_quorum")
    sync = only(outer.after_inner_step(100, params, tokens=5))
    assert sync.weight == pytest.approx(STALE_SYNCS * 50)


def test_a_member_that_missed_a_round_takes_its_result_and_keeps_equal() -> None:
    config = OuterConfig(inner_steps=10, fragments=1, overlap=3, codec="f32")
    here, away = model(1.0), model(1.0)
    members = [Outer(here, config), Outer(away, config)]
    sync = only(members[0].after_inner_step(10, here))
    only(members[1].after_inner_step(10, away))
    members[1].failed(0, "late")
    for member in members:
        assert member.merged(0, sync.base_root, f32(0.5)) == []
    assert members[0].root(0) == members[1].root(0) != sync.base_root


def test_a_member_that_diverged_sends_nothing_and_takes_the_common_copy() -> None:
    config = OuterConfig(inner_steps=10, fragments=1, overlap=3, codec="f32")
    for wrong in (float("nan"), float("inf"), -3e38):
        params = model(1.0, 2.0)
        outer = Outer(params, config)
        params["a"][0] = wrong
        assert outer.after_inner_step(10, params) == [Skipped(0, "diverged")]
        outer.merged(0, outer.root(0), f32(0.5, 0.5))
        outer.after_inner_step(11, params)
        assert params["a"].tolist() == outer.common()["a"].tolist()
        assert np.isfinite(params["a"]).all()


def test_a_result_on_another_base_is_fetched_instead() -> None:
    ahead, behind = model(1.0, 2.0), model(1.0, 2.0)
    first, second = Outer(ahead, PLAIN_SUM), Outer(behind, PLAIN_SUM)
    base = first.root(0)
    first.merged(0, base, f32(1, 1))
    only(second.after_inner_step(10, behind))
    assert second.merged(0, first.root(0), f32(1, 1)) == [Fetch(0)]
    assert second.merged(0, first.root(0), f32(1, 1)) == []  # asked already
    assert second.root(0) == base
    assert second.after_inner_step(20, behind) == [Skipped(0, "fetching")]
    second.adopt(0, first.fragment_state(0), first.root(0))
    assert second.root(0) == first.root(0)
    [applied] = second.apply(behind)
    assert isinstance(applied, Applied)
    assert behind["a"].tolist() == [0.0, 1.0]
    assert only(second.after_inner_step(30, behind)).base_root == first.root(0)


def test_a_fetch_that_fails_is_tried_again_by_the_next_result() -> None:
    params = model(1.0)
    outer = Outer(params, PLAIN_SUM)
    assert outer.merged(0, b"?" * 32, f32(1)) == [Fetch(0)]
    outer.failed(0, "unreachable")
    assert outer.merged(0, b"?" * 32, f32(1)) == [Fetch(0)]


def test_a_result_told_twice_counts_once() -> None:
    params = model(1.0)
    outer = Outer(params, PLAIN_SUM)
    base = outer.root(0)
    outer.merged(0, base, f32(0.25))
    assert outer.merged(0, base, f32(0.25)) == []
    assert outer.common()["a"].tolist() == [0.75]


def test_a_result_of_nothing_is_still_a_base_for_the_next() -> None:
    outer = Outer(model(1.0), PLAIN_SUM)
    base = outer.root(0)
    outer.merged(0, base, f32(0))
    outer.merged(0, base, f32(0.25))
    assert outer.common()["a"].tolist() == [0.75]


def test_a_step_covers_a_fragment_of_many_blocks() -> None:
    n = 2 * BLOCK + 5
    d = np.random.default_rng(2).standard_normal(n).astype(np.float32)
    outer = Outer(model(*np.zeros(n)), CLASSIC)
    outer.merged(0, outer.root(0), d)
    assert np.allclose(outer.common()["a"], -0.7 * 1.9 * d, rtol=1e-5)
    outer.merged(0, outer.root(0), d)
    assert np.allclose(outer.common()["a"], -0.7 * (1.9 + 2.71) * d, rtol=1e-5)


@pytest.mark.attack
@pytest.mark.parametrize(
    "d",
    [
        f32(1),
        f32(1, 2, 3),
        f32(1, float("nan")),
        f32(float("inf"), 0),
        np.zeros((2, 1), np.float32),
        np.zeros(2, np.float64),
    ],
)
def test_a_result_that_is_none_changes_nothing(d: np.ndarray) -> None:
    outer = Outer(model(1.0, 2.0), PLAIN_SUM)
    before = outer.root(0)
    with pytest.raises(UsageError):
        outer.merged(0, before, d)
    with pytest.raises(UsageError):
        outer.merged(1, before, f32(0, 0))
    assert outer.root(0) == before
    assert outer.common()["a"].tolist() == [1.0, 2.0]


@pytest.mark.attack
def test_a_state_with_another_root_or_shape_is_not_adopted() -> None:
    params = model(1.0, 2.0)
    outer = Outer(params, PLAIN_SUM)
    root = outer.root(0)
    good = outer.fragment_state(0)
    for bad in (
        {},
        good | {"G/a": f32(1, 2, 3)},
        good | {"m/a": f32(0, float("nan"))},
        good | {"G/a": np.array([1, 2], np.float64)},
        good | {"G/a": f32(1, 3)},
    ):
        with pytest.raises(DecodeError):
            outer.adopt(0, bad, root)
        assert outer.root(0) == root
    outer.adopt(0, good, root)


# ---- states


def test_a_restart_goes_on_where_it_was() -> None:
    params = {f"l{number}.w": f32(number, 1) for number in range(3)}
    config = OuterConfig(inner_steps=30, codec="f32")
    outer = Outer(params, config)
    for t in range(1, 47):
        for value in params.values():
            np.multiply(value, np.float32(0.99), out=value)
        for sync in syncs(outer.after_inner_step(t, params, tokens=2**44 + 1)):
            if sync.fragment == 0:
                outer.merged(0, sync.base_root, sync.delta)
    # Fragment 1 has been under way since step 40.
    kept = {name: value.copy() for name, value in params.items()}
    again = Outer(kept, config, saved=outer.save())
    assert again.step_count == 46
    assert [again.root(k) for k in range(3)] == [outer.root(k) for k in range(3)]
    assert np.array_equal(again.save()["counts"], outer.save()["counts"])
    outer.failed(1, "restart")
    for t in range(47, 91):
        mine = outer.after_inner_step(t, params, tokens=1)
        theirs = again.after_inner_step(t, kept, tokens=1)
        assert [type(request) for request in mine] == [type(request) for request in theirs]
        for one, other in zip(syncs(mine), syncs(theirs), strict=True):
            assert one.weight == other.weight
            assert np.array_equal(one.delta, other.delta)
            outer.failed(one.fragment, "x")
            again.failed(other.fragment, "x")


def test_a_saved_state_is_float32_alone_and_of_this_model() -> None:
    outer = Outer(three())
    saved = outer.save()
    assert {array.dtype.name for array in saved.values()} == {"float32"}
    for wrong in (
        {name: array for name, array in saved.items() if name != "counts"},
        saved | {"counts": saved["counts"] + np.float32(0.5)},
        saved | {"counts": saved["counts"] - np.float32(1)},
        saved | {"counts": saved["counts"][1:]},
        saved | {"G/a": f32(1)},
        {},
    ):
        with pytest.raises(UsageError):
            Outer(three(), saved=wrong)


def test_the_common_copy_and_states_are_copies() -> None:
    outer = Outer(model(1.0))
    for tensors in (outer.common(), outer.fragment_state(0), outer.save()):
        for array in tensors.values():
            array.fill(7)
    assert outer.common()["a"].tolist() == [1.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"inner_steps": 0},
        {"overlap": 6},
        {"overlap": -1},
        {"inner_steps": 3, "overlap": 3},
        {"alpha": 1.0},
        {"alpha": float("nan")},
        {"momentum": 1.0},
        {"rate": 0.0},
        {"in_flight_max": 0},
        {"codec": "zip"},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        OuterConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "params", [{}, {"a": f32(float("nan"))}, {"a": np.array([1, 2])}, {"a": np.array(["x"])}]
)
def test_parameters_that_cannot_be_trained_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Outer(params)


def test_parameters_of_another_shape_are_refused() -> None:
    outer = Outer(model(1.0, 2.0), PLAIN_SUM)
    with pytest.raises(UsageError):
        outer.after_inner_step(10, model(1.0))


# ---- rounds that were missed


def after(rounds: Sequence[np.ndarray], outer: Outer) -> Outer:
    for d in rounds:
        outer.merged(0, outer.root(0), d)
    return outer


def test_rounds_that_were_alike_are_made_up_for_by_their_sum() -> None:
    config = OuterConfig(inner_steps=10, fragments=1, overlap=0, codec="f32")
    first, alike = [f32(0.5, -1), f32(-0.25, 1)], [f32(0.125, 0.5)] * 4
    here = after([*first, *alike], Outer(model(1.0, 2.0), config))
    away = after(first, Outer(model(1.0, 2.0), config))
    away.missed(0, 4, np.sum(alike, 0))
    assert away.common()["a"] == pytest.approx(here.common()["a"], rel=1e-6)
    assert away.fragment_state(0)["m/a"] == pytest.approx(here.fragment_state(0)["m/a"], rel=1e-6)


def test_what_is_wrong_after_missed_rounds_shrinks_with_every_later_one() -> None:
    config = OuterConfig(inner_steps=10, fragments=1, overlap=0, codec="f32", momentum=0.5)
    rng = np.random.default_rng(8)
    rounds = list(rng.standard_normal((30, 2)).astype(np.float32))
    here = after(rounds[:5], Outer(model(1.0, 2.0), config))
    away = Outer(model(1.0, 2.0), config)
    away.missed(0, 5, np.sum(rounds[:5], 0))
    apart = [np.abs(here.common()["a"] - away.common()["a"]).max()]
    for d in rounds[5:]:
        after([d], here)
        after([d], away)
        apart.append(np.abs(here.common()["a"] - away.common()["a"]).max())
    assert apart[0] > 0.01
    for before, now in itertools.pairwise(apart[:8]):
        assert now == pytest.approx(before / 2, rel=0.01, abs=1e-5)
    assert apart[-1] < 1e-5


def test_what_was_learned_while_rounds_were_missed_is_in_the_next_difference() -> None:
    config = OuterConfig(inner_steps=10, fragments=1, overlap=0, codec="f32")
    params = model(1.0, 2.0)
    outer = Outer(params, config)
    params["a"] -= f32(0.25, 0.5)
    assert only(outer.after_inner_step(10, params)).delta.tolist() == [0.25, 0.5]
    outer.missed(0, 3, f32(1.5, -3))
    [applied] = outer.apply(params)
    assert isinstance(applied, Applied)
    assert (outer.common()["a"] - params["a"]).tolist() == pytest.approx([0.25, 0.5], abs=1e-6)
    assert outer.apply(params) == []
    sync = only(outer.after_inner_step(20, params))
    assert sync.delta.tolist() == pytest.approx([0.25, 0.5], abs=1e-6)
    assert sync.weight == 2, "the tokens of both intervals"


@pytest.mark.parametrize(("rounds", "total"), [(0, f32(1)), (2, f32(1, 2)), (2, f32(np.nan))])
def test_missed_rounds_that_are_none_change_nothing(rounds: int, total: np.ndarray) -> None:
    outer = Outer(model(1.0))
    root = outer.root(0)
    with pytest.raises(UsageError):
        outer.missed(0, rounds, total)
    assert outer.root(0) == root
