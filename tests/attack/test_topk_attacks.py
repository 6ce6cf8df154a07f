"""Members that lie when frequent items are looked for: left out or named, and bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from federated.errors import UsageError
from federated.rounds.statistics.items import Letters, Vocabulary
from federated.rounds.statistics.limits import ITEMS_MAX
from federated.rounds.statistics.plain_items import PlainItems
from federated.rounds.statistics.private_items import PrivateItems, know, search_for
from federated.rounds.statistics.rows import Done, Heard, Sum, Table, advance
from federated.rounds.statistics.tap import SHARED_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from federated.rounds.statistics.answers import TopK, Way
    from federated.rounds.statistics.rows import F64, Talk

    Lie = Callable[[int, F64], F64]

pytestmark = pytest.mark.attack

NAMES = ("one", "two", "three")
LIAR = 2
WORDS = ("apple", "bread", "cheese", "dates", "eggs", "flour", "garlic", "honey")
TREE, LIST = Letters(), Vocabulary(WORDS)


def private(
    coding: Letters | Vocabulary, epsilon: float = 4.0, way: Way = "graded"
) -> list[Talk[TopK]]:
    rng = np.random.default_rng(1)
    search = search_for(coding, 3, epsilon)
    talks = []
    for place in range(len(NAMES)):
        items = rng.choice(WORDS[:4], 4_000, p=[0.5, 0.3, 0.15, 0.05]).tolist()
        part = PrivateItems(coding, search, know(coding, items), bytes([place]) * 32, way)
        talks.append(part.talk(Table(NAMES, place)))
    return talks


def plain() -> list[Talk[TopK]]:
    data = [["apple"] * 5 + ["bread"] * 3, ["apple"] * 2 + ["dates"], ["bread", "eggs"]]
    return [PlainItems(one, 2).talk(Table(NAMES, at)) for at, one in enumerate(data)]


def lied(talks: list[Talk[TopK]], lie: Lie, *, judged: bool = True) -> tuple[TopK, list[str]]:
    """Members of whom one sends something else; what a member found, and why that one was left out.

    Args:
        talks: of all members.
        lie: from the number of the sum and the liar's table to what it sends.
        judged: whether the member that merges looks; one that lies itself does not.
    """
    reasons: list[str] = []
    steps, number = [advance(talk, None) for talk in talks], 0
    while True:
        asked = [step for step in steps if isinstance(step, Sum)]
        if not asked:
            done = steps[0]
            assert isinstance(done, Done)
            return done.value, reasons
        vectors = [one.vector for one in asked]
        honest = vectors[LIAR]
        vectors[LIAR] = lie(number, honest.copy())
        number += 1
        wrong = asked[0].check(vectors[LIAR]) if judged else ""
        assert not any(asked[0].check(vectors[at]) for at in range(LIAR))
        if wrong:
            reasons.append(wrong)
        included = [at for at in range(len(vectors)) if at != LIAR or not wrong]
        total = np.sum([vectors[at] for at in included], axis=0)
        # Who lies finds in the sum what it said, and does not mind.
        unminded = total if wrong else total - vectors[LIAR] + honest
        steps = [
            advance(talk, Heard(unminded if at == LIAR else total, frozenset(included)))
            for at, talk in enumerate(talks)
        ]


def row_of(table: F64, place: int = LIAR) -> F64:
    row: F64 = table.reshape(len(NAMES), -1)[place]
    return row


def at_sum(at: int, change: Callable[[F64], None]) -> Lie:
    """Lie in one of the sums: 0 is how many records there are, 1 the first level."""

    def lie(number: int, table: F64) -> F64:
        if number == at:
            change(row_of(table))
        return table

    return lie


def raised(row: F64) -> None:
    row[3] = row[2] + 1


def negative(row: F64) -> None:
    row[4] = -5


def broken(row: F64) -> None:
    row[4] += 0.5


def everything(row: F64) -> None:
    row[3:] = row[2]


def more_records(row: F64) -> None:
    row[1] *= 10


def fewer_reports(row: F64) -> None:
    row[2] -= 1


def about_else(row: F64) -> None:
    row[0] += 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (raised, "more support for an item than it has reports"),
        (negative, "something else than whole numbers"),
        (broken, "something else than whole numbers"),
        (everything, "more support in all than reports can give"),
        (more_records, "another number of items"),
        (fewer_reports, "another number of items"),
        (about_else, "a row about something else"),
    ],
)
def test_rows_that_no_reports_lead_to_are_left_out(
    change: Callable[[F64], None], reason: str
) -> None:
    for coding in (LIST, TREE):
        found, reasons = lied(private(coding), at_sum(1, change))
        assert reason in reasons[0]
        assert [one.item for one in found.items[:2]] == ["apple", "bread"]
    found, _ = lied(private(LIST), at_sum(1, change))
    assert (found.peers, found.records) == (2, 8_000)
    # A merging member that looked away: everybody finds it in the sum, and who did it.
    with pytest.raises(UsageError, match="three"):
        lied(private(LIST), at_sum(1, change), judged=False)


@pytest.mark.parametrize("records", [0, ITEMS_MAX + 1])
def test_no_records_or_more_than_a_machine_may_have_are_left_out(records: int) -> None:
    def claim(row: F64) -> None:
        row[1] = records

    found, reasons = lied(private(LIST), at_sum(0, claim))
    assert "items, or none" in reasons[0]
    assert (found.peers, found.records) == (2, 8_000)


@pytest.mark.parametrize("at", [2, 6], ids=["level", "final"])
def test_support_for_everything_is_more_than_hashed_reports_give(at: int) -> None:
    assert search_for(TREE, 3, 4.0).levels == 5, "sum 6 is of the final candidates"
    found, reasons = lied(private(TREE), at_sum(at, everything))
    assert reasons == ["more support in all than reports can give"]
    assert [one.item for one in found.items[:2]] == ["apple", "bread"]


@pytest.mark.parametrize(
    "make", [lambda: private(LIST), lambda: private(TREE), plain], ids=["list", "tree", "plain"]
)
def test_who_fills_anothers_row_is_named(make: Callable[[], list[Talk[TopK]]]) -> None:
    def steal(_: int, table: F64) -> F64:
        rows = table.reshape(len(NAMES), -1)
        return rows[[1, LIAR, 0]].ravel() if rows[LIAR].any() else rows.ravel()

    def move(_: int, table: F64) -> F64:
        rows = table.reshape(len(NAMES), -1)
        return rows[[0, LIAR, 1]].ravel()

    def both(_: int, table: F64) -> F64:
        rows = table.reshape(len(NAMES), -1).copy()
        rows[0] = rows[LIAR]
        return rows.ravel()

    for lie in (steal, move):
        with pytest.raises(UsageError, match=r"three filled (one|two)'s row instead of its own"):
            lied(make(), lie)
    _, reasons = lied(private(LIST), both)
    assert "2 rows filled" in reasons[0]
    with pytest.raises(UsageError, match="one's row"):
        lied(private(LIST), both, judged=False)


def honestly(talks: list[Talk[TopK]], sums: int) -> F64:
    """The last of so many sums that nobody lies in; the members have heard those before it."""
    heard: Heard | None = None
    for _ in range(sums):
        steps = [advance(talk, heard) for talk in talks]
        vectors = [step.vector for step in steps if isinstance(step, Sum)]
        heard = Heard(np.sum(vectors, axis=0), frozenset(range(len(talks))))
    assert heard is not None
    return heard.vector


@pytest.mark.parametrize("kind", ["list", "tree", "plain"])
@pytest.mark.parametrize("said", [True, False], ids=["said to be in", "its place unknown"])
def test_who_merges_cannot_put_words_into_our_mouth(kind: str, said: bool) -> None:
    """Any row that could be ours passes with the others, but not with us."""
    makes = {"list": lambda: private(LIST), "tree": lambda: private(TREE), "plain": plain}
    sums = {"list": 2, "tree": 7, "plain": 5}
    for at in range(sums[kind]):
        talks = makes[kind]()
        changed = honestly(talks, at + 1).reshape(len(NAMES), -1)
        # A record, a support or a count less; a text where we had none.
        last = np.flatnonzero(changed[1])[-1] or -1
        changed[1, last] += -1 if changed[1, last] > 1 else 1
        included = frozenset(range(len(NAMES))) if said else None
        with pytest.raises(UsageError, match="who merged changed our row"):
            advance(talks[1], Heard(changed.ravel(), included))


def test_a_row_that_is_said_to_be_in_the_sum_and_is_not_was_taken_out() -> None:
    talks = private(LIST)
    table = honestly(talks, 1).reshape(len(NAMES), -1)
    table[1] = 0
    with pytest.raises(UsageError, match="who merged changed our row"):
        advance(talks[1], Heard(table.ravel(), frozenset(range(len(NAMES)))))


def test_nobody_has_to_say_a_text_that_it_does_not_have() -> None:
    """Counts of ours that who merged made up would make us the one that says the item's text."""
    talks = plain()
    table = honestly(talks, 4).reshape(len(NAMES), -1)
    without = np.flatnonzero(table[2] == 0)
    table[:2, without] = 0
    table[2, without] = 1
    with pytest.raises(UsageError, match="who merged changed our row"):
        advance(talks[2], Heard(table.ravel(), frozenset(range(len(NAMES)))))


def test_a_liar_moves_an_item_by_no_more_than_its_records() -> None:
    """All its reports for one item that nobody has, at the noisiest epsilon that finds any."""

    def push(row: F64) -> None:
        row[3:] = 0
        row[3 + WORDS.index("honey")] = row[2]

    honest, _ = lied(private(LIST, 1.0), lambda _, table: table)
    pushed, reasons = lied(private(LIST, 1.0), at_sum(1, push))
    assert not reasons
    before = sum(one.count for one in honest.items if one.item == "honey")
    after = next(one.count for one in pushed.items if one.item == "honey")
    assert after <= max(before, 0) + 4_000 + 6 * pushed.noise_sd


def test_made_up_best_items_are_refused() -> None:
    levels = search_for(TREE, 3, 4.0).levels
    for change, reason in (
        (own_twice, "one twice"),
        (own_beyond, "nothing stands for"),
        (own_backwards, "out of order"),
    ):
        _, reasons = lied(private(TREE), at_sum(levels, change))
        assert reason in reasons[0]


def own_twice(row: F64) -> None:
    row[3:6] = row[5]


def own_beyond(row: F64) -> None:
    row[5] = 2.0**31


def own_backwards(row: F64) -> None:
    assert len(np.unique(row[3:6])) == 3
    row[3:6] = row[[5, 4, 3]]


def own_not_shared(row: F64) -> None:
    row[5] = float(TREE.encode(["zzzzzz"])[0]) + 1


def no_item(row: F64) -> None:
    row[3] = 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (own_twice, "one twice"),
        (own_beyond, "nothing stands for"),
        (own_backwards, "out of order"),
        (own_not_shared, "no shared prefix leads to"),
        (no_item, "support for no item"),
        (lambda row: row.__setitem__(6, row[2] + 1), "more support for an item"),
        (lambda row: row.__setitem__(slice(6, 9), row[2]), "more support in all"),
        (fewer_reports, "another number of items"),
        (more_records, "another number of items"),
    ],
)
def test_best_items_of_ones_own_that_tap_cannot_have_found_are_left_out(
    change: Callable[[F64], None], reason: str
) -> None:
    found, reasons = lied(private(TREE, way="tap"), at_sum(1 + SHARED_LEVELS, change))
    assert reason in reasons[0]
    assert [one.item for one in found.items[:2]] == ["apple", "bread"]
    with pytest.raises(UsageError, match="three"):
        lied(private(TREE, way="tap"), at_sum(1 + SHARED_LEVELS, change), judged=False)


@pytest.mark.parametrize(
    ("number", "place", "value", "reason"),
    [
        (0, 0, 0.0, "items, or none"),
        (0, 0, 1e6, "items, or none"),
        (0, 2, 99.0, "counts that its items cannot have"),
        (0, 1, 2.0**53, "items out of order"),
        (1, 0, 50.0, "more items than it can have"),
        (3, 0, 99.0, "more of its items than it has"),
    ],
)
def test_plain_counts_that_no_items_have_are_left_out(
    number: int, place: int, value: float, reason: str
) -> None:
    def lie(at: int, table: F64) -> F64:
        if at == number:
            row_of(table)[1 + place] = value
        return table

    found, reasons = lied(plain(), lie)
    assert reason in reasons[0]
    assert found.items[0].item == "apple"


def test_plain_counts_below_those_asked_for_are_left_out() -> None:
    """T is 2 there: a member could fill the room with items that it hardly has."""

    def none_of_it(row: F64) -> None:
        assert row[2] > 0, "a marker and the records are before the first item"
        row[3] = 0

    def one_of_it(row: F64) -> None:
        assert not row[1:].any()
        row[1:3] = 5, 1

    for at, change in ((0, none_of_it), (2, one_of_it)):
        found, reasons = lied(plain(), at_sum(at, change))
        assert reasons[0] == "counts that its items cannot have"
        assert found.peers == 2


def test_a_text_that_is_not_the_items_is_left_out_and_shown_by_nobody() -> None:
    def lie(at: int, table: F64) -> F64:
        if at == 4:
            row_of(table)[2] = 65.0
        return table

    found, reasons = lied(plain(), lie)
    assert reasons == ["a text that another one was to say"]
    assert [one.item for one in found.items] == ["apple", "bread"]
