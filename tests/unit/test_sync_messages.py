"""Frames of the three replication protocols: exact bytes, limits, and foreign bytes."""

from __future__ import annotations

import hashlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError
from p2p.replication import heads
from p2p.replication.messages import (
    FRAME_BYTES_MAX,
    IDS_MAX,
    LIST_MAX,
    RECORDS_MAX,
    Ask,
    Counts,
    Done,
    Erased,
    ErasedPair,
    Error,
    FrameReader,
    Groups,
    Have,
    HeadEntry,
    Heads,
    Hello,
    Recon,
    Records,
    State,
    Want,
    WantBodies,
    WantIds,
    WantRange,
    decode_message_untrusted,
    encode_frame,
)
from p2p.replication.record import RecordWire

TAG = bytes(range(16))
ID = bytes(range(32))
SHORT = b"shortkey"
WIRE = RecordWire(b"header", b"s" * 64, b"envelope")

# Each message with the array that docs/specs/sync.md gives for it.
EXAMPLES = [
    (Hello(1, 1, (1, 7), b"n" * 16), [1, 1, 1, [1, 7], b"n" * 16]),
    (Groups((TAG,)), [2, [TAG]]),
    (State(TAG, ID, ID), [3, TAG, ID, ID]),
    (Records(TAG, (WIRE,)), [4, TAG, [[b"header", b"s" * 64, b"envelope"]]]),
    (Heads(TAG, 1, (HeadEntry(SHORT, 7, 3, 9, SHORT),)), [5, TAG, 1, [[SHORT, 7, 3, 9, SHORT]]]),
    (Want(TAG, (WantRange(SHORT, 7, 0, 1, 5),)), [6, TAG, [[SHORT, 7, 0, 1, 5]]]),
    (Recon(TAG, 1, b"\1"), [7, TAG, 1, b"\1"]),
    (WantIds(TAG, (SHORT,)), [8, TAG, [SHORT]]),
    (WantBodies(TAG, (ID,)), [9, TAG, [ID]]),
    (Erased(TAG, (ErasedPair(ID, ID),)), [10, TAG, [[ID, ID]]]),
    (Done(TAG, ID, Counts(3, 4)), [11, TAG, ID, [3, 4]]),
    (Error(2, "why", 1, 1), [12, 2, "why", 1, 1]),
    (Ask(ID, ID), [13, ID, ID]),
    (Have(ID, (ID,)), [14, ID, [ID]]),
]


@pytest.mark.parametrize(("message", "array"), EXAMPLES, ids=lambda x: type(x).__name__)
def test_each_message_is_the_array_an_independent_encoder_writes(
    message: object, array: list[object]
) -> None:
    body = msgpack.packb(array)
    assert encode_frame(message) == len(body).to_bytes(4, "big") + body  # type: ignore[arg-type]
    assert decode_message_untrusted(body) == message


def test_type_numbers_are_one_to_fourteen_without_a_gap() -> None:
    assert [array[0] for _, array in EXAMPLES] == list(range(1, 15))


@pytest.mark.parametrize(("message", "array"), EXAMPLES, ids=lambda x: type(x).__name__)
def test_a_field_too_many_or_too_few_is_refused(message: object, array: list[object]) -> None:
    del message
    for bad in ([*array, 0], array[:-1], [99, *array[1:]], []):
        with pytest.raises(DecodeError):
            decode_message_untrusted(msgpack.packb(bad))


@pytest.mark.parametrize(
    "array",
    [
        [2, [b"short"]],
        [2, [TAG] * (LIST_MAX + 1)],
        [3, b"g" * 33, ID, ID],
        [3, b"g" * 15, ID, ID],
        [4, TAG, [[b"h", b"s" * 63, None]]],
        [4, TAG, [[b"h", b"s" * 64, None]] * (RECORDS_MAX + 1)],
        [5, TAG, 2, []],
        [6, TAG, [[SHORT, 2**32, 0, 1, 1]]],
        [6, TAG, [[SHORT, 1, 0, -1, 1]]],
        [6, TAG, [[SHORT, 1, 0, 1, 2**63]]],
        [9, TAG, [ID] * (IDS_MAX + 1)],
        [12, 70_000, "why", 1, 1],
        [12, 1, "w" * 513, 1, 1],
        [12, 1, b"bytes", 1, 1],
        [13, TAG, ID],
        [1, 1, 1, [1.0], b"n" * 16],
        [1, True, 1, [], b"n" * 16],
    ],
)
def test_values_out_of_range_are_refused(array: list[object]) -> None:
    with pytest.raises(DecodeError):
        decode_message_untrusted(msgpack.packb(array))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * 60_000,
        b"\xa1\xff",
        msgpack.packb({"a": 1}),
        b"\x92\x0c\xdb\xff\xff\xff\xff",
    ],
)
def test_bytes_that_are_no_message_raise_decode_error_only(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_message_untrusted(data)


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_raise_decode_error(data: bytes) -> None:
    try:
        decode_message_untrusted(data)
    except DecodeError:
        return


def test_the_largest_record_fits_a_frame() -> None:
    wire = RecordWire(bytes(1024), bytes(64), bytes(65_792))
    assert len(encode_frame(Records(bytes(32), (wire,)))) <= FRAME_BYTES_MAX + 4


def test_an_oversize_message_of_ours_is_a_bug_and_says_so() -> None:
    wire = RecordWire(bytes(1024), bytes(64), bytes(65_792))
    with pytest.raises(ValueError, match="exceeds"):
        encode_frame(Records(bytes(32), (wire, wire)))


@given(st.lists(st.sampled_from([m for m, _ in EXAMPLES]), max_size=6), st.data())
def test_a_stream_cut_anywhere_gives_the_same_messages(
    messages: list[Hello], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(m) for m in messages)
    reader, found = FrameReader(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        reader.feed(stream[:size])
        stream = stream[size:]
        while (message := reader.next_message_untrusted()) is not None:
            found.append(message[0])
    assert found == messages
    assert len(reader) == 0


@pytest.mark.parametrize("size", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_out_of_range_is_refused_before_the_bytes_come(size: int) -> None:
    reader = FrameReader()
    reader.feed(size.to_bytes(4, "big"))
    with pytest.raises(DecodeError):
        reader.next_message_untrusted()


def test_salts_tags_roots_and_short_ids_are_the_specified_hashes() -> None:
    def sha(*parts: bytes) -> bytes:
        return hashlib.sha256(b"".join(parts)).digest()

    salt = heads.session_salt(b"i" * 16, b"r" * 16)
    assert salt == sha(b"covey/salt/1\0", b"i" * 16, b"r" * 16)[:16]
    assert heads.group_tag(salt, ID) == sha(b"covey/tag/1\0", salt, ID)[:16]
    assert heads.short_id(salt, ID) == sha(b"covey/short/1\0", salt, ID)[:8]
    items = [bytes([n]) * 32 for n in range(3)]
    packed = b"".join(n.to_bytes(8, "big") + item for n, item in enumerate(items))
    print_ = heads.fingerprint(salt, packed)
    assert print_ == sha(b"covey/range/1\0", salt, (3).to_bytes(8, "big"), *items)[:16]
    root = heads.bound_root(salt, b"i", print_, print_)
    assert root == sha(b"covey/root/1\0", salt, b"i", print_, print_)
    assert root != heads.bound_root(salt, b"r", print_, print_)


def test_a_root_depends_on_every_id_and_on_the_session() -> None:
    salt, other = b"s" * 16, b"t" * 16
    packed = b"".join(bytes(8) + bytes([n]) * 32 for n in range(10))
    changed = packed[:-1] + b"\xff"
    assert heads.fingerprint(salt, packed) != heads.fingerprint(salt, changed)
    assert heads.fingerprint(salt, packed) != heads.fingerprint(other, packed)
    assert heads.fingerprint(salt, packed) != heads.fingerprint(salt, packed[40:])
    with pytest.raises(ValueError, match="whole items"):
        heads.fingerprint(salt, packed[1:])
