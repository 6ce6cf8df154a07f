"""Replication: what comparing sets costs, what two writers lose, how fast a newcomer has all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import ranges_rows, replication_takeover, replication_writers

if TYPE_CHECKING:
    from benchmarks.report import Options, Report


def run(options: Options, report: Report) -> None:
    """Measure what was asked for."""
    for part, rows in (
        ("ranges", ranges_rows.run),
        ("writers", replication_writers.run),
        ("takeover", replication_takeover.run),
    ):
        if options.wants(part):
            rows(options, report)
