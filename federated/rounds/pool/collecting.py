"""One federation's place in the pool: its schema, its rounds' sums and its results.

Updates are taken for the next round that was not closed and the one after, so a trainer that is
quick need not wait for the slow ones. `folded` closes a round; `publish` shows its result to who
waits for it, and withdraws the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import trio

from federated.errors import UsageError
from federated.rounds.numeric.limits import WEIGHT_MAX
from federated.rounds.pool.records import (
    ITEM_BYTES,
    UPDATE_BYTES_MAX,
    Dtype,
    Reason,
    Record,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.numeric.engines import F32
    from federated.rounds.pool.segments import Bytes

ROUNDS_OPEN: Final = 2
"""The next round and the one after."""


@dataclass(frozen=True)
class Schema:
    """What every update of a lane is: its tensors flattened one after the other.

    Attributes:
        items: elements in all.
        dtype: of the elements; updates are float32 (docs/specs/pool.md s.3).
    """

    items: int
    dtype: Dtype = Dtype.F32

    def __post_init__(self) -> None:
        """Check.

        Raises:
            UsageError: no elements, more than 4 GiB, or no float32.
        """
        if self.dtype is not Dtype.F32:
            raise UsageError("updates are float32")
        if not 0 < self.nbytes <= UPDATE_BYTES_MAX:
            raise UsageError(f"an update of {self.nbytes} bytes: above 0 and at most 4 GiB")

    @property
    def nbytes(self) -> int:
        """Bytes of an update."""
        return self.items * ITEM_BYTES[self.dtype]


@dataclass(eq=False)
class Folded:
    """What the trainers of this machine brought to a round.

    Attributes:
        round: its number.
        total: float32[n], sum of weight / unit * update; may be changed in place, until it is
            published.
        unit: the weight that counts as 1, so that updates of one weight are added as they are and
            large weights do not leave float32's range; 1 without updates.
        weight: sum of the weights.
        count: updates in it.
        finite: whether all of `total` is. It is not when sums leave float32's range, or when a
            trainer wrote on after it had said `filled`: then the round must not use it.
    """

    round: int
    total: F32
    unit: float
    weight: float
    count: int
    finite: bool

    def mean(self) -> F32:
        """The weighted mean of the updates, in `total`'s place. Call it once; none: zeros.

        Blocks for as long as it takes to read and write `total`: for large ones in an `Offload`.
        """
        if self.count:
            self.total *= np.float32(self.unit / self.weight)
            self.unit = self.weight
        return self.total


@dataclass(eq=False)
class Update:
    """An update that waits to be folded.

    Attributes:
        round: of the update.
        row: float32[n].
        weight: its weight.
        pid: of its trainer.
        segment: number of the segment that holds it; None: private memory.
        answer: called once with NONE when folded, or with why not.
        held: the sum it belongs to, once it is taken.
    """

    round: int
    row: F32
    weight: float
    pid: int
    segment: int | None
    answer: Callable[[Reason], None]
    held: Sum = field(default_factory=lambda: Sum())  # noqa: PLW0108 - Sum is defined below


@dataclass(eq=False)
class Sum:
    """A sum being made, or a result.

    Attributes:
        data: its memory; empty until the first update.
        segment: number of the segment it is in; None: private memory.
        unit: weight of the first update, the one that counts as 1.
        weight: sum of the weights.
        count: updates in it.
        pending: updates taken but not folded or refused yet.
        settled: set when nothing is pending.
        unwanted: whether its memory is to be given back as soon as nothing is pending.
    """

    data: Bytes = field(default_factory=lambda: np.empty(0, np.uint8))
    segment: int | None = None
    unit: float = 1.0
    weight: float = 0.0
    count: int = 0
    pending: int = 0
    settled: trio.Event = field(default_factory=trio.Event)
    unwanted: bool = False

    def f32(self, items: int) -> F32:
        """Its first `items` elements."""
        return self.data[: 4 * items].view(np.float32)


def spoil(held: Sum) -> None:
    """An addition to a sum did not come to its end: nobody may use what may be half in it.

    A sum without an update is zeros again; one with some is not finite, so that its round is given
    up and its trainers hand in again.
    """
    if len(held.data):
        numbers = held.data.view(np.float32)
        if held.count:
            numbers[0] = np.nan
        else:
            numbers[:] = 0


@dataclass(frozen=True, eq=False)
class Shown:
    """A result that trainers may read.

    Attributes:
        round: its number.
        held: where it is.
        nbytes: its length.
        dtype: its elements.
        crc32: of its bytes, for who gets them over the socket; 0 while it is in a segment.
    """

    round: int
    held: Sum
    nbytes: int
    dtype: Dtype
    crc32: int


@dataclass(frozen=True, eq=False)
class Waiter:
    """Who waits for a result."""

    wanted: int
    answer: Callable[[Shown | Reason], None]
    owner: object


class Rounds:
    """Which updates are taken, and what was made of them. Not a driver: it awaits nothing.

    Args:
        number: of the lane, in records.
        schema: of its updates.
        first_round: the first that is collected.
    """

    def __init__(self, number: int, schema: Schema, first_round: int) -> None:
        self.number = number
        self.schema = schema
        self.next_round = first_round
        self.sums: dict[int, Sum] = {}
        self.queue: list[Update] = []
        self.shown: Shown | None = None
        self.ended = False
        self.waiters: list[Waiter] = []

    def admit(self, record: Record) -> Reason:
        """Whether an update is what the schema says and comes at its time."""
        if record.dtype is not self.schema.dtype:
            return Reason.DTYPE
        if record.nbytes != self.schema.nbytes:
            return Reason.SIZE
        if not 0 < record.weight <= WEIGHT_MAX:
            return Reason.WEIGHT
        return Reason.NONE if self.collects(record.round) else Reason.ROUND

    def collects(self, round_: int) -> bool:
        """Whether updates of a round are taken."""
        return self.next_round <= round_ < self.next_round + ROUNDS_OPEN

    def folded(self, round_: int) -> int:
        """How many updates of a round that is not closed are part of its sum."""
        held = self.sums.get(round_)
        return 0 if held is None else held.count

    def enqueue(self, update: Update) -> None:
        """Take an admitted update."""
        held = update.held = self.sums.setdefault(update.round, Sum())
        if held.pending == 0:
            held.settled = trio.Event()
        held.pending += 1
        self.queue.append(update)

    def next_batch(self, count_max: int) -> list[Update]:
        """The oldest update and those of its round that wait with it, taken off the queue."""
        first = self.queue[0].round
        batch = [update for update in self.queue if update.round == first][:count_max]
        self.queue = [update for update in self.queue if update not in batch]
        return batch

    @staticmethod
    def settle(update: Update, reason: Reason) -> None:
        """An update of a batch was folded or refused."""
        held = update.held
        if reason is Reason.NONE:
            held.weight += update.weight
            held.count += 1
        held.pending -= 1
        if held.pending == 0:
            held.settled.set()
        update.answer(reason)

    def close_round(self, round_: int) -> Sum:
        """Take no more updates of a round; the sum, in which some may be pending.

        Raises:
            UsageError: the round is over, or not the next.
        """
        if round_ != self.next_round:
            raise UsageError(f"round {round_} is not the next to be closed: {self.next_round} is")
        self.next_round = round_ + 1
        return self.sums.setdefault(round_, Sum())

    def ask(self, wanted: int, answer: Callable[[Shown | Reason], None], *, owner: object) -> None:
        """Call `answer` with the result of round `wanted` or a later one, once it is there."""
        if self.shown is not None and self.shown.round >= wanted:
            answer(self.shown)
        else:
            self.waiters.append(Waiter(wanted, answer, owner))

    def forget(self, owner: object) -> None:
        """Who asked is gone."""
        self.waiters = [waiter for waiter in self.waiters if waiter.owner is not owner]

    def show(self, shown: Shown) -> None:
        """Tell who waits."""
        self.shown = shown
        self._tell(shown.round, shown)

    def give_up(self, round_: int, reason: Reason) -> None:
        """Tell who waits for a round, or an earlier one, that it does not come."""
        self._tell(round_, reason)

    def _tell(self, round_: int, what: Shown | Reason) -> None:
        ready = [waiter for waiter in self.waiters if waiter.wanted <= round_]
        self.waiters = [waiter for waiter in self.waiters if waiter.wanted > round_]
        for waiter in ready:
            waiter.answer(what)
