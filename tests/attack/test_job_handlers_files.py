"""Rows that try to read what lies outside a named root, or to hold a thread for ever."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from federated.jobs.handlers import beneath
from federated.jobs.handlers.beneath import DEPTH_MAX, Refusal, Root
from federated.jobs.handlers.files import files_handlers, files_list, files_wordcount
from tests.helpers.job_handlers import make_batch, make_ctx

if TYPE_CHECKING:
    from pathlib import Path

    from federated.jobs.types import RowOut

pytestmark = pytest.mark.attack

SECRET = "topsecret"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root beside a secret, with links to it of every kind."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text(SECRET)
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "open").write_text("open")
    (root / ".hidden").write_text(SECRET)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text(SECRET)
    (root / "file-link").symlink_to(tmp_path / "outside" / "secret")
    (root / "folder-link").symlink_to(tmp_path / "outside")
    (root / "up-link").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "inner-link").symlink_to("open")
    os.mkfifo(root / "pipe")
    return root


async def answers(root: Path, **row: object) -> list[RowOut]:
    return [
        answer
        for handler in files_handlers({"r": str(root)})
        for answer in await handler.run(make_batch({"root": "r", **row}), make_ctx())
    ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("..", "bad_path"),
        ("../outside/secret", "bad_path"),
        ("sub/../../outside/secret", "bad_path"),
        ("sub/..", "bad_path"),
        ("./open", "bad_path"),
        ("sub//../open", "bad_path"),
        ("/etc/passwd", "bad_path"),
        ("//etc/passwd", "bad_path"),
        ("", "bad_path"),
        ("open/", "bad_path"),
        ("open\0.txt", "bad_path"),
        ("\0", "bad_path"),
        ("a/" * DEPTH_MAX + "a", "bad_path"),
        ("x" * 5000, "bad_path"),
        ("\udc2e\udc2e/outside/secret", "bad_path"),
        ("\ud800", "bad_path"),
        (".hidden", "hidden"),
        (".git/config", "hidden"),
        ("...", "hidden"),
        ("file-link", "no_file"),
        ("folder-link/secret", "no_file"),
        ("up-link/outside/secret", "no_file"),
        ("inner-link", "no_file"),
        ("loop", "no_file"),
        ("loop/x", "no_file"),
        ("pipe", "no_file"),
        ("sub", "no_file"),
        ("\uff0e\uff0e/outside/secret", "not_found"),
        ("\u2025/outside/secret", "not_found"),
        ("\u2024\u2024/outside/secret", "not_found"),
        ("..\u2215outside\u2215secret", "hidden"),
        ("%2e%2e/outside/secret", "not_found"),
        ("..\\outside\\secret", "hidden"),
        ("~/secret", "not_found"),
        ("$HOME/secret", "not_found"),
        ("open\n", "not_found"),
    ],
)
async def test_no_path_leads_outside(root: Path, path: str, reason: str) -> None:
    assert await answers(root, path=path) == [(0, None, reason)] * 2


@pytest.mark.parametrize(
    "pattern", ["..", "../*", "*/../*", "/**", "/etc/*", "./*", "a\0*", "*/" * 40 + "*", "x" * 2000]
)
async def test_no_pattern_leads_outside(root: Path, pattern: str) -> None:
    assert await answers(root, pattern=pattern) == [(0, None, "bad_pattern")] * 2


@pytest.mark.parametrize(
    "pattern", ["**", "**/*", "*", "**/secret", ".*", "**/.*", "[.]*", "??dden", "folder-link/*"]
)
async def test_a_pattern_finds_no_link_no_pipe_and_nothing_hidden(root: Path, pattern: str) -> None:
    found = await answers(root, pattern=pattern)
    assert len(found) == 2
    assert SECRET not in str(found)
    for name in ("link", "pipe", "hidden", "git", "secret", "loop"):
        assert name not in str(found)


async def test_sockets_and_devices_are_not_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        assert await answers(root, path="sock") == [(0, None, "no_file")] * 2
    assert [
        await handler.run(make_batch({"root": "d", "path": "null"}), make_ctx())
        for handler in files_handlers({"d": "/dev"})
    ] == [[(0, None, "no_file")]] * 2


def test_a_pipe_swapped_in_after_the_look_does_not_block(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beneath, "_look", lambda _folder, _name: 0)
    with pytest.raises(Refusal, match="no_file"):
        Root(str(root)).read("pipe", bytes_max=10)


def test_a_link_swapped_in_after_the_look_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beneath, "_look", lambda _folder, _name: 0)
    with pytest.raises(Refusal, match="no_file"):
        Root(str(root)).read("file-link", bytes_max=100)


def test_a_folder_swapped_for_a_link_while_it_is_read_gives_nothing_away(
    root: Path, tmp_path: Path
) -> None:
    """A second thread swaps a folder and a link to the outside as fast as it can."""
    (root / "sub" / "secret").write_text("harmless")
    (root / "other").symlink_to(tmp_path / "outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (root / "sub").rename(root / "kept")
            (root / "other").rename(root / "sub")
            (root / "sub").rename(root / "other")
            (root / "kept").rename(root / "sub")

    swapper = threading.Thread(target=swap)
    reader = Root(str(root))
    seen = {reader.read("sub/secret", bytes_max=100).decode()}
    swapper.start()
    try:
        for _ in range(2000):
            try:
                seen.add(reader.read("sub/secret", bytes_max=100).decode())
            except Refusal as refusal:
                seen.add(refusal.reason)
            if {"harmless", "no_file"} <= seen:
                break
    finally:
        stop.set()
        swapper.join()
    assert "harmless" in seen
    assert seen <= {"harmless", "no_file", "not_found"}


def test_a_file_that_grows_while_it_is_read_ends_at_the_cap() -> None:
    grown = iter([b"x" * 4] * 100)
    with pytest.raises(Refusal, match="too_large"):
        beneath._read_all(lambda _count: next(grown), 10)
    assert len(list(grown)) >= 90


async def test_a_huge_folder_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(60):
        (root / "sub" / f"{n}").touch()
    monkeypatch.setattr(beneath, "ENTRIES_MAX", 50)
    assert await answers(root, pattern="**") == [(0, None, "too_large")] * 2
    assert await answers(root, path="open") != [(0, None, "too_large")] * 2


@pytest.mark.usefixtures("no_leaks")
async def test_a_deep_tree_is_walked_to_a_depth_and_no_descriptor_is_kept(tmp_path: Path) -> None:
    here = tmp_path
    for _ in range(DEPTH_MAX + 20):
        here = here / "d"
        here.mkdir()
        (here / "f").touch()
    [(_, row, _)] = await files_list({"r": str(tmp_path)}).run(
        make_batch({"root": "r", "pattern": "**/f"}), make_ctx()
    )
    assert row is not None
    assert len(row["files"]) == DEPTH_MAX - 1  # type: ignore[arg-type]


async def test_a_pattern_made_to_be_slow_is_not(tmp_path: Path) -> None:
    """Stars that would make a backtracking matcher try every split, and every `**` at once."""
    (tmp_path / ("a" * 250)).touch()
    below = tmp_path
    for _ in range(20):
        below = below / "a"
        below.mkdir()
    handler = files_wordcount({"r": str(tmp_path)})
    for pattern in ("*a" * 100 + "b", "**/" * 30 + "b", "**/a/" * 15 + "b"):
        batch = make_batch({"root": "r", "pattern": pattern})
        assert await handler.run(batch, make_ctx()) == [(0, {"pairs": []}, "")]
