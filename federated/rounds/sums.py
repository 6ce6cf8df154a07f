"""A round of sums among members that met: its setting, its run, what came of it.

Apart from the service, which every daemon loads at its start: arrays are worked on here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from federated.errors import RoundError
from federated.rounds.faults import line_of
from federated.rounds.masked_workshop import MaskedWorkshop
from federated.rounds.numeric.payload import encoded_bytes
from federated.rounds.protocol.checks import Setting
from federated.rounds.protocol.machine import Machine
from federated.rounds.protocol.masked_member import MaskedMember
from federated.rounds.protocol.member import Update
from federated.rounds.protocol.orders import Tell
from federated.rounds.protocol.policy import federation_id
from federated.rounds.reports import report_of, unread_of
from federated.rounds.seat import NoKeeper, RoundSeat, link_of
from federated.rounds.workshop import Workshop
from p2p.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from federated.rounds.history import RoundReport
    from federated.rounds.post import Post
    from federated.rounds.protocol.meeting import Circle
    from federated.rounds.protocol.policy import Policy
    from federated.rounds.service import Ask
    from federated.seams import Mesh
    from p2p.env import Env, Offload

LINGER_S: Final = 60.0
"""How long a decided round stays, for members that have not heard of it."""
BACKOFF_S: Final = 1.0


def setting_of(mesh: Mesh, ask: Ask, policy: Policy, circle: Circle, count: int) -> Setting:
    """The setting of a circle's sum of `count` numbers."""
    lineage = circle.lineage(ask.question)
    return Setting(
        me=bytes(mesh.id),
        signer=mesh,
        federation=federation_id(ask.group or b"", ask.kind, lineage),
        number=1,
        circle=circle.peers,
        newcomers=(),
        owners={peer: mesh.owner(PeerId(peer), ask.group) for peer in circle.peers},
        base_root=bytes(32),
        policy=policy,
        schema=ask.question,
        elements=count,
        rule="sum",
        deadline_s=policy.first_deadline_s,
        payload_bytes=encoded_bytes("f64", count),
        backoff_s=BACKOFF_S,
    )


class SumRound:
    """One sum under way.

    Args:
        setting: of `setting_of`.
        ask: what it is for.
        post: messages and bytes.
        env: clocks.
        offload: where arrays are worked on.
        tell: hears what happens.
    """

    def __init__(
        self, setting: Setting, ask: Ask, post: Post, env: Env, offload: Offload,
        tell: Callable[[str, Tell], None],
    ) -> None:  # fmt: skip
        self._setting = setting
        self._ask = ask
        self._env = env
        self._offload = offload
        self._tell = tell
        self.ident = setting.federation.hex()[:32]
        self._scope = trio.CancelScope()
        self._workshop = (
            MaskedWorkshop(len(setting.circle))
            if setting.masked
            else Workshop(owners=dict(setting.owners), check=ask.check)
        )
        machine = Machine(setting, link_of(post, setting), random_bytes=env.rng.randbytes)
        self._seat = RoundSeat(
            setting, machine, self._workshop, post, env, offload, NoKeeper(),
            lambda told: tell(self.ident, told),
        )  # fmt: skip

    async def drive(self) -> None:
        """Take part, and a while longer for members that have not heard of the decision.

        Raises:
            Exception: a fault on this side; who waits for the outcome is told, too.
        """
        try:
            with self._scope:
                await self._seat.run()
        except Exception as error:
            if self._seat.outcome.decided is None:
                self._seat.outcome.failure = RoundError("timeout", f"a fault: {line_of(error)}")
            self._seat.outcome.finished.set()
            raise

    async def outcome(self, vector: NDArray[np.float64]) -> tuple[RoundReport, RoundError | None]:
        """Bring a vector and wait, while `drive` runs; what to note, and why there is no sum."""
        began = self._env.now()
        self._seat.submit(Update(1.0), vector)
        try:
            with trio.move_on_after(self._ask.timeout_s):
                await self._seat.outcome.finished.wait()
            await self._examine()
        except trio.Cancelled:
            # Nobody wants the answer any more: its round takes a place, and ends with it.
            self._scope.cancel()
            raise
        report = report_of(
            self._env, self._setting, self._seat, began, kind=self._ask.kind, name=self._ask.name,
            group=self._ask.group or b"", ident=self.ident, limit_s=self._ask.timeout_s,
        )  # fmt: skip
        # Now, with the report: a thread that opens the sum is not abandoned. When it ends, nothing
        # shows any more that this sum was not to be tried again.
        refused = None if self._seat.outcome.decided else self._refusal(report)
        if refused is None:
            self._scope.deadline = trio.current_time() + LINGER_S
            self._tell(self.ident, Tell("round.applied", f"{len(report.members)} members"))
        else:
            self._scope.cancel()
            self._tell(self.ident, Tell("round.failed", report.reason))
        return report, refused

    async def _examine(self) -> None:
        """Look whose secrets did not come out, if that is why there is no sum."""
        member = self._seat.machine.member
        if not isinstance(member, MaskedMember):
            return
        unmasking = member.unmasking
        if shares := unmasking.unexamined:
            unmasking.examined(await self._offload.run(shares.spoilt))
        if unmasking.read:
            # Opened in the last instant: `drive` has yet to hand it over, or failed and says so.
            await self._seat.outcome.finished.wait()
        for told in unmasking.news():  # somebody withholds its reveal: nobody else tells
            self._tell(self.ident, told)

    def _refusal(self, report: RoundReport) -> RoundError:
        """Why there is no sum."""
        if unread_of(self._seat) is not None:
            # Whatever attempts ended before. Who denied it may have read it, so it is told apart
            # from what may be tried again.
            return RoundError("unread", report.reason)
        return RoundError("below_quorum" if self._seat.outcome.ended else "timeout", report.reason)

    async def whole(self) -> NDArray[np.float64]:
        """The sum, once it is decided."""
        decided = self._seat.outcome.decided
        assert decided is not None
        workshop = self._workshop
        merged = await self._offload.run(lambda: workshop.whole(decided.plan, decided.hashes))
        return merged.astype("f8")
