"""Rounds: kernels, rules, protocols and hand-over beside the named peers.

    python -m benchmarks rounds [--quick] [--only PART]

Every part is a module of `benchmarks.round_parts` with `run(options, report)`; its docstring says
how it measures. Settings are those of docs/specs/rounds.md.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

PARTS: Final[tuple[str, ...]] = (
    "kernels",
    "byzantine",
    "topology",
    "deadlines",
    "outer",
    "handoff",
    "masks",
    "audit",
    "topk",
)
"""Modules of `benchmarks.round_parts`, in the order in which they run."""


def run(options: Options, report: Report) -> None:
    """Measure, with one thread of linear algebra: on small matrices more of them only wait."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is first imported
    for part in PARTS:
        if options.wants(part):
            importlib.import_module(f"benchmarks.round_parts.{part}").run(options, report)
