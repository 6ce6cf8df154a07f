"""Carrying meetings between members: who waits for the same call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from federated.errors import RoundError
from federated.rounds.protocol.meeting import Answering, Asking, Circle, Gathering, Meeting
from federated.rounds.protocol.policy import quorum_of
from p2p.errors import P2pError
from p2p.identity import PeerId
from p2p.rpc_types import Method

if TYPE_CHECKING:
    from federated.rounds.protocol.policy import Policy
    from federated.seams import GroupId, Mesh
    from p2p.env import Env
    from p2p.rpc_types import Caller, CallStream

LOOK_S: Final = 0.5
"""How often the others are asked while one waits. Guess: nobody notices half a second."""
CALL_S: Final = 5.0
NONCE_BYTES: Final = 16

MEET: Final = Method("fed.meet", request=Asking, reply=Answering, idempotent=True)
GATHER: Final = Method("fed.gather", request=Gathering, reply=bool, idempotent=True)


class Wait:
    """One call's wait here."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self.changed = trio.Event()

    def wake(self) -> None:
        """Something came in."""
        self.changed.set()


class Meetings:
    """All waits of this node.

    Args:
        mesh: peers and calls.
        env: clock and nonces.
    """

    def __init__(self, mesh: Mesh, env: Env) -> None:
        self._mesh = mesh
        self._env = env
        self._waits: dict[tuple[bytes, bytes], Wait] = {}

    def register(self) -> None:
        """Serve the methods."""
        self._mesh.rpc.serve(MEET, self._on_meet)
        self._mesh.rpc.serve(GATHER, self._on_gather)

    async def meet(
        self, group: GroupId | None, call: bytes, policy: Policy, *, expected: int, wait_s: float
    ) -> Circle:
        """Wait for others with the same call.

        Raises:
            RoundError: `busy` (this machine waits for it already), `nobody`, `below_quorum`.
        """
        key = (group or b"", call)
        if key in self._waits:
            raise RoundError(
                "busy", "this machine waits for the same question already: one call a machine"
            )
        now = self._env.now()
        nonce = self._env.rng.randbytes(NONCE_BYTES)
        meeting = Meeting(
            bytes(self._mesh.id), nonce, least=policy.min_peers, expected=expected, now=now
        )
        wait = self._waits[key] = Wait(meeting)
        try:
            with trio.move_on_after(wait_s):
                return await self._until_circle(group, call, policy, wait)
            raise RoundError("nobody", _nobody(meeting, policy, expected, wait_s))
        finally:
            del self._waits[key]

    async def _until_circle(
        self, group: GroupId | None, call: bytes, policy: Policy, wait: Wait
    ) -> Circle:
        meeting = wait.meeting
        while meeting.circle is None:
            await self._ask_all(group, call, wait)
            circle = meeting.form(self._env.now())
            if circle is not None:
                await self._gather(group, call, policy, wait, circle)
                continue
            if meeting.circle is None:
                with trio.move_on_after(LOOK_S):
                    await wait.changed.wait()
                wait.changed = trio.Event()
        return meeting.circle

    async def _ask_all(self, group: GroupId | None, call: bytes, wait: Wait) -> None:
        asking = Asking(group or b"", call, wait.meeting.nonce)
        async with trio.open_nursery() as nursery:
            for peer in self._mesh.members(group):
                nursery.start_soon(self._ask, peer, asking, wait)

    async def _ask(self, peer: PeerId, asking: Asking, wait: Wait) -> None:
        try:
            answer = await self._mesh.rpc.call(peer, MEET, asking, timeout_s=CALL_S)
        except P2pError:
            wait.meeting.met(self._env.now(), bytes(peer), None)
        else:
            wait.meeting.met(self._env.now(), bytes(peer), answer.nonce)

    async def _gather(
        self, group: GroupId | None, call: bytes, policy: Policy, wait: Wait, circle: Circle
    ) -> None:
        """Tell the others who is in it.

        Who does not answer is missing from the round, not from the circle: it may have heard.
        """
        gathering = Gathering(group or b"", call, circle.members)
        came: list[bytes] = [bytes(self._mesh.id)]

        async def tell(peer: bytes) -> None:
            try:
                if await self._mesh.rpc.call(PeerId(peer), GATHER, gathering, timeout_s=CALL_S):
                    came.append(peer)
            except P2pError:
                return

        async with trio.open_nursery() as nursery:
            for peer in circle.peers:
                if peer != bytes(self._mesh.id):
                    nursery.start_soon(tell, peer)
        if len(came) < max(quorum_of(len(circle.peers), policy.quorum), policy.min_peers):
            raise RoundError(
                "below_quorum",
                f"only {len(came)} of {len(circle.peers)} machines that asked the same answered"
                " when the round began; try again",
            )
        wait.meeting.accept(circle)

    # ---- others ask

    async def _on_meet(self, caller: Caller, asking: Asking, _: CallStream) -> Answering:
        wait = self._wait_of(caller, asking.group, asking.call)
        if wait is None:
            return Answering(None)
        wait.meeting.met(self._env.now(), bytes(caller.peer), asking.nonce)
        wait.wake()
        return Answering(wait.meeting.nonce)

    async def _on_gather(self, caller: Caller, gathering: Gathering, _: CallStream) -> bool:
        wait = self._wait_of(caller, gathering.group, gathering.call)
        if wait is None:
            return False
        group = gathering.group or None
        circle = Circle(gathering.members)
        others = [peer for peer in circle.peers if peer != bytes(self._mesh.id)]
        if any(self._mesh.trust(PeerId(peer), group) == "none" for peer in others):
            return False
        if bytes(caller.peer) != min(circle.peers):
            return False
        accepted = wait.meeting.accept(circle)
        wait.wake()
        return accepted

    def _wait_of(self, caller: Caller, group: bytes, call: bytes) -> Wait | None:
        if self._mesh.trust(caller.peer, group or None) == "none":
            return None
        return self._waits.get((group, call))


def _nobody(meeting: Meeting, policy: Policy, expected: int, wait_s: float) -> str:
    wanted = expected or policy.min_peers
    return (
        f"{meeting.present} of {wanted} machines asked this within {wait_s:.0f} s: run the same"
        " command, with the same arguments, on the other machines at the same time"
    )
