"""Mean, histogram and quantiles of data that stays where it is.

A question becomes one float64 vector at every member; the vectors are added up, and the answer is
read off their sum. Nobody learns a member's values, but whoever adds up sees each member's vector:
these are no private statistics, and a question that asks for noise is refused until the ledger that
would charge for it exists.

    query = MeanQuery()
    vector = contribution(query, values, weights)       # at each member
    answer(query, total, peers)                         # of the sum, at each member

Source: docs/specs/rounds.md s.8.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec
import numpy as np

from federated.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F64: TypeAlias = NDArray[np.float64]

EDGES_MAX: Final = 65_536
QUANTILE_LEAVES: Final = 65_536
"""Equal bins between the bounds: a quantile is right to their width."""
QUANTILES_MAX: Final = 100
WEIGHT_MAX: Final = 2.0**53
VALUE_MAX: Final = 1e150
"""Of a value's size: its square times the largest weight is still a number."""
CALL_DOMAIN: Final = b"covey/fed/call/1\0"


class _Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """What is asked about, so that two questions of one form do not meet by accident."""


class MeanQuery(_Query, frozen=True, kw_only=True, tag="mean"):
    """The weighted mean of all values."""


class HistogramQuery(_Query, frozen=True, kw_only=True, tag="histogram"):
    """How many values lie between neighbouring edges, the last bin with its upper edge."""

    edges: Annotated[tuple[float, ...], msgspec.Meta(min_length=2, max_length=EDGES_MAX)]

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges)
        if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise UsageError("edges: give finite numbers, each larger than the one before")


class QuantilesQuery(_Query, frozen=True, kw_only=True, tag="quantiles"):
    """Values below which given shares of all values lie."""

    q: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=QUANTILES_MAX)]
    bounds: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not (np.isfinite([low, high]).all() and low < high and np.isfinite(high - low)):
            raise UsageError("bounds: give a lower and a higher finite number")
        if not all(0 <= share <= 1 for share in self.q):
            raise UsageError("q: give shares between 0 and 1, such as 0.5 for the median")


Query: TypeAlias = MeanQuery | HistogramQuery | QuantilesQuery


class Mean(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `MeanQuery`.

    Attributes:
        value: the weighted mean.
        var: the weighted variance about it (of the values, not of the mean).
        weight: sum of weights.
        values: how many values there were.
        peers: members that took part.
        noise_sd: standard deviation of the noise in `value`: none.
    """

    value: float
    var: float
    weight: float
    values: int
    peers: int
    noise_sd: float = 0.0


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `HistogramQuery`.

    Attributes:
        edges: n + 1 of them.
        counts: n of them.
        below, above: values outside the edges.
        peers: members that took part.
        noise_sd: of each count: none.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    below: float
    above: float
    peers: int
    noise_sd: float = 0.0


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `QuantilesQuery`.

    Attributes:
        q: the shares.
        values: one a share, right to `resolution`.
        resolution: width of a bin.
        count: values within the bounds.
        outside: values left out because they are not.
        peers: members that took part.
        noise_sd: none.
    """

    q: tuple[float, ...]
    values: tuple[float, ...]
    resolution: float
    count: int
    outside: int
    peers: int
    noise_sd: float = 0.0


Answer: TypeAlias = Mean | Histogram | Quantiles


def kind_of(query: Query) -> str:
    """`mean`, `histogram` or `quantiles`."""
    return str(type(query).__struct_config__.tag)


def call_id(query: Query, policy: bytes = b"") -> bytes:
    """What equal questions share: 32 bytes.

    Args:
        query: the question.
        policy: whatever else must be equal for two calls to meet.
    """
    body = msgspec.msgpack.encode(query, order="deterministic")
    return sha256(CALL_DOMAIN + sha256(policy).digest() + body).digest()


def contribution(query: Query, values: F64, weights: F64 | None = None) -> F64:
    """A member's vector.

    Args:
        query: the question.
        values: float64[k], k >= 1, finite.
        weights: float64[k] above 0, for a mean alone; None: 1 each.

    Raises:
        UsageError: what is wrong with the values; nothing has left yet.
    """
    values = np.asarray(values, np.float64)
    _check(values)
    if weights is not None and not isinstance(query, MeanQuery):
        raise UsageError("weights count in a mean alone")
    match query:
        case MeanQuery():
            return _mean_sums(values, _weights(values, weights))
        case HistogramQuery():
            edges = np.asarray(query.edges)
            counts, _ = np.histogram(values, edges)
            outside = [np.sum(values < edges[0]), np.sum(values > edges[-1])]
            return np.concatenate([counts, outside]).astype(np.float64)
        case QuantilesQuery():
            low, high = query.bounds
            counts, _ = np.histogram(values, QUANTILE_LEAVES, (low, high))
            outside = [len(values) - counts.sum()]
            return np.concatenate([counts, outside]).astype(np.float64)


def _check(values: F64) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise UsageError("no values: give at least one number")
    bad = np.flatnonzero(~np.isfinite(values) | (np.abs(values) > VALUE_MAX))
    if len(bad):
        place = int(bad[0])
        raise UsageError(f"value {place + 1} is {values[place]}: give finite numbers")


def _weights(values: F64, weights: F64 | None) -> F64:
    if weights is None:
        return np.ones(len(values))
    weights = np.asarray(weights, np.float64)
    if weights.shape != values.shape:
        raise UsageError(f"{len(values)} values and {len(weights)} weights")
    bad = np.flatnonzero(~((weights > 0) & (weights <= WEIGHT_MAX)))
    if len(bad):
        place = int(bad[0])
        raise UsageError(f"weight {place + 1} is {weights[place]}: give numbers above 0")
    return weights


def _mean_sums(values: F64, weights: F64) -> F64:
    # Around a pivot that is equal for all, squares of large values would lose the variance; there
    # is none, so the sums of a member are at least exact.
    products = weights * values
    return np.array([
        np.sum(weights, dtype=np.longdouble),
        np.sum(products, dtype=np.longdouble),
        np.sum(products * values, dtype=np.longdouble),
        len(values),
    ]).astype(np.float64)  # fmt: skip


def answer(query: Query, total: F64, peers: int) -> Answer:
    """Read the answer off the sum of all vectors.

    Args:
        query: the question.
        total: the sum.
        peers: members that took part.

    Raises:
        UsageError: a sum of another length.
    """
    if len(total) != length(query):
        raise UsageError("a sum that does not belong to this question")
    match query:
        case MeanQuery():
            weight, first, second, count = (float(one) for one in total)
            mean = first / weight
            var = max(0.0, second / weight - mean * mean)
            return Mean(value=mean, var=var, weight=weight, values=int(count), peers=peers)
        case HistogramQuery():
            counts = tuple(float(one) for one in total[:-2])
            below, above = (float(one) for one in total[-2:])
            return Histogram(
                edges=query.edges, counts=counts, below=below, above=above, peers=peers
            )
        case QuantilesQuery():
            return _quantiles(query, total, peers)


def length(query: Query) -> int:
    """Elements of a question's vector."""
    match query:
        case MeanQuery():
            return 4
        case HistogramQuery():
            return len(query.edges) + 1
        case QuantilesQuery():
            return QUANTILE_LEAVES + 1


def _quantiles(query: QuantilesQuery, total: F64, peers: int) -> Quantiles:
    low, high = query.bounds
    counts, outside = total[:-1], float(total[-1])
    count = float(counts.sum())
    if count <= 0:
        raise UsageError(f"no value of any member lies between {low:g} and {high:g}")
    edges = np.linspace(low, high, QUANTILE_LEAVES + 1)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    found = [_at(share * count, below, edges) for share in query.q]
    return Quantiles(
        q=query.q, values=tuple(found), resolution=(high - low) / QUANTILE_LEAVES,
        count=int(count), outside=int(outside), peers=peers,
    )  # fmt: skip


def _at(rank: float, below: F64, edges: F64) -> float:
    """The value with `rank` values below it, linear within its bin."""
    # The first value at all for the share 0, not the empty bins before it.
    side: Literal["left", "right"] = "left" if rank > 0 else "right"
    place = min(max(int(np.searchsorted(below, rank, side)), 1), len(below) - 1)
    inside = below[place] - below[place - 1]
    share = (rank - below[place - 1]) / inside if inside > 0 else 0.0
    return float(edges[place - 1] + share * (edges[place] - edges[place - 1]))
