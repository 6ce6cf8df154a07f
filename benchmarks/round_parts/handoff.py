"""Updates handed over between processes of a machine: the host pool beside gRPC's unary calls.

A trainer's process holds 25,000,000 float32 and hands them to another, which adds them to a sum. A
sample is some hand-overs in a row; its value is CPU time, user and system, of all threads of both
processes by `getrusage`, for one hand-over. Samples take turns (A B B A). Ours checks every element
before it adds; gRPC's server only adds. Updates have one weight, as those of like trainers have, so
neither multiplies. Memory is warm on both sides. What memory itself allows is the row of the bare
addition: reading 200 MB and writing 100 MB, which gRPC's time hardly depends on and ours is.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from benchmarks import peers
from benchmarks.processes import ROOT, Subject
from benchmarks.report import Target, alternate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.report import Options, Report

ITEMS: Final = 25_000_000
IN_A_ROW, IN_A_ROW_QUICK = 4, 2
TRAINERS: Final = 8
GRPC_LESS: Final = 15.0
EIGHT_CPU_MS: Final = 150.0
ENV: Final = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
WAYS: Final[dict[Literal["place", "copy"], str]] = {
    "place": "written in place",
    "copy": "with one copy",
}


def run(options: Options, report: Report) -> None:
    """Measure."""
    count = IN_A_ROW_QUICK if options.quick else IN_A_ROW
    try:
        python = peers.python_of(*peers.GRPC)
    except peers.PeerMissing as missing:
        report.missing("hand-over beside gRPC", str(missing))
    else:
        for way, words in WAYS.items():
            with ExitStack() as stack:
                ours = _sampler(*_pool(stack, way, 1), count)
                theirs = _sampler(*_grpc(stack, python), count)
                report.paired(
                    f"100 MB handed over and folded, {words}, CPU of both",
                    alternate(ours, theirs, options.rounds),
                    unit="ms",
                    yardstick="gRPC unary",
                    target=Target("<=", 1 / GRPC_LESS),
                )
    report.value("100 MB added to a sum of this process, nothing else", _bare_ms(), unit="ms")
    for way, words in WAYS.items():
        with ExitStack() as stack:
            ours = _sampler(*_pool(stack, way, TRAINERS), 1)
            report.value(
                f"{TRAINERS} trainers x 100 MB at once, {words}, CPU of all",
                min(ours() for _ in range(options.rounds)) * TRAINERS,
                unit="ms",
                target=Target("<=", EIGHT_CPU_MS),
                yardstick="by getrusage, least of the rounds",
            )


def _bare_ms() -> float:
    total, row = np.zeros(ITEMS, np.float32), np.ones(ITEMS, np.float32)
    took = []
    for _ in range(9):
        before = time.process_time()
        np.add(total, row, out=total)
        took.append(time.process_time() - before)
    return min(took) * 1000


def _pool(stack: ExitStack, way: str, trainers: int) -> tuple[Subject, Sequence[Subject]]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    argv = [sys.executable, peers.subject("covey_handoff")]
    words = [str(ITEMS), str(folder / "pool.sock")]
    server = stack.enter_context(Subject([*argv, "serve", *words], ENV))
    clients = [
        stack.enter_context(Subject([*argv, "client", *words, way], ENV)) for _ in range(trainers)
    ]
    return server, clients


def _grpc(stack: ExitStack, python: str) -> tuple[Subject, Sequence[Subject]]:
    argv = [python, peers.subject("grpc_handoff")]
    server = stack.enter_context(Subject([*argv, "serve", str(ITEMS)], ENV))
    client = Subject([*argv, "client", str(ITEMS), server.ready], ENV)
    return server, [stack.enter_context(client)]


def _sampler(server: Subject, clients: Sequence[Subject], count: int) -> Callable[[], float]:
    """Milliseconds of CPU of all processes, for one hand-over."""

    def sample() -> float:
        before = server.ask("cpu")["cpu_s"]
        with ThreadPoolExecutor(len(clients)) as threads:
            used = sum(threads.map(lambda client: client.ask(count)["cpu_s"], clients))
        used += server.ask("cpu")["cpu_s"] - before
        return used * 1000 / (count * len(clients))

    return sample
