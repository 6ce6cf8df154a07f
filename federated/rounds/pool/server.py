"""The host pool: trainers of this machine hand their updates over in shared memory.

    pool = Pool(env, offload, Path(paths.pool_socket))
    await nursery.start(pool.run)
    lane = pool.open(Schema(items=25_000_000))       # trainers ask for lane.number
    folded = await lane.folded(1)                    # closes the round: total, weight, count
    folded.mean()                                    # in place; or publish an array of one's own
    await lane.publish(1)                            # trainers that wait get it, read-only

Theory of operation. A trainer connects, is lent a segment, writes its update there and says
`filled`; the pool checks the update and folds it into the round's sum at once, in a worker. Nothing
is copied and nobody waits for anybody: memory for K trainers' updates is all there is, and the sum
is there as soon as the last one came. It is itself a segment, which trainers get as the result.

- *Book* (`book`): who may write where. *Lane*: what is collected. *Session*: one connection.
- A trainer's process is watched until it ends, as long as it may have mapped something.
- Only updates that are whole, of the schema, finite and of a fair weight are folded. A sum is
  checked once more when its round is closed: a trainer can write on after `filled`.
- What does not fit into shared memory comes over the socket with a checksum, one update at a time.

Whoever ends the pool's process ends its segments; the next removes a socket file that it left.
Source: docs/specs/pool.md; LIFL, arXiv 2405.10968.
"""

from __future__ import annotations

import logging
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import trio

from federated.errors import UsageError
from federated.rounds.pool import folding, processes, segments
from federated.rounds.pool.book import Book, Place, PoolLimits
from federated.rounds.pool.collecting import Rounds, Schema, Sum, Update, spoil
from federated.rounds.pool.lane import Lane
from federated.rounds.pool.processes import Process
from federated.rounds.pool.records import LANE_MAX, Reason
from federated.rounds.pool.segments import Segment
from federated.rounds.pool.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Container
    from pathlib import Path

    from federated.rounds.numeric.engines import F32
    from federated.rounds.pool.segments import Bytes
    from p2p.env import Env, Offload

log = logging.getLogger("covey.rounds.pool")

TRAINERS_MAX: Final = 64
"""Connections at once; a federation has at most 64 members, and a machine fewer trainers."""
BATCH_MAX: Final = 16
EVENTS_MAX: Final = 256
"""Events that nobody took; after that new ones are dropped and counted."""

EventKind: TypeAlias = Literal[
    "joined", "left", "ended", "lent", "folded", "refused", "retired", "pressure", "published"
]


@dataclass(frozen=True)
class PoolEvent:
    """What happened.

    Attributes:
        kind: `joined`, `left`: a connection; `ended`: a process; `lent`, `folded`, `refused`: an
            update; `retired`: a segment whose trainer left it half written; `pressure`: the pool
            was full; `published`: a result.
        at: when, by `Env.now`.
        lane: whose.
        round: which.
        pid: of the trainer.
        reason: of a refusal.
    """

    kind: EventKind
    at: float
    lane: int = 0
    round: int = 0
    pid: int = 0
    reason: Reason = Reason.NONE


class Pool:
    """The pool of one machine's user.

    Args:
        env: clock.
        offload: where folding and making segments goes.
        path: of the socket; its folder is ours alone.
        limits: of memory; by default of this machine.
        available_bytes: memory that the machine could give now.
        workers_max: processors that folding may use; by default all.
    """

    def __init__(
        self,
        env: Env,
        offload: Offload,
        path: Path,
        limits: PoolLimits | None = None,
        *,
        available_bytes: Callable[[], int] = segments.available_bytes,
        workers_max: int | None = None,
    ) -> None:
        self._env = env
        self.offload = offload
        self._path = path
        self._limits = limits or PoolLimits.of_machine(segments.memory_bytes())
        self._available = available_bytes
        self.book = Book(self._limits)
        self._segments: dict[int, Segment] = {}
        self._lanes: dict[int, Lane] = {}
        self._processes: dict[int, Process] = {}
        self._counted = 0
        self._nursery: trio.Nursery | None = None
        self._work = trio.Event()
        self._pressure = folding.Pressure(workers_max or os.cpu_count() or 1)
        self._batch: list[Update] = []
        self._staging = np.empty(0, np.uint8)
        self._staging_lock = trio.Lock()
        self._tell, self.events = trio.open_memory_channel[PoolEvent](EVENTS_MAX)
        self.events_lost = 0
        self.bugs = 0
        self.refused = 0

    # ---- lanes

    def open(self, schema: Schema, *, first_round: int = 1) -> Lane:
        """Begin to collect updates of a schema.

        Raises:
            UsageError: 1,023 lanes are open.
        """
        free = next((n for n in range(1, LANE_MAX + 1) if n not in self._lanes), None)
        if free is None:
            raise UsageError("too many federations collect updates here")
        self._lanes[free] = lane = Lane(self, free, schema, first_round)
        return lane

    def lane(self, number: int) -> Lane | None:
        """An open lane."""
        return self._lanes.get(number)

    def forget(self, lane: Lane) -> None:
        """A lane closes: what waits in it is refused."""
        del self._lanes[lane.number]
        queue, lane.rounds.queue = lane.rounds.queue, []
        for update in queue:
            self._settle(lane, update, Reason.CLOSED)

    def rest(self) -> None:
        """Give memory back that is kept warm for updates, once nothing is collected any more."""
        if self._lanes:
            return
        for number in self.book.trim():
            self._segments.pop(number).close()
        if not self._staging_lock.locked():
            self._staging = np.empty(0, np.uint8)

    # ---- life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
            UsageError: the socket's folder is not ours alone, or another pool serves there.
            OSError: the socket cannot be made.
        """
        listener = trio.socket.from_stdlib_socket(processes.bind(self._path))
        inode = self._path.lstat().st_ino
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._run_folder)
                task_status.started()
                await self._accept(listener, nursery)
        finally:
            listener.close()
            processes.unlink(self._path, inode)
            self._release()

    def _release(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
        for process in self._processes.values():
            process.close()
        self._processes.clear()
        self._tell.close()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, _ = await listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # Out of descriptors: what is open may close; the kernel holds the others meanwhile.
                log.warning("accept_failed", extra={"f": {"errno": error.errno}})
                await trio.sleep(0.1)
                continue
            session = self._admit(sock)
            if session is None:
                self.refused += 1
                sock.close()
            else:
                nursery.start_soon(self._serve, session)

    def _admit(self, sock: trio.socket.SocketType) -> Session | None:
        try:
            uid, pid = processes.peer(sock)
            live = sum(len(process.sessions) for process in self._processes.values())
            if uid != os.getuid() or pid <= 0 or live >= TRAINERS_MAX:
                reason = "full" if live >= TRAINERS_MAX else "foreign_user"
                log.warning("trainer_refused", extra={"f": {"reason": reason, "uid": uid}})
                return None
            process = self._process(sock, pid)
        except OSError:
            return None  # it ended before we could ask who it is
        session = Session(self, sock, process)
        process.sessions.add(session)
        return session

    async def _serve(self, session: Session) -> None:
        self.note("joined", pid=session.process.pid)
        try:
            await session.run()
        except Exception:
            # A supervisor's edge: a fault of ours in one connection must not stop the pool.
            self.bugs += 1
            log.exception("session_bug", extra={"f": {"pid": session.process.pid}})

    # ---- processes

    def _process(self, sock: trio.socket.SocketType, pid: int) -> Process:
        known = self._processes.get(pid)
        if known is not None and not known.ended:
            return known
        assert self._nursery is not None
        self._counted += 1
        process = Process(self._counted, pid, processes.open_process(sock, pid))
        self._processes[pid] = process
        self._nursery.start_soon(self._watch, process)
        return process

    async def _watch(self, process: Process) -> None:
        """Wait for a process's end; then what it had mapped is free for others."""
        try:
            with process.watch:
                await process.wait_ended()
                for session in list(process.sessions):
                    session.scope.cancel()
                while process.sessions:
                    process.idle = trio.Event()
                    await process.idle.wait()
                self.book.exited(process.number)
                self.note("ended", pid=process.pid)
        finally:
            process.close()
            self._forget(process)

    def _forget(self, process: Process) -> None:
        if self._processes.get(process.pid) is process:
            del self._processes[process.pid]

    def left(self, session: Session, lent: Container[int]) -> None:
        """A connection has ended."""
        process = session.process
        process.sessions.discard(session)
        for _ in self.book.parted(process.number, lent):
            self.note("retired", pid=process.pid)
        for lane in self._lanes.values():
            lane.rounds.forget(session)
        self.note("left", pid=process.pid)
        if not process.sessions:
            process.idle.set()
            if not self.book.holds(process.number) and not process.ended:
                # It may come back: as another one, whose end is waited for anew.
                self._forget(process)
                process.watch.cancel()

    # ---- memory

    def segment(self, number: int) -> Segment:
        """A segment that is in the book."""
        return self._segments[number]

    async def lend(self, process: Process, nbytes: int) -> Place | Reason:
        """Lend a segment to a process, making it if need be."""
        place = self.book.lend(process.number, nbytes, self._available())
        if not isinstance(place, Place):
            self.note("pressure", pid=process.pid, reason=place)
            return place
        return place if await self._make(place, shown=False) else Reason.FULL

    async def _make(self, place: Place, *, shown: bool) -> bool:
        """Make a fresh segment. False, and it is forgotten: the system has no memory for it."""
        for number in place.dropped:
            self._segments.pop(number).close()
        if not place.fresh:
            return True
        try:
            # Until it is made, nothing may happen to its place in the book.
            with trio.CancelScope(shield=True):
                made = await self.offload.run(lambda: Segment(place.size, shown=shown))
        except OSError as error:
            log.warning("segment_failed", extra={"f": {"errno": error.errno, "bytes": place.size}})
            self.book.lost(place.number)
            return False
        self._segments[place.number] = made
        return True

    async def sum_for(self, nbytes: int) -> Sum:
        """Memory for a sum or result: a segment, or private memory when the pool is full."""
        place = self.book.claim(nbytes, self._available())
        if place is not None and await self._make(place, shown=True):
            return Sum(self._segments[place.number].bytes, place.number)
        self.note("pressure")
        return Sum(np.empty(nbytes, np.uint8))

    def show(self, held: Sum) -> None:
        """Let trainers read a sum."""
        if held.segment is not None:
            self.book.show(held.segment)

    def read(self, number: int, process: Process) -> int:
        """Note that a process gets a shown segment; its generation."""
        return self.book.read(number, process.number)

    def withdraw(self, held: Sum) -> None:
        """A sum or result is over; while it is being added to, as soon as that is done."""
        if held.pending:
            held.unwanted = True
        elif held.segment is not None:
            self.book.withdraw(held.segment)

    @asynccontextmanager
    async def staging(self, nbytes: int) -> AsyncGenerator[Bytes | None]:
        """The one buffer for bytes that come over a socket; None: no memory for it."""
        async with self._staging_lock:
            if len(self._staging) < nbytes:
                if self._available() - nbytes < self._limits.free_bytes_min:
                    yield None
                    return
                self._staging = np.empty(nbytes, np.uint8)
            yield self._staging[:nbytes]

    # ---- folding

    def enqueue(self, lane: Lane, update: Update) -> None:
        """Fold an admitted update as soon as the one before is done."""
        lane.rounds.enqueue(update)
        self._work.set()

    async def _run_folder(self) -> None:
        try:
            await self._fold_forever()
        finally:
            for lane in self._lanes.values():
                lane.rounds.ended = True
                self._batch += lane.rounds.queue
                lane.rounds.queue = []
            for update in self._batch:
                Rounds.settle(update, Reason.CLOSED)

    async def _fold_forever(self) -> None:
        while True:
            lanes = [lane for lane in self._lanes.values() if lane.rounds.queue]
            if not lanes:
                self._work = trio.Event()
                await self._work.wait()
                continue
            for lane in lanes:  # a batch each: one busy federation does not hold up the others
                waiting = sum(len(each.rounds.queue) for each in lanes)
                if lane.rounds.queue:
                    workers = self._pressure.measured(waiting)
                    await self._fold_or_refuse(lane, lane.rounds.next_batch(BATCH_MAX), workers)

    async def _fold_or_refuse(self, lane: Lane, batch: list[Update], workers: int) -> None:
        """A supervisor's edge: what goes wrong with a batch, such as no memory, ends no other."""
        try:
            await self._fold(lane, batch, workers)
        except Exception:
            self.bugs += 1
            log.exception("fold_failed", extra={"f": {"lane": lane.number}})
            failed, self._batch = self._batch, []
            spoil(batch[0].held)
            for update in failed:
                self._settle(lane, update, Reason.FAULT)

    async def _fold(self, lane: Lane, batch: list[Update], workers: int) -> None:
        self._batch = list(batch)
        for update in batch:
            if update.segment is not None:
                self.book.take(update.segment)
        verdicts = await folding.check([update.row for update in batch], self.offload, workers)
        good = [update for update, fine in zip(batch, verdicts, strict=True) if fine]
        if good:
            held, first = good[0].held, good[0].held.count == 0
            total = await self._total(lane, held)
            held.unit = good[0].weight if first else held.unit
            rows: list[F32] = [update.row for update in good]
            weights = [update.weight / held.unit for update in good]
            await folding.add(total, rows, weights, self.offload, workers, first=first)
        for fine in verdicts:
            self._settle(lane, self._batch.pop(0), Reason.NONE if fine else Reason.NOT_FINITE)

    async def _total(self, lane: Lane, held: Sum) -> F32:
        """The memory of a sum."""
        if not len(held.data):
            made = await self.sum_for(lane.schema.nbytes)
            held.data, held.segment = made.data, made.segment
        return held.f32(lane.schema.items)

    def _settle(self, lane: Lane, update: Update, reason: Reason) -> None:
        if update.segment is not None:
            self.book.folded(update.segment)
        Rounds.settle(update, reason)
        if update.held.unwanted and not update.held.pending:
            self.withdraw(update.held)
        if reason is Reason.NONE:
            self.note("folded", lane=lane.number, round_=update.round, pid=update.pid)

    # ---- news

    def note(
        self,
        kind: EventKind,
        *,
        lane: int = 0,
        round_: int = 0,
        pid: int = 0,
        reason: Reason = Reason.NONE,
    ) -> None:
        """Tell whoever listens to `events`."""
        try:
            self._tell.send_nowait(PoolEvent(kind, self._env.now(), lane, round_, pid, reason))
        except trio.WouldBlock:
            self.events_lost += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
