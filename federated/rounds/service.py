"""Rounds of this node: the face towards the local socket.

    rounds = Rounds(mesh, jobs_db, env, offload)
    await nursery.start(rounds.run)
    answered = await rounds.total(Ask(...), vector)

A statistic is a round of sums: everybody who asked the same question brings a vector, everybody
gets their sum. Source: docs/specs/rounds.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from federated.errors import RoundError
from federated.rounds.history import History
from federated.rounds.host import Hosts
from federated.rounds.meet import Meetings
from federated.rounds.models import Models
from federated.rounds.pool.server import Pool
from federated.rounds.post import Post
from federated.rounds.protocol.checks import Setting
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.member import Update
from federated.rounds.protocol.orders import Tell
from federated.rounds.protocol.policy import Policy, federation_id
from federated.rounds.reports import report_of
from federated.rounds.seat import NoKeeper, RoundSeat
from federated.rounds.workshop import Workshop, encoded_bytes
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from federated.rounds.history import RoundReport
    from federated.rounds.protocol.meeting import Circle
    from federated.rounds.workshop import Check
    from federated.seams import Db, GroupId, Mesh
    from p2p.env import Env, Offload

log = logging.getLogger("covey.rounds")

LINGER_S: Final = 60.0
"""How long a decided round stays, for members that have not heard of it."""
PRESENT_MAX: Final = 64
"""Rounds of this node at once, those that linger included."""
SUM_DEADLINE_S: Final = 10.0
SUM_TRANSFER_S: Final = 10.0
SUM_BACKOFF_S: Final = 1.0


class OnRound(Protocol):
    """Hears what happens: the round's id, what, a line, and whom it is about."""

    def __call__(self, ident: str, kind: str, detail: str, peer: bytes | None) -> None:
        """Something happened."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question to everybody's data.

    Args:
        group: whose members are asked; None: our own machines.
        kind: `mean`, `histogram`, ...
        question: 32 bytes of all that must be equal for two calls to meet.
        name: what it is about, for people.
        expected: members to wait for; 0: until nobody new comes.
        wait_s: how long to wait for them.
        timeout_s: how long the round itself may take.
        allow_plain: whether members of several owners may see each other's sums.
        check: why no data lead to a member's vector, or nothing; asked by who merges them.
    """

    group: GroupId | None
    kind: str
    question: bytes
    name: str = ""
    expected: int = 0
    wait_s: float = 60.0
    timeout_s: float = 60.0
    allow_plain: bool = False
    check: Check | None = None


@dataclass(frozen=True, kw_only=True)
class Total:
    """The sum over the members that took part."""

    vector: NDArray[np.float64]
    peers: int
    report: RoundReport


class Rounds:
    """The rounds of a node.

    Args:
        mesh: peers and calls.
        db: jobs.db; open while `run` runs.
        env: clocks and random numbers.
        offload: where arrays are worked on.
        folder: where states of models are kept.
        pool: socket of the pool that trainers of this machine share.
    """

    def __init__(
        self, mesh: Mesh, db: Db, env: Env, offload: Offload, folder: Path, pool: Path
    ) -> None:
        self._mesh = mesh
        self._env = env
        self._offload = offload
        self.history = History(db)
        self._post = Post(mesh, env)
        self._meetings = Meetings(mesh, env)
        self.models = Models(
            mesh, db, env, offload, folder, self._post, self._meetings, self.history, self._tell
        )
        self.pool_socket = pool
        self.hosts = Hosts(Pool(env, offload, pool), offload)
        self._post.register()
        self._meetings.register()
        self.models.register()
        self._nursery: trio.Nursery | None = None
        self._listeners: list[OnRound] = []
        self._present = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._post.run)
            await nursery.start(self.hosts.run)
            await nursery.start(self.models.run)
            task_status.started()
            await trio.sleep_forever()

    def on_event(self, fn: OnRound) -> None:
        """Have `fn` told what happens."""
        self._listeners.append(fn)

    def _tell(self, ident: str, told: Tell) -> None:
        for fn in self._listeners:
            fn(ident, told.kind, told.detail, told.peer)

    # ---- sums

    async def total(self, ask: Ask, vector: NDArray[np.float64]) -> Total:
        """Meet the others that ask the same, and add up everybody's vector.

        Args:
            ask: the question.
            vector: float64[n], finite.

        Raises:
            RoundError: why there is no sum.
        """
        if self._present >= PRESENT_MAX:
            raise RoundError("busy", f"{PRESENT_MAX} rounds are under way here: wait a minute")
        policy = Policy(
            rule="sum", codec="f64", first_deadline_s=SUM_DEADLINE_S, transfer_s=SUM_TRANSFER_S,
            allow_plain=ask.allow_plain,
        )  # fmt: skip
        others = len(self._mesh.members(ask.group))
        if max(ask.expected, policy.min_peers) > others + 1:
            raise RoundError(
                "too_few",
                f"there are {others + 1} machines here, {max(ask.expected, policy.min_peers)} are"
                " needed: `covey peers list` shows them, `covey invite` adds one",
            )
        self._check_owners(ask)
        circle = await self._meetings.meet(
            ask.group, ask.question, policy, expected=ask.expected, wait_s=ask.wait_s
        )
        setting = self._sum_setting(ask, policy, circle, len(vector))
        return await self._take_part(ask, setting, vector)

    def _check_owners(self, ask: Ask) -> None:
        """Refuse before anything leaves what would show one owner's data to another.

        Raises:
            RoundError: `plain_refused`.
        """
        members = [self._mesh.id, *self._mesh.members(ask.group)]
        owners = {self._mesh.owner(peer, ask.group) for peer in members}
        if len(owners) > 1 and not ask.allow_plain:
            raise RoundError(
                "plain_refused",
                f"this group has {len(owners)} owners, and who adds up sees each machine's sums:"
                " nothing was sent. Allow it with --allow-plain on every machine, or ask your own"
                " machines alone",
            )

    def _sum_setting(self, ask: Ask, policy: Policy, circle: Circle, count: int) -> Setting:
        lineage = circle.lineage(ask.question)
        return Setting(
            me=bytes(self._mesh.id),
            signer=self._mesh,
            federation=federation_id(ask.group or b"", ask.kind, lineage),
            number=1,
            circle=circle.peers,
            newcomers=(),
            owners=self._owners(circle.peers, ask.group),
            base_root=bytes(32),
            policy=policy,
            schema=ask.question,
            elements=count,
            rule="sum",
            deadline_s=policy.first_deadline_s,
            payload_bytes=encoded_bytes("f64", count),
            backoff_s=SUM_BACKOFF_S,
        )

    def _owners(self, peers: Sequence[bytes], group: GroupId | None) -> dict[bytes, bytes]:

        return {peer: self._mesh.owner(PeerId(peer), group) for peer in peers}

    async def _take_part(self, ask: Ask, setting: Setting, vector: NDArray[np.float64]) -> Total:
        assert self._nursery is not None
        ident = setting.federation.hex()[:32]
        began = self._env.now()
        workshop = Workshop(owners=dict(setting.owners), check=ask.check)
        seat = RoundSeat(
            setting, Machine(setting), workshop, self._post, self._env, self._offload, NoKeeper(),
            lambda told: self._tell(ident, told),
        )  # fmt: skip
        seat.submit(Update(1.0), vector)
        scope = trio.CancelScope()
        self._nursery.start_soon(self._run_seat, seat, scope)
        with trio.move_on_after(ask.timeout_s):
            await seat.outcome.finished.wait()
        report = report_of(
            self._env, setting, seat, began, kind=ask.kind, name=ask.name, group=ask.group or b"",
            ident=ident, limit_s=ask.timeout_s,
        )  # fmt: skip
        decided = seat.outcome.decided
        await self.history.add(report)
        if decided is None:
            scope.cancel()
            self._tell(ident, Tell("round.failed", report.reason))
            raise RoundError("timeout" if not seat.outcome.ended else "below_quorum", report.reason)
        scope.deadline = trio.current_time() + LINGER_S
        self._tell(ident, Tell("round.applied", f"{len(report.members)} members"))
        merged = await self._offload.run(lambda: workshop.whole(decided.plan, decided.hashes))
        peers = sum(member.status == "included" for member in report.members)
        return Total(vector=merged.astype("f8"), peers=peers, report=report)

    async def _run_seat(self, seat: RoundSeat, scope: trio.CancelScope) -> None:
        self._present += 1
        try:
            with scope:
                await seat.run()
        finally:
            self._present -= 1
