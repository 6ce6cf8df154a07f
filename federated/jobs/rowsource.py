"""Where a job's rows come from: the spec itself, an earlier job, a blob of JSON lines.

Rows that stand elsewhere are read once, when the job is submitted, and kept in its journal: what
becomes of the blob or the earlier job afterwards changes nothing. Both are foreign bytes: whatever
they hold becomes rows, or a `PlanError` that names the line. Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from federated.errors import PlanError
from federated.jobs.limits import ROW_BYTES_MAX, ROWS_BLOB_BYTES_MAX, ROWS_MAX
from federated.jobs.state import JOB_FINAL, RowState
from federated.jobs.types import Collect, JobId, RowsRef
from p2p.blobs.manifest import parse_blob_untrusted
from p2p.errors import DecodeError, LimitError, P2pError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from federated.jobs.journal import Finished, Journal
    from federated.jobs.types import JobSpec, Row
    from federated.seams import GroupId
    from p2p.blobs.fetch import Progress
    from p2p.blobs.manifest import BlobId
    from p2p.blobs.service import Blobs
    from p2p.env import Offload

PAGE: Final = 1000
LINE_BYTES_MAX: Final = 4 * ROW_BYTES_MAX
"""Of a line: a row of 64 KiB may be written with blanks and escapes."""

_ROWS: Final = msgspec.json.Decoder(dict[str, object])


class RowSource:
    """Reads rows.

    Args:
        journal: earlier jobs.
        blobs: of this node; None: it keeps none.
        offload: where long computations go.
    """

    def __init__(self, journal: Journal, blobs: Blobs | None, offload: Offload) -> None:
        self._journal = journal
        self._blobs = blobs
        self._offload = offload

    async def rows(self, spec: JobSpec, *, agent: str, group: GroupId | None) -> list[Row]:
        """The rows of a spec.

        Args:
            spec: checked, but for what it refers to.
            agent: who submits; another agent's jobs are none to it.
            group: whom a blob that is not here is fetched from.

        Raises:
            PlanError: `bad_spec`, `bad_value` or `too_large`: there are none, or not such.
        """
        ref = spec.rows
        if not isinstance(ref, RowsRef):
            await trio.lowlevel.checkpoint()
            return ref
        if (ref.job is None) == (ref.blob is None):
            raise PlanError("bad_spec", "name either a job or a blob", path="rows")
        if ref.job is not None:
            return await self._of_job(ref.job, agent)
        assert ref.blob is not None
        return await self._of_blob(ref.blob, group)

    # ---- an earlier job

    async def _of_job(self, text: str, agent: str) -> list[Row]:
        try:
            ident = bytes.fromhex(text)
        except ValueError:
            ident = b""
        found = await self._journal.job(JobId(ident)) if ident else None
        if found is None or (agent and found.agent != agent):
            raise PlanError("bad_spec", "there is no such job", path="rows.job")
        if found.phase not in JOB_FINAL:
            raise PlanError("bad_spec", f"that job is {found.phase} still", path="rows.job")
        if isinstance(found.spec.reduce, Collect):
            return await self._answers(found)
        return await self._reduced(found)

    async def _answers(self, found: Finished) -> list[Row]:
        rows: list[Row] = []
        for offset in range(0, found.rows, PAGE):
            page = await self._journal.rows(found.id, offset, PAGE)
            answers = [row.value for row in page if row.state is RowState.OK]
            rows += [_ROWS.decode(value) for value in answers if value is not None]
        return rows

    async def _reduced(self, found: Finished) -> list[Row]:
        rows: list[Row] = []
        while True:
            page = await self._journal.reduced(found.id, len(rows), PAGE)
            rows += [_ROWS.decode(value) for value in page]
            if len(rows) > ROWS_MAX:
                raise PlanError("too_large", f"more than {ROWS_MAX} rows", path="rows.job")
            if len(page) < PAGE:
                return rows

    # ---- a blob

    async def _of_blob(self, text: str, group: GroupId | None) -> list[Row]:
        if self._blobs is None:
            raise PlanError("bad_spec", "this machine keeps no blobs", path="rows.blob")
        try:
            blob = parse_blob_untrusted(text)
        except DecodeError as error:
            raise PlanError("bad_spec", str(error), path="rows.blob") from None
        path = await self._blobs.path(blob)
        if path is None:
            path = await self._fetched(self._blobs, blob, group)
        info = await self._blobs.stat(blob)
        if info is None or info.size > ROWS_BLOB_BYTES_MAX:
            raise too_large()
        return await self._offload.run(lambda: rows_of_file(path))

    async def _fetched(self, blobs: Blobs, blob: BlobId, group: GroupId | None) -> Path:
        """A blob of the group's, unless it turns out to be too large."""
        with trio.CancelScope() as scope:

            def look(progress: Progress) -> None:
                if (progress.bytes_total or 0) > ROWS_BLOB_BYTES_MAX:
                    scope.cancel()

            try:
                return await blobs.fetch(blob, group, on_progress=look)
            except LimitError:
                raise too_large() from None
            except P2pError as error:
                raise PlanError("bad_spec", str(error), path="rows.blob") from None
        raise too_large()


def too_large() -> PlanError:
    """What is said of a blob beyond the limit."""
    return PlanError("too_large", f"at most {ROWS_BLOB_BYTES_MAX} bytes", path="rows.blob")


def rows_of_file(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; see `rows_of_lines`."""
    try:
        with path.open("rb") as file:
            return rows_of_lines(iter(lambda: file.readline(LINE_BYTES_MAX + 1), b""))
    except OSError:
        raise PlanError("bad_spec", "the blob was removed meanwhile", path="rows.blob") from None


def rows_of_lines(lines: Iterable[bytes]) -> list[Row]:
    """A row a line; empty lines are none.

    Raises:
        PlanError: `bad_value` or `too_large`, with the number of the line from 1.
    """
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_BYTES_MAX:
            raise PlanError("too_large", f"more than {ROW_BYTES_MAX} bytes", path=f"line {number}")
        if not line.strip():
            continue
        if len(rows) >= ROWS_MAX:
            raise PlanError("too_large", f"more than {ROWS_MAX} rows", path="rows.blob")
        try:
            rows.append(_ROWS.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
            raise PlanError("bad_value", "a row is a JSON object", path=f"line {number}") from None
    return rows
