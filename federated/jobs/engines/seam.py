"""What an engine is: a place of many slots that computes calls, bytes in and bytes out.

Journal, cache, verification and reduction stay ours; `crew` makes a worker of an engine, which the
coordinator sees as one device of our own. Source: docs/specs/jobs.md s.12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from federated.jobs.canon import digest
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_DOMAIN: Final = b"covey/job-engine/1\0"


class EngineCall(NamedTuple):
    """Some tasks of one job, to be computed one after the other.

    Attributes:
        ref: ours; names it in `Computed`.
        key: unique among all calls ever: an engine that remembers keys would give the answer, or
            the error, of an earlier attempt.
        data: what `tasks.compute` takes.
    """

    ref: int
    key: str
    data: bytes


class Computed(NamedTuple):
    """A call that ended.

    Attributes:
        ref: of the call.
        data: what `tasks.compute` returned; empty if it failed.
        error: empty, or `unavailable`, `output` or `exception`.
        detail: for this machine's log.
    """

    ref: int
    data: bytes
    error: str
    detail: str


class Engine(Protocol):
    """A running engine; one is made for each session with it."""

    async def start(self) -> None:
        """Be ready for calls.

        Raises:
            HandlerError: `unavailable`: it cannot be reached, and why.
        """
        ...

    @property
    def capacity(self) -> int:
        """Calls it computes at once, as it said last."""
        ...

    async def submit_batch(self, calls: Sequence[EngineCall]) -> None:
        """Hand calls over.

        Raises:
            HandlerError: `unavailable`: it is gone.
        """
        ...

    def as_completed(self) -> AsyncIterator[Computed]:
        """Calls as they end, in any order; it ends when the engine is gone."""
        ...

    async def cancel(self, refs: Sequence[int]) -> None:
        """Forget calls; one that runs may go on, and its answer is dropped."""
        ...

    async def close(self) -> None:
        """End it, and whatever it started here."""
        ...


def engine_id(address: str) -> PeerId:
    """The id under which the coordinator knows an engine: a hash, so nobody has its key."""
    return PeerId(digest(_DOMAIN + address.encode()))
