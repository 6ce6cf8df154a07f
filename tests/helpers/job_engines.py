"""A job whose result shows every difference an engine could make, and what it comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from federated.jobs.canon import canonical
from federated.jobs.handlers.base import HandlerInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.jobs.handlers.base import Batch, PureHandler
    from federated.jobs.service import Jobs
    from federated.jobs.types import JobId, Row, RowOut

MEASURE: Final = "measure@1"
COMBINE: Final = "combine@1"

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


async def result_bytes(jobs: Jobs, ident: JobId) -> list[bytes]:
    """All that a caller can see of a result: each row's state, reason and answer, and the rows
    they reduce to, in canonical form."""
    lines = [
        canonical([row.k, row.state.name.lower(), row.reason]) + (row.value or b"")
        for row in await jobs.journal.rows(ident, 0, 100_000)
    ]
    return lines + [b"reduced " + row for row in await jobs.journal.reduced(ident, 0, 100_000)]
