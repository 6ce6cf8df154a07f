"""Who reduces which part of an update, and who stands by.

A small payload (statistics, a ranker) goes whole to the coordinator: a star. A larger one is cut
into one contiguous part a reducer, in proportion to `min(up, down)`: a butterfly, each reducer
receives its part from all and sends the mean back to all. Peers that nobody can dial send their
update and fetch the result, but reduce nothing.

The sizes do not minimise total traffic: with a barrier between the two phases that is slower
(docs/specs/rounds.md, `python -m benchmarks rounds --only topology`). The rates are what peers say
of themselves in their signed joins, so a claim is worth `CLAIM_MAX` medians at most: a liar may get
a larger part, whose standby takes over, but never the round.

The plan carries the parts, so nobody but the coordinator has to compute them; the standby of a
part follows from the roster by hash, as the next coordinator does.
"""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final

from federated.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

ALIGNMENT: Final = 4096
"""Elements: parts start at multiples, so that no block of a codec (256) or cache line is split."""

STAR_BELOW_BYTES: Final = 1_000_000
"""Payloads below go to the coordinator whole: two hops of a few parts each would cost more time in
round trips than in bytes."""

REDUCERS_MAX: Final = 64
"""Each pair of a butterfly is a stream: the roster's limit."""

CLAIM_MAX: Final = 16
"""Medians of the reducers' rates that a claimed rate counts for at most; a guess. Of a hundred home
links drawn as in the benchmark the fastest has 4.5 medians."""

RATE_MIN: Final = 12_500.0
"""Bytes/s below which a claimed rate does not stretch a predicted phase, 100 kbit/s; a guess. Who
is slower is late."""


@dataclass(frozen=True)
class PeerLink:
    """What a peer's join says of its way to others.

    Attributes:
        peer: its id.
        dialable: whether others can open a connection to it.
        up, down: bytes/s.
    """

    peer: bytes
    dialable: bool
    up: float
    down: float

    @property
    def rate(self) -> float:
        """What a reducer takes and gives in the two phases, bytes/s; 0 if it makes no sense."""
        rate = min(self.up, self.down)
        return rate if 0 < rate < float("inf") else 0.0


@dataclass(frozen=True)
class Part:
    """A contiguous range of a flattened update.

    Attributes:
        start: first element, a multiple of `ALIGNMENT`.
        n: elements, at least 1.
        reducer: peer that averages it.
        standby: peer that does if the reducer is lost; the reducer itself where nobody else is.
    """

    start: int
    n: int
    reducer: bytes
    standby: bytes


@dataclass(frozen=True)
class Phases:
    """Predicted seconds of a round's two phases, all peers alive and no other traffic."""

    scatter_s: float
    gather_s: float


def ranking(
    peers: Sequence[bytes], group: bytes, round_number: int, part: int | None = None
) -> tuple[bytes, ...]:
    """`peers` in the order in which they take an office, which nobody can choose.

    Args:
        peers: ids; repeated ones count once.
        group: the federation's id.
        round_number: the round.
        part: for standbys, the part's index; None for coordinators.

    Source: docs/specs/rounds.md, *Roles*.
    """
    tail = b"" if part is None else part.to_bytes(4, "big")
    head = round_number.to_bytes(8, "big")

    def place(peer: bytes) -> bytes:
        return hashlib.sha256(group + head + peer + tail).digest()

    return tuple(sorted(dict.fromkeys(peers), key=place, reverse=True))


def parts(
    total_elements: int,
    peers: Sequence[PeerLink],
    payload_bytes: int,
    *,
    group: bytes = b"",
    round_number: int = 0,
    coordinator: bytes | None = None,
) -> tuple[Part, ...]:
    """The parts of a round, by start; they cover every element once.

    Where no peer, or one, is dialable, all goes to the coordinator: the others reach it, if need be
    by a relay.

    Args:
        total_elements: of the flattened update, at least 1.
        peers: the roster, each peer once.
        payload_bytes: the encoded update's size.
        group: the federation's id, for the standbys.
        round_number: the round, for the standbys.
        coordinator: who asks, one of `peers`; None: the first in rank.

    Raises:
        UsageError: no peer, one twice, nothing to reduce, or a coordinator that is none of them.
    """
    ids = [link.peer for link in peers]
    if not ids or len(set(ids)) != len(ids):
        raise UsageError("a roster holds at least one peer, and each once")
    if total_elements < 1 or payload_bytes < 0:
        raise UsageError("nothing to reduce")
    dialable = [link for link in peers if link.dialable]
    if coordinator is None:
        among = [link.peer for link in dialable] or ids
        coordinator = ranking(among, group, round_number)[0]
    elif coordinator not in ids:
        raise UsageError("the coordinator is not in the roster")
    reducers = _fastest(dialable)
    if payload_bytes < STAR_BELOW_BYTES or len(reducers) < 2:
        cut = [(0, total_elements, coordinator)]
    else:
        cut = _cut(total_elements, reducers)
    return tuple(
        Part(start, n, reducer, _standby(index, reducer, peers, group, round_number))
        for index, (start, n, reducer) in enumerate(cut)
    )


def _fastest(dialable: Sequence[PeerLink]) -> list[PeerLink]:
    """At most `REDUCERS_MAX` of them, in the roster's order."""
    ordered = sorted(range(len(dialable)), key=lambda i: (-dialable[i].rate, i))
    return [dialable[i] for i in sorted(ordered[:REDUCERS_MAX])]


def _cut(total: int, reducers: Sequence[PeerLink]) -> list[tuple[int, int, bytes]]:
    """(start, elements, reducer) of each reducer that gets a block, in whole numbers."""
    weights = _weights(reducers)
    blocks = -(-total // ALIGNMENT)
    whole = sum(weights)
    ends = [0, *(blocks * upto // whole for upto in accumulate(weights))]
    return [
        (first * ALIGNMENT, min(last * ALIGNMENT, total) - first * ALIGNMENT, link.peer)
        for (first, last), link in zip(pairwise(ends), reducers, strict=True)
        if last > first
    ]


def _weights(reducers: Sequence[PeerLink]) -> list[int]:
    """Bytes/s that count, whole; equal ones where nobody claims a rate."""
    rates = [link.rate for link in reducers]
    claimed = [rate for rate in rates if rate > 0]
    if not claimed:
        return [1] * len(rates)
    most = statistics.median_low(claimed) * CLAIM_MAX
    weights = [round(min(rate, most)) for rate in rates]
    return weights if any(weights) else [1] * len(rates)


def _standby(
    index: int, reducer: bytes, peers: Sequence[PeerLink], group: bytes, round_number: int
) -> bytes:
    others = [link for link in peers if link.peer != reducer]
    among = [link.peer for link in others if link.dialable] or [link.peer for link in others]
    return ranking(among, group, round_number, index)[0] if among else reducer


def predicted(
    planned: Sequence[Part], peers: Sequence[PeerLink], payload_bytes: int, result_bytes: int
) -> Phases:
    """Seconds that the phases of `planned` take by what the peers claim.

    A phase lasts as long as its slowest: a peer that sends or fetches all but its own part, or a
    reducer that exchanges its part with all others.

    Args:
        planned: the parts.
        peers: the roster.
        payload_bytes: an encoded update's size.
        result_bytes: the encoded result's size.
    """
    each = phases_each(planned, peers, payload_bytes, result_bytes)
    return Phases(max(one.scatter_s for one in each), max(one.gather_s for one in each))


def phases_each(
    planned: Sequence[Part], peers: Sequence[PeerLink], payload_bytes: int, result_bytes: int
) -> list[Phases]:
    """As `predicted`, what each of `peers` alone would need."""
    total = sum(part.n for part in planned)
    share = {link.peer: 0.0 for link in peers}
    for part in planned:
        share[part.reducer] = share.get(part.reducer, 0.0) + part.n / total
    found = []
    for link in peers:
        up, down = _usable(link.up), _usable(link.down)
        own, others = share[link.peer], share[link.peer] * (len(peers) - 1)
        found.append(
            Phases(
                payload_bytes * max((1 - own) / up, others / down),
                result_bytes * max(others / up, (1 - own) / down),
            )
        )
    return found


def _usable(rate: float) -> float:
    """A rate to divide by. In this order `max` also answers `RATE_MIN` for what is no number."""
    return max(RATE_MIN, rate)
