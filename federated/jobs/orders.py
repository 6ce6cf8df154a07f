"""What the coordinator's machine wants done: bytes to send, rows to keep, events to tell.

The machine changes its memory and fills one of these; the driver carries it out. `sends` leave at
once. `writes` go into the journal, and `after` leaves when they are committed: an acknowledgement
before the commit would let a worker forget what a crash then takes from us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.jobs.items import Item, Offer, TaskResult
    from federated.jobs.types import JobId
    from federated.seams import GroupId
    from p2p.identity import PeerId

Statement: TypeAlias = Literal[
    "job_state", "row_state", "task", "attempt", "answer", "answer_dropped", "event",
    "peer_stat", "cache", "cache_quote", "duration",
]  # fmt: skip
"""Names of `journal`'s statements; each row of parameters replaces or adds one row."""

Params: TypeAlias = tuple[bytes | str | int | float | None, ...]


TAINTED_EVENTS: Final = 1024
"""Finished jobs that are told of one quarantine; what is tainted beyond is not told."""


class Caught(NamedTuple):
    """Owners that were quarantined.

    Attributes:
        owners: who.
        bad: every owner that is quarantined now for a handler.
        first_event: the first of `TAINTED_EVENTS` numbers for events of jobs that they taint.
        at_ms: Unix milliseconds.
    """

    owners: frozenset[bytes]
    bad: Callable[[str], frozenset[bytes]]
    first_event: int
    at_ms: int


class Forget(NamedTuple):
    """Records that were erased.

    Attributes:
        records: their ids.
        at_ms: Unix milliseconds.
    """

    records: tuple[bytes, ...]
    at_ms: int


class Large(NamedTuple):
    """A result whose rows are in a blob; `group` may read it."""

    peer: PeerId
    job: JobId
    group: GroupId | None
    result: TaskResult


class Orders:
    """What one input led to.

    Attributes:
        sends: (peer, item), in order.
        writes: parameters by statement.
        full: whether a power cut may not take the writes back.
        after: (peer, item) to send once the writes are committed.
        closes: sessions to end: (peer, code).
        reduces: jobs whose rows are all settled: reduce them.
        ended: jobs that became final.
        caught: quarantines: what is kept of earlier jobs changes with them.
        offers: (peer, session, offer) of effects and counted executions: once the writes are
            committed, the machine is asked which of them may leave.
        fetches: answers in blobs: to be fetched and handed to `Coordinator.fetched`.
        forgets: erased records: what quotes them is overwritten after all that was ordered before.
    """

    __slots__ = (
        "after", "caught", "closes", "ended", "fetches", "forgets", "full", "offers", "reduces",
        "sends", "writes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sends: list[tuple[PeerId, Item]] = []
        self.writes: dict[Statement, list[Params]] = {}
        self.full = False
        self.after: list[tuple[PeerId, Item]] = []
        self.closes: list[tuple[PeerId, str]] = []
        self.reduces: list[JobId] = []
        self.ended: list[JobId] = []
        self.caught: list[Caught] = []
        self.offers: list[tuple[PeerId, int, Offer]] = []
        self.forgets: list[Forget] = []
        self.fetches: list[Large] = []

    def send(self, peer: PeerId, item: Item) -> None:
        """Send now."""
        self.sends.append((peer, item))

    def write(self, statement: Statement, params: Params) -> None:
        """Keep a row."""
        found = self.writes.get(statement)
        if found is None:
            self.writes[statement] = [params]
        else:
            found.append(params)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (
            self.sends or self.writes or self.after or self.closes or self.reduces or self.ended
            or self.caught or self.fetches
        )  # fmt: skip
