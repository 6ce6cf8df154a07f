"""Plans of this node's jobs: made, remembered for an hour, looked at again when one is submitted.

    planner = Planner(mesh, env, lessons, core=..., draw=..., cached=..., look=...)
    plan = await planner.plan(spec, agent="", group=None, find_peer=...)
    plan, job = await planner.redeem(plan.id, agent="", find_peer=..., name=...)

Devices are asked what they offer, as before any job; none is told of rows. Plans are in memory:
they end with the daemon. Source: docs/specs/jobs.md, Plans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec
import trio

from federated.errors import JobError, PlanError
from federated.jobs.effects import rows_of_a_task
from federated.jobs.engines.seam import engine_id
from federated.jobs.experience import Choice
from federated.jobs.planning import (
    NOTES_MAX,
    VALID_S,
    Plan,
    Seer,
    changes,
    examples,
    forecast,
    hints,
    look_at,
    rows_hash,
    task_sizes,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from federated.jobs.coordinator import Coordinator
    from federated.jobs.lessons import Lessons, Rule
    from federated.jobs.state import Job
    from federated.jobs.types import JobSpec
    from federated.seams import GroupId, Mesh
    from p2p.env import Env
    from p2p.identity import PeerId

ASK_S: Final = 2.0
"""How long devices have to say what they offer. Guess: a session takes two round trips."""
PLANS_MAX: Final = 32
PLANS_BYTES_MAX: Final = 64 * 2**20
"""What the rows of all plans may take; the oldest plans go."""


class Draw(Protocol):
    """Makes a job of a spec without keeping or running it."""

    async def __call__(
        self, spec: JobSpec, *, agent: str, group: GroupId | None,
        find_peer: Callable[[str], PeerId | None], auto_rows: Callable[[JobSpec, int, int], int],
    ) -> Job:  # fmt: skip
        """The job.

        Args:
            spec: of the job.
            agent: who submits.
            group: whose members may see the rows.
            find_peer: the device a `@peer` cell names.
            auto_rows: rows of a task where the spec leaves it to us, given spec, rows and bytes.

        Raises:
            PlanError: the spec cannot be run.
        """
        ...


class Planned(NamedTuple):
    """A plan with the notes that are shown with it."""

    plan: Plan
    notes: list[Rule]


class Planner:
    """Makes plans and redeems them.

    Args:
        mesh: who is there.
        env: clocks and random numbers.
        lessons: what finished jobs taught.
        core: the coordinator's machine, while it runs.
        draw: makes jobs.
        cached: how many rows of a job an earlier one has answered; None: nobody looks.
        look: called when other peers are wanted.
    """

    def __init__(
        self, mesh: Mesh, env: Env, lessons: Lessons, *, core: Callable[[], Coordinator],
        draw: Draw, cached: Callable[[Job], Awaitable[int | None]], look: Callable[[], None],
    ) -> None:  # fmt: skip
        self._mesh = mesh
        self._env = env
        self._lessons = lessons
        self._core = core
        self._draw = draw
        self._cached = cached
        self._look = look
        self._plans: dict[bytes, tuple[Plan, int]] = {}
        self._asked: list[set[PeerId]] = []
        self._heard = trio.Event()

    @property
    def wanted(self) -> set[PeerId]:
        """Devices that plans under way ask what they offer."""
        return set().union(*self._asked)

    def heard(self) -> None:
        """A device said something, or went."""
        heard, self._heard = self._heard, trio.Event()
        heard.set()

    def choose(self, spec: JobSpec, rows: int, input_bytes: int) -> Choice:
        """Rows of a task of a job whose spec leaves it to us."""
        once = rows_of_a_task(spec, 0)
        if once:
            return Choice(once, "once", 0, trying=False)
        info = self._core().board.own_handlers.get(spec.handler)
        most = {} if info is None else {"most": info.batch_max}
        return self._lessons.experience.choose(
            spec.handler, rows=rows, input_bytes=input_bytes, **most
        )

    async def plan(
        self, spec: JobSpec, *, agent: str, group: GroupId | None, owner: bool = False,
        find_peer: Callable[[str], PeerId | None],
    ) -> Planned:  # fmt: skip
        """What would become of a job; nothing of it is kept or sent.

        Args:
            spec: of the job.
            agent: who asks; empty for the person.
            group: whose members may see the rows.
            owner: whether jobs of all agents may be named as examples.
            find_peer: the device a `@peer` cell names.

        Raises:
            PlanError: the spec cannot be run.
        """
        chosen: list[Choice] = []

        def auto_rows(spec: JobSpec, rows: int, input_bytes: int) -> int:
            chosen.append(self.choose(spec, rows, input_bytes))
            return chosen[-1].size

        job = await self._draw(
            spec, agent=agent, group=group, find_peer=find_peer, auto_rows=auto_rows
        )
        seers = await self._look_at(job)
        handler = job.spec.handler
        lessons = self._lessons.of_handler(handler, None)
        good, bad = examples(job, lessons if owner else self._lessons.of_handler(handler, agent))
        cached = await self._cached(job)
        expected = forecast(self._core().board, job, seers, lessons, cached=cached or 0)
        notes = self._lessons.notes(handler, NOTES_MAX)
        made = Plan(
            id=self._env.rng.randbytes(16),
            agent=agent,
            made=self._env.now(),
            spec=msgspec.structs.replace(spec, handler=handler),
            group=group,
            rows=len(job.rows),
            rows_hash=rows_hash(job),
            sizes=task_sizes(job),
            choice=chosen[0] if chosen else None,
            seers=seers,
            forecast=expected,
            good=good,
            bad=bad,
            hints=hints(job, seers, expected, bad),
            rules=tuple(note.id for note in notes),
            cached=cached,
        )
        self._keep(made, sum(len(row.source) for row in job.rows))
        return Planned(made, notes)

    def _keep(self, plan: Plan, size: int) -> None:
        self._plans[plan.id] = (plan, size)
        oldest = self._env.now() - VALID_S
        for ident, (one, _) in list(self._plans.items()):
            total = sum(kept for _, kept in self._plans.values())
            if one.made <= oldest or len(self._plans) > PLANS_MAX or total > PLANS_BYTES_MAX:
                del self._plans[ident]

    def find(self, ident: bytes, agent: str) -> Plan:
        """A plan that is still valid.

        Raises:
            JobError: `unknown_job`: none of this agent, or it is too old.
        """
        found = self._plans.get(ident)
        if found is None or found[0].agent != agent or self._env.now() - found[0].made >= VALID_S:
            raise JobError(
                "unknown_job", "no such plan: one is valid for an hour, until the daemon stops"
            )
        return found[0]

    async def redeem(
        self, ident: bytes, *, agent: str, find_peer: Callable[[str], PeerId | None],
        name: Callable[[PeerId], str],
    ) -> tuple[Plan, Job]:  # fmt: skip
        """The job of a plan, drawn as planned and shown to nobody else.

        Args:
            ident: of the plan.
            agent: who submits.
            find_peer: the device a `@peer` cell names.
            name: what to call a device.

        Raises:
            JobError: `unknown_job`.
            PlanError: `plan_changed`, naming what changed.
        """
        plan = self.find(ident, agent)
        size = 0 if plan.choice is None else plan.choice.size
        job = await self._draw(
            plan.spec, agent=agent, group=plan.group, find_peer=find_peer,
            auto_rows=lambda _spec, _rows, _bytes: size,
        )  # fmt: skip
        changed = changes(plan, job, await self._look_at(job), name)
        if changed:
            raise PlanError("plan_changed", "; ".join(changed) + ": plan again")
        job.only = plan.seeing | {self._mesh.id}
        return plan, job

    async def _look_at(self, job: Job) -> tuple[Seer, ...]:
        """Ask the devices that may do a job what they offer."""
        engine = job.spec.engine
        members = list(self._mesh.members(job.group))
        if engine not in {"peers", "local"}:
            members.append(engine_id(engine))
        asked = {self._mesh.id}
        if engine != "local":
            asked.update(peer for peer in members if self._connected(peer))
        self._asked.append(asked)
        try:
            self._look()
            with trio.move_on_after(ASK_S):
                while not all(self._answered(peer) for peer in asked):
                    await self._heard.wait()
        finally:
            self._asked.remove(asked)
        board, wall_ms = self._core().board, self._env.wall_ms()
        return look_at(board, job, members, connected=self._connected, wall_ms=wall_ms)

    def _connected(self, peer: PeerId) -> bool:
        engines = self._core().board.engines
        return peer in engines or self._mesh.fabric.info(peer) is not None

    def _answered(self, peer: PeerId) -> bool:
        cell = self._core().board.peers.get(peer)
        return cell is not None and not cell.down and (bool(cell.handlers) or cell.load is not None)
