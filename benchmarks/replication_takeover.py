"""A fresh machine takes over everything, between two real daemons, and is asked meanwhile."""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.needles import corpus, queries
from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.processes import cpu_s
from benchmarks.report import Target, percentile
from benchmarks.two_daemons import NO_MODEL, POLL_S, WAIT_S, durable_records, settle, ticket

if TYPE_CHECKING:
    from benchmarks.needles import Needle
    from benchmarks.report import Options, Report

MEMORIES = 100_000
MEMORIES_QUICK = 10_000
TAKEOVER_S = 60.0
VALUES = 20_000
VALUES_QUICK = 5_000
RECORDS_PER_S = 3_000
BATCH = 250
IN_FLIGHT = 32
SIGNATURES = 5_000
HEADER_BYTES = 195
"""Of a usual data record (docs/specs/record.md)."""
ASK_EVERY_S = 0.5
CHECKED = 100
"""Notes that are asked for once all are there."""


class Transfer(NamedTuple):
    """What bringing all records to a newcomer took.

    Attributes:
        records: how many.
        seconds: from its `join` until everything was on its disk.
        cpu_s: the newcomer's CPU time meanwhile, searches included.
        verify_rate: signatures a second this machine checked just before and just after, mean.
        verify_cpu_s: CPU time of one of them.
    """

    records: int
    seconds: float
    cpu_s: float
    verify_rate: float
    verify_cpu_s: float


class Takeover(NamedTuple):
    """A transfer of memories.

    Attributes:
        transfer: what it took.
        wire_bytes: carried a record.
        asked_s: how long each answer took that a search on the newcomer got meanwhile.
        found: share of notes that were found once all were there.
    """

    transfer: Transfer
    wire_bytes: float
    asked_s: list[float]
    found: float


def run(options: Options, report: Report) -> None:
    """Measure."""
    _memories(options, report)
    _values(options, report)


def _memories(options: Options, report: Report) -> None:
    count = MEMORIES_QUICK if options.quick else MEMORIES
    notes = corpus(count)
    done = _take_over_memories(notes)
    quick = " (quick set)" if options.quick else ""
    bound = TAKEOVER_S * count / MEMORIES
    name = f"a fresh machine takes over {count:,} memories{quick}"
    seconds = done.transfer.seconds
    report.value(f"{name}: durable, searchable", seconds, unit="s", target=Target("<=", bound))
    _rate_rows(
        report,
        "records a second to a newcomer, two daemons, durable and searchable",
        done.transfer,
        None,  # the bound on the seconds is theirs: text costs a scan and an index
    )
    report.value(
        f"{name}: searches answered meanwhile",
        len(done.asked_s),
        unit="answers",
        target=Target(">=", 1),
    )
    if done.asked_s:
        report.value(
            f"{name}: a search meanwhile, p50", statistics.median(done.asked_s) * 1e3, unit="ms"
        )
        report.value(
            f"{name}: a search meanwhile, p95", percentile(done.asked_s, 0.95) * 1e3, unit="ms"
        )
    report.value(
        f"{name}: of {CHECKED} notes asked for at the end, found",
        done.found,
        unit="of 1",
        target=Target(">=", 0.99),
    )
    report.value("bytes carried a record, all frames", done.wire_bytes, unit="bytes/record")


def _take_over_memories(notes: list[Needle]) -> Takeover:
    with DaemonUnderTest(**NO_MODEL) as old, DaemonUnderTest(**NO_MODEL) as new:
        giver = BlockingClient(old.socket_path)
        for at in range(0, len(notes), BATCH):
            batch = [{"text": note.text} for note in notes[at : at + BATCH]]
            giver.call("memory.remember", {"notes": batch})  # type: ignore[dict-item]
        searcher = _Searcher(new, notes)
        transfer = _transfer(old, new, searcher)
        found = searcher.found_at_the_end()
        carried = _carried(giver)
        giver.close()
    return Takeover(transfer, carried / len(notes), searcher.took_s, found)


def _values(options: Options, report: Report) -> None:
    """Records without text: what checking and storing a record costs by itself."""
    count = VALUES_QUICK if options.quick else VALUES
    with DaemonUnderTest(**NO_MODEL) as old, DaemonUnderTest(**NO_MODEL) as new:
        giver = BlockingClient(old.socket_path)
        for at in range(0, count, IN_FLIGHT):
            giver.call_all(
                [
                    ("state.set", {"path": f"main/value/{number}", "type": "lww", "value": number})
                    for number in range(at, min(at + IN_FLIGHT, count))
                ]
            )
        transfer = _transfer(old, new, None)
        giver.close()
    name = f"{count:,} shared values to a newcomer, two daemons, verified and durable"
    _rate_rows(report, name, transfer, Target(">=", RECORDS_PER_S))


def _rate_rows(report: Report, name: str, done: Transfer, target: Target | None) -> None:
    """By the clock, and by the newcomer's CPU time, which a busy machine disturbs less."""
    report.value(
        name,
        done.records / done.seconds,
        unit="records/s",
        yardstick="Ed25519 verification alone, records/s",
        yardstick_value=done.verify_rate,
        target=target,
    )
    report.value(
        f"CPU of the newcomer a record: {name}",
        done.cpu_s / done.records * 1e6,
        unit="us",
        yardstick="Ed25519 verification alone, us",
        yardstick_value=done.verify_cpu_s * 1e6,
    )


def _transfer(old: DaemonUnderTest, new: DaemonUnderTest, searcher: _Searcher | None) -> Transfer:
    """Let the second join the first, and wait until it holds its data records.

    Raises:
        RuntimeError: it never did.
    """
    wanted, invitation = durable_records(old), ticket(old)
    taker = BlockingClient(new.socket_path)
    settle(old, new)
    before, used_s = verifying(), cpu_s(new.pid)
    start = time.perf_counter()
    taker.call("invite.join", {"ticket": invitation})
    if searcher is not None:
        searcher.start()
    while (here := durable_records(new)) < wanted:
        if time.perf_counter() - start > WAIT_S:
            raise RuntimeError(f"{here} of {wanted} records after {WAIT_S:.0f} s")
        time.sleep(POLL_S)
    seconds, used_s = time.perf_counter() - start, cpu_s(new.pid) - used_s
    if searcher is not None:
        searcher.stop()
    taker.close()
    after = verifying()
    return Transfer(
        wanted,
        seconds,
        used_s,
        statistics.mean((before[0], after[0])),
        statistics.mean((before[1], after[1])),
    )


class _Searcher:
    """Asks a daemon twice a second, as an agent would; an error ends the benchmark."""

    def __init__(self, node: DaemonUnderTest, notes: list[Needle]) -> None:
        self._client = BlockingClient(node.socket_path)
        # Every second query names a note's object and code, which no other note has together.
        self._asked = queries(notes, 2 * CHECKED)[::2]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._error: Exception | None = None
        self.took_s: list[float] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _ask(self) -> None:
        at = 0
        try:
            while not self._over.wait(ASK_EVERY_S):
                start = time.perf_counter()
                self._client.call("memory.recall", {"query": self._asked[at % CHECKED][0]})
                self.took_s.append(time.perf_counter() - start)
                at += 1
        except (RuntimeError, OSError, ValueError) as error:
            self._error = error

    def found_at_the_end(self) -> float:
        """Share of the notes asked for that are among the hits."""
        found = 0
        for query, text in self._asked:
            answer = self._client.call("memory.recall", {"query": query})
            assert isinstance(answer, dict)
            hits = answer["hits"]
            assert isinstance(hits, list)
            found += any(isinstance(hit, dict) and hit["text"] == text for hit in hits)
        self._client.close()
        return found / len(self._asked)


def _carried(giver: BlockingClient) -> float:
    """Bytes of the session that brought the records; its row comes once the session is over."""
    end = time.perf_counter() + WAIT_S
    while True:
        status = giver.call("sync.status", {})
        assert isinstance(status, list)
        rows = [row for row in status if isinstance(row, dict)]
        carried = sum(int(str(row["bytes"])) for row in rows if int(str(row["sent"])) > BATCH)
        if carried:
            return carried
        if time.perf_counter() > end:
            raise RuntimeError("no session ended")
        time.sleep(0.2)


def verifying() -> tuple[float, float]:
    """Signatures a second that one core checks and does nothing else; CPU seconds of each."""
    key = Ed25519PrivateKey.generate()
    public, message = key.public_key(), bytes(HEADER_BYTES)
    signature = key.sign(message)
    start, used_s = time.perf_counter(), time.process_time()
    for _ in range(SIGNATURES):
        public.verify(signature, message)
    used_s = time.process_time() - used_s
    return SIGNATURES / (time.perf_counter() - start), used_s / SIGNATURES
