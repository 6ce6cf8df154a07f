"""From a spec to a job that can run: rows with keys and hashes, rows put into tasks.

Pure, and slow enough for a hundred thousand rows to belong into a thread. Nothing is sent and
nothing kept here. Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from federated.errors import PlanError
from federated.jobs.batching import batches
from federated.jobs.canon import encode_normal, hash_parts, normal, row_hasher
from federated.jobs.columns import check_columns
from federated.jobs.effects import check_once
from federated.jobs.experience import START
from federated.jobs.keys import row_keys
from federated.jobs.limits import (
    COLUMNS_MAX,
    ROW_BYTES_MAX,
    ROWS_MAX,
    TEMPLATE_BYTES_MAX,
)
from federated.jobs.state import Job, RowCell, TaskCell
from federated.jobs.template import parse_template
from federated.jobs.types import ByHandler, Count, Sum, TopK
from federated.jobs.verify import parse_policy
from p2p.blobs.manifest import parse_blob_untrusted
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.jobs.types import JobId, JobSpec, Row
    from federated.seams import GroupId
    from p2p.identity import PeerId

ENGINES: Final = frozenset({"peers", "local"})
ENGINE_SCHEMES: Final = ("dask://", "tls://")

PIN: Final = "@peer"
BLOB: Final = "@blob"
"""Column of rows that are best computed where a blob is; a preference, no more."""
_BLOB_KEY: Final = b'"@blob":'
"""Input column that names the device a row is for."""

TITLE_CHARACTERS_MAX: Final = 200
PRIORITY_MAX: Final = 9


def check_spec(spec: JobSpec) -> None:
    """What can be said of a spec without its rows.

    Raises:
        PlanError: `bad_spec` or `too_large`, with the place.
    """
    if not 0 < len(spec.handler) <= 128:
        raise PlanError("bad_spec", "name a handler, such as wordcount@1", path="handler")
    if len(spec.columns) > COLUMNS_MAX:
        raise PlanError("too_large", f"at most {COLUMNS_MAX} columns", path="columns")
    check_columns(spec.columns)
    parse_policy(spec.verify)
    if spec.template is not None and len(spec.template.encode()) > TEMPLATE_BYTES_MAX:
        raise PlanError("too_large", f"at most {TEMPLATE_BYTES_MAX} bytes", path="template")
    if not 0 <= spec.priority <= PRIORITY_MAX:
        raise PlanError("bad_spec", f"0 to {PRIORITY_MAX}", path="priority")
    if not 0 < spec.deadline_s <= 30 * 86_400:
        raise PlanError("bad_spec", "more than 0 and at most 30 days", path="deadline_s")
    if not 0 <= spec.max_retries <= 100:
        raise PlanError("bad_spec", "0 to 100", path="max_retries")
    _check_built(spec)
    _check_gaps(spec)
    if len(spec.title) > TITLE_CHARACTERS_MAX:
        raise PlanError("too_large", f"at most {TITLE_CHARACTERS_MAX} characters", path="title")


def _check_built(spec: JobSpec) -> None:
    """Refuse what a later version will do, rather than do less than was asked.

    Raises:
        PlanError: `bad_spec`.
    """
    if spec.effect == "once":
        check_once(spec)
    if isinstance(spec.reduce, ByHandler) and not 0 < len(spec.reduce.handler) <= 128:
        raise PlanError("bad_spec", "name a handler", path="reduce.handler")
    if spec.engine not in ENGINES and not spec.engine.startswith(ENGINE_SCHEMES):
        raise PlanError(
            "bad_spec", "peers, local, dask://HOST:PORT or tls://HOST:PORT", path="engine"
        )


def _check_gaps(spec: JobSpec) -> None:
    """What a delta job may say.

    Raises:
        PlanError: `bad_spec`.
    """
    if spec.gaps_of is None:
        for name in ("gap_columns", "gap_rows"):
            if getattr(spec, name):
                raise PlanError("bad_spec", "says nothing without gaps_of", path=name)
    elif spec.rows:
        raise PlanError("bad_spec", "the rows are those of the job in gaps_of", path="rows")
    declared = {column.name for column in spec.columns}
    for i, name in enumerate(spec.gap_columns):
        if declared and name not in declared:
            raise PlanError("bad_spec", f"no column is called {name!r}", path=f"gap_columns[{i}]")


def make_job(
    spec: JobSpec, rows: Sequence[Row], *, ident: JobId, nonce: bytes, group: GroupId | None,
    agent: str, now: float, wall_ms: int, code_hash: str | None, cacheable: bool,
    find_peer: Callable[[str], PeerId | None],
    auto_rows: Callable[[int, int], int] = lambda _rows, _size: START,
) -> Job:  # fmt: skip
    """A job with rows and tasks, not yet known to anybody.

    Args:
        spec: checked by `check_spec`.
        rows: its rows, where the spec only says where they stand.
        ident: its id.
        nonce: 16 random bytes.
        group: whose members may see the rows.
        agent: who submits.
        now: monotonic seconds.
        wall_ms: Unix milliseconds.
        code_hash: hex SHA-256 of code that travels with it.
        cacheable: whether equal rows have equal answers.
        find_peer: the device a `@peer` cell names.
        auto_rows: rows of a task where the spec leaves it to us, given rows and bytes of the job.

    Raises:
        PlanError: what is wrong with which row.
    """
    if len(rows) > ROWS_MAX:
        raise PlanError("too_large", f"{len(rows)} rows, {ROWS_MAX} may be", path="rows")
    job = Job(
        ident, spec, group=group, agent=agent, nonce=nonce, submitted_ms=wall_ms,
        deadline=now + spec.deadline_s,
    )  # fmt: skip
    normalised = [_row(row, i) for i, row in enumerate(rows)]
    keys, kept = row_keys(spec, normalised)
    hasher = row_hasher(
        [
            spec.handler, code_hash, normal(spec.params), spec.template,
            normal(msgspec.to_builtins(spec.columns)),
        ]
    )  # fmt: skip
    # Who combines pairs answers otherwise than who does not.
    shared = b',"pairs"' if reduces(spec) else b""
    parse = None if spec.template is None else parse_template(spec.template, None)
    for i, key in zip(kept, keys, strict=True):
        row = normalised[i]
        pin = _pin(row, i, find_peer)
        if parse is not None:
            parse.check(row, path=f"rows[{i}]")
        source = encode_normal(row)
        if len(source) > ROW_BYTES_MAX:
            raise PlanError("too_large", f"more than {ROW_BYTES_MAX} bytes", path=f"rows[{i}]")
        k = len(job.rows)
        suffix = shared if cacheable else b',"%s",%d' % (nonce.hex().encode(), k)
        cell = RowCell(k, key, hasher.hash(source, suffix), source)
        cell.pin = pin
        job.rows.append(cell)
        if (blob := _blob(row, i)) is not None:
            job.blobs[k] = blob
    job.counts[0] = len(job.rows)
    _make_tasks(job, [normalised[i] for i in kept], auto_rows, now)
    return job


def reduces(spec: JobSpec) -> bool:
    """Whether answers are pairs that the worker combines beforehand."""
    return isinstance(spec.reduce, Count | Sum | TopK)


def _row(row: Row, i: int) -> Row:
    found = normal(row, f"rows[{i}]")
    assert isinstance(found, dict)
    return found


def _pin(row: Row, i: int, find_peer: Callable[[str], PeerId | None]) -> PeerId | None:
    name = row.get(PIN)
    if name is None:
        return None
    peer = find_peer(name) if isinstance(name, str) else None
    if peer is None:
        raise PlanError("bad_spec", f"no device is called {name!r}", path=f"rows[{i}].{PIN}")
    return peer


def _blob(row: Row, i: int) -> bytes | None:
    text = row.get(BLOB)
    if text is None:
        return None
    try:
        return parse_blob_untrusted(str(text))
    except DecodeError as error:
        raise PlanError("bad_spec", str(error), path=f"rows[{i}].{BLOB}") from None


def blob_of(source: bytes) -> bytes | None:
    """The blob that a row of the journal names."""
    if _BLOB_KEY not in source:
        return None
    row = msgspec.json.decode(source)
    return _blob(row, 0) if isinstance(row, dict) else None


def _make_tasks(
    job: Job, rows: Sequence[Row], auto_rows: Callable[[int, int], int], now: float
) -> None:
    """Put the rows into tasks; rows for different devices never travel together."""
    by_pin: dict[PeerId | None, list[int]] = {}
    for cell in job.rows:
        by_pin.setdefault(cell.pin, []).append(cell.k)
    pinned = len(by_pin) > 1 or None not in by_pin
    sizes = [len(cell.source) + 16 for cell in job.rows]
    input_bytes = sum(len(cell.source) for cell in job.rows)
    found = batches(job.spec.batch, rows, sizes, auto=lambda: auto_rows(len(rows), input_bytes))
    for ks in found:
        parts: dict[PeerId | None, list[int]] = {None: list(ks)}
        if pinned:
            parts = {}
            for k in ks:
                parts.setdefault(job.rows[k].pin, []).append(k)
        for part in parts.values():
            size = sum(sizes[k] for k in part)
            task = TaskCell(len(job.tasks), tuple(part), size, now)
            job.tasks.append(task)
            job.queue.append(task)


def spec_hash(spec: JobSpec) -> bytes:
    """Names a spec: the same key with another spec is a conflict."""
    return hash_parts(normal(msgspec.to_builtins(spec)))
