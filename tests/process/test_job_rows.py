"""Rows by the file and by reference, between real daemons."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, cast

import pytest

from federated.jobs.canon import canonical
from tests.helpers.daemons import Home, joined_homes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

ROWS = 2000
CELL = 10_000
"""20 MB of rows."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    with joined_homes(tmp_path_factory.mktemp("jr"), "boss", "left", "right") as homes:
        yield homes


def _run(home: Home, *arguments: str) -> list[dict[str, Json]]:
    text = home.ok("job", "run", *arguments, "--format", "jsonl")
    return [json.loads(line) for line in text.splitlines()]


def _hash(row: dict[str, object]) -> str:
    return hashlib.blake2b(canonical(row), digest_size=32).hexdigest()


@pytest.mark.slow
def test_twenty_megabytes_of_rows_are_computed(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss = three[0]
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, object]] = [
        {"n": n, "text": f"{n} {'é' * 100} ".ljust(CELL, "x")} for n in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert path.stat().st_size > 20_000_000
    found = _run(boss, "--handler", "hash@1", "--rows", str(path))
    assert [row["hash"] for row in found] == [_hash(row) for row in rows]
    (job, *_) = cast("list[dict[str, Json]]", boss.json("job", "list"))
    peers = cast("dict[str, int]", job["peers"])
    assert set(peers) == {"left", "right"}, "both worked"


def test_a_table_and_the_results_of_a_job(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss = three[0]
    path = tmp_path / "rows.csv"
    path.write_text('\ufefftext,note\n"the cat, the dog",a\n"two\nlines","b ""c"""\n', "utf-8")
    found = _run(boss, "--handler", "echo@1", "--rows", str(path))
    assert found == [
        {"text": "the cat, the dog", "note": "a"},
        {"text": "two\nlines", "note": 'b "c"'},
    ]
    (job, *_) = cast("list[dict[str, Json]]", boss.json("job", "list"))
    counted = _run(
        boss, "--handler", "wordcount@1", "--rows-of", str(job["id"])[:8], "--reduce", "topk:1"
    )
    assert counted == [{"key": "the", "sum": 2}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "a,b\n1\n", "line 2: 1 cells, the header has 2"),
        ("rows.csv", "a,a\n1,2\n", "name each column once"),
        ("rows.jsonl", '{"a": 1}\n\n[2]\n', "line 3: a row is a JSON object"),
        ("rows.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
    ],
)
def test_a_file_that_is_no_table_is_told_by_its_line(
    three: tuple[Home, ...], tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    run = three[0].run("job", "run", "--handler", "echo@1", "--rows", str(path))
    assert run.returncode == 2
    assert message in run.stderr
