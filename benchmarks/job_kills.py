"""The coordinator killed again and again while peers work for it.

    python -m benchmarks jobs --only kills [--quick]

Three daemons; two of them write a line a task into a ledger outside (`benchmarks.ledger`). The
third has the job and is killed by SIGKILL after numbers of lines drawn from a seed, started again,
and goes on. Twice: once with pure tasks, whose lines may come again (`redone`), once with `effect:
once`, of which none may. `resumes` is from the moment that the restarted daemon answers on its
socket until the next line in the ledger.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from benchmarks.ledger import HANDLER, Ledger, config
from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.report import Target
from benchmarks.two_daemons import NO_MODEL, join, settle
from federated.jobs.credit import AHEAD_MAX

if TYPE_CHECKING:
    from benchmarks.node import Json
    from benchmarks.report import Options, Report

TASKS: Final = 10_000
TASKS_QUICK: Final = 1_000
KILLS: Final = 10
KILLS_QUICK: Final = 3
SEED: Final = 11
SLOTS: Final = 2
END_S: Final = 900.0
POLL_S: Final = 0.01


@dataclass
class Course:
    """What became of a job one of whose daemons was killed.

    Attributes:
        ok: tasks with an answer.
        unknown: of effects: tasks of which nobody can say whether they happened.
        lines: of the ledger.
        doubled: names in it that came more than once.
        resumed_s: seconds from a restart to the next line.
    """

    tasks: int
    ok: int = 0
    unknown: int = 0
    lines: int = 0
    doubled: int = 0
    kills: int = 0
    took_s: float = 0.0
    resumed_s: list[float] = field(default_factory=list)


def run(options: Options, report: Report) -> None:
    """Measure."""
    tasks, kills = (TASKS_QUICK, KILLS_QUICK) if options.quick else (TASKS, KILLS)
    window = 2 * (SLOTS + AHEAD_MAX)
    for effect in (False, True):
        course = measured(tasks, kills, effect=effect)
        name = f"coordinator kill -9 x {course.kills}, {tasks:,} " + (
            "effects on 2 peers" if effect else "pure tasks on 2 peers"
        )
        report.value(f"{name}: lost", tasks - course.ok, unit="", target=Target("=", 0))
        if effect:
            report.value(f"{name}: done twice", course.doubled, unit="", target=Target("=", 0))
        else:
            redone = (course.lines - tasks) / max(1, course.kills)
            report.value(
                f"{name}: redone a kill (window {window})", redone, unit="tasks",
                target=Target("<=", window),
            )  # fmt: skip
        report.value(
            f"{name}: resumes after, median", statistics.median(course.resumed_s), unit="s",
            target=Target("<=", 2),
        )  # fmt: skip
        report.value(f"{name}: resumes after, longest", max(course.resumed_s), unit="s")
        report.value(f"{name}: rate, kills included", tasks / course.took_s, unit="tasks/s")


def measured(tasks: int, kills: int, *, effect: bool, victim: int = 0) -> Course:
    """A job between three daemons, one of which is killed.

    Args:
        tasks: rows, a task each.
        kills: how often.
        effect: whether each may happen once only.
        victim: 0 the coordinator, else a worker.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="covey-ledger-")))
        ledger = stack.enter_context(Ledger(folder / "ledger.jsonl"))
        boss = stack.enter_context(DaemonUnderTest(**NO_MODEL, COVEY_P2P__DRAW_PORT="true"))
        workers = [
            stack.enter_context(DaemonUnderTest(**NO_MODEL, COVEY_P2P__DRAW_PORT="true"))
            for _ in range(2)
        ]
        for worker in workers:
            with (worker.home / "config.toml").open("a") as file:
                file.write(config(folder / "program", effect=effect, slots=SLOTS))
            restart(worker)
            join(boss, worker)
        settle(boss, *workers)
        # Where the others are stands on the disk two seconds after they are known.
        time.sleep(3)
        return _course([boss, *workers], ledger, Course(tasks), kills, effect=effect, victim=victim)


def restart(node: DaemonUnderTest, *, kill: bool = False) -> None:
    """Have a daemon end and begin again."""
    if kill:
        os.kill(node.pid, signal.SIGKILL)
        _await_end(node.pid)
    else:
        node.covey("down", "--now")
    node.start()


def _await_end(pid: int) -> None:
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(POLL_S)


def _course(
    nodes: list[DaemonUnderTest], ledger: Ledger, course: Course, kills: int, *, effect: bool,
    victim: int,
) -> Course:  # fmt: skip
    rng = random.Random(SEED)
    boss, tasks = nodes[0], course.tasks
    began = time.perf_counter()
    job = _submit(boss, ledger, tasks, effect=effect)
    share = tasks // (kills + 2)
    for number in range(kills):
        # While a worker is away the other goes on: its kills are at numbers of lines in all.
        since = share * number if victim else ledger.lines
        _await_lines(ledger, since + rng.randint(1, share))
        restart(nodes[victim], kill=True)
        course.kills += 1
        if not victim:
            _resumed(course, ledger)
    client = BlockingClient(boss.socket_path)
    status = _await_end_of_job(client, job)
    client.close()
    course.took_s = time.perf_counter() - began
    states = cast("dict[str, int]", status["by_state"])
    course.ok, course.unknown = states["ok"], states["missing"]
    course.lines, course.doubled = ledger.lines, ledger.doubled
    return course


def _submit(boss: DaemonUnderTest, ledger: Ledger, tasks: int, *, effect: bool) -> str:
    spec: Json = {
        "handler": HANDLER, "rows": [{"n": n} for n in range(tasks)],
        "params": {"port": ledger.port}, "batch": {"kind": "per_row"}, "cache": "off",
        "effect": "once" if effect else "none",
    }  # fmt: skip
    client = BlockingClient(boss.socket_path)
    answer = cast("dict[str, Json]", client.call("job.submit", {"spec": spec}))
    client.close()
    return str(answer["job_id"])


def _resumed(course: Course, ledger: Ledger) -> None:
    """Wait for the first line after a restart; workers may have gone on without it until then."""
    began, before = time.perf_counter(), ledger.lines
    _await_lines(ledger, before + 1)
    course.resumed_s.append(ledger.times[before] - began)


def _await_lines(ledger: Ledger, count: int) -> None:
    end = time.perf_counter() + END_S
    while ledger.lines < count:
        if time.perf_counter() > end:
            raise RuntimeError(f"no task ran for {END_S:.0f} s")
        time.sleep(POLL_S)


def _await_end_of_job(client: BlockingClient, job: str) -> dict[str, Json]:
    end = time.perf_counter() + END_S
    while True:
        status = cast("dict[str, Json]", client.call("job.status", {"id": job}))
        if status["state"] in {"done", "failed", "expired", "cancelled"}:
            return status
        if time.perf_counter() > end:
            raise RuntimeError(f"the job is still {status['state']}")
        time.sleep(0.2)
