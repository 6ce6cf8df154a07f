"""Each promise of SECURITY.md names a test that attacks it, and the test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTION = "## What is promised"

_PROMISE = re.compile(r"^(\d+)\. ", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def promises(text: str) -> dict[int, list[tuple[str, str]]]:
    """(file, test) pairs by the number of the promise that names them."""
    _, found, rest = text.partition(f"{SECTION}\n")
    assert found, f"no section {SECTION!r}"
    section = rest.partition("\n## ")[0]
    starts = list(_PROMISE.finditer(section))
    numbers = [start[1] for start in starts]
    assert len(set(numbers)) == len(numbers), f"a number stands twice: {numbers}"
    ends = [start.start() for start in starts[1:]] + [len(section)]
    return {
        int(start[1]): _TEST.findall(section[start.end() : end])
        for start, end in zip(starts, ends, strict=True)
    }


def names_of(path: Path) -> set[str]:
    """Names of the test functions of a file; none when it does not exist."""
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, functions) and node.name.startswith("test_")
    }


def faults(text: str, root: Path) -> list[str]:
    """What is wrong with the promises of `text`."""
    found: list[str] = []
    named = promises(text)
    if sorted(named) != list(range(1, len(named) + 1)) or not named:
        found.append(f"promises are numbered {sorted(named)}")
    for number, tests in named.items():
        if not tests:
            found.append(f"promise {number} names no test")
        found += [
            f"promise {number}: {path} has no {test}"
            for path, test in tests
            if test not in names_of(root / path)
        ]
    return found


def test_every_promise_names_tests_that_exist() -> None:
    assert not faults((ROOT / "SECURITY.md").read_text("utf-8"), ROOT)


def test_control_a_promise_without_a_test_or_with_a_lost_one_is_found(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("async def test_there():\n    pass\n")
    good = f"{SECTION}\n\n1. It holds.\n   `tests/test_a.py::test_there`\n"
    tail = "\n## What is not promised\n\n1. Nothing.\n"
    assert not faults(good + tail, tmp_path)
    assert faults(good + "2. It holds too.\n" + tail, tmp_path) == ["promise 2 names no test"]
    lost = good + "2. And this.\n   `tests/test_a.py::test_gone`\n" + tail
    assert faults(lost, tmp_path) == ["promise 2: tests/test_a.py has no test_gone"]
    moved = good.replace("test_a.py", "test_b.py") + tail
    assert faults(moved, tmp_path) == ["promise 1: tests/test_b.py has no test_there"]
    assert faults(good.replace("1. ", "2. "), tmp_path) == ["promises are numbered [2]"]
