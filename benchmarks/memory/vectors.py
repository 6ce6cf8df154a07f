"""The vector index by itself: how much of exact search it finds, and what a vector costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from benchmarks.memory import data
from benchmarks.report import Target, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.report import Options, Report

TEXTS: Final = 30_000
TEXTS_QUICK: Final = 3_000
QUESTIONS: Final = 200
BEST: Final = 20
TOGETHER: Final = 64


def vectors(options: Options, report: Report) -> None:
    """Recall@20 of exact search over real texts, and the times of its parts."""
    import numpy as np

    from memory.embedding.embedder import MiniLm
    from memory.embedding.segments import quantise
    from memory.embedding.vecrows import VectorRow
    from memory.embedding.vectors import VectorIndex
    from memory.tiers import MAIN

    texts = data.short_texts(options.data, TEXTS_QUICK if options.quick else TEXTS)
    start = time.perf_counter()
    model = MiniLm()
    report.value("loading the embedder", time.perf_counter() - start, unit="s")
    start = time.perf_counter()
    batches = [texts[at : at + TOGETHER] for at in range(0, len(texts), TOGETHER)]
    all_vectors = np.concatenate([model.encode(batch, query=False) for batch in batches])
    rate = len(texts) / (time.perf_counter() - start)
    report.value("short texts embedded, one thread", rate, unit="texts/s")

    step = len(texts) // QUESTIONS
    asked = all_vectors[::step][:QUESTIONS]
    kept = np.delete(all_vectors, np.s_[::step], axis=0)
    codes, scales = quantise(kept)
    index = VectorIndex(model.id, model.dim)
    index.add(
        [
            VectorRow(at + 1, at + 1, 1, MAIN, float(scales[at]), codes[at].tobytes())
            for at in range(len(kept))
        ]
    )
    found = 0
    took = []
    for vector in asked:
        exact = np.argsort(-(kept @ vector), kind="stable")[:BEST] + 1
        start = time.perf_counter()
        dense = index.search(None, vector, scopes=None, tier=MAIN, chunks=300)  # type: ignore[arg-type]
        took.append(1e3 * (time.perf_counter() - start))
        found += len(set(exact.tolist()) & {item.chunk for item in dense[:BEST]})
    report.value(
        f"recall@20 of exact search, {len(kept):,} real texts",
        found / (BEST * len(asked)),
        target=Target(">=", 0.95),
    )
    report.value(f"search of {len(kept):,} vectors, p50", percentile(took, 0.5), unit="ms")
    questions = [f"how do I {text.split(':')[0].lower()}" for text in texts[:QUESTIONS]]
    alone = [_timed(lambda q=q: model.encode([q], query=True)) for q in questions]  # type: ignore[misc]
    report.value("vector of a question, p50", percentile(alone, 0.5), unit="ms")


def _timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)
