"""Lying peers against the product's judge and reputation: how many wrong rows get through.

    python -m benchmarks.job_sims.liars --seeds 40

A job of rows is put to peers drawn uniformly among those that may be asked. Liars give the same
wrong answer; everything else is the product: who is trusted alone, who votes next, what an own
device recomputes, whom that quarantines and which rows reopen. A recomputation counts as an
execution. Source of the settings: docs/specs/jobs.md, Verification.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from federated.jobs.reputation import Reputation, Settled, Standing, StatRow, encode_standing
from federated.jobs.types import Column
from federated.jobs.verify import (
    LEVEL_REPUTATION,
    Accepted,
    Answer,
    Judge,
    NeedArbiter,
    NeedVote,
    Policy,
    parse_policy,
    reopen,
    wants_audit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

HANDLER: Final = "wordcount@1"
JOB: Final = bytes(16)
OWN: Final = b"own"
RIGHT: Final = "right"
WRONG: Final = "wrong"
JUDGE: Final = Judge([Column(name="answer")])
ROW_MS: Final = 1000


@dataclass(frozen=True)
class Setting:
    """One row of the table of liars.

    Attributes:
        verify: as in a job's spec.
        liars: share of the peers.
        rate: how often a liar lies, where its kind leaves that open.
        kind: `steady` lies at `rate`; `sleeper` has a good past and lies once it is trusted;
            `follower` repeats a partner's lie on the same row and dares the first at `rate`;
            `pair` lies where a partner holds the row at the same time.
        arbiter: whether an own device can recompute.
        at_once: whether the first two owners hold the row at the same time, as a hedge makes them.
        marked: whether the second is known to have overlapped; False is the control.
        peers: how many.
        tasks: rows of the job.
    """

    verify: str = "adaptive"
    liars: float = 0.2
    rate: float = 1.0
    kind: Literal["steady", "sleeper", "follower", "pair"] = "steady"
    arbiter: bool = True
    at_once: bool = False
    marked: bool = True
    peers: int = 20
    tasks: int = 2000


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        wrong: % of the rows accepted with the lie.
        executions: of a row, recomputations included.
        liars_out: share of the liars quarantined.
        honest_out: honest peers quarantined.
        open: rows that ended disputed or without a quorum.
    """

    wrong: float
    executions: float
    liars_out: float
    honest_out: int
    open: int


@dataclass
class _Row:
    """A row of the job: its answers, and what was made of them."""

    answers: list[Answer] = field(default_factory=list)
    alone: bool = False
    drawn: bool = False
    accepted: Accepted | None = None
    doubted: set[bytes] = field(default_factory=set)


class Liars:
    """One job among liars, from one seed."""

    def __init__(self, setting: Setting, seed: int) -> None:
        policy = parse_policy(setting.verify)
        assert policy is not None, "auto depends on who answers: name the policy"
        self._policy: Policy = policy
        self._setting = setting
        self._rng = random.Random(seed)
        self._peers = [b"peer %d" % number for number in range(setting.peers)]
        count = round(setting.liars * setting.peers)
        self._liars = frozenset(self._rng.sample(self._peers, count))
        self._rows = [_Row() for _ in range(setting.tasks)]
        self._waiting = list(range(setting.tasks))
        self._rng.shuffle(self._waiting)
        self._reputation = Reputation()
        self._out: set[bytes] = set()
        self._executions = 0
        self._wall_ms = 0
        if setting.kind == "sleeper":
            past = encode_standing(Standing(n=100, ok=100, cv=100))
            self._reputation.load(StatRow(peer, b"", HANDLER, past) for peer in self._peers)

    def run(self) -> Outcome:
        """Fill the table."""
        while self._waiting:
            self._wall_ms += ROW_MS
            self._settle_row(self._waiting.pop())
        accepted = [row.accepted for row in self._rows if row.accepted is not None]
        wrong = sum(one.row["answer"] == WRONG for one in accepted)
        return Outcome(
            wrong=100 * wrong / len(self._rows),
            executions=self._executions / len(self._rows),
            liars_out=len(self._out & self._liars) / max(1, len(self._liars)),
            honest_out=len(self._out - self._liars),
            open=len(self._rows) - len(accepted),
        )

    def _settle_row(self, k: int) -> None:
        row = self._rows[k]
        while row.accepted is None:
            used = {answer.owner for answer in row.answers} | row.doubted
            free = [peer for peer in self._peers if peer not in self._out and peer not in used]
            verdict = JUDGE.judge(
                row.answers,
                self._policy,
                alone=row.alone,
                arbiter=self._setting.arbiter,
                owners_left=len(free),
            )
            match verdict:
                case Accepted():
                    row.accepted = verdict
                    self._count(k, verdict, row.answers)
                    self._audit(k, row)
                case NeedVote():
                    together = 2 if self._setting.at_once and not row.answers else 1
                    self._ask(row, self._rng.sample(free, min(together, len(free))))
                case NeedArbiter():
                    self._ask_own(row)
                case _:
                    return

    def _ask(self, row: _Row, peers: Sequence[bytes]) -> None:
        """Ask owners for a row that they hold at the same time."""
        for peer in peers:
            self._executions += 1
            said = WRONG if peer in self._liars and self._lies(peer, row, peers) else RIGHT
            late = self._setting.marked and peer != peers[0]
            row.answers.append(
                Answer(peer, peer, len(row.answers), {"answer": said}, overlapped=late)
            )
            if not row.drawn:
                row.drawn = True
                row.alone = self._reputation.trusted_alone(peer, HANDLER, self._rng, self._wall_ms)

    def _ask_own(self, row: _Row) -> None:
        self._executions += 1
        row.answers.append(Answer(OWN, OWN, len(row.answers), {"answer": RIGHT}, own=True))

    def _lies(self, peer: bytes, row: _Row, holders: Sequence[bytes]) -> bool:
        if self._setting.kind == "pair":
            return len(self._liars.intersection(holders)) > 1
        if self._setting.kind == "sleeper":
            cv = self._reputation.cv(peer, HANDLER, self._wall_ms)
            return cv >= 100 or (cv >= 10 and self._rng.random() < self._setting.rate)
        if self._setting.kind == "follower" and any(
            one.row is not None and one.row["answer"] == WRONG for one in row.answers
        ):
            return True
        return self._rng.random() < self._setting.rate

    def _audit(self, k: int, row: _Row) -> None:
        assert row.accepted is not None
        if row.accepted.level > LEVEL_REPUTATION or not self._setting.arbiter:
            return
        if wants_audit(self._policy, self._rng):
            given = row.answers[0]
            self._ask_own(row)
            verdict = JUDGE.judge_audit(given, row.answers[-1])
            assert isinstance(verdict, Accepted)
            row.accepted = verdict
            self._count(k, verdict, row.answers)

    def _count(self, k: int, verdict: Accepted, answers: Sequence[Answer]) -> None:
        settled = self._reputation.settle(
            verdict, answers, HANDLER, (JOB, k), deterministic=True, wall_ms=self._wall_ms
        )
        self._follow_up(settled)

    def _follow_up(self, settled: Settled) -> None:
        for owner, (_, k) in settled.revote:
            self._rows[k].doubted.add(owner)
            self._again(k)
        if settled.quarantined:
            self._out.update(settled.quarantined)
            carried = {
                k: row.accepted.backing
                for k, row in enumerate(self._rows)
                if row.accepted is not None
            }
            out = self._reputation.quarantined_owners(HANDLER, self._wall_ms)
            for k in reopen(carried, out):
                self._again(k)

    def _again(self, k: int) -> None:
        row = self._rows[k]
        if row.accepted is None or row.accepted.level > LEVEL_REPUTATION + 1:
            return
        row.accepted = None
        row.drawn, row.alone = True, False
        row.answers = [one for one in row.answers if one.owner not in self._out | row.doubted]
        self._waiting.append(k)


def runs(setting: Setting, seeds: int) -> list[Outcome]:
    """The jobs of seeds 0 to `seeds` - 1."""
    return [Liars(setting, seed).run() for seed in range(seeds)]


def median(found: Sequence[Outcome]) -> Outcome:
    """The median of each figure; of honest peers lost and rows left open the most."""
    return Outcome(
        wrong=statistics.median(one.wrong for one in found),
        executions=statistics.median(one.executions for one in found),
        liars_out=statistics.median(one.liars_out for one in found),
        honest_out=max(one.honest_out for one in found),
        open=max(one.open for one in found),
    )


TABLE: Final = {
    "20 % always, adaptive": Setting(),
    "30 % always, adaptive": Setting(liars=0.3),
    "20 %, 1 in 10, adaptive": Setting(rate=0.1),
    "20 %, 1 in 10, quorum:3": Setting(verify="quorum:3", rate=0.1),
    "20 %, 1 in 10, nothing": Setting(verify="none", rate=0.1),
    "20 % always, nothing": Setting(verify="none"),
    "20 % always, adaptive, no arbiter": Setting(arbiter=False),
    "20 %, 1 in 10, adaptive, no arbiter": Setting(rate=0.1, arbiter=False),
    "10 % sleepers, adaptive": Setting(liars=0.1, kind="sleeper", rate=0.0),
    "10 % sleepers, adaptive, no arbiter": Setting(
        liars=0.1, kind="sleeper", rate=0.0, arbiter=False
    ),
    "20 % pairs at once, quorum:2": Setting(verify="quorum:2", kind="pair", at_once=True),
    "20 % pairs at once, unnoticed": Setting(
        verify="quorum:2", kind="pair", at_once=True, marked=False
    ),
    "20 % followers, never first": Setting(kind="follower", rate=0.0),
    "20 % followers, first 1 in 10": Setting(kind="follower", rate=0.1),
}


def line(name: str, found: Sequence[Outcome]) -> str:
    """A row of the table as text."""
    middle = median(found)
    mean = statistics.fmean(one.wrong for one in found)
    most = max(one.wrong for one in found)
    return (
        f"{name:36} wrong {middle.wrong:6.3f} % (mean {mean:.3f}, most {most:.2f})"
        f"  executions {middle.executions:5.3f}  liars out {middle.liars_out:4.2f}"
        f"  honest out {middle.honest_out}  open {middle.open}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="lying peers against the judge of jobs")
    parser.add_argument("--seeds", type=int, default=40)
    seeds = parser.parse_args().seeds
    for name, setting in TABLE.items():
        print(line(name, runs(setting, seeds)), flush=True)


if __name__ == "__main__":
    main()
