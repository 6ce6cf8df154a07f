"""Bodies of entry records (kind 32): MessagePack arrays `[tag, agent, fields...]`.

Permanent: a body is signed and kept by every replica, so tags and fields are only ever added. A
body of a newer tag is stored and passed on, and shown once a later Covey understands it. Pure.
Source: docs/specs/memory.md, *Bodies*.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from memory.errors import DecodeError
from memory.model import Kind, Role

BODY_BYTES_MAX: Final = 65_536
"""Limit of a record's plain body."""

ENTRY_KIND: Final = 32
"""Record kind that carries these bodies."""

AT_MS_MIN: Final = -62_135_596_800_000
"""0001-01-01: the earliest date that ISO 8601 text of four digits can show."""

AT_MS_MAX: Final = 253_402_300_799_999
"""The end of 9999-12-31."""

PARENTS_MAX: Final = 16
TAGS_MAX: Final = 32
FORGET_TARGETS_MAX: Final = 256

# A foreign body may be well-formed and still hostile: every field is bounded here, in characters.
Id = Annotated[bytes, Meta(min_length=32, max_length=32)]
Agent = Annotated[str, Meta(max_length=64)]
ScopeName = Annotated[str, Meta(pattern=r"\A[a-z0-9._-]{1,64}\Z")]
Short = Annotated[str, Meta(max_length=128)]
Line = Annotated[str, Meta(max_length=512)]
Millis = Annotated[int, Meta(ge=AT_MS_MIN, le=AT_MS_MAX)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
ClaimBody: TypeAlias = tuple[Line, Line, Annotated[str, Meta(max_length=4096)]]
SourceBody: TypeAlias = tuple[Annotated[str, Meta(max_length=2048)] | None, Short | None, Id | None]

LinkType = Literal["supersedes", "contradicts", "confirms", "same_as"]
Outcome = Literal["useful", "wrong", "stale", "harmful"]
Basis = Literal["owner", "outcome", "evidence"]


class NoteBody(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag_field="tag", tag=1
):
    """A note; `pos` is its place in the thread, `at_ms` the date of what it tells."""

    agent: Agent
    scope: ScopeName
    kind: Kind
    role: Role
    speaker: Short | None
    text: str
    title: Line | None
    thread: Short | None
    pos: Count
    at_ms: Millis
    valid_from: Millis | None
    valid_to: Millis | None
    tags: Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=32)]
    claim: ClaimBody | None
    source: SourceBody | None
    derived_from: Annotated[list[Id], Meta(max_length=PARENTS_MAX)]
    ttl_s: Count | None
    idem: Annotated[str, Meta(min_length=1, max_length=128)] | None


class LinkBody(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag_field="tag", tag=2
):
    """A statement about two memories."""

    agent: Agent
    src: Id
    dst: Id
    type: LinkType
    note: Line | None


class VerdictBody(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag_field="tag", tag=3
):
    """What became of relying on a memory."""

    agent: Agent
    target: Id
    outcome: Outcome
    basis: Basis
    evidence: Id | None
    note: Line | None


class EndorseBody(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag_field="tag", tag=4
):
    """How far the author trusts another owner; level 0 is distrust."""

    agent: Agent
    subject: Id
    level: Annotated[int, Meta(ge=0, le=100)]
    until_ms: Millis | None


class ForgetBody(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag_field="tag", tag=5
):
    """The author no longer wants these memories found."""

    agent: Agent
    targets: Annotated[list[Id], Meta(min_length=1, max_length=FORGET_TARGETS_MAX)]
    reason: Line | None


class ProfileBody(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag_field="tag", tag=6
):
    """What the writing device calls itself: shown, never trusted."""

    agent: Agent
    name: Annotated[str, Meta(min_length=1, max_length=64)]


Body: TypeAlias = NoteBody | LinkBody | VerdictBody | EndorseBody | ForgetBody | ProfileBody

_TAGS: Final = frozenset(range(1, 1 + len(get_args(Body))))
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Body]] = msgspec.msgpack.Decoder(Body)


def encode_body(body: Body) -> bytes:
    """The signed bytes.

    Raises:
        DecodeError: over the limit of a record; callers turn it into `too_large`.
    """
    data = _encoder.encode(body)
    if len(data) > BODY_BYTES_MAX:
        raise DecodeError(f"the body has {len(data)} bytes, {BODY_BYTES_MAX} are allowed")
    return data


def peek_tag(data: bytes) -> int:
    """The body's tag, 0 if these bytes cannot have one."""
    # A fixarray of at most 15 or an array16, then a positive fixint: no other smallest encoding.
    at = 1 if data[:1] and data[0] & 0xF0 == 0x90 else 3 if data[:1] == b"\xdc" else len(data)
    return data[at] if at < len(data) and data[at] < 0x80 else 0


def is_newer(data: bytes) -> bool:
    """Whether these bytes are a body of a tag that this version does not know."""
    return peek_tag(data) > max(_TAGS)


def decode_body_untrusted(data: bytes) -> Body:
    """Read a body that somebody else may have written.

    Raises:
        DecodeError: not a body of this version, or not its only encoding.
    """
    if len(data) > BODY_BYTES_MAX:
        raise DecodeError(f"a body of {len(data)} bytes is over the limit of {BODY_BYTES_MAX}")
    try:
        body = _decoder.decode(data)
        again = _encoder.encode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise DecodeError(f"tag {peek_tag(data)}: not a body of this version") from exc
    if again != data:
        raise DecodeError("the body is not in its smallest encoding")
    return body
