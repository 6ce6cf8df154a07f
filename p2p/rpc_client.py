"""The caller's side: pooled streams, deadlines that travel, calls that may be cancelled any time.

Theory of operation. A *lane* is a stream that carries our calls to one peer, one at a time. A unary
call costs no task: the caller itself writes CALL and reads the answer. If it is cancelled or out of
time before the answer, a background task sends CANCEL, reads up to the answer and puts the lane
back; the call's place among the peer's calls is kept until then, as the other side counts it too.
Streaming calls (`p2p.rpc_outbound`) share places and lanes.

A call is repeated once, on a fresh stream, when it certainly did not run (the stream was dead
before it was written, or the peer says so), or when the method is idempotent.

Source: docs/specs/rpc.md s.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import trio
from trio.lowlevel import ParkingLot

from p2p.errors import DecodeError, PeerError, ProtocolError, TimedOut, Unreachable
from p2p.rpc_call import CallMachine, Input, Side
from p2p.rpc_errors import error_of
from p2p.rpc_frames import (
    ErrorFrame,
    FrameBuffer,
    ResultFrame,
    decode_body_untrusted,
    encode_call,
    encode_cancel,
)
from p2p.rpc_server import PROTOCOL
from p2p.rpc_stream import READ_BYTES
from p2p.rpc_types import Code, Method

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p.config import P2pConfig
    from p2p.identity import PeerId
    from p2p.net.seam import Fabric, Stream
    from p2p.rpc_frames import Frame

Q = TypeVar("Q")
R = TypeVar("R")

IDLE_S_MAX: Final = 30.0
"""An idle stream is closed after this, so that a connection which lost to a better one can end."""

SETTLE_S: Final = 5.0
"""How long the answer to a CANCEL may take before the stream is reset instead. Guess: handlers stop
at once, so this is a round trip and a busy moment."""

DEADLINE_MS_MAX: Final = 0xFFFF_FFFF

Answer: TypeAlias = ResultFrame | ErrorFrame


@dataclass(slots=True)
class Lane:
    """A stream to a peer and what was read of it."""

    stream: Stream
    frames: FrameBuffer = field(default_factory=FrameBuffer)
    idle_since: float = 0.0


@dataclass(slots=True)
class PeerLanes:
    """Our calls to one peer."""

    idle: list[Lane] = field(default_factory=list)
    calls: int = 0
    waiting: ParkingLot = field(default_factory=ParkingLot)


class LaneDeadError(Exception):
    """The stream died under a call; `sent` tells whether the whole CALL had been written."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        self.sent = sent


class Client:
    """Calls methods of peers.

    Args:
        fabric: opens the streams.
        config: how many calls at once and idle streams per peer.
    """

    def __init__(self, fabric: Fabric, config: P2pConfig) -> None:
        self._config = config
        self.calls_out = 0
        self.retries = 0
        self._fabric = fabric
        self._peers: dict[PeerId, PeerLanes] = {}
        self._background: trio.Nursery | None = None

    # --- Life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Finish cancelled calls and drive streaming ones until cancelled."""
        async with trio.open_nursery() as nursery:
            self._background = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._background = None
                self.drop_all_idle()

    def drop_idle(self, peer: PeerId, *, before: float = math.inf) -> None:
        """Close the idle streams of `peer`, or those idle since before a time."""
        lanes = self._peers.get(peer)
        if lanes is None:
            return
        keep = [lane for lane in lanes.idle if lane.idle_since >= before]
        for lane in lanes.idle:
            if lane.idle_since < before:
                lane.stream.reset()
        lanes.idle = keep
        self._forget_unused(peer, lanes)

    def drop_stale(self) -> None:
        """Close streams that were idle for long."""
        before = trio.current_time() - IDLE_S_MAX
        for peer in list(self._peers):
            self.drop_idle(peer, before=before)

    def drop_all_idle(self) -> None:
        """Close every idle stream."""
        for peer in list(self._peers):
            self.drop_idle(peer)

    @property
    def idle_streams(self) -> int:
        """Idle streams to all peers."""
        return sum(len(lanes.idle) for lanes in self._peers.values())

    # --- Unary --------------------------------------------------------------------------------

    async def call(self, peer: PeerId, method: Method[Q, R], request: Q, *, timeout_s: float) -> R:
        """See `Rpc.call`."""
        with trio.move_on_after(timeout_s):
            lanes = await self.take_place(peer)
            try:
                answer = await self._attempts(peer, lanes, method, request)
            finally:
                self.leave_place(peer, lanes)
            return decode_answer(method, answer, peer)
        raise TimedOut(f"{method.name}: no reply in {timeout_s:g} s")

    async def _attempts(
        self, peer: PeerId, lanes: PeerLanes, method: Method[Q, R], request: Q
    ) -> Answer:
        """Make the call, and once more when that cannot do harm."""
        retried = False
        while True:
            lane = await self.take_lane(peer, lanes, method, fresh=retried)
            try:
                answer = await self._exchange(peer, lanes, lane, method, request)
                if retried or not _refused_before_running(answer):
                    return answer
            except LaneDeadError as error:
                if retried or (error.sent and not method.idempotent):
                    raise Unreachable(
                        f"{method.name}: the connection died before the reply"
                    ) from None
            retried = True
            self.retries += 1

    async def _exchange(
        self, peer: PeerId, lanes: PeerLanes, lane: Lane, method: Method[Q, R], request: Q
    ) -> Answer:
        """CALL out, answer in; whatever happens, the lane is kept, settled or reset."""
        machine = CallMachine(Side.CALLER)
        begun = sent = dead = False
        answer: Answer | None = None
        try:
            frame = encode_call(method.name, deadline_ms(), 0, request)
            machine.send(Input.SEND_CALL)
            begun = True
            await lane.stream.send_all(frame)
            sent = True
            answer = await read_answer(lane, machine)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            dead = True
            raise LaneDeadError(sent=sent) from None
        except PeerError as error:
            dead = True
            error.peer = peer
            raise
        finally:
            if answer is not None or not begun:
                self.keep(peer, lanes, lane)
            elif sent and not dead and self._background is not None:
                lanes.calls += 1  # kept until the other side has answered, as it counts it too
                self._background.start_soon(self._settle, peer, lanes, lane, machine)
            else:
                lane.stream.reset()
        return answer

    async def _settle(
        self, peer: PeerId, lanes: PeerLanes, lane: Lane, machine: CallMachine
    ) -> None:
        """Cancel a call that nobody waits for and make its lane usable again."""
        clean = False
        try:
            with trio.move_on_after(SETTLE_S):
                machine.send(Input.SEND_CANCEL)
                await lane.stream.send_all(encode_cancel())
                await read_answer(lane, machine)
                clean = True
        except (trio.BrokenResourceError, trio.ClosedResourceError, PeerError):
            pass  # nobody waits for this call: the lane is reset below
        finally:
            if clean:
                self.keep(peer, lanes, lane)
            else:
                lane.stream.reset()
            self.leave_place(peer, lanes)

    # --- Places and lanes, also for streaming calls -------------------------------------------

    async def take_place(self, peer: PeerId) -> PeerLanes:
        """One of the peer's calls, waiting for one to end."""
        lanes = self._peers.get(peer)
        if lanes is None:
            lanes = self._peers[peer] = PeerLanes()
        while lanes.calls >= self._config.rpc_calls_per_peer_max:
            await lanes.waiting.park()
        lanes.calls += 1
        self.calls_out += 1
        return lanes

    def leave_place(self, peer: PeerId, lanes: PeerLanes) -> None:
        """A call ended."""
        lanes.calls -= 1
        if lanes.waiting:
            lanes.waiting.unpark()
        else:
            self._forget_unused(peer, lanes)

    async def take_lane(
        self, peer: PeerId, lanes: PeerLanes, method: Method[Q, R], *, fresh: bool
    ) -> Lane:
        """A stream for one call: an idle one, or a new one.

        Raises:
            Unreachable: no connection, or none of the kind the method allows.
        """
        if fresh:
            self.drop_idle(peer)
        for index in range(len(lanes.idle) - 1, -1, -1):
            if not method.direct_only or lanes.idle[index].stream.path != "relay":
                return lanes.idle.pop(index)
        stream = await self._fabric.open(peer, PROTOCOL, direct_only=method.direct_only)
        return Lane(stream)

    def keep(self, peer: PeerId, lanes: PeerLanes, lane: Lane) -> None:
        """A call ended cleanly: its lane may carry another."""
        if self._background is None or len(lanes.idle) >= self._config.rpc_idle_streams_max:
            lane.stream.reset()
            return
        self._peers[peer] = lanes
        lane.idle_since = trio.current_time()
        lanes.idle.append(lane)

    def spawn(self, fn: Callable[[], Awaitable[None]]) -> None:
        """Run `fn` in the background of this client.

        Raises:
            Unreachable: the client does not run.
        """
        if self._background is None:
            raise Unreachable("this node is not running")
        self._background.start_soon(fn)

    def _forget_unused(self, peer: PeerId, lanes: PeerLanes) -> None:
        if not lanes.calls and not lanes.idle and self._peers.get(peer) is lanes:
            del self._peers[peer]


def deadline_ms(limit: float = math.inf) -> int:
    """Milliseconds until the nearest enclosing deadline or `limit`, 0 if there is none."""
    deadline = min(trio.current_effective_deadline(), limit)
    if deadline == math.inf:
        return 0
    left_ms = (deadline - trio.current_time()) * 1000
    return min(max(math.ceil(left_ms), 1), DEADLINE_MS_MAX) if left_ms > 0 else 1


async def read_frames(lane: Lane) -> list[Frame]:
    """The next frames, waiting for bytes; may be none yet.

    Raises:
        BrokenResourceError: the stream ended.
        PeerError: what came is no frame.
    """
    data = await lane.stream.receive_some(READ_BYTES)
    if not data:
        raise trio.BrokenResourceError("the stream ended before the answer")
    return lane.frames.feed(data)


async def read_answer(lane: Lane, machine: CallMachine) -> Answer:
    """Read up to the answer of a call without items.

    Raises:
        BrokenResourceError: the stream ended first.
        PeerError: the peer broke the protocol.
    """
    answer: Answer | None = None
    while answer is None:
        for frame in await read_frames(lane):
            if machine.receive(frame) and isinstance(frame, ResultFrame | ErrorFrame):
                answer = frame
    check_nothing_left(lane)
    return answer


def check_nothing_left(lane: Lane) -> None:
    """Demand that the callee sent nothing after its answer.

    Raises:
        ProtocolError: it did.
    """
    if lane.frames.pending_bytes:
        raise ProtocolError("bytes after the answer")


def decode_answer(method: Method[Q, R], answer: Answer, peer: PeerId) -> R:
    """The reply, or the refusal raised.

    Raises: what `Rpc.call` raises.
    """
    if isinstance(answer, ErrorFrame):
        raise error_of(answer, peer)
    try:
        return decode_body_untrusted(method.reply_decoder, answer.body)
    except DecodeError as error:
        error.peer = peer
        raise


def _refused_before_running(answer: Answer) -> bool:
    """Whether a fresh stream may help: the peer is closing this one and did not run the call."""
    return (
        isinstance(answer, ErrorFrame) and answer.code == Code.UNAVAILABLE and not answer.dispatched
    )
