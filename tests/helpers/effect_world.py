"""One effect, a coordinator, two workers, and everything that can break between them.

The machines are the product's: `Coordinator` with its `Journal`, `Worker` with its `Held`, both on
SQLite in memory. Around them is no loop and no network: a `World` holds what is under way (items on
a link, a commit that was asked for, a handler about to run) and does one of these things a step, in
an order drawn from a seed. A fault at step n is one of `FAULTS`; then the world runs on until the
job is over.

A commit takes two steps: before the first nothing is there, after it the caller does not know yet.
`full` copies the database: that copy is what a power cut leaves. A `deaf` link is down for the
coordinator while what it has sent still arrives.
"""

from __future__ import annotations

import functools
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar, cast

import apsw

from federated.jobs.coordinator import Coordinator
from federated.jobs.desk import Desk
from federated.jobs.handlers.base import HandlerInfo
from federated.jobs.handlers.registry import ANYBODY, Handlers
from federated.jobs.held import Held
from federated.jobs.items import decode_job_item_untrusted, encode_item
from federated.jobs.journal import Journal
from federated.jobs.plan import make_job
from federated.jobs.state import RowState
from federated.jobs.types import JobId, JobSpec, PerRow
from federated.jobs.worker import Worker
from memory.storage.schema import load_migrations
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Sequence

    from federated.jobs.handlers.base import Batch
    from federated.jobs.orders import Orders
    from federated.jobs.types import RowOut
    from federated.seams import GroupId, Mesh, TrustClass
    from p2p.env import Env

T = TypeVar("T")

BOSS: Final = PeerId(b"\x01" * 32)
WORKERS: Final = (PeerId(b"\x02" * 32), PeerId(b"\x03" * 32))
JOB: Final = JobId(b"j" * 16)
FAULTS: Final = (
    "cut", "deaf", "kill boss", "power boss", "kill worker", "power worker", "raise",
)  # fmt: skip
STEP_S: Final = 0.01
IDLE_S: Final = 1.0
STEPS_MAX: Final = 3000
DEADLINE_S: Final = 120.0


class Pause:
    """Something that takes a step of the world."""

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


class ModelDb:
    """A `Db` in memory whose commits are steps, and which knows what a power cut leaves."""

    def __init__(self, *, honest: bool = True) -> None:
        self.durable = _empty()
        self.connection = apsw.Connection(":memory:")
        self.connection.deserialize("main", self.durable)
        self.honest = honest

    async def read(self, fn: Callable[[apsw.Connection], T]) -> T:
        return fn(self.connection)

    async def write(self, fn: Callable[[apsw.Connection], T], *, full: bool = True) -> T:
        await Pause()
        self.connection.execute("BEGIN IMMEDIATE")
        found = fn(self.connection)
        self.connection.execute("COMMIT")
        if full and self.honest:
            self.durable = self.connection.serialize("main")
        await Pause()
        return found

    def power_cut(self) -> None:
        """Back to what was synced."""
        self.connection = apsw.Connection(":memory:")
        self.connection.deserialize("main", self.durable)


@functools.cache
def _empty() -> bytes:
    connection = apsw.Connection(":memory:")
    for step in load_migrations("federated.migrations"):
        connection.execute(step.sql).fetchall()
    return connection.serialize("main")


class Inline:
    """Threads that take a step to begin and one to come back."""

    async def run(self, fn: Callable[[], T]) -> T:
        await Pause()
        found = fn()
        await Pause()
        return found


class Door:
    """A mesh of one owner's machines."""

    def __init__(self, me: PeerId) -> None:
        self.id = me
        self.fabric = self

    def info(self, peer: PeerId) -> None:
        """Of a link: nothing is known of its length."""

    def trust(self, peer: PeerId, group: GroupId | None) -> TrustClass:  # noqa: ARG002
        return "own"

    def owner(self, peer: PeerId, group: GroupId | None) -> bytes:  # noqa: ARG002
        return b"o" * 32

    def shared_groups(self, peer: PeerId) -> Sequence[GroupId]:  # noqa: ARG002
        return []

    def sign(self, domain: bytes, body: bytes) -> bytes:  # noqa: ARG002
        return b""

    def verify(self, peer: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:  # noqa: ARG002
        return True


class Pay:
    """`pay@1`: what must not happen twice."""

    def __init__(self, world: World, *, idempotent: bool) -> None:
        self._world = world
        self.info = HandlerInfo(
            id="pay@1", kind="named", deterministic=False, effect=True,
            idempotent_by_token=idempotent,
        )  # fmt: skip

    def compute(self, batch: Batch) -> Sequence[RowOut]:
        for row in batch.rows:
            assert row.token is not None
            self._world.paid[row.token] += 1
        if self._world.raises:
            self._world.raises = False
            raise ValueError("after the effect")
        return [(row.k, {"paid": True}, "") for row in batch.rows]


@dataclass
class Link:
    """A session and what is on its way in it."""

    number: int = 0
    up: bool = False
    deaf: bool = False
    there: deque[bytes] = field(default_factory=deque)
    back: deque[bytes] = field(default_factory=deque)


class Node:
    """A worker's process: gone with all its memory at a kill."""

    def __init__(self, world: World, me: PeerId, db: ModelDb) -> None:
        self.db = db
        handlers = Handlers([(world.pay(), ANYBODY)], named=lambda _name: None)
        self.worker = Worker(
            cast("Mesh", Door(me)), handlers, cast("Env", world), Inline(), slots=1,
            parse_template=lambda _text: lambda _row: "", held=Held(db),
        )  # fmt: skip
        self.held = Held(db)
        self.running: list[Coroutine[object, None, None]] = []

    @property
    def desk(self) -> Desk:
        desk = self.worker._desks.get(BOSS)
        if desk is None:
            desk = self.worker._desks[BOSS] = Desk(BOSS, trust="own")
        return desk


class World:
    """See the module.

    Args:
        seed: draws the order of steps.
        faults: (one of `FAULTS`, the step before which it strikes).
        rows: how many effects.
        synced_offers: whether attempts are synced before their offers leave; without: a control.
        synced_workers: whether workers' disks sync at all; without: a control.
        early: whether offers leave before their attempts are even written; with: a control.
        idempotent: whether the handler may run twice.
    """

    def __init__(
        self, seed: int, faults: Sequence[tuple[str, int]] = (), *, rows: int = 1,
        synced_offers: bool = True, synced_workers: bool = True, early: bool = False,
        idempotent: bool = False,
    ) -> None:  # fmt: skip
        self.rng = random.Random(seed)
        self._draw = random.Random(seed + 1)
        self._faults = {at: fault for fault, at in faults}
        self._early = early
        self._idempotent = idempotent
        self.time = 1000.0
        self.steps = 0
        self.raises = False
        self.paid: Counter[bytes] = Counter()
        self.boss_db = ModelDb()
        self._synced_offers = synced_offers
        self.links = [Link() for _ in WORKERS]
        self._session = 0
        self.nodes = [Node(self, me, ModelDb(honest=synced_workers)) for me in WORKERS]
        self._begin()
        self._submit(rows)

    def pay(self) -> Pay:
        """The handler."""
        return Pay(self, idempotent=self._idempotent)

    # ---- what the machines ask of the world

    def now(self) -> float:
        return self.time

    def wall_ms(self) -> int:
        return int(self.time * 1000)

    # ---- the coordinator's driver

    def _begin(self) -> None:
        self.journal = Journal(self.boss_db)
        epoch, first = _finish(self.journal.begin(int(self.time)))
        self.core = Coordinator(cast("Mesh", Door(BOSS)), self.rng, epoch=epoch, next_event=first)
        self.core.board.own_handlers = {"pay@1": self.pay().info}
        for job in _finish(self.journal.live(self.time, self.wall_ms())):
            self.core.resume_loaded(job)
        self._orders: list[Orders] = []
        self._kept: list[Orders] = []
        self._commit: Coroutine[object, None, object] | None = None
        self._carry_out()

    def _submit(self, rows: int) -> None:
        spec = JobSpec(
            handler="pay@1", rows=[{"n": n} for n in range(rows)], effect="once", batch=PerRow(),
            deadline_s=DEADLINE_S,
        )  # fmt: skip
        assert isinstance(spec.rows, list)
        job = make_job(
            spec, spec.rows, ident=JOB, nonce=b"n" * 16, group=None, agent="", now=self.time,
            wall_ms=self.wall_ms(), code_hash=None, cacheable=False, find_peer=lambda _name: None,
        )  # fmt: skip
        _finish(
            self.journal.add(
                job, spec_hash=b"", idem=None, parent=None,
                deadline_ms=self.wall_ms() + int(DEADLINE_S * 1000),
            )
        )  # fmt: skip
        self.core.submit(job, now=self.time, wall_ms=self.wall_ms())
        self._carry_out()

    def _carry_out(self) -> None:
        orders = self.core.take_orders()
        if self._early and orders.offers:
            self.core.offers_kept(orders.offers)
            orders.offers = []
            orders.sends += self.core.take_orders().sends
        for peer, item in orders.sends:
            self._send(peer, encode_item(item))
        if orders.writes or orders.after or orders.offers or orders.reduces:
            self._orders.append(orders)

    def _send(self, peer: PeerId, data: bytes) -> None:
        link = self.links[WORKERS.index(peer)]
        if link.up:
            link.there.append(data)

    def _commit_step(self) -> None:
        if self._commit is None:
            self._kept, self._orders = self._orders, []
            self._commit = self.journal.apply(self._kept)
            offers = any(orders.offers for orders in self._kept)
            self.boss_db.honest = self._synced_offers or not offers
        if not _step(self._commit):
            return
        self._commit = None
        for orders in self._kept:
            for peer, item in orders.after:
                self._send(peer, encode_item(item))
            if orders.offers:
                self.core.offers_kept(orders.offers)
            for ident in orders.reduces:
                self.core.reduced(ident, wall_ms=self.wall_ms())
        self._carry_out()

    # ---- steps

    @property
    def over(self) -> bool:
        """Whether the job has ended and its end is on the disk."""
        job = self.core.job(JOB)
        return (job is None or job.final) and not self._orders and self._commit is None

    def run(self) -> World:
        """Until the job is over."""
        while not self.over:
            self.steps += 1
            assert self.steps < STEPS_MAX, "it does not end"
            fault = self._faults.pop(self.steps, "")
            if fault:
                self._strike(fault)
            self.time += STEP_S
            ready = self._ready()
            if ready:
                self._draw.choice(ready)()
            else:
                self.time += IDLE_S
                self.core.tick(now=self.time, wall_ms=self.wall_ms())
                self._carry_out()
        return self

    def _ready(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        if self._orders or self._commit is not None:
            found.append(self._commit_step)
        for i, (link, node) in enumerate(zip(self.links, self.nodes, strict=True)):
            if not link.up:
                found.append(functools.partial(self._connect, i))
            if link.there:
                found.append(functools.partial(self._arrive_there, i))
            if link.back:
                found.append(functools.partial(self._arrive_back, i))
            if node.worker._turns or node.running:
                found.append(functools.partial(self._work, i))
        return found

    def _connect(self, i: int) -> None:
        node = self.nodes[i]
        self._session += 1
        self.links[i] = Link(number=self._session, up=True)
        desk = node.desk
        desk.session = self._session
        desk.replies.clear()
        desk.outbox.clear()
        if not desk.loaded:
            desk.merge(_finish(node.held.load(BOSS, self.wall_ms())), self.time)
        node.worker.greet(desk)
        self._drain(i)
        self.core.peer_up(WORKERS[i], self._session)
        self._carry_out()

    def _arrive_there(self, i: int) -> None:
        link, node = self.links[i], self.nodes[i]
        node.worker._received(node.desk, decode_job_item_untrusted(link.there.popleft()))
        self._drain(i)

    def _drain(self, i: int) -> None:
        """What a worker's writer would send."""
        link, desk = self.links[i], self.nodes[i].desk
        while desk.replies or desk.outbox:
            item = desk.replies.popleft() if desk.replies else None
            data = encode_item(item or self.nodes[i].worker._next_result(desk))
            if link.up:
                link.back.append(data)

    def _arrive_back(self, i: int) -> None:
        link = self.links[i]
        item = decode_job_item_untrusted(link.back.popleft())
        self.core.received(WORKERS[i], link.number, item, now=self.time, wall_ms=self.wall_ms())
        self._carry_out()

    def _work(self, i: int) -> None:
        node = self.nodes[i]
        if not node.running:
            batch = node.worker._next_tasks()
            if not batch:
                return
            node.running.append(node.worker._work_on(batch))
        if _step(node.running[0]):
            node.running.clear()
        self._drain(i)

    # ---- faults

    def _strike(self, fault: str) -> None:
        i = self._draw.randrange(len(WORKERS))
        if fault == "raise":
            self.raises = True
        elif fault == "cut":
            self._cut(i)
        elif fault == "deaf":
            there = self.links[i].there
            self._cut(i)
            self.links[i].there = there
        elif fault.endswith("worker"):
            busy = [n for n, node in enumerate(self.nodes) if node.running or node.desk.tasks]
            i = busy[0] if busy else i
            self._cut(i)
            if fault.startswith("power"):
                self.nodes[i].db.power_cut()
            self._close(self.nodes[i].running)
            self.nodes[i] = Node(self, WORKERS[i], self.nodes[i].db)
        else:
            for n in range(len(WORKERS)):
                self.links[n] = Link()
            if fault.startswith("power"):
                self.boss_db.power_cut()
            self._close([self._commit] if self._commit is not None else [])
            self._begin()

    def _cut(self, i: int) -> None:
        link = self.links[i]
        self.links[i] = Link(number=link.number)
        self.core.peer_down(WORKERS[i], link.number, now=self.time, wall_ms=self.wall_ms())
        self._carry_out()

    @staticmethod
    def _close(left: Sequence[Coroutine[object, None, object]]) -> None:
        """A process that is gone does nothing more, not even on its way out."""
        for one in left:
            one.close()

    # ---- findings

    def rows(self) -> list[tuple[RowState, str]]:
        """What became of each row, as the journal has it."""
        found = self.boss_db.connection.execute(
            "SELECT state, reason FROM row WHERE job=? ORDER BY k", (JOB,)
        )
        return [(RowState(cast("int", state)), str(reason)) for state, reason in found]


def _step(running: Coroutine[object, None, object]) -> bool:
    """Let a coroutine go to its next pause; whether it is done."""
    try:
        running.send(None)
    except StopIteration:
        return True
    return False


def _finish(running: Coroutine[object, None, T]) -> T:
    """Let a coroutine run through."""
    try:
        while True:
            running.send(None)
    except StopIteration as end:
        return cast("T", end.value)
