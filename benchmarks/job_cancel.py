"""A job is cancelled while a thousand of its tasks are at a worker, and programs of it spin.

    python -m benchmarks jobs --only cancel [--quick]

Two daemons. The worker has a thousand slots, and as many processes of an operator's function that
never returns as a handler may have; the other tasks wait for one of those inside their slots.
Measured from the client's
`job.cancel` until the worker has no child process of the function left, a few times. While they
spin, the worker's loop is asked for a word again and again: how long the answer takes, less what it
takes at rest, is an upper bound of how late the loop is.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.report import Target, percentile
from benchmarks.two_daemons import NO_MODEL, join, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.node import Json
    from benchmarks.report import Options, Report

TASKS: Final = 1_000
SPINNERS: Final = 64
"""Processes at once: the most that a handler may have (`slots` of `[jobs.handlers]`)."""
ROUNDS: Final = 10
ROUNDS_QUICK: Final = 3
WARM_TASKS: Final = 5_000
"""So many clean answers until a worker is trusted with a thousand tasks at once."""
PROBES: Final = 300
WAIT_S: Final = 120.0
POLL_S: Final = 0.002
PROGRAM: Final = """
def spin(rows, task):
    while True:
        pass
"""


def run(options: Options, report: Report) -> None:
    """Measure."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="covey-spin-")))
        boss = stack.enter_context(DaemonUnderTest(**NO_MODEL))
        worker = stack.enter_context(DaemonUnderTest(**NO_MODEL))
        (folder / "spinning.py").write_text(PROGRAM)
        with (worker.home / "config.toml").open("a") as file:
            file.write(_config(folder))
        worker.covey("down", "--now")
        worker.start()
        join(boss, worker)
        settle(boss, worker)
        client, probe = BlockingClient(boss.socket_path), BlockingClient(worker.socket_path)
        _warm(client)
        rest = _answers_ms(probe)
        stopped_s, met, spinning = [], [], []
        for _ in range(ROUNDS_QUICK if options.quick else ROUNDS):
            job = _spinning_job(client, worker)
            spinning += _answers_ms(probe)
            took_s, tasks = _cancelled(client, worker, job)
            stopped_s.append(took_s)
            met.append(tasks)
        client.close()
        probe.close()
    waiting = TASKS - SPINNERS
    name = f"cancel of {TASKS:,} tasks at a worker: {SPINNERS} spin in processes, {waiting} wait"
    report.value(
        f"{name}: last one stopped, p99", percentile(stopped_s, 0.99), unit="s",
        target=Target("<=", 1),
    )  # fmt: skip
    report.value(f"{name}: last one stopped, median", percentile(stopped_s, 0.5), unit="s")
    report.value("tasks at the worker then, least", min(met), unit="", target=Target("=", TASKS))
    late = max(0.0, percentile(spinning, 0.99) - percentile(rest, 0.5))
    report.value(
        "the worker's loop while they spin: lateness of an answer, p99", late, unit="ms",
        target=Target("<=", 20),
    )  # fmt: skip
    report.value("the worker's answer at rest, p50", percentile(rest, 0.5), unit="ms")


def _config(folder: Path) -> str:
    return (
        f'\n[jobs]\nslots = {TASKS}\n\n[jobs.handlers."spin@1"]\nrun = "spinning:spin"\n'
        f'read = ["{folder}"]\nslots = {SPINNERS}\nwall_s = 3600.0\n'
    )


def _submit(client: BlockingClient, handler: str, count: int) -> str:
    spec: Json = {
        "handler": handler, "rows": [{"n": n} for n in range(count)], "cache": "off",
        "batch": {"kind": "per_row"}, "hedge": False,
    }  # fmt: skip
    answer = cast("dict[str, Json]", client.call("job.submit", {"spec": spec}))
    return str(answer["job_id"])


def _status(client: BlockingClient, job: str) -> dict[str, Json]:
    return cast("dict[str, Json]", client.call("job.status", {"id": job}))


def _warm(client: BlockingClient) -> None:
    job = _submit(client, "echo@1", WARM_TASKS)
    _until(lambda: _status(client, job)["state"] == "done")


def _spinning_job(client: BlockingClient, worker: DaemonUnderTest) -> str:
    """A job whose tasks went to the worker, with as many processes as there may be."""
    job = _submit(client, "spin@1", TASKS)
    _until(lambda: len(_spinners(worker)) >= SPINNERS)
    return job


def _cancelled(client: BlockingClient, worker: DaemonUnderTest, job: str) -> tuple[float, int]:
    """Seconds from the order until no process of the function is left; how many tasks it met."""
    began = time.perf_counter()
    told = cast("dict[str, int]", client.call("job.cancel", {"id": job}))
    _until(lambda: not _spinners(worker))
    return time.perf_counter() - began, told["stopped"] + told["never_started"]


def _answers_ms(probe: BlockingClient) -> list[float]:
    found = []
    for _ in range(PROBES):
        began = time.perf_counter()
        probe.call("rpc.ping", {})
        found.append((time.perf_counter() - began) * 1000)
        time.sleep(POLL_S)
    return found


def _spinners(worker: DaemonUnderTest) -> list[int]:
    """Processes that run the function for a worker, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended while we looked
            if b"spinning:spin" in line and str(worker.pid).encode() in line:
                found.append(int(entry.name))
    return found


def _until(done: Callable[[], bool]) -> None:
    """Wait until something is so.

    Raises:
        RuntimeError: it never was.
    """
    end = time.perf_counter() + WAIT_S
    while not done():
        if time.perf_counter() > end:
            raise RuntimeError(f"not so after {WAIT_S:.0f} s")
        time.sleep(POLL_S)
