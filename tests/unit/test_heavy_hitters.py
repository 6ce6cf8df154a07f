"""Heavy hitters: real reports find what is frequent; what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.errors import UsageError
from federated.rounds.statistics.heavy_hitters import (
    Reports,
    Search,
    best,
    final_candidates,
    own_top,
    ranked,
    read_rows,
    row_of,
    shared_next,
    smallest_share,
    top_k_locally,
    unlikeness,
)
from federated.rounds.statistics.items import Letters
from federated.rounds.statistics.tap import fed_pem, shared_trie, tap
from p2p.errors import DecodeError

WORDS = ["covey", "daemon", "memory", "trust", "round", "peer", "record", "group"]
SEARCH = Search(bits=30, k=5, epsilon=4.0)


def members(count: int, records: int, seed: int, search: Search = SEARCH) -> list[Reports]:
    """Members with words of falling frequency, and noise of words that occur once."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        shares = np.array([0.3, 0.2, 0.15, 0.1, 0.08, 0.02, 0.01, 0.01])
        frequent = rng.choice(len(WORDS), int(records * shares.sum()), p=shares / shares.sum())
        codes = Letters().encode([WORDS[index] for index in frequent])
        rare = rng.integers(0, 1 << 30, records - len(codes)).astype(np.uint64)
        made.append(Reports(search, np.concatenate([codes, rare]), rng.bytes))
    return made


def test_the_frequent_words_of_several_members_are_found() -> None:
    hits = top_k_locally(SEARCH, members(4, 8000, 1))
    assert {Letters().decode(hit.code) for hit in hits} == set(WORDS[:5])
    assert all(hit.sure for hit in hits)
    first = hits[0]
    assert Letters().decode(first.code) == "covey"
    assert abs(first.count - 0.3 * 32_000) < 6 * first.sd


def test_the_baselines_find_them_too_and_tap_with_ten_levels() -> None:
    wanted = set(Letters().encode(WORDS[:3]).tolist())
    scorers = members(4, 8000, 2)
    assert wanted <= set(fed_pem(SEARCH, scorers))
    assert wanted <= set(shared_trie(SEARCH, scorers))
    ten = Search(bits=30, k=5, epsilon=4.0, levels=10)
    assert wanted <= set(tap(ten, members(4, 8000, 3, ten)))


def test_reports_are_drawn_once_and_say_the_same_again() -> None:
    scorer = members(1, 2000, 4)[0]
    candidates = SEARCH.first()
    assert np.array_equal(row_of(scorer, 0, candidates), row_of(scorer, 0, candidates))
    assert sum(scorer.reports(level) for level in range(SEARCH.levels)) == scorer.records == 2000


def test_everybody_computes_the_same_from_the_same_rows() -> None:
    scorers = members(3, 4000, 5)
    candidates = SEARCH.first()
    rows = np.array([row_of(scorer, 0, candidates) for scorer in scorers])
    one = shared_next(SEARCH, 0, read_rows(SEARCH, 0, candidates, rows))
    two = shared_next(SEARCH, 0, read_rows(SEARCH, 0, candidates, rows.copy()))
    assert np.array_equal(one, two)
    assert np.array_equal(one, np.sort(one))


def test_a_member_that_died_counts_nothing() -> None:
    scorers = members(3, 6000, 6)
    candidates, rho = SEARCH.first(), 0.0
    for level in range(SEARCH.levels):
        rows = np.array([row_of(scorer, level, candidates) for scorer in scorers])
        rows[2] = 0
        view = read_rows(SEARCH, level, candidates, rows)
        rho = unlikeness(view) if level == 0 else rho
        if level + 1 < SEARCH.levels:
            candidates = shared_next(SEARCH, level, view)
    own = [own_top(SEARCH, scorer) for scorer in scorers[:2]]
    codes = final_candidates(SEARCH, view, own)
    rows = np.array([row_of(scorer, SEARCH.levels - 1, codes) for scorer in scorers])
    rows[2] = 0
    hits = ranked(SEARCH, read_rows(SEARCH, SEARCH.levels - 1, codes, rows), rho)
    assert {"covey", "daemon"} <= {Letters().decode(hit.code) for hit in hits}


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, np.nan), (1, np.inf), (2, -1.0), (3, 0.5), (1, 1e9), (5, 1e9)],
    ids=["nan", "endless", "negative", "broken", "more reports", "more support"],
)
def test_what_no_reports_can_say_is_refused_with_the_member(place: int, value: float) -> None:
    candidates = SEARCH.first()
    rows = np.array([row_of(scorer, 0, candidates) for scorer in members(2, 1000, 7)])
    rows[1, place] = value
    with pytest.raises(DecodeError, match="member 1"):
        read_rows(SEARCH, 0, candidates, rows)


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(DecodeError, match="length"):
        read_rows(SEARCH, 0, SEARCH.first(), np.zeros((2, 5)))


def test_unlike_members_are_seen_and_like_ones_are_not() -> None:
    alike = members(4, 20_000, 8)
    candidates = SEARCH.first()
    rows = np.array([row_of(scorer, 0, candidates) for scorer in alike])
    assert unlikeness(read_rows(SEARCH, 0, candidates, rows)) < 0.1
    rng = np.random.default_rng(9)
    unlike = [
        Reports(SEARCH, np.repeat(Letters().encode([word]), 20_000), rng.bytes)
        for word in ("apple", "melon", "zebra", "tiger")
    ]
    rows = np.array([row_of(scorer, 0, candidates) for scorer in unlike])
    assert unlikeness(read_rows(SEARCH, 0, candidates, rows)) > 0.5


def test_what_cannot_answer_is_said_before_anything_leaves() -> None:
    with pytest.raises(UsageError, match="say nothing"):
        smallest_share(SEARCH, 900)
    assert 0 < smallest_share(SEARCH, 50_000) < smallest_share(SEARCH, 10_000) < 1
    for fields in ({"k": 0}, {"epsilon": 0.0}, {"levels": 31}, {"bits": 63}):
        with pytest.raises(UsageError):
            Search(**{"bits": 30, "k": 5, "epsilon": 2.0, "levels": 5, **fields})  # type: ignore[arg-type]


@given(st.integers(1, 62), st.integers(1, 62), st.integers(0, 2**62 - 1))
def test_children_begin_with_their_parents(bits: int, levels: int, code: int) -> None:
    levels = min(levels, bits, 8)
    search = Search(bits=bits, k=1, epsilon=1.0, levels=levels)
    code &= (1 << bits) - 1
    for level in range(1, levels):
        step = search.prefix_bits(level) - search.prefix_bits(level - 1)
        if step > 12:
            return
        parent = code >> (bits - search.prefix_bits(level - 1))
        children = search.children(np.array([parent], np.uint64), level)
        assert len(children) == 1 << step
        assert code >> (bits - search.prefix_bits(level)) in set(children.tolist())
    assert search.prefix_bits(levels - 1) == bits


def test_of_equal_scores_the_lower_code_is_better() -> None:
    codes = np.array([9, 3, 5], np.uint64)
    assert best(np.array([1.0, 1.0, 2.0]), codes, 2).tolist() == [5, 3]
