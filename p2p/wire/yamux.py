"""Yamux: many flow-controlled streams in one connection.

Theory of operation
-------------------
The Noise initiator opens odd stream ids, the responder even ones. A frame is a 12-byte header and,
for DATA, a payload. Each direction of a stream has a window: the sender may send what was granted
and not yet sent. We grant back what the application consumed, in steps of half the window, and
double a window that is used up within a few round trips.

Bytes to send live in two places: control frames (acknowledgements, pongs, grants, resets, goodbye),
and a buffer per stream. `to_send` cuts frames at the moment they can leave: control first, then one
frame of each ready stream in turn, so a large transfer delays a small message by one frame. What a
caller sends is copied or kept in the buffer before any frame is cut, so a cancelled caller never
leaves half a frame.

What a hostile peer may try, and what stops it:
- sending more than was granted, or on stream 0, or with a stream id it may not use: `ProtocolError`
  or `LimitError`, with GoAway 1 queued; the driver sends it and closes;
- not reading: our unsent control frames pass 64 KiB, `LimitError`;
- thousands of streams, each with its first window of 256 KiB that cannot be refused: at most 1,024
  streams, and when more than 16 MiB are unread the stream with most of them is reset;
- frames for streams that do not exist: dropped, and over 4 MiB a minute `LimitError`;
- pings and SYNs without end: each is answered from a bounded queue, see "not reading".

Interoperation: FIN travels as an empty window update of its own (js loses the payload of a DATA
frame with FIN, py ignores FIN with ACK); an inbound stream is acknowledged at once with an empty
window update; we never send a ping ACK that was not asked for (js ends the connection).

Invariants: recv_window + unread + ungranted = target, per stream; `unread` is the sum over streams.
Source: docs/specs/wire.md s.5.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from p2p.errors import LimitError, PeerError, ProtocolError, UsageError
from p2p.limits import (
    YAMUX_HEADER_BYTES,
    YAMUX_OWN_STREAMS_MAX,
    YAMUX_UNACKED_STREAMS_MAX,
    YAMUX_WINDOW_BYTES,
)
from p2p.wire.chunks import ChunkQueue
from p2p.wire.yamux_frames import (
    HEADER,
    KIND_DATA,
    KIND_GO_AWAY,
    KIND_PING,
    KIND_WINDOW,
    SESSION_TRANSITIONS,
    STREAM_TRANSITIONS,
    U32_MAX,
    Flag,
    GoAway,
    Pong,
    SessionInput,
    SessionState,
    StreamData,
    StreamEnded,
    StreamInput,
    StreamOpened,
    StreamReset,
    StreamState,
    WentAway,
    YamuxEvent,
    YamuxLimits,
)

_SYN: Final = int(Flag.SYN)
_ACK: Final = int(Flag.ACK)
_FIN: Final = int(Flag.FIN)
_RST: Final = int(Flag.RST)

# A frame shorter than this is not worth its header and its turn when the rest of the Noise message
# would have to hold it: the next message has room. Guess.
_SLIVER_BYTES: Final = 1024
# A window that lasts less than this is doubled even if the round trip is shorter: on loopback the
# round trip is .1 ms, and a grant each 128 KiB would cost .3 CPU ms/MiB. Benchmark: bulk.
_WINDOW_TIME_MIN_S: Final = 0.02
# Streams we reset: what was in flight for them is not held against the peer.
_GONE_MAX: Final = 256
_UNKNOWN_PERIOD_S: Final = 60.0
_RTT_WEIGHT: Final = 1 / 8


class _Stream:
    __slots__ = (
        "acked",
        "fin_due",
        "granted_s",
        "id",
        "out",
        "queued",
        "recv_window",
        "send_window",
        "state",
        "syn_due",
        "target",
        "ungranted",
        "unread",
    )

    def __init__(self, stream_id: int, now: float, *, own: bool) -> None:
        self.id = stream_id
        self.state = StreamState.OPEN
        self.syn_due = own
        self.fin_due = False
        self.acked = not own
        self.out = ChunkQueue()
        self.queued = False
        self.send_window = YAMUX_WINDOW_BYTES
        self.recv_window = YAMUX_WINDOW_BYTES
        self.target = YAMUX_WINDOW_BYTES
        self.unread = 0
        self.ungranted = 0
        self.granted_s = now

    @property
    def has_frame(self) -> bool:
        """Whether a frame can be cut now."""
        if self.out:
            return self.send_window > 0 or self.syn_due
        return self.syn_due or self.fin_due


class Yamux:
    """One side of a session.

    Args:
        initiator: whether we were the Noise initiator (odd ids).
        limits: see `YamuxLimits`.
    """

    def __init__(self, *, initiator: bool, limits: YamuxLimits | None = None) -> None:
        self.state = SessionState.OPEN
        self.rtt_s: float | None = None
        """Smoothed round trip of pings."""
        self.unread = 0
        """Bytes delivered and not yet consumed, all streams."""
        self._limits = limits or YamuxLimits()
        self._parity = 1 if initiator else 0
        self._next_id = 1 if initiator else 2
        self._streams: dict[int, _Stream] = {}
        self._own = 0
        self._unacked = 0
        self._growth = 0  # sum of target - initial window over all streams
        self._control: deque[bytes] = deque()
        self._grants: dict[int, int] = {}
        self._ready: deque[_Stream] = deque()
        self._forgotten: list[int] = []
        # Receiving.
        self._header = bytearray()
        self._body: _Stream | None = None
        self._body_left = 0
        self._body_flags = 0
        self._gone: dict[int, int] = {}
        self._unknown_bytes = 0
        self._unknown_since_s = 0.0
        # Ping.
        self._ping_value = 0
        self._ping_sent_s: float | None = None

    # --- what the driver asks ---

    @property
    def streams(self) -> int:
        """Live streams, both sides'."""
        return len(self._streams)

    @property
    def can_open(self) -> bool:
        """Whether `open_stream` is allowed now."""
        return (
            self.state is SessionState.OPEN
            and self._own < YAMUX_OWN_STREAMS_MAX
            and self._unacked < YAMUX_UNACKED_STREAMS_MAX
            and self._next_id <= U32_MAX
        )

    @property
    def has_output(self) -> bool:
        """Whether `to_send` has something."""
        return bool(self._control or self._grants or self._ready)

    @property
    def ping_sent_s(self) -> float | None:
        """When the ping under way was sent; None if there is none."""
        return self._ping_sent_s

    @property
    def unsent(self) -> bool:
        """Whether any stream holds bytes that have not left."""
        return any(stream.out for stream in self._streams.values())

    def take_forgotten(self) -> list[int]:
        """Streams that ceased to exist since the last call."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def alive(self, stream_id: int) -> bool:
        """Whether the stream exists."""
        return stream_id in self._streams

    def room(self, stream_id: int) -> int:
        """Bytes `send` takes now; 0 if the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        return max(0, self._limits.stream_send_buffer_bytes - len(stream.out))

    # --- what we do ---

    def open_stream(self, now: float) -> int:
        """A new stream's id. Its SYN leaves with its first frame.

        Raises:
            UsageError: `can_open` is false.
        """
        if not self.can_open:
            raise UsageError("no stream may be opened now")
        self._session(SessionInput.SEND_SYN)
        stream = _Stream(self._next_id, now, own=True)
        self._next_id += 2
        self._streams[stream.id] = stream
        self._own += 1
        self._unacked += 1
        self._queue(stream)
        return stream.id

    def send(self, stream_id: int, data: bytes | memoryview) -> int:
        """Put bytes into the stream's buffer; how many it took. `data` must not change later.

        Raises:
            UsageError: the stream was ended by us, or is gone.
        """
        stream = self._need(stream_id, StreamInput.SEND_DATA)
        taken = min(len(data), self._limits.stream_send_buffer_bytes - len(stream.out))
        if taken <= 0:
            return 0
        stream.out.append(data if taken == len(data) else memoryview(data)[:taken])
        self._queue(stream)
        return taken

    def send_fin(self, stream_id: int) -> None:
        """End our direction after what is buffered.

        Raises:
            UsageError: ended before, or gone.
        """
        stream = self._need(stream_id, StreamInput.SEND_FIN)
        stream.fin_due = True
        self._queue(stream)

    def send_reset(self, stream_id: int) -> None:
        """Abandon a stream; what is buffered is dropped. Does nothing for one that is gone."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.syn_due:  # else the other side never heard of it
            self._control.append(HEADER.pack(0, KIND_WINDOW, _RST, stream_id, 0))
            self._remember_gone(stream_id, stream.recv_window)
        self._move(stream, StreamInput.SEND_RST)
        self._forget(stream)

    def consumed(self, stream_id: int, size: int, now: float) -> None:
        """The application took `size` bytes: grant them back in steps of half the window."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.unread -= size
        self.unread -= size
        assert stream.unread >= 0, "more consumed than delivered"
        stream.ungranted += size
        if stream.state in (StreamState.GOT_FIN, StreamState.DONE):
            self._maybe_forget(stream)
            return
        if stream.ungranted < stream.target // 2:
            return
        grant = stream.ungranted + self._grow(stream, now)
        stream.ungranted = 0
        stream.granted_s = now
        stream.recv_window += grant
        self._grants[stream_id] = self._grants.get(stream_id, 0) + grant

    def ping(self, now: float) -> bool:
        """Send a ping unless one is under way; whether it did."""
        if self._ping_sent_s is not None:
            return False
        self._ping_value = (self._ping_value + 1) & U32_MAX
        self._ping_sent_s = now
        self._control.append(HEADER.pack(0, KIND_PING, _SYN, 0, self._ping_value))
        return True

    def go_away(self, code: int) -> None:
        """Say goodbye: no streams are opened or accepted from here on."""
        if self.state in (SessionState.OPEN, SessionState.LEFT):
            self._control.append(HEADER.pack(0, KIND_GO_AWAY, 0, 0, code))
        self._session(SessionInput.SEND_GO_AWAY)

    def to_send(self, size_max: int) -> bytes:
        """Whole frames, at most `size_max` bytes; b"" if nothing can leave now."""
        parts: list[bytes | bytearray | memoryview] = []
        room = size_max
        control = self._control
        if self._grants:
            for stream_id, grant in self._grants.items():
                control.append(HEADER.pack(0, KIND_WINDOW, 0, stream_id, grant))
            self._grants.clear()
        while control and room >= YAMUX_HEADER_BYTES:
            parts.append(control.popleft())
            room -= YAMUX_HEADER_BYTES
        ready = self._ready
        while ready and room > YAMUX_HEADER_BYTES:
            stream = ready[0]
            wanted = min(len(stream.out), stream.send_window)
            size = min(wanted, room - YAMUX_HEADER_BYTES)
            if size < wanted and size < _SLIVER_BYTES and parts:
                break
            ready.popleft()
            stream.queued = False
            room -= self._cut(stream, size, parts)
        return b"".join(parts)

    # --- what arrives ---

    def receive(self, data: bytes | memoryview, now: float) -> list[YamuxEvent]:
        """Take bytes of the session in any cut.

        Raises:
            ProtocolError, LimitError: GoAway 1 is queued; send it and close.
        """
        events: list[YamuxEvent] = []
        try:
            self._receive(data, now, events)
        except PeerError:
            self.go_away(GoAway.PROTOCOL)
            raise
        if len(self._control) * YAMUX_HEADER_BYTES > self._limits.control_bytes_max:
            self._control.clear()
            self.go_away(GoAway.PROTOCOL)
            raise LimitError("the peer does not read: too many unsent control frames")
        return events

    def _receive(self, data: bytes | memoryview, now: float, events: list[YamuxEvent]) -> None:
        offset = 0
        total = len(data)
        while True:
            if self._body_left:
                size = min(self._body_left, total - offset)
                if size:
                    piece = bytes(data[offset : offset + size])
                    offset += size
                    self._take_body(piece, events)
                if self._body_left:
                    return
                self._end_of_frame(self._body, self._body_flags, events)
                self._body = None
            if self._header or total - offset < YAMUX_HEADER_BYTES:
                need = YAMUX_HEADER_BYTES - len(self._header)
                self._header += data[offset : offset + need]
                offset += min(need, total - offset)
                if len(self._header) < YAMUX_HEADER_BYTES:
                    return
                fields = HEADER.unpack(self._header)
                self._header.clear()
            else:
                fields = HEADER.unpack_from(data, offset)
                offset += YAMUX_HEADER_BYTES
            self._take_header(fields, now, events)

    def _take_header(
        self, fields: tuple[int, int, int, int, int], now: float, events: list[YamuxEvent]
    ) -> None:
        version, kind, flags, stream_id, length = fields
        if version or kind > KIND_GO_AWAY:
            raise ProtocolError("Yamux: unknown version or frame type")
        if kind >= KIND_PING:
            self._take_session_frame(kind, flags, length, now, events)
            return
        if stream_id == 0:
            raise ProtocolError("Yamux: a stream's frame on stream 0")
        if flags & _SYN:
            self._take_syn(stream_id, now, events)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._count_unknown(stream_id, length if kind == KIND_DATA else 0, now)
        elif not stream.acked:
            # Whatever arrives for our stream proves that it was accepted.
            stream.acked = True
            self._unacked -= 1
        if kind == KIND_DATA and length:
            if stream is not None:
                self._move(stream, StreamInput.RECV_DATA)
                if length > stream.recv_window:
                    raise LimitError("Yamux: more data than was granted")
                stream.recv_window -= length
            self._body, self._body_left, self._body_flags = stream, length, flags
            return
        if kind == KIND_WINDOW and stream is not None:
            self._take_window(stream, length)
        self._end_of_frame(stream, flags, events)

    def _take_syn(self, stream_id: int, now: float, events: list[YamuxEvent]) -> None:
        if stream_id % 2 == self._parity:
            raise ProtocolError("Yamux: the peer opened a stream id of ours")
        if stream_id in self._streams:
            raise ProtocolError("Yamux: the peer opened a live stream again")
        self._session(SessionInput.RECV_SYN)
        self._gone.pop(stream_id, None)
        if (
            self.state in (SessionState.LEAVING, SessionState.CLOSED)
            or len(self._streams) - self._own >= self._limits.streams_inbound_max
        ):
            self._control.append(HEADER.pack(0, KIND_WINDOW, _RST, stream_id, 0))
            self._remember_gone(stream_id, YAMUX_WINDOW_BYTES)
            return
        self._streams[stream_id] = _Stream(stream_id, now, own=False)
        self._control.append(HEADER.pack(0, KIND_WINDOW, _ACK, stream_id, 0))
        events.append(StreamOpened(stream_id))

    def _take_body(self, piece: bytes, events: list[YamuxEvent]) -> None:
        size = len(piece)
        self._body_left -= size
        stream = self._body
        if stream is None or stream.state is StreamState.RESET:
            return
        stream.unread += size
        self.unread += size
        events.append(StreamData(stream.id, piece))
        if self.unread > self._limits.connection_window_bytes_max:
            # The largest, not the one whose bytes came last: that may be a prompt reader's.
            hog = max(self._streams.values(), key=lambda other: other.unread)
            self.send_reset(hog.id)
            events.append(StreamReset(hog.id))

    def _take_window(self, stream: _Stream, grant: int) -> None:
        self._move(stream, StreamInput.RECV_WINDOW)
        stream.send_window += grant
        if stream.send_window > U32_MAX:
            raise ProtocolError("Yamux: the window is over 2**32 - 1")
        self._queue(stream)

    def _end_of_frame(self, stream: _Stream | None, flags: int, events: list[YamuxEvent]) -> None:
        """Apply the flags that take effect after a frame's payload."""
        if stream is None or not flags & (_FIN | _RST) or stream.state is StreamState.RESET:
            return
        if flags & _FIN:
            before = stream.state
            self._move(stream, StreamInput.RECV_FIN)
            if stream.state is not before:
                events.append(StreamEnded(stream.id))
                self._maybe_forget(stream)
        if flags & _RST and stream.id in self._streams:
            self._move(stream, StreamInput.RECV_RST)
            self._forget(stream)
            events.append(StreamReset(stream.id))

    def _take_session_frame(
        self, kind: int, flags: int, value: int, now: float, events: list[YamuxEvent]
    ) -> None:
        if kind == KIND_GO_AWAY:
            self._session(SessionInput.RECV_GO_AWAY)
            events.append(WentAway(value))
        elif flags & _SYN:
            self._control.append(HEADER.pack(0, KIND_PING, _ACK, 0, value))
        elif flags & _ACK and self._ping_sent_s is not None and value == self._ping_value:
            rtt_s = max(0.0, now - self._ping_sent_s)
            self._ping_sent_s = None
            old_s = rtt_s if self.rtt_s is None else self.rtt_s
            self.rtt_s = old_s + (rtt_s - old_s) * _RTT_WEIGHT
            events.append(Pong(rtt_s))

    # --- helpers ---

    def _need(self, stream_id: int, what: StreamInput) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            raise UsageError("the stream is gone")
        self._move(stream, what)
        return stream

    def _move(self, stream: _Stream, what: StreamInput) -> None:
        following = STREAM_TRANSITIONS.get((stream.state, what))
        if following is None:
            message = f"Yamux: {what.name} in {stream.state.name}"
            raise ProtocolError(message) if what.name.startswith("RECV") else UsageError(message)
        stream.state = following

    def _session(self, what: SessionInput) -> None:
        following = SESSION_TRANSITIONS.get((self.state, what))
        if following is None:
            raise UsageError(f"Yamux: {what.name} in {self.state.name}")
        self.state = following

    def _queue(self, stream: _Stream) -> None:
        if not stream.queued and stream.has_frame:
            stream.queued = True
            self._ready.append(stream)

    def _cut(self, stream: _Stream, size: int, parts: list[bytes | bytearray | memoryview]) -> int:
        """Cut one frame of `size` payload bytes, or a SYN or FIN; how many bytes it took."""
        if stream.state is StreamState.RESET:
            return 0
        if size:
            flags = _SYN if stream.syn_due else 0
            stream.syn_due = False
            parts.append(HEADER.pack(0, KIND_DATA, flags, stream.id, size))
            stream.out.take_into(parts, size)
            stream.send_window -= size
        elif stream.syn_due:
            parts.append(HEADER.pack(0, KIND_WINDOW, _SYN, stream.id, 0))
            stream.syn_due = False
        elif stream.fin_due and not stream.out:
            parts.append(HEADER.pack(0, KIND_WINDOW, _FIN, stream.id, 0))
            stream.fin_due = False
            self._maybe_forget(stream)
        else:
            return 0
        self._queue(stream)
        return YAMUX_HEADER_BYTES + size

    def _grow(self, stream: _Stream, now: float) -> int:
        """Double the window of a stream that uses it up fast; the extra grant."""
        # Half a window went since the last grant, so a whole one takes twice as long.
        fast_s = max(4 * (self.rtt_s or 0.0), _WINDOW_TIME_MIN_S)
        extra = min(
            stream.target,
            self._limits.stream_window_bytes_max - stream.target,
            self._limits.connection_window_bytes_max - self._growth,
        )
        if extra <= 0 or 2 * (now - stream.granted_s) >= fast_s:
            return 0
        stream.target += extra
        self._growth += extra
        return extra

    def _maybe_forget(self, stream: _Stream) -> None:
        if (
            stream.state is StreamState.DONE
            and not (stream.unread or stream.out or stream.fin_due or stream.syn_due)
            and stream.id in self._streams
        ):
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.id]
        self._forgotten.append(stream.id)
        self._grants.pop(stream.id, None)
        stream.out.clear()
        stream.fin_due = stream.syn_due = False
        if stream.id % 2 == self._parity:
            self._own -= 1
            if not stream.acked:
                stream.acked = True
                self._unacked -= 1
        self.unread -= stream.unread
        stream.unread = 0
        self._growth -= stream.target - YAMUX_WINDOW_BYTES

    def _remember_gone(self, stream_id: int, window: int) -> None:
        self._gone[stream_id] = window
        if len(self._gone) > _GONE_MAX:
            del self._gone[next(iter(self._gone))]

    def _count_unknown(self, stream_id: int, length: int, now: float) -> None:
        allowed = self._gone.get(stream_id)
        if allowed is not None and length <= allowed:
            self._gone[stream_id] = allowed - length
            return
        if now - self._unknown_since_s >= _UNKNOWN_PERIOD_S:
            self._unknown_since_s, self._unknown_bytes = now, 0
        self._unknown_bytes += YAMUX_HEADER_BYTES + length
        if self._unknown_bytes > self._limits.unknown_bytes_per_min:
            raise LimitError("Yamux: too many bytes for streams that do not exist")
