"""Frames of `/covey/sync/1`, `/covey/push/1` and `/covey/join/1`.

A frame is u32 big-endian length and one MessagePack array `[type, fields ...]`. Types are
append-only and each array has a fixed shape, so that a field too many is an error and not a
surprise. One decoder serves the three protocols; which messages are allowed when is the business of
each machine. Source: docs/specs/sync.md, docs/specs/join.md.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from p2p.errors import DecodeError
from p2p.replication.record import RecordWire

FRAME_BYTES_MAX: Final = 67_584
"""One record of the largest size with room around it: 1,024 + 64 + 65,792 + 704."""

RECORDS_MAX: Final = 256
"""Records in a frame: what a receiver verifies in ~40 ms."""

LIST_MAX: Final = 1024
"""Heads or ranges in a frame; a full frame of heads is followed by another."""

IDS_MAX: Final = 2048
"""Ids in a frame (64 KiB of 32-byte ids fit)."""

VERSION: Final = 1
"""Protocol version we speak: the range we offer is [1, 1]."""

FEATURE_RANGES: Final = 1
"""The sender reconciles by ranges: messages 7 and 8."""

FEATURE_VERIFY: Final = 2
"""The initiator wants to compare and to fetch nothing; counts where both have feature 1."""

Bytes8 = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
GroupTag = Annotated[bytes, msgspec.Meta(min_length=16, max_length=32)]
U8 = Annotated[int, msgspec.Meta(ge=0, le=255)]
U16 = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Lane = Annotated[int, msgspec.Meta(ge=0, le=1)]


class HeadEntry(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where one log stands at the sender.

    Attributes:
        author: salted short form of the author's key.
        incarnation: of the log.
        contiguous: highest seq without a gap below it.
        max_seq: highest seq held.
        head: salted short form of the id at `contiguous`; zeros: not to be compared.
    """

    author: Bytes8
    incarnation: U32
    contiguous: U63
    max_seq: U63
    head: Bytes8


class WantRange(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Records `first` to `last` of a log, both included."""

    author: Bytes8
    incarnation: U32
    lane: Lane
    first: U63
    last: U63


class ErasedPair(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A record that was erased, and the erase record that says so."""

    id: Bytes32
    by: Bytes32


class Counts(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How many ids of each lane the sender's root covers."""

    control: U63
    data: U63


class Hello(msgspec.Struct, array_like=True, tag=1, frozen=True, forbid_unknown_fields=True):
    """First frame of both sides: versions, features (ascending, unknown ones ignored), nonce."""

    v_min: U8
    v_max: U8
    features: Annotated[tuple[U16, ...], msgspec.Meta(max_length=64)]
    nonce: Bytes16


class Groups(msgspec.Struct, array_like=True, tag=2, frozen=True, forbid_unknown_fields=True):
    """Groups to compare, by salted tag. The responder's list first, then the common ones."""

    tags: Annotated[tuple[Bytes16, ...], msgspec.Meta(max_length=LIST_MAX)]


class State(msgspec.Struct, array_like=True, tag=3, frozen=True, forbid_unknown_fields=True):
    """Roots of both lanes, bound to the sender's side."""

    group: GroupTag
    control_root: Bytes32
    data_root: Bytes32


class Records(msgspec.Struct, array_like=True, tag=4, frozen=True, forbid_unknown_fields=True):
    """Records in wire form. An empty list ends an answer."""

    group: GroupTag
    wires: Annotated[tuple[RecordWire, ...], msgspec.Meta(max_length=RECORDS_MAX)]


class Heads(msgspec.Struct, array_like=True, tag=5, frozen=True, forbid_unknown_fields=True):
    """Where the sender's logs of a lane stand."""

    group: GroupTag
    lane: Lane
    entries: Annotated[tuple[HeadEntry, ...], msgspec.Meta(max_length=LIST_MAX)]


class Want(msgspec.Struct, array_like=True, tag=6, frozen=True, forbid_unknown_fields=True):
    """Ranges the sender asks for; an empty list says that it wants no more."""

    group: GroupTag
    ranges: Annotated[tuple[WantRange, ...], msgspec.Meta(max_length=LIST_MAX)]


class Recon(msgspec.Struct, array_like=True, tag=7, frozen=True, forbid_unknown_fields=True):
    """A message of range-based reconciliation of a lane; needs feature 1 on both sides."""

    group: GroupTag
    lane: Lane
    message: Annotated[bytes, msgspec.Meta(max_length=65_536)]


class WantIds(msgspec.Struct, array_like=True, tag=8, frozen=True, forbid_unknown_fields=True):
    """Records by the short ids a responder listed; an empty list says that no more follows."""

    group: GroupTag
    short: Annotated[tuple[Bytes8, ...], msgspec.Meta(max_length=IDS_MAX)]


class WantBodies(msgspec.Struct, array_like=True, tag=9, frozen=True, forbid_unknown_fields=True):
    """Whole records by id: cited control records, bodies, records announced by a push."""

    group: GroupTag
    ids: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=IDS_MAX)]


class Erased(msgspec.Struct, array_like=True, tag=10, frozen=True, forbid_unknown_fields=True):
    """Records not sent because they were erased, with the reason's id."""

    group: GroupTag
    pairs: Annotated[tuple[ErasedPair, ...], msgspec.Meta(max_length=LIST_MAX)]


class Done(msgspec.Struct, array_like=True, tag=11, frozen=True, forbid_unknown_fields=True):
    """The sender is done with a group: a root over both lanes, bound to its side, and sizes."""

    group: GroupTag
    root: Bytes32
    counts: Counts


class Error(msgspec.Struct, array_like=True, tag=12, frozen=True, forbid_unknown_fields=True):
    """The sender gives up; the text is shown as data, never trusted."""

    code: U16
    text: Annotated[str, msgspec.Meta(max_length=512)]
    v_min: U8
    v_max: U8


class Ask(msgspec.Struct, array_like=True, tag=13, frozen=True, forbid_unknown_fields=True):
    """Join door: show me this group's control records, I hold this invite."""

    group: Bytes32
    invite_key: Bytes32


class Have(msgspec.Struct, array_like=True, tag=14, frozen=True, forbid_unknown_fields=True):
    """Push: ids of new records; whoever lacks one after a second asks with `WantBodies`."""

    group: GroupTag
    ids: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=IDS_MAX)]


Message: TypeAlias = (
    Hello
    | Groups
    | State
    | Records
    | Heads
    | Want
    | Recon
    | WantIds
    | WantBodies
    | Erased
    | Done
    | Error
    | Ask
    | Have
)

ERROR_VERSION: Final = 1
ERROR_PROTOCOL: Final = 2
ERROR_REFUSED: Final = 3
ERROR_BUSY: Final = 4
ERROR_UNKNOWN_GROUP: Final = 5
ERROR_INVITE_CLOSED: Final = 6
ERROR_TICKET_EXPIRED: Final = 7
ERROR_TICKET_USED: Final = 8
ERROR_NOT_PERMITTED: Final = 9
ERROR_FULL: Final = 10
"""Codes of `Error`, append-only; docs/specs/sync.md names each."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode_frame(message: Message) -> bytes:
    """A whole frame, length included.

    Raises:
        ValueError: the message is larger than a frame may be: a bug of the caller.
    """
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise ValueError(f"{type(message).__name__} of {len(body)} B exceeds {FRAME_BYTES_MAX} B")
    return len(body).to_bytes(4, "big") + body


def decode_message_untrusted(body: bytes) -> Message:
    """One message of at most `FRAME_BYTES_MAX` bytes, without its length prefix.

    Raises:
        DecodeError: not a message of ours, or over a limit.
    """
    if len(body) > FRAME_BYTES_MAX:
        raise DecodeError(f"frame of {len(body)} B exceeds {FRAME_BYTES_MAX} B")
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        # msgspec lets the second and third through; its text may quote foreign bytes.
        raise DecodeError(f"not a replication message ({type(error).__name__})") from None


class FrameReader:
    """Cuts a byte stream into messages; holds at most one incomplete frame beside what was fed."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append bytes as they came."""
        self._buffer += data

    def next_message_untrusted(self) -> tuple[Message, int] | None:
        """The next whole message and its size with prefix in bytes, or None.

        Raises:
            DecodeError: a length over the limit or bytes that are no message. The reader is of no
                use afterwards.
        """
        if len(self._buffer) < 4:
            return None
        size = int.from_bytes(self._buffer[:4], "big")
        if not 0 < size <= FRAME_BYTES_MAX:
            raise DecodeError(f"frame of {size} B, allowed are 1 to {FRAME_BYTES_MAX} B")
        if len(self._buffer) < 4 + size:
            return None
        body = bytes(self._buffer[4 : 4 + size])
        del self._buffer[: 4 + size]
        return decode_message_untrusted(body), 4 + size
