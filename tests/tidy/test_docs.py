"""Documents are in step with the tree: what they link to, name and tell to type exists."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

from tests.helpers.tour import steps_of
from tools import lint

if TYPE_CHECKING:
    from pathlib import Path

ROOT = lint.ROOT
FOLDERS = "daemon|p2p|memory|federated|tests|tools|docs|benchmarks|examples|requirements"
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w\.(?:py|md|sh|mjs|json|toml|lock|sql))")
MAKE = re.compile(r"(?:^|[`$(])\s*make ([a-z-]+)", re.MULTILINE)


def documents(root: Path = ROOT) -> list[Path]:
    """All Markdown files of the tree."""
    return [
        *sorted(root.glob("*.md")),
        *sorted(path for path in (root / "docs").rglob("*.md")),
    ]


def broken_references(root: Path) -> list[str]:
    """Links and paths that lead nowhere."""
    broken = []
    for document in documents(root):
        text = document.read_text("utf-8")
        name = document.relative_to(root)
        for target in LINK.findall(text):
            is_far = "://" in target or target.startswith("mailto:")
            if not is_far and not (document.parent / target).exists():
                broken.append(f"{name}: link to {target}")
        broken += [
            f"{name}: path {path}" for path in PATH.findall(text) if not (root / path).exists()
        ]
    return broken


def make_targets() -> set[str]:
    """Names of the Makefile's targets."""
    text = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def test_links_and_paths_in_documents_exist() -> None:
    broken = broken_references(ROOT)
    assert not broken, "\n".join(broken)


def test_control_a_broken_link_and_a_broken_path_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "a.md").write_text(
        "[x](missing.md) and `p2p/gone.py`, [ok](docs), [far](http://x)\n"
    )
    assert broken_references(tmp_path) == ["a.md: link to missing.md", "a.md: path p2p/gone.py"]


def test_every_make_command_in_documents_is_a_target() -> None:
    targets = make_targets()
    assert {"demo", "test", "test-slow", "lint", "bench", "clean"} <= targets
    for document in documents():
        named = set(MAKE.findall(document.read_text("utf-8")))
        assert named <= targets, f"{document.name}: {named - targets}"


def test_every_target_is_listed_by_help() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    described = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert described == make_targets()


def test_decisions_are_numbered_once_and_have_their_parts() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [path.name[:4] for path in decisions]
    assert len(set(numbers)) == len(numbers)
    for path in decisions:
        text = path.read_text("utf-8")
        for part in ("## Context", "## Decision", "## Non-goals", "## Alternatives", "wrong"):
            assert part in text, f"{path.name} lacks {part}"


def test_the_changelog_speaks_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"[{project['version']}]" in changelog or "[Unreleased]" in changelog


def test_the_readme_shows_commands_that_a_test_can_run() -> None:
    # tests/process/test_readme_tour.py runs them.
    assert steps_of((ROOT / "README.md").read_text("utf-8"))
