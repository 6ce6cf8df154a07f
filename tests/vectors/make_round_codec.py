"""Writes round_codec.json: golden vectors of the encodings of updates.

An encoder of its own: plain Python, one value at a time, from the definition in
docs/specs/rounds.md; it shares no code with Covey and needs no numpy. Run it from the repository
root; a test checks that the file it writes is the one committed.
"""

import json
import math
import random
import struct
from pathlib import Path

BLOCK = 256
F32_MAX = (2 - 2**-23) * 2.0**127
SCALE_MAX = struct.unpack("<f", struct.pack("<I", 0x7C010203))[0]


def f32(value):
    """The nearest float32: division and product in float64 are rounded once, so twice is exact."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def blocks(values):
    count = -(-len(values) // BLOCK)
    padded = list(values) + [0.0] * (count * BLOCK - len(values))
    return [padded[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]


def encode_f32(values):
    return b"".join(struct.pack("<f", value) for value in values)


def encode_int8(values):
    scales, codes = b"", b""
    for block in blocks(values):
        scale = min(f32(max(abs(value) for value in block) / 127), SCALE_MAX) or 1.0
        scales += struct.pack("<f", scale)
        for value in block:
            code = round(f32(value / scale))  # ties to even
            codes += struct.pack("<b", max(-127, min(127, code)))
    return scales + codes


def exponent(value):
    return ((bits(value) & 0x7FFFFFFF) + 0x400000) >> 23


def encode_e3m0(values):
    scales, codes = b"", b""
    for block in blocks(values):
        em = max(exponent(value) for value in block)
        scales += bytes([em])
        nibbles = []
        for value in block:
            a = exponent(value)
            e = 0 if a == 0 else max(a - em + 7, 0)
            nibbles.append(e | (bits(value) >> 31) << 3)
        codes += bytes(
            low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True)
        )
    return scales + codes


def decode_f32(data, n):
    return list(struct.unpack(f"<{n}f", data))


def decode_int8(data, n):
    count = -(-n // BLOCK)
    scales = struct.unpack(f"<{count}f", data[: 4 * count])
    codes = struct.unpack(f"<{count * BLOCK}b", data[4 * count :])
    return [f32(code * scales[i // BLOCK]) for i, code in enumerate(codes[:n])]


def decode_e3m0(data, n):
    count = -(-n // BLOCK)
    values = []
    for i in range(n):
        byte = data[count + i // 2]
        code = byte >> 4 if i % 2 else byte & 15
        e, em = code & 7, data[i // BLOCK]
        size = math.ldexp(1.0, e - 7 + em - 127) if e else 0.0
        values.append(-size if code & 8 and e else size)
    return values


ENCODE = {"f32": encode_f32, "int8": encode_int8, "e3m0": encode_e3m0}
DECODE = {"f32": decode_f32, "int8": decode_int8, "e3m0": decode_e3m0}


def arrays():
    rng = random.Random("covey round codec")
    tiny = 2.0**-149
    heavy = [f32(rng.gauss(0, 1) / math.sqrt(rng.gammavariate(2, 0.5)) * 1e-3) for _ in range(300)]
    yield "nothing", []
    yield "one value", [0.75]
    yield "minus one", [-1.0]
    yield "a zero block and a block", [0.0] * 256 + [f32(0.1), f32(-0.2), f32(0.3)]
    yield "zeros of both signs", [0.0, -0.0, 0.0]
    yield "the smallest denormals", [tiny, -tiny, 2 * tiny, 190 * tiny]
    yield "denormals at the border", [2.0**-127, -(2.0**-127), 2.0**-127 - tiny, 2.0**-126]
    yield "ties to even", [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    yield "rounded at one and a half", [1.0, f32(1.4999999), 1.5, f32(1.75), 2.0]
    yield "a whole range of exponents", [(-1.0) ** i * 2.0**-i for i in range(16)]
    yield "a block and one more", [f32(math.sin(i)) for i in range(257)]
    yield "heavy tails", heavy
    yield "large", [2.0**127, -(2.0**126), 2.0**100]
    yield "the largest", [F32_MAX, -F32_MAX, 1.0]


def bad():
    one = {name: ENCODE[name]([0.75]) for name in ENCODE}
    for name, good in one.items():
        yield name, "a byte short", 1, good[:-1], "bytes"
        yield name, "a byte long", 1, good + b"\0", "bytes"
        yield name, "nothing", 1, b"", "bytes"
        yield name, "more values announced", 257, good, "bytes"
    for label, value in (("NaN", math.nan), ("infinity", math.inf), ("-infinity", -math.inf)):
        yield "f32", label, 1, struct.pack("<f", value), "finite"
        yield "int8", f"scale {label}", 1, struct.pack("<f", value) + one["int8"][4:], "scale"
    yield "int8", "scale below 0", 1, struct.pack("<f", -1.0) + one["int8"][4:], "scale"
    above = struct.pack("<I", bits(SCALE_MAX) + 1)
    yield "int8", "scale whose values overflow", 1, above + one["int8"][4:], "scale"
    yield "int8", "code -128", 1, one["int8"][:4] + b"\x80" + bytes(255), "-128"
    yield "int8", "code -128 in a whole block", 256, one["int8"][:4] + b"\x80" * 256, "-128"
    yield "int8", "padding", 1, one["int8"][:-1] + b"\x01", "padding"
    yield "e3m0", "exponent 255", 1, b"\xff" + one["e3m0"][1:], "255"
    yield "e3m0", "padding in the same byte", 1, one["e3m0"][:1] + b"\x17" + bytes(127), "padding"
    yield "e3m0", "padding", 1, one["e3m0"][:-1] + b"\x10", "padding"


def unusual():
    """Encodings that no encoder makes, and that have a value none the less."""
    codes = bytes(range(0, 256, 17)) + bytes(112)
    yield "e3m0", "all codes, exponent 127", 32, b"\x7f" + codes
    yield "e3m0", "all codes, exponent 0", 32, b"\x00" + codes
    yield "e3m0", "all codes, exponent 254", 32, b"\xfe" + codes
    yield "int8", "scale 0", 2, bytes(4) + b"\x7f\x81" + bytes(254)
    yield "int8", "scale -0", 1, b"\0\0\0\x80" + b"\x7f" + bytes(255)
    yield "int8", "smallest scale", 2, b"\x01\0\0\0" + b"\x7f\x81" + bytes(254)


def build():
    """All vectors, as JSON values. Values are float32, little-endian."""
    good = []
    for label, values in arrays():
        for name, encode in ENCODE.items():
            if name == "e3m0" and any(exponent(value) > 254 for value in values):
                continue
            data = encode(values)
            good.append(
                {
                    "codec": name,
                    "name": label,
                    "values": encode_f32(values).hex(),
                    "data": data.hex(),
                    "decoded": encode_f32(DECODE[name](data, len(values))).hex(),
                }
            )
    return {
        "about": "Golden vectors of the encodings of updates; written by make_round_codec.py.",
        "good": good,
        "unusual": [
            {
                "codec": codec,
                "name": name,
                "data": data.hex(),
                "decoded": encode_f32(DECODE[codec](data, n)).hex(),
            }
            for codec, name, n, data in unusual()
        ],
        "bad": [
            {"codec": codec, "name": name, "n": n, "data": data.hex(), "error": error}
            for codec, name, n, data, error in bad()
        ],
    }


def text():
    """The file's contents."""
    return json.dumps(build(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("round_codec.json").write_text(text(), "ascii")
