"""What a job is: the table to fill, and how.

    spec = JobSpec(handler="wordcount@1", rows=[{"text": "a b a"}], reduce=TopK(n=20))

Decoded strictly from what a client sends: an unknown field is an error, because a misspelt limit
that is ignored is found too late. Source: docs/specs/jobs.md s.2.
"""

from __future__ import annotations

from typing import Literal, NewType, TypeAlias

import msgspec

JobId = NewType("JobId", bytes)
"""16 random bytes."""

Row: TypeAlias = dict[str, object]
"""One row: JSON values by column name."""

RowOut: TypeAlias = tuple[int, Row | None, str]
"""A handler's answer for a row: its index, and either the row or why there is none."""

ColumnType = Literal["str", "int", "float", "bool", "date", "url", "enum", "list[str]"]


class _Part(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pass


class Column(_Part, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A column of the table to fill.

    Attributes:
        name: as it stands in the answers.
        type: what its cells are; decides how two answers are compared.
        required: whether a row without it is missing; else the cell may be null.
        tol: how far two answers may differ: relative for float, days for date.
        enum: the words allowed, for type enum.
        max_len: characters of a str or url, elements of a list.
        min: least value, for int and float.
        max: greatest value, for int and float.
    """

    name: str
    type: ColumnType = "str"
    required: bool = True
    tol: float | None = None
    enum: list[str] = []
    max_len: int = 4096
    min: float | None = None
    max: float | None = None


class PerRow(_Part, tag_field="kind", tag="per_row", frozen=True, forbid_unknown_fields=True):
    """A task a row."""


class ByAttr(
    _Part, tag_field="kind", tag="by_attr", kw_only=True, frozen=True, forbid_unknown_fields=True
):
    """Rows with equal values of a column go together.

    Attributes:
        column: whose values.
        max: most rows of a task.
    """

    column: str
    max: int = 32


class Open(
    _Part, tag_field="kind", tag="open", kw_only=True, frozen=True, forbid_unknown_fields=True
):
    """Tasks that the caller draws.

    Attributes:
        groups: each a list of row indices, or of values of `column`.
        column: whose values the groups name; None: they are indices.
        chunk: rows of a task among those that no group names.
    """

    groups: list[list[object]]
    column: str | None = None
    chunk: int = 8


class Auto(_Part, tag_field="kind", tag="auto", frozen=True, forbid_unknown_fields=True):
    """The size that served jobs like this best, as far as this machine has learned."""


Batching: TypeAlias = PerRow | ByAttr | Open | Auto


class Collect(_Part, tag_field="kind", tag="collect", frozen=True, forbid_unknown_fields=True):
    """The answers in the order of the rows."""


class Table(_Part, tag_field="kind", tag="table", frozen=True, forbid_unknown_fields=True):
    """A row a key; answers that contradict each other are listed with who gave them."""


class Count(_Part, tag_field="kind", tag="count", frozen=True, forbid_unknown_fields=True):
    """How many pairs each key has."""


class Sum(_Part, tag_field="kind", tag="sum", frozen=True, forbid_unknown_fields=True):
    """The sum of each key's numbers."""


class TopK(
    _Part, tag_field="kind", tag="topk", kw_only=True, frozen=True, forbid_unknown_fields=True
):
    """The n keys with the greatest sums.

    Attributes:
        n: how many.
    """

    n: int


class GroupBy(
    _Part, tag_field="kind", tag="group", kw_only=True, frozen=True, forbid_unknown_fields=True
):
    """The answers under each value of a column.

    Attributes:
        by: which column.
        cap: most rows kept of a group; the result says where it was reached.
    """

    by: str
    cap: int = 1000


class ByHandler(
    _Part, tag_field="kind", tag="handler", kw_only=True, frozen=True, forbid_unknown_fields=True
):
    """A second stage: an associative handler joins answers pairwise until one is left.

    Attributes:
        handler: `name@version`; it gets rows {"a": answer, "b": answer} and gives an answer.
    """

    handler: str


Reduce: TypeAlias = Collect | Table | Count | Sum | TopK | GroupBy | ByHandler


class Limits(_Part, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a task may take; None: what its kind of handler allows.

    Attributes:
        wall_s: seconds.
        mem_bytes: memory.
        out_bytes: bytes of its answer.
        executions: attempts of the whole job before it asks whether to go on.
    """

    wall_s: float | None = None
    mem_bytes: int | None = None
    out_bytes: int | None = None
    executions: int | None = None


class RowsRef(_Part, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Rows that stand elsewhere; exactly one of the two.

    Attributes:
        job: hex id of a finished job: its result rows.
        blob: id of a blob: JSON lines.
    """

    job: str | None = None
    blob: str | None = None


class JobSpec(_Part, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A job as its caller writes it.

    Attributes:
        handler: `name@version`, or `llm:MODEL`, or `expr:` with the code in `params.code`.
        rows: the input, or where it stands; a row's index is its identity. The input column
            `@peer` pins a row to a device (its name or id).
        columns: what the answers must have; none: anything.
        key_columns: columns that name a row; none: its index does.
        template: text with `{{column}}`, filled with the row at the worker.
        params: for the handler.
        batch: how rows are put into tasks.
        reduce: what becomes of the answers.
        verify: `auto`, `none`, `spot:P`, `adaptive` or `quorum:M`.
        group: who may see the rows: `own` devices, or the name of a group.
        deadline_s: after so long what is open is given up.
        priority: 0 to 9; agents at most 6.
        max_retries: how often a task is tried again after a loss or a passing refusal.
        hedge: whether a slow task may run twice.
        cache: `use` earlier answers, `refresh` them, or `off`.
        gaps_of: hex id of a finished job: its rows, of which only the missing, disputed and
            tainted ones are asked for; `rows` is empty then.
        gap_columns: with it, ask also for rows whose answer lacks one of these columns, and take
            these alone of the new answer.
        gap_rows: with it, ask for these rows alone, by index; whatever may have acted on the world
            already is asked again only so.
        limits: see there.
        effect: `once` for handlers that act on the world: at most once, by token.
        engine: `peers`, `local`, or an address that the operator allowed.
        on_duplicate: `first` keeps the first row of a key instead of refusing the job.
        title: for people; at most 200 characters.
    """

    handler: str
    rows: list[Row] | RowsRef
    columns: list[Column] = []
    key_columns: list[str] = []
    template: str | None = None
    params: Row = {}
    batch: Batching = Auto()
    reduce: Reduce = Collect()
    verify: str = "auto"
    group: str = "own"
    deadline_s: float = 3600.0
    priority: int = 5
    max_retries: int = 3
    hedge: bool = True
    cache: Literal["use", "refresh", "off"] = "use"
    gaps_of: str | None = None
    gap_columns: list[str] = []
    gap_rows: list[int] = []
    limits: Limits = Limits()
    effect: Literal["none", "once"] = "none"
    engine: str = "peers"
    on_duplicate: Literal["error", "first"] = "error"
    title: str = ""
