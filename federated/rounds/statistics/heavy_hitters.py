"""The most frequent items of several members' data, each record reported once with noise.

Theory of operation. Items are codes of m bits. Each member deals its records out to g levels at
random; a record reports the first m h / g bits of its code at its level h, once, with the noise of
local privacy (`privacy.local`), and never again. From level 2 on reports are of OLH: they do not
depend on what is asked, so all are drawn at once and any candidate can be scored by them later.

All members score the same candidates; what travels is counts of noisy reports. From the counts of
all of them everybody computes the same:

1. *Shared trie*: the k best prefixes by the summed estimate E and by T, the sum of what is above 3
   standard deviations at one member, are extended to the next level.
2. *Own tries*: each member also follows its own k best; nothing of it is sent until the end.
3. *Final candidates*: the 2k best shared ones and every member's own k; all members score all.
4. Ranked by max(E - (1/2 + 4 rho) V, T), V the standard deviation of E and rho how unlike the
   members are at level 1: pooled noise lets false items in where members differ.

All of it is post-processing of the reports: it costs no privacy. Nobody is asked what a code stands
for: the answer would be a report without noise.
Source: federated-experiments E10; the baselines are in `statistics.tap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import numpy as np

from federated.errors import UsageError
from federated.rounds.privacy import local
from federated.rounds.statistics.exact import are_whole
from federated.rounds.statistics.limits import K_MAX
from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    F64: TypeAlias = NDArray[np.float64]
    U64: TypeAlias = NDArray[np.uint64]

LEVELS: Final = 5
"""Half of what trie-based methods use: twice the reports a level (E10)."""
SURE_DOUBT: Final = 0.01
SIGNIFICANT: Final = 3.0
"""Standard deviations from which an estimate of one member counts by itself."""
SLACK: Final = 6.0
"""Standard deviations that an honest member exceeds once in 10^9 rows."""
FLAT: Final = 0.5
GRADE: Final = 4.0
"""How much more noise costs where members are unlike; chosen on other seeds (E10)."""
REPORTS_MIN: Final = 1000
"""A level with fewer says nothing at any epsilon that protects anybody. Guess."""
K_USUAL: Final = 20
CANDIDATES_MAX: Final = 2_560
"""At a level, where fewer levels would give each more reports. Guess: a second or two for the most
records."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is asked, equal at all members.

    Attributes:
        bits: of a code.
        k: items wanted.
        epsilon: that a record's one report costs.
        levels: g; at most the bits.
        limit: codes from it on stand for nothing that is looked for; 0: all do.
    """

    bits: int
    k: int
    epsilon: float
    levels: int = LEVELS
    limit: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            UsageError: which of the fields, and what it may be.
        """
        local.check_epsilon(self.epsilon)
        if not 1 <= self.k <= K_MAX:
            raise UsageError(f"k: give 1 to {K_MAX}")
        if not 1 <= self.levels <= self.bits <= 62:
            raise UsageError("codes have up to 62 bits, and a level at least one of them")
        if not 0 <= self.limit <= 1 << self.bits:
            raise UsageError("limit: beyond the codes")

    def prefix_bits(self, level: int) -> int:
        """Bits of a prefix at a level, counted from 0."""
        return self.bits * (level + 1) // self.levels

    def oracle(self, level: int) -> local.Oracle:
        """How records report at a level."""
        if level == 0:
            return local.choose(self.epsilon, (1 << self.prefix_bits(0)) + 1)
        return local.olh(self.epsilon)

    def first(self) -> U64:
        """Candidates of level 0: all prefixes."""
        return self._meant(np.arange(1 << self.prefix_bits(0), dtype=np.uint64), 0)

    def children(self, prefixes: U64, level: int) -> U64:
        """All prefixes of `level` that begin with one of the level before, ascending."""
        step = self.prefix_bits(level) - self.prefix_bits(level - 1)
        ends = np.arange(1 << step, dtype=np.uint64)
        found = (np.unique(prefixes)[:, None] << np.uint64(step)) | ends[None, :]
        return self._meant(found.ravel(), level)

    def _meant(self, prefixes: U64, level: int) -> U64:
        """Those that a code which is looked for begins with."""
        if not self.limit:
            return prefixes
        last = (self.limit - 1) >> (self.bits - self.prefix_bits(level))
        return prefixes[prefixes <= np.uint64(last)]

    def reports(self, level: int, records: int) -> int:
        """How many of a member's records report at a level."""
        return records // self.levels + (level < records % self.levels)


class Scorer(Protocol):
    """A member's reports."""

    @property
    def records(self) -> int:
        """How many records reported, at all levels."""
        ...

    def reports(self, level: int) -> int:
        """How many reported at a level."""
        ...

    def support(self, level: int, candidates: U64) -> F64:
        """How many reports of a level support each candidate: float64[c]."""
        ...


class Reports:
    """A member's own records, reported once and for all.

    Args:
        search: what is asked.
        codes: uint64[n], a record each.
        source: of randomness.
    """

    def __init__(self, search: Search, codes: U64, source: local.Source) -> None:
        self._search = search
        order = local.shuffled(source, len(codes))
        groups = np.array_split(codes[order], search.levels)
        self.records = len(codes)
        self._counts = [len(group) for group in groups]
        self._krr: NDArray[np.int64] | None = None
        self._olh: dict[int, local.HashedReports] = {}
        for level, group in enumerate(groups):
            prefixes = group >> np.uint64(search.bits - search.prefix_bits(level))
            oracle = search.oracle(level)
            if oracle.hashed:
                self._olh[level] = local.perturb_olh(prefixes, oracle, source)
            else:
                self._krr = local.perturb_krr(prefixes.astype(np.int64), oracle, source)

    def reports(self, level: int) -> int:
        """How many reported at a level."""
        return self._counts[level]

    def support(self, level: int, candidates: U64) -> F64:
        """How many reports of a level support each candidate: float64[c]."""
        oracle = self._search.oracle(level)
        if oracle.hashed:
            return local.support_olh(self._olh[level], oracle, candidates)
        assert self._krr is not None
        return local.support_krr(self._krr, oracle, candidates)


def row_of(scorer: Scorer, level: int, candidates: U64) -> F64:
    """What a member says at a level: float64[2 + c]: records, reports of the level, supports."""
    head = [float(scorer.records), float(scorer.reports(level))]
    return np.concatenate([head, scorer.support(level, candidates)])


@dataclass(frozen=True)
class Level:
    """What all members said at a level.

    Attributes:
        candidates: uint64[c].
        estimates: float64[m, c], records of each member that have each candidate.
        sds: float64[m], standard deviation of a member's estimates of what hardly anybody has.
        records: float64[m].
        reports: float64[m], of the level.
        oracle: that made them.
    """

    candidates: U64
    estimates: F64
    sds: F64
    records: F64
    reports: F64
    oracle: local.Oracle

    @property
    def total(self) -> F64:
        """E: summed estimates."""
        summed: F64 = self.estimates.sum(axis=0)
        return summed

    @property
    def spread(self) -> float:
        """V: the standard deviation of `total`."""
        return float(np.sqrt((self.sds**2).sum()))

    def error(self, place: int) -> float:
        """The standard deviation of the total of a candidate, who has it and who reported counted.

        Args:
            place: of the candidate.
        """
        oracle, squares = self.oracle, 0.0
        for estimate, records, reports in zip(
            self.estimates[:, place], self.records, self.reports, strict=True
        ):
            if reports:
                squares += (records / reports) ** 2 * _variance(
                    float(np.clip(estimate / records, 0.0, 1.0)), reports, reports / records, oracle
                )
        return float(np.sqrt(squares))

    @property
    def significant(self) -> F64:
        """T: what stands out of the noise at one member, summed."""
        clear = self.estimates > SIGNIFICANT * self.sds[:, None]
        summed: F64 = np.where(clear, self.estimates, 0.0).sum(axis=0)
        return summed


def _variance(share: float, reports: float, drawn: float, oracle: local.Oracle) -> float:
    """Of an estimate among `reports` records drawn from all: of their noise, and of the draw."""
    keep, q = oracle.keep, oracle.q
    told = share * keep * (1 - keep) + (1 - share) * q * (1 - q)
    return reports * (told / (keep - q) ** 2 + share * (1 - share) * (1 - drawn))


def read_rows(search: Search, level: int, candidates: U64, rows: F64) -> Level:
    """Judge what the members said.

    Args:
        search: what is asked.
        level: from 0.
        candidates: uint64[c].
        rows: float64[m, 2 + c] of `row_of`, a row a member.

    Raises:
        DecodeError: naming the member's place: counts that cannot be.
    """
    if rows.ndim != 2 or rows.shape[1] != 2 + len(candidates):
        raise DecodeError("heavy hitters: rows of another length")
    for place, row in enumerate(rows):
        _check_row(place, row)
    oracle = search.oracle(level)
    estimates, sds = [], []
    for row in rows:
        records, count = float(row[0]), int(row[1])
        found, sd = local.estimate(row[2:], count, oracle)
        scale = records / count if count else 0.0
        # No item has more records than there are: who makes reports up gains no more than that.
        estimates.append(np.minimum(found * scale, records))
        sds.append(sd * scale)
    return Level(candidates, np.array(estimates), np.array(sds), rows[:, 0], rows[:, 1], oracle)


def _check_row(place: int, row: F64) -> None:
    if not are_whole(row) or (row < 0).any() or row[1] > row[0] or (row[2:] > row[1]).any():
        raise DecodeError(f"heavy hitters: member {place} says what no reports can")


def support_max(
    search: Search, level: int, reports: int, candidates: int, *, chosen: bool
) -> float:
    """What supports of one member add up to at most, 6 standard deviations of the noise granted.

    A report of k-RR supports one candidate or none. Reports of OLH support each candidate that no
    record has with probability q: their sum says no more records than there are, noise aside.

    Args:
        search: what is asked.
        level: from 0.
        reports: of the level.
        candidates: how many.
        chosen: whether they were chosen by these very reports, whose noise then adds up.
    """
    oracle = search.oracle(level)
    if not oracle.hashed:
        return float(reports)
    gain = oracle.keep - oracle.q
    noise = local.noise_sd(reports, oracle) * gain
    terms = candidates if chosen else np.sqrt(candidates)
    return float(reports * (oracle.q * candidates + gain) + SLACK * (noise * terms + noise + 1))


def best(scores: F64, candidates: U64, k: int) -> U64:
    """The k candidates with the highest scores; of equal ones the lower code."""
    order = np.lexsort((candidates, -scores))
    return candidates[order[:k]]


def shared_next(search: Search, level: int, view: Level) -> U64:
    """Candidates of the next level, equal at all members."""
    by_total = best(view.total, view.candidates, search.k)
    clear = view.significant
    by_clear = best(clear, view.candidates, search.k)
    by_clear = by_clear[np.isin(by_clear, view.candidates[clear > 0])]
    return search.children(np.concatenate([by_total, by_clear]), level + 1)


def own_top(search: Search, scorer: Scorer) -> U64:
    """A member's own k best codes, from its reports alone."""
    candidates = search.first()
    for level in range(search.levels - 1):
        candidates = search.children(_own_best(search, scorer, level, candidates), level + 1)
    return _own_best(search, scorer, search.levels - 1, candidates)


def _own_best(search: Search, scorer: Scorer, level: int, candidates: U64) -> U64:
    view = read_rows(search, level, candidates, row_of(scorer, level, candidates)[None, :])
    return best(view.estimates[0], candidates, search.k)


def unlikeness(view: Level) -> float:
    """rho: which share of the variance between items is between members, 0 to 1."""
    members = len(view.records)
    used = view.records > 0
    if members < 2 or not used.all():
        return 0.0
    shares = view.estimates / view.records[:, None]
    noise = float(np.mean((view.sds / view.records) ** 2))
    mean = shares.mean(axis=0)
    between = float((((shares - mean) ** 2).sum(axis=0) / (members - 1) - noise).sum())
    common = float((mean**2 - noise / members).sum()) - between / members
    if between + common <= 0:
        return 0.0
    return float(np.clip(between / (between + common), 0.0, 1.0))


def final_candidates(search: Search, view: Level, own: Sequence[U64]) -> U64:
    """What everybody scores at the end: the best shared ones and every member's own."""
    scores = np.maximum(view.total - view.spread / 2, view.significant)
    return np.unique(np.concatenate([best(scores, view.candidates, 2 * search.k), *own]))


@dataclass(frozen=True)
class Hit:
    """One of the most frequent items.

    Attributes:
        code: the item's.
        count: estimated records that have it.
        sd: standard deviation of that.
        sure: whether it is above `stands_out`.
    """

    code: int
    count: float
    sd: float
    sure: bool


def ranked(search: Search, view: Level, rho: float) -> list[Hit]:
    """The k best of the final candidates.

    Args:
        search: what is asked.
        view: the last level, of the final candidates.
        rho: of level 1.
    """
    graded = view.total - (FLAT + GRADE * rho) * view.spread
    chosen = best(np.maximum(graded, view.significant), view.candidates, search.k)
    place = {int(code): index for index, code in enumerate(view.candidates)}
    total = view.total
    return [
        Hit(int(code), float(total[place[int(code)]]), view.error(place[int(code)]),
            bool(total[place[int(code)]] > stands_out(view)))
        for code in chosen
    ]  # fmt: skip


def stands_out(view: Level) -> float:
    """The count above which an item is no noise, but in one question of a hundred.

    Args:
        view: the last level, of the final candidates.
    """
    return significance(len(view.candidates)) * view.spread


def significance(looked_at: int) -> float:
    """Standard deviations above which the best of so many candidates is no noise.

    The best of many are shown, so each of them must be less likely by their number.
    """
    doubt = SURE_DOUBT / max(1, looked_at)
    return max(SIGNIFICANT, NormalDist().inv_cdf(1 - doubt))


def top_k_locally(search: Search, scorers: Sequence[Scorer]) -> list[Hit]:
    """The whole of it with all members in one process: for trials, examples and benchmarks."""

    def heard(level: int, candidates: U64) -> Level:
        rows = np.array([row_of(scorer, level, candidates) for scorer in scorers])
        return read_rows(search, level, candidates, rows)

    view = heard(0, search.first())
    rho = unlikeness(view)
    for level in range(1, search.levels):
        view = heard(level, shared_next(search, level - 1, view))
    own = [own_top(search, scorer) for scorer in scorers]
    return ranked(search, heard(search.levels - 1, final_candidates(search, view, own)), rho)


def smallest_share(search: Search, records: int) -> float:
    """Which share of all records an item must have to stand out of the noise, 0 to 1.

    Raises:
        UsageError: so few records that nothing could be said.
    """
    reports = records // search.levels
    if reports < REPORTS_MIN:
        raise UsageError(
            f"{records} records in {search.levels} levels say nothing at epsilon"
            f" {search.epsilon:g}: {REPORTS_MIN * search.levels} are the least, or count without"
            " privacy"
        )
    oracle = search.oracle(search.levels - 1)
    share = SIGNIFICANT * local.noise_sd(reports, oracle) / reports
    if share >= 1:
        raise UsageError(f"at epsilon {search.epsilon:g} no item could stand out of the noise")
    return share


def levels_for(bits: int) -> int:
    """How many levels codes are looked for in: few, so that each has many reports; 5 at most.

    Not by k: reports that were drawn for one k must do for any other.
    """
    for levels in range(1, LEVELS):
        parents = 1 if levels == 1 else 2 * K_USUAL
        if parents << -(-bits // levels) <= CANDIDATES_MAX:
            return levels
    return min(LEVELS, bits)
