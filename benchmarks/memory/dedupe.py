"""P11: how well the product's likeness tells duplicates from others, on published record pairs.

The threshold with the best F1 on `valid` is taken to `test`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from benchmarks.memory import data
from benchmarks.report import Target
from memory.relations.dedupe import Sketch, likeness, sketch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.report import Options, Report

SETS: Final = (("Abt-Buy", "abt_buy_pairs", 60.0), ("DBLP-ACM", "dblp_acm_pairs", 95.0))

Scored = list[tuple[float, bool]]
"""(likeness, whether the pair is the same thing)."""


def dedupe(options: Options, report: Report) -> None:
    """F1 on the test part of each set."""
    for name, pattern, floor in SETS:
        scored: dict[str, Scored] = {"train": [], "valid": [], "test": []}
        for row in data.rows(options.data, pattern):
            like = likeness(_sketch(_text(row["left"])), _sketch(_text(row["right"])))
            scored[row["split"]].append((like, bool(row["label"])))
        best = max(
            sorted({like for like, _ in scored["valid"]}), key=lambda t: f1(scored["valid"], t)
        )
        report.value(
            f"near-duplicates (P11), {name} test F1",
            f1(scored["test"], best),
            unit="%",
            target=Target(">=", floor),
        )


def _text(record: dict[str, Any]) -> str:
    return " ".join(value for value in record.values() if value)


@lru_cache(maxsize=50_000)
def _sketch(text: str) -> Sketch:
    return sketch(text)


def f1(scored: Sequence[tuple[float, bool]], threshold: float) -> float:
    """F1 of calling a pair the same from a likeness on, percent."""
    right = sum(same for like, same in scored if like >= threshold)
    called = sum(like >= threshold for like, _ in scored)
    there = sum(same for _, same in scored)
    return 200 * right / max(1, called + there)
