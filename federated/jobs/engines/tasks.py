"""The one function that an engine's workers import: a call's bytes in, its answers' bytes out.

    answers = compute(encode_call(code, tasks, out_bytes_max))

What is computed is named, never sent: a built-in by its id, an operator's function by
`module:function`, which the engine's workers must be able to import. Both directions are
MessagePack.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

import msgspec

from federated.errors import HandlerError
from federated.jobs.handlers.base import Batch, BatchRow
from federated.jobs.handlers.builtin import builtins
from federated.jobs.types import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.jobs.handlers.base import PureHandler
    from federated.jobs.types import RowOut

DETAIL_CHARS_MAX: Final = 200
REASON_CHARS_MAX: Final = 64


class Code(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What computes; one of the two.

    Attributes:
        builtin: id of a handler that comes with Covey.
        run: `module:function` as in `[jobs.handlers]`.
    """

    builtin: str = ""
    run: str = ""


class CallRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A row of a task."""

    k: int
    row: dict[str, object]
    text: str | None
    partial: dict[str, object] | None


class Call(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call; its tasks have all but their rows in common."""

    code: Code
    params: dict[str, object]
    columns: list[Column]
    reduces: bool
    tasks: list[list[CallRow]]
    out_bytes_max: int


class TaskAnswer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A task's answers, or why it has none."""

    answers: list[tuple[int, dict[str, object] | None, str]] = []
    error: str = ""
    detail: str = ""


_CALLS: Final = msgspec.msgpack.Decoder(Call)
_ANSWERS: Final = msgspec.msgpack.Decoder(list[TaskAnswer])


def encode_call(code: Code, tasks: Sequence[Batch], out_bytes_max: int) -> bytes:
    """The bytes of a call.

    Args:
        code: what computes.
        tasks: of one job, at least one.
        out_bytes_max: of one task's answer.
    """
    first = tasks[0]
    call = Call(
        code=code, params=dict(first.params), columns=list(first.columns), reduces=first.reduces,
        tasks=[
            [CallRow(one.k, one.row, one.text, one.partial) for one in task.rows] for task in tasks
        ],
        out_bytes_max=out_bytes_max,
    )  # fmt: skip
    return msgspec.msgpack.encode(call)


def decode_answers(data: bytes, tasks: int) -> list[TaskAnswer]:
    """What `compute` returned for so many tasks.

    Raises:
        HandlerError: `bad_output`: it is nothing of the kind.
    """
    try:
        found = _ANSWERS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        raise HandlerError("bad_output", "an engine's answer is no table") from None
    if len(found) != tasks:
        raise HandlerError("bad_output", "not one answer a task")
    return found


def compute(data: bytes) -> bytes:
    """Compute a call. Runs at the engine's workers; raises nothing that a row could bring about."""
    call = _CALLS.decode(data)
    try:
        function = _function(call.code)
    except Exception as error:  # noqa: BLE001 - whatever importing it raises
        lost = TaskAnswer(error="unavailable", detail=_detail(error))
        return msgspec.msgpack.encode([lost] * len(call.tasks))
    return msgspec.msgpack.encode([_task(call, rows, function) for rows in call.tasks])


def _task(
    call: Call, rows: list[CallRow], function: Callable[[Batch], Sequence[RowOut]]
) -> TaskAnswer:
    batch = Batch(
        rows=[BatchRow(k=one.k, row=one.row, text=one.text, partial=one.partial) for one in rows],
        params=call.params, columns=call.columns, reduces=call.reduces,
    )  # fmt: skip
    try:
        answer = TaskAnswer(answers=[(k, row, why) for k, row, why in function(batch)])
        size = len(msgspec.msgpack.encode(answer))
    except HandlerError as error:
        return TaskAnswer(error=error.reason, detail=_detail(error))
    except MemoryError as error:
        return TaskAnswer(error="memory", detail=_detail(error))
    except Exception as error:  # noqa: BLE001 - whatever the function raises
        return TaskAnswer(error="exception", detail=_detail(error))
    if size > 2 * call.out_bytes_max:
        return TaskAnswer(error="output", detail=f"{size} bytes")
    return answer


def _function(code: Code) -> Callable[[Batch], Sequence[RowOut]]:
    if code.builtin:
        return _builtin(code.builtin).compute
    module, _, name = code.run.partition(":")
    function: object = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{code.run} is no function")

    def computed(batch: Batch) -> list[RowOut]:
        rows = [_named(one) for one in batch.rows]
        task = {
            "params": dict(batch.params),
            "columns": [column.name for column in batch.columns],
            "reduces": batch.reduces,
        }
        answers: object = function(rows, task)
        if not isinstance(answers, list | tuple) or len(answers) != len(rows):
            raise HandlerError("bad_output", "it must return one answer a row, in their order")
        return [_out(one.k, found) for one, found in zip(batch.rows, answers, strict=True)]

    return computed


def _builtin(ident: str) -> PureHandler:
    return next(handler for handler in builtins() if handler.info.id == ident)


def _named(one: BatchRow) -> dict[str, object]:
    """A row as `handlers.proc` shows it to an operator's function."""
    found: dict[str, object] = {"k": one.k, "row": one.row}
    if one.text is not None:
        found["text"] = one.text
    if one.partial is not None:
        found["partial"] = one.partial
    return found


def _out(k: int, found: object) -> RowOut:
    if isinstance(found, dict):
        return k, found, ""
    return k, None, (found if isinstance(found, str) and found else "no_answer")[:REASON_CHARS_MAX]


def _detail(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]
