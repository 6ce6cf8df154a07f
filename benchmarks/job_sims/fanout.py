"""Fan-out among slow, hanging and dying peers: how long a job takes beside the ideal.

    python -m benchmarks.job_sims.fanout --seeds 12

The real coordinator hands 1,000 tasks to 20 peers of two slots, which are played: a tenth of them
five times as slow, all a little different, and one execution in fifty hangs for 10 to 30 times its
time. Peers that die do so silently: no link goes down, they just say nothing more. Ideal is all
work spread over all slots by their speed, with nothing hanging and nobody dying. Copies and tasks
asked back are the product's; the baselines are the same coordinator without them, and with peers
that take two tasks ahead. Source of the settings: docs/specs/jobs.md s.5.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from benchmarks.job_sims.fleet import Fleet
from federated.jobs.credit import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.job_sims.fleet import PlayedTask

TRIP_S: Final = 0.02
TICK_S: Final = 0.2
BEAT_S: Final = 10 / 3
END_S: Final = 5000.0


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        hedge: whether late tasks are copied and waiting ones asked back.
        ahead: tasks that a peer takes beyond its slots; None: what a worker grants by its rule.
        die: share of the peers that die silently.
        peers, slots, tasks: how many.
    """

    hedge: bool = True
    ahead: int | None = None
    die: float = 0.0
    peers: int = 20
    slots: int = 2
    tasks: int = 1000


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        took_s: until its last row.
        ideal_s: with nothing hanging and nobody dying.
        done: share of the rows that have an answer.
        extra: executions beyond one a task, %.
    """

    took_s: float
    ideal_s: float
    done: float
    extra: float

    @property
    def ratio(self) -> float:
        """Beside the ideal."""
        return self.took_s / self.ideal_s


@dataclass
class _Execution:
    """A task that a peer has begun, until it ends or is stopped."""

    task: PlayedTask
    took_s: float
    stopped: bool = False


class FanOut:
    """One job, from one seed."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._rng = rng = random.Random(seed)
        self._names = [f"peer {n}" for n in range(setting.peers)]
        slow = setting.peers // 10
        self._speed = {
            name: (5.0 if n < slow else 1.0) * rng.uniform(0.8, 1.25)
            for n, name in enumerate(self._names)
        }
        self._base = [rng.lognormvariate(-0.125, 0.5) for _ in range(setting.tasks)]
        self._ideal_s = sum(self._base) / (
            setting.slots * sum(1 / speed for speed in self._speed.values())
        )
        self._dead: set[str] = set()
        self._running: dict[str, dict[tuple[bytes, int, int], _Execution]] = {
            name: {} for name in self._names
        }
        self._begun = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = count()
        self._fleet = Fleet(seed=seed)
        self._fleet.on_offer = self._offered
        self._fleet.on_stop = self._stopped

    def run(self) -> Outcome:
        """Fill the table."""
        setting, fleet = self._setting, self._fleet
        grant = ahead(setting.slots, TRIP_S, 1.0) if setting.ahead is None else setting.ahead
        for name in self._names:
            fleet.join(name, slots=setting.slots, credit=setting.slots + grant)
            self._at(self._rng.random() * BEAT_S, partial(self._beat, name))
        spread_s = sum(self._base) / (setting.peers * setting.slots)
        for name in self._rng.sample(self._names, round(setting.die * setting.peers)):
            at = self._rng.uniform(0.05, 0.8) * spread_s
            self._at(at, partial(self._dead.add, name))
        job = fleet.submit(rows=setting.tasks, hedge=setting.hedge)
        self._at(TICK_S, self._tick)
        while job.id not in fleet.ended and fleet.now < END_S:
            fleet.now, _, happen = heapq.heappop(self._events)
            happen()
        done = sum(row.value is not None for row in job.rows)
        return Outcome(
            took_s=fleet.now if job.id in fleet.ended else END_S,
            ideal_s=self._ideal_s,
            done=done / setting.tasks,
            extra=100 * (self._begun / setting.tasks - 1),
        )

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._counter), happen))

    def _tick(self) -> None:
        self._fleet.tick(at=self._fleet.now)
        self._asked_back()
        self._at(self._fleet.now + TICK_S, self._tick)

    def _beat(self, name: str) -> None:
        if name in self._dead:
            return
        running = [one.task for one in self._running[name].values()]
        if self._fleet.held[name]:
            self._fleet.beat(name, running)
        self._at(self._fleet.now + BEAT_S, lambda: self._beat(name))

    def _asked_back(self) -> None:
        """Peers answer what they were asked to give back."""
        cancels, self._fleet.cancels = self._fleet.cancels, []
        for name, cancel in cancels:
            if self._setting.hedge and name not in self._dead:
                never = [
                    ref for ref in cancel.attempts or ()
                    if (cancel.job, *ref) in self._fleet.held[name]
                    and (cancel.job, *ref) not in self._running[name]
                ]  # fmt: skip
                self._fleet.give_back(name, cancel, never)

    def _offered(self, task: PlayedTask) -> None:
        self._begin(task.peer)

    def _stopped(self, task: PlayedTask) -> None:
        execution = self._running[task.peer].pop(task.ref, None)
        if execution is not None:
            execution.stopped = True
            self._at(self._fleet.now, lambda: self._begin(task.peer))

    def _begin(self, name: str) -> None:
        """A peer begins what it holds, in order, while it has slots."""
        running = self._running[name]
        for task in self._fleet.offered(name):
            if name in self._dead or len(running) >= self._setting.slots:
                return
            if task.ref in running:
                continue
            took_s = self._base[task.offered.task] * self._speed[name]
            if self._rng.random() < 0.02:
                took_s *= self._rng.uniform(10, 30)
            execution = running[task.ref] = _Execution(task, took_s)
            self._begun += 1
            self._at(self._fleet.now + took_s + TRIP_S, partial(self._finished, name, execution))

    def _finished(self, name: str, execution: _Execution) -> None:
        if execution.stopped or name in self._dead:
            return
        del self._running[name][execution.task.ref]
        self._fleet.answer(execution.task, wall_ms=round(execution.took_s * 1000))
        self._begin(name)


def runs(setting: Setting, seeds: int) -> list[Outcome]:
    """The jobs of seeds 0 to `seeds` - 1."""
    return [FanOut(setting, seed).run() for seed in range(seeds)]


def ratio(found: Sequence[Outcome]) -> float:
    """Median time beside the mean ideal, as in the table of yardsticks."""
    took_s = statistics.median(one.took_s for one in found)
    return took_s / statistics.fmean(one.ideal_s for one in found)


def extra(found: Sequence[Outcome]) -> float:
    """Mean executions beyond one a task, %."""
    return statistics.fmean(one.extra for one in found)


def done(found: Sequence[Outcome]) -> float:
    """The least share of rows done, %."""
    return 100 * min(one.done for one in found)


TABLE: Final = {
    "schedule": Setting(),
    "schedule, one ahead": Setting(ahead=1),
    "plain pull, two ahead": Setting(hedge=False, ahead=2),
    "schedule, 30 % die": Setting(die=0.3),
    "leases only, 30 % die": Setting(hedge=False, ahead=2, die=0.3),
}


def line(name: str, found: Sequence[Outcome]) -> str:
    """A row of the table as text."""
    most = max(one.ratio for one in found)
    return (
        f"{name:24} {ratio(found):5.2f} x ideal (most {most:.2f})"
        f"  executions +{extra(found):.1f} %  done {done(found):.1f} %"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="fan-out among slow and dying peers")
    parser.add_argument("--seeds", type=int, default=12)
    seeds = parser.parse_args().seeds
    for name, setting in TABLE.items():
        print(line(name, runs(setting, seeds)), flush=True)


if __name__ == "__main__":
    main()
