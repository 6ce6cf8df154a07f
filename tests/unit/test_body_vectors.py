"""Bodies are permanent: our codec against bytes that an independent encoder wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memory.bodies import decode_body_untrusted, encode_body
from memory.errors import DecodeError
from tests.helpers.memories import note_body

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "body_v1.json").read_text())


def shown(value: object) -> object:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    return value


@pytest.mark.parametrize("case", VECTORS["good"], ids=lambda case: case["name"])
def test_good_bodies_decode_to_their_values_and_encode_to_their_bytes(case: Any) -> None:
    data = bytes.fromhex(case["hex"])
    body = decode_body_untrusted(data)
    assert encode_body(body) == data
    tag = type(body).__struct_config__.tag
    values = [getattr(body, field.name) for field in msgspec.structs.fields(body)]
    assert [tag, *shown(values)] == case["value"]  # type: ignore[misc]


@pytest.mark.attack
@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda case: case["name"])
def test_bad_bodies_are_refused(case: Any) -> None:
    data = bytes.fromhex(case["hex"]) if "hex" in case else note_bytes(case["x"])
    with pytest.raises(DecodeError):
        decode_body_untrusted(data)


def note_bytes(size: int) -> bytes:
    small = note_body("")
    return small.replace(b"\xa0", b"\xdb" + size.to_bytes(4, "big") + b"x" * size, 1)


def test_the_committed_vectors_are_what_their_maker_writes() -> None:
    code = "import make_bodies; print(make_bodies.make(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    assert done.stdout == (FOLDER / "body_v1.json").read_text()
