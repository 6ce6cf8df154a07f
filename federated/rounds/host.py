"""Several trainers on one machine are one member: their updates are folded in shared memory.

    hosts = Hosts(pool)
    opened = hosts.open(federation, trainers=4)     # trainers get its socket, lane and size
    await nursery.start(hosts.run)

A lane runs beside its federation: it waits until the expected trainers have handed in their
updates of the round, or the round's deadline has passed since the first did; submits their weighted
mean as this machine's update, and shows the state that the round left to whoever waits for it.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from federated.errors import RoundError, UsageError
from federated.rounds.numeric import tensors
from federated.rounds.pool.collecting import Schema

if TYPE_CHECKING:
    from federated.rounds.federation import Federation
    from federated.rounds.numeric.dtypes import F32
    from federated.rounds.pool.lane import Lane
    from federated.rounds.pool.server import Pool
    from p2p.env import Offload

log = logging.getLogger("covey.rounds.host")

HAND_IN: Final = 0.8
"""Share of the round's deadline after which slow trainers are not waited for: what is handed in at
the deadline itself is late. Guess."""


class Host:
    """One federation's trainers on this machine.

    Attributes:
        lane: their place in the pool.
        trainers: updates that make a round's.
    """

    def __init__(self, federation: Federation, lane: Lane, trainers: int, offload: Offload) -> None:
        self.federation = federation
        self.lane = lane
        self.trainers = trainers
        self._offload = offload
        self._shown = federation.standing.round
        self._change = trio.Event()

    def note(self) -> None:
        """Something came to our lane."""
        self._change.set()

    async def run(self) -> None:
        """Collect and show, until the federation is left."""
        try:
            while True:
                await self._one_round()
        except* RoundError:
            log.info("host_ended")  # it was left
        finally:
            self.lane.close()

    async def _one_round(self) -> None:
        number = await self._show()
        await self._enough(number)
        if await self._hand_in(number):
            await self.federation.wait(number - 1)
        else:
            self.lane.abort(number)  # its trainers begin it again

    async def _show(self) -> int:
        """Close the rounds that are over and show what they left; the round to collect now."""
        while True:
            number = self.federation.standing.round
            while self.lane.rounds.next_round <= number:
                await self.lane.folded(self.lane.rounds.next_round)
            if number == self._shown:
                return number + 1
            try:
                state = await self._offload.run(partial(self._flat, number))
            except FileNotFoundError:
                if number == self.federation.standing.round:
                    raise
                continue  # others went on meanwhile, and the state is not kept any more
            await self.lane.publish(number, state)
            self._shown = number

    async def _enough(self, number: int) -> None:
        """Wait for the trainers, or for the round's end or deadline without some of them."""
        async with trio.open_nursery() as nursery:

            async def ended() -> None:
                await self.federation.wait(number - 1)
                nursery.cancel_scope.cancel()

            nursery.start_soon(ended)
            while (count := self.lane.rounds.folded(number)) < self.trainers:
                if count and nursery.cancel_scope.deadline == math.inf:
                    # One that died may not come back: the others' updates must not wait for ever.
                    nursery.cancel_scope.deadline = trio.current_time() + self._deadline_s()
                await self._change.wait()
                self._change = trio.Event()
            nursery.cancel_scope.cancel()

    def _deadline_s(self) -> float:
        federation = self.federation
        return HAND_IN * (federation.deadline_s or federation.standing.policy.first_deadline_s)

    async def _hand_in(self, number: int) -> bool:
        """Close the round and submit its mean; False: the sum is of no use."""
        folded = await self.lane.folded(number)
        if folded.count == 0:
            return True
        if not folded.finite:
            log.warning("host_sum_not_finite", extra={"f": {"round": number}})
            return False
        # A copy: the segment is shown again as the result while this may still be fetched.
        update = await self._offload.run(lambda: folded.mean().copy())
        try:
            metrics = {"trainers": float(folded.count)}
            await self.federation.submit(number - 1, update, folded.weight, metrics)
        except RoundError as error:  # too late for any round: the next begins with the state now
            log.warning("host_update_refused", extra={"f": {"why": str(error)}})
        except UsageError as error:
            log.warning("host_update_refused", extra={"f": {"why": str(error)}})
            return False
        return True

    def _flat(self, number: int) -> F32:
        federation = self.federation
        return tensors.flatten(federation.schema, federation.store.load_state(number))


class Hosts:
    """All federations whose trainers use the pool.

    Args:
        pool: running beside.
        offload: where sums are divided and states read.
    """

    def __init__(self, pool: Pool, offload: Offload) -> None:
        self._pool = pool
        self._offload = offload
        self._hosts: dict[bytes, Host] = {}
        self._nursery: trio.Nursery | None = None
        self.ready = trio.Event()
        self.problem = ""
        """Why there is no pool here."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; without a pool where its socket cannot be made."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(self._run_pool)
            except (OSError, UsageError) as error:
                self.problem = str(error)
                log.warning("no_host_pool", extra={"f": {"why": self.problem}})
            else:
                nursery.start_soon(self._listen)
            self.ready.set()
            task_status.started()
            await trio.sleep_forever()

    async def _run_pool(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """A supervisor's edge: a fault in the pool once it serves ends the pool alone."""
        try:
            await self._pool.run(task_status=task_status)
        except ExceptionGroup:  # of its tasks: it has served; else `run` says why there is none
            self.problem = "it has ended by a fault, which the log has: restart the daemon"
            log.exception("host_pool_failed")

    async def _listen(self) -> None:
        async for event in self._pool.events:
            for host in self._hosts.values():
                if host.lane.number == event.lane:
                    host.note()

    def open(self, federation: Federation, trainers: int) -> Host:
        """Let trainers of this machine hand in updates of a model.

        Args:
            federation: the model.
            trainers: how many make one update of this machine's.

        Raises:
            RoundError: `busy`: there is no pool here; `unknown`: the model does not run here.
            UsageError: too many models collect updates here.
        """
        federation.check_running()
        if self.problem:
            raise RoundError("busy", f"there is no shared memory pool here: {self.problem}")
        known = self._hosts.get(federation.ident)
        if known is not None and known.federation is federation:
            known.trainers = trainers
            return known
        first = federation.standing.round + 1
        lane = self._pool.open(Schema(items=federation.schema.size), first_round=first)
        host = Host(federation, lane, trainers, self._offload)
        self._hosts[federation.ident] = host
        assert self._nursery is not None
        self._nursery.start_soon(self._run_host, host)
        return host

    async def _run_host(self, host: Host) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.run)
                await host.federation.left.wait()
                nursery.cancel_scope.cancel()
        except Exception:
            # A supervisor's edge: a full disk or a fault in one model must not stop the daemon.
            # Its trainers are told that the lane is closed, and open a new one.
            log.exception("host_failed", extra={"f": {"name": host.federation.standing.name}})
        if self._hosts.get(host.federation.ident) is host:
            del self._hosts[host.federation.ident]
