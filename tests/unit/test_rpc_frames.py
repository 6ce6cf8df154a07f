"""Frames of peer RPC: their bytes, their limits, and what bad ones do."""

from __future__ import annotations

import contextlib
import itertools

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError, LimitError, UsageError
from p2p.limits import RPC_BODY_BYTES_MAX, RPC_FRAME_BYTES_MAX
from p2p.rpc_frames import (
    BodyTooLarge,
    CallFrame,
    CancelFrame,
    CreditFrame,
    EndFrame,
    ErrorFrame,
    FrameBuffer,
    ItemFrame,
    ResultFrame,
    decode_body_untrusted,
    decode_frame_untrusted,
    encode_call,
    encode_cancel,
    encode_credit,
    encode_end,
    encode_error,
    encode_item,
    encode_result,
)

# What an independent encoder makes of the same frames; these bytes hold for ever.
GOLDEN = {
    "call": (
        encode_call("mesh.echo", 30_000, 262_144, b"hello"),
        "0000001b9501a96d6573682e6563686fcd7530ce00040000c40568656c6c6f",
        [1, "mesh.echo", 30_000, 262_144, b"hello"],
    ),
    "item": (encode_item([1, "two"])[0], "0000000892029201a374776f", [2, [1, "two"]]),
    "credit": (encode_credit(131_072), "000000079203ce00020000", [3, 131_072]),
    "end": (encode_end(), "000000029104", [4]),
    "result": (encode_result(None), "000000039205c0", [5, None]),
    "error": (
        encode_error(6, "busy", retry_after_ms=200, dispatched=False),
        "0000000c960606a462757379ccc8c2c0",
        [6, 6, "busy", 200, False, None],
    ),
    "cancel": (encode_cancel(), "000000029107", [7]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_frames_have_the_bytes_the_specification_gives(name: str) -> None:
    ours, golden, fields = GOLDEN[name]
    assert ours.hex() == golden
    packed = msgpack.packb(fields)
    assert golden == (len(packed).to_bytes(4, "big") + packed).hex()


def test_decoded_frames_have_the_fields_that_were_sent() -> None:
    frames = FrameBuffer().feed(b"".join(bytes(ours) for ours, _, _ in GOLDEN.values()))
    call, item, credit, end, result, error, cancel = frames
    assert isinstance(call, CallFrame)
    assert (call.method, call.deadline_ms, call.credit) == ("mesh.echo", 30_000, 262_144)
    assert bytes(call.body) == msgpack.packb(b"hello")
    assert isinstance(item, ItemFrame)
    assert bytes(item.body) == msgpack.packb([1, "two"])
    assert credit == CreditFrame(131_072)
    assert end == EndFrame()
    assert isinstance(result, ResultFrame)
    assert bytes(result.body) == b"\xc0"
    assert isinstance(error, ErrorFrame)
    assert (error.code, error.message, error.retry_after_ms) == (6, "busy", 200)
    assert not error.dispatched
    assert cancel == CancelFrame()


STREAM = b"".join(bytes(ours) for ours, _, _ in GOLDEN.values())


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cuts_give_the_same_frames(cuts: list[int]) -> None:
    whole = FrameBuffer().feed(STREAM)
    buffer = FrameBuffer()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = []
    for start, end in itertools.pairwise(edges):
        pieces += buffer.feed(STREAM[start:end])
    assert [msgspec.msgpack.encode(f) for f in pieces] == [msgspec.msgpack.encode(f) for f in whole]
    assert buffer.pending_bytes == 0


def test_byte_by_byte_gives_the_same_frames_and_never_keeps_a_whole_one() -> None:
    buffer = FrameBuffer()
    frames = []
    for position in range(len(STREAM)):
        frames += buffer.feed(STREAM[position : position + 1])
        assert buffer.pending_bytes < 40
    assert len(frames) == len(GOLDEN)


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x91\x00",
        b"\x91\x08",
        b"\x91\xff",
        b"\x92\x04\xc0",
        b"\x91\x02",
        b"\x91\x04\x91\x04",
        b"\x92\xa1\x02\xc0",
        b"\x91" * 100_000,
        b"\x92\x02" + b"\x91" * 100_000,
        msgpack.packb([1, "", 1, 1, None]),
        msgpack.packb([1, "m" * 65, 1, 1, None]),
        msgpack.packb([1, "m", -1, 1, None]),
        msgpack.packb([1, "m", 1 << 32, 1, None]),
        msgpack.packb([1, b"m", 1, 1, None]),
        b"\x95\x01\xa1\xff\x01\x01\xc0",
        msgpack.packb([3, 1 << 32]),
        msgpack.packb([3, 1.5]),
        msgpack.packb([6, 1 << 16, "", 0, True, None]),
        msgpack.packb([6, 1, "x" * 513, 0, True, None]),
        msgpack.packb([6, 1, "", 0, 1, None]),
        b"\x92\x02\xc1",
        msgpack.packb({1: 2}),
    ],
    ids=lambda payload: payload[:8].hex() or "empty",
)
def test_a_malformed_frame_is_a_decode_error(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_frame_untrusted(payload)
    with pytest.raises(DecodeError):
        FrameBuffer().feed(_frame(payload))


@given(data=st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_peer_errors(data: bytes) -> None:
    for feed in (data, _frame(data)):
        with contextlib.suppress(DecodeError, LimitError):
            FrameBuffer().feed(feed)


def test_a_length_bomb_is_refused_before_anything_is_kept() -> None:
    for length in (RPC_FRAME_BYTES_MAX + 1, 1 << 30, 0xFFFF_FFFF):
        buffer = FrameBuffer()
        with pytest.raises(LimitError):
            buffer.feed(length.to_bytes(4, "big"))
        assert buffer.pending_bytes == 0


def test_the_largest_frame_passes_and_is_kept_only_until_complete() -> None:
    size = RPC_FRAME_BYTES_MAX - 7
    payload = b"\x92\x02\xc6" + size.to_bytes(4, "big") + bytes(size)
    assert len(payload) == RPC_FRAME_BYTES_MAX
    buffer = FrameBuffer()
    assert buffer.feed(_frame(payload)[:-1]) == []
    (frame,) = buffer.feed(_frame(payload)[-1:])
    assert isinstance(frame, ItemFrame)
    assert buffer.pending_bytes == 0


def test_what_is_too_large_or_not_encodable_is_our_own_error() -> None:
    encode_item(bytes(RPC_BODY_BYTES_MAX - 5))
    with pytest.raises(BodyTooLarge, match="send it as items"):
        encode_result(bytes(RPC_FRAME_BYTES_MAX))
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    for bad in (object(), 1 << 70, deep):
        with pytest.raises(UsageError, match="does not encode"):
            encode_call("m", 1, 0, bad)


def test_an_items_size_is_its_bodys() -> None:
    for item in (None, b"x" * 300, "text", [1, 2, 3]):
        frame, size = encode_item(item)
        (decoded,) = FrameBuffer().feed(bytes(frame))
        assert isinstance(decoded, ItemFrame)
        assert size == len(decoded.body) == len(msgpack.packb(item))


class Pair(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    number: int
    text: str


@pytest.mark.parametrize(
    "body",
    [
        b"\xc0",
        b"\x91\x01",
        b"\x92\xa1x\x01",
        b"\x93\x01\xa1x\xc0",
        b"\x92\x01\xa1\xff",
        b"",
        b"\x92",
    ],
    ids=bytes.hex,
)
def test_a_body_of_another_type_is_a_decode_error_without_its_text(body: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_body_untrusted(msgspec.msgpack.Decoder(Pair), msgspec.Raw(body))
    assert "body" in str(caught.value)


def test_the_error_names_where_but_never_quotes_the_peer() -> None:
    class Choice(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
        fruit: str
        names: dict[str, int]

    body = msgpack.packb(["apple", {"\x1b[31msecret": "not a number"}])
    with pytest.raises(DecodeError) as caught:
        decode_body_untrusted(msgspec.msgpack.Decoder(Choice), msgspec.Raw(body))
    assert "secret" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_an_error_message_is_cut_to_the_limit_and_stays_text() -> None:
    for text in ("x" * 2000, "\ud800 lone surrogate", "é" * 600):
        (frame,) = FrameBuffer().feed(bytes(encode_error(8, text, dispatched=True)))
        assert isinstance(frame, ErrorFrame)
        assert len(frame.message) <= 512
