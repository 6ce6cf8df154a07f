"""What the outer optimiser is told and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from federated.errors import UsageError
from federated.rounds.numeric import codec as codecs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federated.rounds.numeric.codec import Codec
    from federated.rounds.training.arrays import F32, Array

OVERLAP_MAX: Final = 5
"""Beyond, the loss suffers visibly (arXiv 2501.18512: below .2 % up to here)."""


@dataclass(frozen=True, kw_only=True)
class OuterConfig:
    """How a model is trained together; the same for all members.

    Attributes:
        inner_steps: H, steps between two syncs of a fragment. Twice as many halve the bytes and
            cost about 2 % of loss (E9 of the benchmark).
        fragments: how many, or the names of each; see `arrays.fragments`.
        overlap: tau, steps of training while a sync is under way; 0 stops and waits.
        alpha: share of its own parameters that a member keeps. The paper's .5 costs 1.7 % of loss
            in E9, .1 to .25 are alike and best.
        rate: of the outer step.
        momentum: of the outer step, Nesterov's.
        codec: of differences and merged parts.
        in_flight_max: fragments under way at once.
    """

    inner_steps: int = 30
    fragments: int | Sequence[Sequence[str]] = 3
    overlap: int = 3
    alpha: float = 0.2
    rate: float = 0.7
    momentum: float = 0.9
    codec: Codec = "e3m0"
    in_flight_max: int = 2

    def __post_init__(self) -> None:
        if self.inner_steps < 1 or self.in_flight_max < 1:
            raise UsageError("inner_steps and in_flight_max are at least 1")
        if not 0 <= self.overlap <= min(OVERLAP_MAX, self.inner_steps - 1):
            raise UsageError(f"overlap is 0 to {OVERLAP_MAX}, and below inner_steps")
        if not 0 <= self.alpha < 1 or not 0 <= self.momentum < 1 or self.rate <= 0:
            raise UsageError("alpha and momentum are within 0..1 without 1, the rate is above 0")
        if self.codec not in codecs.CODECS:
            raise UsageError(f"no codec {self.codec!r}")


# ---- requests


@dataclass(frozen=True, eq=False)
class Sync:
    """Start a round of a fragment; then call `merged` or `failed`.

    Attributes:
        fragment: its index.
        base_root: root of the state that the difference is against.
        delta: float32[n], G - theta: the fragment's tensors flattened, names ascending. A copy.
        weight: tokens it was made of, capped; above 0.
        wanted_at: inner step at which the result is first of use.
        codec: for `encoded`.
    """

    fragment: int
    base_root: bytes
    delta: F32
    weight: float
    wanted_at: int
    codec: Codec

    def encoded(self, start: int = 0, n: int | None = None) -> bytes:
        """The bytes of a part of the difference: all of it by default."""
        stop = len(self.delta) if n is None else start + n
        return codecs.encode(self.codec, self.delta[start:stop])


@dataclass(frozen=True)
class Skipped:
    """A fragment's turn passed without a sync; its difference stays for the next.

    Attributes:
        fragment: its index.
        reason: `in_flight` (it, or as many others as may be, are still under way), `diverged`,
            `idle` (no token since the last), `fetching`.
    """

    fragment: int
    reason: str


@dataclass(frozen=True)
class Applied:
    """A fragment's parameters have changed.

    Attributes:
        fragment: its index.
        params: name to the array that holds the parameter now: the trainer's own memory where it
            could be written, else a new array that the trainer takes over.
    """

    fragment: int
    params: dict[str, Array]


@dataclass(frozen=True)
class Fetch:
    """Others are ahead: get their state of a fragment and call `adopt`."""

    fragment: int


Request: TypeAlias = Sync | Skipped | Applied | Fetch
