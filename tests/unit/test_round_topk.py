"""Frequent items among members, sum by sum: the noise, the exact way, and what is refused."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from daemon.methods.fed_topk import TopKParams
from federated.errors import RoundError, UsageError
from federated.rounds.statistics import heavy_hitters as hh
from federated.rounds.statistics.exact import are_whole
from federated.rounds.statistics.items import ITEM_CHARS_MAX, Letters, Vocabulary
from federated.rounds.statistics.limits import ITEMS_MAX, K_MAX
from federated.rounds.statistics.plain_items import TEXT_BYTES_MAX, PlainItems, code_of
from federated.rounds.statistics.private_items import (
    PrivateItems,
    keyed,
    know,
    search_for,
)
from federated.rounds.statistics.rows import Done, Heard, Sum, Table, advance, play

if TYPE_CHECKING:
    from federated.rounds.statistics.answers import TopK
    from federated.rounds.statistics.rows import Talk

WORDS = ("apple", "bread", "cheese", "dates", "eggs", "flour", "garlic", "honey")
SHARES = np.array([0.40, 0.25, 0.10, 0.08, 0.07, 0.05, 0.03, 0.02])
NAMES = ("one", "two", "three")


def people(records: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [rng.choice(WORDS, records, p=SHARES).tolist() for _ in NAMES]


def private(
    data: list[list[str]], coding: Letters | Vocabulary, k: int, epsilon: float, secret: int = 0
) -> list[TopK]:
    search = search_for(coding, k, epsilon)
    parts = [
        PrivateItems(coding, search, know(coding, items), bytes([secret + place]) * 32)
        for place, items in enumerate(data)
    ]
    return play([part.talk(Table(NAMES, place)) for place, part in enumerate(parts)])


def plain(data: list[list[str]], k: int) -> list[TopK]:
    names = [str(place) for place in range(len(data))]
    return play([PlainItems(items, k).talk(Table(names, at)) for at, items in enumerate(data)])


@pytest.mark.parametrize("coding", [Letters(), Vocabulary((*WORDS, "kiwi"))], ids=["tree", "list"])
def test_every_member_finds_the_same_near_the_plain_counts(coding: Letters | Vocabulary) -> None:
    data = people(4_000, 3)
    found = private(data, coding, 3, 4.0)
    assert found[0] == found[1] == found[2]
    counts = Counter(word for items in data for word in items)
    assert [one.item for one in found[0].items[:2]] == ["apple", "bread"]
    for one in found[0].items:
        assert abs(one.count - counts[one.item]) < 6 * one.sd
        assert one.sure == (one.count > found[0].stands_out)
    assert found[0].stands_out >= 3 * found[0].noise_sd
    assert (found[0].records, found[0].peers, found[0].epsilon) == (12_000, 3, 4.0)


@pytest.mark.parametrize("spare", [0, 2_500], ids=["one level", "two levels"])
def test_the_stated_deviation_is_that_of_many_draws(spare: int) -> None:
    """Of the noise and, with several levels, of which records report at the last one."""
    data = people(2_500, 4)
    counts = Counter(word for items in data for word in items)
    coding = Vocabulary((*WORDS, *(f"spare {number}" for number in range(spare))))
    assert search_for(coding, 2, 3.0).levels == 1 + bool(spare)
    errors = [
        (one.count - counts[one.item]) / one.sd
        for secret in range(40)
        for one in private(data, coding, 2, 3.0, 3 * secret)[0].items
    ]
    # 80 squares of a unit normal: their mean is within 6 sqrt(2/80) of 1.
    assert abs(float(np.mean(np.square(errors))) - 1) < 6 * math.sqrt(2 / len(errors))


def test_the_same_records_have_the_same_noise_and_others_have_other() -> None:
    data, coding = people(3_000, 5), Vocabulary(WORDS)
    once = private(data, coding, 3, 2.0)
    backwards = [items[::-1] for items in data]
    assert private(backwards, coding, 3, 2.0) == once
    assert private(data, coding, 3, 2.5) != once
    assert private(data, coding, 3, 2.0, secret=9) != once
    changed = [[*data[0][:-1], "kiwi"], *data[1:]]
    assert private(changed, coding, 3, 2.0) != once


def test_noise_is_drawn_by_the_secret_and_all_that_reports_depend_on() -> None:
    """Two of the same would tell their difference: of each other one the noise is another one."""
    items, coding = people(100, 5)[0], Vocabulary(WORDS)

    def drawn(
        items: list[str] = items, coding: Letters | Vocabulary = coding, epsilon: float = 2.0,
        secret: bytes = bytes(32), k: int = 3,
    ) -> tuple[bytes, bytes]:  # fmt: skip
        search = search_for(coding, k, epsilon)
        source = keyed(secret, coding, search, know(coding, items).codes)
        return source(32), source(32)

    spare = (*WORDS[:-1], "spare")
    assert Vocabulary(spare).bits == coding.bits
    known = [item for item in items if item != WORDS[-1]]
    assert know(Vocabulary(spare), known).codes.tolist() == know(coding, known).codes.tolist()
    others = [
        drawn(),
        drawn([*items[:-1], "kiwi"]),
        drawn(items[1:]),
        drawn(epsilon=2.5),
        drawn(epsilon=math.nextafter(2.0, 3.0)),
        drawn(secret=bytes(31) + b"\1"),
        drawn(secret=b"\1" + bytes(31)),
        drawn(known),
        drawn(known, Vocabulary(spare)),
        drawn(known, Letters()),
    ]
    pieces = [piece for one in others for piece in one]
    assert len(set(pieces)) == len(pieces)
    assert drawn() == drawn(items[::-1], k=7) == others[0]


@pytest.mark.parametrize("coding", [Letters(), Vocabulary(WORDS)], ids=["tree", "list"])
def test_another_k_is_no_reason_to_draw_anew(coding: Letters | Vocabulary) -> None:
    known = know(coding, people(3_000, 5)[0])
    reports = [
        PrivateItems(coding, search_for(coding, k, 2.0), known, bytes(32))._reports
        for k in (1, 3, 8)
    ]
    search = search_for(coding, 8, 2.0)
    for level in range(search.levels):
        candidates = search.first()[:50]
        told = [one.support(level, candidates).tolist() for one in reports]
        assert told[0] == told[1] == told[2]


def test_items_without_a_code_are_reported_like_the_others_and_never_found() -> None:
    coding = Vocabulary(WORDS)
    data = [[*items, *["secret"] * 2_000] for items in people(3_000, 6)]
    found = private(data, coding, 8, 4.0)
    assert {one.item for one in found[0].items} == set(WORDS)
    assert [one.others for one in found] == [2_000] * 3
    assert found[0].records == 15_000


def test_what_could_say_nothing_ends_before_a_report_leaves() -> None:
    coding = Letters()
    search = search_for(coding, 5, 1.0)
    part = PrivateItems(coding, search, know(coding, ["apple"] * 500), bytes(32))
    talk = part.talk(Table(NAMES, 0))
    first = advance(talk, None)
    assert isinstance(first, Sum)
    assert np.count_nonzero(first.vector) == 2, "a marker, and how many records"
    with pytest.raises(RoundError, match="say nothing at epsilon 1"):
        private([["apple"] * 500] * 3, coding, 5, 1.0)


def test_what_cannot_be_asked_is_refused_at_home() -> None:
    with pytest.raises(UsageError, match="have no code"):
        know(Letters(), ["https://a.example/"] * 10 + ["word"] * 9)
    with pytest.raises(UsageError, match="200,001 items"):
        know(Letters(), ["word"] * (ITEMS_MAX + 1))
    with pytest.raises(UsageError, match="give 1 to"):
        know(Letters(), [])
    with pytest.raises(UsageError, match="has 8 items"):
        search_for(Vocabulary(WORDS), 9, 2.0)
    with pytest.raises(UsageError, match="epsilon"):
        search_for(Letters(), 9, 9.0)
    with pytest.raises(UsageError, match="characters"):
        PlainItems(["x" * (ITEM_CHARS_MAX + 1)], 1)


def test_limits_are_set_in_one_place_and_told_as_they_are() -> None:
    root = Path(__file__).parents[2]
    pattern = re.compile(r"^(ITEMS_MAX|K_MAX)\b.* = ", re.MULTILINE)
    places = [
        path.relative_to(root).as_posix()
        for files in ("federated/rounds/statistics/*.py", "daemon/**/fed_*.py")
        for path in root.glob(files)
        if pattern.search(path.read_text())
    ]
    assert places == ["federated/rounds/statistics/limits.py"]
    assert f"at most {ITEMS_MAX:,}; they" in str(TopKParams.__doc__)
    assert f"records (1 to {ITEMS_MAX:,})" in (root / "docs/specs/rounds.md").read_text()
    with pytest.raises(UsageError, match=f"give 1 to {K_MAX}"):
        search_for(Letters(), K_MAX + 1, 2.0)
    with pytest.raises(UsageError, match=f"{ITEMS_MAX + 1:,} items"):
        PlainItems(["word"] * (ITEMS_MAX + 1), 1)


@pytest.mark.parametrize(
    ("numbers", "whole"),
    [
        ([], True),
        ([0.0, 3.0, -2.0, 2.0**60], True),
        ([1.0, 0.5], False),
        ([math.nan], False),
        ([math.inf], False),
        ([-math.inf], False),
    ],
)
def test_numbers_that_add_up_exactly_are_whole(numbers: list[float], whole: bool) -> None:
    assert are_whole(np.array(numbers)) is whole


@pytest.mark.parametrize(
    ("bits", "levels"), [(1, 1), (11, 1), (12, 2), (13, 3), (18, 3), (24, 4), (30, 5), (62, 5)]
)
def test_few_levels_where_few_do(bits: int, levels: int) -> None:
    assert hh.levels_for(bits) == levels


def test_plain_counts_are_those_of_all_the_data_together() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        data = [
            [f"wört {int(rng.paretovariate(0.5)) % 60}" for _ in range(rng.randint(1, 200))]
            for _ in range(rng.randint(1, 5))
        ]
        k = rng.randint(1, 12)
        found = plain(data, k)
        counts = Counter(item for items in data for item in items)
        wanted = sorted(counts.items(), key=lambda one: (-one[1], code_of(one[0])))[:k]
        for one in found:
            assert [(hit.item, hit.count) for hit in one.items] == wanted


def test_plain_texts_of_any_length_and_script_come_whole() -> None:
    items = ["\U0001f98a" * ITEM_CHARS_MAX, "é" * 7, "a\0b", "x"]
    assert len(items[0].encode()) == TEXT_BYTES_MAX
    found = plain([items * 2, items, ["x"]], 4)
    assert {one.item: one.count for one in found[2].items} == dict.fromkeys(items[:3], 3.0) | {
        "x": 4.0
    }


def test_plain_with_a_vocabulary_counts_nothing_else() -> None:
    part = PlainItems(["apple", "apple", "pear"], 2, Vocabulary(("apple", "bread")))
    found = play([part.talk(Table(("one",), 0))])[0]
    assert [(one.item, one.count) for one in found.items] == [("apple", 2.0)]
    assert (found.others, found.records) == (1, 3)


def test_wide_rows_go_in_pieces_and_come_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = people(4_000, 3)
    whole = private(data, Letters(), 3, 4.0), plain(data, 3)
    monkeypatch.setattr("federated.rounds.statistics.rows.ELEMENTS_MAX", 900)
    assert (private(data, Letters(), 3, 4.0), plain(data, 3)) == whole


def missed(talks: list[Talk[TopK]], misses: set[tuple[int, int]]) -> list[TopK]:
    """Play with members that are not in some sums: (number of the sum, place)."""
    number, steps = 0, [advance(talk, None) for talk in talks]
    while asked := [step for step in steps if isinstance(step, Sum)]:
        here = frozenset(at for at in range(len(talks)) if (number, at) not in misses)
        total = np.sum([one.vector for at, one in enumerate(asked) if at in here], axis=0)
        for at, one in enumerate(asked):
            assert not one.check(asked[min(here)].vector), (number, at)
        # Who was late has the sum, and no list of who is in it.
        steps = [
            advance(talk, Heard(total, here if at in here else None))
            for at, talk in enumerate(talks)
        ]
        number += 1
    return [step.value for step in steps if isinstance(step, Done)]


def test_who_is_late_with_more_items_than_the_others_counts_no_more() -> None:
    """The others left no room for its items when they heard how many each has."""
    few, many = ["a"] * 9 + ["b"] * 5, [f"m{place % 20}" for place in range(200)]
    data = [few, few[1:], many]
    talks = [PlainItems(one, 2).talk(Table(NAMES, at)) for at, one in enumerate(data)]
    found = missed(talks, {(1, 2)})
    assert found[0] == found[1] == found[2]
    assert [(one.item, one.count) for one in found[0].items] == [("a", 17.0), ("b", 10.0)]
    assert (found[0].records, found[0].peers) == (27, 2)


def test_plain_counts_are_exact_for_those_that_were_in_all_sums() -> None:
    for seed in range(120):
        rng = random.Random(seed)
        k = rng.randint(1, 6)
        # Who is lost has most of the records: what is frequent without it is not with it.
        data = [
            [f"{rng.randrange(place + 1)} {int(rng.paretovariate(0.6)) % 30}" for _ in range(size)]
            for place, size in enumerate([rng.randint(1, 40), rng.randint(1, 40), 200])
        ]
        misses = {(rng.randrange(4), 2)} | ({(rng.randrange(7), 1)} if seed % 3 == 0 else set())
        talks = [PlainItems(one, k).talk(Table(NAMES, at)) for at, one in enumerate(data)]
        found = missed(talks, misses)
        assert found[0] == found[1] == found[2]
        left = [place for place in range(3) if place not in {at for _, at in misses}]
        if found[0].peers != len(left):  # lost when only texts were left, or after the end
            assert found[0].peers == len(left) + 1
            left = [0, 1]
        counts = Counter(item for place in left for item in data[place])
        wanted = sorted(counts.items(), key=lambda one: (-one[1], code_of(one[0])))[:k]
        assert found[0].records == counts.total()
        assert [one.count for one in found[0].items] == [count for _, count in wanted]
        for hit, (item, _) in zip(found[0].items, wanted, strict=True):
            assert hit.item in {item, "?"}


def test_too_many_items_of_one_frequency_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federated.rounds.statistics.plain_items.TABLE_MAX", 100)
    with pytest.raises(UsageError, match="cannot be told"):
        plain([[f"{side}{place}" for place in range(99)] for side in "ab"], 5)
