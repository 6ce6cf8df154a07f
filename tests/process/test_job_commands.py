"""`covey job` between real daemons, some of which are killed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import Home, joined_homes, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, ...]]:
    with joined_homes(tmp_path_factory.mktemp("jb"), "boss", "left", "right") as homes:
        yield homes


ROWS = 6000


def rows_file(folder: Path, count: int) -> str:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"n": n, "text": f"word{n} and"}) + "\n" for n in range(count))
    )
    return str(path)


def state(home: Home, job: str) -> str:
    return str(cast("dict[str, Json]", home.json("job", "status", job))["state"])


def done_rows(home: Home, job: str) -> int:
    status = cast("dict[str, Json]", home.json("job", "status", job))
    return int(cast("int", cast("dict[str, Json]", status["by_state"])["ok"]))


def submit(home: Home, folder: Path, count: int, *more: str) -> str:
    answer = home.json(
        "job", "submit", "--handler", "echo@1", "--rows", rows_file(folder, count), *more
    )
    return str(cast("dict[str, Json]", answer)["job_id"])


def test_a_table_comes_back_in_every_format(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss = three[0]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"name": "=1+1", "n": 1}\n{"name": "a|b", "n": 2}\n')
    run = ("job", "run", "--handler", "echo@1", "--rows", str(rows), "--columns", "name,n:int")
    assert boss.ok(*run, "--format", "csv") == "name,n\n'=1+1,1\na|b,2\n"
    assert boss.ok(*run, "--format", "jsonl").splitlines()[0] == '{"n": 1, "name": "=1+1"}'
    assert "| a\\|b | 2 |" in boss.ok(*run, "--format", "md")
    listed = cast("list[dict[str, Json]]", boss.json("job", "list"))
    assert [job["state"] for job in listed[:3]] == ["done"] * 3
    told = boss.ok("job", "explain", str(listed[0]["id"])[:8], "0")
    assert "computed by an own device" in told


def test_errors_say_what_to_do(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss = three[0]
    rows = rows_file(tmp_path, 2)
    missing = boss.run("job", "status", "ffffffff")
    assert missing.returncode == 4
    assert "covey job list" in missing.stderr
    bad = boss.run("job", "run", "--handler", "echo@1", "--rows", rows, "--verify", "twice")
    assert bad.returncode == 2
    assert "quorum:M" in bad.stderr
    nothing = boss.run("job", "run")
    assert nothing.returncode == 2
    assert "covey job handlers" in nothing.stderr


def test_a_slip_in_an_option_or_a_file_is_named(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss = three[0]
    rows = rows_file(tmp_path, 20)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"n": 1}\n\n{"n": 2\n')
    run = ("job", "run", "--handler", "echo@1", "--engine", "local")
    for words, said in (
        (("--rows", rows, "--reduce", "tabel"), "it is collect, table, count"),
        (("--rows", rows, "--reduce", "topk:many"), "topk:N"),
        (("--rows", rows, "--columns", "n:integer"), "a type is one of str, int"),
        (("--rows", str(bad)), "bad.jsonl, line 3: not JSON"),
        (("--rows", rows, "--batch", "0"), "1 to 32 rows"),
    ):
        done = boss.run(*run, *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert said in done.stderr
    wrong = boss.run("job", "run", "--handler", "ecko@1", "--engine", "local", "--rows", rows)
    assert wrong.returncode == 4
    assert "no ecko@1, but echo@1" in wrong.stderr


@pytest.mark.parametrize(("size", "tasks"), [(1, 20), (8, 3)])
def test_a_batch_has_as_many_rows_as_asked_for(
    three: tuple[Home, ...], tmp_path: Path, size: int, tasks: int
) -> None:
    boss = three[0]
    spec = tmp_path / "job.json"
    rows: list[Json] = [{"n": n} for n in range(20)]
    spec.write_text(
        json.dumps({"handler": "echo@1", "rows": rows, "engine": "local", "cache": "off"})
    )
    answer = cast("dict[str, Json]", boss.json("job", "submit", str(spec), "--batch", str(size)))
    job = str(answer["job_id"])
    boss.ok("job", "watch", job)
    status = cast("dict[str, Json]", boss.json("job", "status", job))
    assert status["executions"] == tasks


def test_a_job_is_paused_resumed_and_cancelled(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss = three[0]
    job = submit(boss, tmp_path, 5, "--key", "once")
    assert submit(boss, tmp_path, 5, "--key", "once") == job
    wait_until("it is done", lambda: state(boss, job) == "done")
    refused = boss.run("job", "pause", job)
    assert refused.returncode == 6
    waiting = tmp_path / "waiting.json"
    waiting.write_text(json.dumps({"handler": "nobody@1", "rows": [{"n": 1}]}))
    other = str(cast("dict[str, Json]", boss.json("job", "submit", str(waiting)))["job_id"])
    boss.ok("job", "pause", other)
    assert state(boss, other) == "paused"
    boss.ok("job", "resume", other)
    boss.ok("job", "cancel", other)
    assert state(boss, other) == "cancelled"
    boss.ok("job", "purge", other)
    assert boss.run("job", "status", other).returncode == 4


def test_an_agent_sees_its_own_jobs_alone(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss = three[0]
    job = submit(boss, tmp_path, 2)
    as_agent = {"CLAUDECODE": "1"}
    assert boss.run("job", "status", job, env=as_agent).returncode == 4
    listed = cast("list[Json]", boss.json("job", "list", env=as_agent))
    assert listed == []
    boss.ok("group", "create", "others")
    shown = boss.run(
        "job", "submit", "--handler", "echo@1", "--rows", rows_file(tmp_path, 1),
        "--group", "others", env=as_agent,
    )  # fmt: skip
    assert shown.returncode == 5
    assert "jobs:submit:others" in shown.stderr


def knows(home: Home, *others: Home) -> bool:
    """Whether a machine finds the others again after a kill: it writes that down each 2 s."""
    book = home.folder / "state" / "peers.msgpack"
    data = book.read_bytes() if book.exists() else b""
    ids = [str(cast("dict[str, Json]", other.json("status"))["node_id"]) for other in others]
    return all(bytes.fromhex(ident) in data for ident in ids)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_kills_on_both_sides_lose_no_row(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss, left, right = three
    wait_until("boss has on disk where the others are", lambda: knows(boss, left, right), 60)
    job = submit(boss, tmp_path, ROWS, "--batch", "1")
    wait_until("rows came", lambda: done_rows(boss, job) > 0)
    left.kill()
    boss.kill()
    boss.up()
    left.up()
    wait_until("the job is done", lambda: state(boss, job) == "done", 60)
    assert done_rows(boss, job) == ROWS
    lines = boss.ok("job", "result", job, "--format", "jsonl").splitlines()
    assert [json.loads(line)["n"] for line in lines] == list(range(ROWS))


def test_who_watches_sees_the_end_every_time(three: tuple[Home, ...], tmp_path: Path) -> None:
    boss = three[0]
    for _ in range(12):
        job = submit(boss, tmp_path, 1)
        lines = boss.ok("job", "watch", job, "--json").splitlines()
        last = cast("dict[str, Json]", json.loads(lines[-1]))
        assert cast("dict[str, Json]", last["data"])["state"] == "done"
