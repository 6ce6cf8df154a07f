"""What is left in a daemon's files of a thousand erased texts, half erased under a reader."""

from __future__ import annotations

import random
import string
import time
from typing import TYPE_CHECKING, Final, cast

import apsw

from benchmarks.memory.agents import LIFTED
from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.report import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.node import Json
    from benchmarks.report import Options, Report

SEED: Final = 11
BATCH: Final = 250
"""Notes stored, and ids erased, in a call."""
LETTERS: Final = 14
"""Of the words that stand in one text alone."""
CORE: Final = slice(4, 10)
"""Of a word that is looked for too: an index keeps of a word what differs from the one before, and
of its end what the stemmer leaves. Six random letters are in a kept word by chance 5 times in
8,000; those are not looked for."""
WAIT_S: Final = 60.0


def erasure(options: Options, report: Report) -> None:
    """Erase 1,000 of 2,000 texts, half of those while another process reads, then search."""
    count = 200 if options.quick else 1000
    rng = random.Random(SEED)
    words = [_words(rng) for _ in range(2 * count)]
    with DaemonUnderTest(**LIFTED) as node:
        client = BlockingClient(node.socket_path)
        ids = _store(client, words)
        state = node.home / "state"
        start = time.perf_counter()
        _erase(client, ids[: count // 2])
        took_ms = 1e3 * (time.perf_counter() - start) / (count // 2)
        reader = apsw.Connection(str(state / "covey.db"))
        reader.execute("BEGIN").fetchall()
        reader.execute("SELECT count(*) FROM chunk").fetchall()
        states = _erase(client, ids[count // 2 : count])
        reader.execute("COMMIT").fetchall()
        reader.close()
        _wait_clean(state)
        left = _left(state, words[:count], words[count:])
        kept = _left(state, words[count:], ())
        client.close()
    report.value(
        f"bytes of {count:,} erased texts left in any file, half erased under an open reader",
        left,
        unit="bytes",
        target=Target("<=", 0),
    )
    report.value(
        "calls answered `partial` while the reader was open",
        100.0 * states.count("partial") / len(states),
        unit="%",
    )
    report.value("control: the same search, bytes of as many kept texts", kept, unit="bytes")
    report.value("erasing, a text, search of all files included", took_ms, unit="ms")


def _words(rng: random.Random) -> list[str]:
    return ["".join(rng.choices(string.ascii_lowercase, k=LETTERS)) for _ in range(8)]


def _store(client: BlockingClient, words: Sequence[Sequence[str]]) -> list[str]:
    ids: list[str] = []
    for at in range(0, len(words), BATCH):
        notes = cast("Json", [{"text": " ".join(one)} for one in words[at : at + BATCH]])
        answer = client.call("memory.remember", {"notes": notes})
        ids += [str(row["id"]) for row in cast("list[dict[str, Json]]", answer)]
    return ids


def _erase(client: BlockingClient, ids: Sequence[str]) -> list[str]:
    """States of the answers."""
    states = []
    for at in range(0, len(ids), BATCH):
        answer = client.call("memory.erase", {"ids": cast("Json", list(ids[at : at + BATCH]))})
        states.append(str(cast("dict[str, Json]", answer)["state"]))
    return states


def _wait_clean(state: Path) -> None:
    """Until the daemon has finished behind the reader, as its own rows say."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        connection = apsw.Connection(str(state / "covey.db"), flags=apsw.SQLITE_OPEN_READONLY)
        waiting = connection.execute("SELECT count(*) FROM erasing").get
        connection.close()
        if not waiting and not (state / "covey.db-wal").stat().st_size:
            return
        time.sleep(0.2)


def _left(state: Path, words: Sequence[Sequence[str]], living: Sequence[Sequence[str]]) -> int:
    """Bytes of these texts in all files below the folder: by words and by what is inside them."""
    found = 0
    size = CORE.stop - CORE.start
    others = {
        text[i : i + size] for text in map(" ".join, living) for i in range(len(text) - size + 1)
    }
    for path in sorted(state.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        places = {data[i : i + size] for i in range(len(data) - size + 1)}
        for text in words:
            for word in text:
                if word[CORE] not in others and word[CORE].encode() in places:
                    found += LETTERS if word.encode() in data else size
    return found
