"""Exceptions to codes and back: the one place that knows both.

A handler refuses by raising. What it raises becomes a code on the wire and, at the caller, the same
class again, so that a refusal reads alike on both sides. Anything unexpected is INTERNAL without
details: a peer learns nothing about our insides.

| raised by a handler | code | raised at the caller |
|---|---|---|
| `DecodeError` | 2 bad request | `RemoteError(2)` |
| `AuthError` | 3 denied | `AuthError` |
| `TimedOut`, or its deadline passed | 4 deadline | `TimedOut` |
| its caller cancelled | 5 cancelled | `RemoteError(5)` |
| `Busy` | 6 busy | `Busy` |
| `RemoteError(code)` | the same code | `RemoteError(code)` |
| `Unreachable` | 10 unavailable | `Unreachable` |
| anything else | 8 internal | `RemoteError(8)` |

Source: docs/specs/rpc.md s.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from p2p.errors import (
    AuthError,
    Busy,
    DecodeError,
    P2pError,
    RemoteError,
    TimedOut,
    Unreachable,
)
from p2p.rpc_frames import NIL
from p2p.rpc_types import Code

if TYPE_CHECKING:
    from p2p.identity import PeerId
    from p2p.rpc_frames import ErrorFrame


class Failure(NamedTuple):
    """What an ERROR frame will say."""

    code: int
    message: str
    retry_after_ms: int = 0
    data: msgspec.Raw = NIL


def failure_of(error: Exception) -> Failure:
    """What to tell the caller about an exception of a handler."""
    match _sole(error):
        case RemoteError() as refusal:
            return Failure(
                refusal.code, refusal.message, refusal.retry_after_ms, _raw(refusal.data)
            )
        case DecodeError() as refusal:
            return Failure(Code.BAD_REQUEST, str(refusal))
        case AuthError() as refusal:
            return Failure(Code.DENIED, str(refusal) or "denied")
        case TimedOut() as refusal:
            return Failure(Code.DEADLINE, str(refusal) or "a deadline passed")
        case Busy() as refusal:
            return Failure(Code.BUSY, str(refusal) or "busy", refusal.retry_after_ms)
        case Unreachable() as refusal:
            return Failure(Code.UNAVAILABLE, str(refusal) or "unavailable")
        case _:
            return Failure(Code.INTERNAL, "internal error")


def is_bug(error: Exception) -> bool:
    """Whether a handler's exception is a fault of this side rather than a refusal."""
    return failure_of(error).code == Code.INTERNAL


def error_of(frame: ErrorFrame, peer: PeerId) -> P2pError:
    """What the caller raises for an ERROR frame; control characters of the peer are replaced."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in frame.message)
    match frame.code:
        case Code.DENIED:
            return AuthError(f"the peer refused: {text}", peer)
        case Code.DEADLINE:
            return TimedOut(f"the peer ran out of time: {text}")
        case Code.BUSY:
            return Busy(f"the peer is busy: {text}", retry_after_ms=frame.retry_after_ms)
        case Code.UNAVAILABLE:
            return Unreachable(f"the peer cannot do it now: {text}")
        case _:
            data = b"" if frame.data == NIL else bytes(frame.data)
            return RemoteError(frame.code, text, retry_after_ms=frame.retry_after_ms, data=data)


def _sole(error: Exception) -> Exception:
    """The one exception inside nested groups of one, as nurseries wrap it; else `error`."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _raw(data: bytes) -> msgspec.Raw:
    """`data` as a MessagePack value; anything else would break the frame and is left out."""
    if not data:
        return NIL
    try:
        return msgspec.msgpack.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NIL
