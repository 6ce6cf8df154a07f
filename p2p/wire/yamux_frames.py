"""Yamux on the wire: header, flags, events, and the two transition tables.

Source: https://github.com/hashicorp/yamux/blob/master/spec.md; libp2p specs `yamux/README.md`;
docs/specs/wire.md s.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag, auto
from typing import TYPE_CHECKING, Final, TypeAlias

from p2p.limits import YAMUX_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER: Final = struct.Struct("!BBHII")
"""Version 0, type, flags, stream, length."""

KIND_DATA: Final = 0
KIND_WINDOW: Final = 1
KIND_PING: Final = 2
KIND_GO_AWAY: Final = 3

U32_MAX: Final = 0xFFFF_FFFF


class Flag(IntFlag):
    """Header flags; every combination is accepted."""

    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class GoAway(IntEnum):
    """Why a connection ends. Others' codes are passed on as they are."""

    NORMAL = 0
    PROTOCOL = 1
    INTERNAL = 2


# Events are not frozen: one is made for each frame, and a frozen dataclass takes twice as long.
# They are no named tuples either: those of different types compare equal.


@dataclass(slots=True)
class StreamOpened:
    """The other side opened a stream."""

    stream: int


@dataclass(slots=True)
class StreamData:
    """Bytes arrived. Call `Yamux.consumed` when the application took them."""

    stream: int
    data: bytes


@dataclass(slots=True)
class StreamEnded:
    """The other side will send no more."""

    stream: int


@dataclass(slots=True)
class StreamReset:
    """The stream is gone: reset by the other side, or by us because too much was unread."""

    stream: int


@dataclass(slots=True)
class Pong:
    """Our ping came back."""

    rtt_s: float


@dataclass(slots=True)
class WentAway:
    """The other side opens and accepts no more streams."""

    code: int


YamuxEvent: TypeAlias = StreamOpened | StreamData | StreamEnded | StreamReset | Pong | WentAway


# The tables below are asked for each frame: members are hashed by what they are, in C, and not by
# their names, in Python (22 hashes a stream).
class StreamState(Enum):
    """Which directions of a stream are open."""

    __hash__ = object.__hash__
    OPEN = auto()
    SENT_FIN = auto()
    GOT_FIN = auto()
    DONE = auto()  # both ended; kept until everything is read and sent
    RESET = auto()


class StreamInput(Enum):
    """What can happen to a stream."""

    __hash__ = object.__hash__
    RECV_DATA = auto()
    RECV_WINDOW = auto()
    RECV_FIN = auto()
    RECV_RST = auto()
    SEND_DATA = auto()
    SEND_FIN = auto()
    SEND_RST = auto()


_S = StreamState
_I = StreamInput
STREAM_TRANSITIONS: Final[Mapping[tuple[StreamState, StreamInput], StreamState]] = {
    (_S.OPEN, _I.RECV_DATA): _S.OPEN,
    (_S.OPEN, _I.RECV_WINDOW): _S.OPEN,
    (_S.OPEN, _I.RECV_FIN): _S.GOT_FIN,
    (_S.OPEN, _I.RECV_RST): _S.RESET,
    (_S.OPEN, _I.SEND_DATA): _S.OPEN,
    (_S.OPEN, _I.SEND_FIN): _S.SENT_FIN,
    (_S.OPEN, _I.SEND_RST): _S.RESET,
    (_S.SENT_FIN, _I.RECV_DATA): _S.SENT_FIN,
    (_S.SENT_FIN, _I.RECV_WINDOW): _S.SENT_FIN,
    (_S.SENT_FIN, _I.RECV_FIN): _S.DONE,
    (_S.SENT_FIN, _I.RECV_RST): _S.RESET,
    (_S.SENT_FIN, _I.SEND_RST): _S.RESET,
    (_S.GOT_FIN, _I.RECV_WINDOW): _S.GOT_FIN,
    # A second FIN says nothing new; some implementations repeat it with their ACK.
    (_S.GOT_FIN, _I.RECV_FIN): _S.GOT_FIN,
    (_S.GOT_FIN, _I.RECV_RST): _S.RESET,
    (_S.GOT_FIN, _I.SEND_DATA): _S.GOT_FIN,
    (_S.GOT_FIN, _I.SEND_FIN): _S.DONE,
    (_S.GOT_FIN, _I.SEND_RST): _S.RESET,
    (_S.DONE, _I.RECV_WINDOW): _S.DONE,
    (_S.DONE, _I.RECV_FIN): _S.DONE,
    (_S.DONE, _I.RECV_RST): _S.RESET,
    (_S.DONE, _I.SEND_RST): _S.RESET,
}


class SessionState(Enum):
    """Who said goodbye."""

    __hash__ = object.__hash__
    OPEN = auto()
    LEAVING = auto()  # we did
    LEFT = auto()  # they did
    CLOSED = auto()  # both did


class SessionInput(Enum):
    """What can happen to a session."""

    __hash__ = object.__hash__
    RECV_SYN = auto()
    RECV_GO_AWAY = auto()
    SEND_SYN = auto()
    SEND_GO_AWAY = auto()


SESSION_TRANSITIONS: Final[Mapping[tuple[SessionState, SessionInput], SessionState]] = {
    (SessionState.OPEN, SessionInput.RECV_SYN): SessionState.OPEN,
    (SessionState.OPEN, SessionInput.RECV_GO_AWAY): SessionState.LEFT,
    (SessionState.OPEN, SessionInput.SEND_SYN): SessionState.OPEN,
    (SessionState.OPEN, SessionInput.SEND_GO_AWAY): SessionState.LEAVING,
    # Streams opened while our goodbye travels are reset, not punished.
    (SessionState.LEAVING, SessionInput.RECV_SYN): SessionState.LEAVING,
    (SessionState.LEAVING, SessionInput.RECV_GO_AWAY): SessionState.CLOSED,
    (SessionState.LEAVING, SessionInput.SEND_GO_AWAY): SessionState.LEAVING,
    (SessionState.LEFT, SessionInput.RECV_SYN): SessionState.LEFT,
    (SessionState.LEFT, SessionInput.RECV_GO_AWAY): SessionState.LEFT,
    (SessionState.LEFT, SessionInput.SEND_GO_AWAY): SessionState.CLOSED,
    (SessionState.CLOSED, SessionInput.RECV_SYN): SessionState.CLOSED,
    (SessionState.CLOSED, SessionInput.RECV_GO_AWAY): SessionState.CLOSED,
    (SessionState.CLOSED, SessionInput.SEND_GO_AWAY): SessionState.CLOSED,
}


@dataclass(frozen=True, kw_only=True)
class YamuxLimits:
    """The part of the configuration this machine needs; see `p2p.config` for each."""

    stream_send_buffer_bytes: int = YAMUX_WINDOW_BYTES
    stream_window_bytes_max: int = 4 << 20
    connection_window_bytes_max: int = 16 << 20
    streams_inbound_max: int = 1024
    control_bytes_max: int = 64 << 10
    unknown_bytes_per_min: int = 4 << 20
