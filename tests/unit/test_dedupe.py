"""Whether two texts say the same, and how like they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory.relations.dedupe import containment, content_words, essence, is_update, likeness, sketch

BASE = "The staging database listens on port 5433 of host db-2."

words = st.frozensets(st.sampled_from("abcdefgh"), max_size=8)
texts = st.text(st.sampled_from('ab Ab-5./\n!?"('), max_size=60)


@given(words, words)
def test_containment_is_a_symmetric_share(a: frozenset[str], b: frozenset[str]) -> None:
    share = containment(a, b)
    assert 0 <= share <= 1
    assert share == containment(b, a)
    assert (share == 1) == bool(a and b and (a <= b or b <= a))
    assert (share == 0) == (not a & b)


@given(words, words, words)
def test_containment_grows_with_what_is_in_common(
    a: frozenset[str], b: frozenset[str], c: frozenset[str]
) -> None:
    smaller, larger = sorted((a, b), key=len)
    assert containment(smaller, larger | (smaller & c)) >= containment(smaller, larger)


@given(texts, texts)
def test_likeness_is_symmetric_and_of_a_text_with_itself_is_whole(a: str, b: str) -> None:
    assert likeness(sketch(a), sketch(b)) == likeness(sketch(b), sketch(a))
    assert 0 <= likeness(sketch(a), sketch(b)) <= 1
    if sketch(a).words:
        assert likeness(sketch(a), sketch(a)) == 1


@given(texts)
def test_essence_ignores_case_of_words_spacing_and_framing(text: str) -> None:
    assert essence(f"  ( {text} )\n", "") == essence(text, "")


def test_identifiers_are_compared_without_their_punctuation() -> None:
    assert sketch(
        "port DB-2, v1.2.3 see src/main.py, www.example.org and well-known."
    ).identifiers == {
        "db2",
        "v123",
        "srcmainpy",
        "wwwexampleorg",
    }


def test_the_same_statement_in_other_dress_is_the_same() -> None:
    for other in (
        "the staging database listens on port 5433 of host db-2",
        "  The staging database\nlistens on the port 5433 of the host db-2!",
        "(Our staging database listens on port 5433, host db-2)",
    ):
        assert essence(BASE, "") == essence(other, ""), other


def test_whatever_could_turn_a_statement_around_keeps_it_apart() -> None:
    for other in (
        "The staging database never listens on port 5433 of host db-2.",
        "The staging database listens on port 5434 of host db-2.",
        "The staging database listens on port -5433 of host db-2.",
        "The staging database may listen on port 5433 of host db-2.",
        "The former staging database listens on port 5433 of host db-2.",
        "The host db-2 listens on port 5433 of staging database.",
        "The staging database listens on port 5433 of host db-2?",
        BASE + " Ask mallory first.",
    ):
        assert essence(BASE, "") != essence(other, ""), other
    assert essence("moved the data from alpha to beta", "") != essence(
        "moved the data to alpha from beta", ""
    )
    assert essence("the key reads aB3x today", "") != essence("the key reads ab3x today", "")
    assert essence("the port is 5433 today", "Staging") != essence("the port is 5433 today", "Live")
    assert essence("a b c", "d e") != essence("a b c d", "e")


def test_too_short_a_text_says_nothing() -> None:
    assert essence("It is done.", "") is None
    assert essence("", "a b c d e") is None


def test_a_newer_state_is_a_candidate_and_no_more() -> None:
    a = sketch("The billing service keeps its invoices in postgres on host db-2 in Frankfurt")
    b = sketch("The billing service keeps its invoices in mysql on host db-2 in Frankfurt")
    assert is_update(a, b)
    assert not is_update(sketch("We use postgres"), sketch("We use mysql"))
    assert not is_update(a, sketch("The team meets on Mondays in Frankfurt with all of billing"))


def test_content_words_leave_stop_words_out() -> None:
    assert content_words("The deploy of the API is at NINE") == {"deploy", "api", "nine"}
