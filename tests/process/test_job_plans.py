"""`covey job plan`, then the job by its plan, between real daemons; progress on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import TYPE_CHECKING, cast

import pytest

from tests.helpers.daemons import COVEY, LIMIT_S, Home, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Home]]:
    folder = tmp_path_factory.mktemp("jp")
    homes = (Home(folder / "a", "boss"), Home(folder / "b", "desk"))
    for home in homes:
        home.up()
    ticket = cast("dict[str, Json]", homes[0].json("invite"))["ticket"]
    homes[1].ok("join", str(ticket), "--yes")
    wait_until("they know each other's names", lambda: _connected(homes[0]))
    yield homes
    for home in homes:
        home.stop()


def _connected(home: Home) -> bool:
    peers = cast("list[dict[str, Json]]", home.json("rpc", "peers.list", "{}"))
    return any(peer.get("connected") and peer.get("name") == "desk" for peer in peers)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(40)))
    return str(path)


def plan_of(home: Home, rows: str, *more: str) -> dict[str, Json]:
    return cast(
        "dict[str, Json]", home.json("job", "plan", "--handler", "echo@1", "--rows", rows, *more)
    )


def test_a_plan_is_shown_and_run(two: tuple[Home, Home], rows: str) -> None:
    boss, _desk = two
    shown = boss.ok("job", "plan", "--handler", "echo@1", "--rows", rows)
    assert "40 in " in shown
    assert "desk " in shown
    assert "yes" in shown
    plan = plan_of(boss, rows)
    seeing = [peer for peer in cast("list[dict[str, Json]]", plan["peers"]) if peer["sees"]]
    assert [peer["machine"] for peer in seeing] == ["desk"]
    assert boss.json("job", "list") == [], "a plan runs nothing"
    printed = boss.ok("job", "run", "--plan", str(plan["plan_id"]), "--format", "jsonl")
    assert printed == "".join(json.dumps({"n": n}) + "\n" for n in range(40))
    listed = cast("list[dict[str, Json]]", boss.json("job", "list"))
    assert [job["state"] for job in listed] == ["done"]
    wait_until("it was learned from", lambda: plan_of(boss, rows)["learned_jobs"] == 1)
    assert isinstance(plan_of(boss, rows)["seconds"], float)
    good = cast("dict[str, Json]", plan_of(boss, rows)["good"])
    assert good["job_id"] == listed[0]["id"]
    boss.ok("job", "feedback", str(listed[0]["id"]), "--rule", "short rows do best")
    assert "note 1 by you: short rows do best" in boss.ok(
        "job", "plan", "--handler", "echo@1", "--rows", rows
    )
    assert boss.ok("job", "drop-note", "1") == "removed\n"
    assert plan_of(boss, rows)["notes"] == []
    assert boss.run("job", "drop-note", "1").returncode == 4


def test_a_plan_that_no_longer_holds_is_refused(two: tuple[Home, Home], rows: str) -> None:
    boss, desk = two
    plan = plan_of(boss, rows)
    desk.stop()
    wait_until("it is gone", lambda: not _connected(boss))
    refused = boss.run("job", "submit", "--plan", str(plan["plan_id"]))
    assert refused.returncode == 6
    assert "desk would no longer see them (not_connected)" in refused.stderr
    params = json.dumps({"plan_id": plan["plan_id"]})
    raw = boss.run("rpc", "job.submit", params, "--json")
    assert raw.returncode == 6
    assert "1004" in raw.stdout + raw.stderr
    assert "plan_changed" in raw.stdout + raw.stderr
    desk.up()
    wait_until("it is back", lambda: _connected(boss))
    unknown = boss.run("job", "submit", "--plan", "00" * 16)
    assert unknown.returncode == 4
    twice = boss.run("job", "run", "--plan", "00" * 16, "--handler", "echo@1")
    assert twice.returncode == 2
    both = boss.run("rpc", "job.submit", json.dumps({"plan_id": "00", "spec": {"handler": "e@1", "rows": []}}))  # fmt: skip # noqa: E501
    assert both.returncode == 2


def test_an_agent_plans_and_submits_by_its_plan(two: tuple[Home, Home]) -> None:
    boss, _desk = two
    rows: list[Json] = [{"n": n} for n in range(3)]
    plan = tool(boss, "job_plan", handler="echo@1", rows=rows)
    assert (plan["rows"], plan["group"]) == (3, "own")
    peers = cast("list[dict[str, Json]]", plan["peers"])
    assert {str(peer["machine"]): peer["sees"] for peer in peers} == {"boss": False, "desk": True}
    submitted = tool(boss, "job_submit", plan_id=plan["plan_id"])
    job = str(submitted["job_id"])
    wait_until("it is done", lambda: tool(boss, "job_status", id=job)["state"] == "done")


def tool(home: Home, name: str, **arguments: Json) -> dict[str, Json]:
    """What an agent's call of an MCP tool answers, in its structured form."""
    meta: dict[str, Json] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params: dict[str, Json] = {"name": name, "arguments": arguments, "_meta": meta}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    with subprocess.Popen(
        [*COVEY, "mcp"],
        env={**home.environ, "COVEY_AGENT": "claude-code"},
        cwd=home.work,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as relay:
        assert relay.stdin is not None
        assert relay.stdout is not None
        relay.stdin.write(line + "\n")
        relay.stdin.flush()
        answer = json.loads(relay.stdout.readline())
        relay.stdin.close()
        relay.wait(LIMIT_S)
    assert "result" in answer, answer
    assert not answer["result"].get("isError"), answer
    return cast("dict[str, Json]", answer["result"]["structuredContent"])


def test_progress_is_drawn_on_a_terminal_and_told_in_lines_elsewhere(
    two: tuple[Home, Home], tmp_path: Path
) -> None:
    boss, _desk = two
    wait_until("both are there", lambda: _connected(boss))
    many = tmp_path / "many.json"
    rows: list[Json] = [{"n": n} for n in range(3_000)]
    many.write_text(json.dumps({"handler": "echo@1", "rows": rows, "cache": "off"}))
    words = ("job", "run", str(many), "--batch", "1")
    plain = boss.run(*words, "--format", "jsonl")
    assert plain.returncode == 0
    assert len(plain.stdout.splitlines()) == 3_000
    assert not {"\x1b", "\r"} & set(plain.stderr)
    bars = [line for line in plain.stderr.splitlines() if line.startswith("[")]
    assert 1 <= len(bars) <= 11, "a line for each tenth at most"
    drawn = on_terminal(boss, *words, "--format", "jsonl", TERM="xterm")
    assert drawn.count("\r\x1b[K[") >= 1
    assert "done" in drawn
    assert "\x1b" not in on_terminal(boss, *words, "--format", "jsonl", TERM="dumb")


def on_terminal(home: Home, *words: str, **env: str) -> str:
    """What a command writes to standard error when that is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COVEY, *words],
        env={**home.environ, **env},
        cwd=home.work,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # the other end is closed: a terminal says so by EIO
                break
            if not part:
                break
            found += part
        assert process.wait(LIMIT_S) == 0, found
    os.close(ours)
    return found.decode()
