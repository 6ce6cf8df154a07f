"""An operator's function and command: what they are given, what becomes of their answers."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from federated.errors import HandlerError
from federated.jobs.config import HandlerConfig
from federated.jobs.handlers import proc
from federated.jobs.handlers.base import Batch, BatchRow
from federated.jobs.handlers.proc import CommandHandler, FunctionHandler, operator_handler
from federated.jobs.types import Column
from tests.helpers.job_handlers import make_batch, make_ctx, until_gone
from tests.helpers.need import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from federated.jobs.handlers.sandbox import SandboxKind
    from federated.jobs.types import Row

MODULE = """
import os

def double(rows, task):
    print("this is no answer")
    return [{"y": row["row"]["x"] * 2} for row in rows]

def told(rows, task):
    return [{"row": row, "task": task} for row in rows]

def some(rows, task):
    return [{"ok": 1}, None, "too_odd"]

def pid(rows, task):
    return [{"pid": os.getpid()} for _ in rows]

def large(rows, task):
    bytearray(120 << 20)
    return pid(rows, task)

def fails(rows, task):
    raise ValueError("the secret of the operator")

number = 3
"""

ECHO = "import sys\nfor line in sys.stdin:\n    sys.stdout.write(line)\n"


@pytest.fixture(params=["limits", "landlock", "bubblewrap"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SandboxKind:
    found: SandboxKind = request.param
    if found != "limits":
        need(found)
    monkeypatch.setattr(proc, "sandbox_kind", lambda: found)
    return found


@pytest.fixture
async def make(
    kind: SandboxKind,  # noqa: ARG001 - decides where programs run
    tmp_path: Path,
) -> AsyncIterator[Callable[..., FunctionHandler]]:
    (tmp_path / "operators_own.py").write_text(MODULE)
    made: list[FunctionHandler] = []

    def build(name: str, **config: object) -> FunctionHandler:
        values = {"run": f"operators_own:{name}", "read": (str(tmp_path),), **config}
        handler = operator_handler(f"{name}@1", HandlerConfig(**values))  # type: ignore[arg-type]
        assert isinstance(handler, FunctionHandler)
        made.append(handler)
        return handler

    yield build
    for handler in made:
        await handler.aclose()


def command(*arguments: str, **config: object) -> CommandHandler:
    values = {"run": arguments, "read": (), **config}
    handler = operator_handler("cmd@1", HandlerConfig(**values))  # type: ignore[arg-type]
    assert isinstance(handler, CommandHandler)
    return handler


def test_it_is_what_the_operator_says() -> None:
    info = operator_handler(
        "score@3", HandlerConfig(run="m:f", effect=True, local=True, slots=3, wall_s=5.0)
    ).info
    assert (info.id, info.kind, info.effect, info.local, info.slots) == (
        "score@3",
        "named",
        True,
        True,
        3,
    )
    assert not info.deterministic
    assert info.limits.wall_s == 5.0


async def test_a_function_answers_row_by_row(make: Callable[..., FunctionHandler]) -> None:
    handler = make("double")
    assert await handler.run(make_batch({"x": 1}, {"x": "a"}), make_ctx()) == [
        (0, {"y": 2}, ""),
        (1, {"y": "aa"}, ""),
    ]


async def test_a_program_goes_behind_what_this_machine_does_itself(
    make: Callable[..., FunctionHandler], kind: SandboxKind
) -> None:
    ((_, found, _),) = await make("pid").run(make_batch({"x": 1}), make_ctx())
    assert found is not None
    pid = found["pid"]
    assert isinstance(pid, int)
    if kind != "bubblewrap":  # in there it has another number
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.nice(0) + 10)


async def test_a_function_is_told_all_of_a_task(make: Callable[..., FunctionHandler]) -> None:
    batch = Batch(
        rows=[
            BatchRow(k=7, row={"x": "ä"}),
            BatchRow(k=9, row={}, text="filled", token=b"\x01\xff", partial={"a": 1}),
        ],
        params={"p": [1, None]},
        columns=[Column(name="c")],
        reduces=True,
    )
    task = {"params": {"p": [1, None]}, "columns": ["c"], "reduces": True}
    assert await make("told").run(batch, make_ctx()) == [
        (7, {"row": {"k": 7, "row": {"x": "ä"}}, "task": task}, ""),
        (
            9,
            {
                "row": {"k": 9, "row": {}, "text": "filled", "token": "01ff", "partial": {"a": 1}},
                "task": task,
            },
            "",
        ),
    ]


async def test_a_row_may_have_no_answer_and_a_reason(make: Callable[..., FunctionHandler]) -> None:
    assert await make("some").run(make_batch({}, {}, {}), make_ctx()) == [
        (0, {"ok": 1}, ""),
        (1, None, "no_answer"),
        (2, None, "too_odd"),
    ]


async def test_a_runner_is_kept_between_tasks_and_replaced_in_time(
    make: Callable[..., FunctionHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "TASKS_MAX", 3)
    handler = make("told")
    runners = []
    for _ in range(7):
        await handler.run(make_batch({}), make_ctx())
        runners.append([runner.child.pid for runner in handler._idle])
    kept = [pids[0] if pids else None for pids in runners]
    assert kept[0] == kept[1] is not None
    assert kept[2] is None
    assert kept[3] == kept[4] is not None
    assert kept[3] != kept[0]
    assert kept[5] is None


async def test_a_runner_that_grew_is_not_kept(make: Callable[..., FunctionHandler]) -> None:
    handler = make("large", mem_bytes=200 << 20)
    await handler.run(make_batch({}), make_ctx())
    assert handler._idle == []
    small = make("pid")
    await small.run(make_batch({}), make_ctx())
    assert len(small._idle) == 1


async def test_a_failure_of_the_function_ends_no_runner(
    make: Callable[..., FunctionHandler], caplog: pytest.LogCaptureFixture
) -> None:
    handler = make("fails")
    pids = []
    for _ in range(2):
        with pytest.raises(HandlerError) as caught:
            await handler.run(make_batch({}), make_ctx())
        assert caught.value.reason == "exception"
        pids.append(handler._idle[0].child.pid)
    assert pids[0] == pids[1]
    assert "the secret" in str(caplog.records[0].__dict__["f"])


async def test_a_runner_that_died_between_two_tasks_is_replaced(
    make: Callable[..., FunctionHandler],
) -> None:
    handler = make("double")
    await handler.run(make_batch({"x": 1}), make_ctx())
    first = handler._idle[0].child.pid
    os.kill(first, signal.SIGKILL)
    with trio.fail_after(30):
        await until_gone(first)
    assert await handler.run(make_batch({"x": 2}), make_ctx()) == [(0, {"y": 4}, "")]
    assert handler._idle[0].child.pid != first


async def test_slots_run_beside_each_other(make: Callable[..., FunctionHandler]) -> None:
    handler = make("double", slots=2)
    async with trio.open_nursery() as nursery:
        for x in range(6):
            nursery.start_soon(handler.run, make_batch({"x": x}), make_ctx())
    assert 1 <= len(handler._idle) <= 2


@pytest.mark.parametrize("name", ["nothing", "number"])
async def test_a_function_that_is_not_there_is_unavailable(
    make: Callable[..., FunctionHandler], name: str
) -> None:
    with pytest.raises(HandlerError) as caught:
        await make(name).run(make_batch({}), make_ctx())
    assert caught.value.reason == "unavailable"


@pytest.mark.usefixtures("no_leaks")
async def test_closing_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "operators_own.py").write_text(MODULE)
    handler = FunctionHandler(
        "pid@1", HandlerConfig(run="operators_own:pid", read=(str(tmp_path),))
    )
    await handler.run(make_batch({}), make_ctx())
    pid = handler._idle[0].child.pid
    await handler.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("kind")
async def test_a_command_reads_and_writes_lines() -> None:
    rows: list[Row] = [{"x": n, "t": "ä\n"} for n in range(32)]
    answers = await command(sys.executable, "-I", "-S", "-c", ECHO).run(
        make_batch(*rows), make_ctx()
    )
    assert answers == [(k, row, "") for k, row in enumerate(rows)]


@pytest.mark.usefixtures("kind")
async def test_a_command_may_say_why_a_row_has_no_answer() -> None:
    lines = [
        '{"k": 0, "missing": "too_odd"}', "", '{"k": 1}', '{"k": 5, "row": {}}',
        '{"k": 1, "row": {}}',
    ]  # fmt: skip
    script = f"print({chr(10).join(lines)!r})"
    answers = await command(sys.executable, "-I", "-S", "-c", script).run(
        make_batch({}, {}, {}), make_ctx()
    )
    assert answers == [(0, None, "too_odd"), (1, None, "no_answer")]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise SystemExit(3)", "exception"),
        ("print('no answer')", "bad_output"),
        ("print('[1]')", "bad_output"),
        ('print(\'{"k": "0"}\')', "bad_output"),
        ("print('{\"k\": 0, \"row\": ' + '[' * 100000)", "bad_output"),
        ('import sys; sys.stdout.buffer.write(b\'{"k": 0, "missing": "\\xff"}\')', "bad_output"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "exception"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "timeout"),
    ],
)
async def test_a_command_that_fails_fails_the_task(script: str, reason: str) -> None:
    with pytest.raises(HandlerError) as caught:
        await command(sys.executable, "-I", "-S", "-c", script).run(make_batch({}), make_ctx())
    assert caught.value.reason == reason


def test_a_command_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(HandlerError, match="unavailable"):
        command("no-such-program-of-ours")
