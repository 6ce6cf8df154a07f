"""How many jobs may be under way at a coordinator, and how many of them one agent's.

What waits, is paused or asks its caller counts; what combines the answers of another job does not.
Source: docs/specs/jobs.md s.9.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from federated.errors import JobError
from federated.jobs.limits import JOBS_AGENT_MAX, JOBS_LIVE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federated.jobs.coordinator import Coordinator


class Places:
    """Places for jobs.

    Args:
        core: the machine, which has the jobs.
    """

    def __init__(self, core: Callable[[], Coordinator]) -> None:
        self._core = core
        self._coming: list[str] = []

    @contextmanager
    def taken(self, agent: str) -> Iterator[None]:
        """A place for a job that is being written down, until it is in memory or failed.

        Args:
            agent: who submits; empty for the person, who may have all places.

        Raises:
            JobError: `too_many`.
        """
        self._check(agent)
        self._coming.append(agent)
        try:
            yield
        finally:
            self._coming.remove(agent)

    def _check(self, agent: str) -> None:
        agents = [job.agent for job in self._core().board.live_jobs() if not job.stage]
        agents += self._coming
        if agent and agents.count(agent) >= JOBS_AGENT_MAX:
            raise JobError(
                "too_many",
                f"this agent has {JOBS_AGENT_MAX} jobs under way, as many as one may: wait for one"
                " to end (job_status), or cancel one (job_cancel)",
            )
        if len(agents) >= JOBS_LIVE_MAX:
            raise JobError(
                "too_many",
                f"{JOBS_LIVE_MAX} jobs are under way, as many as there may be: wait for one to end"
                " (`covey job list`), or cancel one (`covey job cancel ID`)",
            )
