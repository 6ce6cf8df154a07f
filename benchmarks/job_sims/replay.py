"""Filling real tables through peers that lose rows and get cells wrong: how much of them is right.

    python -m benchmarks.job_sims.replay --data DIR --seeds 3

A gold row is a task. A peer loses it with probability `loss`; else it returns the row, every cell
that is no key wrong with probability `wrong` in one of three ways. What is asked next and what is
accepted is the product's judge; a row is given up after `retries` losses, and `deltas` later jobs
ask again for the rows that are missing then. A row is right if every cell is exactly the gold
one. Protocol P9 of the evaluation data; without the data, generated tables of the same shape.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.memory.data import DataMissing, rows
from federated.jobs.types import Column
from federated.jobs.verify import (
    UNCHECKED,
    Accepted,
    Answer,
    Judge,
    NeedVote,
    Policy,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.jobs.types import Row

PEERS: Final = tuple(b"peer %d" % number for number in range(20))
VARIANTS: Final = 3
COLUMN_CHARACTERS_MAX: Final = 65_536


@dataclass(frozen=True)
class GoldTable:
    """A table as it should come back.

    Attributes:
        columns: names.
        keys: those that name a row; a peer returns them as it was asked.
        rows: cells in the order of `columns`; no key twice.
    """

    columns: tuple[str, ...]
    keys: frozenset[str]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Faults:
    """What is wrong with the peers, and what is done about it."""

    loss: float = 0.1
    wrong: float = 0.0
    policy: Policy = UNCHECKED
    retries: int = 3
    deltas: int = 0


@dataclass(frozen=True)
class Filled:
    """What came back of all tables.

    Attributes:
        row_f1: mean over the tables of the F1 of exactly right rows, %.
        success: share of the tables that are exactly right, %.
        complete: share of the tables that lack no row, %.
        executions: answers asked for, of a gold row.
        disputed: rows without a majority, of all jobs.
    """

    row_f1: float
    success: float
    complete: float
    executions: float
    disputed: int


LOSS_ONLY: Final = Faults()
LOSS_AND_DELTA: Final = Faults(deltas=1)
LOSS_UNTRIED: Final = Faults(retries=0)
WRONG_UNCHECKED: Final = Faults(loss=0.0, wrong=0.05)
WRONG_CELLS: Final = Faults(wrong=0.05, policy=Policy("quorum", 0.0, 2))
ROWS: Final = {
    "losses, no retry": LOSS_UNTRIED,
    "losses, 3 retries": LOSS_ONLY,
    "losses, 3 retries, gaps asked again": LOSS_AND_DELTA,
    "5 % wrong cells, one answer": WRONG_UNCHECKED,
    "losses + 5 % wrong cells, quorum:2": WRONG_CELLS,
}


class Replay:
    """Fills tables from one seed."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._faults = faults
        self._rng = random.Random(seed)
        self._executions = 0
        self._disputed = 0

    def fill(self, tables: Sequence[GoldTable]) -> Filled:
        """Ask for every row of every table."""
        scores = []
        complete = 0
        for table in tables:
            judge = Judge([Column(name=n, max_len=COLUMN_CHARACTERS_MAX) for n in table.columns])
            found = [self._row(judge, table, cells) for cells in table.rows]
            there = [row for row in found if row is not None]
            right = sum(
                row == _named(table, cells)
                for row, cells in zip(found, table.rows, strict=True)
                if row is not None
            )
            complete += len(there) == len(table.rows)
            scores.append(200 * right / (len(there) + len(table.rows)))
        return Filled(
            row_f1=statistics.fmean(scores),
            success=100 * sum(score == 100 for score in scores) / len(scores),
            complete=100 * complete / len(scores),
            executions=self._executions / sum(len(table.rows) for table in tables),
            disputed=self._disputed,
        )

    def _row(self, judge: Judge, table: GoldTable, cells: tuple[str, ...]) -> Row | None:
        for _ in range(1 + self._faults.deltas):
            found = self._one_job(judge, table, cells)
            if found is not None:
                return found
        return None

    def _one_job(self, judge: Judge, table: GoldTable, cells: tuple[str, ...]) -> Row | None:
        answers: list[Answer] = []
        silent: set[bytes] = set()
        losses = 0
        while True:
            verdict = judge.judge(
                answers,
                self._faults.policy,
                alone=False,
                arbiter=False,
                owners_left=len(PEERS) - len(answers) + losses,
            )
            if isinstance(verdict, Accepted):
                return verdict.row
            if not isinstance(verdict, NeedVote) or losses > self._faults.retries:
                self._disputed += not isinstance(verdict, NeedVote)
                return None
            free = [peer for peer in PEERS if peer not in verdict.owners]
            peer = self._rng.choice([one for one in free if one not in silent] or free)
            row = self._answer(table, cells)
            if row is None:
                losses += 1
                silent.add(peer)
            reason = "" if row is not None else "not_returned"
            answers.append(Answer(peer, peer, len(answers), row, reason))

    def _answer(self, table: GoldTable, cells: tuple[str, ...]) -> Row | None:
        self._executions += 1
        if self._rng.random() < self._faults.loss:
            return None
        row = _named(table, cells)
        for name in table.columns:
            if name not in table.keys and self._rng.random() < self._faults.wrong:
                row[name] = f"{row[name]}#{self._rng.randrange(VARIANTS)}"
        return row


def _named(table: GoldTable, cells: tuple[str, ...]) -> Row:
    return dict(zip(table.columns, cells, strict=True))


def gold_tables(folder: Path) -> list[GoldTable]:
    """The tables of the evaluation data.

    Rows with a key that was there before are left out, and columns without a name.

    Raises:
        DataMissing: they are not in the folder.
    """
    found = []
    for task in rows(folder, "widesearch"):
        named = [i for i, name in enumerate(task["header"]) if name]
        columns = tuple(task["header"][i] for i in named)
        assert len(set(columns)) == len(columns), columns
        wanted = {_plain(name) for name in task["unique_columns"]}
        places = [i for i in named if _plain(task["header"][i]) in wanted]
        by_key: dict[tuple[str, ...], tuple[str, ...]] = {}
        for cells in task["rows"]:
            by_key.setdefault(tuple(cells[i] for i in places), tuple(cells[i] for i in named))
        keys = frozenset(task["header"][i] for i in places)
        found.append(GoldTable(columns, keys, tuple(by_key.values())))
    return found


def _plain(name: str) -> str:
    return "".join(name.lower().split())


def generated_tables(count: int, seed: int) -> list[GoldTable]:
    """Tables of the real ones' shape.

    6.3 columns, one or two of them keys; rows by a lognormal of median 37 and 90th percentile
    132, at most 1,458.
    """
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        columns = tuple(f"column {i}" for i in range(rng.choice((4, 5, 6, 6, 7, 7, 9))))
        size = min(1458, max(4, round(37 * rng.lognormvariate(0.0, 0.99))))
        cells = tuple(tuple(f"{name} of {k}" for name in columns) for k in range(size))
        found.append(GoldTable(columns, frozenset(columns[: rng.choice((1, 1, 2))]), cells))
    return found


def median(found: Sequence[Filled]) -> Filled:
    """The median of each figure."""
    return Filled(
        row_f1=statistics.median(one.row_f1 for one in found),
        success=statistics.median(one.success for one in found),
        complete=statistics.median(one.complete for one in found),
        executions=statistics.median(one.executions for one in found),
        disputed=round(statistics.median(one.disputed for one in found)),
    )


def line(name: str, filled: Filled) -> str:
    """A row of the table as text."""
    return (
        f"{name:36} Row F1 {filled.row_f1:6.2f}  right tables {filled.success:5.1f} %"
        f"  complete {filled.complete:5.1f} %  executions {filled.executions:5.3f}"
        f"  disputed {filled.disputed}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="tables filled through faulty peers")
    parser.add_argument("--data", type=Path, help="folder of the evaluation data")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    tables = generated_tables(100, 1)
    if options.data is None:
        print("generated tables: pass the evaluation data's folder as --data for the real ones")
    else:
        try:
            tables = gold_tables(options.data)
        except DataMissing as missing:
            parser.exit(1, f"not measured: {missing}\n")
    print(f"{len(tables)} tables, {sum(len(table.rows) for table in tables)} rows")
    for name, faults in ROWS.items():
        filled = [Replay(faults, seed).fill(tables) for seed in range(options.seeds)]
        print(line(name, median(filled)), flush=True)


if __name__ == "__main__":
    main()
