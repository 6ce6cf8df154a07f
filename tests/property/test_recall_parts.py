"""Properties of recall's pure parts: no flood moves a trusted hit, no trust lowers a score."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.recall.fuse import Candidate, collapse, normalise, weigh
from memory.recall.structure import add_structure, is_structured
from memory.text.parse import Names, Words, dense_text, names_of, possible_names, repeats
from memory.tiers import LOW, MAIN
from tests.helpers.candidates import make_candidate

units = st.floats(0, 1)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "memory": st.integers(1, 50),
            "bm25": st.none() | st.floats(1e-9, 1e3),
            "cosine": st.none() | st.floats(-1, 1),
            "chunks": st.integers(1, 60),
            "trust": units,
            "own": st.integers(0, 1),
            "thread": st.none() | st.sampled_from([b"own thread", b"second"]),
            "pos": st.integers(1, 5),
            "chars": st.integers(0, 70_000),
            "asks": st.integers(0, 1),
            "role": st.sampled_from(["owner", "agent"]),
            "speaker": st.none() | st.sampled_from(["Ada", "Bob"]),
            "cluster": st.none() | st.integers(1, 3),
        }
    ),
    max_size=25,
    unique_by=lambda row: row["memory"],
)
Rows = list[dict[str, Any]]


def made(drawn: Rows, tier: int, shift: int = 0) -> list[Candidate]:
    return [make_candidate(tier=tier, **{**r, "memory": r["memory"] + shift}) for r in drawn]


def beside(candidates: list[Candidate]) -> dict[int, tuple[int | None, int | None]]:
    """Neighbours as the database finds them: the nearest places of the thread that give."""
    found = {}
    inside = [c.facts for c in candidates if is_structured(c.facts) and c.facts.thread is not None]
    for facts in inside:
        line = sorted((f.pos, f.memory) for f in inside if f.thread == facts.thread)
        at = line.index((facts.pos, facts.memory))
        found[facts.memory] = (
            line[at - 1][1] if at else None,
            line[at + 1][1] if at + 1 < len(line) else None,
        )
    return found


def ranked(candidates: list[Candidate], *, dense: bool, names: Names) -> list[Candidate]:
    normalise(candidates, dense=dense)
    add_structure(candidates, beside(candidates), names)
    return weigh(candidates)


names = st.sampled_from([Names(), Names(("ada",), "ada"), Names(("ada", "bob"), None)])


@given(rows, rows, st.booleans(), names)
@pytest.mark.attack
def test_low_texts_never_change_the_main_hits_or_their_order(
    main: Rows, low: Rows, dense: bool, named: Names
) -> None:
    alone = ranked(made(main, MAIN), dense=dense, names=named)
    flooded = ranked([*made(main, MAIN), *made(low, LOW, shift=100)], dense=dense, names=named)
    if main:
        held = [(c.memory, c.score) for c in flooded if c.facts.tier == MAIN]
        assert held == [(c.memory, c.score) for c in alone]
        stay = [c.memory for c in collapse(flooded)[0] if c.facts.tier == MAIN]
        assert stay == [c.memory for c in collapse(alone)[0]]
    for candidate in flooded:
        assert math.isfinite(candidate.score)
        assert 0 <= candidate.score <= 2.5 + 1e-9
        assert 0 <= candidate.base <= 1 + 1e-9


@given(rows, st.integers(0, 24), units, st.booleans(), names)
def test_the_score_rises_with_trust(
    drawn: Rows, at: int, more: float, dense: bool, named: Names
) -> None:
    if at >= len(drawn):
        return
    before = {c.memory: c.score for c in ranked(made(drawn, MAIN), dense=dense, names=named)}
    row = drawn[at]
    raised = [*drawn]
    raised[at] = {**row, "trust": min(1.0, row["trust"] + more)}
    after = {c.memory: c.score for c in ranked(made(raised, MAIN), dense=dense, names=named)}
    memory = row["memory"]
    assert after[memory] >= before[memory] - 1e-12
    if row["own"]:
        del before[memory], after[memory]
        assert after == before


@given(rows, names)
@pytest.mark.attack
def test_a_foreign_author_below_eight_tenths_gets_nothing_from_a_thread(
    drawn: Rows, named: Names
) -> None:
    for candidate in ranked(made(drawn, MAIN), dense=False, names=named):
        if not candidate.facts.own and candidate.trust < 0.8:
            terms = candidate.terms
            assert (terms.previous, terms.following, terms.thread, terms.author) == (0, 0, 0, 0)


texts = st.text(max_size=300) | st.lists(
    st.sampled_from(["Ada", "ada's", "did", "claude-code", "x", "?", "\u2019s", "\n"])
).map(" ".join)


@given(texts)
def test_what_is_embedded_is_never_empty_and_holds_no_name(text: str) -> None:
    found = names_of([run for run in possible_names(text) if run.lower() == "ada"])
    left = dense_text(text, found.all)
    assert bool(left) == bool(text.strip())
    if left != text.strip():
        assert "ada" not in Words(left).terms


@given(texts, texts)
def test_repeating_a_question_is_seen_wherever_it_stands(question: str, around: str) -> None:
    asked = Words.all(question)
    text = f"{around} {question} {around}"
    assert repeats(question, text) == (len(asked) >= 5)
