"""Rounds of this node: the face towards the local socket.

    rounds = Rounds(mesh, jobs_db, env, offload)
    await nursery.start(rounds.run)
    answered = await rounds.total(Ask(...), vector)

A statistic is a round of sums: everybody who asked the same question brings a vector, everybody
gets their sum. Source: docs/specs/rounds.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec
import trio

from federated.errors import PlanError, RoundError
from federated.rounds.faults import line_of
from federated.rounds.history import History, any_federation
from federated.rounds.knocking import KNOCK, NOWHERE
from federated.rounds.meet import Meetings
from federated.rounds.post import Post
from federated.rounds.privacy.choice import MASKED_OWNERS_MIN, choose
from federated.rounds.protocol.orders import Tell
from federated.rounds.protocol.policy import Policy
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from federated.rounds.history import RoundReport
    from federated.rounds.host import Hosts
    from federated.rounds.knocking import Answer, Knock
    from federated.rounds.models import Models
    from federated.rounds.privacy.choice import Mode, Wish
    from federated.rounds.protocol.meeting import Circle
    from federated.rounds.sums import SumRound
    from federated.rounds.workshop import Check
    from federated.seams import Db, GroupId, Mesh
    from p2p.env import Env, Offload
    from p2p.rpc_types import Caller, CallStream

log = logging.getLogger("covey.rounds")

PRESENT_MAX: Final = 64
"""Rounds of this node at once, those that linger included."""
SUM_DEADLINE_S: Final = 10.0
SUM_TRANSFER_S: Final = 10.0


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
        privacy: `masked`: nobody sees another's vector, or there is no sum; `plain`: who adds up
            sees them; `auto`: masked where four owners or more meet and none has a third of the
            machines, else plain if all are one owner's or `allow_plain` is set.
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
    privacy: Wish = "auto"
    allow_plain: bool = False
    check: Check | None = None
    private: bool = False
    """Whether what a member brings is private by itself, so that others may see it."""


@dataclass(frozen=True, kw_only=True)
class Total:
    """The sum over the members that took part."""

    vector: NDArray[np.float64]
    peers: int
    report: RoundReport


class Carried(NamedTuple):
    """Bytes of all rounds of a node: messages, parts, states."""

    bytes_in: int
    bytes_out: int


class Among:
    """Members that met: one sum after the other among them.

    Attributes:
        peers: their ids, ascending; each knows its own place.
        place: ours.
    """

    def __init__(self, rounds: Rounds, ask: Ask, policy: Policy, circle: Circle) -> None:
        self._rounds = rounds
        self._ask = ask
        self._policy = policy
        self._circle = circle
        self._sums = 0
        self.peers = circle.peers
        self.place = circle.peers.index(rounds.me)

    async def total(self, vector: NDArray[np.float64], check: Check | None = None) -> Total:
        """The next sum.

        Args:
            vector: float64[n], finite.
            check: as in `Ask`; None: the ask's own.

        Raises:
            RoundError: why there is none.
        """
        question = self._ask.question
        if self._sums:
            question = sha256(question + self._sums.to_bytes(4, "big")).digest()
        self._sums += 1
        ask = replace(self._ask, question=question, check=check or self._ask.check)
        return await self._rounds.total_among(ask, self._policy, self._circle, vector)


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
        self.me = bytes(mesh.id)
        self._env = env
        self.offload = offload
        self.history = History(db)
        self._post = Post(mesh, env, offload)
        self._meetings = Meetings(mesh, env)
        self._db = db
        self._folder = folder
        self._models: Models | None = None
        self._hosts: Hosts | None = None
        self.pool_socket = pool
        self._post.register()
        self._meetings.register()
        mesh.rpc.serve(KNOCK, self._on_knock)
        self._nursery: trio.Nursery | None = None
        self._listeners: list[OnRound] = []
        self._present = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._post.run)
            if await any_federation(self._db):
                await self.models()
            task_status.started()
            await trio.sleep_forever()

    @property
    def carried(self) -> Carried:
        """Bytes that went to and fro for rounds since we began."""
        return Carried(self._post.bytes_in, self._post.bytes_out)

    # ---- models: loaded, with the arrays, where there are some

    async def models(self) -> Models:
        """The models that this machine trains with others."""
        from federated.rounds.models import Models

        assert self._nursery is not None
        if self._models is None:
            self._models = Models(
                self._mesh, self._db, self._env, self.offload, self._folder, self._post,
                self._meetings, self.history, self._tell,
            )  # fmt: skip
            # Not `start`: the call that needed it first may be cancelled, others wait for it, too.
            self._nursery.start_soon(self._models.run)
        await self._models.ready.wait()
        return self._models

    async def hosts(self) -> Hosts:
        """The pool that trainers of this machine share."""
        from federated.rounds.host import Hosts
        from federated.rounds.pool.server import Pool

        assert self._nursery is not None
        if self._hosts is None:
            pool = Pool(self._env, self.offload, self.pool_socket)
            self._hosts = Hosts(pool, self.offload)
            self._nursery.start_soon(self._hosts.run)
        await self._hosts.ready.wait()
        return self._hosts

    async def _on_knock(self, caller: Caller, knock: Knock, _: CallStream) -> Answer:
        return NOWHERE if self._models is None else self._models.where(caller.peer, knock)

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
        return await (await self.gather(ask)).total(vector)

    async def gather(self, ask: Ask) -> Among:
        """Meet the others that ask the same, for one sum or several among the same members.

        Raises:
            RoundError: why there is nobody.
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
        self._check_group(ask)
        circle = await self._meetings.meet(
            ask.group, ask.question, policy, expected=ask.expected, wait_s=ask.wait_s
        )
        return Among(self, ask, self._policy_among(ask, policy, circle), circle)

    async def total_among(
        self, ask: Ask, policy: Policy, circle: Circle, vector: NDArray[np.float64]
    ) -> Total:
        """One sum of a circle; `ask.question` names it, and what it is named for.

        Raises:
            RoundError: why there is no sum.
        """
        # Loaded by who takes part: a daemon that only listens needs no arrays.
        from federated.rounds.sums import SumRound, setting_of

        assert self._nursery is not None
        setting = setting_of(self._mesh, ask, policy, circle, len(vector))
        under_way = SumRound(setting, ask, self._post, self._env, self.offload, self._tell)
        self._nursery.start_soon(self._drive, under_way)
        report, refused = await under_way.outcome(vector)
        await self._note(report)
        if refused is not None:
            raise refused
        peers = sum(member.status == "included" for member in report.members)
        return Total(vector=await under_way.whole(), peers=peers, report=report)

    async def _note(self, report: RoundReport) -> None:
        """The history is for people: no sum is lost because it cannot be noted."""
        try:
            await self.history.add(report)
        except Exception:
            log.exception("round_not_noted")

    def _check_group(self, ask: Ask) -> None:
        """Refuse before anybody is asked what no members of this group can have.

        Raises:
            RoundError: `plain_refused`, `no_masks`.
        """
        members = [self._mesh.id, *self._mesh.members(ask.group)]
        owners = [self._mesh.owner(peer, ask.group) for peer in members]
        if ask.privacy == "plain" or len(set(owners)) < MASKED_OWNERS_MIN:
            _choose(ask, owners, f"this group has {len(set(owners))} owners")

    def _policy_among(self, ask: Ask, policy: Policy, circle: Circle) -> Policy:
        """The policy of members that met: they all know the same owners, so they decide alike.

        Raises:
            RoundError: `plain_refused`, `no_masks`.
        """
        owners = [self._mesh.owner(PeerId(peer), ask.group) for peer in circle.peers]
        met = f"machines of {len(set(owners))} owners met"
        if _choose(ask, owners, met) == "plain":
            return policy
        return msgspec.structs.replace(policy, codec="mfix64")

    async def _drive(self, under_way: SumRound) -> None:
        self._present += 1
        try:
            await under_way.drive()
        except Exception as error:  # a supervisor: a sum's fault ends that sum
            log.exception("round_fault")
            self._tell(under_way.ident, Tell("round.fault", line_of(error)))
        finally:
            self._present -= 1


def _choose(ask: Ask, owners: Sequence[bytes], who: str) -> Mode:
    """Plain or masked, or why neither: before any data leaves.

    Raises:
        RoundError: `plain_refused`, `no_masks`.
    """
    if ask.private:
        return "plain"
    try:
        return choose(ask.privacy, owners, rule="sum", clip=None, allow_plain=ask.allow_plain).mode
    except PlanError as error:
        if ask.privacy == "masked":
            raise RoundError("no_masks", f"{who}: {error}; nothing was sent") from None
        raise RoundError(
            "plain_refused",
            f"{who}, and who adds up would see each machine's sums: nothing was sent. Masks hide"
            f" them where {MASKED_OWNERS_MIN} owners or more take part (--peers waits for them)"
            " and none has a third of the machines. Or allow it with --allow-plain on every"
            " machine, or ask your own machines alone",
        ) from None
