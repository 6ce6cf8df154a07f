"""Schemas, updates and roots: one schema for one state, exact sums, equal bits on all machines."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.errors import UsageError
from federated.rounds.numeric import dtypes
from federated.rounds.numeric.tensors import (
    SCHEMA_BYTES_MAX,
    Schema,
    apply,
    check,
    check_update,
    decode_schema_untrusted,
    delta,
    flatten,
    genesis_root,
    next_root,
    schema_of,
    unflatten,
)
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from federated.rounds.numeric.dtypes import Array

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def bf16(values: list[float]) -> Array:
    """Exactly representable numbers as bf16."""
    return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2")


def state() -> dict[str, Array]:
    return {
        "w": np.array([[1, 2], [3, 4]], np.float32),
        "b": np.array([0.5, -0.5], np.float16),
        "brain": bf16([1.5, -2.0, 0.0]),
        "number": np.array(7, np.float32),
        "nothing": np.empty((0, 5), np.float32),
    }


FLAT = [0.5, -0.5, 1.5, -2, 0, 7, 1, 2, 3, 4]  # b, brain, nothing, number, w


# --- schema ---------------------------------------------------------------------------------------


def test_a_schema_does_not_hang_on_the_mappings_order() -> None:
    schema = schema_of(state())
    assert schema == schema_of(dict(reversed(state().items())))
    assert [spec.name for spec in schema.tensors] == ["b", "brain", "nothing", "number", "w"]
    assert (schema.size, schema.nbytes) == (10, 4 + 6 + 0 + 4 + 16)


def test_a_schemas_bytes_are_these() -> None:
    # Written by another library: what is signed must not change with ours.
    schema = schema_of(state())
    rows = [
        ["b", [2], "f16"], ["brain", [3], "bf16"], ["nothing", [0, 5], "f32"],
        ["number", [], "f32"], ["w", [2, 2], "f32"],
    ]  # fmt: skip
    assert schema.encode() == msgpack.packb(rows)
    assert schema.hash() == sha256(b"covey/fed/schema/1\0" + msgpack.packb(rows)).digest()
    assert decode_schema_untrusted(schema.encode()) == schema


HOSTILE_SCHEMAS = {
    "nothing": b"",
    "no tensors": msgpack.packb([]),
    "too many": msgpack.packb([[f"{i:05}", [], "f32"] for i in range(1025)]),
    "not ascending": msgpack.packb([["b", [], "f32"], ["a", [], "f32"]]),
    "a name twice": msgpack.packb([["a", [], "f32"], ["a", [], "f32"]]),
    "an empty name": msgpack.packb([["", [], "f32"]]),
    "a long name": msgpack.packb([["n" * 257, [], "f32"]]),
    "a name long in bytes": msgpack.packb([["ä" * 129, [], "f32"]]),
    "another dtype": msgpack.packb([["a", [], "f64"]]),
    "a size below zero": msgpack.packb([["a", [-1], "f32"]]),
    "a size that is a fraction": msgpack.packb([["a", [1.0], "f32"]]),
    "too many dimensions": msgpack.packb([["a", [1] * 17, "f32"]]),
    "a tensor over the limit": msgpack.packb([["a", [1 << 15, 1 << 16], "f32"]]),
    "a product over 64 bits": msgpack.packb([["a", [1 << 32, 1 << 32], "f32"]]),
    "over the limit in sum": msgpack.packb([[n, [1 << 28], "f32"] for n in "abcde"]),
    "over the limit once widened": msgpack.packb([["a", [(1 << 30) + 1], "f16"]]),
    "an element too many": msgpack.packb([["a", [], "f32", 1]]),
    "a longer spelling": b"\xdc\x00\x01" + msgpack.packb(["a", [], "f32"]),
    "bytes behind it": msgpack.packb([["a", [], "f32"]]) + b"\x00",
    "too long": b"\x91" * (SCHEMA_BYTES_MAX + 1),
    "half of a pair": b"\x91\x93\xa3\xed\xa0\x80\x90\xa3f32",
}


@pytest.mark.attack
@pytest.mark.parametrize("what", HOSTILE_SCHEMAS)
def test_a_hostile_schema_is_refused(what: str) -> None:
    with pytest.raises(DecodeError, match=r"^schema: "):
        decode_schema_untrusted(HOSTILE_SCHEMAS[what])


def test_the_largest_schema_is_taken() -> None:
    rows = [[f"{i:0256}", [1] * 15 + [1 << 16], "f32"] for i in range(1024)]
    data = msgpack.packb(rows)
    assert len(data) < SCHEMA_BYTES_MAX
    assert decode_schema_untrusted(data).size == 1 << 26


def test_a_state_without_a_schema_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"0 tensors: give 1 to 1024"):
        schema_of({})
    with pytest.raises(UsageError, match=r"'w' is float64, not float32.*astype"):
        schema_of({"w": np.ones(1)})
    with pytest.raises(UsageError, match="'w' is >f4"):
        schema_of({"w": np.ones(1, ">f4")})
    with pytest.raises(UsageError, match="a name is"):
        schema_of({"\ud800": np.ones(1, np.float32)})
    with pytest.raises(UsageError, match="17 dimensions"):
        schema_of({"w": np.ones([1] * 17, np.float32)})


# --- check ----------------------------------------------------------------------------------------


def test_a_state_that_follows_its_schema_passes() -> None:
    check(schema_of(state()), state())


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("w", None, "'w' is missing"),
        ("x", np.ones(1, np.float32), "'x' is not part"),
        ("w", np.ones((2, 3), np.float32), r"'w' has the shape \(2, 3\), not \(2, 2\)"),
        ("w", np.ones(4, np.float32), r"\(4,\), not \(2, 2\)"),
        ("number", np.ones(1, np.float32), r"\(1,\), not \(\)"),
        ("w", np.ones((2, 2)), "'w' is float64, not f32"),
        ("b", np.ones(2, np.float32), "'b' is float32, not f16"),
        ("w", np.array([[1, 2], [np.nan, 4]], np.float32), r"'w' holds a NaN.*first at \[1, 0\]"),
        ("b", np.array([1, np.inf], np.float16), r"'b' holds .* infinity, first at \[1\]"),
        ("brain", np.array([0, 0x7F80, 0x7FC0], np.uint16), r"'brain' .* first at \[1\]"),
        ("brain", np.array([0, 0, 0xFFC0], np.uint16), r"'brain' .* first at \[2\]"),
        ("number", np.array(-np.inf, np.float32), "'number' .* first at its value"),
    ],
)
def test_a_state_that_does_not_is_refused_by_name(
    name: str, array: Array | None, says: str
) -> None:
    wrong = state()
    if array is None:
        del wrong[name]
    else:
        wrong[name] = array
    with pytest.raises(UsageError, match=says):
        check(schema_of(state()), wrong)


@pytest.mark.attack
def test_a_name_with_escapes_does_not_reach_a_terminal() -> None:
    tensors: dict[str, Array] = {"\x1b[31mred": np.array(np.nan, np.float32)}
    with pytest.raises(UsageError) as caught:
        check(schema_of(tensors), tensors)
    assert "\x1b" not in str(caught.value)


def test_the_one_bad_number_of_many_is_found() -> None:
    for at in (0, dtypes.BLOCK - 1, dtypes.BLOCK, 3 * dtypes.BLOCK):
        array = np.zeros(3 * dtypes.BLOCK + 1, np.float32)
        array[at] = np.nan
        tensors: dict[str, Array] = {"w": array}
        with pytest.raises(UsageError, match=rf"first at \[{at}\]"):
            check(schema_of(tensors), tensors)


def test_an_update_is_checked_by_tensor() -> None:
    schema = schema_of(state())
    update = np.zeros(10, np.float32)
    check_update(schema, update)
    update[7] = np.inf
    with pytest.raises(UsageError, match=r"'w' .* first at \[0, 1\]"):
        check_update(schema, update)
    for wrong in (np.zeros(9, np.float32), np.zeros((1, 10), np.float32), np.zeros(10)):
        with pytest.raises(UsageError, match="10 float32 numbers"):
            check_update(schema, wrong.astype(wrong.dtype))


# --- flatten, delta, apply ------------------------------------------------------------------------


def test_a_state_is_flattened_in_the_schemas_order_and_back() -> None:
    schema = schema_of(state())
    flat = flatten(schema, state())
    assert flat.dtype == np.float32
    assert flat.tolist() == FLAT
    parts = unflatten(schema, flat)
    assert parts["w"].tolist() == [[1, 2], [3, 4]]
    assert parts["number"].shape == ()
    assert parts["nothing"].shape == (0, 5)
    flat[-1] = 9
    assert parts["w"][1, 1] == 9, "views, not copies"
    out = np.empty(10, np.float32)
    assert flatten(schema, state(), out) is out
    with pytest.raises(UsageError, match="10 float32 numbers"):
        flatten(schema, state(), np.empty(11, np.float32))
    with pytest.raises(UsageError, match="10 float32 numbers"):
        unflatten(schema, out[:-1])


def test_tensors_of_any_layout_are_flattened_row_by_row() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors: dict[str, Array] = {"w": array.T, "x": array[:, ::-1]}
    flat = flatten(schema_of(tensors), tensors)
    assert flat.tolist() == [0, 3, 1, 4, 2, 5, 2, 1, 0, 5, 4, 3]


def test_an_update_applied_to_its_base_gives_the_state_trained() -> None:
    new = state()
    new["w"] = np.array([[1.5, 2], [3, -4]], np.float32)
    new["b"] = np.array([1, 2], np.float16)
    new["brain"] = bf16([3.0, -2.0, 1.0])
    schema, base = schema_of(state()), state()
    update = delta(schema, new, base)
    applied = apply(schema, base, update)
    assert list(applied) == [spec.name for spec in schema.tensors]
    for name, array in applied.items():
        assert array.dtype == new[name].dtype
        assert array.shape == new[name].shape
        assert array.tobytes() == new[name].tobytes()
    assert all(base[name].tobytes() == array.tobytes() for name, array in state().items())


def test_an_add_is_one_f32_add_rounded_once_to_the_tensors_dtype() -> None:
    tensors: dict[str, Array] = {"b": bf16([1.0, 1.0, 1.0]), "h": np.array([1.0], np.float16)}
    schema = schema_of(tensors)
    # Half of bf16's last place above 1 is 2^-8: a tie goes to the even neighbour.
    merged = np.array([2**-8, 2**-8 + 2**-20, 3 * 2**-8, 2**-11], np.float32)
    applied = apply(schema, tensors, merged)
    assert applied["b"].tolist() == [0x3F80, 0x3F81, 0x3F82]
    assert applied["h"].tolist() == [1.0], "2^-11 is half of f16's last place: even again"


def test_what_leaves_a_dtypes_range_stops_the_round() -> None:
    tensors: dict[str, Array] = {
        "f": np.array([3e38], np.float32), "h": np.array([6e4], np.float16), "b": bf16([0.0]),
    }  # fmt: skip
    schema = schema_of(tensors)  # b, f, h
    apply(schema, tensors, np.zeros(3, np.float32))
    for update, name in (([3.4e38, 0, 0], "b"), ([0, 3e38, 0], "f"), ([0, 0, 1e4], "h")):
        with pytest.raises(UsageError, match=f"'{name}' leaves the range"):
            apply(schema, tensors, np.array(update, np.float32))
    low: dict[str, Array] = {**tensors, "f": np.array([-3e38], np.float32)}
    with pytest.raises(UsageError, match="'f' changed by"):
        delta(schema, tensors, low)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20))
def test_delta_and_apply_are_single_f32_operations(pairs: list[tuple[float, float]]) -> None:
    base: dict[str, Array] = {"w": np.array([a for a, _ in pairs], np.float32)}
    update = np.array([b for _, b in pairs], np.float32)
    schema = schema_of(base)
    with np.errstate(over="ignore"):
        wanted = base["w"] + update
    if np.isfinite(wanted).all():
        assert np.array_equal(apply(schema, base, update)["w"], wanted)
    else:
        with pytest.raises(UsageError):
            apply(schema, base, update)


@given(st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=50))
def test_bf16_is_the_nearest_value_ties_to_even(words: list[int]) -> None:
    values = np.array(words, "<u4").view("<f4")
    narrowed = dtypes.narrow(values, "bf16")
    for value, got in zip(values.tolist(), narrowed.tolist(), strict=True):
        wide = np.array([got << 16], "<u4").view("<f4")[0]
        if np.isnan(value):
            assert np.isnan(wide)
            continue
        # A reference in exact arithmetic over the three candidates around the value.
        cut = int(np.array([value], "<f4").view("<u4")[0]) >> 16
        best = None
        for code in (cut, cut + 1):
            exponent_all = (code & 0x7F80) == 0x7F80
            mantissa = 2.0**128 if exponent_all else abs(_exact(code))
            distance = abs(mantissa - abs(value)) if np.isfinite(value) else 0 if code == cut else 1
            candidate = (distance, code & 1, code)
            best = candidate if best is None else min(best, candidate)
        assert best is not None
        assert got == best[2]


def _exact(code: int) -> float:
    return float(np.array([(code & 0xFFFF) << 16], "<u4").view("<f4")[0])


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=50))
def test_every_bf16_is_widened_and_narrowed_to_itself(words: list[int]) -> None:
    codes = np.array([word for word in words if (word & 0x7F80) != 0x7F80], "<u2")
    wide = np.empty(codes.size, "<f4")
    dtypes.widen(codes, "bf16", wide)
    assert np.array_equal(dtypes.narrow(wide, "bf16"), codes)


# --- roots ----------------------------------------------------------------------------------------


def test_roots_are_these() -> None:
    schema = schema_of(state())
    data = b"".join(state()[spec.name].tobytes() for spec in schema.tensors)
    genesis = sha256(b"covey/fed/genesis/1\0" + schema.hash() + data).digest()
    assert genesis_root(schema, state()) == genesis
    parts = [bytes([1]) * 32, bytes([2]) * 32]
    following = sha256(b"covey/fed/root/1\0" + genesis + parts[0] + parts[1]).digest()
    assert next_root(genesis, parts) == following


@pytest.mark.attack
def test_a_root_stands_for_one_history() -> None:
    schema = schema_of(state())
    root = genesis_root(schema, state())
    other = state()
    other["w"] = other["w"] + np.float32(1e-7)
    assert genesis_root(schema, other) != root
    # The same bytes in other tensors, or of another dtype, are another state.
    one: dict[str, Array] = {"w": np.zeros(2, np.float16)}
    same: tuple[dict[str, Array], ...] = (
        {"v": np.zeros(2, np.float16)},
        {"w": np.zeros((2, 1), np.float16)},
        {"w": np.zeros(2, np.uint16)},
        {"w": np.zeros(1, np.float32)},
    )
    roots = {genesis_root(schema_of(s), s) for s in (one, *same)}
    assert len(roots) == 5
    parts = [bytes([i]) * 32 for i in range(3)]
    variants = [parts, parts[::-1], parts[:2], []]
    assert len({next_root(root, variant) for variant in variants} | {root}) == 5
    for bad in ([b""], [bytes(31)], [bytes(33)]):
        with pytest.raises(UsageError, match="32 bytes"):
            next_root(root, bad)
    with pytest.raises(UsageError, match="32 bytes"):
        next_root(root + parts[0], [])


def test_a_schema_of_empty_tensors_alone_has_states_and_roots() -> None:
    tensors: dict[str, Array] = {"w": np.empty((3, 0), np.float16)}
    schema: Schema = schema_of(tensors)
    check(schema, tensors)
    assert flatten(schema, tensors).shape == (0,)
    assert apply(schema, tensors, np.empty(0, np.float32))["w"].shape == (3, 0)
    assert len(genesis_root(schema, tensors)) == 32
