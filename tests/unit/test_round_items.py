"""Items of heavy hitters: words and vocabularies to codes and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.errors import UsageError
from federated.rounds.statistics.items import LETTERS_BITS, Letters, Vocabulary


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)))
def test_words_come_back_by_their_first_six_letters(words: list[str]) -> None:
    codes = Letters().encode(words)
    assert all(int(code) < 1 << LETTERS_BITS for code in codes)
    assert [Letters().decode(int(code)) for code in codes] == [word[:6] for word in words]


def test_a_letter_is_five_bits_the_first_one_highest() -> None:
    assert Letters().encode(["a", "ABCDEFG"]).tolist() == [
        1 << 25,
        0b00001_00010_00011_00100_00101_00110,
    ]


@pytest.mark.parametrize("word", ["", "it's", "naïve", "a b", "1st"])
def test_what_is_no_word_is_refused_by_its_place(word: str) -> None:
    with pytest.raises(UsageError, match="item 2, "):
        Letters().encode(["fine", word])


@given(st.integers(0, (1 << LETTERS_BITS) - 1))
def test_every_code_can_be_shown(code: int) -> None:
    assert len(Letters().decode(code)) <= 6


def test_a_vocabulary_gives_places() -> None:
    three = Vocabulary(("red", "green", "blue"))
    assert three.bits == 2
    assert three.encode(["blue", "red"]).tolist() == [2, 0]
    assert [three.decode(code) for code in (0, 2, 3)] == ["red", "blue", "?"]
    with pytest.raises(UsageError, match="item 1, 'pink': not in the vocabulary"):
        three.encode(["pink"])


def test_other_vocabularies_are_told_apart() -> None:
    lists = [("ab", "c"), ("a", "bc"), ("c", "ab"), ("ab", "c", "d")]
    assert len({Vocabulary(one).public for one in lists} | {Letters.public}) == 5


@pytest.mark.parametrize(
    ("items", "match"),
    [
        (("one",), "give 2"),
        (("a", "a"), "twice"),
        (("a", ""), "item 2"),
        (("x" * 201, "b"), "item 1"),
    ],
)
def test_a_bad_vocabulary_is_refused(items: tuple[str, ...], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Vocabulary(items)
