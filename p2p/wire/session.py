"""One connection as a machine: from the first byte to multiplexed streams with a proven peer.

Theory of operation
-------------------
A connection passes four phases: agree on `/noise` in the clear, prove identities, agree on
`/yamux/1.0.0` inside the encrypted channel, then Yamux until the end. The initiator does not wait
where it need not:

    flight 1   header, /noise, Noise message 1
    flight 2   Noise message 3, then encrypted: header, /yamux/1.0.0, up to 8 streams with data

Each flight is what would be sent anyway if the other side answers as expected; if it does not, the
connection ends. So the first answer of a protocol arrives after three round trips with TCP's own,
and nothing of an application leaves before the responder is proven. A peer that does not pipeline
sees nothing unusual.

A failed upgrade is silent: after an error `to_send` is empty until the muxer runs, and from then on
it holds Yamux's GoAway. Time limits belong to the driver.

Source: libp2p specs `connections/README.md`; docs/specs/wire.md s.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, TypeAlias

from p2p.errors import PeerError, ProtocolError
from p2p.limits import NOISE_PLAINTEXT_BYTES_MAX, YAMUX_EARLY_STREAMS_MAX
from p2p.wire.multistream import Dialer, Listener
from p2p.wire.noise import FRAME_BYTES, NoiseHandshake, Opener, Sealer
from p2p.wire.yamux import Yamux
from p2p.wire.yamux_frames import YamuxEvent, YamuxLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2p.identity import PeerId, Signer

SECURITY: Final = "/noise"
MUXER: Final = "/yamux/1.0.0"

# Less than this at the end of a buffer is left for the next one.
_ROOM_MIN_BYTES: Final = 512


@dataclass(slots=True)
class Proven:
    """The other side proved who it is."""

    peer: PeerId


@dataclass(slots=True)
class Opened:
    """Both sides agreed on the muxer: streams flow both ways."""


SessionEvent: TypeAlias = Proven | Opened | YamuxEvent


class Phase(Enum):
    """How far the connection is."""

    SECURITY = auto()
    HANDSHAKE = auto()
    MUXER = auto()
    OPEN = auto()
    FAILED = auto()


class PhaseInput(Enum):
    """What ends a phase."""

    RECV_SECURITY = auto()
    RECV_PROOF = auto()
    RECV_MUXER = auto()
    RECV_BAD = auto()


PHASE_TRANSITIONS: Final[Mapping[tuple[Phase, PhaseInput], Phase]] = {
    (Phase.SECURITY, PhaseInput.RECV_SECURITY): Phase.HANDSHAKE,
    (Phase.SECURITY, PhaseInput.RECV_BAD): Phase.FAILED,
    (Phase.HANDSHAKE, PhaseInput.RECV_PROOF): Phase.MUXER,
    (Phase.HANDSHAKE, PhaseInput.RECV_BAD): Phase.FAILED,
    (Phase.MUXER, PhaseInput.RECV_MUXER): Phase.OPEN,
    (Phase.MUXER, PhaseInput.RECV_BAD): Phase.FAILED,
    # A broken frame in an open session is answered by GoAway, which still has to leave.
    (Phase.OPEN, PhaseInput.RECV_BAD): Phase.OPEN,
}


class Session:
    """One side of a connection.

    Args:
        signer: our identity.
        initiator: whether we dialled.
        static: fresh X25519 private key, 32 bytes.
        ephemeral: another one.
        expected: who must answer (initiator only).
        limits: of the muxer.
    """

    def __init__(
        self,
        signer: Signer,
        *,
        initiator: bool,
        static: bytes,
        ephemeral: bytes,
        expected: PeerId | None = None,
        limits: YamuxLimits | None = None,
    ) -> None:
        self.phase = Phase.SECURITY
        self.initiator = initiator
        self.mux = Yamux(initiator=initiator, limits=limits)
        self._noise = NoiseHandshake(
            signer, initiator=initiator, static=static, ephemeral=ephemeral, expected=expected
        )
        self._raw = bytearray()  # to send as it stands
        self._plain = bytearray()  # to send sealed, before anything of the muxer
        self._early = 0
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._select: Dialer | Listener
        if initiator:
            self._select = Dialer(SECURITY)
            self._raw += self._select.greeting() + self._noise.to_send()
        else:
            self._select = Listener({SECURITY})

    @property
    def peer(self) -> PeerId | None:
        """Who the other side proved to be."""
        return self._noise.peer

    @property
    def can_open(self) -> bool:
        """Whether a stream may be opened now."""
        if self.phase is Phase.OPEN:
            return self.mux.can_open
        # Before the muxer is confirmed the initiator may open a few: see flight 2.
        early = self.initiator and self.phase is Phase.MUXER
        return early and self._early < YAMUX_EARLY_STREAMS_MAX

    def open_stream(self, now: float) -> int:
        """A new stream's id; ask `can_open` first."""
        if self.phase is not Phase.OPEN:
            self._early += 1
        return self.mux.open_stream(now)

    @property
    def has_output(self) -> bool:
        """Whether `to_send` has something."""
        if self._raw or self._plain:
            return True
        return self._muxing and self.mux.has_output

    @property
    def _muxing(self) -> bool:
        """Whether frames of the muxer may leave."""
        return self.phase is Phase.OPEN or (self.initiator and self.phase is Phase.MUXER)

    def to_send(self, size: int) -> bytes:
        """Bytes for the wire: whole Noise messages, at most `size` bytes (at least 1,024)."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.send_into(buffer)])

    def send_into(self, buffer: bytearray) -> int:
        """Write bytes for the wire to the start of `buffer`; how many. Whole Noise messages.

        One buffer for all messages and connections: new ones for each write of 256 KiB cost
        .3 CPU ms/MiB in page faults and copies.
        """
        end = len(self._raw)
        with memoryview(buffer) as out:
            out[:end] = self._raw
            self._raw.clear()
            sealer = self._sealer
            while sealer is not None and (room := len(out) - end - FRAME_BYTES) > _ROOM_MIN_BYTES:
                plain = bytes(self._plain)
                self._plain.clear()
                if self._muxing:
                    room = min(room, NOISE_PLAINTEXT_BYTES_MAX) - len(plain)
                    plain += self.mux.to_send(room)
                if not plain:
                    break
                with out[end:] as rest:
                    end += sealer.seal_into(rest, plain)
        return end

    def receive(self, data: bytes | memoryview, now: float) -> list[SessionEvent]:
        """Take bytes from the wire in any cut.

        Raises:
            PeerError: send what `to_send` holds, then close.
        """
        try:
            if self._opener is not None:
                return self._receive_sealed(self._opener, data, now)
            return self._receive_clear(data, now)
        except PeerError:
            self._input(PhaseInput.RECV_BAD)
            if self.phase is Phase.FAILED:
                self._raw.clear()
                self._plain.clear()
            raise

    def _receive_clear(self, data: bytes | memoryview, now: float) -> list[SessionEvent]:
        if self.phase is Phase.SECURITY:
            agreed = self._select.receive(data)
            if isinstance(self._select, Listener):
                self._raw += self._select.to_send()
            if not agreed:
                return []
            self._input(PhaseInput.RECV_SECURITY)
            data = self._select.rest()
        if self.phase is not Phase.HANDSHAKE:
            raise ProtocolError("bytes after the connection failed")
        proven = self._noise.receive(data)
        self._raw += self._noise.to_send()
        if not proven:
            return []
        self._input(PhaseInput.RECV_PROOF)
        return self._start_channel(now)

    def _start_channel(self, now: float) -> list[SessionEvent]:
        peer = self._noise.peer
        assert peer is not None
        self._sealer, self._opener = self._noise.channel()
        if self.initiator:
            self._select = Dialer(MUXER)
            self._plain += self._select.greeting()
        else:
            self._select = Listener({MUXER})
        events: list[SessionEvent] = [Proven(peer)]
        events += self._receive_sealed(self._opener, self._noise.rest(), now)
        return events

    def _receive_sealed(
        self, opener: Opener, data: bytes | memoryview, now: float
    ) -> list[SessionEvent]:
        events: list[SessionEvent] = []
        for plain in opener.receive(data):
            if self.phase is Phase.OPEN:
                events += self.mux.receive(plain, now)
            elif self.phase is Phase.MUXER:
                self._receive_muxer(plain, now, events)
            else:
                raise ProtocolError("bytes after the connection failed")
        return events

    def _receive_muxer(
        self, plain: bytes | memoryview, now: float, events: list[SessionEvent]
    ) -> None:
        agreed = self._select.receive(plain)
        if isinstance(self._select, Listener):
            self._plain += self._select.to_send()
        if not agreed:
            return
        self._input(PhaseInput.RECV_MUXER)
        events.append(Opened())
        events += self.mux.receive(self._select.rest(), now)

    def _input(self, what: PhaseInput) -> None:
        following = PHASE_TRANSITIONS.get((self.phase, what))
        if following is None:
            raise ProtocolError(f"session: {what.name} in {self.phase.name}")
        self.phase = following
