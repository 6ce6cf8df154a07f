"""Real text that every machine has: the documentation strings of Python's standard library."""

from __future__ import annotations

import ast
import json
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

CHARACTERS_MIN = 60
"""Shorter strings say too little to be worth remembering."""

SKIPPED_FOLDERS = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "ensurepip",
}

Documented: TypeAlias = "ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef"


def write_notes(target: Path, *, notes_max: int) -> int:
    """Write documentation strings as JSON Lines that `covey import` reads; their number."""
    written = 0
    with target.open("w", encoding="utf-8") as out:
        for title, text in _documentation():
            if written == notes_max:
                break
            out.write(json.dumps({"title": title, "text": text, "tags": ["python"]}) + "\n")
            written += 1
    return written


def _documentation() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts):
            yield from _documented_in(path, ".".join(parts).removesuffix(".__init__"))


def _documented_in(path: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # the library ships a few deliberately broken files
    yield from _walk(tree, module)


def _walk(node: Documented, name: str) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node)
    if text and len(text) >= CHARACTERS_MIN:
        yield name, text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}")
