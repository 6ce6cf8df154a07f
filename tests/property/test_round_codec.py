"""Encodings of updates: against an independent encoder, whole and in pieces, on every engine."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federated.errors import UsageError
from federated.rounds.numeric import codec
from federated.rounds.numeric.codec import (
    BLOCK,
    CODECS,
    SCALE_MAX,
    decode_slices_untrusted,
    decode_untrusted,
    encode,
    encode_slices,
    encoded_size,
)
from p2p.errors import DecodeError
from tests.helpers.need import missing, need

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from federated.rounds.numeric.codec import Codec
    from federated.rounds.numeric.engines import Engine

    F32 = NDArray[np.float32]

VECTORS = Path(__file__).parents[1] / "vectors"
MAKER = runpy.run_path(str(VECTORS / "make_round_codec.py"))
REFERENCE = cast("dict[str, Callable[[Sequence[float]], bytes]]", MAKER["ENCODE"])
DECODED = cast("dict[str, Callable[[bytes, int], list[float]]]", MAKER["DECODE"])
V = json.loads((VECTORS / "round_codec.json").read_text("ascii"))

E3M0_MAX = float(np.nextafter(np.float32(1.5 * 2.0**127), np.float32(0)))
floats = st.one_of(
    st.floats(width=32, min_value=-E3M0_MAX, max_value=E3M0_MAX),
    st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-127), 1.5, 1.0, 127.0, 63.5]),
)
# Long arrays are made from a short cycle: what matters is where blocks end.
arrays = st.builds(
    lambda cycle, n: np.resize(np.array(cycle, np.float32), n),
    st.lists(floats, min_size=1, max_size=40),
    st.sampled_from([0, 1, 2, 3, 255, 256, 257, 511, 512, 600]),
)
codecs = pytest.mark.parametrize("name", CODECS)
INSTALLED: list[Engine] = ["numpy", *(["numba"] if missing("numba") is None else [])]
engines = pytest.mark.parametrize("engine", INSTALLED)


def bits_of(array: F32) -> str:
    return array.astype("<f4").tobytes().hex()


def array_of(values: str) -> F32:
    return np.frombuffer(bytes.fromhex(values), "<f4").astype(np.float32)


def test_the_file_is_what_the_independent_encoder_writes() -> None:
    assert (VECTORS / "round_codec.json").read_text("ascii") == MAKER["text"]()


@engines
@pytest.mark.parametrize("case", V["good"], ids=lambda v: f"{v['codec']}, {v['name']}")
def test_good_vectors(case: dict[str, str], engine: Engine) -> None:
    name, values = cast("Codec", case["codec"]), array_of(case["values"])
    data = encode(name, values, engine=engine)
    assert data.hex() == case["data"]
    assert bits_of(decode_untrusted(name, data, len(values), engine=engine)) == case["decoded"]


@engines
@pytest.mark.parametrize("case", V["unusual"], ids=lambda v: f"{v['codec']}, {v['name']}")
def test_unusual_vectors_decode(case: dict[str, str], engine: Engine) -> None:
    name, data = cast("Codec", case["codec"]), bytes.fromhex(case["data"])
    found = decode_untrusted(name, data, len(case["decoded"]) // 8, engine=engine)
    assert bits_of(found) == case["decoded"]
    assert np.isfinite(found).all()


@pytest.mark.attack
@engines
@pytest.mark.parametrize("case", V["bad"], ids=lambda v: f"{v['codec']}, {v['name']}")
def test_bad_vectors_are_refused(case: dict[str, str], engine: Engine) -> None:
    name, data = cast("Codec", case["codec"]), bytes.fromhex(case["data"])
    with pytest.raises(DecodeError, match=case["error"]):
        decode_untrusted(name, data, cast("int", case["n"]), engine=engine)


@codecs
@given(array=arrays)
@example(np.zeros(0, np.float32))
@example(np.zeros(256, np.float32))
def test_it_is_what_an_independent_encoder_writes(name: Codec, array: F32) -> None:
    data = encode(name, array)
    assert len(data) == encoded_size(name, len(array))
    assert data == REFERENCE[name]([float(value) for value in array])
    expected = np.array(DECODED[name](data, len(array)), np.float32)
    assert bits_of(decode_untrusted(name, data, len(array))) == bits_of(expected)


@codecs
@given(array=arrays)
def test_numba_writes_and_reads_the_same_bits(name: Codec, array: F32) -> None:
    need("numba")
    data = encode(name, array, engine="numpy")
    assert encode(name, array, engine="numba") == data
    one, other = (
        decode_untrusted(name, data, len(array), engine=engine)
        for engine in cast("list[Engine]", ["numpy", "numba"])
    )
    assert bits_of(one) == bits_of(other)


@given(array=arrays)
def test_f32_loses_nothing(array: F32) -> None:
    assert bits_of(decode_untrusted("f32", encode("f32", array), len(array))) == bits_of(array)


@given(array=arrays)
def test_int8_errs_by_half_a_step(array: F32) -> None:
    found = decode_untrusted("int8", encode("int8", array), len(array))
    for start in range(0, len(array), BLOCK):
        block = array[start : start + BLOCK].astype(np.float64)
        step = max(float(np.abs(block).max()) / 127, 2.0**-149)
        apart = np.abs(found[start : start + BLOCK].astype(np.float64) - block)
        # A denormal scale is rounded itself: by half of the smallest float, 127 times.
        assert (apart <= step * 0.5001 + 64 * 2.0**-149).all()


@given(array=arrays)
def test_e3m0_errs_by_a_factor_of_four_thirds_where_the_block_reaches(array: F32) -> None:
    found = decode_untrusted("e3m0", encode("e3m0", array), len(array)).astype(np.float64)
    for start in range(0, len(array), BLOCK):
        block = array[start : start + BLOCK].astype(np.float64)
        got = found[start : start + BLOCK]
        most = np.abs(block).max()
        near = np.abs(block) >= max(most / 2**6, 2.0**-126)  # denormals round otherwise
        assert (np.abs(got[near]) >= np.abs(block[near]) * 2 / 3 * (1 - 1e-6)).all()
        assert (np.abs(got[near]) <= np.abs(block[near]) * 4 / 3 * (1 + 1e-6)).all()
        assert (np.sign(got) * np.sign(block) >= 0).all()
        assert (got[np.abs(block) < most / 2**8] == 0).all()


@codecs
@given(array=arrays)
def test_what_was_decoded_encodes_to_itself(name: Codec, array: F32) -> None:
    # A merged part is encoded once; who checks it encodes what he decoded.
    once = decode_untrusted(name, encode(name, array), len(array))
    again = decode_untrusted(name, encode(name, once), len(array))
    if name == "int8":  # the scale of a decoded block may be a step of float32 off
        np.testing.assert_allclose(again, once, rtol=3e-7, atol=2.0**-142)
    else:
        assert bits_of(again) == bits_of(once)


def test_a_zero_block_is_zero() -> None:
    zeros = np.zeros(512, np.float32)
    for name in CODECS:
        assert not decode_untrusted(name, encode(name, zeros), 512).any()


@pytest.mark.parametrize(
    ("name", "expected"), [("f32", 4_000_000), ("int8", 3907 * 260), ("e3m0", 3907 * 129)]
)
def test_sizes(name: Codec, expected: int) -> None:
    assert encoded_size(name, 1_000_000) == expected
    assert encoded_size(name, 0) == 0


def test_error_and_cosine_are_those_of_the_experiment() -> None:
    values = np.random.default_rng(0).standard_t(4, 1 << 18).astype(np.float32) * np.float32(1e-3)
    found = {
        name: decode_untrusted(name, encode(name, values), len(values)).astype(np.float64)
        for name in CODECS
    }
    size = np.linalg.norm(values.astype(np.float64))
    errors = {name: np.linalg.norm(found[name] - values) / size for name in CODECS}
    assert errors["f32"] == 0
    assert errors["int8"] == pytest.approx(0.013, abs=0.001)
    assert errors["e3m0"] == pytest.approx(0.195, abs=0.004)
    cosine = found["e3m0"] @ values / size / np.linalg.norm(found["e3m0"])
    assert cosine == pytest.approx(0.9815, abs=0.001)


@codecs
def test_pieces_are_the_whole(name: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "SLICE_ITEMS", 2 * BLOCK)
    values = np.random.default_rng(1).standard_normal(5 * BLOCK + 7, dtype=np.float32)
    data = bytearray(encoded_size(name, len(values)))
    pauses = sum(1 for _ in encode_slices(name, values, data))
    assert bytes(data) == encode(name, values)
    found = np.empty_like(values)
    assert sum(1 for _ in decode_slices_untrusted(name, data, found)) == pauses
    assert bits_of(found) == bits_of(decode_untrusted(name, bytes(data), len(values)))
    assert pauses == (1 if name == "f32" else 3)


@codecs
def test_any_alignment_and_a_given_output(name: Codec) -> None:
    values = np.linspace(-1, 1, 300, dtype=np.float32)
    data = encode(name, values)
    room = np.zeros(301, np.float32)
    given_back = decode_untrusted(name, memoryview(b"\0" + data)[1:], 300, room[1:])
    assert np.shares_memory(given_back, room)
    assert bits_of(room[1:]) == bits_of(decode_untrusted(name, bytearray(data), 300))
    assert room[0] == 0


@codecs
@engines
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_encoded(name: Codec, engine: Engine, value: float) -> None:
    values = np.zeros(600, np.float32)
    values[599] = value
    with pytest.raises(UsageError, match="not finite"):
        encode(name, values, engine=engine)


@engines
def test_e3m0_has_no_exponent_255(engine: Engine) -> None:
    assert encode("e3m0", np.array([E3M0_MAX], np.float32), engine=engine)[0] == 254
    with pytest.raises(UsageError, match="too large"):
        encode("e3m0", np.array([1.5 * 2.0**127], np.float32), engine=engine)


def test_the_largest_scale_is_the_last_that_decodes_to_a_finite_value() -> None:
    with np.errstate(over="ignore"):
        assert np.isfinite(SCALE_MAX * np.float32(127))
        assert np.isinf(np.nextafter(SCALE_MAX, np.float32(np.inf)) * np.float32(127))


def test_misuse_is_named() -> None:
    values = np.zeros(4, np.float32)
    with pytest.raises(UsageError, match="no codec"):
        encode(cast("Codec", "zstd"), values)
    with pytest.raises(UsageError, match="no codec"):
        decode_untrusted(cast("Codec", "zstd"), b"", 0)
    with pytest.raises(UsageError, match="-1 values"):
        decode_untrusted("f32", b"", -1)
    with pytest.raises(UsageError, match="float32"):
        encode("f32", values.astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="float32"):
        encode("int8", np.zeros(8, np.float32)[::2])
    with pytest.raises(UsageError, match="float32"):
        encode("f32", np.zeros((), np.float32))
    with pytest.raises(UsageError, match="rows of 4 and of 3"):
        decode_untrusted("f32", encode("f32", values), 4, np.zeros(3, np.float32))
    with pytest.raises(UsageError, match="buffer of 16"):
        next(encode_slices("f32", values, bytearray(15)))
    with pytest.raises(UsageError, match="buffer of 16"):
        next(encode_slices("f32", values, memoryview(bytes(16))))
    with pytest.raises(UsageError, match="scipy has no function"):
        encode("int8", values, engine="scipy")


@pytest.mark.attack
@codecs
def test_a_short_message_allocates_nothing(name: Codec) -> None:
    # 4 GiB announced, nothing sent: refused by its length.
    with pytest.raises(DecodeError, match="not 0"):
        decode_untrusted(name, b"", 1 << 30)


@pytest.mark.attack
@codecs
def test_whatever_is_accepted_is_finite(name: Codec) -> None:
    rng, accepted = random.Random(7), 0
    size = encoded_size(name, BLOCK)
    for _ in range(200):
        try:
            found = decode_untrusted(name, rng.randbytes(size), BLOCK)
        except DecodeError:
            continue
        accepted += 1
        assert np.isfinite(found).all()
    assert accepted > (0 if name == "f32" else 20)
