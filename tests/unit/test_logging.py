"""Log lines: JSON, rotated, bounded for strangers, without foreign text."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from daemon.config import LogConfig
from daemon.logging_setup import (
    REMOTE_PER_MINUTE,
    JournalFormatter,
    RemoteLimit,
    TextFormatter,
    format_exception,
    set_level,
    setup,
)
from daemon.methods.process import tail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger("covey")
    before = (root.level, list(root.handlers), root.propagate)
    root.handlers = []
    yield tmp_path
    for handler in root.handlers:
        handler.close()
    root.setLevel(before[0])
    root.handlers = before[1]
    root.propagate = before[2]


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "covey.log").read_text().splitlines()]


def test_a_line_has_time_level_logger_event_and_fields(folder: Path) -> None:
    setup(LogConfig(), str(folder), lambda: 0.0)
    logging.getLogger("covey.rpc").info("rpc", extra={"f": {"method": "a.b", "ms": 1.5}})
    (line,) = lines_of(folder)
    assert isinstance(line.pop("at_ms"), int)
    assert line == {"level": "info", "log": "rpc", "event": "rpc", "method": "a.b", "ms": 1.5}
    assert (folder / "covey.log").stat().st_mode & 0o077 == 0


def test_the_level_can_change_while_it_runs(folder: Path) -> None:
    setup(LogConfig(level="warning"), str(folder), lambda: 0.0)
    log = logging.getLogger("covey.x")
    log.info("unseen")
    set_level("info")
    log.info("seen")
    assert [line["event"] for line in lines_of(folder)] == ["seen"]


@pytest.mark.attack
def test_strangers_cannot_fill_the_log(folder: Path) -> None:
    now = [0.0]
    setup(LogConfig(), str(folder), lambda: now[0])
    log = logging.getLogger("covey.p2p")
    for _ in range(1000):
        log.warning("handshake_refused", extra={"remote": True})
        log.warning("own")
    assert len([1 for line in lines_of(folder) if line["event"] != "own"]) == REMOTE_PER_MINUTE
    now[0] = 61.0
    log.warning("handshake_refused", extra={"remote": True})
    last = lines_of(folder)[-1]
    assert last["event"] == "handshake_refused"
    assert last["suppressed"] == 1000 - REMOTE_PER_MINUTE


def test_files_rotate_and_are_bounded(folder: Path) -> None:
    setup(LogConfig(file_bytes=65_536, files=3), str(folder), lambda: 0.0)
    log = logging.getLogger("covey.x")
    for _ in range(3000):
        log.info("event", extra={"f": {"filler": "x" * 100}})
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["covey.log", "covey.log.1", "covey.log.2"]
    assert all(path.stat().st_size <= 65_536 for path in folder.iterdir())


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.attack
def test_texts_of_foreign_exceptions_stay_out(folder: Path) -> None:
    del folder
    foreign = raised(ValueError("a query the library quoted"))
    shown = format_exception(foreign)
    assert "ValueError" in shown
    assert "test_logging.py" in shown
    assert "query" not in shown
    group = ExceptionGroup("a query", [foreign, raised(AssertionError("our own invariant"))])
    shown = format_exception(group)
    assert "query" not in shown
    assert "our own invariant" in shown


def test_a_person_and_journald_read_other_forms() -> None:
    record = logging.LogRecord("covey.rpc", logging.WARNING, "f", 1, "slow", None, None)
    record.f = {"ms": 3}
    assert TextFormatter().format(record).endswith("warning rpc: slow ms=3")
    assert JournalFormatter().format(record).startswith('<4>{"at_ms":')
    assert RemoteLimit(lambda: 0.0).filter(record)


def test_the_tail_of_a_file_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(str(path), 3) == []
    path.write_text("".join(f"line {i}\n" for i in range(100)))
    assert tail(str(path), 2) == ["line 98", "line 99"]
    assert tail(str(path), 100, window_bytes=30) == ["line 97", "line 98", "line 99"]
