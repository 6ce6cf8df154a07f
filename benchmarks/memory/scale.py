"""Recall and resident memory as the memory grows, through a daemon, with the embedder."""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING, Final

import apsw

from benchmarks.memory import data
from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.processes import rss_mib
from benchmarks.report import Target, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.report import Options, Report

SIZES: Final = {1_000: (4, 6), 10_000: (5, 8), 100_000: (12, 22)}
"""Memories, and the p50 and p95 in ms to reach."""

QUERIES: Final = 200
WARM: Final = 20
BATCH: Final = 250
WAIT_S: Final = 1500
MIB: Final = 2**20 / 1e6


def scale(options: Options, report: Report) -> None:
    """p50 and p95 of a recall with MiniLM over real short texts, beside FTS5 alone."""
    sizes = [size for size in SIZES if size <= 10_000 or not options.quick]
    texts = data.short_texts(options.data, max(sizes))
    with DaemonUnderTest(COVEY_MEMORY__EMBEDDER="minilm") as node:
        client = BlockingClient(node.socket_path)
        bare = _bare()
        have = 0
        for size in sizes:
            _fill(client, texts[have:size])
            with bare:
                bare.executemany("INSERT INTO f(x) VALUES (?)", [(t,) for t in texts[have:size]])
            have = size
            _wait_for_vectors(client)
            asked = _questions(texts[:size])
            theirs = [_timed(lambda q=q: _match(bare, q)) for q in asked][WARM:]
            ours = [_timed(lambda q=q: _ask(client, q)) for q in asked][WARM:]
            for name, share, bound in (("p50", 0.5, SIZES[size][0]), ("p95", 0.95, SIZES[size][1])):
                report.value(
                    f"recall with MiniLM, {size:,} memories, {name}",
                    percentile(ours, share),
                    unit="ms",
                    yardstick="bare FTS5, ms",
                    yardstick_value=percentile(theirs, share),
                    target=Target("<=", bound),
                )
        if 100_000 in sizes:
            report.value(
                "resident memory with the model and 100,000 vectors",
                rss_mib(node.pid) * MIB,
                unit="MB",
                target=Target("<=", 250),
            )
        client.close()
        bare.close()


def resident(options: Options, report: Report) -> None:
    """What 10,000 memories without an embedder add to a bare daemon's resident memory."""
    with DaemonUnderTest(COVEY_MEMORY__EMBEDDER="none") as node:
        client = BlockingClient(node.socket_path)
        before = rss_mib(node.pid)
        texts = data.short_texts(options.data, 10_000)
        _fill(client, texts)
        for question in _questions(texts):
            _ask(client, question)
        report.value(
            "resident memory above the bare daemon, 10,000 memories, lexical",
            (rss_mib(node.pid) - before) * MIB,
            unit="MB",
            target=Target("<=", 60),
        )
        client.close()


def _fill(client: BlockingClient, texts: Sequence[str]) -> None:
    for at in range(0, len(texts), BATCH):
        notes = [{"text": text} for text in texts[at : at + BATCH]]
        client.call("memory.remember", {"notes": notes})  # type: ignore[dict-item]


def _wait_for_vectors(client: BlockingClient) -> None:
    """Until the background has embedded everything.

    Raises:
        RuntimeError: it did not within the time.
    """
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        stats = client.call("memory.stats", {})
        assert isinstance(stats, dict)
        embedding = stats.get("embedding")
        assert isinstance(embedding, dict), "this Covey does not report its embedding backlog"
        if not embedding["backlog"]:
            return
        time.sleep(0.5)
    raise RuntimeError(f"not all vectors after {WAIT_S} s")


def _questions(texts: Sequence[str]) -> list[str]:
    """Six words of one text each, in their order."""
    rng = random.Random(9)
    asked = []
    while len(asked) < QUERIES + WARM:
        words = re.findall(r"[A-Za-z]{3,}", rng.choice(texts))
        if len(words) >= 6:
            kept = sorted(rng.sample(range(len(words)), 6))
            asked.append(" ".join(words[at] for at in kept))
    return asked


def _ask(client: BlockingClient, question: str) -> None:
    client.call("memory.recall", {"query": question, "limit": 8})


def _timed(call: object) -> float:
    start = time.perf_counter()
    call()  # type: ignore[operator]
    return 1e3 * (time.perf_counter() - start)


def _bare() -> apsw.Connection:
    database = apsw.Connection(":memory:")
    database.execute("CREATE VIRTUAL TABLE f USING fts5(x, tokenize='porter unicode61')")
    return database


def _match(database: apsw.Connection, question: str) -> None:
    database.execute(
        "SELECT rowid, x FROM f WHERE f MATCH ? ORDER BY bm25(f) LIMIT 8",
        (data.fts_query(question),),
    ).fetchall()
