"""Reads the golden vectors, and the independent encoder that writes them."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

FOLDER = Path(__file__).parent.parent / "vectors"


@cache
def load(name: str = "record_v1.json"):
    """The vectors of one file."""
    return json.loads((FOLDER / name).read_text("ascii"))


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


def plain(value):
    """A value as msgpack sees it: `{"hex": ...}` becomes bytes."""
    if isinstance(value, dict):
        if value.keys() == {"hex"}:
            return unhex(value["hex"])
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value
