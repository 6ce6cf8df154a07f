"""The callee's side: handlers by name, who may call, how much at once, one task per call.

Theory of operation. The fabric runs `Server.handle` in a task per inbound stream. Checks of a CALL
run in the order of their cost, and a refusal costs no decoding: known method, allowed caller, sane
deadline, room; only then the body is decoded. The handler starts in the task that read the CALL;
once it waits, another task reads on (see `Inbound`), so CANCEL is never behind anything. Answers
are written by the task that ran the handler, or through a writer task once a call with items was
made on the stream.

What a peer may take is counted per peer (`Load`): calls, unread bytes (bodies, items, unfinished
frames). Over it, calls are answered busy; one call can never starve another peer's.

Source: docs/specs/rpc.md s.5, s.6.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

import trio
from trio.lowlevel import ParkingLot

from p2p.errors import DecodeError, PeerError, UsageError
from p2p.limits import RPC_BODY_BYTES_MAX, RPC_WINDOW_BYTES
from p2p.rpc_call import CallMachine, Input, Side
from p2p.rpc_errors import Failure, failure_of
from p2p.rpc_frames import (
    BodyTooLarge,
    CallFrame,
    CancelFrame,
    EndFrame,
    FrameBuffer,
    ItemFrame,
    decode_body_untrusted,
    encode_error,
    encode_result,
)
from p2p.rpc_steps import waited
from p2p.rpc_stream import READ_BYTES, FrameWriter, Items, NoItems
from p2p.rpc_types import Allow, Caller, Code, Method, Serve

if TYPE_CHECKING:
    from p2p.config import P2pConfig
    from p2p.identity import PeerId
    from p2p.net.seam import Stream
    from p2p.rpc_frames import Frame

log = logging.getLogger("covey.p2p.rpc")

Q = TypeVar("Q")
R = TypeVar("R")

PROTOCOL: Final = "/covey/rpc/1"

STREAMS_SPARE: Final = 24
"""Open streams of a peer beyond its calls: its idle pool and some that are just closing."""

BUSY_RETRY_MS: Final = 200
"""What a busy answer suggests to wait. Guess: a few typical calls."""


class Served(Generic[Q, R]):
    """A method and its handler."""

    def __init__(self, method: Method[Q, R], fn: Serve[Q, R], allow: Allow | None) -> None:
        self.method = method
        self.fn = fn
        self.allow = allow
        self.no_items = None if method.streaming else NoItems(method.name)


@dataclass
class Load:
    """What one peer takes of us now."""

    calls: int = 0
    buffered_bytes: int = 0
    streams: int = 0
    by_method: dict[str, int] = field(default_factory=dict)

    def charge(self, size: int) -> None:
        """More (+) or fewer (-) unread bytes."""
        self.buffered_bytes += size


@dataclass
class Counters:
    """What happened since the start."""

    calls_in: int = 0
    refused: int = 0
    violations: int = 0
    bugs: int = 0
    """Handlers that raised something unexpected: faults of ours."""


class Server:
    """Serves methods on inbound streams.

    Args:
        members: the default of `allow`; asked anew for each call.
        config: limits per peer and in all.
    """

    def __init__(self, members: Allow, config: P2pConfig) -> None:
        self.config = config
        self.counters = Counters()
        self.loads: dict[PeerId, Load] = {}
        self.calls = 0
        self._members = members
        self._served: dict[str, Served[object, object]] = {}

    def serve(self, method: Method[Q, R], fn: Serve[Q, R], *, allow: Allow | None) -> None:
        """See `Rpc.serve`."""
        if method.name in self._served:
            raise UsageError(f"{method.name} is served already")
        served = Served(method, fn, allow)
        self._served[method.name] = cast("Served[object, object]", served)

    def methods(self) -> list[str]:
        """Names of what we serve, ascending."""
        return sorted(self._served)

    async def handle(self, stream: Stream) -> None:
        """Serve the calls of one inbound stream; the fabric's handler for `PROTOCOL`.

        Raises:
            PeerError: the peer broke the protocol; the fabric resets the stream and counts it.
        """
        load = self.loads.setdefault(stream.peer, Load())
        load.streams += 1
        try:
            await Inbound(self, stream, load).run()
        except PeerError as error:
            self.counters.violations += 1
            error.peer = stream.peer
            raise
        finally:
            load.streams -= 1
            if not load.streams:
                del self.loads[stream.peer]

    def admit(self, frame: CallFrame, peer: PeerId, load: Load) -> Served[object, object] | Failure:
        """Who may run what now, without decoding the body: the method, or why not."""
        served = self._served.get(frame.method)
        if served is None:
            return Failure(Code.UNKNOWN_METHOD, "unknown method")
        method = served.method
        if not (served.allow or self._members)(peer):
            return Failure(Code.DENIED, "denied")
        if frame.deadline_ms == 0 and not method.streaming:
            return Failure(Code.BAD_REQUEST, "this method needs a deadline")
        if len(frame.body) > RPC_BODY_BYTES_MAX:
            return Failure(Code.TOO_LARGE, f"the request is over {RPC_BODY_BYTES_MAX} bytes")
        if (
            load.calls >= self.config.rpc_calls_per_peer_max
            or self.calls >= self.config.rpc_calls_max
            or load.by_method.get(method.name, 0) >= method.concurrent_max
            or load.buffered_bytes + len(frame.body) > self.config.rpc_buffer_per_peer_bytes
        ):
            return Failure(Code.BUSY, "busy", BUSY_RETRY_MS)
        return served

    def begin(self, name: str, size: int, load: Load) -> None:
        """Count a call that starts."""
        self.counters.calls_in += 1
        self.calls += 1
        load.calls += 1
        load.by_method[name] = load.by_method.get(name, 0) + 1
        load.buffered_bytes += size

    def finish(self, name: str, size: int, load: Load) -> None:
        """Count a call that ended, its answer written."""
        self.calls -= 1
        load.calls -= 1
        load.by_method[name] -= 1
        load.buffered_bytes -= size


class Running:
    """A call whose handler runs."""

    __slots__ = (
        "answer",
        "deadline",
        "failure",
        "items",
        "machine",
        "request",
        "scope",
        "served",
        "size",
        "stopped",
    )

    def __init__(
        self,
        served: Served[object, object],
        machine: CallMachine,
        request: object,
        items: Items | None,
        *,
        deadline: float,
        size: int,
    ) -> None:
        self.served = served
        self.machine = machine
        self.request = request
        self.items = items
        self.deadline = deadline
        self.size = size
        self.scope = trio.CancelScope(deadline=deadline)
        self.answer: bytearray | None = None
        """The RESULT, once the handler returned."""
        self.failure: Failure | None = None
        """What the ERROR says instead, once the handler ended without a result."""
        self.stopped: Failure | None = None
        """Why we cancelled the handler, if we did; None: its deadline passed."""

    def stop(self, failure: Failure) -> None:
        """Cancel the handler; it is answered by `failure` unless it finishes all the same."""
        if self.stopped is None:
            self.stopped = failure
            self.scope.cancel()


class _OverShareError(Exception):
    """A peer has too much unread: no violation, as its calls may just be slow together."""


class Inbound:
    """One inbound stream: reads frames, runs handlers, writes answers.

    One task *leads*: it takes frames, and runs the handler of a CALL itself. A handler that answers
    without waiting costs no task. When it waits for the first time, another task takes the lead, so
    that CANCEL, items and the end are seen; the first one finishes its call and then waits to lead
    again. So a stream has one or two tasks, and exactly one leads until the end.
    """

    def __init__(self, server: Server, stream: Stream, load: Load) -> None:
        self._server = server
        self._stream = stream
        self._load = load
        self._frames = FrameBuffer()
        self._ready: deque[Frame] = deque()
        self._machine = CallMachine(Side.CALLEE)
        self._running: Running | None = None
        self._writer: FrameWriter | None = None
        self._sending = False
        self._sent = ParkingLot()
        self._partial_bytes = 0
        self._followers = ParkingLot()
        self._ended = False
        self._violation: PeerError | None = None
        self._leaders: trio.Nursery | None = None
        self._writers: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until the peer ends its direction or the stream dies.

        Raises:
            PeerError: the peer broke the protocol.
        """
        try:
            async with trio.open_nursery() as writers:
                self._writers = writers
                async with trio.open_nursery() as leaders:
                    self._leaders = leaders
                    await self._lead()
                # The peer ended its direction and its last call is answered.
                if self._writer is not None:
                    self._writer.close()
        finally:
            self._load.charge(-self._partial_bytes)
        if self._violation is not None:
            raise self._violation

    async def _lead(self) -> None:
        """Take frames while leading, then wait to lead again, until the end."""
        assert self._writers is not None
        try:
            while not self._ended:
                await self._take_frames()
                if self._followers:
                    return  # somebody else waits already
                if not self._ended:
                    await self._followers.park()
        except PeerError as error:
            self._violation = error
            self._writers.cancel_scope.cancel()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._writers.cancel_scope.cancel()  # the caller is gone: nobody wants an answer
        except _OverShareError:
            self._server.counters.refused += 1
            self._stream.reset()
            self._writers.cancel_scope.cancel()

    async def _take_frames(self) -> None:
        """Take frames until the lead is handed over, or the peer ended its direction."""
        while True:
            while self._ready:
                frame = self._ready.popleft()
                if not isinstance(frame, CallFrame):
                    self._receive(frame)
                elif await self._call(frame):
                    return
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                self._ended = True
                self._followers.unpark_all()
                return
            self._ready.extend(self._frames.feed(data))
            if self._frames.pending_bytes or self._partial_bytes:
                self._charge_partial(self._frames.pending_bytes)

    def _hand_over(self) -> None:
        """Our call waits: let another task lead."""
        if self._followers:
            self._followers.unpark()
        else:
            assert self._leaders is not None
            self._leaders.start_soon(self._lead)

    def _charge_partial(self, size: int) -> None:
        """Count an unfinished frame against the peer; over its share the stream is given up."""
        grown = size > self._partial_bytes
        self._load.charge(size - self._partial_bytes)
        self._partial_bytes = size
        if grown and self._over_share:
            raise _OverShareError

    @property
    def _over_share(self) -> bool:
        return self._load.buffered_bytes > self._server.config.rpc_buffer_per_peer_bytes

    def _receive(self, frame: Frame) -> None:
        """Take a frame of the running call."""
        if not self._machine.receive(frame):
            return
        running = self._running
        assert running is not None, "only a running call's frames pass the machine"
        if isinstance(frame, CancelFrame):
            running.stop(Failure(Code.CANCELLED, "cancelled"))
        elif running.items is None:
            pass  # credit for, or the end of, items that a unary call does not have
        elif isinstance(frame, ItemFrame):
            running.items.deliver(frame.body)
            if self._over_share:
                running.stop(Failure(Code.BUSY, "too many unread bytes", BUSY_RETRY_MS))
        elif isinstance(frame, EndFrame):
            running.items.complete()
        else:
            running.items.wake()  # credit

    async def _call(self, frame: CallFrame) -> bool:
        """Run a call to its answer; returns whether the lead was handed over meanwhile."""
        # A machine per call: the last one's items may still be in its application's hands.
        if self._running is None:
            self._machine = CallMachine(Side.CALLEE)
        self._machine.receive(frame)
        verdict = self._server.admit(frame, self._stream.peer, self._load)
        if isinstance(verdict, Failure):
            await self._refuse(verdict)
            return False
        try:
            request = decode_body_untrusted(verdict.method.request_decoder, frame.body)
        except DecodeError as error:
            await self._refuse(Failure(Code.BAD_REQUEST, str(error)))
            return False
        running = self._begin(verdict, frame, request)
        try:
            handed_over = await waited(self._run_handler(running), self._hand_over)
            await self._answer(running)
        finally:
            if running.items is not None:
                running.items.release()
            self._server.finish(verdict.method.name, running.size, self._load)
        return handed_over

    def _begin(self, served: Served[object, object], frame: CallFrame, request: object) -> Running:
        """From here on the call counts; its handler must be run."""
        method = served.method
        items = self._items(method) if method.streaming else None
        deadline = math.inf
        if frame.deadline_ms:
            deadline = trio.current_time() + frame.deadline_ms / 1000
        size = len(frame.body)
        running = self._running = Running(
            served, self._machine, request, items, deadline=deadline, size=size
        )
        self._server.begin(method.name, size, self._load)
        return running

    def _items(self, method: Method[object, object]) -> Items:
        if method.item_in is not None:
            self._machine.open_window(RPC_WINDOW_BYTES)
        return Items(
            method.name,
            self._machine,
            self._streaming_writer(),
            decoder=method.item_in_decoder,
            sends=method.item_out is not None,
            charge=self._load.charge,
        )

    async def _run_handler(self, running: Running) -> None:
        """Run the handler; leaves the answer, or why there is none, in `running`."""
        served = running.served
        caller = Caller(self._stream.peer, self._stream.path, running.deadline)
        stream = running.items or served.no_items
        assert stream is not None, "a method has items or it has none"
        try:
            with running.scope:
                reply = await served.fn(caller, running.request, stream)
                running.answer = encode_result(reply)
        except Exception as error:  # noqa: BLE001 - a supervisor: a handler's fault is an answer
            running.failure = self._failed(served.method.name, error)
        if running.answer is None and running.failure is None:
            running.failure = running.stopped or Failure(Code.DEADLINE, "the deadline passed")

    def _failed(self, name: str, error: Exception) -> Failure:
        failure = failure_of(error)
        if isinstance(error, BodyTooLarge):
            failure = Failure(Code.TOO_LARGE, str(error))
        if failure.code in {Code.INTERNAL, Code.TOO_LARGE}:
            self._server.counters.bugs += 1
            log.error(
                "rpc_handler_failed",
                exc_info=error,
                extra={"f": {"method": name}, "remote": True},
            )
        return failure

    async def _answer(self, running: Running) -> None:
        if running.failure is None:
            running.machine.send(Input.SEND_RESULT)
            answer = running.answer
            assert answer is not None, "a handler answers or fails"
        else:
            running.machine.send(Input.SEND_ERROR)
            answer = _error_frame(running.failure, dispatched=True)
        if running.items is not None:
            running.items.complete()
        # From here on the next CALL may come, even before the answer has left.
        self._running = None
        self._load.charge(len(answer))
        try:
            await self._write(answer)
        finally:
            self._load.charge(-len(answer))

    async def _refuse(self, failure: Failure) -> None:
        self._server.counters.refused += 1
        self._machine.send(Input.SEND_ERROR)
        await self._write(_error_frame(failure, dispatched=False))

    async def _write(self, frame: bytes | bytearray) -> None:
        """Have a frame written whole, after those before it."""
        if self._writer is not None:
            while self._writer.full:
                await self._writer.wait_room()
            self._writer.queue(frame)
            return
        while self._sending:
            await self._sent.park()
        self._sending = True
        try:
            await self._stream.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader sees it too and ends this stream
        finally:
            self._sending = False
            self._sent.unpark()

    def _streaming_writer(self) -> FrameWriter:
        if self._writer is None:
            self._writer = FrameWriter(self._stream)
            assert self._writers is not None
            self._writers.start_soon(self._run_writer, self._writer)
        return self._writer

    async def _run_writer(self, writer: FrameWriter) -> None:
        while self._sending:  # an answer that was under way before there was a writer
            await self._sent.park()
        await writer.run()


def _error_frame(failure: Failure, *, dispatched: bool) -> bytearray:
    return encode_error(
        failure.code,
        failure.message,
        retry_after_ms=failure.retry_after_ms,
        dispatched=dispatched,
        data=failure.data,
    )
