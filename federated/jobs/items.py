"""What coordinator and worker say to each other: items of the peer RPC call `job.session`.

Each item is a MessagePack array [tag, fields...] of at most 256 KiB, decoded strictly. Times are
relative milliseconds of each side's own monotonic clock, so no two clocks need agree.
Source: docs/specs/jobs.md s.4.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from federated.jobs.limits import ITEM_BYTES_MAX
from p2p.errors import DecodeError
from p2p.rpc_types import Method

API: Final = 1
"""Version of these items; both sides say theirs in `Hello`."""

RESULT_DOMAIN: Final = b"covey/job-result/1\0"

Ident: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""A job's id."""
U8: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
U16: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U63: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What the journal's integers can hold."""

Ref: TypeAlias = tuple[Ident, U32, U16]
"""(job id, task, attempt): the attempt is random, a counter would betray a check."""

Why: TypeAlias = Literal[
    "busy", "policy", "unknown_handler", "version", "too_large", "deadline", "battery", "cold",
    "quota", "draining", "stale_epoch", "in_use",
]  # fmt: skip
HeldState: TypeAlias = Literal["queued", "running", "finished", "unknown"]


class _Item(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    pass


class Offered(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """A handler as this caller may use it."""

    id: str
    kind: str
    deterministic: bool
    effect: bool
    slots: U32
    cold_ms: U63
    warm: bool


class Load(_Item, tag=13, frozen=True):
    """How busy a worker is; at most each 2 s, only while jobs run. It orders candidates only."""

    slots: U32
    running: U32
    queue_ms: U63
    warm: list[str]
    on_ac: bool
    battery: U8
    """Percent; 255 unknown."""


class Hello(_Item, tag=1, frozen=True):
    """Who speaks. The coordinator sends no handlers and no load."""

    api: U63
    epoch: U63
    """The coordinator's; a worker refuses offers of an older one. 0 from a worker."""
    handlers: list[Offered]
    load: Load | None


class Spec(_Item, tag=2, frozen=True):
    """What a job's tasks have in common; before its first offer to a peer."""

    job: Ident
    group: bytes | None
    handler: str
    params: bytes
    """Canonical JSON object."""
    template: str | None
    columns: bytes
    """Canonical JSON array of columns."""
    wall_ms: U63
    """0: the handler's own limit; likewise below."""
    mem_bytes: U63
    out_bytes: U63
    effect: bool
    reduces: bool


class OfferTask(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """A task to take or refuse."""

    task: U32
    attempt: U16
    rows: bytes
    """Canonical JSON [[k, row, token if the job has effects, partial answer if there is one]...],
    or the id of a blob that holds it."""
    in_blob: bool
    deadline_ms: U63


class Offer(_Item, tag=3, frozen=True):
    """Tasks of one job, at most 64."""

    job: Ident
    lease_ms: U63
    tasks: list[OfferTask]


class Refusal(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """A task not taken; costs nobody anything."""

    ref: Ref
    why: str
    retry_ms: U63


class Reply(_Item, tag=4, frozen=True):
    """Which offered tasks are taken and which not."""

    accepted: list[Ref]
    refused: list[Refusal]


class Beat(_Item, tag=5, frozen=True):
    """These are still wanted; their leases begin anew."""

    refs: list[tuple[Ident, U32, U16, bool, float]]
    """(job, task, attempt, whether it runs, share done)."""
    load: Load | None


class Usage(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """What a task took, as the worker says: it orders candidates only."""

    wall_ms: U63 = 0
    cpu_ms: U63 = 0
    peak_mem: U63 = 0
    tokens_in: U63 = 0
    tokens_out: U63 = 0


class TaskResult(
    msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False
):
    """What became of an attempt."""

    task: U32
    attempt: U16
    error: str
    """Empty, or a reason of `HandlerError`; then `rows` is empty."""
    retry_ms: U63
    rows: bytes
    """Canonical JSON [[k, row] | [k, null, reason]...], or the id of a blob."""
    in_blob: bool
    out_hash: bytes
    usage: Usage
    truncated: bool


class Result(_Item, tag=6, frozen=True):
    """Results of one job, signed once unless both are devices of one owner."""

    job: Ident
    body: bytes
    """MessagePack array of `TaskResult`."""
    signature: bytes


class Ack(_Item, tag=7, frozen=True):
    """The results of these are kept; the worker may forget them."""

    refs: list[Ref]


class Cancel(_Item, tag=8, frozen=True):
    """Stop tasks of a job."""

    job: Ident
    attempts: list[tuple[U32, U16]] | None
    """(task, attempt); None: all."""
    unstarted_only: bool


class Cancelled(_Item, tag=9, frozen=True):
    """What became of a cancel."""

    job: Ident
    stopped: list[tuple[U32, U16]]
    never_started: list[tuple[U32, U16]]
    already_done: list[tuple[U32, U16]]


class Credit(_Item, tag=10, frozen=True):
    """How many tasks of this coordinator may be outstanding: absolute."""

    tasks: U63


class Have(_Item, tag=11, frozen=True):
    """Jobs of this coordinator that live: what is known of others may go."""

    jobs: list[Ident]


class Holding(_Item, tag=12, frozen=True):
    """What the worker has of those jobs."""

    refs: list[tuple[Ident, U32, U16, HeldState]]


class Bye(_Item, tag=14, frozen=True):
    """No new tasks, please: the worker ends or drains."""

    after_ms: U63


class Failed(_Item, tag=15, frozen=True):
    """The session cannot go on; it is closed after this."""

    code: str
    detail: str


Item: TypeAlias = (
    Hello | Spec | Offer | Reply | Beat | Result | Ack | Cancel | Cancelled | Credit | Have
    | Holding | Load | Bye | Failed
)  # fmt: skip

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Item]] = msgspec.msgpack.Decoder(Item)
_RESULTS: Final = msgspec.msgpack.Decoder(list[TaskResult])

SESSION: Final = Method(
    "job.session",
    request=bytes,
    reply=bytes,
    item_in=bytes,
    item_out=bytes,
    concurrent_max=2,
)
"""One call a (coordinator, worker), opened by the coordinator; a newer ends the older."""


def encode_item(item: Item) -> bytes:
    """The bytes of an item."""
    return _ENCODER.encode(item)


def decode_job_item_untrusted(data: bytes) -> Item:
    """An item of a peer.

    Raises:
        DecodeError: too long, or no item.
    """
    if len(data) > ITEM_BYTES_MAX:
        raise DecodeError("a job item is too long")
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        raise DecodeError("no job item") from None


def encode_results(results: list[TaskResult]) -> bytes:
    """The body of a `Result`."""
    return _ENCODER.encode(results)


def decode_results_untrusted(body: bytes) -> list[TaskResult]:
    """The results in a body.

    Raises:
        DecodeError: it holds none.
    """
    try:
        return _RESULTS.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        raise DecodeError("no job results") from None


def signed_part(coordinator: bytes, job: bytes, epoch: int, body: bytes) -> bytes:
    """What a worker signs of a `Result`, after `RESULT_DOMAIN`.

    Bound to coordinator, job and epoch: a result shown elsewhere proves nothing.
    """
    return coordinator + job + struct.pack(">Q", epoch) + body
