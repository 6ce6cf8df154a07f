"""What recall finds: turns and sessions of conversations (P1, P3), messages of chats (P5).

The product is driven, nothing is computed again: one store a conversation, `remember` with speaker,
thread and date, `recall` with a limit of 100 and the ranking of its hits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from benchmarks.memory import data
from benchmarks.memory.store import open_store
from benchmarks.report import Target
from memory.config import MemoryConfig
from memory.embedding.embedder import load_embedder, missing_libraries
from memory.model import NoteIn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.report import Options, Report
    from memory.seams import Embedder

LIMIT: Final = 100
"""Places of a ranking, as the protocols cut them."""

SESSION_WEIGHTS: Final = (1.0, 0.5, 0.25)
"""P3: a session's score from its three best turns in the ranking."""

TURN_TARGETS: Final = {True: (70, 79, 84), False: (64, 73, 79)}
CHAT_TARGETS: Final = {True: (52, 62, 69), False: (45, 52, 61)}
"""R@5, R@10, R@20 to reach on the development part, with the embedder and without."""

SESSION_TARGETS: Final = (94.5, 94)
"""R@10 and any@5 with the embedder."""

CHAT_HIT_TARGET: Final = 78
"""hit@10 of P5 with the embedder."""


def quality(options: Options, report: Report) -> None:
    """P1, P3 and P5, without a model and with it."""
    trio.run(_measure, options, report, None)
    missing = missing_libraries()
    if missing:
        report.missing("recall by meaning", f"install the extra `embed`: no {', '.join(missing)}")
        return
    trio.run(_measure, options, report, load_embedder(MemoryConfig(embedder="minilm")))


async def _measure(options: Options, report: Report, embedder: Embedder | None) -> None:
    meant = embedder is not None
    name = "with MiniLM" if meant else "without a model"
    turns, sessions = await locomo_turns(options, embedder=embedder)
    _rows(report, f"LoCoMo turns (P1), {name}", turns, TURN_TARGETS[meant])
    for figure, value, target in (
        ("R@10", sessions.recall(10), SESSION_TARGETS[0]),
        ("any@5", sessions.hit(5), SESSION_TARGETS[1]),
    ):
        report.value(
            f"LoCoMo sessions (P3), {name}, {figure}",
            round(value, 1),
            unit="%",
            target=Target(">=", target) if meant else None,
        )
    chats = await beam(options, embedder=embedder)
    _rows(report, f"BEAM (P5), {name}", chats, CHAT_TARGETS[meant])
    report.value(
        f"BEAM (P5), {name}, hit@10",
        round(chats.hit(10), 1),
        unit="%",
        target=Target(">=", CHAT_HIT_TARGET) if meant else None,
    )


def _rows(report: Report, name: str, ranked: data.Ranked, targets: tuple[float, ...]) -> None:
    for k, target in zip((5, 10, 20), targets, strict=True):
        report.value(
            f"{name}, R@{k}", round(ranked.recall(k), 1), unit="%", target=Target(">=", target)
        )


async def locomo_turns(
    options: Options, *, embedder: Embedder | None
) -> tuple[data.Ranked, data.Ranked]:
    """P1 and P3: (turns, sessions)."""
    turns, sessions = data.Ranked(), data.Ranked()
    for conversation in data.conversations(options.data):
        async with open_store(embedder=embedder) as store:
            ids = await store.remember([_turn(turn) for turn in conversation.turns])
            await store.settle()
            by_id = dict(zip(ids, conversation.turns, strict=True))
            for question in conversation.questions:
                if not question.gold:
                    continue
                hits = (await store.recall(question.text, limit=LIMIT, detail="index")).hits
                found = [(by_id[hit.id], hit.score) for hit in hits if hit.id in by_id]
                if question.kind in {"1", "2", "3", "4"}:
                    turns.add([turn.id for turn, _ in found], question.gold)
                sessions.add(_sessions(found), _sessions_of(question.gold))
    return turns, sessions


async def locomo_sessions(options: Options, *, embedder: Embedder | None) -> data.Ranked:
    """P3."""
    return (await locomo_turns(options, embedder=embedder))[1]


async def beam(options: Options, *, embedder: Embedder | None) -> data.Ranked:
    """P5: one store a chat, a message a memory, the exchange its thread."""
    ranked = data.Ranked()
    for chat in data.chats(options.data):
        async with open_store(embedder=embedder) as store:
            ids = await store.remember([_message(message) for message in chat.messages])
            await store.settle()
            numbers = dict(zip(ids, (str(m.id) for m in chat.messages), strict=True))
            for question in chat.answerable():
                hits = (await store.recall(question.text, limit=LIMIT, detail="index")).hits
                ranked.add([numbers[hit.id] for hit in hits if hit.id in numbers], question.gold)
    return ranked


def _turn(turn: data.Turn) -> NoteIn:
    return NoteIn(
        text=turn.words, speaker=turn.speaker, thread=f"session {turn.session}", pos=turn.pos + 1,
        at=turn.at, scope="main",
    )  # fmt: skip


def _message(message: data.Message) -> NoteIn:
    return NoteIn(
        text=message.text,
        role="owner" if message.role == "user" else "agent",
        thread=f"exchange {message.group}",
        scope="main",
    )


def _sessions(found: Sequence[tuple[data.Turn, float]]) -> list[str]:
    """Sessions by 1, .5, .25 of their three best turns among those found."""
    scores: dict[str, list[float]] = {}
    for turn, score in found:
        best = scores.setdefault(str(turn.session), [])
        if len(best) < len(SESSION_WEIGHTS):
            best.append(score)
    totals = {
        session: sum(w * s for w, s in zip(SESSION_WEIGHTS, best, strict=False))
        for session, best in scores.items()
    }
    return sorted(totals, key=lambda session: -totals[session])


def _sessions_of(gold: Sequence[str]) -> list[str]:
    """The sessions of turns `D<session>:<turn>`."""
    return list(dict.fromkeys(name[1:].split(":")[0] for name in gold))
