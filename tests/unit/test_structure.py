"""Structure: what neighbours, threads, authors, length and questions add, and to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from memory.recall.structure import add_structure, shortness
from memory.text.parse import Names, dense_text, names_of, possible_names
from memory.tiers import LOW
from tests.helpers.candidates import make_candidate

if TYPE_CHECKING:
    from memory.recall.fuse import Candidate


def based(memory: int, base: float, **facts: object) -> Candidate:
    made = make_candidate(memory, **facts)
    made.base = base
    return made


def test_a_short_text_takes_from_those_beside_it() -> None:
    line = [based(n, n / 10, thread=b"t", pos=n, chars=10) for n in (1, 2, 3)]
    add_structure(line, {1: (None, 2), 2: (1, 3), 3: (2, None)}, Names())
    near = shortness(10)
    assert near > 0.99
    assert line[1].terms.previous == pytest.approx(near * 0.3 * 0.1)
    assert line[1].terms.following == pytest.approx(near * 0.2 * 0.3)
    assert (line[0].terms.previous, line[2].terms.following) == (0, 0)
    assert all(c.terms.thread == pytest.approx(0.15) for c in line)


def test_a_long_text_needs_nobody() -> None:
    assert shortness(300) == pytest.approx(0.5)
    assert shortness(600) < 0.01
    assert shortness(1 << 16) == pytest.approx(0, abs=1e-20)


def test_without_a_thread_its_own_score_counts_twice_a_half() -> None:
    alone = based(1, 0.8)
    add_structure([alone], {}, Names())
    assert alone.terms.thread == pytest.approx(0.4)


def test_neighbours_that_only_joined_are_beside_each_other_too() -> None:
    """c1 and c2 were found; n1 and n2, between them, joined: they are adjacent."""
    c1, n1, n2, c2 = (
        based(n, 0.5, thread=b"t", pos=pos, chars=10) for n, pos in ((1, 1), (2, 2), (3, 3), (4, 4))
    )
    add_structure([c1, n1, n2, c2], {1: (None, 2), 4: (3, None)}, Names())
    assert n1.terms.previous > 0
    assert n1.terms.following > 0
    assert n2.terms.previous > 0
    assert n2.terms.following > 0


def test_only_the_one_named_is_meant_and_else_the_person() -> None:
    ada = based(1, 0.5, speaker="Ada", role="agent")
    mine = based(2, 0.5, role="owner")
    tool = based(3, 0.5, agent="codex", role="agent")
    for names, meant in (
        (Names(), [2]),
        (Names(("ada",), "ada"), [1]),
        (Names(("codex",), "codex"), [3]),
        (Names(("ada", "codex"), None), [2]),
    ):
        add_structure([ada, mine, tool], {}, names)
        assert [c.memory for c in (ada, mine, tool) if c.terms.author] == meant


def test_length_helps_a_little_and_a_question_costs() -> None:
    short, long, asks = based(1, 0, chars=10), based(2, 0, chars=100_000), based(3, 0, asks=1)
    add_structure([short, long, asks], {}, Names())
    assert 0 < short.terms.length < long.terms.length == pytest.approx(0.2)
    assert asks.terms.question == pytest.approx(-0.1)


@pytest.mark.attack
def test_a_foreign_author_gets_nothing_and_gives_nothing_below_eight_tenths() -> None:
    mine = based(1, 0.2, thread=b"t", pos=1, chars=10)
    theirs = based(2, 1.0, thread=b"t", pos=2, chars=10, own=0, trust=0.79, speaker="Ada")
    add_structure([mine, theirs], {1: (None, 2)}, Names(("ada",), "ada"))
    assert theirs.terms[:4] == (0, 0, 0, 0)
    assert mine.terms.following == 0
    assert mine.terms.thread == pytest.approx(0.1)
    trusted = based(2, 1.0, thread=b"t", pos=2, chars=10, own=0, trust=0.8)
    add_structure([mine, trusted], {1: (None, 2)}, Names())
    assert mine.terms.thread == pytest.approx(0.5)


@pytest.mark.attack
def test_a_low_tier_text_gives_nothing_to_its_thread() -> None:
    mine = based(1, 0.2, thread=b"t", pos=1, chars=10)
    low = based(2, 1.0, thread=b"t", pos=2, chars=10, tier=LOW, trust=0.3)
    add_structure([mine, low], {1: (None, 2)}, Names())
    assert mine.terms.thread == pytest.approx(0.1)
    assert low.terms.thread == 0


def test_names_are_runs_of_words_and_stop_words_only_inside_a_sentence() -> None:
    runs = possible_names("Will claude-code ask Will about Ada Lovelace's notes?")
    assert {"claude-code", "Will", "Ada Lovelace", "Ada"} <= set(runs)
    assert "Will" not in possible_names("Will it rain")
    assert "will" not in possible_names("when will it rain")


def test_names_leave_what_is_embedded_with_their_possessive() -> None:
    assert dense_text("What is Ada's dog called?", ("ada",)) == "What is dog called?"
    assert dense_text("What is Ada\u2019s dog called?", ("ada",)) == "What is dog called?"
    assert dense_text("Ada?", ("ada",)) == "Ada?"
    assert dense_text("adamant Ada", ("ada",)) == "adamant"


def test_exactly_one_name_is_meant() -> None:
    assert names_of(["Ada", "ada"]).one == "ada"
    assert names_of(["Ada", "Bob"]).one is None
    assert names_of([]) == Names()
