"""Yamux: every (state, input) pair, enforced windows, fairness, any cut, and hostile peers."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import LimitError, PeerError, ProtocolError, UsageError
from p2p.limits import (
    NOISE_PLAINTEXT_BYTES_MAX,
    YAMUX_FRAME_BYTES_MAX,
    YAMUX_UNACKED_STREAMS_MAX,
    YAMUX_WINDOW_BYTES,
)
from p2p.wire.chunks import ChunkQueue
from p2p.wire.yamux import Yamux
from p2p.wire.yamux_frames import (
    HEADER,
    SESSION_TRANSITIONS,
    STREAM_TRANSITIONS,
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

SYN, ACK, FIN, RST = 1, 2, 4, 8
DATA, WINDOW, PING, GO_AWAY = 0, 1, 2, 3


def frame(kind: int, flags: int, stream: int, length: int = 0, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream, length or len(body)) + body


def frames(data: bytes) -> list[tuple[int, int, int, int, bytes]]:
    """(kind, flags, stream, length, body) of each frame."""
    found = []
    while data:
        _, kind, flags, stream, length = HEADER.unpack_from(data)
        body = data[12 : 12 + length] if kind == DATA else b""
        found.append((kind, flags, stream, length, body))
        data = data[12 + len(body) :]
    return found


def drain(machine: Yamux) -> bytes:
    out = b""
    while piece := machine.to_send(NOISE_PLAINTEXT_BYTES_MAX):
        out += piece
    return out


def pair(limits: YamuxLimits | None = None) -> tuple[Yamux, Yamux]:
    return Yamux(initiator=True, limits=limits), Yamux(initiator=False, limits=limits)


def carry(source: Yamux, target: Yamux, now: float = 0.0) -> list[YamuxEvent]:
    return target.receive(drain(source), now)


def opened_pair() -> tuple[Yamux, Yamux, int]:
    a, b = pair()
    sid = a.open_stream(0.0)
    assert carry(a, b) == [StreamOpened(sid)]
    carry(b, a)
    return a, b, sid


# --- bytes ---


def test_the_header_is_the_specifications() -> None:
    a, b = pair()
    sid = a.open_stream(0.0)
    a.send(sid, b"hi")
    assert drain(a).hex() == "000000010000000100000002" + b"hi".hex()
    b.receive(frame(DATA, SYN, 1, body=b"hi"), 0.0)
    assert drain(b).hex() == "000100020000000100000000"  # ACK at once, as a window update
    assert b.open_stream(0.0) == 2


def test_fin_travels_as_an_empty_window_update_after_the_data() -> None:
    a, _, sid = opened_pair()
    a.send(sid, b"last words")
    a.send_fin(sid)
    assert frames(drain(a)) == [
        (DATA, 0, sid, 10, b"last words"),
        (WINDOW, FIN, sid, 0, b""),
    ]


def test_a_stream_that_is_only_ended_still_opens_first() -> None:
    a, b = pair()
    sid = a.open_stream(0.0)
    a.send_fin(sid)
    assert frames(drain(a)) == [(WINDOW, SYN, sid, 0, b""), (WINDOW, FIN, sid, 0, b"")]
    assert b.receive(frame(WINDOW, SYN | FIN, 1), 0.0) == [StreamOpened(1), StreamEnded(1)]


# --- tables ---


def test_every_stream_pair_follows_the_table() -> None:
    pairs = list(itertools.product(StreamState, StreamInput))
    assert len(pairs) == 35
    for state, what in pairs:
        a, _, sid = opened_pair()
        stream = a._streams[sid]
        stream.state = state
        following = STREAM_TRANSITIONS.get((state, what))
        if following is None:
            expected = ProtocolError if what.name.startswith("RECV") else UsageError
            with pytest.raises(expected):
                a._move(stream, what)
            assert stream.state is state
        else:
            a._move(stream, what)
            assert stream.state is following


def test_every_session_pair_follows_the_table() -> None:
    pairs = list(itertools.product(SessionState, SessionInput))
    assert len(pairs) == 16
    for state, what in pairs:
        machine, _ = pair()
        machine.state = state
        following = SESSION_TRANSITIONS.get((state, what))
        if following is None:
            assert what is SessionInput.SEND_SYN
            with pytest.raises(UsageError):
                machine._session(what)
            assert machine.state is state
        else:
            machine._session(what)
            assert machine.state is following


# --- flow ---


def test_bytes_arrive_whole_and_both_ends_forget_the_stream() -> None:
    a, b, sid = opened_pair()
    text = random.Random(1).randbytes(200_000)
    assert a.send(sid, text) == len(text)
    a.send_fin(sid)
    got = b"".join(e.data for e in carry(a, b) if isinstance(e, StreamData))
    assert got == text
    b.consumed(sid, len(got), 0.0)
    b.send_fin(sid)
    assert StreamEnded(sid) in carry(b, a)
    assert a.streams == b.streams == 0
    assert a.take_forgotten() == b.take_forgotten() == [sid]
    assert b.unread == 0


def test_a_stream_ended_by_both_lives_until_it_is_read() -> None:
    a, b, sid = opened_pair()
    a.send(sid, b"unread")
    a.send_fin(sid)
    carry(a, b)
    b.send_fin(sid)
    drain(b)
    assert b.alive(sid)
    b.consumed(sid, 6, 0.0)
    assert not b.alive(sid)


def test_the_sender_stops_at_the_window_and_goes_on_when_granted() -> None:
    a, b, sid = opened_pair()
    a.send(sid, bytes(YAMUX_WINDOW_BYTES))
    carry(a, b)
    assert a.send(sid, bytes(1000)) == 1000
    assert drain(a) == b""
    # Below half the window nothing is granted; at half, all that was consumed.
    b.consumed(sid, YAMUX_WINDOW_BYTES // 2 - 1, 10.0)
    assert drain(b) == b""
    b.consumed(sid, 1, 10.0)
    assert frames(drain(b)) == [(WINDOW, 0, sid, YAMUX_WINDOW_BYTES // 2, b"")]
    a.receive(frame(WINDOW, 0, sid, YAMUX_WINDOW_BYTES // 2), 0.0)
    assert len(drain(a)) == 12 + 1000


def test_the_buffer_of_a_stream_is_bounded() -> None:
    a, _, sid = opened_pair()
    limit = YamuxLimits().stream_send_buffer_bytes
    assert a.send(sid, bytes(limit + 1)) == limit
    assert a.send(sid, b"x") == 0
    assert a.room(sid) == 0
    a.to_send(NOISE_PLAINTEXT_BYTES_MAX)
    assert a.room(sid) == YAMUX_FRAME_BYTES_MAX


def test_a_fast_stream_gets_a_larger_window_and_a_slow_one_does_not() -> None:
    limits = YamuxLimits()
    for step_s, grows in ((0.001, True), (1.0, False)):
        b = Yamux(initiator=False, limits=limits)
        b.receive(frame(WINDOW, SYN, 1), 0.0)
        now, granted = 0.0, 0
        left = YAMUX_WINDOW_BYTES
        for _ in range(200):
            now += step_s
            size = min(left, 60_000)
            b.receive(frame(DATA, 0, 1, body=bytes(size)), now)
            b.consumed(1, size, now)
            left -= size
            for kind, _flags, _stream, length, _ in frames(drain(b)):
                if kind == WINDOW:
                    granted, left = granted + length, left + length
            assert left <= limits.stream_window_bytes_max
        if grows:
            assert left > 1 << 20  # 60 MB/s and a window of at least 20 ms
        else:
            assert left <= YAMUX_WINDOW_BYTES


def test_the_growth_of_all_windows_together_is_bounded() -> None:
    limits = YamuxLimits(connection_window_bytes_max=1 << 20)
    b = Yamux(initiator=False, limits=limits)
    for sid in range(1, 41, 2):
        b.receive(frame(WINDOW, SYN, sid), 0.0)
        for round_ in range(4):
            b.receive(frame(DATA, 0, sid, body=bytes(YAMUX_WINDOW_BYTES // 2)), round_ * 0.001)
            b.consumed(sid, YAMUX_WINDOW_BYTES // 2, round_ * 0.001)
            drain(b)
    assert b._growth == 1 << 20
    assert sum(s.target for s in b._streams.values()) == 20 * YAMUX_WINDOW_BYTES + (1 << 20)
    for sid in range(1, 41, 2):
        b.send_reset(sid)
    assert b._growth == 0


def test_a_small_message_waits_for_one_frame_of_a_large_transfer() -> None:
    a, b = pair()
    bulk, small = a.open_stream(0.0), a.open_stream(0.0)
    a.send(bulk, bytes(YAMUX_WINDOW_BYTES))
    a.send(small, b"hello")
    first = frames(a.to_send(NOISE_PLAINTEXT_BYTES_MAX))
    second = frames(a.to_send(NOISE_PLAINTEXT_BYTES_MAX))
    assert [f[2] for f in first] == [bulk]
    assert [f[2] for f in second] == [small, bulk]
    assert first[0][3] == YAMUX_FRAME_BYTES_MAX
    del b


def test_control_frames_leave_first() -> None:
    a, b, sid = opened_pair()
    b.send(sid, bytes(1000))
    b.receive(frame(PING, SYN, 0, 7), 0.0)
    assert [f[:4] for f in frames(drain(b))] == [(PING, ACK, 0, 7), (DATA, 0, sid, 1000)]
    del a


def test_a_ping_measures_the_round_trip_and_only_one_is_out() -> None:
    a, b = pair()
    assert a.ping(1.0)
    assert not a.ping(1.1)
    carry(a, b)
    assert carry(b, a, 1.5) == [Pong(0.5)]
    assert a.rtt_s == 0.5
    assert a.ping(2.0)
    carry(a, b)
    carry(b, a, 2.1)
    assert a.rtt_s == pytest.approx(0.45)
    assert a.receive(frame(PING, ACK, 0, 99), 3.0) == []  # never asked for: ignored


def test_a_reset_before_the_first_frame_is_never_heard_of() -> None:
    a, _ = pair()
    sid = a.open_stream(0.0)
    a.send(sid, b"changed my mind")
    a.send_reset(sid)
    assert drain(a) == b""
    assert a.streams == 0


def test_a_reset_drops_what_was_buffered() -> None:
    a, b, sid = opened_pair()
    a.send(sid, b"secret")
    a.send_reset(sid)
    assert frames(drain(a)) == [(WINDOW, RST, sid, 0, b"")]
    assert b.receive(frame(WINDOW, RST, sid), 0.0) == [StreamReset(sid)]
    with pytest.raises(UsageError):
        a.send(sid, b"more")


def test_no_stream_is_opened_over_the_backlog_and_an_ack_frees_it() -> None:
    a, b = pair()
    sids = [a.open_stream(0.0) for _ in range(YAMUX_UNACKED_STREAMS_MAX)]
    assert not a.can_open
    with pytest.raises(UsageError):
        a.open_stream(0.0)
    assert len(carry(a, b)) == len(sids)
    carry(b, a)
    assert a.can_open


def test_a_thousand_own_streams_are_the_most() -> None:
    a, b = pair()
    for _ in range(1000):
        assert a.can_open
        a.open_stream(0.0)
        carry(a, b)
        carry(b, a)
    assert not a.can_open
    a.send_reset(1)
    assert a.can_open


def test_after_goodbye_no_stream_is_opened_and_theirs_are_reset() -> None:
    a, b, sid = opened_pair()
    a.go_away(0)
    assert not a.can_open
    assert carry(a, b) == [WentAway(0)]
    assert not b.can_open
    assert a.receive(frame(DATA, SYN, 2, body=b"late"), 0.0) == []
    assert frames(drain(a)) == [(WINDOW, RST, 2, 0, b"")]
    a.send(sid, b"the old stream goes on")
    assert carry(a, b) == [StreamData(sid, b"the old stream goes on")]


def test_every_flag_combination_on_an_inbound_stream_is_taken() -> None:
    # Without SYN: a second one of a live stream is an error, tested below.
    for kind, flags in itertools.product((DATA, WINDOW), range(0, 16, 2)):
        b = Yamux(initiator=False)
        b.receive(frame(WINDOW, SYN, 1), 0.0)
        events = b.receive(frame(kind, flags, 1, body=b"x" if kind == DATA else b""), 0.0)
        assert (StreamData(1, b"x") in events) == (kind == DATA)
        assert (StreamEnded(1) in events) == bool(flags & FIN)
        assert (StreamReset(1) in events) == bool(flags & RST)


# --- any cut ---

Op = tuple[int, int]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 70_000)), max_size=25),
    st.lists(st.integers(0, 1 << 20), max_size=20),
)
def test_any_cut_of_the_bytes_gives_the_same_events(ops: list[Op], places: list[int]) -> None:
    a = Yamux(initiator=True)
    wire = b""
    live: list[int] = []
    for what, size in ops:
        if what == 0 or not live:
            live.append(a.open_stream(0.0))
        elif what == 1:
            sid = live.pop()
            a.send_fin(sid)
        elif what == 2:
            a.send_reset(live.pop())
        else:
            a.send(live[size % len(live)], bytes(size))
        wire += drain(a)
    wire += drain(a)

    def run(pieces: list[bytes]) -> list[object]:
        machine = Yamux(initiator=False)
        seen: list[object] = []
        for piece in pieces:
            for event in machine.receive(piece, 0.0):
                # Payloads may come in more pieces; joined they must be equal.
                last = seen[-1] if seen else None
                if not isinstance(event, StreamData):
                    seen.append(repr(event))
                elif isinstance(last, tuple) and last[0] == event.stream:
                    seen[-1] = (event.stream, last[1] + event.data)
                else:
                    seen.append((event.stream, event.data))
        return seen

    whole = run([wire])
    edges = sorted({0, len(wire), *(place % (len(wire) + 1) for place in places)})
    assert run([wire[x:y] for x, y in itertools.pairwise(edges)]) == whole
    if len(wire) < 3000:
        assert run([wire[i : i + 1] for i in range(len(wire))]) == whole


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_any_bytes_end_in_events_or_a_peer_error(data: bytes, places: list[int]) -> None:
    machine = Yamux(initiator=False)
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    try:
        for x, y in itertools.pairwise(edges):
            machine.receive(data[x:y], 0.0)
    except PeerError:
        assert frames(drain(machine))[-1][0] == GO_AWAY


# --- what a hostile peer may try ---


def refused(machine: Yamux, data: bytes, error: type[PeerError]) -> None:
    with pytest.raises(error):
        machine.receive(data, 0.0)
    assert frames(drain(machine))[-1][:4] == (GO_AWAY, 0, 0, 1)


@pytest.mark.attack
def test_a_window_overrun_ends_the_session() -> None:
    b = Yamux(initiator=False)
    b.receive(frame(WINDOW, SYN, 1), 0.0)
    b.receive(frame(DATA, 0, 1, body=bytes(YAMUX_WINDOW_BYTES)), 0.0)
    refused(b, frame(DATA, 0, 1, body=b"x"), LimitError)


@pytest.mark.attack
@pytest.mark.parametrize("length", [YAMUX_WINDOW_BYTES + 1, 1 << 30, 0xFFFF_FFFF])
def test_a_length_bomb_is_refused_at_its_header(length: int) -> None:
    b = Yamux(initiator=False)
    refused(b, frame(DATA, SYN, 1, length), LimitError)


@pytest.mark.attack
@pytest.mark.parametrize(
    "data",
    [
        frame(DATA, 0, 0, body=b"x"),
        frame(WINDOW, 0, 0, 5),
        frame(DATA, SYN, 2, body=b"x"),  # an id of ours
        frame(WINDOW, SYN, 1) + frame(WINDOW, SYN, 1),  # live
        b"\x01" + frame(DATA, SYN, 1)[1:],
        b"\x00\x04" + frame(DATA, SYN, 1)[2:],
        frame(WINDOW, SYN, 1, 0xFFFF_FFFF),
        frame(WINDOW, SYN | FIN, 1) + frame(DATA, 0, 1, body=b"after the end"),
    ],
    ids=["data-0", "window-0", "parity", "live", "version", "type", "window-sum", "after-fin"],
)
def test_what_the_rules_forbid_ends_the_session(data: bytes) -> None:
    refused(Yamux(initiator=False), data, ProtocolError)


@pytest.mark.attack
def test_streams_over_the_limit_are_reset_and_the_rest_goes_on() -> None:
    b = Yamux(initiator=False, limits=YamuxLimits(streams_inbound_max=10))
    for sid in range(1, 41, 2):
        b.receive(frame(DATA, SYN, sid, body=b"data"), 0.0)
    flags = [f[1] for f in frames(drain(b))]
    assert flags == [ACK] * 10 + [RST] * 10
    assert b.streams == 10
    assert b.receive(frame(DATA, 0, 1, body=b"alive"), 0.0) == [StreamData(1, b"alive")]


@pytest.mark.attack
@pytest.mark.parametrize("attack", [frame(PING, SYN, 0, 7), b"syn"], ids=["pings", "syns"])
def test_a_flood_by_a_peer_that_does_not_read_is_ended(attack: bytes) -> None:
    b = Yamux(initiator=False)
    ids = itertools.count(1, 2)
    flood = (frame(WINDOW, SYN, next(ids)) if attack == b"syn" else attack for _ in range(6000))
    refused(b, b"".join(flood), LimitError)


def test_a_flood_by_a_peer_that_reads_is_served() -> None:
    b = Yamux(initiator=False)
    for _ in range(100):
        b.receive(frame(PING, SYN, 0, 7) * 100, 0.0)
        assert len(drain(b)) == 1200


@pytest.mark.attack
def test_too_much_unread_resets_the_stream_with_most_of_it_and_no_prompt_reader() -> None:
    b = Yamux(initiator=False)
    b.receive(frame(WINDOW, SYN, 999), 0.0)
    resets: list[int] = []
    for sid in range(1, 141, 2):
        events = b.receive(frame(DATA, SYN, sid, body=bytes(YAMUX_WINDOW_BYTES)), 0.0)
        # The prompt reader's bytes arrive while the rest of the connection is full.
        events += b.receive(frame(DATA, 0, 999, body=bytes(1000)), 0.0)
        resets += [event.stream for event in events if isinstance(event, StreamReset)]
        b.consumed(999, 1000, 0.0)
        assert b.unread <= 16 << 20
    assert len(resets) == 7  # 64 windows are 16 MiB
    assert b.alive(999)


@pytest.mark.attack
def test_frames_for_streams_that_do_not_exist_are_dropped_up_to_a_limit() -> None:
    b = Yamux(initiator=False)
    for _ in range(3):
        assert b.receive(frame(DATA, 0, 77, body=bytes(1 << 20)), 0.0) == []
    refused(b, frame(DATA, 0, 77, body=bytes(1 << 20)), LimitError)


def test_what_was_in_flight_for_a_stream_we_reset_is_not_held_against_the_peer() -> None:
    limits = YamuxLimits(unknown_bytes_per_min=1000)
    b = Yamux(initiator=False, limits=limits)
    b.receive(frame(WINDOW, SYN, 1), 0.0)
    b.send_reset(1)
    assert b.receive(frame(DATA, 0, 1, body=bytes(YAMUX_WINDOW_BYTES)), 0.0) == []
    refused(b, frame(DATA, 0, 1, body=bytes(1001)), LimitError)


def test_a_minute_later_the_count_begins_anew() -> None:
    b = Yamux(initiator=False, limits=YamuxLimits(unknown_bytes_per_min=100))
    for minute in range(5):
        assert b.receive(frame(DATA, 0, 9, body=bytes(80)), 60.0 * minute) == []


# --- the queue below ---


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), max_size=60))
def test_the_chunk_queue_is_a_plain_byte_queue(ops: list[tuple[bool, int]]) -> None:
    queue, model = ChunkQueue(), bytearray()
    fill = random.Random(3)
    for put, size in ops:
        if put:
            data = fill.randbytes(size)
            queue.append(data if size % 2 else memoryview(data))
            model += data
        elif size % 2:
            piece = queue.take_piece(size)
            assert 0 < len(piece) <= size or not model
            assert bytes(piece) == bytes(model[: len(piece)])
            del model[: len(piece)]
        else:
            parts: list[bytes | bytearray | memoryview] = []
            exact = min(size, len(queue))
            queue.take_into(parts, exact)
            assert b"".join(parts) == bytes(model[:exact])
            del model[:exact]
        assert len(queue) == len(model)


def test_single_bytes_do_not_cost_an_object_each() -> None:
    queue = ChunkQueue()
    for _ in range(100_000):
        queue.append(b"x")
    assert len(queue._chunks) < 20
