"""What a model leaves on the disk: each file of ours is removed for itself, and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from federated.rounds.federation_store import remove_own

STATES = tuple(f"round-{number}.safetensors" for number in range(3))
UNFINISHED = (".round-3.safetensors.x1y2", f"{'c' * 64}.new")
OURS = (*STATES, f"{'a' * 64}.part", *UNFINISHED)
THEIRS = ("photo.jpg", "weights.safetensors", "round-x.safetensors", f"{'a' * 63}.part")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "mine").mkdir(parents=True)
    for name in (*OURS, *THEIRS, "mine/notes"):
        (made / name).write_text("x")
    return made


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_needed_stays_and_whatever_is_not_ours(folder: Path) -> None:
    assert remove_own(folder, {STATES[2]}) == {}
    assert names(folder) == {STATES[2], "mine", *THEIRS}
    assert (folder / "mine" / "notes").exists()


def test_behind_a_link_the_same(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert remove_own(link) == {}
    assert names(folder) == {"mine", *THEIRS}


def test_a_folder_that_is_gone_has_nothing_to_remove(tmp_path: Path) -> None:
    assert remove_own(tmp_path / "none") == {}


@pytest.mark.parametrize("victim", OURS)
def test_one_that_cannot_be_removed_keeps_no_other_and_is_named(
    folder: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == victim:
            raise PermissionError(1, os.strerror(1), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert remove_own(folder) == {victim: os.strerror(1)}
    assert names(folder) == {victim, "mine", *THEIRS}
