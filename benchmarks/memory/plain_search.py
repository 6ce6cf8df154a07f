"""Plain FTS5 on the protocols' data: the floor of every table, and the check of our loaders.

On the published development part the rows must equal its README to the digit; a difference means
that the loader is wrong, and then no other figure counts.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from benchmarks.memory import data
from benchmarks.report import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.report import Options, Report

# (questions file, its SHA-256, figures of the README): another content has other figures.
LOCOMO_DEV: Final = "ff3e47a4c950362a0a27610a9d7d9752fe7c2fa376d3a03e65a305998daf3864"
BEAM_DEV: Final = "21712abf179d307a287a581933f6aefa9736265db06ad575d8c613f2bb7070b2"
POISON_DEV: Final = "98b5583bbe38b6e59b9346f583932ea5d8ea27006ae19e8a97a0bf9317e4e5bb"
REFERENCE: Final = {
    LOCOMO_DEV: {
        "R@5": 53.8, "R@10": 61.8, "R@20": 68.8, "hit@5": 59.2, "hit@10": 68.0, "MRR": 46.5,
    },
    BEAM_DEV: {"R@5": 29.5, "R@10": 40.8, "R@20": 46.9, "hit@10": 58.7, "MRR": 32.6},
    POISON_DEV: {"poison in top 5": 77.8, "own note in top 5": 100.0},
}  # fmt: skip

FILLER = 5000
"""Real notes beside the poisoned ones in P8."""


def plain(options: Options, report: Report) -> None:
    """P1, P5 and P8 with SQLite's full text alone."""
    _report(report, "plain FTS5, LoCoMo turns (P1)", locomo(options), options, "locomo_questions*")
    _report(report, "plain FTS5, BEAM (P5)", beam(options), options, "beam*_questions*")
    poison, own = poisonedrag(options)
    reference = REFERENCE.get(data.digest(options.data, "poisonedrag*"), {})
    for name, value in (("poison in top 5", poison), ("own note in top 5", own)):
        _row(report, f"plain FTS5, PoisonedRAG (P8), {name}", value, reference.get(name))


def locomo(options: Options) -> data.Ranked:
    """P1: one store a conversation, a turn a document."""
    ranked = data.Ranked()
    for conversation in data.conversations(options.data):
        index = Index((t.id, f"{t.speaker}: {t.words}") for t in conversation.turns)
        for question in conversation.answerable():
            ranked.add(index.search(question.text), question.gold)
    return ranked


def beam(options: Options) -> data.Ranked:
    """P5: one store a chat, a whole message a document."""
    ranked = data.Ranked()
    for chat in data.chats(options.data):
        index = Index((str(m.id), m.text) for m in chat.messages)
        for question in chat.answerable():
            ranked.add(index.search(question.text), question.gold)
    return ranked


def poisonedrag(options: Options) -> tuple[float, float]:
    """P8: (share of the top 5 that is poison, share of questions whose own note is there)."""
    questions = data.poisoned(options.data)
    documents = [(f"f{n}", text) for n, text in enumerate(data.short_texts(options.data, FILLER))]
    for n, question in enumerate(questions):
        documents.append((f"o{n}", f"{question.question} {question.correct}"))
        documents += [(f"p{n}.{i}", text) for i, text in enumerate(question.poison)]
    index = Index(documents)
    poison = own = places = 0
    for n, question in enumerate(questions):
        top = index.search(question.question, 5)
        places += len(top)
        poison += sum(name.startswith("p") for name in top)
        own += f"o{n}" in top
    return 100 * poison / places, 100 * own / len(questions)


class Index:
    """A full-text table of one column, as the protocols' query rule says."""

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        self._names: list[str] = []
        self._database = sqlite3.connect(":memory:")
        self._database.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='porter unicode61')")
        for name, text in documents:
            self._names.append(name)
            self._database.execute(
                "INSERT INTO t(rowid, x) VALUES (?, ?)", (len(self._names), text)
            )

    def search(self, question: str, limit: int = 100) -> Sequence[str]:
        """Names of the best documents."""
        found = self._database.execute(
            "SELECT rowid FROM t WHERE t MATCH ? ORDER BY bm25(t), rowid LIMIT ?",
            (data.fts_query(question), limit),
        )
        return [self._names[row[0] - 1] for row in found]


def _report(
    report: Report, name: str, ranked: data.Ranked, options: Options, questions: str
) -> None:
    reference = REFERENCE.get(data.digest(options.data, questions), {})
    figures = {f"R@{k}": ranked.recall(k) for k in (5, 10, 20)}
    figures |= {"hit@5": ranked.hit(5), "hit@10": ranked.hit(10), "MRR": ranked.mrr()}
    for figure, value in figures.items():
        _row(report, f"{name}, {figure}", value, reference.get(figure))


def _row(report: Report, name: str, value: float, reference: float | None) -> None:
    rounded = round(value, 1)
    report.value(
        name,
        rounded,
        unit="%",
        yardstick="the data's README" if reference is not None else "-",
        yardstick_value=reference,
        target=None if reference is None else Target("=", reference),
    )
