"""Reading MCP's lines before the SDK sees them: pure functions of bytes.

The SDK answers nothing to a line that it cannot read, so a client would wait for ever. Each line is
therefore looked at first: what is no JSON-RPC message is answered here, and of the others we keep
what the host needs (id, method, raw params). Source: docs/specs/mcp.md s.3.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

RequestId: TypeAlias = int | str

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

REPLAY_METHOD: Final = "covey/replay"
"""Notification of our relay: the ids whose requests it may have sent before."""

REPLAY_IDS_MAX: Final = 64
"""The relay keeps as many unanswered requests (daemon.md 6)."""


class BadLineError(Exception):
    """A line that is no message; it gets an error answer.

    Args:
        code: JSON-RPC error code.
        message: what is wrong, without any text of the line.
        request_id: id to answer, None when the line has none.
    """

    def __init__(self, code: int, message: str, request_id: RequestId | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id

    def answer(self) -> bytes:
        """The error response, without newline."""
        return error_line(self.request_id, self.code, self.message)


class Incoming(NamedTuple):
    """One line from the client.

    Attributes:
        kind: what it is.
        request_id: set for requests.
        method: empty for responses.
        params: raw JSON of the parameters, empty without them.
    """

    kind: Literal["request", "notification", "response"]
    request_id: RequestId | None
    method: str
    params: bytes


class _Message(msgspec.Struct, frozen=True):
    jsonrpc: Literal["2.0"]
    method: str | msgspec.UnsetType = msgspec.UNSET
    id: RequestId | msgspec.UnsetType | None = msgspec.UNSET
    params: msgspec.Raw = msgspec.Raw(b"")


class _OnlyId(msgspec.Struct, frozen=True):
    id: RequestId | None = None


class _Cancelled(msgspec.Struct, frozen=True):
    request_id: RequestId = msgspec.field(name="requestId")


class _Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: list[RequestId]


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_ONLY_ID: Final = msgspec.json.Decoder(_OnlyId)
_CANCELLED: Final = msgspec.json.Decoder(_Cancelled)
_REPLAY: Final = msgspec.json.Decoder(_Replay)

# msgspec lets the last two through from bad UTF-8 and from `[[[[...`; all three mean "unreadable".
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_line_untrusted(line: bytes, *, line_bytes_max: int) -> Incoming:
    """Read the envelope of one line.

    Args:
        line: as received, without newline.
        line_bytes_max: longer lines are refused, in bytes.

    Returns:
        What the host needs of it.

    Raises:
        BadLineError: it is no JSON-RPC 2.0 message with an id of MCP's kind, or too long.
    """
    if len(line) > line_bytes_max:
        raise BadLineError(
            INVALID_REQUEST,
            f"the line is over {line_bytes_max} bytes: send less at once",
            _id_of(line),
        )
    try:
        message = _MESSAGE.decode(line)
    except msgspec.ValidationError:
        raise BadLineError(
            INVALID_REQUEST,
            "not a JSON-RPC 2.0 message: send one object a line with jsonrpc, method and a string"
            " or integer id; no batches",
            _id_of(line),
        ) from None
    except _UNREADABLE:
        raise BadLineError(PARSE_ERROR, "not JSON in UTF-8") from None
    return _classify(message)


def decode_cancelled_untrusted(params: bytes) -> RequestId | None:
    """Id that a `notifications/cancelled` names; None when it names none."""
    try:
        return _CANCELLED.decode(params).request_id
    except _UNREADABLE:
        return None


def decode_replay_untrusted(params: bytes) -> list[RequestId]:
    """Ids that a `covey/replay` names.

    Raises:
        BadLineError: it names none, or more than a relay keeps.
    """
    try:
        ids = _REPLAY.decode(params).ids
    except _UNREADABLE:
        raise BadLineError(INVALID_PARAMS, "covey/replay needs params {ids: [...]}") from None
    if len(ids) > REPLAY_IDS_MAX:
        raise BadLineError(INVALID_PARAMS, f"covey/replay takes at most {REPLAY_IDS_MAX} ids")
    return ids


def error_line(request_id: RequestId | None, code: int, message: str) -> bytes:
    """An error response, without newline."""
    return msgspec.json.encode(
        {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
    )


def _classify(message: _Message) -> Incoming:
    params = bytes(message.params)
    if message.method is msgspec.UNSET:
        if message.id is msgspec.UNSET:
            raise BadLineError(INVALID_REQUEST, "a message needs a method or an id")
        return Incoming("response", None, "", b"")
    if message.id is msgspec.UNSET:
        return Incoming("notification", None, message.method, params)
    if message.id is None:
        raise BadLineError(INVALID_REQUEST, "the id of a request may not be null")
    if params and not params.startswith(b"{"):
        raise BadLineError(INVALID_PARAMS, "params must be an object", message.id)
    return Incoming("request", message.id, message.method, params)


def _id_of(line: bytes) -> RequestId | None:
    """The id of a bad line, so that its sender does not wait for ever."""
    try:
        return _ONLY_ID.decode(line).id
    except _UNREADABLE:
        return None
