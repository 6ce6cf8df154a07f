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

from fractions import Fraction
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec
import numpy as np
from typing_extensions import override

from federated.errors import UsageError
from federated.rounds.numeric.limits import WEIGHT_MAX
from federated.rounds.statistics import exact
from federated.rounds.statistics.answers import Histogram, Mean, Quantiles
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    F64: TypeAlias = NDArray[np.float64]

EDGES_MAX: Final = 65_536
QUANTILE_LEAVES: Final = 65_536
"""Equal bins between the bounds: a quantile is right to their width."""
QUANTILES_MAX: Final = 100
NAME_CHARS_MAX: Final = 200
VALUE_MAX: Final = 1e140
"""Of a value's size: squares times the largest weight, of all members, still add up."""
COUNT_MAX: Final = 2.0**53
"""Above it float64 no longer counts by one."""
QUERY_BYTES_MAX: Final = 1 << 20
CALL_DOMAIN: Final = b"covey/fed/call/1\0"


class _Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)] = ""
    """What is asked about, so that two questions of one form do not meet by accident."""

    def __post_init__(self) -> None:
        if len(self.name) > NAME_CHARS_MAX:
            raise UsageError(f"name: at most {NAME_CHARS_MAX} characters")


class MeanQuery(_Query, frozen=True, kw_only=True, tag="mean"):
    """The weighted mean of all values."""


class HistogramQuery(_Query, frozen=True, kw_only=True, tag="histogram"):
    """How many values lie between neighbouring edges, the last bin with its upper edge."""

    edges: Annotated[tuple[float, ...], msgspec.Meta(min_length=2, max_length=EDGES_MAX)]

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= len(self.edges) <= EDGES_MAX:
            raise UsageError(f"edges: give 2 to {EDGES_MAX:,} numbers, not {len(self.edges):,}")
        edges = np.asarray(self.edges, np.float64)
        # Compared, not subtracted: the difference of two of them may be beyond float64.
        if not np.isfinite(edges).all() or (edges[1:] <= edges[:-1]).any():
            raise UsageError("edges: give finite numbers, each larger than the one before")


class QuantilesQuery(_Query, frozen=True, kw_only=True, tag="quantiles"):
    """Values below which given shares of all values lie."""

    q: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=QUANTILES_MAX)]
    bounds: tuple[float, float]

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.bounds
        if not (max(abs(low), abs(high)) <= VALUE_MAX and low < high):
            raise UsageError("bounds: give a lower and a higher finite number")
        if (high - low) / QUANTILE_LEAVES < np.spacing(max(abs(low), abs(high))):
            raise UsageError("bounds: they are too close to each other for numbers of their size")
        if not 1 <= len(self.q) <= QUANTILES_MAX:
            raise UsageError(f"q: give 1 to {QUANTILES_MAX} shares, not {len(self.q)}")
        if not all(0 <= share <= 1 for share in self.q):
            raise UsageError("q: give shares between 0 and 1, such as 0.5 for the median")


Query: TypeAlias = MeanQuery | HistogramQuery | QuantilesQuery


Answer: TypeAlias = Mean | Histogram | Quantiles

_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_DECODER: Final[msgspec.msgpack.Decoder[Query]] = msgspec.msgpack.Decoder(Query)


def kind_of(query: Query) -> str:
    """`mean`, `histogram` or `quantiles`."""
    return str(type(query).__struct_config__.tag)


def encode_query(query: Query) -> bytes:
    """The one encoding of a question: equal numbers, equal bytes."""
    match query:
        case MeanQuery():
            return _ENCODER.encode(query)
        case HistogramQuery():
            return _ENCODER.encode(HistogramQuery(name=query.name, edges=_floats(query.edges)))
        case QuantilesQuery():
            low, high = _floats(query.bounds)
            plain = QuantilesQuery(name=query.name, q=_floats(query.q), bounds=(low, high))
            return _ENCODER.encode(plain)


def _floats(numbers: Iterable[float]) -> tuple[float, ...]:
    """1 and 1.0, 0.0 and -0.0 ask the same."""
    return tuple(float(number) + 0.0 for number in numbers)


def decode_query_untrusted(data: bytes) -> Query:
    """A question as another member wrote it.

    Raises:
        DecodeError: none, over a limit, or not in its one encoding.
    """
    if len(data) > QUERY_BYTES_MAX:
        raise DecodeError(f"a question of {len(data)} bytes: over {QUERY_BYTES_MAX}")
    try:
        query = _DECODER.decode(data)
    except (msgspec.DecodeError, UsageError, RecursionError, UnicodeDecodeError, OverflowError):
        raise DecodeError("no question") from None
    if encode_query(query) != data:
        raise DecodeError("a question that is not in its one encoding")
    return query


def call_id(query: Query, policy: bytes = b"") -> bytes:
    """What equal questions share: 32 bytes.

    Args:
        query: the question.
        policy: whatever else must be equal for two calls to meet.
    """
    body = encode_query(query)
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
        raise UsageError(
            f"value {place + 1} is {values[place]:g}: give finite numbers up to {VALUE_MAX:g}"
        )


def _weights(values: F64, weights: F64 | None) -> F64:
    if weights is None:
        return np.ones(len(values))
    weights = np.asarray(weights, np.float64)
    if weights.shape != values.shape:
        raise UsageError(f"{len(values)} values and {len(weights)} weights")
    bad = np.flatnonzero(~((weights > 0) & (weights <= WEIGHT_MAX)))
    if len(bad):
        place = int(bad[0])
        raise UsageError(
            f"weight {place + 1} is {weights[place]:g}: give numbers above 0, up to 2^53"
        )
    return weights


def _mean_sums(values: F64, weights: F64) -> F64:
    """How many values, then sums of w, wx and wx^2, each in places."""
    products, lost = exact.product(weights, values)
    squares, squares_lost = exact.product(products, values)
    sums = (
        exact.total(weights, np.zeros(len(weights))),
        exact.total(products, lost),
        exact.total(squares, squares_lost + lost * values),
    )
    found = [float(len(values))]
    for one in sums:
        found += exact.places(one)
    return np.array(found)


def decode_sums_untrusted(data: bytes, query: Query, peers: int = 1) -> F64:
    """Another member's vector, or a sum of several.

    Args:
        data: little-endian float64.
        query: what was asked.
        peers: how many members' vectors it is the sum of.

    Raises:
        DecodeError: of another length, or one that no data can lead to.
    """
    if len(data) != 8 * length(query):
        raise DecodeError(f"{len(data)} bytes of sums where {8 * length(query)} belong")
    vector = np.frombuffer(data, "<f8").astype(np.float64)
    wrong = fault(query, vector, peers)
    if wrong:
        raise DecodeError(f"sums: {wrong}")
    return vector


def fault(query: Query, vector: F64, peers: int = 1) -> str:
    """Why no data of `peers` members can have led to a vector; empty if some can.

    Args:
        query: what was asked.
        vector: float64[length(query)].
        peers: how many members' vectors it is the sum of.
    """
    if not exact.are_whole(vector):
        return "something else than whole numbers"
    counts = vector[:1] if isinstance(query, MeanQuery) else vector
    if (counts < 0).any() or (counts > COUNT_MAX).any() or counts.sum() > COUNT_MAX:
        return "counts below 0 or beyond 2^53"
    if counts.sum() < peers:
        return "a member without values"
    return _mean_fault(vector, peers) if isinstance(query, MeanQuery) else ""


def _mean_fault(vector: F64, peers: int) -> str:
    if (np.abs(vector[1:]) > peers * 2.0**exact.PLACE_BITS).any():
        return "a place of a sum that is too large"
    weight, first, second = _three(vector)
    values = int(vector[0])
    if not 0 < weight <= values * Fraction(WEIGHT_MAX):
        return "weights that are not above 0, or above 2^53"
    # Cauchy and Schwarz, less what double-double and the lowest place lose.
    if second < 0 or first * first > second * weight * (1 + _LOSS) + weight * _LEAST:
        return "squares that are too small for their sum"
    if second > weight * Fraction(VALUE_MAX) ** 2 * (1 + _LOSS):
        return "values beyond the limit"
    return ""


_LOSS: Final = Fraction(1, 1 << 80)
_LEAST: Final = Fraction(1, 1 << 900)


def _three(vector: F64) -> tuple[Fraction, Fraction, Fraction]:
    """Sums of w, wx and wx^2."""
    weight, first, second = (
        exact.number(vector[1 + at * exact.PLACES : 1 + (at + 1) * exact.PLACES]) for at in range(3)
    )
    return weight, first, second


def answer(query: Query, total: F64, peers: int) -> Answer:
    """Read the answer off the sum of all vectors.

    Args:
        query: the question.
        total: the sum.
        peers: members that took part.

    Raises:
        UsageError: a sum of another length, or one that no data can lead to: a member lied.
    """
    if len(total) != length(query):
        raise UsageError("a sum that does not belong to this question")
    wrong = fault(query, total, peers)
    if wrong:
        raise UsageError(f"a member sent what no data can lead to ({wrong}): ask again without it")
    match query:
        case MeanQuery():
            weight, first, second = _three(total)
            var = max(Fraction(0), (second * weight - first * first) / (weight * weight))
            return Mean(
                value=float(first / weight), var=float(var), weight=float(weight),
                values=int(total[0]), peers=peers,
            )  # fmt: skip
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
            return 1 + 3 * exact.PLACES
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
