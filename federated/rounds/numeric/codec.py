"""How updates travel: float32 as it is, int8, or E3M0, a float of four bits.

Theory of operation. `int8` and `e3m0` cut n values into blocks of 256; the last is filled up with
zeros and sent whole. All scales come first, then all codes, little-endian:

- `f32`: n values of 4 bytes.
- `int8` (8.125 bit a value): a block's scale is float32(max|x| / 127), 1 if that is 0; a code is
  x / scale rounded to the nearest, ties to even, within -127..127. Value: code * scale.
- `e3m0` (4.03 bit): with u the bits of x, a = ((u & 0x7fffffff) + 0x400000) >> 23 is its exponent
  rounded at 1.5; a block's scale is the byte em = max a. e = 0 if a = 0, else max(a - em + 7, 0);
  code = e | sign << 3, the even place in the low nibble. Value: 0 if e = 0 (code 8 is a zero too),
  else +-2^(e - 7 + em - 127). em = 255 does not exist.

One array has one encoding, and one encoding one decoding, bit by bit on every machine and engine:
all members must come to the same root. Deltas differ by orders of magnitude within a block, which
is why four bits go to exponents: in blocks of 4,096 an int4 errs by .44, this by .19.

A hostile sender chooses all bytes. Decoding checks the length before it allocates, and every scale
and code; padding that is not zero would be a second encoding and is refused, and so is a scale with
which a code would decode to infinity. What is decoded is finite; its size is the norm check's
matter (`rules`).
Source: federated-experiments E3 (docs/specs/rounds.md).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias, cast, get_args

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric import engines
from federated.rounds.numeric.kernels import SLICE_ITEMS, output, row_length, slices
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from federated.rounds.numeric.engines import F32, Engine, Part

    U8: TypeAlias = NDArray[np.uint8]
    I8: TypeAlias = NDArray[np.int8]
    U32: TypeAlias = NDArray[np.uint32]

Codec: TypeAlias = Literal["f32", "int8", "e3m0"]
CODECS: Final[tuple[Codec, ...]] = get_args(Codec)

BLOCK: Final = 256
"""int8 errs by .009/.013/.026 in blocks of 64/256/4,096, and a scale of 4 bytes costs .5/.125/.008
bit (E3)."""
SCALE_BYTES: Final = {"int8": 4, "e3m0": 1}
CODE_BYTES: Final = {"int8": BLOCK, "e3m0": BLOCK // 2}
INT8_MAX: Final = np.float32(127)
SCALE_MAX: Final = np.nextafter(np.float32(np.finfo(np.float32).max / 127), np.float32(0))
"""The largest scale of which 127 times is finite: the next is rounded to infinity."""
INFINITY_BITS: Final = np.uint32(0x7F800000)
ROUNDER: Final = np.float32(3 << 22)
"""Adding and subtracting it rounds what is below 2^22 in size to the nearest even, in vectors."""
EXPONENT_MASK: Final = np.uint32(0x7FFFFFFF)
ROUND_AT_HALF: Final = np.uint32(0x400000)
EXPONENT_MAX: Final = 254
CHUNK_BLOCKS: Final = 512
"""numpy's temporaries of so many blocks, 512 KiB each, stay in the cache."""

POWERS: Final = np.array([2.0 ** (em - 127) for em in range(255)], np.float32)
"""What a block of `e3m0` is multiplied by, by em; exact, the smallest is denormal."""
E3M0_VALUES: Final = np.array(
    [0.0, *(2.0 ** (e - 7) for e in range(1, 8)), 0.0, *(-(2.0 ** (e - 7)) for e in range(1, 8))],
    np.float32,
)
"""Value of each code beside its block's power."""
_PAIRS: Final = np.stack(
    [E3M0_VALUES[np.arange(256) & 15], E3M0_VALUES[np.arange(256) >> 4]], axis=1
)
"""float32[256, 2]: the two values of a byte."""


def encoded_size(name: Codec, n: int) -> int:
    """Bytes of `n` encoded values.

    Raises:
        UsageError: no such codec; n < 0.
    """
    if name not in CODECS:
        raise UsageError(f"no codec {name!r}: one of {', '.join(CODECS)}")
    if n < 0:
        raise UsageError(f"{n} values")
    if name == "f32":
        return 4 * n
    return _blocks(n) * (SCALE_BYTES[name] + CODE_BYTES[name])


def _blocks(n: int) -> int:
    return -(-n // BLOCK)


def encode(name: Codec, array: F32, *, engine: Engine = "auto") -> bytes:
    """The encoding of `array`, `encoded_size(name, n)` bytes.

    Args:
        name: `f32`, `int8` or `e3m0`.
        array: float32[n], contiguous, finite; for e3m0 below 1.5 * 2^127 in size.
        engine: `auto`, `numpy` or `numba`; the bytes are the same.

    Raises:
        UsageError: as `encoded_size`, `kernels.row_length`; a value that cannot be encoded.
    """
    made = bytearray(encoded_size(name, row_length([array])))
    for _ in encode_slices(name, array, made, engine=engine):
        pass
    return bytes(made)


def encode_slices(
    name: Codec, array: F32, out: bytearray | memoryview, *, engine: Engine = "auto"
) -> Iterator[None]:
    """`encode` into `out`, pausing after every 8 MB of values so that a caller can stop.

    Args:
        name: as for `encode`.
        array: as for `encode`.
        out: writable, `encoded_size(name, n)` bytes.
        engine: as for `encode`.

    Raises:
        UsageError: as `encode`; `out` has another size or is read-only.
    """
    n = row_length([array])
    view = memoryview(out)
    if view.nbytes != encoded_size(name, n) or view.readonly:
        raise UsageError(f"{n} values need a writable buffer of {encoded_size(name, n)} bytes")
    raw = np.frombuffer(out, np.uint8)
    if name == "f32":
        yield from _encode_f32(array, raw)
        return
    scales, codes = _split(name, raw, n)
    functions = _functions(engine, n)
    for part in slices(_blocks(n), SLICE_ITEMS // BLOCK):
        values = _whole_blocks(array, part)
        if name == "int8":
            made, problem = functions.encode_int8(values, codes[part].view(np.int8))
            scales[part] = made.astype("<f4").view(np.uint8).reshape(-1, 4)
        else:
            problem = functions.encode_e3m0(
                values.view(np.uint32), scales[part].reshape(-1), codes[part]
            )
        if problem:
            raise UsageError(f"a value that is not finite, or too large for {name}")
        yield


def _encode_f32(array: F32, raw: U8) -> Iterator[None]:
    values = raw.view("<f4")
    for part in slices(len(array)):
        if not np.isfinite(array[part]).all():
            raise UsageError("a value that is not finite")
        values[part] = array[part]
        yield


def decode_untrusted(
    name: Codec,
    data: bytes | bytearray | memoryview,
    n: int,
    out: F32 | None = None,
    *,
    engine: Engine = "auto",
) -> F32:
    """The `n` values that a peer encoded, all of them finite.

    Args:
        name: `f32`, `int8` or `e3m0`, from the plan.
        data: the peer's bytes.
        n: values expected, from the plan.
        out: float32[n] to write to; after an error its contents are undefined.
        engine: `auto`, `numpy` or `numba`; the values are the same.

    Returns:
        float32[n]: `out`, or a new array.

    Raises:
        DecodeError: other than `encoded_size(name, n)` bytes; a code -128; em 255; a scale that is
            negative, not finite, or so large that values overflow; a value that is not finite;
            padding other than zero.
        UsageError: as `encoded_size`, `kernels.output`.
    """
    _check_size(name, data, n)
    target = output(out, n)
    for _ in decode_slices_untrusted(name, data, target, engine=engine):
        pass
    return target


def decode_slices_untrusted(
    name: Codec,
    data: bytes | bytearray | memoryview,
    out: F32,
    *,
    engine: Engine = "auto",
) -> Iterator[None]:
    """`decode_untrusted` into `out`, pausing after every 8 MB of values so that a caller can stop.

    Args:
        name: as for `decode_untrusted`.
        data: as for `decode_untrusted`; not changed between the pauses.
        out: float32[n]; undefined until the end, and after an error.
        engine: as for `decode_untrusted`.

    Raises:
        DecodeError: as `decode_untrusted`.
        UsageError: as `decode_untrusted`.
    """
    n = len(output(out, len(out)))
    _check_size(name, data, n)
    raw = np.frombuffer(data, np.uint8)
    raw.flags.writeable = False
    if name == "f32":
        yield from _decode_f32(raw, out)
        return
    scales, codes = _split(name, raw, n)
    functions = _functions(engine, n)
    last = np.empty((1, BLOCK), np.float32)
    whole = n // BLOCK
    for part in slices(_blocks(n), SLICE_ITEMS // BLOCK):
        inner = slice(part.start, min(part.stop, whole))
        target = out[inner.start * BLOCK : inner.stop * BLOCK].reshape(-1, BLOCK)
        _decode_blocks(name, functions, scales[inner], codes[inner], target)
        if part.stop > whole:
            _check_padding(name, codes[whole], n % BLOCK)
            _decode_blocks(name, functions, scales[whole:], codes[whole:], last)
            out[whole * BLOCK :] = last[0, : n % BLOCK]
        yield


def _check_size(name: Codec, data: bytes | bytearray | memoryview, n: int) -> None:
    expected, given = encoded_size(name, n), memoryview(data).nbytes
    if given != expected:
        raise DecodeError(f"{n} values in {name} are {expected} bytes, not {given}")


def _decode_f32(raw: U8, out: F32) -> Iterator[None]:
    for part in slices(len(out)):
        block = out[part]
        block[:] = raw[4 * part.start : 4 * part.stop].view("<f4")
        if not np.isfinite(block).all():
            raise DecodeError("a value is not finite")
        yield


def _decode_blocks(name: Codec, functions: _Functions, scales: U8, codes: U8, out: F32) -> None:
    if name == "e3m0":
        if (scales > EXPONENT_MAX).any():
            raise DecodeError("a block's exponent is 255")
        functions.decode_e3m0(scales.reshape(-1), codes, out)
        return
    factors = np.ascontiguousarray(scales).view("<f4").reshape(-1).astype(np.float32)
    if not ((factors >= 0) & (factors <= SCALE_MAX)).all():
        raise DecodeError("a block's scale is negative, not finite or too large")
    if functions.decode_int8(factors, codes.view(np.int8), out):
        raise DecodeError("a code is -128")


def _check_padding(name: Codec, codes: U8, used: int) -> None:
    if name == "int8":
        zero = not codes[used:].any()
    else:
        zero = not codes[-(-used // 2) :].any() and not (used % 2 and codes[used // 2] >> 4)
    if not zero:
        raise DecodeError("the padding of the last block is not zero")


def _split(name: Codec, raw: U8, n: int) -> tuple[U8, U8]:
    """Views: uint8[blocks, bytes of a scale] and uint8[blocks, bytes of a block's codes]."""
    blocks = _blocks(n)
    border = blocks * SCALE_BYTES[name]
    return (
        raw[:border].reshape(blocks, SCALE_BYTES[name]),
        raw[border:].reshape(blocks, CODE_BYTES[name]),
    )


def _whole_blocks(array: F32, part: Part) -> F32:
    """Blocks `part` of the array, float32[blocks, 256]; a copy if the last had to be filled up."""
    values = array[part.start * BLOCK : part.stop * BLOCK]
    if len(values) % BLOCK:
        padded = np.zeros((part.stop - part.start) * BLOCK, np.float32)
        padded[: len(values)] = values
        values = padded
    return values.reshape(-1, BLOCK)


# --- whole blocks, by numpy or by numba ---------------------------------------------------------


class _EncodeInt8(Protocol):
    def __call__(self, values: F32, codes: I8) -> tuple[F32, bool]: ...


class _EncodeE3m0(Protocol):
    def __call__(self, bits: U32, exponents: U8, codes: U8) -> bool: ...


class _DecodeInt8(Protocol):
    def __call__(self, scales: F32, codes: I8, out: F32) -> bool: ...


class _DecodeE3m0(Protocol):
    def __call__(self, exponents: U8, codes: U8, out: F32) -> None: ...


class _Functions(NamedTuple):
    """The four functions of an engine; those that give a bool give True for a problem."""

    encode_int8: _EncodeInt8
    encode_e3m0: _EncodeE3m0
    decode_int8: _DecodeInt8
    decode_e3m0: _DecodeE3m0


def _functions(engine: Engine, n: int) -> _Functions:
    return _compiled() if engines.for_loops(engine, n) == "numba" else _NUMPY


def _np_encode_int8(values: F32, codes: I8) -> tuple[F32, bool]:
    scales = np.empty(len(values), np.float32)
    for part in slices(len(values), CHUNK_BLOCKS):
        block = values[part]
        largest = np.maximum(block.max(axis=1), -block.min(axis=1))
        if not np.isfinite(largest).all():
            return scales, True
        factors = np.minimum(largest / INT8_MAX, SCALE_MAX)
        factors[factors == 0] = 1
        scales[part] = factors
        ratios = block / factors[:, None]
        np.rint(ratios, out=ratios)
        codes[part] = np.clip(ratios, -INT8_MAX, INT8_MAX, out=ratios)
    return scales, False


def _np_encode_e3m0(bits: U32, exponents: U8, codes: U8) -> bool:
    for part in slices(len(bits), CHUNK_BLOCKS):
        block = bits[part]
        rounded = (((block & EXPONENT_MASK) + ROUND_AT_HALF) >> np.uint32(23)).astype(np.int16)
        largest = rounded.max(axis=1)
        if (largest > EXPONENT_MAX).any():
            return True
        exponents[part] = largest
        made = np.maximum(rounded - (largest - 7)[:, None], 0)
        made[rounded == 0] = 0
        nibbles = made.astype(np.uint8)
        nibbles |= ((block >> np.uint32(28)) & np.uint32(8)).astype(np.uint8)
        codes[part] = nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4))
    return False


def _np_decode_int8(scales: F32, codes: I8, out: F32) -> bool:
    for part in slices(len(codes), CHUNK_BLOCKS):
        if codes[part].size and codes[part].min() == -128:
            return True
        np.multiply(codes[part], scales[part, None], out=out[part])
    return False


def _np_decode_e3m0(exponents: U8, codes: U8, out: F32) -> None:
    pairs = _PAIRS.view(np.uint64).reshape(-1)
    for part in slices(len(codes), CHUNK_BLOCKS):
        values = pairs[codes[part]].view(np.float32)
        np.multiply(values, POWERS[exponents[part]][:, None], out=out[part])


_NUMPY: Final = _Functions(_np_encode_int8, _np_encode_e3m0, _np_decode_int8, _np_decode_e3m0)


# Loops run over rows of their own: with two indices numba checks each for being negative.


def _nb_encode_int8(values: F32, codes: I8) -> tuple[F32, bool]:
    bits = values.view(np.uint32)
    sizes = np.empty(1, np.uint32)
    scales = np.empty(values.shape[0], np.float32)
    for block in range(values.shape[0]):
        row, row_bits, made = values[block], bits[block], codes[block]
        # The bits of floats without sign are in the order of the floats.
        largest = np.uint32(0)
        for i in range(row.shape[0]):
            largest = max(largest, row_bits[i] & EXPONENT_MASK)
        if largest >= INFINITY_BITS:
            return scales, True
        sizes[0] = largest
        scale = min(sizes.view(np.float32)[0] / INT8_MAX, SCALE_MAX)
        if scale == 0:
            scale = np.float32(1)
        scales[block] = scale
        for i in range(row.shape[0]):
            ratio = (row[i] / scale + ROUNDER) - ROUNDER
            made[i] = max(min(np.int32(ratio), np.int32(127)), np.int32(-127))
    return scales, False


def _nb_encode_e3m0(bits: U32, exponents: U8, codes: U8) -> bool:
    for block in range(bits.shape[0]):
        row, made = bits[block], codes[block]
        largest = np.uint32(0)
        for i in range(row.shape[0]):
            largest = max(largest, row[i] & EXPONENT_MASK)
        most = np.int32((largest + ROUND_AT_HALF) >> np.uint32(23))
        if most > EXPONENT_MAX:
            return True
        exponents[block] = most
        lift = np.int32(7) - most
        for i in range(made.shape[0]):
            even, odd = row[2 * i], row[2 * i + 1]
            low = np.int32(((even & EXPONENT_MASK) + ROUND_AT_HALF) >> np.uint32(23))
            high = np.int32(((odd & EXPONENT_MASK) + ROUND_AT_HALF) >> np.uint32(23))
            low = max(low + lift, np.int32(0)) if low > 0 else np.int32(0)
            high = max(high + lift, np.int32(0)) if high > 0 else np.int32(0)
            made[i] = np.uint8(
                np.uint32(low)
                | ((even >> np.uint32(28)) & np.uint32(8))
                | (np.uint32(high) << np.uint32(4))
                | ((odd >> np.uint32(24)) & np.uint32(128))
            )
    return False


def _nb_decode_int8(scales: F32, codes: I8, out: F32) -> bool:
    bad = False
    for block in range(codes.shape[0]):
        row, made, scale = codes[block], out[block], scales[block]
        for i in range(row.shape[0]):
            bad |= row[i] == -128
            made[i] = np.float32(row[i]) * scale
    return bad


def _nb_decode_e3m0(exponents: U8, codes: U8, out: F32) -> None:
    for block in range(codes.shape[0]):
        row, made, power = codes[block], out[block], POWERS[exponents[block]]
        for i in range(row.shape[0]):
            made[2 * i] = E3M0_VALUES[row[i] & 15] * power
            made[2 * i + 1] = E3M0_VALUES[row[i] >> 4] * power


@functools.cache
def _compiled() -> _Functions:
    compiled = engines.compiler(fast=False)
    return _Functions(
        cast("_EncodeInt8", compiled(_nb_encode_int8)),
        cast("_EncodeE3m0", compiled(_nb_encode_e3m0)),
        cast("_DecodeInt8", compiled(_nb_decode_int8)),
        cast("_DecodeE3m0", compiled(_nb_decode_e3m0)),
    )
