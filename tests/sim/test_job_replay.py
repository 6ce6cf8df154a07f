"""Tables come back whole through peers that lose rows, and right through peers that err.

Limits are those of docs/specs/jobs.md. Generated tables of the real ones' shape; the real ones
where COVEY_DATA names the folder of the evaluation data.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.job_sims.replay import (
    LOSS_AND_DELTA,
    LOSS_ONLY,
    LOSS_UNTRIED,
    WRONG_CELLS,
    WRONG_UNCHECKED,
    Faults,
    Filled,
    GoldTable,
    Replay,
    generated_tables,
    gold_tables,
    line,
    median,
)
from benchmarks.memory.data import DataMissing
from tests.helpers.need import unmet


@pytest.fixture(
    scope="module",
    params=["some", pytest.param("many", marks=pytest.mark.slow), "real"],
)
def tables(request: pytest.FixtureRequest) -> list[GoldTable]:
    if request.param != "real":
        return generated_tables(30 if request.param == "some" else 200, 1)
    folder = os.environ.get("COVEY_DATA")
    remedy = "set COVEY_DATA to the folder that holds widesearch.jsonl.gz"
    if folder is None:
        unmet("no evaluation data", remedy, optional_in_ci=True)
    try:
        return gold_tables(Path(str(folder)))
    except DataMissing as missing:
        unmet(str(missing), remedy, optional_in_ci=True)
        raise


def _fill(tables: list[GoldTable], faults: Faults) -> Filled:
    filled = median([Replay(faults, seed).fill(tables) for seed in range(3)])
    print(line(str(faults), filled))
    return filled


def test_losses_cost_a_ninth_more_and_no_row(tables: list[GoldTable]) -> None:
    filled = _fill(tables, LOSS_ONLY)
    assert filled.success == filled.complete == 100.0
    assert filled.executions <= 1.15


def test_what_four_losses_left_open_a_second_job_fills(tables: list[GoldTable]) -> None:
    for seed in range(3):
        assert Replay(LOSS_AND_DELTA, seed).fill(tables).complete == 100.0


def test_wrong_cells_are_outvoted_cell_by_cell(tables: list[GoldTable]) -> None:
    filled = _fill(tables, WRONG_CELLS)
    assert filled.row_f1 >= 98.0
    assert filled.executions <= 2.7


def test_control_without_retries_and_votes_much_is_lost(tables: list[GoldTable]) -> None:
    assert _fill(tables, LOSS_UNTRIED).success <= 20.0
    assert _fill(tables, WRONG_UNCHECKED).row_f1 <= 85.0
