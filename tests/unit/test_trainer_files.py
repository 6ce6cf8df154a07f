"""A trainer's folder goes with it; what a killed one left, the next one removes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.trainer_files import MADE_S, PREFIX, OwnFolder
from tests.helpers.daemons import ROOT

HOLDER = """
import sys
from daemon.trainer_files import OwnFolder
folder = OwnFolder()
(folder.path / "new").write_bytes(b"x")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def made_old(folder: Path) -> None:
    seconds = folder.stat().st_mtime - 2 * MADE_S
    os.utime(folder, (seconds, seconds))


def test_a_folder_goes_when_it_is_closed_or_forgotten(place: Path) -> None:
    folder = OwnFolder()
    (folder.path / "new").write_bytes(b"x")
    folder.close()
    folder.close()
    OwnFolder()
    assert not list(place.iterdir())


def test_what_a_killed_trainer_left_is_removed_and_a_living_ones_is_not(place: Path) -> None:
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            env={**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    folders = []
    for holder in holders:
        assert holder.stdout is not None
        folders.append(Path(holder.stdout.readline().strip()))
    holders[0].send_signal(signal.SIGKILL)
    holders[0].communicate()
    OwnFolder().close()
    assert all(one.exists() for one in folders), "too young: it may be one that is being made"
    for folder in folders:
        made_old(folder)
    OwnFolder().close()
    assert [one.exists() for one in folders] == [False, True]
    holders[1].communicate()
    assert not list(place.iterdir())


def test_a_copy_of_the_process_leaves_the_folder_to_who_made_it(place: Path) -> None:
    folder = OwnFolder()
    copy = os.fork()
    if copy == 0:
        code = 1
        try:
            folder.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(copy, 0)[1] == 0
    assert folder.path.exists()
    folder.close()
    assert not list(place.iterdir())


def test_nothing_else_is_removed(place: Path) -> None:
    other = place / "elsewhere"
    other.mkdir()
    link = place / f"{PREFIX}link"
    link.symlink_to(other, target_is_directory=True)
    seconds = other.stat().st_mtime - 2 * MADE_S
    os.utime(link, (seconds, seconds), follow_symlinks=False)
    (place / f"{PREFIX}file").write_text("x")
    os.utime(place / f"{PREFIX}file", (seconds, seconds))
    OwnFolder().close()
    assert sorted(one.name for one in place.iterdir()) == [
        f"{PREFIX}file",
        f"{PREFIX}link",
        "elsewhere",
    ]
