"""Bytes of peer RPC: seven frames, a length before each, and the bodies they carry.

A frame is a big-endian u32 length and a MessagePack array `[number, fields...]`. Bodies stay raw
until somebody who knows their type asks, so a refused call costs no decoding.

Source: docs/specs/rpc.md s.2.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from p2p.errors import DecodeError, LimitError, UsageError
from p2p.limits import (
    RPC_BODY_BYTES_MAX,
    RPC_FRAME_BYTES_MAX,
    RPC_MESSAGE_CHARACTERS_MAX,
    RPC_METHOD_CHARACTERS_MAX,
)

T = TypeVar("T")

LENGTH_BYTES: Final = 4
NIL: Final = msgspec.Raw(b"\xc0")

U16: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
MethodName: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=RPC_METHOD_CHARACTERS_MAX)
]
MessageText: TypeAlias = Annotated[str, msgspec.Meta(max_length=RPC_MESSAGE_CHARACTERS_MAX)]


class BodyTooLarge(UsageError):
    """What we wanted to send does not fit a frame."""


class _Frame(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """What all frames share; the tag is their number."""


class CallFrame(_Frame, frozen=True, tag=1):
    """Starts a call."""

    method: MethodName
    deadline_ms: U32
    """Time left; 0 means none, which only methods with items may say."""
    credit: U32
    """Item bytes the callee may send before it is granted more."""
    body: msgspec.Raw


class ItemFrame(_Frame, frozen=True, tag=2):
    """One item, in either direction."""

    body: msgspec.Raw


class CreditFrame(_Frame, frozen=True, tag=3):
    """The receiver of this may send so many more item bytes."""

    bytes_more: U32


class EndFrame(_Frame, frozen=True, tag=4):
    """The sender's items are complete."""


class ResultFrame(_Frame, frozen=True, tag=5):
    """The reply; ends the call."""

    body: msgspec.Raw


class ErrorFrame(_Frame, frozen=True, tag=6):
    """A refusal or a failure; ends the call."""

    code: U16
    message: MessageText
    retry_after_ms: U32
    dispatched: bool
    """Whether the handler was started: if not, trying again cannot run it twice."""
    data: msgspec.Raw


class CancelFrame(_Frame, frozen=True, tag=7):
    """The caller lost interest; answered by an ERROR, so that the stream stays usable."""


Frame: TypeAlias = (
    CallFrame | ItemFrame | CreditFrame | EndFrame | ResultFrame | ErrorFrame | CancelFrame
)


# Frames as we send them: the body is still an object, so that it is encoded in place, once.


class _CallOut(msgspec.Struct, array_like=True, tag=1):
    method: str
    deadline_ms: int
    credit: int
    body: object


class _ItemOut(msgspec.Struct, array_like=True, tag=2):
    body: object


class _ResultOut(msgspec.Struct, array_like=True, tag=5):
    body: object


_DECODER: Final = msgspec.msgpack.Decoder(Frame)
_ENCODER: Final = msgspec.msgpack.Encoder()

_HEAD_BYTES: Final = 2
"""What ITEM and RESULT have before their body: the array's header and the frame's number."""


def decode_frame_untrusted(payload: bytes) -> Frame:
    """The frame in `payload`, which excludes the length.

    Raises:
        DecodeError: anything else than exactly one well-formed frame.
    """
    try:
        frame: Frame = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"malformed RPC frame: {type(error).__name__}") from None
    return frame


def decode_body_untrusted(decoder: msgspec.msgpack.Decoder[T], body: msgspec.Raw) -> T:
    """The body as the type `decoder` was made for.

    Raises:
        DecodeError: it is not of that type; the message names where, never the foreign text.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise DecodeError(f"body of another type: {_where(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"malformed body: {type(error).__name__}") from None


def _where(error: msgspec.ValidationError) -> str:
    """The path msgspec names, such as `$[2]`; its text may quote the peer's bytes."""
    _, found, path = str(error).rpartition(" - at ")
    return path.strip("`")[:64] if found else "$"


def encode_call(method: str, deadline_ms: int, credit: int, request: object) -> bytearray:
    """A CALL, length included.

    Raises:
        UsageError: the request does not encode, or is too large.
    """
    return _encode(_CallOut(method, deadline_ms, credit, request), method)


def encode_item(item: object) -> tuple[bytearray, int]:
    """An ITEM and the size of its body, which is what credit counts.

    Raises:
        UsageError: it does not encode, or is too large.
    """
    frame = _encode(_ItemOut(item), "item")
    return frame, len(frame) - LENGTH_BYTES - _HEAD_BYTES


def encode_result(reply: object) -> bytearray:
    """A RESULT.

    Raises:
        UsageError: it does not encode, or is too large.
    """
    return _encode(_ResultOut(reply), "reply")


def encode_error(
    code: int,
    message: str,
    *,
    retry_after_ms: int = 0,
    dispatched: bool,
    data: msgspec.Raw = NIL,
) -> bytearray:
    """An ERROR; the message is cut to what the wire allows."""
    text = message[:RPC_MESSAGE_CHARACTERS_MAX].encode("utf-8", "replace").decode()
    return _encode(ErrorFrame(code, text, retry_after_ms, dispatched, data), "error")


def encode_credit(bytes_more: int) -> bytearray:
    """A CREDIT."""
    return _encode(CreditFrame(bytes_more), "credit")


def encode_end() -> bytearray:
    """An END."""
    return bytearray(b"\x00\x00\x00\x02\x91\x04")


def encode_cancel() -> bytearray:
    """A CANCEL."""
    return bytearray(b"\x00\x00\x00\x02\x91\x07")


def _encode(frame: object, what: str) -> bytearray:
    buffer = bytearray(LENGTH_BYTES)
    try:
        _ENCODER.encode_into(frame, buffer, LENGTH_BYTES)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{what} does not encode as MessagePack: {error}") from error
    size = len(buffer) - LENGTH_BYTES
    if size > RPC_FRAME_BYTES_MAX:
        raise BodyTooLarge(
            f"{what} has {size} bytes, over the limit of {RPC_BODY_BYTES_MAX}: send it as items"
        )
    buffer[:LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
    return buffer


class FrameBuffer:
    """Cuts a byte stream into frames; pure.

    Invariant: holds less than one frame, so at most `RPC_FRAME_BYTES_MAX` bytes, between feeds.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> list[Frame]:
        """Add received bytes; returns the frames they complete.

        Raises:
            DecodeError: a malformed frame.
            LimitError: a length over the limit, before anything of that frame is kept.
        """
        if self._buffer:
            self._buffer += data
            return self._cut_buffer()
        # The usual case: whole frames, so nothing is copied into the buffer.
        frames: list[Frame] = []
        start = _cut(data, frames)
        if start < len(data):
            self._buffer += data[start:]
        return frames

    def _cut_buffer(self) -> list[Frame]:
        frames: list[Frame] = []
        with memoryview(self._buffer) as view:
            start = _cut(view, frames)
        del self._buffer[:start]
        return frames


def _cut(data: bytes | bytearray | memoryview, frames: list[Frame]) -> int:
    """Append the whole frames at the start of `data`; returns where a partial one begins."""
    start, size = 0, len(data)
    while size - start >= LENGTH_BYTES:
        body = start + LENGTH_BYTES
        length = int.from_bytes(data[start:body], "big")
        if length > RPC_FRAME_BYTES_MAX:
            raise LimitError(f"RPC frame of {length} bytes, the limit is {RPC_FRAME_BYTES_MAX}")
        if body + length > size:
            break
        frames.append(decode_frame_untrusted(bytes(data[body : body + length])))
        start = body + length
    return start
