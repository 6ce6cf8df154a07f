"""What a worker keeps in jobs.db: results that nobody has acknowledged, and effects that began.

An effect's token is written `started` before its handler runs and together with its answer before
that leaves, both synced to the disk: whatever is cut off in between, the worker can say later what
it knows. Results of pure rows are written without a sync; a power cut costs their computation.
Source: docs/specs/jobs.md s.6 and s.8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from federated.jobs.items import decode_results_untrusted, encode_results

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import apsw

    from federated.jobs.items import Ref, TaskResult
    from federated.seams import Db

HELD_MS: Final = 24 * 3_600_000
"""How long a result waits for its coordinator."""
HELD_BYTES_MAX: Final = 256 * 2**20
"""Results and effects of one coordinator; beyond it takes no more tasks of it."""
EFFECT_BYTES: Final = 256
"""What a row of an effect takes besides its answer."""
STARTED: Final = "started"
DONE: Final = "done"


class Put(NamedTuple):
    """A result to keep."""

    coordinator: bytes
    ref: Ref
    epoch: int
    result: TaskResult
    expires_ms: int


@dataclass(kw_only=True)
class Kept:
    """What is on the disk of one coordinator.

    Attributes:
        results: not acknowledged, by ref; with the Unix milliseconds until which they are kept.
        started: attempts with effects that began and have no answer.
        effect_bytes: what effects take.
    """

    results: dict[Ref, tuple[TaskResult, int]] = field(default_factory=dict)
    started: set[Ref] = field(default_factory=set)
    effect_bytes: int = 0


class Held:
    """The worker's tables.

    Args:
        db: jobs.db; open while the worker runs.
    """

    def __init__(self, db: Db) -> None:
        self._db = db

    async def load(self, coordinator: bytes, wall_ms: int) -> Kept:
        """What is kept of a coordinator."""
        return await self._db.read(lambda connection: _load(connection, coordinator, wall_ms))

    async def change(self, puts: Sequence[Put], drops: Iterable[tuple[bytes, Ref]]) -> None:
        """Keep results, and forget others."""
        rows = [_held_row(put) for put in puts]
        gone = [(coordinator, *ref) for coordinator, ref in drops]

        def write(connection: apsw.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO held VALUES (?,?,?,?,?,?,?)", rows)
            connection.executemany(
                "DELETE FROM held WHERE coordinator=? AND job=? AND task=? AND attempt=?", gone
            )

        await self._db.write(write, full=False)

    async def prune(self, wall_ms: int) -> None:
        """Remove what nobody came for in time."""

        def write(connection: apsw.Connection) -> None:
            for table in ("held", "effect"):
                connection.execute(f"DELETE FROM {table} WHERE expires_ms<=?", (wall_ms,))  # noqa: S608

        await self._db.write(write, full=False)

    async def begin(
        self, coordinator: bytes, ref: Ref, tokens: Sequence[bytes], expires_ms: int
    ) -> dict[bytes, bytes | None]:
        """Write down that effects begin, on the disk when this returns.

        Returns:
            Of tokens that began before: the answer, or None without one. Those that are absent are
            new and may run.
        """

        def write(connection: apsw.Connection) -> dict[bytes, bytes | None]:
            known: dict[bytes, bytes | None] = {}
            for token in tokens:
                row = connection.execute(
                    "SELECT result FROM effect WHERE coordinator=? AND token=?",
                    (coordinator, token),
                ).fetchone()
                if row is not None:
                    known[token] = None if row[0] is None else bytes(row[0])
                    continue
                connection.execute(
                    "INSERT INTO effect VALUES (?,?,?,?,?,?,?,?)",
                    (coordinator, token, *ref, STARTED, None, expires_ms),
                )
            return known

        return await self._db.write(write, full=True)

    async def finish(self, put: Put, answers: Mapping[bytes, bytes]) -> None:
        """Write down how effects ended and what will be told of it, on the disk when this returns.

        Args:
            put: the result that is about to be sent.
            answers: canonical entries by token.
        """
        done = [(DONE, answer, put.coordinator, token) for token, answer in answers.items()]
        row = _held_row(put)

        def write(connection: apsw.Connection) -> None:
            connection.executemany(
                "UPDATE effect SET state=?, result=? WHERE coordinator=? AND token=?", done
            )
            connection.execute("INSERT OR REPLACE INTO held VALUES (?,?,?,?,?,?,?)", row)

        await self._db.write(write, full=True)


def _held_row(put: Put) -> tuple[object, ...]:
    body = encode_results([put.result])
    return (put.coordinator, *put.ref, put.epoch, body, put.expires_ms)


def _load(connection: apsw.Connection, coordinator: bytes, wall_ms: int) -> Kept:
    kept = Kept()
    for job, task, attempt, body, expires_ms in connection.execute(
        "SELECT job, task, attempt, result, expires_ms FROM held"
        " WHERE coordinator=? AND expires_ms>?",
        (coordinator, wall_ms),
    ):
        (result,) = decode_results_untrusted(body)
        kept.results[bytes(job), task, attempt] = (result, expires_ms)
    for job, task, attempt in connection.execute(
        "SELECT DISTINCT job, task, attempt FROM effect WHERE coordinator=? AND state=?",
        (coordinator, STARTED),
    ):
        kept.started.add((bytes(job), task, attempt))
    kept.started -= set(kept.results)
    row = connection.execute(
        "SELECT count(*), total(length(result)) FROM effect WHERE coordinator=?", (coordinator,)
    ).fetchone()
    assert row is not None
    kept.effect_bytes = int(row[0]) * EFFECT_BYTES + int(row[1])
    return kept
