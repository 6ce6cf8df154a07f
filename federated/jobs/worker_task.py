"""One task at the worker: from the rows that came to the answer that goes back. Pure.

Used in threads and in the loop alike: it only computes. Whatever a handler returns is checked here,
before it leaves: known indices, rows that have a canonical form, the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from federated.errors import HandlerError, PlanError
from federated.jobs.canon import decode_table_untrusted, digest, encode_normal, normal
from federated.jobs.handlers.base import Batch, BatchRow
from federated.jobs.items import TaskResult, Usage
from federated.jobs.limits import BATCH_ROWS_MAX
from federated.jobs.types import Column
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federated.jobs.items import Spec
    from federated.jobs.types import Row, RowOut

_PARAMS: Final = msgspec.json.Decoder(dict[str, object])
_COLUMNS: Final = msgspec.json.Decoder(list[Column])

NOTHING: Final = digest(b"")
HASH_HEX_CHARACTERS: Final = 64
INDEX_MAX: Final = 2**32


@dataclass(frozen=True, kw_only=True)
class JobHere:
    """A job as a worker knows it.

    Attributes:
        spec: what the coordinator sent.
        params: decoded.
        columns: decoded.
        render: fills the template with a row; None without one.
    """

    spec: Spec
    params: Mapping[str, object]
    columns: Sequence[Column]
    render: Callable[[Row], str] | None


def read_spec(spec: Spec, parse: Callable[[str], Callable[[Row], str]]) -> JobHere:
    """Decode what a coordinator said of a job.

    Args:
        spec: the item.
        parse: makes the filler of a template.

    Raises:
        DecodeError: params or columns are not what they should be.
    """
    try:
        params = _PARAMS.decode(spec.params)
        columns = _COLUMNS.decode(spec.columns)
        render = None if spec.template is None else parse(spec.template)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError, PlanError):
        raise DecodeError("a job's params, columns or template do not decode") from None
    return JobHere(spec=spec, params=params, columns=columns, render=render)


def spec_size(spec: Spec) -> int:
    """Bytes of what of a spec is kept."""
    return len(spec.params) + len(spec.columns) + len((spec.template or "").encode())


def read_rows(job: JobHere, data: bytes) -> Batch:
    """The rows of an offered task.

    Raises:
        DecodeError: they are not [[k, row, token, partial]...].
    """
    rows = []
    for entry in decode_table_untrusted(data):
        if not 2 <= len(entry) <= 4:
            raise DecodeError("a row of a task has two to four parts")
        k, row = entry[0], entry[1]
        if type(k) is not int or not 0 <= k < INDEX_MAX or not isinstance(row, dict):
            raise DecodeError("a row of a task is [index, row, ...]")
        token = _token(entry[2]) if len(entry) > 2 else None
        partial = entry[3] if len(entry) > 3 and isinstance(entry[3], dict) else None
        text = None if job.render is None else _filled(job.render, row)
        rows.append(BatchRow(k=k, row=row, text=text, token=token, partial=partial))
    if job.spec.effect and any(row.token is None for row in rows):
        raise DecodeError("a row with an effect has a token")
    if not 0 < len(rows) <= BATCH_ROWS_MAX or len({row.k for row in rows}) != len(rows):
        raise DecodeError("a task has 1 to 32 different rows")
    return Batch(rows=rows, params=job.params, columns=job.columns, reduces=job.spec.reduces)


def _filled(render: Callable[[Row], str], row: Row) -> str:
    try:
        return render(row)
    except PlanError:
        raise DecodeError("a template becomes too long, or a cell has no text") from None


def _token(text: object) -> bytes | None:
    if text is None:
        return None
    try:
        if isinstance(text, str) and len(text) == HASH_HEX_CHARACTERS:
            return bytes.fromhex(text)
    except ValueError:
        pass
    raise DecodeError("a token is 64 hexadecimal digits")


def write_rows(batch: Batch, answers: Sequence[RowOut], out_bytes_max: int) -> bytes:
    """Canonical bytes of a handler's answers.

    Raises:
        HandlerError: `bad_output` if it is none or names other rows, `output` if it is too large.
    """
    data = encode_normal([entry for _, entry in _checked(batch, answers)])
    if len(data) > out_bytes_max:
        raise HandlerError("output", f"the answer has {len(data)} bytes, {out_bytes_max} may be")
    return data


def write_entries(batch: Batch, answers: Sequence[RowOut], out_bytes_max: int) -> dict[int, bytes]:
    """Canonical bytes of a handler's answers, by row; of the rows that it answered.

    Raises:
        HandlerError: as `write_rows`.
    """
    found = {k: encode_normal(entry) for k, entry in _checked(batch, answers)}
    size = sum(len(entry) + 1 for entry in found.values()) + 1
    if size > out_bytes_max:
        raise HandlerError("output", f"the answer has {size} bytes, {out_bytes_max} may be")
    return found


def missing_entry(k: int, reason: str) -> bytes:
    """What says that a row has no answer."""
    return encode_normal([k, None, reason])


def join_entries(batch: Batch, entries: Mapping[int, bytes]) -> bytes:
    """The canonical answer of a task from those of its rows."""
    return b"[" + b",".join(entries[row.k] for row in batch.rows) + b"]"


def _checked(batch: Batch, answers: Sequence[RowOut]) -> list[tuple[int, list[object]]]:
    """A handler's answers by row, in its order.

    Raises:
        HandlerError: `bad_output`.
    """
    expected = {row.k for row in batch.rows}
    out: list[tuple[int, list[object]]] = []
    for answer in answers:
        try:
            k, row, reason = answer
        except (TypeError, ValueError):
            raise HandlerError("bad_output", "an answer is (k, row or None, reason)") from None
        if k not in expected:
            raise HandlerError("bad_output", "an answer to a row that was not asked")
        expected.discard(k)
        out.append((k, _entry(k, row, reason)))
    return out


def _entry(k: int, row: Row | None, reason: str) -> list[object]:
    if row is None:
        return [k, None, reason or "not_returned"]
    try:
        return [k, normal(row)]
    except PlanError:
        return [k, None, "bad_value"]


def done(task: int, attempt: int, rows: bytes, usage: Usage) -> TaskResult:
    """The result of a task that has an answer."""
    return TaskResult(task, attempt, "", 0, rows, False, digest(rows), usage, False)


def failed(task: int, attempt: int, error: HandlerError, usage: Usage) -> TaskResult:
    """The result of a task that has none; of the error, its reason alone travels."""
    retry_ms = int(error.retry_after_s * 1000)
    return TaskResult(
        task, attempt, error.reason[:64] or "exception", retry_ms, b"", False, NOTHING, usage, False
    )
