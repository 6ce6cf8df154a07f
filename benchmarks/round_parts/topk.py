"""Heavy hitters beside FedPEM, the shared trie and TAP, on the same drawn reports (E10).

Six parties; support of a candidate is Binomial(c, p) + Binomial(n - c, q), drawn once a (party,
level, prefix), so that all algorithms score the same reports. Sets: zipfX (each rank permuted with
probability X/10 a party), Shakespeare's words by speaker, words of languages. F1 of the k most
frequent; the mean over all cases, and the worst gap of ours to the best baseline of a case.
"""

from __future__ import annotations

import collections
import gzip
import json
import re
import statistics
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks import peers
from benchmarks.memory.data import DataMissing
from benchmarks.peers import PeerMissing
from benchmarks.report import Target
from federated.rounds.statistics.heavy_hitters import Search, top_k_locally
from federated.rounds.statistics.items import Letters
from federated.rounds.statistics.tap import fed_pem, shared_trie, tap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from benchmarks.report import Options, Report

    U64 = NDArray[np.uint64]
    Maker = Callable[[np.random.Generator], list[U64]]

SEEDS: Final = range(20_000, 20_010)
SEEDS_QUICK: Final = range(20_000, 20_002)
KS: Final = (10, 20)
EPSILONS: Final = (1.0, 2.0, 4.0)
BITS: Final = 30
PARTIES: Final = 6
ZIPF: Final = (0, 1, 2, 3, 5, 9)
LANGUAGES: Final = {
    "en6": ["en"] * 6,
    "langs3": ["en", "nl", "sv"],
    "langs6": ["en", "de", "fr", "es", "it", "pt"],
    "langs8": ["en", "de", "fr", "es", "it", "pt", "nl", "pl"],
}


@dataclass
class Drawn:
    """A party whose reports are drawn as sums, one a prefix."""

    search: Search
    codes: U64
    rng: np.random.Generator
    _groups: list[tuple[int, dict[int, int]]] = field(default_factory=list)
    _drawn: dict[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = self.rng.permutation(self.codes)
        for level, group in enumerate(np.array_split(order, self.search.levels)):
            shift = np.uint64(self.search.bits - self.search.prefix_bits(level))
            found, counts = np.unique(group >> shift, return_counts=True)
            pairs = zip(found.tolist(), counts.tolist(), strict=True)
            self._groups.append((len(group), dict(pairs)))

    @property
    def records(self) -> int:
        """All of them."""
        return len(self.codes)

    def reports(self, level: int) -> int:
        """Those of a level."""
        return self._groups[level][0]

    def support(self, level: int, candidates: U64) -> NDArray[np.float64]:
        """Drawn at first, the same again."""
        count, true = self._groups[level]
        oracle = self.search.oracle(level)
        fresh = [int(c) for c in candidates if (level, int(c)) not in self._drawn]
        have = np.array([true.get(code, 0) for code in fresh], np.int64)
        kept = self.rng.binomial(have, oracle.keep) + self.rng.binomial(count - have, oracle.q)
        self._drawn.update({(level, code): float(v) for code, v in zip(fresh, kept, strict=True)})
        return np.array([self._drawn[level, int(c)] for c in candidates])


def zipf(rng: np.random.Generator, mix: float) -> list[U64]:
    """Random codes by rank^-1.2; each party permutes a share of the ranks."""
    universe = rng.choice(1 << BITS, 20_000, replace=False).astype(np.uint64)
    weights = 1 / np.arange(1, 20_001) ** 1.2
    weights /= weights.sum()
    base = rng.permutation(20_000)
    found = []
    for _ in range(PARTIES):
        order = base.copy()
        moved = np.flatnonzero(rng.random(20_000) < mix)
        order[moved] = order[rng.permutation(moved)]
        count = int(60_000 * rng.uniform(0.4, 1.6))
        found.append(universe[order[rng.choice(20_000, count, p=weights)]])
    return found


def shakespeare(options: Options) -> list[U64]:
    """Words of each speaker; speakers by falling size to the smallest party."""
    path = options.data / "tinyshakespeare.jsonl.gz"
    if not path.exists():
        raise DataMissing(f"{path.name} is not in {options.data}")
    said: dict[str, list[str]] = collections.defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            said[row["speaker"]] += re.findall("[a-z]{4,}", row["text"].lower())
    parties: list[list[str]] = [[] for _ in range(PARTIES)]
    for words in sorted(said.values(), key=len, reverse=True):
        min(parties, key=len).extend(words)
    return [np.repeat(Letters().encode(words), 4) for words in parties]


WORDS_OF: Final = """
import json, re, sys
from wordfreq import top_n_list, word_frequency
made = {}
for language in sys.argv[1:]:
    words = [w for w in top_n_list(language, 20000) if re.fullmatch("[a-z]{3,}", w)]
    made[language] = [(w, word_frequency(w, language)) for w in words]
print(json.dumps(made))
"""


def language_words() -> dict[str, tuple[U64, NDArray[np.float64]]]:
    """Codes and shares of each language's words.

    Raises:
        PeerMissing: the word lists could not be installed.
    """
    wanted = sorted({one for many in LANGUAGES.values() for one in many})
    done = subprocess.run(
        [peers.python_of(*peers.WORDFREQ), "-c", WORDS_OF, *wanted],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for language, pairs in json.loads(done.stdout).items():
        shares = np.array([share for _, share in pairs])
        codes = Letters().encode([word for word, _ in pairs])
        found[language] = (codes, shares / shares.sum())
    return found


def languages(
    rng: np.random.Generator, names: list[str], words: Mapping[str, tuple[U64, NDArray[np.float64]]]
) -> list[U64]:
    """A party a language, words drawn by frequency."""
    found = []
    for name in names:
        codes, shares = words[name]
        count = int(60_000 * rng.uniform(0.4, 1.6))
        found.append(codes[rng.choice(len(codes), count, p=shares)])
    return found


def f1(found: list[int], parties: list[U64], k: int) -> float:
    """Share of the k most frequent that were found."""
    codes, counts = np.unique(np.concatenate(parties), return_counts=True)
    true = {int(code) for code in codes[np.argsort(-counts, kind="stable")][:k]}
    return len(set(found) & true) / k


def case(parties: list[U64], k: int, epsilon: float, seed: int) -> dict[str, float]:
    """F1 of each algorithm on one draw."""
    five = Search(bits=BITS, k=k, epsilon=epsilon)
    ten = Search(bits=BITS, k=k, epsilon=epsilon, levels=10)

    def drawn(search: Search) -> list[Drawn]:
        rng = np.random.default_rng(seed)
        return [Drawn(search, codes, rng) for codes in parties]

    scorers = drawn(five)
    ours = [hit.code for hit in top_k_locally(five, scorers)]
    return {
        "ours": f1(ours, parties, k),
        "FedPEM": f1(fed_pem(five, scorers), parties, k),
        "shared trie": f1(shared_trie(five, scorers), parties, k),
        "TAP": f1(tap(ten, drawn(ten)), parties, k),
    }


def run(options: Options, report: Report) -> None:
    """Measure."""
    makers: dict[str, Maker] = {
        f"zipf{mix}": lambda rng, mix=mix: zipf(rng, mix / 10)  # type: ignore[misc]
        for mix in ZIPF
    }
    try:
        text = shakespeare(options)
        makers["Shakespeare"] = lambda _rng: text
    except DataMissing as error:
        report.missing("heavy hitters, Shakespeare", str(error))
    try:
        words = language_words()
        for name, many in LANGUAGES.items():
            makers[name] = lambda rng, many=many: languages(rng, many, words)  # type: ignore[misc]
    except (PeerMissing, subprocess.CalledProcessError) as error:
        report.missing("heavy hitters, languages", str(error))
    _measure(options, report, makers)


def _measure(
    options: Options,
    report: Report,
    makers: Mapping[str, Callable[[np.random.Generator], list[U64]]],
) -> None:
    means: dict[tuple[str, int, float], dict[str, float]] = {}
    for name, make in makers.items():
        for k in KS:
            for epsilon in EPSILONS:
                found = []
                for seed in SEEDS_QUICK if options.quick else SEEDS:
                    rng = np.random.default_rng(seed)
                    found.append(case(make(rng), k, epsilon, seed))
                means[name, k, epsilon] = {
                    who: statistics.mean(one[who] for one in found) for who in found[0]
                }
    ours = statistics.mean(one["ours"] for one in means.values())
    for who in ("FedPEM", "shared trie", "TAP"):
        report.value(
            f"heavy hitters, mean F1 over {len(means)} cases, beside {who}",
            ours,
            unit="F1",
            target=Target(">=", 0.63),
            yardstick=who,
            yardstick_value=statistics.mean(one[who] for one in means.values()),
        )
    gaps = {
        case: one["ours"] - max(v for w, v in one.items() if w != "ours")
        for case, one in means.items()
    }
    worst = min(gaps, key=lambda one: gaps[one])
    report.value(
        f"heavy hitters, worst gap to a case's best ({worst[0]}, k {worst[1]}, eps {worst[2]:g})",
        gaps[worst],
        unit="F1",
        target=Target(">=", -0.06),
    )
    if "Shakespeare" in makers:
        report.value(
            "heavy hitters, Shakespeare, k 10, eps 2",
            means["Shakespeare", 10, 2.0]["ours"],
            unit="F1",
            target=Target(">=", 0.5),
            yardstick="TAP",
            yardstick_value=means["Shakespeare", 10, 2.0]["TAP"] or None,
        )
