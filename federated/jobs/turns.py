"""Whose job is served next: priorities that age, deadlines that near, turns that are fair.

    turns.serve(ready, now, rest_s=..., give=...)

Theory of operation. Jobs stand on levels: their priority, and one more for each half minute in
which nothing of them was offered, so that nothing starves. On a level, jobs whose time runs out go
first, the earliest deadline before the others. The rest is deficit round robin: agents in turn, the
jobs of an agent in turn, each turn worth one slot-second of estimated work. An agent with ten jobs
has no more turns than one with one, and short tasks are not held up by long ones.
Source: docs/specs/jobs.md s.5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federated.jobs.state import Job

AGE_S: Final = 30.0
"""Waiting that is worth a level (tasks.md s.5 point 1)."""
LEVEL_MAX: Final = 9
AGENT_LEVEL_MAX: Final = 6
"""An agent's own word; the person's goes to 9."""
QUANTUM_S: Final = 1.0
"""Slot-seconds of a turn."""
NEAR: Final = 2.0
"""A job is near its deadline when the time left is below so many times the work left."""


def level(job: Job, now: float) -> int:
    """A job's priority, aged."""
    own = min(job.spec.priority, AGENT_LEVEL_MAX) if job.agent else job.spec.priority
    return min(LEVEL_MAX, own + int(max(0.0, now - job.served_at) / AGE_S))


class Turns:
    """Deficit round robin, kept between calls."""

    def __init__(self) -> None:
        self._agents: list[str] = []
        self._jobs: dict[str, list[Job]] = {}
        self._left_s: dict[str, float] = {}

    def serve(
        self,
        ready: Sequence[Job],
        now: float,
        *,
        rest_s: Callable[[Job], float],
        give: Callable[[Job, float], float],
        more: Callable[[], bool],
    ) -> None:
        """Serve jobs until nobody can take more.

        Args:
            ready: jobs with tasks to offer, in the order of their submission.
            now: monotonic seconds.
            rest_s: estimated seconds until a job is done.
            give: offer tasks of a job worth up to so many slot-seconds, at least one if anybody
                can take it; the slot-seconds that were offered.
            more: whether any peer has room left.
        """
        for job in ready:
            if job.served_at < 0:
                job.served_at = now
        if len(ready) == 1:
            give(ready[0], math.inf)
            return
        levels: dict[int, list[Job]] = {}
        for job in ready:
            levels.setdefault(level(job, now), []).append(job)
        self._take_places(ready)
        for _, jobs in sorted(levels.items(), reverse=True):
            near = [job for job in jobs if job.deadline - now < NEAR * rest_s(job)]
            for job in sorted(near, key=lambda job: job.deadline):
                give(job, math.inf)
            self._round_robin([job for job in jobs if job not in near], give, more)
            if not more():
                return

    def _take_places(self, ready: Sequence[Job]) -> None:
        """Who comes stands last; who has nothing to offer has no turn, and saves none up."""
        agents = {job.agent for job in ready}
        self._agents = [agent for agent in self._agents if agent in agents]
        for agent in [agent for agent in self._left_s if agent not in agents]:
            del self._left_s[agent], self._jobs[agent]
        theirs: dict[str, list[Job]] = {}
        for job in ready:
            theirs.setdefault(job.agent, []).append(job)
        for agent, jobs in theirs.items():
            if agent not in self._left_s:
                self._agents.append(agent)
                self._left_s[agent] = QUANTUM_S
            kept = [job for job in self._jobs.get(agent, ()) if job in jobs]
            self._jobs[agent] = kept + [job for job in jobs if job not in kept]

    def _round_robin(
        self, jobs: Sequence[Job], give: Callable[[Job, float], float], more: Callable[[], bool]
    ) -> None:
        waiting: dict[str, list[Job]] = {}
        for job in jobs:
            waiting.setdefault(job.agent, []).append(job)
        while waiting and more():
            agent = self._next(waiting)
            job = next(job for job in self._jobs[agent] if job in waiting[agent])
            self._left_s[agent] -= give(job, self._left_s[agent])
            if self._left_s[agent] > 0:
                # It has no more tasks, or nobody with room may have them: the turn stays its own.
                waiting[agent].remove(job)
                if not waiting[agent]:
                    del waiting[agent]
                continue
            self._jobs[agent].remove(job)
            self._jobs[agent].append(job)

    def _next(self, waiting: dict[str, list[Job]]) -> str:
        """The agent whose turn it is; who has overdrawn waits as many rounds."""
        debts = [-self._left_s[agent] for agent in self._agents if agent in waiting]
        if min(debts) >= 0:
            # Nobody has a turn left: as many rounds pass at once as give somebody one.
            rounds = math.floor(min(debts) / QUANTUM_S) + 1
            for agent in self._agents:
                if agent in waiting:
                    self._left_s[agent] += rounds * QUANTUM_S
        found = next(a for a in self._agents if a in waiting and self._left_s[a] > 0)
        # Those before it have had their turn: they come after everybody else.
        place = self._agents.index(found)
        self._agents = self._agents[place:] + self._agents[:place]
        return found
