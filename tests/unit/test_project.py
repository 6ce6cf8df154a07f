"""What project a folder belongs to, with folders that others made."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from daemon import project
from daemon.project import project_of


def repository(folder: Path, url: str = "git@example.org:team/tea.git") -> Path:
    """A work tree with an `origin`."""
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text(f'[remote "origin"]\n\turl = {url}\n')
    return folder


def test_a_project_is_named_by_its_origin_from_any_folder_in_it(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    (root / "src" / "deep").mkdir(parents=True)
    assert project_of(str(root / "src" / "deep")) == "tea"


def test_a_work_tree_leads_to_its_repository(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    inner = root / ".git" / "worktrees" / "other"
    inner.mkdir(parents=True)
    (inner / "commondir").write_text("../..\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".git").write_text(f"gitdir: {inner}\n")
    assert project_of(str(tmp_path / "other")) == "tea"


def test_home_and_root_are_no_projects(tmp_path: Path) -> None:
    assert project_of(str(tmp_path), home=str(tmp_path)) == ""
    assert project_of("/", home=str(tmp_path)) == ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [".git", ".git/config", "gitdir", "commondir"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    root = tmp_path / "work"
    root.mkdir()
    if name == ".git/config":
        (root / ".git").mkdir()
    if name in ("gitdir", "commondir"):
        (tmp_path / "real").mkdir()
        (root / ".git").write_text("gitdir: ../real\n")
    path = {
        "gitdir": tmp_path / "real" / "config",
        "commondir": tmp_path / "real" / "commondir",
    }.get(name, root / name)
    os.mkfifo(path)
    assert project_of(str(root)) == "work"


@pytest.mark.timeout(20)
def test_what_becomes_a_pipe_after_it_was_looked_at_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = Path(__file__).stat()
    os.mkfifo(tmp_path / "config")
    monkeypatch.setattr(os, "stat", lambda _path: regular)
    assert project._read(str(tmp_path / "config")) == ""


def test_a_socket_and_a_device_are_no_files(tmp_path: Path) -> None:
    root = tmp_path / "work"
    root.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / ".git"))
        assert project_of(str(root)) == "work"
    (root / ".git").unlink()
    (root / ".git").symlink_to("/dev/zero")
    assert project_of(str(root)) == "work"


def test_a_large_configuration_is_read_in_part(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    config = root / ".git" / "config"
    config.write_text("# " + "x" * project.FILE_BYTES_MAX + "\n" + config.read_text())
    assert project_of(str(root)) == "work"
