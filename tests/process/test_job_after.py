"""What outlives a job, between real daemons: retries, the cache, erasure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Home]]:
    folder = tmp_path_factory.mktemp("ja")
    boss, worker = Home(folder / "a", "boss"), Home(folder / "b", "worker")
    boss.up()
    worker.up()
    ticket = cast("dict[str, Json]", boss.json("invite"))["ticket"]
    worker.ok("join", str(ticket), "--yes")
    wait_until("both are connected", lambda: _connected(boss))
    yield boss, worker
    boss.stop()
    worker.stop()


def _connected(home: Home) -> bool:
    peers = cast("list[dict[str, Json]]", home.json("rpc", "peers.list", "{}"))
    return any(peer.get("connected") or peer.get("path") for peer in peers)


def _status(home: Home, job: str) -> dict[str, Json]:
    return cast("dict[str, Json]", home.json("job", "status", job))


def _done(home: Home, job: str) -> dict[str, Json]:
    wait_until("the job is done", lambda: _status(home, job)["state"] == "done")
    return _status(home, job)


def _submit(home: Home, folder: Path, rows: list[dict[str, Json]], *more: str) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = home.json("job", "submit", "--handler", "wordcount@1", "--rows", str(path), *more)
    return str(cast("dict[str, Json]", answer)["job_id"])


def test_gaps_are_asked_again_and_the_table_stays_whole(
    two: tuple[Home, Home], tmp_path: Path
) -> None:
    boss, _ = two
    rows: list[dict[str, Json]] = [{"text": f"a row {n}"} for n in range(4)]
    first = _submit(boss, tmp_path, [*rows, {"no": "text"}])
    status = _done(boss, first)
    assert cast("dict[str, Json]", status["by_state"])["missing"] == 1
    answer = boss.json("job", "retry", first[:8])
    again = str(cast("dict[str, Json]", answer)["job_id"])
    status = _done(boss, again)
    assert status["by_state"] == {"pending": 0, "ok": 4, "missing": 1, "disputed": 0}
    page = cast("dict[str, Json]", boss.json("rpc", "job.result", json.dumps({"id": again})))
    shown = cast("list[dict[str, Json]]", page["rows"])
    assert [row["reason"] for row in shown] == ["kept"] * 4 + ["no_text"]
    assert boss.run("job", "retry", "ffffffff").returncode == 4
    assert boss.run("job", "retry", first, "--rows", "x").returncode == 2


def test_rows_of_earlier_jobs_are_told(two: tuple[Home, Home], tmp_path: Path) -> None:
    boss, _ = two
    rows: list[dict[str, Json]] = [{"text": f"word {n}"} for n in range(3)]
    _done(boss, _submit(boss, tmp_path, rows))
    job = _submit(boss, tmp_path, [*rows, {"text": "a new one"}])
    assert _done(boss, job)["cached"] == 3
    assert "3 of 4 rows from the cache" in boss.ok("job", "status", job)
    told = boss.run("job", "watch", job)
    assert "3 of 4 rows from the cache" in told.stderr


def test_what_is_called_wrong_is_asked_again_and_not_reused(
    two: tuple[Home, Home], tmp_path: Path
) -> None:
    boss, _ = two
    rows: list[dict[str, Json]] = [{"text": f"to judge {n}"} for n in range(3)]
    first = _submit(boss, tmp_path, rows)
    _done(boss, first)
    boss.ok("job", "feedback", first, "--good", "0,2", "--bad", "1", "--rule", "texts, please")
    assert _status(boss, first)["tainted"] == 1
    assert "retry" in boss.ok("job", "status", first)
    told = boss.run("job", "feedback", first, "--bad", "7")
    assert (told.returncode, "no row 7" in told.stderr) == (2, True)
    assert boss.run("job", "feedback", first, "--good", "1", "--bad", "1").returncode == 2
    assert boss.run("job", "feedback", first).returncode == 2
    again = str(cast("dict[str, Json]", boss.json("job", "retry", first))["job_id"])
    status = _done(boss, again)
    assert (status["tainted"], status["cached"]) == (0, 0)
    assert cast("dict[str, Json]", status["by_state"])["ok"] == 3


def test_who_is_quarantined_is_listed_and_lifted(two: tuple[Home, Home]) -> None:
    boss, _ = two
    assert boss.json("job", "quarantine") == []
    nobody = boss.run("job", "quarantine", "lift", "somebody")
    assert nobody.returncode == 4
    assert "covey job quarantine" in nobody.stderr
    done = cast("list[dict[str, Json]]", boss.json("job", "list"))[0]
    refused = boss.run("job", "answer", str(done["id"]), "--stop")
    assert refused.returncode == 6


SECRET = "the heliotrope ledger lies beneath the pantry floor"


def _holding(*homes: Home) -> list[str]:
    """Journals of jobs that hold the secret."""
    return [
        f"{home.folder.name}/{path.name}"
        for home in homes
        for path in sorted((home.folder / "state").glob("jobs.db*"))
        if b"heliotrope" in path.read_bytes()
    ]


def _quoted(boss: Home, folder: Path) -> tuple[str, str]:
    """Jobs that found the secret, and counted its words."""
    rows = folder / "query.jsonl"
    rows.write_text(json.dumps({"query": "heliotrope ledger"}) + "\n")
    answer = boss.json("job", "submit", "--handler", "memory.search@1", "--rows", str(rows))
    search = str(cast("dict[str, Json]", answer)["job_id"])
    _done(boss, search)
    page = cast("dict[str, Json]", boss.json("rpc", "job.result", json.dumps({"id": search})))
    found = cast("dict[str, Json]", cast("list[dict[str, Json]]", page["rows"])[0]["row"])
    memories = cast("list[dict[str, Json]]", found["memories"])
    assert memories[0]["text"] == SECRET
    count = _submit(boss, folder, memories, "--reduce", "topk:50")
    _done(boss, count)
    return search, count


def _erased(boss: Home, jobs: tuple[str, str]) -> None:
    for job in jobs:
        params = json.dumps({"id": job, "raw": True})
        page = cast("dict[str, Json]", boss.json("rpc", "job.result", params))
        rows = cast("list[dict[str, Json]]", page["rows"])
        assert [row["reason"] for row in rows if row["row"] is None][:1] == ["erased"]
    assert "heliotrope" not in boss.ok("job", "result", jobs[1])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_erased_memory_leaves_the_jobs_of_all_machines(
    two: tuple[Home, Home], tmp_path: Path
) -> None:
    boss, worker = two
    for down in (False, True):
        noted = worker.json("remember", SECRET)
        ident = str(cast("list[dict[str, Json]]", noted)[0]["id"])
        jobs = _quoted(boss, tmp_path)
        assert _holding(boss), "there is something to erase"
        if down:
            boss.stop()
        worker.ok("erase", ident, "--yes")
        if down:
            assert _holding(boss), "the text was there when the word went out"
            boss.up()
        wait_until("all journals are clean", lambda: not _holding(boss, worker), 60)
        _erased(boss, jobs)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_erasure_that_is_killed_takes_the_jobs_along_at_the_next_start(
    two: tuple[Home, Home], tmp_path: Path
) -> None:
    boss, worker = two
    noted = cast("list[dict[str, Json]]", worker.json("remember", SECRET))
    ident = str(noted[0]["id"])
    jobs = _quoted(boss, tmp_path)
    wait_until("the memory is here, too", lambda: SECRET in boss.texts("heliotrope"))
    boss.stop()
    boss.up(COVEY_TEST_FAULT="erase.committed:1")
    # The command starts the daemon again where it died, and asks once more.
    boss.run("erase", ident, "--yes")
    assert any(line.get("unclean") for line in boss.log() if line["event"] == "starting")
    wait_until("the journal is clean", lambda: not _holding(boss), 60)
    _erased(boss, jobs)
    worker.ok("erase", ident, "--yes")
