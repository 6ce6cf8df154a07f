"""Memory: durable writes a second, and lexical recall beside a bare FTS5 query on the same rows."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import trio

from benchmarks.needles import corpus, queries
from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.report import Paired, Target, alternate, percentile
from daemon.client import LocalClient

if TYPE_CHECKING:
    from benchmarks.report import Options, Report

NOTES = 10_000
WRITERS = 32
QUERIES = 100
BATCH = 250

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of to in on at for and or but is are was were be been being am do does did what"
        " which who whom whose when where why how with from by as about into than then so if not",
    )
)


def remember(options: Options, report: Report) -> None:
    """Writes a second of 32 writers, each waiting for its durable acknowledgement."""
    each = 60 if options.quick else 200
    with DaemonUnderTest() as node:
        rates = [
            trio.run(_write_rate, node.socket_path, each, number)
            for number in range(options.rounds)
        ]
    report.value(
        "durable remember, 32 writers over the socket",
        percentile(rates, 0.5),
        unit="writes/s",
        yardstick="same rows, bare APSW, one FULL transaction each, writes/s",
        yardstick_value=_bare_write_rate(1000),
        target=Target(">=", 2000),
    )


async def _write_rate(path: str, each: int, number: int) -> float:
    notes = corpus(WRITERS * each, seed=1000 + number)

    async def writer(client: LocalClient, index: int) -> None:
        for note in notes[index::WRITERS]:
            await client.call("memory.remember", {"text": f"{note.text} ({number})"})

    clients = [await LocalClient.connect(path) for _ in range(WRITERS)]
    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for index, client in enumerate(clients):
            nursery.start_soon(writer, client, index)
    seconds = time.perf_counter() - start
    for client in clients:
        await client.aclose()
    return len(notes) / seconds


def _bare_write_rate(count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        database = _bare_database(Path(folder) / "bare.db")
        database.execute("pragma journal_mode=wal").fetchall()
        database.execute("pragma synchronous=full")
        start = time.perf_counter()
        for note in corpus(count, seed=5):
            with database:
                database.execute("insert into f(text) values(?)", (note.text,))
        rate = count / (time.perf_counter() - start)
        database.close()
    return rate


def recall(options: Options, report: Report) -> None:
    """p50 of a recall over the socket beside the FTS5 query alone, and how often it is right."""
    notes = corpus(NOTES)
    asked = queries(notes, QUERIES)
    with DaemonUnderTest() as node, tempfile.TemporaryDirectory() as folder:
        client = BlockingClient(node.socket_path)
        for at in range(0, NOTES, BATCH):
            batch = [{"text": note.text} for note in notes[at : at + BATCH]]
            client.call("memory.remember", {"notes": batch})
        bare = _bare_database(Path(folder) / "bare.db")
        with bare:
            bare.executemany("insert into f(text) values(?)", [(note.text,) for note in notes])

        def ours() -> float:
            return _p50_ms([lambda q=q: _ask(client, q) for q, _ in asked])

        def theirs() -> float:
            return _p50_ms([lambda q=q: _match(bare, q) for q, _ in asked])

        ours(), theirs()  # warm up
        pair: Paired = alternate(ours, theirs, options.rounds)
        first = sum(_ask(client, query)[:1] == [text] for query, text in asked) / len(asked)
        client.close()
        bare.close()
    report.paired(
        "lexical recall over the socket, 10,000 memories, p50",
        pair,
        unit="ms",
        yardstick="bare FTS5 query in process",
        target=Target("<=", 3),
    )
    report.value("hit@1 on needles, 10,000 memories", first, unit="", target=Target(">=", 0.99))


def _p50_ms(calls: list) -> float:  # type: ignore[type-arg]
    took = []
    for call in calls:
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return percentile(took, 0.5) * 1e3


def _ask(client: BlockingClient, query: str) -> list[str | None]:
    answer = client.call("memory.recall", {"query": query, "limit": 10})
    assert isinstance(answer, dict)
    return [hit["text"] for hit in answer["hits"]]  # type: ignore[index,union-attr,call-overload,misc]


def _bare_database(path: Path) -> apsw.Connection:
    database = apsw.Connection(str(path))
    database.execute("create virtual table f using fts5(text, tokenize='porter unicode61')")
    return database


def _match(database: apsw.Connection, query: str) -> list[str]:
    words = [w for w in re.findall(r"[a-z0-9]+", query.lower()) if w not in STOP_WORDS]
    expression = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
    rows = database.execute(
        "select text from f where f match ? order by bm25(f) limit 10", (expression,)
    )
    return [str(row[0]) for row in rows]
