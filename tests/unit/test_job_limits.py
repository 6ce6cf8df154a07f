"""The specification's table of limits is the code's."""

from __future__ import annotations

import re
from pathlib import Path

from federated.jobs import limits

TEXT = (Path(__file__).parents[2] / "docs" / "specs" / "jobs.md").read_text("utf-8")
NAMES = {
    "rows a job": limits.ROWS_MAX,
    "bytes a row": limits.ROW_BYTES_MAX,
    "bytes of a blob of rows": limits.ROWS_BLOB_BYTES_MAX,
    "bytes of a template": limits.TEMPLATE_BYTES_MAX,
    "columns": limits.COLUMNS_MAX,
    "bytes of a task's answer": limits.OUTPUT_BYTES_MAX,
    "bytes of an answer within an item": limits.RESULT_BYTES_MAX,
    "bytes to reduce": limits.REDUCE_BYTES_MAX,
    "jobs under way": limits.JOBS_LIVE_MAX,
    "jobs under way of one agent": limits.JOBS_AGENT_MAX,
    "rows a task": limits.BATCH_ROWS_MAX,
    "tasks an offer": limits.OFFER_TASKS_MAX,
    "bytes an item": limits.ITEM_BYTES_MAX,
}


def test_each_attack_of_the_specification_has_its_test() -> None:
    section = TEXT.split("## 17. Attacks")[1].split("\n## ")[0]
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", section)
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(named) == len(rows) - 1 > 40
    for path, name in named:
        source = (Path(__file__).parents[2] / path).read_text("utf-8")
        assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), f"{path}::{name}"


def test_the_specification_names_the_limits_there_are() -> None:
    section = TEXT.split("## 9. Limits")[1].split("## 10.")[0]
    written = {
        name: int(value)
        for name, value in re.findall(r"^\| (.+?) \| (\d+) \|$", section, re.MULTILINE)
    }
    assert written == NAMES
