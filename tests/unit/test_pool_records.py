"""The pool's 64-byte records: a golden one, every bound, and what must come back as it was sent."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.rounds.numeric.limits import WEIGHT_MAX
from federated.rounds.pool import records
from federated.rounds.pool.records import (
    NO_SEGMENT,
    Dtype,
    Kind,
    Reason,
    Record,
    decode_record_untrusted,
)
from p2p.errors import DecodeError

ROOT = Path(__file__).resolve().parents[2]
FILLED = Record(
    kind=Kind.FILLED,
    dtype=Dtype.F32,
    segment=7,
    generation=9,
    offset=128,
    nbytes=400,
    weight=2.5,
    round=11,
    lane=3,
)
GOLDEN = (
    "43565031 02 01 0000 07000000 00000000 0900000000000000 8000000000000000 9001000000000000"
    " 0000000000000440 0b00000000000000 03000000 00000000"
)
LAYOUT = struct.Struct("<4sBBHIIQQQdQII")
FIELDS = (
    "magic", "kind", "dtype", "reason", "segment", "crc32", "generation", "offset", "nbytes",
    "weight", "round", "lane", "count",
)  # fmt: skip


def forged(**changes: object) -> bytes:
    """FILLED with some fields changed, however wrong."""
    fields = dict(zip(FIELDS, LAYOUT.unpack(FILLED.encode()), strict=True))
    assert changes.keys() <= fields.keys()
    return LAYOUT.pack(*(fields | changes).values())


def test_a_record_has_the_bytes_of_the_specification() -> None:
    assert FILLED.encode() == bytes.fromhex(GOLDEN)
    assert len(FILLED.encode()) == records.RECORD_BYTES == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"CVP2"},
        {"kind": 0},
        {"kind": 6},
        {"dtype": 3},
        {"reason": 1},
        {"reason": 99},
        {"kind": 5},
        {"segment": NO_SEGMENT},
        {"generation": 0},
        {"generation": 1 << 63},
        {"offset": 100},
        {"offset": (4 << 30) + 64},
        {"nbytes": 0},
        {"nbytes": 401},
        {"nbytes": (4 << 30) + 4},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"weight": -1.0},
        {"weight": 2.0**53 + 2},
        {"round": 1 << 63},
        {"lane": 1024},
        {"crc32": 5},
        {"segment": NO_SEGMENT, "generation": 0},
    ],
    ids=str,
)
def test_a_field_out_of_its_bounds_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        decode_record_untrusted(forged(**changes))


@pytest.mark.parametrize("size", [0, 1, 63, 65, 128])
def test_another_length_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match="64 bytes"):
        decode_record_untrusted((FILLED.encode() * 2)[:size])


def test_the_largest_values_pass() -> None:
    largest = {
        "segment": NO_SEGMENT - 1,
        "generation": (1 << 63) - 1,
        "offset": 4 << 30,
        "nbytes": 4 << 30,
        "weight": 2.0**53,
        "round": (1 << 63) - 1,
        "lane": 1023,
        "count": (1 << 32) - 1,
    }
    assert decode_record_untrusted(forged(**largest)).weight == 2.0**53


def test_bytes_follow_only_what_has_no_segment() -> None:
    assert FILLED.payload_bytes == 0
    bare = Record(kind=Kind.FILLED, dtype=Dtype.F32, nbytes=8, weight=1, crc32=5)
    assert bare.payload_bytes == 8
    assert Record(kind=Kind.LEND, dtype=Dtype.F32, nbytes=8).payload_bytes == 0


def test_every_reason_is_explained() -> None:
    assert set(records.REASON_TEXT) == set(Reason)
    assert all(reason.text for reason in Reason if reason is not Reason.NONE)


@st.composite
def some_records(draw: st.DrawFn) -> Record:
    kind = draw(st.sampled_from(Kind))
    has_segment = draw(st.booleans())
    dtype = draw(st.sampled_from(Dtype))
    nbytes = draw(st.integers(1, 1 << 30)) * records.ITEM_BYTES[dtype]
    follows = kind in (Kind.FILLED, Kind.RESULT) and not has_segment
    return Record(
        kind=kind,
        dtype=dtype,
        reason=draw(st.sampled_from(list(Reason)[1:])) if kind is Kind.NACK else Reason.NONE,
        segment=draw(st.integers(0, records.SEGMENT_MAX)) if has_segment else NO_SEGMENT,
        generation=draw(st.integers(1, records.GENERATION_MAX)) if has_segment else 0,
        offset=draw(st.integers(0, 1 << 26)) * 64 if has_segment else 0,
        nbytes=nbytes,
        crc32=draw(st.integers(0, (1 << 32) - 1)) if follows else 0,
        weight=draw(st.floats(0, WEIGHT_MAX)),
        round=draw(st.integers(0, records.ROUND_MAX)),
        lane=draw(st.integers(0, records.LANE_MAX)),
        count=draw(st.integers(0, (1 << 32) - 1)),
    )


@given(some_records())
def test_what_is_written_is_read(record: Record) -> None:
    assert decode_record_untrusted(record.encode()) == record
    assert decode_record_untrusted(bytearray(record.encode())) == record


def test_the_specification_has_our_reasons_and_kinds() -> None:
    text = (ROOT / "docs" / "specs" / "pool.md").read_text("utf-8")
    listed = re.search(r"Reasons: ([^.]*)\.", text)
    assert listed
    assert re.findall(r"\d+", listed[1]) == [str(reason.value) for reason in list(Reason)[1:]]
    kinds = ", ".join(f"{kind.value} {kind.name.lower()}" for kind in Kind)
    assert f"kind: {kinds};" in text
