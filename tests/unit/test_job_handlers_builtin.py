"""The handlers that every node offers."""

from __future__ import annotations

import unicodedata
from hashlib import blake2b

import pytest

from federated.jobs.handlers.builtin import WORD_CHARS_MAX, Echo, Hash, WordCount, builtins
from tests.helpers.job_handlers import make_batch


def test_every_built_in_is_a_quick_function_of_the_row_alone() -> None:
    infos = [handler.info for handler in builtins()]
    assert [info.id for info in infos] == ["echo@1", "hash@1", "wordcount@1"]
    assert all(info.deterministic and not info.effect and not info.local for info in infos)


def test_echo_gives_rows_back() -> None:
    rows = [{"a": 1}, {}, {"b": [None, "x"]}]
    assert list(Echo().compute(make_batch(*rows))) == [(k, row, "") for k, row in enumerate(rows)]


def test_a_hash_is_of_the_canonical_form() -> None:
    one, other, bad = Hash().compute(
        make_batch({"b": 1.0, "a": "e\u0301"}, {"a": "\u00e9", "b": 1}, {"a": float("nan")})
    )
    assert one[1] == other[1]
    expected = blake2b('{"a":"é","b":1}'.encode(), digest_size=32).hexdigest()
    assert one[1] == {"hash": expected}
    assert bad == (2, None, "bad_row")


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("b a B", [["a", 1], ["b", 2]]),
        ("", []),
        ("don't don\u2019t 'x'", [["don't", 1], ["don\u2019t", 1], ["x", 1]]),
        ("Straße STRASSE", [["strasse", 2]]),
        ("cafe\u0301 CAFÉ", [["café", 2]]),
        ("a_b 3.5 x-y", [["3", 1], ["5", 1], ["a", 1], ["b", 1], ["x", 1], ["y", 1]]),
        ("w" * (WORD_CHARS_MAX + 1) + " ok", [["ok", 1]]),
    ],
)
def test_words_are_counted_without_case_in_one_form(text: str, pairs: list[list[object]]) -> None:
    assert WordCount().compute(make_batch({"text": text})) == [(0, {"pairs": pairs}, "")]


def test_words_come_in_the_order_of_their_code_points_and_normal() -> None:
    [(_, row, _)] = WordCount().compute(make_batch({"text": "ζ é z E\u0301 a ﬁ Ω"}))
    assert row is not None
    words = [word for word, _ in row["pairs"]]  # type: ignore[attr-defined]
    assert words == sorted(words)
    assert all(unicodedata.is_normalized("NFC", word) for word in words)
    assert "fi" in words


def test_the_filled_template_comes_before_the_cell() -> None:
    batch = make_batch({"text": "cell"}, texts=["template"])
    assert WordCount().compute(batch) == [(0, {"pairs": [["template", 1]]}, "")]


@pytest.mark.parametrize("row", [{}, {"text": 3}, {"text": None}, {"text": ["a"]}])
def test_a_row_without_a_text_is_missing(row: dict[str, object]) -> None:
    assert WordCount().compute(make_batch(row)) == [(0, None, "no_text")]
