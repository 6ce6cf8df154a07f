"""A daemon whose disk, a small one that is real, fills up under its jobs."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, cast

from tests.helpers.daemons import Home, wait_until
from tests.helpers.small_disk import fill, small_disk

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.json_types import Json


def table(folder: Path, name: str, rows: int, width: int) -> str:
    path = folder / name
    line = "x" * width
    path.write_text("".join(json.dumps({"n": n, "text": line}) + "\n" for n in range(rows)))
    return str(path)


def test_a_full_disk_refuses_jobs_and_ends_none_nor_the_daemon(tmp_path: Path) -> None:
    with small_disk(tmp_path, "16m") as mount:
        home = Home(mount / "h")
        rows = table(tmp_path, "rows.jsonl", 40, 2000)
        submit = ("job", "submit", "--handler", "echo@1", "--engine", "local", "--rows", rows)

        def state(job: str) -> str:
            return str(cast("dict[str, Json]", home.json("job", "status", job))["state"])

        def is_done(job: str) -> bool:
            return state(job) == "done"

        try:
            home.up()
            filler = fill(mount, but_bytes=300 * 1024)
            kept: list[str] = []
            refused: dict[str, Json] = {}
            for _ in range(40):
                done = home.run(*submit, "--json")
                answer = json.loads(done.stdout)
                if done.returncode:
                    refused = answer["error"]
                    break
                kept.append(answer["job_id"])
            assert kept
            assert refused["name"] == "storage_full"
            assert "free" in str(refused["remedy"]).lower()
            states = [state(job) for job in kept]
            assert set(states) <= {"done", "paused", "queued", "reducing", "running"}, states
            filler.unlink()
            for job in kept:
                wait_until("the job goes on", partial(is_done, job))
                status = cast("dict[str, Json]", home.json("job", "status", job))
                assert cast("dict[str, Json]", status["by_state"])["ok"] == 40
            more = str(cast("dict[str, Json]", home.json(*submit))["job_id"])
            wait_until("a new job ends", partial(is_done, more))
            home.ok("down")
        finally:
            home.stop()
