"""What a model leaves on the disk: each file is removed for itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from federated.rounds.federation_store import remove_each

FILES = ("0.safetensors", "1.safetensors", "2.safetensors", "a.part")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "mine").mkdir(parents=True)
    (made / "mine" / "notes").write_text("x")
    for name in FILES:
        (made / name).write_text("x")
    return made


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_needed_and_what_is_no_file_stays(folder: Path) -> None:
    remove_each(folder, lambda path: path.name != FILES[2], files_only=True)
    assert names(folder) == {FILES[2], "mine"}


def test_all_goes_with_the_folder_and_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("x")
    (folder / "link").symlink_to(other)
    remove_each(folder, lambda _: True)
    assert not folder.exists()
    assert names(other) == {"kept"}
    remove_each(folder, lambda _: True)


@pytest.mark.parametrize("victim", FILES)
@pytest.mark.parametrize("files_only", [False, True])
def test_one_that_cannot_be_removed_keeps_no_other_and_is_logged(
    folder: Path,
    victim: str,
    files_only: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == victim:
            raise PermissionError(1, os.strerror(1), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    remove_each(folder, lambda _: True, files_only=files_only)
    assert names(folder) == {victim} | ({"mine"} if files_only else set())
    (record,) = caplog.records
    assert victim in record.__dict__["f"]["files"]
