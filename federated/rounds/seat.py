"""Running one round's machine: its clock, its orders, what is fetched and computed for it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

from federated.errors import UsageError
from federated.rounds.numeric.payload import encoded_bytes
from federated.rounds.post import Wanted
from federated.rounds.protocol.member import Link
from federated.rounds.protocol.orders import (
    Cover,
    Decided,
    Encode,
    Ended,
    FetchPart,
    FetchResult,
    MakeGram,
    Merge,
    OpenSum,
    PartArrived,
    PartFailed,
    Persist,
    Prepare,
    ReadSets,
    ResultArrived,
    ResultFailed,
    Send,
    ServePart,
    Tell,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federated.rounds.numeric.payload import Vector
    from federated.rounds.post import Post
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.machine import Machine
    from federated.rounds.protocol.member import Update
    from federated.rounds.protocol.orders import Event, Order
    from federated.rounds.protocol.wire import Packet
    from federated.rounds.workshop import Workshop
    from p2p.env import Env, Offload

log = logging.getLogger("covey.rounds")

FETCHES_MAX: Final = 8
"""Transfers at once: more share one line."""


class Keeper(Protocol):
    """Where promises and votes are kept."""

    async def persist(self, promised: Persist, workshop: Workshop) -> None:
        """Keep it, with the merged parts of a vote; returns when a power cut cannot lose it."""
        ...


class NoKeeper:
    """For rounds that die with their process: who comes back takes no part in them any more."""

    async def persist(self, promised: Persist, workshop: Workshop) -> None:
        """Nothing."""


def link_of(post: Post, setting: Setting, *, merges: bool = True) -> Link:
    """How this machine is reached by the members of a round, as far as it knows."""
    return Link(
        dialable=not post.relayed(setting.circle),
        up=post.up.rate,
        down=post.down.rate,
        merges=merges,
    )


class Outcome:
    """How a round went here."""

    def __init__(self) -> None:
        self.decided: Decided | None = None
        self.ended: list[str] = []
        self.finished = trio.Event()
        self.failure: Exception | None = None


class RoundSeat:
    """One round under way at this member.

    Args:
        setting: the round's.
        machine: its machine.
        workshop: its arrays.
        post: messages and bytes.
        env: clocks.
        offload: where arrays are worked on.
        keeper: of promises and votes.
        tell: hears what a person may want to see.
    """

    def __init__(
        self, setting: Setting, machine: Machine, workshop: Workshop, post: Post, env: Env,
        offload: Offload, keeper: Keeper, tell: Callable[[Tell], None],
    ) -> None:  # fmt: skip
        self._setting = setting
        self.machine = machine
        self.workshop = workshop
        self._post = post
        self._env = env
        self._offload = offload
        self._keeper = keeper
        self._tell = tell
        self._wake = trio.Event()
        self._serving: dict[tuple[bytes, int], bytes] = {}
        self._fetching: set[bytes] = set()
        self._transfers: set[trio.CancelScope] = set()
        self._view = machine.member.view
        self._slots = trio.CapacityLimiter(FETCHES_MAX)
        self._audience = {*setting.circle, *setting.newcomers, *setting.candidates}
        self.deadline_s = setting.deadline_s
        self.outcome = Outcome()

    # ---- from outside

    def receive(self, sender: bytes, packet: Packet) -> None:
        """A packet came.

        Raises:
            DecodeError: it breaks the rules.
        """
        if sender not in self._audience:
            return
        try:
            self.machine.receive(self._env.now(), sender, packet)
        finally:
            self._wake.set()

    def submit(self, update: Update, vector: Vector) -> None:
        """Our update."""
        self.workshop.vector = vector
        self.machine.submit(self._env.now(), update)
        self._wake.set()

    def serve(self, caller: bytes, wanted: Wanted) -> bytes | None:
        """Bytes for a member: a part for who merges it, a merged part for all of the round."""
        if wanted.merged:
            return self.workshop.merged_part(wanted.sha256) if caller in self._audience else None
        if self._serving.get((wanted.plan, wanted.part)) != caller:
            return None
        return self.workshop.own_part(wanted.plan, wanted.part)

    # ---- life

    async def run(self) -> None:
        """Take part until cancelled; `outcome.finished` is set at a result or a fault."""
        self._post.seat(self._setting.federation, self)
        try:
            await self.drive()
        finally:
            self._post.unseat(self._setting.federation, self)

    async def drive(self) -> None:
        """As `run`, for who gives us what comes for our federation."""
        async with trio.open_nursery() as nursery:
            self.machine.start(self._env.now())
            while True:
                await self._carry_out(nursery)
                await self._wait()

    async def _wait(self) -> None:
        pause = self.machine.next_time() - self._env.now()
        if pause > 0:
            with trio.move_on_after(pause):
                await self._wake.wait()
        else:
            await trio.lowlevel.checkpoint()
        self._wake = trio.Event()
        if self.machine.next_time() <= self._env.now():
            self.machine.on_time(self._env.now())

    async def _carry_out(self, nursery: trio.Nursery) -> None:
        while orders := self.machine.take():
            self._end_transfers()
            for order in orders:
                await self._order(nursery, order)

    async def _order(self, nursery: trio.Nursery, order: Order) -> None:
        self._env.fault(f"round.{type(order).__name__.lower()}")
        match order:
            case Send():
                self._post.send(order.to, self._setting.federation, order.packet)
            case Persist():
                await self._keeper.persist(order, self.workshop)
            case Prepare():
                self.workshop.see(order.plan_hash, order.plan)
                nursery.start_soon(self._prepare, order)
            case ServePart():
                self._serve_part(order)
            case FetchPart():
                nursery.start_soon(self._fetch_part, order)
            case MakeGram():
                nursery.start_soon(self._compute, lambda: self.workshop.gram(order))
            case Merge():
                nursery.start_soon(self._compute, lambda: self.workshop.merge(order))
            case FetchResult():
                nursery.start_soon(self._fetch_result, order)
            case Decided():
                self.outcome.decided = order
                self.outcome.finished.set()
            case Ended():
                self.outcome.ended.append(order.reason)
                self._tell(Tell("round.aborted", order.reason))
            case Tell():
                self._tell(order)
            case Encode() | Cover() | ReadSets() | OpenSum():
                nursery.start_soon(self._masked, order)

    async def _masked(self, order: Encode | Cover | ReadSets | OpenSum) -> None:
        """Words, masks and what takes them off: a masked round has a workshop for them."""
        from federated.rounds.masked_workshop import MaskedWorkshop

        workshop = self.workshop
        assert isinstance(workshop, MaskedWorkshop)
        match order:
            case Encode():
                workshop.see(order.plan_hash, order.plan)
                await self._prepared(order.plan_hash, lambda: workshop.encode(order))
            case Cover():
                await self._prepared(order.plan_hash, lambda: workshop.cover(order))
            case ReadSets():
                await self._compute(lambda: workshop.sets(order))
            case OpenSum():
                await self._compute(lambda: workshop.open(order))

    def _serve_part(self, order: ServePart) -> None:
        made = self.machine.member.made
        if made is None or made.hash != order.plan_hash:
            return  # the view has changed since
        self._serving = {key: to for key, to in self._serving.items() if key[0] == made.hash}
        self._serving[order.plan_hash, order.part] = order.reducer
        self.workshop.see(made.hash, made.plan)

    def _happened(self, event: Event) -> None:
        self.machine.event(self._env.now(), event)
        self._wake.set()

    def _end_transfers(self) -> None:
        """End those of a view that is over: who sends slowly would hold a slot long after it.

        What a decision is made of is fetched to its end, in whatever view we are.
        """
        member = self.machine.member
        if member.view == self._view or member.decided is not None:
            return
        self._view = member.view
        for scope in self._transfers:
            scope.cancel()
        self._transfers = set()
        self._fetching = set()

    @contextmanager
    def _transfer(self) -> Iterator[None]:
        transfers = self._transfers
        with trio.CancelScope() as scope:
            transfers.add(scope)
            try:
                yield
            finally:
                transfers.discard(scope)

    # ---- work

    async def _compute(self, fn: Callable[[], Event]) -> None:
        """Products or a merge.

        What cannot be computed is left: another member does it, or the view ends without a result.
        """
        try:
            done = await self._offload.run(fn)
        except UsageError as error:
            self._tell(Tell("part.failed", str(error)))
        else:
            self._happened(done)

    async def _prepare(self, order: Prepare) -> None:
        await self._prepared(order.plan_hash, lambda: self.workshop.prepare(order.plan_hash))

    async def _prepared(self, plan_hash: bytes, fn: Callable[[], Event]) -> None:
        """Our own update: one that cannot be brought ends the round here."""
        try:
            done = await self._offload.run(fn)
        except UsageError as error:
            made = self.machine.member.made
            if made is not None and made.hash == plan_hash:
                self.outcome.failure = error
                self.outcome.finished.set()
        else:
            self._happened(done)

    async def _fetch_part(self, order: FetchPart) -> None:
        with self._transfer():
            await self._fetch_part_now(order)

    async def _fetch_part_now(self, order: FetchPart) -> None:
        data = await self._part(order)
        if data is None:
            self._happened(PartFailed(order.plan_hash, order.part, order.sender))
            return
        unfit = await self._offload.run(
            lambda: self.workshop.accept(order.plan_hash, order.part, order.sender, data)
        )
        self._happened(PartArrived(order.plan_hash, order.part, order.sender, unfit))

    async def _part(self, order: FetchPart) -> bytes | None:
        if order.sender == self._setting.me:
            return self.workshop.own_part(order.plan_hash, order.part)
        made = self.machine.member.made
        if made is None or made.hash != order.plan_hash:
            return None
        nbytes = encoded_bytes(made.plan.codec, made.plan.parts[order.part].count)
        wanted = Wanted(
            self._setting.federation, order.plan_hash, order.part, False, order.sha256, 0
        )
        async with self._slots:
            return await self._post.fetch(order.sender, wanted, nbytes)

    async def _fetch_result(self, order: FetchResult) -> None:
        fetching = self._fetching  # this view's: a later one may ask for the same bytes again
        if order.sha256 in fetching:
            return
        fetching.add(order.sha256)
        try:
            with self._transfer():
                self._happened(await self._result(order))
        finally:
            fetching.discard(order.sha256)

    async def _result(self, order: FetchResult) -> ResultArrived | ResultFailed:
        data = self.workshop.merged_part(order.sha256)
        if data is None:
            data = await self._from_any(order)
        if data is None:
            return ResultFailed(order.part, order.sha256)
        found, codec = data, self._setting.policy.codec
        unfit = await self._offload.run(
            lambda: self.workshop.unfit_merged(order.plan_hash, codec, order.piece, found)
        )
        if unfit:
            self._tell(Tell("part.unfit", f"merged part {order.part}: {unfit}"))
            return ResultFailed(order.part, order.sha256, unfit)
        self.workshop.keep_merged(order.sha256, found)
        return ResultArrived(order.part, order.sha256)

    async def _from_any(self, order: FetchResult) -> bytes | None:
        wanted = Wanted(
            self._setting.federation, order.plan_hash, order.part, True, order.sha256, 0
        )
        for holder in order.holders:
            if holder == self._setting.me:
                continue
            async with self._slots:
                data = await self._post.fetch(holder, wanted, order.nbytes)
            if data is not None:
                return data
        return None
