"""The caller's side of a streaming call.

Theory of operation. Two background tasks serve the call: one always reads, so that grants, END and
errors never wait behind items nobody took, and one writes whole frames, so that a cancelled sender
leaves none half done. The application holds a `StreamCall`, and may leave its block at any time:
the background then sends CANCEL, waits a while for the answer, and puts the stream back or resets
it.

Source: docs/specs/rpc.md s.4, s.6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import trio
from trio.lowlevel import ParkingLot
from typing_extensions import override

from p2p.errors import PeerError, TimedOut, Unreachable, UsageError
from p2p.limits import RPC_WINDOW_BYTES
from p2p.rpc_call import CallMachine, Input, Side, State
from p2p.rpc_client import (
    SETTLE_S,
    Answer,
    Client,
    Lane,
    PeerLanes,
    check_nothing_left,
    deadline_ms,
    decode_answer,
    read_frames,
)
from p2p.rpc_errors import error_of
from p2p.rpc_frames import (
    CreditFrame,
    EndFrame,
    ErrorFrame,
    ItemFrame,
    ResultFrame,
    encode_call,
    encode_cancel,
)
from p2p.rpc_stream import FrameWriter, Items
from p2p.rpc_types import Method, OutboundCall

if TYPE_CHECKING:
    from types import TracebackType

    from p2p.identity import PeerId
    from p2p.rpc_frames import Frame

Q = TypeVar("Q")
R = TypeVar("R")


class StreamCall(OutboundCall[R], Generic[Q, R]):
    """See `Rpc.stream`; an async context manager, used once.

    Args:
        client: whose lanes it uses.
        peer: the callee.
        method: one with items.
        request: the first message.
        timeout_s: until the reply; None: as long as the block lasts.
    """

    def __init__(
        self,
        client: Client,
        peer: PeerId,
        method: Method[Q, R],
        request: Q,
        *,
        timeout_s: float | None,
    ) -> None:
        self._client = client
        self._peer = peer
        self._method = method
        self._request = request
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._machine = self._new_machine()
        self._scope = trio.CancelScope()
        self._answer: Answer | None = None
        self._error: Exception | None = None
        self._broken = False
        self._over = ParkingLot()
        self._lanes: PeerLanes | None = None
        self._lane: Lane | None = None
        self._writer: FrameWriter | None = None
        self._items: Items | None = None

    # --- The block ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._lanes is not None:
            raise UsageError("a streaming call is entered once")
        self._scope.deadline = trio.current_time() + self._timeout_s
        with trio.CancelScope(deadline=self._scope.deadline):
            await self._begin()
            return self
        raise TimedOut(f"{self._method.name}: could not start in {self._timeout_s:g} s")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._answer is None and self._error is None:
            self._fail(UsageError(f"{self._method.name}: its block was left"))
        self._scope.cancel()
        assert self._items is not None
        self._items.release()

    async def _begin(self) -> None:
        self._lanes = await self._client.take_place(self._peer)
        started = False
        try:
            self._lane = await self._open(self._lanes)
            self._writer = FrameWriter(self._lane.stream)
            self._items = Items(
                self._method.name,
                self._machine,
                self._writer,
                decoder=self._method.item_out_decoder,
                sends=self._method.item_in is not None,
            )
            self._client.spawn(self._drive)
            started = True
        finally:
            if not started:
                if self._lane is not None:
                    self._lane.stream.reset()
                self._client.leave_place(self._peer, self._lanes)

    async def _open(self, lanes: PeerLanes) -> Lane:
        """A lane with the CALL written; a dead idle one is replaced once."""
        for fresh in (False, True):
            lane = await self._client.take_lane(self._peer, lanes, self._method, fresh=fresh)
            sent = False
            try:
                # Each attempt encodes anew: the time left is part of it.
                frame = encode_call(
                    self._method.name,
                    deadline_ms(self._scope.deadline),
                    self._machine.window_bytes,
                    self._request,
                )
                await lane.stream.send_all(frame)
                sent = True
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                continue
            finally:
                if not sent:
                    lane.stream.reset()
            self._machine.send(Input.SEND_CALL)
            return lane
        raise Unreachable(f"{self._method.name}: the connection died before the call was sent")

    def _new_machine(self) -> CallMachine:
        return CallMachine(
            Side.CALLER,
            window_bytes=RPC_WINDOW_BYTES if self._method.item_out is not None else 0,
            credit_bytes=RPC_WINDOW_BYTES if self._method.item_in is not None else 0,
        )

    # --- The background -----------------------------------------------------------------------

    async def _drive(self) -> None:
        """Read until the call is over, then put the lane back or reset it."""
        assert self._lane is not None
        assert self._lanes is not None
        assert self._writer is not None
        clean = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._writer.run)
                with self._scope:
                    await self._read_all()
                if self._machine.live and not self._broken:  # out of time, or the block was left
                    self._fail(TimedOut(f"{self._method.name}: no reply in {self._timeout_s:g} s"))
                    self._cancel_call()
                    with trio.move_on_after(SETTLE_S):
                        await self._read_all()
                clean = self._machine.state is State.IDLE and not self._broken
                if clean:
                    self._writer.drop_queued()
                    self._writer.close()
                else:
                    nursery.cancel_scope.cancel()
        finally:
            self._fail(Unreachable(f"{self._method.name}: this node stopped"))
            if clean and not self._writer.broken:
                self._client.keep(self._peer, self._lanes, self._lane)
            else:
                self._lane.stream.reset()
            self._client.leave_place(self._peer, self._lanes)

    async def _read_all(self) -> None:
        """Take frames until the answer; a dead stream or a broken protocol fails the call."""
        assert self._lane is not None
        try:
            while self._machine.state is not State.IDLE:
                for frame in await read_frames(self._lane):
                    if self._machine.receive(frame):
                        self._receive(frame)
            check_nothing_left(self._lane)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end_broken(Unreachable(f"{self._method.name}: the connection died"))
        except PeerError as error:
            error.peer = self._peer
            self._end_broken(error)

    def _receive(self, frame: Frame) -> None:
        assert self._items is not None
        if self._error is not None:
            return  # already failed: this answer only frees the lane
        if isinstance(frame, ItemFrame):
            self._items.deliver(frame.body)
        elif isinstance(frame, CreditFrame):
            self._items.wake()
        elif isinstance(frame, EndFrame):
            self._items.complete()
        elif isinstance(frame, ErrorFrame):
            self._answer = frame
            self._items.complete(error_of(frame, self._peer))
            self._over.unpark_all()
        elif isinstance(frame, ResultFrame):
            self._answer = frame
            self._items.complete()
            self._over.unpark_all()

    def _cancel_call(self) -> None:
        assert self._writer is not None
        self._machine.send(Input.SEND_CANCEL)
        self._writer.drop_queued()
        self._writer.queue(encode_cancel())

    def _end_broken(self, error: Exception) -> None:
        self._broken = True
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        """The call ended without an answer; the first reason counts."""
        if self._answer is None and self._error is None:
            self._error = error
            assert self._items is not None
            self._items.complete(error)
            self._over.unpark_all()

    # --- What the application calls -----------------------------------------------------------

    @override
    async def send(self, item: object) -> None:
        """See `CallStream.send`."""
        await self._entered().send(item)

    @override
    async def end(self) -> None:
        """See `CallStream.end`."""
        await self._entered().end()

    @override
    async def receive(self) -> object:
        """See `CallStream.receive`."""
        return await self._entered().receive()

    @override
    async def result(self) -> R:
        """See `OutboundCall.result`."""
        items = self._entered()
        await items.end()
        items.discard()
        while self._answer is None and self._error is None:
            await self._over.park()
        if self._answer is None:
            assert self._error is not None
            raise self._error
        return decode_answer(self._method, self._answer, self._peer)

    def _entered(self) -> Items:
        if self._items is None:
            raise UsageError("use a streaming call inside `async with`")
        return self._items
