"""Writes canonical_v1.json: values of jobs, their canonical bytes, and hashes of rows.

An encoder of its own: the standard library alone, other functions, the same bytes. Rows are voted
on and cached by these bytes, so peers of all versions must agree on them. Run it from this folder;
a test checks that the file it writes is the one committed.
"""

import hashlib
import json
import math
import unicodedata
from pathlib import Path

HERE = Path(__file__).parent
LARGEST = 2**53
DEPTH = 32


class NoForm(Exception):
    pass


def canonical(value, depth=0):
    """The canonical text of a value that `json.loads` gave."""
    if value is None or value is True or value is False:
        return json.dumps(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        if abs(value) > LARGEST:
            raise NoForm("an integer beyond 2^53")
        return str(value)
    if isinstance(value, float):
        return number(value)
    if depth >= DEPTH:
        raise NoForm("too deep")
    if isinstance(value, list):
        return "[" + ",".join(canonical(item, depth + 1) for item in value) + "]"
    names = [unicodedata.normalize("NFC", name) for name in value]
    if len(set(names)) != len(names):
        raise NoForm("two keys are one")
    pairs = sorted(
        zip(names, value.values(), strict=True), key=lambda pair: list(map(ord, pair[0]))
    )
    return "{" + ",".join(f"{text(k)}:{canonical(v, depth + 1)}" for k, v in pairs) + "}"


def text(value):
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise NoForm("half a surrogate pair")
    return json.dumps(unicodedata.normalize("NFC", value), ensure_ascii=False)


def number(value):
    """The shortest digits that read back as the value; its size says where the point stands."""
    if not math.isfinite(value):
        raise NoForm("not finite")
    if value == int(value) and abs(value) <= LARGEST:
        return str(int(value))
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, part = mantissa.partition(".")
    digits = (whole + part).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + part) - len(digits))
    digits = digits.rstrip("0")
    if len(digits) <= point <= 16:
        return f"{sign}{digits}{'0' * (point - len(digits))}.0"
    if 0 < point <= 16:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -5 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1}"


GOOD = {
    "nothing": "null", "words": "[true,false,null]", "no rows": "[]", "no cells": "{}",
    "keys by code point": '{"b":1,"a":2,"\\u00e9":3,"Z":4,"\\ud83d\\ude00":5,"\\uffff":6}',
    "text in NFC": '["e\\u0301","\\u00e9","\\u1112\\u1161\\u11ab","\\u212b"]',
    "escapes": '"\\u0000\\u0008\\u0009\\u000a\\u000c\\u000d\\u001f\\u007f\\"\\\\\\/\\u2028"',
    "beyond the basic plane": '"\\ud83d\\ude00"',
    "integers": "[0,-0,1,-1,9007199254740992,-9007199254740992]",
    "floats that are integers": "[0.0,-0.0,1.0,1e3,-5e2,9007199254740992.0]",
    "floats beyond them": "[9007199254740994.0,9.5e15,1e16,1.5e16,1e21,1.7976931348623157e308]",
    "small floats": "[0.1,0.5,-2.25,1e-4,1e-5,1.5e-5,1e-6,1.25e-7,5e-324,-1.5e-9]",
    "digits": "[3.141592653589793,123456.789,0.30000000000000004,1e100,-1e-100]",
    "spaces go": ' { "a" : [ 1 , 2 ] } ',
    "a row": '{"n":1.50,"url":"https://a.example/","tags":["x","y"],"none":null}',
    "as deep as may be": "[" * DEPTH + "]" * DEPTH,
}  # fmt: skip
BAD = {
    "an integer beyond 2^53": "9007199254740993", "a negative one": "-9007199254740993",
    "a huge one": "1" * 400, "no number": "NaN", "infinite": "Infinity", "beyond floats": "1e999",
    "too deep": "[" * (DEPTH + 1) + "]" * (DEPTH + 1), "deep keys": '{"a":' * 33 + "1" + "}" * 33,
    "half a pair": '"\\ud800"', "the other half": '["\\udc00"]', "in a key": '{"\\ud800":1}',
    "two keys that are one": '{"\\u00e9":1,"e\\u0301":2}',
}  # fmt: skip
HASHED = [
    ["echo@1", None, {}, None, [], {"n": 1}],
    ["llm:s", None, {"temperature": 0}, "Say {{a}}", [{"name": "b"}], {"a": "\u00e9"}],
    ["expr:@1.4.0", "ab" * 32, {"code": "def map(row):\n    return row"}, None, [], {"x": 0.1}],
]  # fmt: skip


def make():
    good = [
        {"name": name, "json": source, "hex": canonical(json.loads(source)).encode().hex()}
        for name, source in GOOD.items()
    ]
    for source in BAD.values():
        try:
            canonical(json.loads(source))
        except NoForm:
            continue
        raise AssertionError(source)
    bad = [{"name": name, "json": source} for name, source in BAD.items()]
    hashes = [
        {
            "parts": parts,
            "hash": hashlib.blake2b(canonical(parts).encode(), digest_size=32).hexdigest(),
        }
        for parts in HASHED
    ]
    return json.dumps({"good": good, "bad": bad, "hashes": hashes}, indent=1) + "\n"


if __name__ == "__main__":
    (HERE / "canonical_v1.json").write_text(make(), "utf-8")
