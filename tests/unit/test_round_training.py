"""What trainers hand in: arrays of any framework, layers by name, late updates, claimed weights."""

from __future__ import annotations

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.numeric import codec as codecs
from federated.rounds.training.arrays import BLOCK, flatten, fragments, layers, mix, view
from federated.rounds.training.late import Shelf, Update, late_weight
from federated.rounds.training.local import capped, merge
from federated.rounds.training.outer import Outer
from federated.rounds.training.outer_words import Applied, OuterConfig


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


class Tensor:
    """As torch has it: refuses to be seen while it requires gradients."""

    def __init__(self, array: np.ndarray, *, grad: bool = True) -> None:
        self.array, self.grad = array, grad

    def detach(self) -> Tensor:
        return Tensor(self.array, grad=False)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        if self.grad:
            raise RuntimeError("can't call numpy() on a tensor that requires grad")
        return self.array


class Elsewhere:
    """On a graphics card."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise TypeError("can't convert a tensor on a device")


class Capsule:
    """What speaks DLPack alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **words: object) -> object:
        return self.array.__dlpack__(**words)  # type: ignore[arg-type]

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def frozen(array: np.ndarray) -> np.ndarray:
    """As jax has it: not to be written."""
    array.flags.writeable = False
    return array


# ---- arrays


@pytest.mark.parametrize("kind", [Tensor, Capsule, lambda array: array])
def test_an_array_is_seen_without_a_copy(kind: type) -> None:
    memory = f32(1, 2)
    seen = view("w", kind(memory))
    assert np.shares_memory(seen, memory)


@pytest.mark.parametrize("kind", [Tensor, lambda array: array])
def test_a_parameter_is_written_in_place(kind: type) -> None:
    memory = np.zeros((2, 2), np.float32)
    mix(view("w", kind(memory)), f32(1, 2, 3, 4).reshape(2, 2), 0.0)
    assert memory.tolist() == [[1, 2], [3, 4]]
    mix(view("w", kind(memory)), np.zeros((2, 2), np.float32), 0.5)
    assert memory.tolist() == [[0.5, 1], [1.5, 2]]


def test_a_transposed_parameter_is_written_through() -> None:
    memory = np.zeros((2, 3), np.float32)
    mix(memory.T, np.arange(6, dtype=np.float32).reshape(3, 2), 0.0)
    assert memory.T.reshape(-1).tolist() == [0, 1, 2, 3, 4, 5]
    out = np.empty(6, np.float32)
    flatten(["w"], {"w": memory.T}, out)
    assert out.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_cannot_be_written_is_handed_back_anew() -> None:
    config = OuterConfig(inner_steps=10, fragments=1, overlap=0, rate=1, momentum=0, codec="f32")
    params = {"w": frozen(np.ones((2, 1), np.float16))}
    outer = Outer(params, config)
    outer.after_inner_step(10, params)
    outer.merged(0, outer.root(0), f32(0.5, 0.25))
    [applied] = outer.apply(params)
    assert isinstance(applied, Applied)
    assert applied.params["w"].tolist() == [[0.5], [0.75]]
    assert applied.params["w"].dtype == np.float16
    assert params["w"].tolist() == [[1], [1]]


@pytest.mark.parametrize(
    "value", [Elsewhere(), object(), None, "text", np.array([1, 2]), np.array([True]), 1j]
)
def test_what_is_no_array_of_numbers_here_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        view("w", value)


def test_a_double_beyond_float32_is_an_infinity_and_no_warning() -> None:
    out = np.empty(1, np.float32)
    flatten(["w"], {"w": np.array([1e300])}, out)
    assert np.isinf(out[0])


@pytest.mark.parametrize("n", [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_blocks_of_a_mixture_cover_all_of_it(n: int, dtype: type) -> None:
    rng = np.random.default_rng(n)
    own, common = rng.standard_normal((2, n)).astype(np.float32)
    array = own.astype(dtype)
    expected = np.float32(0.2) * array.astype(np.float32) + np.float32(0.8) * common
    assert mix(array, common, 0.2) is array
    assert np.allclose(array, expected.astype(dtype), rtol=1e-3, atol=1e-6)


def test_a_parameter_without_dimensions_is_mixed() -> None:
    array = np.array(1.0, np.float32)
    assert mix(array, np.array(3.0, np.float32), 0.5) is array
    assert array == 2.0


# ---- layers


def test_layers_go_by_the_first_number_or_by_all_but_the_last_word() -> None:
    names = ["wte.weight", "h.0.attn.w", "h.0.mlp.fc.w", "h.1.attn.w", "ln_f.w", "ln_f.b", "head"]
    assert layers(names) == [
        ["wte.weight"],
        ["h.0.attn.w", "h.0.mlp.fc.w"],
        ["h.1.attn.w"],
        ["ln_f.w", "ln_f.b"],
        ["head"],
    ]
    assert layers(["0.weight", "0.bias", "2.weight", "10"]) == [
        ["0.weight", "0.bias"],
        ["2.weight"],
        ["10"],
    ]


def test_layers_are_dealt_out_in_turn() -> None:
    names = [f"h.{number}.{kind}" for number in range(5) for kind in ("w", "b")]
    assert fragments(names, 3) == (
        ("h.0.b", "h.0.w", "h.3.b", "h.3.w"),
        ("h.1.b", "h.1.w", "h.4.b", "h.4.w"),
        ("h.2.b", "h.2.w"),
    )
    assert len(fragments(names, 9)) == 5
    assert fragments(["b", "a"], [["b"], ["a"]]) == (("b",), ("a",))


@pytest.mark.parametrize(
    "wanted", [0, -1, [], [["a"]], [["a", "b"], []], [["a"], ["a", "b"]], [["a", "b", "c"]]]
)
def test_fragments_hold_every_name_once(wanted: int | list[list[str]]) -> None:
    with pytest.raises(UsageError):
        fragments(["a", "b"], wanted)


# ---- late updates


def test_a_late_update_counts_half_then_a_quarter_then_not() -> None:
    assert [late_weight(8.0, late) for late in range(5)] == [8.0, 4.0, 2.0, None, None]
    assert late_weight(8.0, 3, stale_rounds=3) == 1.0
    with pytest.raises(UsageError):
        late_weight(8.0, -1)


def test_a_shelf_gives_what_waits_until_a_round_takes_it() -> None:
    shelf = Shelf()
    assert shelf.take(1) is None
    shelf.keep(Update(5, 8.0, f32(1)))
    for _ in range(2):  # round 6 fails once
        taken = shelf.take(6)
        assert taken is not None
        assert (taken.weight, taken.delta.tolist()) == (4.0, [1.0])
    shelf.included()
    assert shelf.take(7) is None


def test_a_shelf_drops_what_is_too_old_and_prefers_what_is_new() -> None:
    shelf = Shelf()
    shelf.keep(Update(5, 8.0, f32(1)))
    shelf.keep(Update(4, 8.0, f32(2)))
    taken = shelf.take(7)
    assert taken is not None
    assert (taken.round, taken.weight) == (5, 2.0)
    assert shelf.take(8) is None
    assert shelf.take(6) is None  # gone for good
    shelf.keep(Update(9, 8.0, f32(3)))
    assert shelf.take(8) is None  # of a later round: not yet


# ---- weights


@pytest.mark.attack
def test_a_claimed_weight_counts_for_three_medians_at_most() -> None:
    assert capped([1, 1, 1, 2**53]) == [1, 1, 1, 3]
    updates = [(codecs.encode("f32", f32(0.0)), 1.0)] * 4
    updates.append((codecs.encode("f32", f32(7.0)), float(2**53)))
    assert merge("f32", updates, 1).tolist() == [3.0]


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_a_weight_is_above_nothing(weights: list[float]) -> None:
    with pytest.raises(UsageError):
        capped(weights)


def test_a_merged_update_went_through_the_codec_both_ways() -> None:
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal(1000).astype(np.float32) for _ in range(3)]
    updates = [(codecs.encode("e3m0", row), 1.0) for row in rows]
    merged = merge("e3m0", updates, 1000)
    again = codecs.decode_untrusted("e3m0", codecs.encode("e3m0", merged), 1000)
    assert np.array_equal(merged, again)
    mean = np.mean(rows, axis=0)
    assert float(merged @ mean) > 0.9 * float(mean @ mean)
