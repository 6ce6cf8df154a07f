"""`expr:`: what a row answers, and that it depends on the code and the row alone."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from federated.errors import HandlerError
from federated.jobs.handlers.base import TaskLimits
from federated.jobs.handlers.expr import Expr
from federated.jobs.handlers.names import EXPR_ID, MONTY_VERSION
from tests.helpers.job_handlers import make_batch, make_ctx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federated.jobs.types import Row, RowOut

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = "def map(row):\n    return {'y': row['x'] * 2}"
WORLD = """
import datetime, random, time
def map(row):
    return {
        "now": str(datetime.datetime.now()), "time": time.time(), "clock": time.perf_counter(),
        "cpu": time.process_time(), "random": random.random(), "order": list({"b", "a", row["x"]}),
    }
"""


@pytest.fixture
async def expr() -> AsyncIterator[Expr]:
    handler = Expr(slots=2)
    yield handler
    await handler.aclose()


async def ask(
    handler: Expr, code: object, *rows: Row, limits: TaskLimits | None = None, **params: object
) -> list[RowOut]:
    batch = make_batch(*rows, params={"code": code, **params})
    return list(await handler.run(batch, make_ctx(limits=limits)))


def test_its_version_is_the_language_and_the_one_that_is_pinned() -> None:
    assert Expr().info.id == EXPR_ID == f"expr:@{MONTY_VERSION}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["optional-dependencies"]["expr"] == [f"pydantic-monty=={MONTY_VERSION}"]


async def test_each_row_is_mapped(expr: Expr) -> None:
    assert await ask(expr, DOUBLE, {"x": 1}, {"x": "ab"}, {}) == [
        (0, {"y": 2}, ""),
        (1, {"y": "abab"}, ""),
        (2, None, "exception"),
    ]


async def test_two_answers_are_reduced(expr: Expr) -> None:
    code = "def reduce(a, b):\n    return {'n': a['n'] + b['n']}"
    rows: list[Row] = [{"a": {"n": 1}, "b": {"n": 2}}, {"a": {"n": 5}}]
    assert await ask(expr, code, *rows, function="reduce") == [
        (0, {"n": 3}, ""),
        (1, None, "exception"),
    ]


async def test_no_state_passes_from_row_to_row(expr: Expr) -> None:
    code = "n = 0\ndef map(row):\n    global n\n    n += 1\n    return {'n': n}"
    assert await ask(expr, code, {}, {}, {}) == [(k, {"n": 1}, "") for k in range(3)]


async def test_clock_and_chance_depend_on_code_and_row_alone(expr: Expr) -> None:
    [(_, alone, _)] = await ask(expr, WORLD, {"x": "c"})
    other_pool = Expr(slots=1)
    _, (_, second, _), (_, third, _) = await ask(
        other_pool, WORLD, {"x": "d"}, {"x": "c"}, {"x": "e"}
    )
    await other_pool.aclose()
    assert alone is not None
    assert alone == second
    assert third is not None
    assert alone["random"] != third["random"]
    assert alone["now"] == "2000-01-01 00:00:00"
    [(_, recoded, _)] = await ask(expr, WORLD + "\n#", {"x": "c"})
    assert recoded is not None
    assert recoded["random"] != alone["random"]


async def test_rows_arrive_in_canonical_form(expr: Expr) -> None:
    code = "def map(row):\n    return {'is_int': isinstance(row['x'], int), 'n': len(row['t'])}"
    assert await ask(expr, code, {"x": 2.0, "t": "e\u0301"}, {"x": float("nan"), "t": ""}) == [
        (0, {"is_int": True, "n": 1}, ""),
        (1, None, "bad_row"),
    ]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def map(row:", "bad_code"),
        ("def map(row):\n    return '", "bad_code"),
        ("def map(row):\n    return (1", "bad_code"),
        ("x = 1", "exception"),
        ("def map(row):\n    return 3", "bad_output"),
        ("def map(row):\n    return None", "bad_output"),
        ("def map(row):\n    return [row]", "bad_output"),
        ("def map(row):\n    return {'x': float('nan')}", "bad_output"),
        ("def map(row):\n    return {'x': {1, 2}}", "exception"),
        ("def map(row):\n    return {'x': '" + "y" * 100 + "'}", "output"),
        ("def map(row):\n    raise TimeoutError()", "timeout"),
    ],
)
async def test_a_row_without_an_answer_says_why(expr: Expr, code: str, reason: str) -> None:
    assert await ask(expr, code, {}, limits=TaskLimits(out_bytes=64)) == [(0, None, reason)]


@pytest.mark.parametrize("code", [None, "", 3, "\ud800", "#" * 65_537])
async def test_without_code_there_is_no_answer(expr: Expr, code: object) -> None:
    assert await ask(expr, code, {}) == [(0, None, "bad_params")]


@pytest.mark.parametrize("function", ["__import__", "", 3, None])
async def test_only_map_and_reduce_are_called(expr: Expr, function: object) -> None:
    assert await ask(expr, DOUBLE, {"x": 1}, function=function) == [(0, None, "bad_params")]


async def test_many_tasks_share_the_slots(expr: Expr) -> None:
    answers: list[RowOut] = []

    async def one(x: int) -> None:
        answers.extend(await ask(expr, DOUBLE, {"x": x}))

    async with trio.open_nursery() as nursery:
        for x in range(40):
            nursery.start_soon(one, x)
    assert sorted(row["y"] for _, row, _ in answers if row) == list(range(0, 80, 2))  # type: ignore[type-var]


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    with pytest.raises(HandlerError, match=r"unavailable.*covey\[expr\]"):
        Expr()


def test_another_version_is_another_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydantic_monty.__version__", "1.5.0")
    with pytest.raises(HandlerError, match=r"unavailable.*1\.5\.0"):
        Expr()
