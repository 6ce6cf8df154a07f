"""`covey recall --explain`: the sum a person reads adds up to the score."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
import pytest

from daemon.cli.explain import lines
from memory.model import Explain

if TYPE_CHECKING:
    from daemon.json_types import Json

WORDS = Explain(
    bm25=8.31, bm25_norm=0.9, length_discount=0.78, base=0.9, thread=0.5, by_author=0.3,
    length=0.15, question=-0.1, f=1.75, author_trust=0.86, role_ceiling=0.7, trust=0.7,
    limited_by="role", rank=2, score=1.225, chunks=3,
)  # fmt: skip


def shown(explain: Explain) -> list[str]:
    hit: dict[str, Json] = {
        "score": round(explain.score / 2.5, 4),
        "explain": msgspec.to_builtins(explain),
    }
    return lines(hit)


def added(table: list[str]) -> float:
    """The sum of the lines before `together`."""
    at = next(n for n, line in enumerate(table) if line.startswith("together"))
    return sum(float(m[1]) for line in table[:at] if (m := re.search(r"([+-]\d\.\d{3})", line)))


def test_the_terms_add_up_to_the_sum() -> None:
    table = shown(WORDS)
    assert added(table) == pytest.approx(WORDS.f)
    assert "x 0.78 for 3 pieces" in table[0]
    assert any("x 0.700" in line and "where it was taken from" in line for line in table)
    assert table[-1] == "score 0.490 = 1.225 / 2.5; place 2 before trust, ranker fixed"


def test_both_channels_are_shown_with_their_weights() -> None:
    both = msgspec.structs.replace(
        WORDS, cosine=0.61, cosine_norm=0.8, base=0.84, f=1.69, embedder="minilm@8199be6f"
    )
    table = shown(both)
    assert added(table) == pytest.approx(1.69)
    assert "cosine 0.61" in table[1]
    assert table[-1].endswith("minilm@8199be6f")
    waiting = msgspec.structs.replace(both, cosine=None, cosine_norm=0.9, base=0.9, f=1.75)
    assert "no vector yet" in shown(waiting)[1]
    assert added(shown(waiting)) == pytest.approx(1.75)


def test_an_echo_and_the_low_index_are_named() -> None:
    table = shown(msgspec.structs.replace(WORDS, echo=0.5, tier="low"))
    assert any(line.startswith("repeats the question") and "x 0.500" in line for line in table)
    assert "low-trust index" in table[-1]
