"""Aggregation rules: from inner products to one coefficient a row.

Theory of operation. Row 0 is the reference: the last applied update (zeros at first), or for
FLTrust the update of the member with root data. Rows 1..K are the members' updates in roster order.
Mean, median and trimmed mean need only the squared norms; every other rule is a linear combination
of rows, found from their Gram matrix alone, so that nobody needs anyone's whole update. What a rule
gives is float64[K+1], which each reducer hands to `kernels.combine` over its part of the rows (for
median and trimmed mean, without row 0, as the `scales` of `order`).

What a hostile member may try, and what stands against it:

- *A huge or broken update*: norms are compared with the clip C of the plan: above 3 C the row is
  rejected, from C on shortened to C; one that is not finite, or whose norm is not the one the
  member committed itself to, is rejected.
- *Many devices*: votes count owners. Rows of one owner are averaged before a rule sees them, by the
  weights they claim where the rule is weighted, equally where it is not.
- *A huge weight*: weights are claims. An owner's is capped at three times the median owner's; for
  multi-Krum, RFA, median and trimmed mean each owner has one vote.

All of it is a pure function of its arguments, the permutation of `bucketing_rfa` included.
Source: federated-experiments E8; arXiv 1912.13445 (RFA), 2012.10333 (centred clipping), 2012.13995
(FLTrust), 2006.09365 (bucketing), 1703.02757 (multi-Krum), 1905.03871 (the clip).
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from federated.errors import UsageError
from federated.rounds.numeric.gram import SQUARE_MAX, bucket_matrix, merged
from federated.rounds.numeric.kernels import normalised

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from federated.rounds.numeric.engines import F64

Rule: TypeAlias = Literal[
    "mean",
    "norm_bounded",
    "median",
    "trimmed",
    "multi_krum",
    "rfa",
    "centred_clipping",
    "fltrust",
    "bucketing_rfa",
]

RULES: Final[tuple[Rule, ...]] = get_args(Rule)
DIAGONAL: Final[frozenset[Rule]] = frozenset({"mean", "norm_bounded", "median", "trimmed"})
"""Rules that need no more than the squared norms."""
COORDINATE_WISE: Final[frozenset[Rule]] = frozenset({"median", "trimmed"})
"""Rules that are no linear combination: their coefficients are the scales of `order`."""
MASKABLE: Final[frozenset[Rule]] = frozenset({"mean", "norm_bounded"})
"""Rules that masked updates allow: a sum is all that anyone sees."""
WEIGHTED: Final[frozenset[Rule]] = frozenset({"mean", "norm_bounded", "centred_clipping"})
"""Rules in which a claimed weight counts; in the others every owner has one vote."""

WEIGHT_CAP: Final = 3.0
"""Times the median owner's weight; a guess."""
REJECT_FACTOR: Final = 3.0
"""Times the clip: where a row is rejected and no longer shortened."""
NORM_TOLERANCE: Final = 1e-3
"""Relative, between a committed norm and the Gram matrix: a hundred times its error (E2)."""
CLIP_RATE: Final = 0.2
CLIP_QUANTILE: Final = 0.5
"""The clip moves so that half of the norms are within it (arXiv 1905.03871 s.2, geometric)."""
WEISZFELD_STEPS: Final = 8
WEISZFELD_NU: Final = 1e-3
"""Times the median norm: below it distances count as equal (E8)."""
CLIPPING_STEPS: Final = 3
BUCKET: Final = 2
BUCKET_DOMAIN: Final = b"covey/fed/bucket/1\0"


class Check(NamedTuple):
    """What became of a row's norm."""

    factor: float
    """What the row is multiplied by before the rule: 1, below 1 if shortened, 0 if rejected."""
    reason: str
    """Empty, `clipped`, or why it was rejected: `not_finite`, `norm`, `norm_not_committed`."""


def resolve(rule: Rule | Literal["auto"], *, masked: bool = False, root_data: bool = False) -> Rule:
    """The rule that a plan names, for what a policy asks.

    `auto` is FLTrust if a member has root data, the norm-bounded mean if updates are masked, else
    centred clipping: never a median by default, which unlike data pulls away (E8).

    Raises:
        UsageError: no such rule; one that masked updates do not allow; FLTrust without root data.
    """
    if rule == "auto":
        if masked:
            return "norm_bounded"
        return "fltrust" if root_data else "centred_clipping"
    if rule not in RULES:
        raise UsageError(f"no rule {rule!r}: one of {', '.join(RULES)} or auto")
    if masked and rule not in MASKABLE:
        raise UsageError(f"{rule} needs plain updates: masked ones allow {', '.join(MASKABLE)}")
    if rule == "fltrust" and not root_data:
        raise UsageError("fltrust needs a member with root data")
    return rule


def liars_allowed(owners: int) -> int:
    """How many liars f multi-Krum and the trimmed mean are set to stand by default.

    A fifth of the owners, and no more than 2 f + 3 <= owners allows.
    """
    return max(0, min(owners // 5, (owners - 3) // 2))


# --- norms --------------------------------------------------------------------------------------


def check_norms(
    squares: F64, clip: float | None, committed: Sequence[float] | None = None
) -> list[Check]:
    """Each row's norm against the clip and what its sender committed itself to.

    Args:
        squares: float64[K], G_ii without the reference.
        clip: C > 0; None: norms are not bounded, only finite.
        committed: K norms of `commit`; None: not compared.

    Returns:
        One check a row.

    Raises:
        UsageError: C not finite or not above 0; other than K norms.
    """
    if clip is not None and not 0 < clip < math.inf:
        raise UsageError(f"a clip is finite and above 0, not {clip}")
    if committed is not None and len(committed) != len(squares):
        raise UsageError(f"{len(squares)} rows and {len(committed)} committed norms")
    return [
        _check_norm(float(square), clip, None if committed is None else committed[i])
        for i, square in enumerate(squares)
    ]


def _check_norm(square: float, clip: float | None, committed: float | None) -> Check:
    if not 0 <= square < SQUARE_MAX:
        return Check(0.0, "not_finite")
    norm = math.sqrt(square)
    if committed is not None and not abs(norm - committed) <= NORM_TOLERANCE * norm:
        return Check(0.0, "norm_not_committed")
    if clip is None or norm <= clip:
        return Check(1.0, "")
    if norm > REJECT_FACTOR * clip:
        return Check(0.0, "norm")
    return Check(clip / norm, "clipped")


def median_norm(squares: F64, owners: Sequence[Hashable] | None = None) -> float:
    """The first clip where none is set: the median over owners of each one's median norm.

    Norms that are not finite are left out. 0 if there is none or most are 0: then there is nothing
    to clip by yet.

    Args:
        squares: float64[K], G_ii without the reference.
        owners: one a row, so that nobody's many devices move the median; None: each is its own.

    Raises:
        UsageError: other than one owner a row.
    """
    groups = _by_owner(squares, owners)
    found = [
        float(np.median(np.sqrt(finite)))
        for group in groups
        for finite in [group[np.isfinite(group) & (group >= 0)]]
        if len(finite)
    ]
    return float(np.median(found)) if found else 0.0


def share_within(squares: F64, clip: float, owners: Sequence[Hashable] | None = None) -> float:
    """b: the mean over owners of the share of their rows whose norm is at most C; 0 of no rows.

    A norm that is not finite is above any C.

    Raises:
        UsageError: other than one owner a row.
    """
    groups = _by_owner(squares, owners)
    shares = [float(np.mean((group >= 0) & (group <= clip * clip))) for group in groups]
    return math.fsum(shares) / len(shares) if shares else 0.0


def _by_owner(squares: F64, owners: Sequence[Hashable] | None) -> list[F64]:
    names = range(len(squares)) if owners is None else owners
    if len(names) != len(squares):
        raise UsageError(f"{len(squares)} rows and {len(names)} owners")
    groups: dict[Hashable, list[float]] = {}
    for name, square in zip(names, squares, strict=True):
        groups.setdefault(name, []).append(float(square))
    return [np.array(group) for group in groups.values()]


def adapted_clip(clip: float, share: float) -> float:
    """The next round's C: `C exp(-0.2 (b - 0.5))`.

    Args:
        clip: this round's C.
        share: b, from `share_within` or the masked sum of clip bits; noise may carry it out of
            0..1, so it is cut off there.
    """
    return clip * math.exp(-CLIP_RATE * (min(1.0, max(0.0, share)) - CLIP_QUANTILE))


# --- weights ------------------------------------------------------------------------------------


def capped_weights(
    weights: Sequence[float] | F64, owners: Sequence[Hashable], cap: float = WEIGHT_CAP
) -> F64:
    """Claimed weights with no owner above `cap` times the median owner, normalised: float64[K].

    An owner's weight is the sum over its rows; a cap shortens all of them alike.

    Raises:
        UsageError: as `kernels.normalised`; other than one owner a row; a cap below 1.
    """
    shares = normalised(weights)
    if len(owners) != len(shares) or not cap >= 1:
        raise UsageError(f"{len(shares)} weights, {len(owners)} owners, cap {cap}")
    sums: dict[Hashable, float] = {}
    for owner, share in zip(owners, shares, strict=True):
        sums[owner] = sums.get(owner, 0.0) + float(share)
    most = cap * float(np.median(list(sums.values())))
    if most == 0:  # more than half of the owners claim nothing: there is no scale to cap by
        return shares
    return normalised(
        [
            share * min(1.0, most / sums[owner]) if share else 0.0
            for owner, share in zip(owners, shares, strict=True)
        ]
    )


# --- coefficients -------------------------------------------------------------------------------


def coefficients(
    rule: Rule,
    gram: F64,
    weights: Sequence[float] | F64,
    *,
    owners: Sequence[Hashable],
    clip: float | None = None,
    committed: Sequence[float] | None = None,
    liars: int | None = None,
    seed: bytes = b"",
    weight_cap: float = WEIGHT_CAP,
) -> F64:
    """What each row is multiplied by.

    Args:
        rule: a resolved rule.
        gram: float64[K+1, K+1], row 0 the reference; for the rules in `DIAGONAL` its diagonal
            float64[K+1] is enough.
        weights: K claimed weights >= 0, not all 0.
        owners: one a row.
        clip: C: rows above 3 C are rejected, above C shortened to C; None: norms are not bounded.
            `norm_bounded` without it takes `median_norm` and rejects nobody.
        committed: K norms of `commit`, or None.
        liars: f of `multi_krum`, where 2 f + 3 <= owners; None: `liars_allowed`. Who was rejected
            counts as found. (`trimmed` cuts where it is computed: `order.trimmed_mean`.)
        seed: 32 bytes of the plan, which order the buckets of `bucketing_rfa`.
        weight_cap: see `capped_weights`.

    Returns:
        float64[K+1]. Rejected rows have 0. If no row is left, and for FLTrust if no row points
        where the root's does, all are 0: the state stays as it is. For median and trimmed, entries
        1..K are the scales of `order`, and entry 0 is 0.

    Raises:
        UsageError: shapes that do not fit; a Gram matrix that is not finite beyond the rejected
            rows; as `check_norms`, `capped_weights`.
    """
    count = len(weights)
    most_liars = _liars(liars, count_owners(owners), rule)
    squares = _diagonal(gram, count, rule)
    shares = capped_weights(weights, owners, weight_cap)
    checks = check_norms(squares[1:], clip, committed)
    kept = [i for i, check in enumerate(checks) if check.factor > 0]
    made = np.zeros(count + 1)
    factors = np.array([check.factor for check in checks])
    if rule in WEIGHTED:
        kept = [i for i in kept if shares[i] > 0]
    if not kept:
        return made
    rows = np.array(kept) + 1
    if rule in COORDINATE_WISE:
        made[rows] = factors[kept]
    elif rule in ("mean", "norm_bounded"):
        made[rows] = factors[kept] * shares[kept] / math.fsum(shares[kept])
        if rule == "norm_bounded" and clip is None:
            bound = median_norm(squares[rows], [owners[i] for i in kept])
            made[rows] *= _within(squares[rows], bound)
    else:
        found = count_owners(owners) - count_owners([owners[i] for i in kept])
        index = np.array([0, *rows])
        voters, votes = _voters([owners[i] for i in kept], shares[kept], factors[kept], rule)
        made[index] = (
            _linear(
                rule, _products(gram, index, voters, rule), votes, max(0, most_liars - found), seed
            )
            @ voters
        )
    return made


def count_owners(owners: Sequence[Hashable]) -> int:
    """How many different owners there are."""
    return len(dict.fromkeys(owners))


def _diagonal(gram: F64, count: int, rule: Rule) -> F64:
    if rule not in RULES:
        raise UsageError(f"no rule {rule!r}: `auto` is resolved before a plan is made")
    if gram.shape == (count + 1, count + 1):
        return np.diagonal(gram)
    if gram.shape == (count + 1,) and rule in DIAGONAL:
        return gram
    raise UsageError(f"{rule} over {count} rows and a reference: products {gram.shape}")


def _liars(liars: int | None, owners: int, rule: Rule) -> int:
    if liars is None:
        return liars_allowed(owners)
    if liars < 0 or (rule == "multi_krum" and owners < 2 * liars + 3):
        raise UsageError(f"{owners} owners cannot stand {liars} liars: 2 f + 3 are needed")
    return liars


def _within(squares: F64, bound: float) -> F64:
    """min(1, bound / norm) of each: float64[K]."""
    norms = np.sqrt(squares)
    return np.divide(bound, norms, out=np.ones(len(norms)), where=norms > bound)


def _voters(owners: Sequence[Hashable], shares: F64, factors: F64, rule: Rule) -> tuple[F64, F64]:
    """(float64[M+1, K'+1]: row 0, then each owner's mean of shortened rows; float64[M] weights)."""
    places: dict[Hashable, int] = {}
    for owner in owners:
        places.setdefault(owner, len(places))
    claims = shares if rule in WEIGHTED else np.ones(len(owners))
    groups = np.zeros((len(places), len(owners)))
    for column, owner in enumerate(owners):
        groups[places[owner], column] = claims[column]
    sums = groups.sum(axis=1)
    voters = np.zeros((len(places) + 1, len(owners) + 1))
    voters[0, 0] = 1
    voters[1:, 1:] = groups / sums[:, None] * factors
    return voters, sums / sums.sum() if rule in WEIGHTED else np.full(len(sums), 1 / len(sums))


def _products(gram: F64, index: NDArray[np.intp], voters: F64, rule: Rule) -> F64:
    """Products of row 0 and the voters' means: float64[M+1, M+1]."""
    chosen = gram[np.ix_(index, index)]
    if rule not in ("centred_clipping", "fltrust"):
        chosen[0, :] = chosen[:, 0] = 0  # not used: a reference that is broken does no harm
    if not np.isfinite(chosen).all():
        raise UsageError("the products of the rows that remain are not finite")
    return merged(chosen, voters)


def _linear(rule: Rule, products: F64, votes: F64, liars: int, seed: bytes) -> F64:
    """Coefficients of row 0 and the voters: float64[M+1]."""
    if rule == "centred_clipping":
        return _centred_clipping(products, votes)
    if rule == "fltrust":
        return _fltrust(products)
    among = products[1:, 1:]
    if rule == "multi_krum":
        made = _multi_krum(among, liars)
    elif rule == "rfa":
        made = _rfa(among)
    else:
        groups = bucket_matrix(permutation(seed, len(among)), BUCKET)
        made = _rfa(merged(among, groups)) @ groups
    return np.concatenate([[0.0], made])


def _multi_krum(products: F64, liars: int) -> F64:
    """The mean of the M-f rows with the least sum of their M-f-2 smallest squared distances."""
    count = len(products)
    squares = np.diagonal(products)
    distances = squares[:, None] + squares[None, :] - 2 * products
    np.fill_diagonal(distances, np.inf)
    near = np.sort(distances, axis=1)[:, : max(1, count - liars - 2)].sum(axis=1)
    best = np.argsort(near, kind="stable")[: max(1, count - liars)]
    made = np.zeros(count)
    made[best] = 1 / len(best)
    return made


def _rfa(products: F64) -> F64:
    """The geometric median, by smoothed Weiszfeld steps from the mean."""
    squares = np.diagonal(products)
    least = WEISZFELD_NU * median_norm(squares)
    made = np.full(len(products), 1 / len(products))
    for _ in range(WEISZFELD_STEPS):
        apart = squares - 2 * (products @ made) + made @ products @ made
        distances = np.maximum(np.sqrt(np.maximum(apart, 0)), least)
        if not distances.all():  # all rows are zero
            break
        made = 1 / distances
        made /= made.sum()
    return made


def _centred_clipping(products: F64, votes: F64) -> F64:
    """From the reference, thrice: go by the rows' differences to it, each cut off at tau."""
    count = len(votes)
    tau = median_norm(np.diagonal(products)[1:])
    centre = np.zeros(count + 1)
    centre[0] = 1
    for _ in range(CLIPPING_STEPS):
        apart = np.eye(count + 1)[1:] - centre
        steps = votes * _within(
            np.maximum(np.einsum("ij,jk,ik->i", apart, products, apart), 0), tau
        )
        centre = (1 - steps.sum()) * centre
        centre[1:] += steps
    return centre


def _fltrust(products: F64) -> F64:
    """Rows at the root's length, by how far each points where the root's row does."""
    norms = np.sqrt(np.diagonal(products))
    lengths = norms[0] * norms[1:]
    trust = np.divide(products[0, 1:], lengths, out=np.zeros(len(lengths)), where=lengths > 0)
    trust = np.maximum(trust, 0)
    made = np.zeros(len(products))
    if trust.sum() > 0:
        made[1:] = norms[0] * np.divide(
            trust, norms[1:], out=np.zeros(len(trust)), where=norms[1:] > 0
        )
        made /= trust.sum()
    return made


def permutation(seed: bytes, count: int) -> list[int]:
    """`range(count)` in an order that follows from `seed`: by SHA-256(domain + seed + u32 LE)."""
    return sorted(
        range(count),
        key=lambda i: hashlib.sha256(BUCKET_DOMAIN + seed + i.to_bytes(4, "little")).digest(),
    )
