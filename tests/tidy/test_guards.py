"""Each guard of docs/specs/guards.md names a test that attacks it, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.tidy.test_security import names_of

ROOT = Path(__file__).resolve().parents[2]
GUARDS = ROOT / "docs" / "specs" / "guards.md"

_ROW = re.compile(r"^\| (?!guard |---)(.+?) \| (.*) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def faults(text: str, root: Path) -> list[str]:
    """What is wrong with a table of guards."""
    rows = _ROW.findall(text)
    found = [] if rows else ["no guards"]
    for guard, cell in rows:
        tests = _TEST.findall(cell)
        if not tests:
            found.append(f"{guard}: no test")
        found += [
            f"{guard}: {path} has no {test}"
            for path, test in tests
            if test not in names_of(root / path)
        ]
    return found


def test_every_guard_names_tests_that_exist() -> None:
    assert not faults(GUARDS.read_text("utf-8"), ROOT)


def test_control_a_guard_without_a_test_or_with_a_lost_one_is_found(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("async def test_there():\n    pass\n")
    head = "| guard | attacked by |\n|---|---|\n"
    good = head + "| it holds | `tests/test_a.py::test_there` |\n"
    assert not faults(good, tmp_path)
    assert faults(good + "| it holds too | by hope |\n", tmp_path) == ["it holds too: no test"]
    lost = good + "| and this | `tests/test_a.py::test_gone` |\n"
    assert faults(lost, tmp_path) == ["and this: tests/test_a.py has no test_gone"]
    assert faults(head, tmp_path) == ["no guards"]
