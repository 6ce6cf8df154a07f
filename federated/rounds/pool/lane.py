"""A federation's handle on the running pool: close a round, show its result, give it up."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from federated.errors import UsageError
from federated.rounds.pool import folding
from federated.rounds.pool.collecting import Folded, Rounds, Schema, Shown, Sum
from federated.rounds.pool.records import UPDATE_BYTES_MAX, Dtype, Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from federated.rounds.pool.segments import Bytes
    from federated.rounds.pool.server import Pool


class Lane:
    """One federation's place in a running pool; made by `Pool.open`.

    Attributes:
        number: what trainers ask for.
        schema: of the updates.
        rounds: what is taken and what came of it.
    """

    def __init__(self, pool: Pool, number: int, schema: Schema, first_round: int) -> None:
        self._pool = pool
        self.number = number
        self.schema = schema
        self.rounds = Rounds(number, schema, first_round)

    async def folded(self, round_: int) -> Folded:
        """Close a round, wait until what came is folded, and return the sum.

        Raises:
            UsageError: it is not the next round to be closed; the pool has ended.
        """
        held = self.rounds.close_round(round_)
        if held.pending:
            await held.settled.wait()
        if self.rounds.ended:
            raise UsageError("the pool has ended, and the sums of its rounds with it")
        if not len(held.data):
            held.data = np.zeros(self.schema.nbytes, np.uint8)
        total = held.f32(self.schema.items)
        finite = held.count == 0 or (await folding.check([total], self._pool.offload))[0]
        return Folded(round_, total, held.unit, held.weight, held.count, finite)

    async def publish(self, round_: int, state: NDArray[np.float32] | Bytes | None = None) -> None:
        """Show the result of a closed round to the trainers.

        Args:
            round_: its number; later than any published before.
            state: float32 or bytes, copied; None: the round's sum as it now is.

        Raises:
            UsageError: the round is not closed, was published, or `state` is something else.
        """
        rounds = self.rounds
        before = rounds.shown
        if round_ >= rounds.next_round or (before is not None and before.round >= round_):
            raise UsageError(f"round {round_} is not closed, or is published already")
        own = rounds.sums.get(round_, Sum())
        if own.pending:
            raise UsageError(f"round {round_} is not folded yet")
        if state is None and not len(own.data):
            state = np.zeros(self.schema.items, np.float32)
        dtype = Dtype.F32 if state is None else _dtype_of(state)
        nbytes = self.schema.nbytes if state is None else state.nbytes
        held = own if state is None else await self._copied(state, own)
        crc32 = 0
        if held.segment is None:
            crc32 = await self._pool.offload.run(lambda: zlib.crc32(held.data.data[:nbytes]))
        self._withdraw(keep=held, up_to=round_)
        self._pool.show(held)
        rounds.show(Shown(round_, held, nbytes, dtype, crc32))
        self._pool.note("published", lane=self.number, round_=round_)

    async def _copied(self, state: NDArray[np.float32] | Bytes, own: Sum) -> Sum:
        """`state` where trainers can read it, with the weight of the round's `own` sum."""
        source = np.ascontiguousarray(state).reshape(-1).view(np.uint8)
        held = await self._pool.sum_for(len(source))
        held.weight, held.count = own.weight, own.count
        await folding.copy(held.data[: len(source)], source, self._pool.offload)
        return held

    def abort(self, round_: int) -> None:
        """Give a closed round up: who waits is told, and its updates may come again."""
        rounds = self.rounds
        held = rounds.sums.pop(round_, None)
        if held is not None:
            self._pool.withdraw(held)
        rounds.next_round = min(rounds.next_round, round_)
        rounds.give_up(round_, Reason.ABORTED)

    def close(self) -> None:
        """End the lane: who waits is told, and nothing is taken any more."""
        self.rounds.give_up(1 << 63, Reason.CLOSED)
        self._pool.forget(self)
        self._withdraw(keep=None, up_to=1 << 63)
        self._pool.rest()

    def _withdraw(self, *, keep: Sum | None, up_to: int) -> None:
        """Take back the last result, and sums that nobody will publish."""
        rounds = self.rounds
        old = [held for number, held in rounds.sums.items() if number <= up_to]
        rounds.sums = {n: held for n, held in rounds.sums.items() if n > up_to}
        if rounds.shown is not None:
            old.append(rounds.shown.held)
            rounds.shown = None
        for held in old:
            if held is not keep:
                self._pool.withdraw(held)


def _dtype_of(state: NDArray[np.float32] | Bytes) -> Dtype:
    if not 0 < state.nbytes <= UPDATE_BYTES_MAX:
        raise UsageError(f"a result of {state.nbytes} bytes: above 0 and at most 4 GiB")
    if state.dtype == np.float32:
        return Dtype.F32
    if state.dtype == np.uint8:
        return Dtype.BYTES
    raise UsageError(f"a result is float32 or bytes, not {state.dtype}")
