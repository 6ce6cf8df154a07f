"""multistream-select: agreeing on a protocol by name.

Theory of operation
-------------------
A line is a varint length, the text and a newline; the length counts the newline. Both sides send
the header `/multistream/1.0.0`. The *dialer* proposes a protocol; the *listener* repeats the
proposal to accept it or answers `na`. After that the stream belongs to the protocol.

The dialer does not wait: header, proposal and the protocol's first bytes leave together, and the
answers are checked when they arrive. With one proposal this is safe, because a refused dialer has
nothing else to try and resets. The listener answers the header with its own and says nothing
before: bytes that are not multistream get no answer at all, so a port scan learns nothing.

A hostile peer may send endless or huge lines (a line over 1,024 bytes is refused when its length is
read), propose for ever (eight proposals), or ask `ls` (answered like any unknown protocol).

Both machines take bytes in any cut and keep what follows the last line in `rest()`: it belongs to
the protocol agreed upon. Source: https://github.com/multiformats/multistream-select;
docs/specs/wire.md s.3.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from p2p.errors import DecodeError, ProtocolError
from p2p.limits import MULTISTREAM_LINE_BYTES_MAX, MULTISTREAM_PROPOSALS_MAX
from p2p.wire.varint import decode_varint_untrusted, encode_varint

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

HEADER: Final = "/multistream/1.0.0"
NOT_AVAILABLE: Final = "na"

_LENGTH_BYTES_MAX: Final = 2


def encode_line(text: str) -> bytes:
    """One line: length, text, newline."""
    raw = text.encode()
    assert len(raw) < MULTISTREAM_LINE_BYTES_MAX, "protocol names are short"
    return encode_varint(len(raw) + 1) + raw + b"\n"


_HEADER_LINE: Final = encode_line(HEADER)


class LineReader:
    """Cuts bytes into lines."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        """Add received bytes."""
        self._buffer += data

    def next_line(self) -> str | None:
        """The next whole line without its newline, or None.

        Raises:
            DecodeError: over 1,024 bytes, empty, without newline, or not UTF-8.
        """
        buffer = self._buffer
        # A length of at most 1,024 has at most two varint bytes: do not wait for a third.
        found = decode_varint_untrusted(buffer[:_LENGTH_BYTES_MAX])
        if found is None:
            if len(buffer) >= _LENGTH_BYTES_MAX:
                raise DecodeError("multistream line is too long")
            return None
        length, start = found
        if not 0 < length <= MULTISTREAM_LINE_BYTES_MAX:
            raise DecodeError("multistream line has a wrong length")
        if len(buffer) < start + length:
            return None
        line = bytes(buffer[start : start + length])
        del buffer[: start + length]
        if not line.endswith(b"\n"):
            raise DecodeError("multistream line does not end in a newline")
        try:
            return line[:-1].decode()
        except UnicodeDecodeError:
            raise DecodeError("multistream line is not UTF-8") from None

    def check_start(self, expected: bytes) -> None:
        """Refuse bytes that cannot become `expected`, without waiting for a whole line.

        Raises:
            DecodeError: they differ.
        """
        if not expected.startswith(self._buffer[: len(expected)]):
            raise DecodeError("the first line is not multistream's header")

    def rest(self) -> bytes:
        """Take what came after the lines read so far."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


class DialerState(Enum):
    """Where a dialer stands."""

    WAIT_HEADER = auto()
    WAIT_ANSWER = auto()
    AGREED = auto()
    REFUSED = auto()


class DialerInput(Enum):
    """What a dialer can receive: a line is one of these four."""

    RECV_HEADER = auto()
    RECV_PROPOSAL = auto()  # our own proposal, repeated
    RECV_NA = auto()
    RECV_OTHER = auto()


DIALER_TRANSITIONS: Final[Mapping[tuple[DialerState, DialerInput], DialerState]] = {
    (DialerState.WAIT_HEADER, DialerInput.RECV_HEADER): DialerState.WAIT_ANSWER,
    (DialerState.WAIT_ANSWER, DialerInput.RECV_PROPOSAL): DialerState.AGREED,
    (DialerState.WAIT_ANSWER, DialerInput.RECV_NA): DialerState.REFUSED,
}


class Dialer:
    """The proposing side, for one protocol.

    Args:
        protocol: what we propose.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.state = DialerState.WAIT_HEADER
        self._lines = LineReader()

    def greeting(self) -> bytes:
        """Header and proposal; the protocol's own bytes may follow at once."""
        return encode_line(HEADER) + encode_line(self.protocol)

    def receive(self, data: bytes | memoryview) -> bool:
        """Take bytes; True once the other side agreed (then read `rest()`).

        Raises:
            DecodeError: not multistream lines.
            ProtocolError: refused, or a line out of order.
        """
        self._lines.feed(data)
        if self.state is DialerState.WAIT_HEADER:
            self._lines.check_start(_HEADER_LINE)
        while self.state is not DialerState.AGREED:
            line = self._lines.next_line()
            if line is None:
                return False
            self.input(self._classify(line))
            if self.state is DialerState.REFUSED:
                raise ProtocolError("the peer does not speak the protocol we proposed")
        return True

    def input(self, what: DialerInput) -> None:
        """Apply one input.

        Raises:
            ProtocolError: not allowed in this state.
        """
        following = DIALER_TRANSITIONS.get((self.state, what))
        if following is None:
            raise ProtocolError(f"multistream: {what.name} in {self.state.name}")
        self.state = following

    def rest(self) -> bytes:
        """Take the bytes after the agreement."""
        return self._lines.rest()

    def _classify(self, line: str) -> DialerInput:
        if line == HEADER:
            return DialerInput.RECV_HEADER
        if line == self.protocol:
            return DialerInput.RECV_PROPOSAL
        return DialerInput.RECV_NA if line == NOT_AVAILABLE else DialerInput.RECV_OTHER


class ListenerState(Enum):
    """Where a listener stands."""

    WAIT_HEADER = auto()
    WAIT_PROPOSAL = auto()
    AGREED = auto()


class ListenerInput(Enum):
    """What a listener can receive."""

    RECV_HEADER = auto()
    RECV_KNOWN = auto()
    RECV_UNKNOWN = auto()


LISTENER_TRANSITIONS: Final[Mapping[tuple[ListenerState, ListenerInput], ListenerState]] = {
    (ListenerState.WAIT_HEADER, ListenerInput.RECV_HEADER): ListenerState.WAIT_PROPOSAL,
    (ListenerState.WAIT_PROPOSAL, ListenerInput.RECV_KNOWN): ListenerState.AGREED,
    (ListenerState.WAIT_PROPOSAL, ListenerInput.RECV_UNKNOWN): ListenerState.WAIT_PROPOSAL,
}


class Listener:
    """The answering side.

    Args:
        protocols: the names we accept.
    """

    def __init__(self, protocols: Container[str]) -> None:
        self.state = ListenerState.WAIT_HEADER
        self.protocol: str | None = None
        """What was agreed."""
        self._protocols = protocols
        self._lines = LineReader()
        self._out = bytearray()
        self._proposals = 0

    def receive(self, data: bytes | memoryview) -> bool:
        """Take bytes; True once a protocol is agreed (then read `rest()`). Answers: `to_send()`.

        Raises:
            DecodeError: not multistream lines.
            ProtocolError: a line out of order, or the ninth proposal.
        """
        self._lines.feed(data)
        if self.state is ListenerState.WAIT_HEADER:
            self._lines.check_start(_HEADER_LINE)
        while self.state is not ListenerState.AGREED:
            line = self._lines.next_line()
            if line is None:
                return False
            self.input(self._classify(line), line)
        return True

    def input(self, what: ListenerInput, line: str = "") -> None:
        """Apply one input; `line` is the proposal.

        Raises:
            ProtocolError: not allowed in this state, or the ninth proposal.
        """
        following = LISTENER_TRANSITIONS.get((self.state, what))
        if following is None:
            raise ProtocolError(f"multistream: {what.name} in {self.state.name}")
        if what is ListenerInput.RECV_HEADER:
            # At once: py-libp2p waits for it before it proposes.
            self._out += _HEADER_LINE
        else:
            self._answer(what, line)
        self.state = following

    def to_send(self) -> bytes:
        """Take the answers to send."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def rest(self) -> bytes:
        """Take the bytes after the agreement."""
        return self._lines.rest()

    def _classify(self, line: str) -> ListenerInput:
        if line == HEADER:
            return ListenerInput.RECV_HEADER
        return ListenerInput.RECV_KNOWN if line in self._protocols else ListenerInput.RECV_UNKNOWN

    def _answer(self, what: ListenerInput, line: str) -> None:
        self._proposals += 1
        if what is ListenerInput.RECV_KNOWN:
            self.protocol = line
            self._out += encode_line(line)
            return
        if self._proposals >= MULTISTREAM_PROPOSALS_MAX:
            raise ProtocolError("multistream: eight proposals, none known")
        self._out += encode_line(NOT_AVAILABLE)
