"""The whole connection as two machines coupled in memory: phases, flights, cuts, silence."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import PeerError, ProtocolError
from p2p.identity import Identity
from p2p.wire.liveness import Liveness, LivenessTimes, Verdict
from p2p.wire.multistream import encode_line
from p2p.wire.session import PHASE_TRANSITIONS, Opened, Phase, PhaseInput, Proven, Session
from p2p.wire.yamux_frames import StreamData, StreamOpened

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
SIZE = 1 << 20


def pair() -> tuple[Session, Session]:
    a = Session(ALICE, initiator=True, static=b"1" * 32, ephemeral=b"2" * 32, expected=BOB.id)
    b = Session(BOB, initiator=False, static=b"3" * 32, ephemeral=b"4" * 32)
    return a, b


def carry(source: Session, target: Session, places: list[int] | None = None) -> list[object]:
    data = source.to_send(SIZE)
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places or [])})
    events: list[object] = []
    for x, y in itertools.pairwise(edges):
        events += target.receive(data[x:y], 0.0)
    return events


def test_every_phase_pair_follows_the_table() -> None:
    pairs = list(itertools.product(Phase, PhaseInput))
    assert len(pairs) == 20
    for phase, what in pairs:
        machine, _ = pair()
        machine.phase = phase
        following = PHASE_TRANSITIONS.get((phase, what))
        if following is None:
            with pytest.raises(ProtocolError):
                machine._input(what)
            assert machine.phase is phase
        else:
            machine._input(what)
            assert machine.phase is following


def test_a_first_request_leaves_with_flight_2_and_is_answered_by_flight_3() -> None:
    a, b = pair()
    carry(a, b)  # flight 1: header, /noise, message 1
    assert carry(b, a) == [Proven(BOB.id)]
    sid = a.open_stream(0.0)
    a.mux.send(sid, b"request")
    # Flight 2 proves the dialer, agrees on the muxer, opens the stream and carries its data.
    assert carry(a, b) == [
        Proven(ALICE.id),
        Opened(),
        StreamOpened(sid),
        StreamData(sid, b"request"),
    ]
    b.mux.send(sid, b"answer")
    assert carry(b, a) == [Opened(), StreamData(sid, b"answer")]
    assert a.phase is b.phase is Phase.OPEN


def test_nothing_of_an_application_leaves_before_the_responder_is_proven() -> None:
    a, b = pair()
    assert not a.can_open
    carry(a, b)
    assert not a.can_open
    carry(b, a)
    assert a.can_open


def test_at_most_eight_streams_are_opened_early() -> None:
    a, b = pair()
    carry(a, b)
    carry(b, a)
    for _ in range(8):
        assert a.can_open
        a.open_stream(0.0)
    assert not a.can_open
    carry(a, b)
    carry(b, a)
    assert a.can_open


def test_a_peer_that_does_not_pipeline_is_served() -> None:
    """One line at a time, as py-libp2p dials."""
    b = Session(BOB, initiator=False, static=b"3" * 32, ephemeral=b"4" * 32)
    assert b.receive(encode_line("/multistream/1.0.0"), 0.0) == []
    assert b.to_send(SIZE) == encode_line("/multistream/1.0.0")
    assert b.receive(encode_line("/tls/1.0.0"), 0.0) == []
    assert b.to_send(SIZE) == encode_line("na")
    assert b.receive(encode_line("/noise"), 0.0) == []
    assert b.to_send(SIZE) == encode_line("/noise")


@given(st.lists(st.integers(0, 2000), max_size=15))
def test_any_cut_of_the_bytes_gives_the_same_connection(places: list[int]) -> None:
    a, b = pair()
    carry(a, b, places)
    assert carry(b, a, places) == [Proven(BOB.id)]
    sid = a.open_stream(0.0)
    a.mux.send(sid, b"x" * 500)
    events = carry(a, b, places)
    assert events[:3] == [Proven(ALICE.id), Opened(), StreamOpened(sid)]
    assert b"".join(e.data for e in events if isinstance(e, StreamData)) == b"x" * 500
    assert carry(b, a, places) == [Opened()]


@pytest.mark.attack
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" * 4096,
        bytes(4096),
        encode_line("/multistream/1.0.0") + encode_line("/noise") + b"\x00\x00",
        encode_line("/multistream/1.0.0") + encode_line("/noise") + b"\xff\xff",
        encode_line("/multistream/1.0.0") + encode_line("/noise") + b"\x00\x20" + bytes(32),
    ],
    ids=["http", "tls", "ff", "zero", "empty", "long", "low-order"],
)
def test_a_failed_upgrade_says_nothing(data: bytes) -> None:
    _, b = pair()
    with pytest.raises(PeerError):
        b.receive(data, 0.0)
    assert b.to_send(SIZE) == b""
    assert b.phase is Phase.FAILED
    with pytest.raises(PeerError):
        b.receive(b"more", 0.0)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_end_in_waiting_or_a_peer_error(data: bytes, sealed: bool) -> None:
    a, b = pair()
    if sealed:
        carry(a, b)
        carry(b, a)
    try:
        (a if sealed else b).receive(data, 0.0)
    except PeerError:
        return


def test_a_bad_frame_in_an_open_session_is_answered_by_goodbye() -> None:
    a, b = pair()
    carry(a, b)
    carry(b, a)
    carry(a, b)
    carry(b, a)
    sid = a.open_stream(0.0)
    a.mux.send(sid, b"hello")
    data = bytearray(a.to_send(SIZE))
    data[-1] ^= 1
    with pytest.raises(PeerError):
        b.receive(bytes(data), 0.0)
    # The channel is broken, not the muxer: what can still be said is said by the driver.
    assert b.phase is Phase.OPEN


# --- liveness ---

TIMES = LivenessTimes(
    ping_idle_s=15.0, dead_idle_s=40.0, ping_busy_s=5.0, dead_busy_s=15.0, suspect_s=5.0
)


@pytest.mark.parametrize(
    ("silent_s", "busy", "ping_age_s", "verdict"),
    [
        (14.9, False, None, Verdict.FINE),
        (15.0, False, None, Verdict.PING),
        (4.9, True, None, Verdict.FINE),
        (5.0, True, None, Verdict.PING),
        (19.9, False, 4.9, Verdict.FINE),
        (20.0, False, 5.0, Verdict.SUSPECT),
        (1.0, False, 9.0, Verdict.FINE),  # the pong is late, but bytes come
        (15.0, True, 5.0, Verdict.DEAD),
        (39.9, False, 20.0, Verdict.SUSPECT),
        (40.0, False, 20.0, Verdict.DEAD),
    ],
)
def test_silence_is_judged(
    silent_s: float, busy: bool, ping_age_s: float | None, verdict: Verdict
) -> None:
    now = 1000.0
    liveness = Liveness(TIMES, now - silent_s)
    sent_s = None if ping_age_s is None else now - ping_age_s
    assert liveness.check(now, busy=busy, ping_sent_s=sent_s) is verdict


@given(
    st.floats(0, 39.99),
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 39.99)),
)
def test_the_next_timer_is_later_and_soon_enough(
    silent_s: float, busy: bool, ping_age_s: float | None
) -> None:
    now = 1000.0
    liveness = Liveness(TIMES, now - silent_s)
    sent_s = None if ping_age_s is None else now - ping_age_s
    when = liveness.next_timer(now, busy=busy, ping_sent_s=sent_s)
    assert now < when <= now + TIMES.ping_busy_s
