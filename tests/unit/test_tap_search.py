"""TAP among members over the reports that our own search uses: the same as in one process."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federated.rounds.statistics import heavy_hitters as hh
from federated.rounds.statistics.items import Letters, Vocabulary
from federated.rounds.statistics.private_items import PrivateItems, keyed, know, search_for
from federated.rounds.statistics.rows import Done, Heard, Sum, Table, advance, play
from federated.rounds.statistics.tap import SHARED_LEVELS, tap

if TYPE_CHECKING:
    from federated.rounds.statistics.answers import TopK, Way
    from federated.rounds.statistics.rows import Talk

WORDS = ("apple", "bread", "cheese", "dates", "eggs", "flour", "garlic", "honey")
SHARES = np.array([0.40, 0.25, 0.10, 0.08, 0.07, 0.05, 0.03, 0.02])
LIST = Vocabulary((*WORDS, "kiwi"))
LONG_LIST = Vocabulary((*WORDS, *(f"spare {number}" for number in range(2_500))))
CODINGS = pytest.mark.parametrize(
    "coding", [Letters(), LIST, LONG_LIST], ids=["tree", "one level", "two levels"]
)


def people(members: int, records: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [rng.choice(WORDS, records, p=SHARES).tolist() for _ in range(members)]


def talks_of(
    data: list[list[str]], coding: Letters | Vocabulary, k: int, epsilon: float, way: Way = "tap"
) -> list[Talk[TopK]]:
    search = search_for(coding, k, epsilon)
    names = [str(place) for place in range(len(data))]
    return [
        PrivateItems(coding, search, know(coding, items), bytes([at]) * 32, way).talk(
            Table(names, at)
        )
        for at, items in enumerate(data)
    ]


@CODINGS
@pytest.mark.parametrize("members", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_all_members_find_what_tap_finds_in_one_process(
    coding: Letters | Vocabulary, members: int, seed: int
) -> None:
    data = people(members, 6_000, seed)
    found = play(talks_of(data, coding, 3, 2.0))
    assert all(one == found[0] for one in found)
    search = search_for(coding, 3, 2.0)
    scorers = [
        hh.Reports(search, codes, keyed(bytes([at]) * 32, coding, search, codes))
        for at, items in enumerate(data)
        for codes in [know(coding, items).codes]
    ]
    wanted = [coding.decode(code) for code in tap(search, scorers)]
    assert [one.item for one in found[0].items] == wanted


@CODINGS
def test_what_all_found_by_themselves_is_near_the_plain_counts(
    coding: Letters | Vocabulary,
) -> None:
    data = people(3, 20_000, 4)
    found = play(talks_of(data, coding, 2, 4.0))[0]
    counts = Counter(word for items in data for word in items)
    assert [one.item for one in found.items] == ["apple", "bread"]
    for one in found.items:
        assert abs(one.count - counts[one.item]) < 6 * one.sd
        assert one.sure
    assert (found.records, found.peers, found.epsilon) == (60_000, 3, 4.0)
    assert "TAP" in found.mechanism


def test_noise_alone_is_called_so_however_many_members_add_theirs_up() -> None:
    """Each said a code because its noise lifted it: the sum of many such is far above its own."""
    coding = Vocabulary(tuple(f"item {number}" for number in range(40)))
    true = [coding.decode(code) for code in range(4)]
    false = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        data = [rng.choice(true, 1_000).tolist() for _ in range(64)]
        found = play(talks_of(data, coding, 20, 1.0))[0]
        false += [one for one in found.items if one.item not in true]
        assert all(one.sure for one in found.items[:2])
    assert not any(one.sure for one in false)
    assert float(np.mean([one.count / one.sd for one in false])) > 3, "they would look sure"


def test_the_reports_are_those_of_our_own_search() -> None:
    """Asking both ways costs epsilon once: all that leaves is counts of these very reports."""
    data, search = people(2, 6_000, 5), search_for(Letters(), 3, 2.0)
    ways: tuple[Way, Way] = ("graded", "tap")
    both = [
        PrivateItems(Letters(), search, know(Letters(), data[0]), bytes(32), way)._reports
        for way in ways
    ]
    for level in range(search.levels):
        asked = Letters().encode(WORDS) >> np.uint64(search.bits - search.prefix_bits(level))
        assert np.array_equal(*[reports.support(level, np.unique(asked)) for reports in both])
    for ours, other in zip(
        talks_of(data, Letters(), 3, 2.0, "graded"), talks_of(data, Letters(), 3, 2.0), strict=True
    ):
        first, second = (advance(talk, None) for talk in (ours, other))
        assert isinstance(first, Sum)
        assert isinstance(second, Sum)
        assert np.array_equal(first.vector, second.vector)
        records = np.zeros_like(first.vector).reshape(2, -1)
        records[:] = first.vector.reshape(2, -1).max(axis=0)
        heard = Heard(records.ravel(), frozenset({0, 1}))
        first, second = (advance(talk, heard) for talk in (ours, other))
        assert isinstance(first, Sum)
        assert isinstance(second, Sum)
        assert np.array_equal(first.vector, second.vector)


def test_who_is_missed_in_the_last_sum_counts_for_no_item() -> None:
    data = people(3, 20_000, 6)
    talks = talks_of(data, Letters(), 2, 4.0)
    steps = [advance(talk, None) for talk in talks]
    for number in range(2 + SHARED_LEVELS):
        vectors = [step.vector for step in steps if isinstance(step, Sum)]
        late = number == 1 + SHARED_LEVELS
        included = [0, 1] if late else [0, 1, 2]
        total = np.sum([vectors[at] for at in included], axis=0)
        steps = [advance(talk, Heard(total, frozenset(included))) for talk in talks]
    answers = [step.value for step in steps if isinstance(step, Done)]
    assert len(answers) == 3
    assert answers[0] == answers[1] == answers[2]
    counts = Counter(word for items in data[:2] for word in items)
    for one in answers[0].items:
        assert abs(one.count - counts[one.item]) < 6 * one.sd
    assert (answers[0].peers, answers[0].records) == (2, 40_000)
