"""Reads the golden vectors, and the independent encoder that writes them."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from types import ModuleType

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | None"
Plain: TypeAlias = "dict[str, Plain] | list[Plain] | str | bytes | int | None"

FOLDER = Path(__file__).parent.parent / "vectors"


@cache
def load(name: str = "record_v1.json") -> dict[str, Json]:
    """The vectors of one file."""
    vectors = json.loads((FOLDER / name).read_text("ascii"))
    assert isinstance(vectors, dict)
    return vectors


def maker() -> ModuleType:
    """`tests/vectors/make.py` as a module of its own."""
    spec = importlib.util.spec_from_file_location("covey_vector_maker", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unhex(text: str) -> bytes:
    """Bytes from hex, with `+xx*count` for a run of one byte at the end."""
    head, _, run = text.partition("+")
    if not run:
        return bytes.fromhex(head)
    byte, _, count = run.partition("*")
    return bytes.fromhex(head) + bytes.fromhex(byte) * int(count)


def plain(value: Json) -> Plain:
    """A value as msgpack sees it: `{"hex": ...}` becomes bytes."""
    if isinstance(value, dict):
        raw = value.get("hex")
        if isinstance(raw, str) and len(value) == 1:
            return unhex(raw)
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value
