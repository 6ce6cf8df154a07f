"""A job whose result shows every difference an engine could make, and what it comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from federated.jobs.canon import canonical
from federated.jobs.engines.seam import Computed
from federated.jobs.engines.tasks import compute
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.types import ByHandler, Collect, Count, GroupBy, Sum, Table, TopK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from federated.jobs.engines.seam import EngineCall
    from federated.jobs.handlers.base import Batch, PureHandler
    from federated.jobs.service import Jobs
    from federated.jobs.types import JobId, Reduce, Row, RowOut

MEASURE: Final = "measure@1"
COMBINE: Final = "combine@1"
REDUCES: Final[Sequence[Reduce]] = [
    Collect(),
    Table(),
    Count(),
    Sum(),
    TopK(n=3),
    GroupBy(by="word", cap=5),
    ByHandler(handler=COMBINE),
]

_WORDS: Final = ("ab", "c", "Ab", "d\u00e9", "c")


def _row(n: int) -> Row:
    return {"word": _WORDS[n % 5], "n": n / 7 - 3 if n % 3 else n, "bad": n % 11 == 4}


NUMBERS: Final[Sequence[Row]] = [
    *map(_row, range(60)),
    {"word": "c", "n": 1e300, "bad": False},
    {"word": "c", "n": 0.1, "bad": False},
]
"""Duplicate cells, floats of all sizes, whole numbers, rows that get no answer."""


def measured(rows: list[dict[str, object]], _task: object) -> list[object]:
    """A row's word, its number times a third, and the same as a pair; nothing for a bad row."""
    found: list[object] = []
    for item in rows:
        row = item["row"]
        assert isinstance(row, dict)
        third = row["n"] * (1 / 3)
        if row["bad"]:
            found.append("no_measure")
        else:
            found.append({"word": row["word"], "n": third, "pairs": [[row["word"], third]]})
    return found


def combined(rows: list[dict[str, object]], _task: object) -> list[object]:
    """The sum of two rows' numbers, rounded as floats are: the order shows."""
    found: list[object] = []
    for item in rows:
        row = item["row"]
        assert isinstance(row, dict)
        a, b = row["a"].get("n"), row["b"].get("n")
        if isinstance(a, int | float) and isinstance(b, int | float):
            found.append({"n": a + b})
        else:
            found.append("no_number")
    return found


class _Pure:
    """One of the functions above as a handler."""

    def __init__(self, ident: str) -> None:
        self.info = HandlerInfo(id=ident, kind="named", deterministic=True)
        name = "measured" if ident == MEASURE else "combined"
        self.function = f"{__name__}:{name}"

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        function = measured if self.info.id == MEASURE else combined
        answers = function([{"k": one.k, "row": one.row} for one in batch.rows], {})
        return [
            (one.k, None, found) if isinstance(found, str) else (one.k, found, "")  # type: ignore[misc]
            for one, found in zip(batch.rows, answers, strict=True)
        ]


def both() -> list[PureHandler]:
    """Both handlers, new ones."""
    return [_Pure(MEASURE), _Pure(COMBINE)]


class InlineEngine:
    """An engine that computes at once, in this process.

    Args:
        slots: calls at once, as it says.
        lose: the first so many calls get no answer but an error.
    """

    def __init__(self, slots: int = 2, *, lose: int = 0) -> None:
        self.capacity = slots
        self.calls: list[EngineCall] = []
        self.cancelled: list[int] = []
        self.hold = False
        self._lose = lose
        self._send, self._receive = trio.open_memory_channel[Computed](10_000)

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()

    async def submit_batch(self, calls: Sequence[EngineCall]) -> None:
        await trio.sleep(0.005)
        for call in calls:
            self.calls.append(call)
            if len(self.calls) <= self._lose:
                self._send.send_nowait(Computed(call.ref, b"", "unavailable", "lost"))
            elif not self.hold:
                self._send.send_nowait(Computed(call.ref, compute(call.data), "", ""))

    def as_completed(self) -> AsyncIterator[Computed]:
        return self._receive

    async def cancel(self, refs: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        self.cancelled += refs

    async def close(self) -> None:
        await self._send.aclose()


async def result_bytes(jobs: Jobs, ident: JobId) -> list[bytes]:
    """All that a caller can see of a result: each row's state, reason and answer, and the rows
    they reduce to, in canonical form."""
    lines = [
        canonical([row.k, row.state.name.lower(), row.reason]) + (row.value or b"")
        for row in await jobs.journal.rows(ident, 0, 100_000)
    ]
    return lines + [b"reduced " + row for row in await jobs.journal.reduced(ident, 0, 100_000)]
