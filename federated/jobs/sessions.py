"""Carrying items between the coordinator's machine and workers: one session a peer.

Whoever may see a live job's rows and is connected gets a session; while no job lives there is
none. A session that ends is opened again after a moment as long as it is wanted. Our own worker is
reached by the same items over a pipe in memory, so a job runs here as it runs elsewhere.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from typing_extensions import override

from federated.jobs.items import SESSION, decode_job_item_untrusted, encode_item
from federated.jobs.quota import Pace
from p2p.errors import P2pError, PeerError
from p2p.rpc_types import Caller, CallStream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federated.jobs.items import Item
    from federated.seams import Mesh
    from p2p.identity import PeerId

log = logging.getLogger("covey.jobs.sessions")

LOOK_S: Final = 0.5
"""How often peers are looked for that have come up, while jobs live. Guess: a person waits for the
first row of a job, not for a peer that comes later."""
IDLE_LOOK_S: Final = 3600.0
AGAIN_S: Final = 1.0
AGAIN_MAX_S: Final = 30.0
IDLE_S: Final = 10.0
"""How long sessions stay open after the last job: the next one begins at once."""
PIPE_ITEMS: Final = 64
OUTBOX_BYTES_MAX: Final = 64 * 2**20
"""What may wait for a worker that does not read: the rows of all tasks that a large machine may be
left with, thrice. Beyond, the session is closed."""
STALL_S: Final = 30.0
"""A worker that takes nothing for so long is not there. Guess."""

Serve: TypeAlias = Callable[[Caller, bytes, CallStream], Awaitable[bytes]]
"""The other end of a session in this process: our own worker, an engine."""


class Hooks:
    """What a session tells the service.

    Args:
        up: a session with a peer begins; its number.
        down: it ended.
        received: an item came.
    """

    def __init__(
        self,
        up: Callable[[PeerId, int], None],
        down: Callable[[PeerId, int], None],
        received: Callable[[PeerId, int, Item], None],
    ) -> None:
        self.up = up
        self.down = down
        self.received = received


class Outbox:
    """Items on their way to one worker."""

    def __init__(self) -> None:
        self.items: deque[bytes] = deque()
        self.bytes = 0
        self.work = trio.Event()
        self.scope: trio.CancelScope | None = None

    def put(self, data: bytes) -> None:
        """Queue an item."""
        self.items.append(data)
        self.bytes += len(data)
        self.work.set()

    def take(self) -> bytes:
        """The next item to send."""
        data = self.items.popleft()
        self.bytes -= len(data)
        return data

    def clear(self) -> None:
        """Forget what was not sent: in another session all is said again."""
        self.items.clear()
        self.bytes = 0


class Sessions:
    """The coordinator's sessions.

    Args:
        mesh: peers and calls.
        here: workers in this process, by the id they go by.
        hooks: who hears of what comes.
        wanted: peers that jobs want now; empty while no job lives.
    """

    def __init__(
        self, mesh: Mesh, here: Mapping[PeerId, Serve], hooks: Hooks,
        wanted: Callable[[], set[PeerId]],
    ) -> None:  # fmt: skip
        self._mesh = mesh
        self._here = here
        self._hooks = hooks
        self._wanted = wanted
        self._open: dict[PeerId, Outbox] = {}
        self._number = 0
        self._look = trio.Event()

    def look(self) -> None:
        """Jobs changed: see whether other peers are wanted."""
        self._look.set()

    def send(self, peer: PeerId, item: Item) -> None:
        """Send an item; dropped if the session is gone, as everything sent is said again."""
        outbox = self._open.get(peer)
        if outbox is None:
            return
        outbox.put(encode_item(item))
        if outbox.bytes > OUTBOX_BYTES_MAX:
            log.warning("job_session_does_not_read", extra={"f": {"bytes": outbox.bytes}})
            outbox.clear()
            self.close(peer)

    def close(self, peer: PeerId) -> None:
        """End a session; it may be opened again later."""
        outbox = self._open.get(peer)
        if outbox is not None and outbox.scope is not None:
            outbox.scope.cancel()

    @property
    def peers(self) -> list[PeerId]:
        """Peers with a session."""
        return list(self._open)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the wanted sessions open, until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._look = trio.Event()
                wanted = self._wanted()
                for peer in sorted(wanted - set(self._open)):
                    if self._is_there(peer):
                        self._open[peer] = Outbox()
                        nursery.start_soon(self._keep, peer)
                with trio.move_on_after(LOOK_S if wanted else IDLE_LOOK_S):
                    await self._look.wait()

    def _is_there(self, peer: PeerId) -> bool:
        return peer in self._here or self._mesh.fabric.info(peer) is not None

    async def _keep(self, peer: PeerId) -> None:
        """Sessions with one peer, one after another, while it is wanted and there."""
        wait_s = AGAIN_S
        try:
            while True:
                began = trio.current_time()
                await self._session(peer)
                if peer not in self._wanted() or not self._is_there(peer):
                    return
                wait_s = AGAIN_S if trio.current_time() - began > IDLE_S else wait_s * 2
                await trio.sleep(min(wait_s, AGAIN_MAX_S))
        finally:
            del self._open[peer]

    async def _session(self, peer: PeerId) -> None:
        self._number += 1
        number = self._number
        outbox = self._open[peer]
        outbox.clear()
        try:
            with trio.CancelScope() as outbox.scope:
                if peer in self._here:
                    await self._own(peer, number, outbox)
                else:
                    async with self._mesh.rpc.stream(peer, SESSION, b"") as call:
                        await self._converse(peer, number, outbox, call)
        except* PeerError as problems:
            log.warning("job_session_broken", extra={"f": {"why": str(problems.exceptions[0])}})
        except* P2pError as problems:
            log.info("job_session_ended", extra={"f": {"why": str(problems.exceptions[0])}})
        finally:
            outbox.scope = None
            self._hooks.down(peer, number)

    async def _own(self, peer: PeerId, number: int, outbox: Outbox) -> None:
        here, there = pipe()
        async with trio.open_nursery() as nursery:
            caller = Caller(self._mesh.id, "mem", float("inf"))
            nursery.start_soon(self._here[peer], caller, b"", there)
            await self._converse(peer, number, outbox, here)
            nursery.cancel_scope.cancel()

    async def _converse(self, peer: PeerId, number: int, outbox: Outbox, call: CallStream) -> None:
        self._hooks.up(peer, number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, outbox, call)
            nursery.start_soon(self._end_when_idle, peer, nursery.cancel_scope)
            trust = "own" if peer == self._mesh.id else self._mesh.trust(peer, None)
            pace = Pace(trio.current_time())
            async for data in call:
                assert isinstance(data, bytes)
                self._hooks.received(peer, number, decode_job_item_untrusted(data))
                wait_s = pace.wait_s(len(data), trust, trio.current_time())
                if wait_s:
                    await trio.sleep(wait_s)
            nursery.cancel_scope.cancel()

    async def _write(self, outbox: Outbox, call: CallStream) -> None:
        while True:
            while outbox.items:
                with trio.move_on_after(STALL_S) as limit:
                    await call.send(outbox.take())
                if limit.cancelled_caught and outbox.scope is not None:
                    outbox.scope.cancel()
            outbox.work = trio.Event()
            await outbox.work.wait()

    async def _end_when_idle(self, peer: PeerId, scope: trio.CancelScope) -> None:
        idle_since = None
        while True:
            await trio.sleep(IDLE_S / 4)
            if peer in self._wanted():
                idle_since = None
            elif idle_since is None:
                idle_since = trio.current_time()
            elif trio.current_time() - idle_since >= IDLE_S:
                scope.cancel()


class PipeEnd(CallStream):
    """One end of a call to ourselves."""

    def __init__(
        self, out: trio.MemorySendChannel[object], into: trio.MemoryReceiveChannel[object]
    ) -> None:
        self._out = out
        self._in = into

    @override
    async def send(self, item: object) -> None:
        """See `CallStream.send`."""
        await self._out.send(item)

    @override
    async def end(self) -> None:
        """See `CallStream.end`."""
        await self._out.aclose()

    @override
    async def receive(self) -> object:
        """See `CallStream.receive`."""
        return await self._in.receive()


def pipe() -> tuple[PipeEnd, PipeEnd]:
    """Two ends; what one sends the other receives."""
    to_there, from_here = trio.open_memory_channel[object](PIPE_ITEMS)
    to_here, from_there = trio.open_memory_channel[object](PIPE_ITEMS)
    return PipeEnd(to_there, from_there), PipeEnd(to_here, from_here)
