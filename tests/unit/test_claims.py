"""Statements with a key: who is heard, what contradicts, what a text seems to state."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.relations.claims import (
    GUESSES_MAX,
    VOICES_MAX,
    Side,
    disputes,
    guess,
    key_part,
    rank,
    value_key,
)

sides = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 2), st.integers(0, 2)),
    max_size=8,
).map(lambda found: [Side(n, *side) for n, side in enumerate(found, 1)])


def test_the_person_weighs_more_than_an_agent_and_that_more_than_passed_on_text() -> None:
    assert rank("", "owner") > rank("claude", "agent") > rank("claude", "web")
    assert rank("", "tool") == rank("claude", "tool") == 0


@given(sides)
def test_disputes_are_between_different_values_only(found: list[Side]) -> None:
    by_memory = {side.memory: side for side in found}
    pairs = disputes(found)
    assert pairs == sorted(set(pairs))
    for a, b in pairs:
        assert a < b
        assert by_memory[a].value != by_memory[b].value


@given(sides)
def test_every_value_of_every_owner_is_heard_once(found: list[Side]) -> None:
    expected = set()
    heard: dict[tuple[bytes, int, int], Side] = {}
    for side in found:
        heard.setdefault((side.owner, side.value, side.rank), side)
    for a, b in itertools.combinations(heard.values(), 2):
        if a.value != b.value:
            expected.add((min(a.memory, b.memory), max(a.memory, b.memory)))
    assert set(disputes(found)) == expected


def test_a_flood_of_one_key_makes_a_bounded_number_of_disputes() -> None:
    flood = [Side(n, b"x", n, 1) for n in range(1, 5_000)]
    assert len(disputes(flood)) == VOICES_MAX * (VOICES_MAX - 1) // 2


def test_case_and_spacing_of_keys_and_values_do_not_count() -> None:
    assert key_part("  Staging  DB ") == "staging db"
    assert value_key("5433 ") == value_key("5433")
    assert value_key("5433") != value_key("5434")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("max_retries = 5", "max_retries=6"),
        ("max_retries -> 5", "MAX_RETRIES: 7"),
        ("log_level set to debug.", "log_level is set to info"),
        ("The staging port is now 5433.", "Correction: our staging port is 5434, not the other."),
        (
            "And then: the retry limit for kelvin is blue-3 as agreed",
            "The retry limit for kelvin is red",
        ),
    ],
)
def test_one_key_with_two_values_is_seen(one: str, other: str) -> None:
    (a,), (b,) = guess(one)[:1], guess(other)[:1]
    assert a.key == b.key
    assert a.value != b.value


@pytest.mark.parametrize(
    "text",
    [
        "The plan is to go on", "Note: rebase first", "see https://example.org/a=b", "It is late",
        "Nothing of the kind", "the weather", "x" * 5_000, "What is the port?",
    ],
)  # fmt: skip
def test_prose_states_nothing(text: str) -> None:
    assert guess(text) == []


def test_guesses_are_few() -> None:
    assert len(guess("\n".join(f"name_{n} = {n}" for n in range(50)))) == GUESSES_MAX
