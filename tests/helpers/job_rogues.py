"""Hostile peers that speak the items of `job.session` by hand, to the real jobs of others.

A `RogueWorker` offers `echo@1` and does with what it is offered whatever its script says; a
`RogueCoordinator` opens a session with a worker and sends what it likes.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import trio

from federated.jobs.canon import digest
from federated.jobs.items import (
    API,
    RESULT_DOMAIN,
    SESSION,
    Credit,
    Hello,
    Offer,
    Offered,
    OfferTask,
    Result,
    Spec,
    TaskResult,
    Usage,
    decode_job_item_untrusted,
    encode_item,
    encode_results,
    signed_part,
)
from p2p.errors import P2pError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from federated.jobs.items import Item
    from p2p.identity import PeerId
    from p2p.rpc_types import Caller, CallStream
    from tests.helpers.fabrics import NodeMember
    from tests.helpers.jobs_kit import Desk, Office

ECHO = Offered("echo@1", "named", True, False, 1, 0, True)


@dataclass
class Seat:
    """A rogue worker's session with one coordinator."""

    member: NodeMember
    coordinator: PeerId
    call: CallStream
    epoch: int = 0
    items: list[Item] = field(default_factory=list)

    async def send(self, *items: Item) -> None:
        for item in items:
            await self.call.send(encode_item(item))

    async def raw(self, value: object) -> None:
        """Send what no honest encoder would."""
        data = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
        await self.call.send(data)

    def signed(
        self, job: bytes, *results: TaskResult, epoch: int | None = None, signed_job: bytes = b""
    ) -> Result:
        """Results under our own signature, of another job or epoch if the attack wants it."""
        body = encode_results(list(results))
        at = self.epoch if epoch is None else epoch
        part = signed_part(bytes(self.coordinator), signed_job or job, at, body)
        return Result(job, body, self.member.node.sign(RESULT_DOMAIN, part))

    def echoed(self, offer: Offer, **changes: object) -> Result:
        """The honest answer to an offer of `echo@1`, but for `changes` of each task's result."""
        return self.signed(
            offer.job, *(msgspec.structs.replace(echo(t), **changes) for t in offer.tasks)
        )


def echo(task: OfferTask) -> TaskResult:
    """What `echo@1` answers."""
    return answer(task, task.rows)


def answer(task: OfferTask, rows: bytes) -> TaskResult:
    """An answer of so many bytes, whatever they are."""
    return TaskResult(task.task, task.attempt, "", 0, rows, False, digest(rows), Usage(), False)


@dataclass
class RogueWorker:
    """A member that takes tasks.

    Attributes:
        offers: what it was offered, over all sessions.
        sessions: how often it was called.
    """

    member: NodeMember
    script: Callable[[Seat, Offer], Awaitable[None]]
    greet: Callable[[Seat], Awaitable[None]]
    offers: list[Offer] = field(default_factory=list)
    sessions: int = 0

    @property
    def id(self) -> PeerId:
        return self.member.id

    async def serve(self, caller: Caller, _request: bytes, call: CallStream) -> bytes:
        self.sessions += 1
        seat = Seat(self.member, caller.peer, call)
        async with trio.open_nursery() as nursery:
            try:
                await self.greet(seat)
                async for data in call:
                    assert isinstance(data, bytes)
                    item = decode_job_item_untrusted(data)
                    seat.items.append(item)
                    if isinstance(item, Hello):
                        seat.epoch = item.epoch
                    elif isinstance(item, Offer):
                        self.offers.append(item)
                        nursery.start_soon(self._played, seat, item)
            except P2pError:
                pass
            nursery.cancel_scope.cancel()
        return b""

    async def _played(self, seat: Seat, offer: Offer) -> None:
        try:
            await self.script(seat, offer)
        except P2pError:
            return  # the coordinator had enough


async def hello(seat: Seat, *, credit: int = 1000) -> None:
    """Begin as an honest worker would."""
    await seat.send(Hello(API, 0, [ECHO], None), Credit(credit))


async def rogue_member(office: Office, number: int, *, owner: bytes) -> NodeMember:
    """A member of the group that runs no jobs of ours."""
    member = await office.kit.node(number)
    office.owners[member.id] = owner
    office.ids.append(member.id)
    for desk in office.desks.values():
        await office.kit.connect(member, desk.member)
    return member


async def rogue_worker(
    office: Office,
    number: int,
    script: Callable[[Seat, Offer], Awaitable[None]],
    *,
    owner: bytes,
    greet: Callable[[Seat], Awaitable[None]] = hello,
) -> RogueWorker:
    """A member that takes tasks as its script says."""
    worker = RogueWorker(await rogue_member(office, number, owner=owner), script, greet)
    worker.member.rpc.serve(SESSION, worker.serve, allow=lambda _peer: True)
    return worker


@dataclass
class RogueCoordinator:
    """A session that a rogue opened with a worker.

    Attributes:
        got: what the worker said.
    """

    member: NodeMember
    call: CallStream
    got: list[Item] = field(default_factory=list)

    async def send(self, *items: Item) -> None:
        for item in items:
            await self.call.send(encode_item(item))

    async def read(self) -> None:
        """Take what the worker says, until the session ends."""
        async for data in self.call:
            assert isinstance(data, bytes)
            self.got.append(decode_job_item_untrusted(data))

    def of(self, kind: type[Item]) -> list[Item]:
        """What it said of one kind."""
        return [item for item in self.got if isinstance(item, kind)]

    async def until(self, kind: type[Item], count: int = 1) -> list[Item]:
        """Wait for so many items of a kind."""
        while len(self.of(kind)) < count:  # noqa: ASYNC110 - under a virtual clock
            await trio.sleep(0.01)
        return self.of(kind)


@asynccontextmanager
async def rogue_session(
    member: NodeMember, desk: Desk, *, epoch: int = 1, reads: bool = True
) -> AsyncIterator[RogueCoordinator]:
    """A session with a worker; what the worker ends is no error of the test."""
    try:
        async with member.rpc.stream(desk.id, SESSION, b"") as call, trio.open_nursery() as nursery:
            rogue = RogueCoordinator(member, call)
            await rogue.send(Hello(API, epoch, [], None))
            if reads:
                nursery.start_soon(rogue.read)
            yield rogue
            nursery.cancel_scope.cancel()
    except* P2pError:
        pass


def spec_of(job: bytes, handler: str = "echo@1", **changes: object) -> Spec:
    """A job of a handler in the group."""
    spec = Spec(job, b"g" * 32, handler, b"{}", None, b"[]", 0, 0, 0, False, False)
    return msgspec.structs.replace(spec, **changes)


def offer_of(job: bytes, *rows: bytes, first: int = 0, deadline_ms: int = 60_000) -> Offer:
    """A task for each of `rows`, numbered from `first`."""
    tasks = [OfferTask(first + i, i, data, False, deadline_ms) for i, data in enumerate(rows)]
    return Offer(job, 10_000, tasks)
