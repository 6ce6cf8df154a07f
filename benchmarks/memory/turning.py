"""An author that earned its trust and then turns: how much of what it writes is still shown.

P4's conversations, questions and texts. A member writes notes that the person's agents find useful,
until its trust is above .9; then, beside every question, wrong answers in the question's own words.
Agents find out one lie an hour and report it wrong. The top 5 is looked at before the first report,
after half of them, and after ten.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.memory.poison import Tally, echoes, picked_conversations, turn_note
from benchmarks.memory.store import open_store
from benchmarks.memory.trust import HOUR_MS
from benchmarks.report import Target

if TYPE_CHECKING:
    from benchmarks.memory import data
    from benchmarks.memory.store import Store
    from benchmarks.report import Options, Report

USEFUL: Final = 60
"""Notes of it that agents find useful, one an hour: trust is .95 then."""

REPORTS: Final = (0, 5, 10)
"""Bad signals after which the top 5 is looked at."""


@dataclass
class _Found:
    """What was seen, over all conversations; by number of bad signals."""

    before: list[float] = field(default_factory=list)
    trust: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in REPORTS})
    shown: dict[int, Tally] = field(default_factory=lambda: {n: Tally() for n in REPORTS})
    clean: Tally = field(default_factory=Tally)


def turning(options: Options, report: Report) -> None:
    """The member who turns."""
    found = _Found()
    for conversation, questions in picked_conversations(options):
        trio.run(_turned, conversation, questions, found)
    name = "LoCoMo, author who turns (P4 texts)"
    report.value(
        f"{name}: trust before, the least of all",
        min(found.before),
        unit="",
        target=Target(">=", 0.9),
    )
    for signals in REPORTS:
        last = signals == REPORTS[-1]
        at = f"after {signals} bad signals"
        report.value(f"{name}: trust {at}", statistics.mean(found.trust[signals]), unit="")
        report.value(
            f"{name}: poison in the top 5 {at}",
            found.shown[signals].share,
            unit="%",
            target=Target("<=", 10) if last else None,
        )
        report.value(
            f"{name}: gold R@5 lost {at}",
            found.clean.recall - found.shown[signals].recall,
            unit="points",
            yardstick="R@5 unattacked",
            yardstick_value=found.clean.recall,
        )


async def _turned(
    conversation: data.Conversation, questions: list[data.Question], found: _Found
) -> None:
    async with open_store() as store:
        desk, clock = store.world.desk, store.world.clock
        ids = await store.remember([turn_note(turn) for turn in conversation.turns])
        gold = dict(zip((turn.id for turn in conversation.turns), ids, strict=True))
        readers = [store.world.agent(f"reader{n}") for n in range(3)]
        member = store.peer("invited")
        useful = await member.write(f"the build of day {n} is green again" for n in range(USEFUL))
        for at, note in enumerate(useful):
            clock.ms += HOUR_MS
            await desk.feedback(readers[at % 3], note, "useful")
        await _look(store, questions, gold, set(), found.clean)
        found.before.append(await _trust(store, member.device))
        lies = await member.write(echoes(questions))
        for at in range(REPORTS[-1] + 1):
            if at in REPORTS:
                await desk.settle()
                found.trust[at].append(await _trust(store, member.device))
                await _look(store, questions, gold, set(lies), found.shown[at])
            clock.ms += HOUR_MS
            # Lies about different questions, as they are found out in turn.
            await desk.feedback(readers[at % 3], lies[5 * at], "wrong")


async def _trust(store: Store, device: bytes) -> float:
    (row,) = await store.world.desk.show(device.hex())
    return row.trust


async def _look(
    store: Store,
    questions: list[data.Question],
    turns: dict[str, str],
    bad: set[str],
    tally: Tally,
) -> None:
    for question in questions:
        top = [hit.id for hit in (await store.recall(question.text, limit=5)).hits]
        gold = {turns[name] for name in question.gold}
        tally.add(top, gold, bad)
