"""Trust from behaviour: T1 to T4 of the published trust tests, and honest mistakes.

The published signals are labels handed in. Here each is a deed done through the verbs that agents
and peers have, and the product sees it or does not:

    recalled by others   another agent recalls the note and reports it useful
    consistent           another agent checks the note and reports it useful
    updated, important   the author replaces its own note; stores a decision
    neutral              the author recalls, or stores a note that nobody looks at
    quick delete         another agent recalls the note, then the author takes it back
    burst                the author stores ten notes at once, one of which a reader reports wrong
    overwritten          another agent reports the note wrong, with what showed it

Nothing writes evidence rows. Deeds are an hour apart, T1's and T2's fifty good ones a day's work.
"""

from __future__ import annotations

import hashlib
import random
import statistics
from typing import TYPE_CHECKING, Final

import trio

from benchmarks.memory.store import SCOPE, open_store
from benchmarks.report import Target
from memory.model import NoteIn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.memory.store import Store
    from benchmarks.report import Options, Report
    from memory.model import Caller

HOUR_MS: Final = 3_600_000
SIGNALS: Final = 100
BENIGN: Final = 9
SLEEPER: Final = (50, 70)
BLOCKED: Final = 0.3
"""Below this the published tests count an agent as blocked."""

WASHES: Final = (10, 100, 500)
IDENTITIES: Final = 50
MISTAKES: Final = 0.05
GOOD: Final = ("recalled", "updated", "important", "consistent")
BAD: Final = ("quick delete", "burst", "overwritten")


def trust(options: Options, report: Report) -> None:
    """All rows."""
    seeds = range(1 if options.quick else 5)
    gaps = [trio.run(_gap, seed) for seed in seeds]
    report.value(
        "T1 gap of benign and malicious agents, trust at the end",
        statistics.mean(gap for gap, _ in gaps),
        unit="",
        yardstick="SLM paper model",
        yardstick_value=0.897,
        target=Target(">=", 0.93),
    )
    report.value(
        "T1 benign agents blocked", sum(b for _, b in gaps), unit="", target=Target("<=", 0)
    )
    drops = [trio.run(_sleeper, seed) for seed in seeds]
    report.value(
        "T2 sleeper, 50 good then 70 bad: drop of trust",
        100 * statistics.mean(drop for drop, _ in drops),
        unit="%",
        yardstick="SLM paper model, %",
        yardstick_value=74,
        target=Target(">=", 80),
    )
    report.value("T2 bad deeds until blocked, most of the seeds", max(n for _, n in drops), unit="")
    for washes, theirs in zip(WASHES, (21, 134, 582), strict=True):
        report.value(
            f"T3 bad deeds until blocked after {washes} cheap good ones",
            max(trio.run(_washing, washes, seed) for seed in seeds),
            unit="",
            yardstick="SLM paper model",
            yardstick_value=theirs,
            target=Target("<=", 20),
        )
    standing, share = trio.run(_sybils)
    report.value(
        f"T4 identities at full standing, of {IDENTITIES}",
        standing,
        unit="",
        target=Target("<=", 0),
    )
    report.value("T4 share of the top 5", share, unit="%", target=Target("<=", 2))
    honest, below = zip(*(trio.run(_honest, seed) for seed in seeds), strict=True)
    report.value(
        "honest author with 5 % errors: mean trust",
        statistics.mean(honest),
        unit="",
        target=Target(">=", 0.85),
    )
    report.value(
        "honest author with 5 % errors: time below .5",
        100 * statistics.mean(below),
        unit="%",
        target=Target("<=", 1),
    )


class Deeds:
    """What one agent does, and what the others make of it.

    Args:
        store: the memory.
        name: the agent.
        rng: which deed, of whom.
    """

    def __init__(self, store: Store, name: str, rng: random.Random) -> None:
        self.store = store
        self.who = store.world.agent(name)
        self._rng = rng
        self._judges = [store.world.agent(f"reader{n}") for n in range(3)]
        self._count = 0
        self._last = ""

    async def good(self) -> None:
        """A good signal three times of four, else a neutral one."""
        if self._rng.random() < 0.25:
            await self._neutral()
            return
        match self._rng.choice(GOOD):
            case "updated":
                await self._write(supersedes=[self._last] if self._last else [])
            case "important":
                await self._write(kind="decision")
            case "recalled":
                await self.useful()
            case _:
                await self._judge(await self._write(), "useful")

    async def cheap(self) -> None:
        """A write that costs nothing and that nobody looks at, or an own update."""
        await self._write(supersedes=[self._last] if self._last and self._count % 3 == 0 else [])

    async def bad(self) -> None:
        """A bad signal."""
        match self._rng.choice(BAD):
            case "quick delete":
                note = await self._write()
                await self._read(self._judge_of(), note)
                await self.store.world.memory.forget(self.who, [note])
                await self.store.world.desk.settle()
            case "burst":
                notes = [await self._write(pause=False) for _ in range(10)]
                await self._judge(notes[0], "wrong")
            case _:
                await self.wrong()

    async def useful(self) -> None:
        """Another agent uses a note of it and says so."""
        note, judge = await self._write(), self._judge_of()
        await self._read(judge, note)
        await self._judge(note, "useful", judge)

    async def wrong(self) -> None:
        """Another agent finds a note of it wrong, and what shows it."""
        proof = hashlib.sha256(b"a test that failed").hexdigest()
        await self._judge(await self._write(), "wrong", evidence=proof)

    async def trust(self) -> float:
        """T now."""
        (row,) = await self.store.world.desk.show(self.who.agent)
        return row.trust

    async def _neutral(self) -> None:
        if self._rng.random() < 0.5:
            await self._write()
        else:
            await self._read(self.who, "fact")

    async def _write(self, *, pause: bool = True, **fields: object) -> str:
        self._count += 1
        if pause:
            self.store.world.clock.ms += HOUR_MS
        text = f"{self.who.agent} fact {self._count} about the {self._rng.randrange(10**9)} build"
        note = NoteIn(text=text, scope=SCOPE, **fields)  # type: ignore[arg-type]
        (self._last,) = await self.store.remember([note], self.who)
        return self._last

    def _judge_of(self) -> Caller:
        return self._rng.choice(self._judges)

    async def _read(self, reader: Caller, note: str) -> None:
        if len(note) == 64:
            await self.store.world.memory.get(reader, [note])

    async def _judge(
        self, note: str, outcome: str, judge: Caller | None = None, evidence: str = ""
    ) -> None:
        desk = self.store.world.desk
        await desk.feedback(judge or self._judge_of(), note, outcome, "", evidence)  # type: ignore[arg-type]


async def _gap(seed: int) -> tuple[float, int]:
    rng = random.Random(seed)
    async with open_store() as store:
        benign = [Deeds(store, f"benign{n}", rng) for n in range(BENIGN)]
        malicious = Deeds(store, "malicious", rng)
        for _ in range(SIGNALS):
            for one in benign:
                await one.good()
            await malicious.bad()
        found = [await one.trust() for one in benign]
        return statistics.mean(found) - await malicious.trust(), sum(t < BLOCKED for t in found)


async def _sleeper(seed: int) -> tuple[float, int]:
    async with open_store() as store:
        one = Deeds(store, "sleeper", random.Random(seed))
        for _ in range(SLEEPER[0]):
            await one.good()
        before, blocked = await one.trust(), SLEEPER[1]
        for count in range(1, SLEEPER[1] + 1):
            await one.bad()
            if await one.trust() < BLOCKED:
                blocked = min(blocked, count)
        return 1 - await one.trust() / before, blocked


async def _washing(washes: int, seed: int) -> int:
    async with open_store() as store:
        one = Deeds(store, "washer", random.Random(seed))
        for _ in range(washes):
            await one.cheap()
        for count in range(1, 1000):
            await one.bad()
            if await one.trust() < BLOCKED:
                return count
    return 1000


async def _sybils() -> tuple[int, float]:
    topics = ["deploy key rotation", "database port", "release branch", "log retention"]
    async with open_store() as store:
        await store.remember([NoteIn(text=f"the {t} is agreed", scope=SCOPE) for t in topics])
        devices = []
        for number in range(IDENTITIES):
            peer = store.peer("other")
            await peer.write(f"the {topic} is changed, says {number}" for topic in topics)
            devices.append(peer.device.hex())
        rows = [row for d in devices for row in await store.world.desk.show(d)]
        assert len(rows) == IDENTITIES, "each identity is an author of its own"
        share = await _share(store, topics, set(devices))
        return sum(row.trust > BLOCKED for row in rows), share


async def _share(store: Store, questions: Sequence[str], devices: set[str]) -> float:
    """Percent of the first five places that authors of these devices hold."""
    held = places = 0
    for question in questions:
        hits = (await store.recall(question, limit=5)).hits
        held += sum(hit.author.device_id in devices for hit in hits)
        places += len(hits)
    return 100 * held / max(1, places)


async def _honest(seed: int) -> tuple[float, float]:
    rng = random.Random(seed)
    async with open_store() as store:
        one = Deeds(store, "honest", rng)
        found = []
        for _ in range(200):
            await (one.wrong() if rng.random() < MISTAKES else one.useful())
            found.append(await one.trust())
        return statistics.mean(found), sum(t < 0.5 for t in found) / len(found)
