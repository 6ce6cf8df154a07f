"""Evaluation data: conversations, chats and their questions, found by pattern in any folder.

Fields and protocols are those of the data's own README. Nothing of the data is kept here, and a
file that is absent raises `DataMissing`, which a benchmark reports and goes on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_STOP: Final = (
    "a an the of to in on at for and or but is are was were be been being am do does did doing have"
    " has had having i you he she it we they me him her us them my your his its our their this that"
    " these those what which who whom whose when where why how with from by as about into than then"
    " so if not no can could will would shall should may might must there here s t d ll re ve m"
)
STOP_WORDS: Final = frozenset(_STOP.split())


class DataMissing(Exception):
    """A file of the evaluation data is not in the folder that `--data` names."""


def rows(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """All lines of the files that match, in order of their names.

    Raises:
        DataMissing: no file matches.
    """
    found: list[dict[str, Any]] = []
    for path in files(folder, pattern):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        found += [json.loads(line) for line in text.split("\n") if line]
    return found


def files(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern without its ending.

    Raises:
        DataMissing: there is none.
    """
    found = sorted(path for path in folder.glob(f"{pattern}.jsonl*"))
    if not found:
        raise DataMissing(f"no {pattern}.jsonl.gz in {folder}: pass its folder as --data")
    return found


@lru_cache(maxsize=64)
def digest(folder: Path, pattern: str) -> str:
    """SHA-256 over the files of a pattern: a reference figure holds for one content only."""
    total = hashlib.sha256()
    for path in files(folder, pattern):
        total.update(path.read_bytes())
    return total.hexdigest()


# ---- conversations (P1-P4)


@dataclass(frozen=True)
class Turn:
    """A turn of a dialogue."""

    id: str
    session: int
    pos: int
    at: str
    speaker: str
    text: str
    caption: str | None

    @property
    def words(self) -> str:
        """Text with the caption of a shared picture, without the speaker."""
        return f"{self.text} [shares {self.caption}]" if self.caption else self.text


@dataclass(frozen=True)
class Question:
    """A question with the ids of what answers it."""

    text: str
    gold: tuple[str, ...]
    kind: str
    answer: str = ""


@dataclass
class Conversation:
    """A dialogue of two speakers and the questions about it."""

    name: str
    turns: list[Turn] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Both names, in order of appearance."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns))

    def answerable(self) -> list[Question]:
        """P1's questions: categories 1-4 with evidence."""
        return [q for q in self.questions if q.kind in {"1", "2", "3", "4"} and q.gold]


def conversations(folder: Path) -> list[Conversation]:
    """Every conversation of `locomo_*`.

    Raises:
        DataMissing: no such file.
    """
    found: dict[str, Conversation] = {}
    for row in rows(folder, "locomo_turns*"):
        turn = Turn(
            row["id"], row["session"], row["pos"], row["at"], row["speaker"], row["text"],
            row["caption"],
        )  # fmt: skip
        found.setdefault(row["conv"], Conversation(row["conv"])).turns.append(turn)
    for row in rows(folder, "locomo_questions*"):
        found[row["conv"]].questions.append(
            Question(
                row["question"],
                tuple(row["evidence"]),
                str(row["category"]),
                "" if row["answer"] is None else str(row["answer"]),
            )
        )
    return list(found.values())


# ---- chats (P5-P7)


@dataclass(frozen=True)
class Message:
    """A chat message; `group` is the exchange it belongs to."""

    id: int
    role: str
    group: int
    batch: int
    time: str | None
    text: str


@dataclass
class Chat:
    """A long chat of a user with an assistant, and the questions about it."""

    name: str
    messages: list[Message] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)

    def answerable(self) -> list[Question]:
        """P5's questions: those that the chat answers."""
        return [q for q in self.questions if q.kind != "abstention" and q.gold]


def chats(folder: Path) -> list[Chat]:
    """Every chat of `beam*`.

    Raises:
        DataMissing: no such file.
    """
    found: dict[str, Chat] = {}
    for row in rows(folder, "beam*_messages*"):
        message = Message(
            row["id"], row["role"], row["group"], row["batch"], row["time"], row["text"]
        )
        found.setdefault(str(row["chat"]), Chat(str(row["chat"]))).messages.append(message)
    for row in rows(folder, "beam*_questions*"):
        chat = found[str(row["chat"])]
        gold = tuple(str(number) for number in row["gold"] or ())
        chat.questions.append(Question(row["question"], gold, row["type"], row["answer"] or ""))
        chat.sources.append(row["source"])
    return list(found.values())


# ---- poison (P8) and real short texts


@dataclass(frozen=True)
class Poisoned:
    """A question with its right answer, a wrong one and texts that argue for the wrong one."""

    question: str
    correct: str
    incorrect: str
    poison: tuple[str, ...]


def poisoned(folder: Path) -> list[Poisoned]:
    """Every question of `poisonedrag*`.

    Raises:
        DataMissing: no such file.
    """
    return [
        Poisoned(row["question"], row["correct"], row["incorrect"], tuple(row["poison"]))
        for row in rows(folder, "poisonedrag*")
    ]


def short_texts(folder: Path, count: int) -> list[str]:
    """Real short notes: command-line examples, repeated with a numbered suffix where too few.

    Raises:
        DataMissing: no `tldr*`.
    """
    texts = [
        f"{example['text']}: {example['command']}"
        for page in rows(folder, "tldr*")
        for example in page["examples"]
    ]
    for number in range(count - len(texts)):
        texts.append(f"{texts[number]} (variant {number})")
    return texts[:count]


# ---- measures


def fts_query(question: str) -> str:
    """The FTS query rule of the protocols: quoted words joined by OR, stop words out."""
    words = list(dict.fromkeys(re.findall(r"[A-Za-z0-9]+", question.lower())))
    kept = [word for word in words if word not in STOP_WORDS] or words
    return " OR ".join(f'"{word}"' for word in kept)


@dataclass
class Ranked:
    """Rankings of a protocol's questions, and what is reported of them, in percent."""

    answers: list[tuple[list[str], frozenset[str]]] = field(default_factory=list)

    def add(self, ranking: Iterable[str], gold: Sequence[str]) -> None:
        """One question's ranking, best first, and its right ids."""
        self.answers.append((list(dict.fromkeys(ranking))[:100], frozenset(gold)))

    def recall(self, k: int) -> float:
        """R@k: mean share of the gold in the top k."""
        return self._mean(lambda top, gold: len(set(top[:k]) & gold) / len(gold))

    def hit(self, k: int) -> float:
        """hit@k: share of questions with at least one gold item in the top k."""
        return self._mean(lambda top, gold: float(bool(set(top[:k]) & gold)))

    def mrr(self) -> float:
        """Mean of 1 / rank of the first gold item, 0 beyond rank 50."""
        return self._mean(
            lambda top, gold: next((1 / at for at, i in enumerate(top[:50], 1) if i in gold), 0.0)
        )

    def _mean(self, of: Any) -> float:
        return 100 * sum(of(top, gold) for top, gold in self.answers) / max(1, len(self.answers))
