"""`files.*`: what is listed and counted beneath a named root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from federated.jobs.handlers import files
from federated.jobs.handlers.base import TaskLimits
from federated.jobs.handlers.files import (
    files_handlers,
    files_list,
    files_wordcount,
)
from federated.jobs.handlers.threads import offload_stoppable
from tests.helpers.job_handlers import Threads, make_batch, make_ctx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federated.jobs.handlers.base import Handler
    from federated.jobs.types import RowOut


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    for name, text in {
        "one.md": "a b",
        "two.txt": "b c",
        "deep/three.md": "c d",
        "deep/er/four.md": "d e",
        "deep/er/five.bin": "x\0y",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


async def ask(
    handler: Handler, *rows: dict[str, object], limits: TaskLimits | None = None
) -> list[RowOut]:
    return list(await handler.run(make_batch(*rows), make_ctx(limits=limits or TaskLimits())))


async def listed(notes: Path, pattern: str) -> list[str]:
    [(_, row, _)] = await ask(files_list({"n": str(notes)}), {"root": "n", "pattern": pattern})
    assert row is not None
    return [file["path"] for file in row["files"]]  # type: ignore[attr-defined]


def test_nothing_is_offered_without_a_root() -> None:
    assert files_handlers({}) == ()
    infos = [handler.info for handler in files_handlers({"n": "."})]
    assert [info.id for info in infos] == ["files.list@1", "files.wordcount@1"]
    assert all(info.local for info in infos)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["one.md", "two.txt"]),
        ("*.md", ["one.md"]),
        ("**/*.md", ["deep/er/four.md", "deep/three.md", "one.md"]),
        ("deep/*", ["deep/three.md"]),
        ("deep/**", ["deep/er/five.bin", "deep/er/four.md", "deep/three.md"]),
        ("**/er/**", ["deep/er/five.bin", "deep/er/four.md"]),
        ("**/**/t*", ["deep/three.md", "two.txt"]),
        ("[ot]*.??", ["one.md"]),
        ("none/*", []),
    ],
)
async def test_patterns_match_part_by_part(notes: Path, pattern: str, found: list[str]) -> None:
    assert await listed(notes, pattern) == found


async def test_one_file_is_listed_with_its_size(notes: Path) -> None:
    handler = files_list({"n": str(notes)})
    assert await ask(handler, {"root": "n", "path": "deep/three.md"}) == [
        (0, {"files": [{"path": "deep/three.md", "bytes": 3}], "more": False, "unnamed": 0}, "")
    ]


async def test_a_long_list_goes_on_after_its_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n:03}" for n in range(25)]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(files, "FILES_LISTED_MAX", 10)
    handler = files_list({"n": str(tmp_path)})
    got: list[str] = []
    more = True
    while more:
        row = {"root": "n", "pattern": "*", "after": got[-1] if got else ""}
        [(_, answer, _)] = await ask(handler, row)
        assert answer is not None
        got += [file["path"] for file in answer["files"]]  # type: ignore[attr-defined]
        more = bool(answer["more"])
    assert got == names


async def test_a_list_keeps_within_the_size_of_an_answer(tmp_path: Path) -> None:
    for n in range(50):
        (tmp_path / f"{n:0200}").touch()
    handler = files_list({"n": str(tmp_path)})
    row = {"root": "n", "pattern": "*"}
    [(_, answer, _)] = await ask(handler, row, limits=TaskLimits(out_bytes=4096))
    assert answer is not None
    assert answer["more"] is True
    assert 0 < len(str(answer)) <= 4096
    assert await ask(handler, row, limits=TaskLimits(out_bytes=300)) == [(0, None, "too_large")]


async def test_names_that_no_row_can_say_are_counted(tmp_path: Path) -> None:
    (tmp_path / "ok").touch()
    for raw in (b"\xff\xfe", "e\u0301".encode()):
        os.close(os.open(os.fsencode(tmp_path) + b"/" + raw, os.O_CREAT | os.O_WRONLY))
    [(_, answer, _)] = await ask(files_list({"n": str(tmp_path)}), {"root": "n", "pattern": "*"})
    assert answer == {"files": [{"path": "ok", "bytes": 0}], "more": False, "unnamed": 2}


async def test_words_of_one_file_and_of_all_that_match(notes: Path) -> None:
    handler = files_wordcount({"n": str(notes)})
    assert await ask(handler, {"root": "n", "path": "one.md"}, {"root": "n", "pattern": "**"}) == [
        (0, {"pairs": [["a", 1], ["b", 1]]}, ""),
        (1, {"pairs": [["a", 1], ["b", 2], ["c", 2], ["d", 2], ["e", 1]]}, ""),
    ]


async def test_what_is_no_text_is_said_or_left_out(notes: Path) -> None:
    handler = files_wordcount({"n": str(notes)})
    assert await ask(handler, {"root": "n", "path": "deep/er/five.bin"}) == [(0, None, "not_text")]
    assert await ask(handler, {"root": "n", "pattern": "**/five.*"}) == [(0, {"pairs": []}, "")]


async def test_no_word_is_cut_between_two_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_text("alpha beta gamma " * 50)
    monkeypatch.setattr(files, "_SLICE_CHARS", 7)
    handler = files_wordcount({"n": str(tmp_path)})
    assert await ask(handler, {"root": "n", "path": "f"}) == [
        (0, {"pairs": [["alpha", 50], ["beta", 50], ["gamma", 50]]}, "")
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "unknown_root"),
        ({"root": "other", "path": "one.md"}, "unknown_root"),
        ({"root": ["n"], "path": "one.md"}, "unknown_root"),
        ({"root": "n"}, "bad_row"),
        ({"root": "n", "path": "one.md", "pattern": "*"}, "bad_row"),
        ({"root": "n", "path": 3}, "bad_row"),
        ({"root": "n", "path": "gone.md"}, "not_found"),
        ({"root": "n", "path": "gone/one.md"}, "not_found"),
        ({"root": "n", "path": "deep"}, "no_file"),
        ({"root": "n", "path": "one.md/x"}, "no_file"),
        ({"root": "n", "path": "x" * 300}, "not_found"),
        ({"root": "n", "pattern": ""}, "bad_pattern"),
        ({"root": "n", "pattern": "a//b"}, "bad_pattern"),
    ],
)
async def test_a_row_that_names_no_file_is_missing_with_the_reason(
    notes: Path, row: dict[str, object], reason: str
) -> None:
    for handler in files_handlers({"n": str(notes)}):
        assert await ask(handler, row) == [(0, None, reason)]


async def test_a_large_file_is_refused_and_a_root_that_has_gone(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FILE_BYTES_MAX", 2)
    handler = files_wordcount({"n": str(notes), "gone": str(notes / "gone")})
    assert await ask(
        handler,
        {"root": "n", "path": "one.md"},
        {"root": "n", "pattern": "*"},
        {"root": "gone", "path": "one.md"},
        {"root": "gone", "pattern": "*"},
    ) == [
        (0, None, "too_large"),
        (1, None, "too_large"),
        (2, None, "unreadable"),
        (3, None, "unreadable"),
    ]


async def test_all_files_of_a_row_together_are_bounded(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ROW_BYTES_READ_MAX", 5)
    handler = files_wordcount({"n": str(notes)})
    assert await ask(handler, {"root": "n", "pattern": "*"}) == [(0, None, "too_large")]
    assert await ask(handler, {"root": "n", "path": "one.md"}) != [(0, None, "too_large")]


async def test_more_words_than_an_answer_holds_are_no_answer(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(" ".join(f"word{n}" for n in range(500)))
    handler = files_wordcount({"n": str(tmp_path)})
    row = {"root": "n", "path": "f"}
    assert await ask(handler, row, limits=TaskLimits(out_bytes=1000)) == [(0, None, "too_large")]


@pytest.mark.usefixtures("no_leaks")
async def test_a_cancelled_task_tells_its_thread_to_stop() -> None:
    begun, ended = trio.Event(), []
    token = trio.lowlevel.current_trio_token()

    def spin(stopped: Callable[[], bool]) -> None:
        token.run_sync_soon(begun.set)
        while not stopped():
            pass
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(offload_stoppable, Threads(), spin)
        await begun.wait()
        nursery.cancel_scope.cancel()
    assert ended == [True]
