"""Rows of the mesh about blobs: four shaped peers and one, a small blob, a line without a limit."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import subject
from benchmarks.processes import Subject, python
from benchmarks.report import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.report import Options, Report

LARGE_KIB = 64 * 1024
SMALL_KIB = 256
RATE = 8_000_000
"""Bytes a second of a shaped line: far below what the machine carries, so that lines decide."""


def run(options: Options, report: Report) -> None:
    """Measure."""
    rounds = 1 if options.quick else 3
    four = seconds([(LARGE_KIB, RATE)] * 4, rounds)
    one = seconds([(LARGE_KIB, RATE)], rounds)
    report.value(
        "64 MiB blob from 4 shaped peers, over one",
        one / four,
        unit="x",
        yardstick=f"one shaped peer, s = {one:.3g}",
        target=Target(">=", 2.5),
    )
    small = seconds([(SMALL_KIB, 0), (0, 0), (0, 0), (0, 0)], rounds * 10)
    report.value(
        "256 KiB blob, held by one of 4 peers, p50",
        small * 1e3,
        unit="ms",
        yardstick="Lattica 1.0.21, not in this run, ms = 890",
        target=Target("<=", 20),
    )
    report.value(
        "64 MiB blob from one peer, no limit",
        LARGE_KIB / 1024 / seconds([(LARGE_KIB, 0)], rounds * 3),
        unit="MiB/s",
        target=Target(">=", 100),
    )


def seconds(sources: Sequence[tuple[int, int]], rounds: int) -> float:
    """Median seconds of a fetch from sources of (KiB they have, bytes a second of their line)."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = [python(), subject("covey_blobs")]
        reader = stack.enter_context(Subject([*script, "client", str(folder / "reader")]))
        ids = set()
        for number, (kib, rate) in enumerate(sources):
            words = [str(folder / str(number)), str(kib), str(rate)]
            source = stack.enter_context(Subject([*script, "serve", *words]))
            peer, address, blob = source.ready.split()
            reader.ask("connect", peer, address)
            ids.add(blob)
        (wanted,) = ids - {"-"}
        reader.ask("fetch", wanted)  # warm up: byte code, page cache, windows
        return statistics.median(reader.ask("fetch", wanted)["seconds"] for _ in range(rounds))
