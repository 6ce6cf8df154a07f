"""Records on the pool's socket: 64 bytes each, in both directions.

`lend`, `filled`, `done`, `result` are asked by the trainer and answered by the pool with the same
kind, `filled` with `done`; a `nack` says what was refused and why:

    trainer asks                                    the pool answers
    lend    lane, dtype, nbytes                     lend    segment, generation, nbytes = its size
    filled  lane, segment, generation, offset,      done    the same, once it is folded
            nbytes, weight, round
    filled  the same without a segment, crc32,      done    the same, once it is folded
            then nbytes of update
    done    segment, generation: not needed         done    the same
    result  lane, round: the first it has not seen  result  segment, generation, nbytes, round,
                                                            weight, count; or without a segment,
                                                            crc32, then nbytes

A descriptor travels beside a `lend` or `result` (SCM_RIGHTS) when the trainer cannot have it yet.
Little-endian; a field that a kind does not use is zero, a segment that is none is `NO_SEGMENT`.
Source: docs/specs/pool.md.
"""

from __future__ import annotations

import enum
import math
import struct
from dataclasses import dataclass
from typing import Final

from federated.rounds.numeric.limits import WEIGHT_MAX
from p2p.errors import DecodeError

MAGIC: Final = b"CVP1"
RECORD_BYTES: Final = 64

NO_SEGMENT: Final = 0xFFFF_FFFF
"""In place of a segment's number: the bytes follow on the socket."""
SEGMENT_MAX: Final = 0xFFFF_FFFE
"""Numbers are not used twice, so that a late record cannot mean another segment."""
GENERATION_MAX: Final = (1 << 63) - 1
ROUND_MAX: Final = (1 << 63) - 1
LANE_MAX: Final = 1023
"""8 open rounds a group, 128 groups."""
UPDATE_BYTES_MAX: Final = 4 << 30
"""An update's size (docs/specs/pool.md s.2)."""
ALIGN_BYTES: Final = 64
"""Offsets are multiples of it: a cache line, and what vector instructions like."""

_LAYOUT: Final = struct.Struct("<4sBBHIIQQQdQII")
assert _LAYOUT.size == RECORD_BYTES


class Kind(enum.IntEnum):
    """What a record says."""

    LEND = 1
    FILLED = 2
    DONE = 3
    RESULT = 4
    NACK = 5


class Dtype(enum.IntEnum):
    """What the bytes are."""

    NONE = 0
    F32 = 1
    BYTES = 2


ITEM_BYTES: Final = {Dtype.NONE: 1, Dtype.F32: 4, Dtype.BYTES: 1}


class Reason(enum.IntEnum):
    """Why the pool refused."""

    NONE = 0
    FULL = 1
    STALE = 2
    LANE = 3
    ROUND = 4
    DTYPE = 5
    SIZE = 6
    WEIGHT = 7
    NOT_FINITE = 8
    CRC = 9
    TOO_MANY = 10
    ABORTED = 11
    MALFORMED = 12
    CLOSED = 13
    FAULT = 14

    @property
    def text(self) -> str:
        """What it means, for people."""
        return REASON_TEXT[self]


REASON_TEXT: Final = {
    Reason.NONE: "",
    Reason.FULL: "pool full",
    Reason.STALE: "no such lend: it was given back, used, or its number is of an earlier lend",
    Reason.LANE: "nobody here collects updates under this number",
    Reason.ROUND: "this round is not being collected",
    Reason.DTYPE: "not the schema's type",
    Reason.SIZE: "not the schema's size",
    Reason.WEIGHT: "a weight is above 0 and at most 2^53",
    Reason.NOT_FINITE: "the update holds NaN or infinity",
    Reason.CRC: "the bytes were damaged on the way",
    Reason.TOO_MANY: "too many lends or questions of this process are open",
    Reason.ABORTED: "the round was given up",
    Reason.MALFORMED: "no record of the pool",
    Reason.CLOSED: "the pool is closing",
    Reason.FAULT: "the daemon could not add it up: its log says why",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record.

    Attributes:
        kind: what it says.
        dtype: of the bytes.
        reason: of a nack, else NONE.
        segment: number of the segment, or `NO_SEGMENT`.
        crc32: of bytes that follow on the socket, else 0.
        generation: of the lend, from 1; 0 without a segment.
        offset: bytes from the segment's start.
        nbytes: length of the update or result; in an answer to `lend`, the segment's size.
        weight: of the update; of a result, the sum of the weights in it.
        round: of the update or result.
        lane: whose updates: one federation of this machine.
        count: of a result, updates in it; of a nack, the kind that was refused.
    """

    kind: Kind
    dtype: Dtype = Dtype.NONE
    reason: Reason = Reason.NONE
    segment: int = NO_SEGMENT
    crc32: int = 0
    generation: int = 0
    offset: int = 0
    nbytes: int = 0
    weight: float = 0.0
    round: int = 0
    lane: int = 0
    count: int = 0

    @property
    def has_segment(self) -> bool:
        """Whether a segment holds the bytes."""
        return self.segment != NO_SEGMENT

    @property
    def payload_bytes(self) -> int:
        """Bytes that follow this record on the socket."""
        follows = self.kind in (Kind.FILLED, Kind.RESULT) and not self.has_segment
        return self.nbytes if follows else 0

    def encode(self) -> bytes:
        """The 64 bytes."""
        data = _LAYOUT.pack(
            MAGIC,
            self.kind,
            self.dtype,
            self.reason,
            self.segment,
            self.crc32,
            self.generation,
            self.offset,
            self.nbytes,
            self.weight,
            self.round,
            self.lane,
            self.count,
        )
        assert decode_record_untrusted(data) == self, "we send what the other side refuses"
        return data


def decode_record_untrusted(data: bytes | bytearray | memoryview) -> Record:
    """Read a record of the other side.

    Every field is within its bounds after this; whether it is true (such a lend, such a size) is
    for the book to say.

    Raises:
        DecodeError: not 64 bytes of a record, or a field out of bounds.
    """
    if len(data) != RECORD_BYTES:
        raise DecodeError(f"a record has {RECORD_BYTES} bytes, not {len(data)}")
    (magic, kind, dtype, reason, segment, crc32, generation, offset, nbytes, weight, round_, lane,
     count) = _LAYOUT.unpack(data)  # fmt: skip
    if magic != MAGIC:
        raise DecodeError("no record: wrong magic")
    try:
        record = Record(
            kind=Kind(kind),
            dtype=Dtype(dtype),
            reason=Reason(reason),
            segment=segment,
            crc32=crc32,
            generation=generation,
            offset=offset,
            nbytes=nbytes,
            weight=weight,
            round=round_,
            lane=lane,
            count=count,
        )
    except ValueError:
        raise DecodeError("a record of unknown kind, type or reason") from None
    _check_numbers(record)
    _check_place(record)
    return record


def _check_numbers(record: Record) -> None:
    """Each field alone."""
    if (record.kind is Kind.NACK) != (record.reason is not Reason.NONE):
        raise DecodeError("a reason belongs to a nack, and a nack has one")
    if not math.isfinite(record.weight) or not 0 <= record.weight <= WEIGHT_MAX:
        raise DecodeError("a weight below 0, above 2^53 or not a number")
    if record.round > ROUND_MAX or record.generation > GENERATION_MAX:
        raise DecodeError("a round or generation of 64 bits")
    if record.lane > LANE_MAX:
        raise DecodeError("a lane above 1023")
    if record.nbytes > UPDATE_BYTES_MAX or record.offset > UPDATE_BYTES_MAX:
        raise DecodeError("more than 4 GiB")


def _check_place(record: Record) -> None:
    """What only makes sense together."""
    if record.has_segment != (record.generation > 0):
        raise DecodeError("a generation belongs to a segment, and a segment has one")
    if record.offset % ALIGN_BYTES or (record.offset and not record.has_segment):
        raise DecodeError("an offset that is not aligned, or without a segment")
    if record.crc32 and not record.payload_bytes:
        raise DecodeError("a checksum without bytes")
    if record.nbytes % ITEM_BYTES[record.dtype]:
        raise DecodeError("half an element")
    if record.kind is Kind.FILLED and not record.nbytes:
        raise DecodeError("an update of no bytes")
