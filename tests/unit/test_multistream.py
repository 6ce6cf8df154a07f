"""multistream-select: every (state, input) pair, any cut of the bytes, hostile lines."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError, PeerError, ProtocolError
from p2p.limits import MULTISTREAM_LINE_BYTES_MAX
from p2p.wire.multistream import (
    DIALER_TRANSITIONS,
    HEADER,
    LISTENER_TRANSITIONS,
    Dialer,
    DialerInput,
    DialerState,
    LineReader,
    Listener,
    ListenerInput,
    ListenerState,
    encode_line,
)

NAME = "/covey/echo/1"


def cuts(data: bytes, places: list[int]) -> list[bytes]:
    """`data` cut at `places` (modulo its length)."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_the_bytes_are_those_of_the_specification() -> None:
    assert encode_line(HEADER) == b"\x13/multistream/1.0.0\n"
    assert encode_line("na") == b"\x03na\n"
    assert Dialer("/noise").greeting() == b"\x13/multistream/1.0.0\n\x07/noise\n"


def test_every_dialer_pair_follows_the_table() -> None:
    pairs = list(itertools.product(DialerState, DialerInput))
    assert len(pairs) == 16
    for state, what in pairs:
        dialer = Dialer(NAME)
        dialer.state = state
        following = DIALER_TRANSITIONS.get((state, what))
        if following is None:
            with pytest.raises(ProtocolError):
                dialer.input(what)
            assert dialer.state is state
        else:
            dialer.input(what)
            assert dialer.state is following


def test_every_listener_pair_follows_the_table() -> None:
    pairs = list(itertools.product(ListenerState, ListenerInput))
    assert len(pairs) == 9
    for state, what in pairs:
        listener = Listener({NAME})
        listener.state = state
        following = LISTENER_TRANSITIONS.get((state, what))
        if following is None:
            with pytest.raises(ProtocolError):
                listener.input(what, NAME)
            assert listener.state is state
        else:
            listener.input(what, NAME)
            assert listener.state is following


@given(st.lists(st.integers(0, 1000), max_size=12), st.binary(max_size=40))
def test_any_cut_of_the_bytes_gives_the_same_agreement(places: list[int], rest: bytes) -> None:
    dialer, listener = Dialer(NAME), Listener({NAME, "/other"})
    agreed = False
    tail = b""
    for piece in cuts(dialer.greeting() + rest, places):
        if agreed:
            tail += piece
        else:
            agreed = listener.receive(piece)
            tail += listener.rest() if agreed else b""
    assert agreed
    assert listener.protocol == NAME
    assert tail == rest
    answers = listener.to_send()
    assert answers == encode_line(HEADER) + encode_line(NAME)
    agreed, tail = False, b""
    for piece in cuts(answers + rest, places):
        if agreed:
            tail += piece
        else:
            agreed = dialer.receive(piece)
            tail += dialer.rest() if agreed else b""
    assert agreed
    assert tail == rest


def test_a_listener_is_silent_until_it_hears_multistream() -> None:
    listener = Listener({NAME})
    with pytest.raises(PeerError):
        listener.receive(b"GET / HTTP/1.1\r\n\r\n")
    assert listener.to_send() == b""


def test_unknown_protocols_and_ls_are_answered_na_then_the_known_one_is_taken() -> None:
    listener = Listener({NAME})
    lines = [HEADER, "/plaintext/2.0.0", "/tls/1.0.0", "ls", NAME]
    assert listener.receive(b"".join(map(encode_line, lines)))
    expected = [HEADER, "na", "na", "na", NAME]
    assert listener.to_send() == b"".join(map(encode_line, expected))


def test_the_eighth_unknown_proposal_ends_it() -> None:
    listener = Listener({NAME})
    listener.receive(encode_line(HEADER))
    for number in range(7):
        listener.receive(encode_line(f"/x/{number}"))
    with pytest.raises(ProtocolError):
        listener.receive(encode_line("/x/8"))


def test_a_refused_dialer_says_so() -> None:
    dialer = Dialer(NAME)
    with pytest.raises(ProtocolError, match="does not speak"):
        dialer.receive(encode_line(HEADER) + encode_line("na"))
    assert dialer.state is DialerState.REFUSED


def test_another_name_than_the_proposed_one_is_an_error() -> None:
    with pytest.raises(ProtocolError):
        Dialer(NAME).receive(encode_line(HEADER) + encode_line("/another/1"))


@pytest.mark.attack
@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x81\x08" + b"x" * 1025,  # 1,025 bytes
        b"\xff\xff\xff\xff\x0f",
        b"\x80\x00",
        b"\x03nax",
        b"\x03\xff\xfe\n",
        b"\xff",
    ],
)
def test_hostile_lines_are_refused_early(data: bytes) -> None:
    reader = LineReader()

    def read_all() -> None:
        # A lone continuation byte is no error yet, but the next one is.
        for byte in data + b"\xff":
            reader.feed(bytes([byte]))
            reader.next_line()

    with pytest.raises(DecodeError):
        read_all()


def test_the_longest_line_is_taken() -> None:
    name = "/" + "a" * (MULTISTREAM_LINE_BYTES_MAX - 2)
    reader = LineReader()
    reader.feed(encode_line(name))
    assert reader.next_line() == name


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_answer_or_a_peer_error(data: bytes) -> None:
    for machine in (Dialer(NAME), Listener({NAME})):
        try:
            machine.receive(data)
        except PeerError:
            continue
