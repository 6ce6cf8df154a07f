"""The memory: what it finds, whom it trusts, how fast it is and what it leaves behind.

Parts by name for `--only`; one that needs evaluation data or a peer which is not here reports its
rows as not measured.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from benchmarks.memory.data import DataMissing
from benchmarks.peers import PeerMissing

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

PARTS: Final = (
    ("plain", "plain_search"),
    ("remember", "lexical"),
    ("recall", "lexical"),
    ("quality", "quality"),
    ("vectors", "vectors"),
    ("poison", "poison"),
    ("contradiction", "conflicts"),
    ("dedupe", "dedupe"),
    ("updates", "conflicts"),
    ("trust", "trust"),
    ("turning", "turning"),
    ("scale", "scale"),
    ("agents", "agents"),
    ("resident", "scale"),
    ("erasure", "erasure"),
)
"""(part, function) in order: `part` is the module's function and the name for `--only`."""


def run(options: Options, report: Report) -> None:
    """Measure the parts asked for."""
    for part, module in PARTS:
        if not options.wants(part):
            continue
        measure = getattr(importlib.import_module(f"benchmarks.memory.{module}"), part)
        try:
            measure(options, report)
        except (DataMissing, PeerMissing) as missing:
            report.missing(part, str(missing))
