"""Federations of this node: join, submit, wait, leave; each runs until it is left."""

from __future__ import annotations

import logging
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from federated.errors import RoundError, UsageError
from federated.rounds.federation import (
    Federation,
    ask_where,
    fetch_state,
    model_federation,
    resolved_rule,
)
from federated.rounds.federation_store import FederationStore, Standing, load_all
from federated.rounds.knocking import NOWHERE
from federated.rounds.numeric import tensors
from federated.rounds.reports import report_of
from federated.rounds.statefile import load_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federated.rounds.history import History
    from federated.rounds.knocking import Knock, Where
    from federated.rounds.meet import Meetings
    from federated.rounds.numeric.dtypes import Array
    from federated.rounds.post import Post
    from federated.rounds.protocol.checks import Setting
    from federated.rounds.protocol.orders import Tell
    from federated.rounds.protocol.policy import Policy
    from federated.rounds.seat import RoundSeat
    from federated.seams import Db, GroupId, Mesh
    from p2p.env import Env, Offload
    from p2p.identity import PeerId

log = logging.getLogger("covey.rounds")

FEDERATIONS_MAX: Final = 8
"""Of a node. Source: federated rounds, limits."""
NAME_CHARACTERS_MAX: Final = 100


class Models:
    """All federations of a node.

    Args:
        mesh, db, env, offload: as everywhere.
        folder: where states are kept.
        post: messages and bytes.
        meetings: how first circles are formed.
        history: where rounds are noted.
        tell: hears what happens: a federation's id and what.
    """

    def __init__(
        self, mesh: Mesh, db: Db, env: Env, offload: Offload, folder: Path, post: Post,
        meetings: Meetings, history: History, tell: Callable[[str, Tell], None],
    ) -> None:  # fmt: skip
        self._mesh = mesh
        self._db = db
        self._env = env
        self._offload = offload
        self._folder = folder
        self._post = post
        self._meetings = meetings
        self._history = history
        self._tell = tell
        self._live: dict[bytes, Federation] = {}
        self._nursery: trio.Nursery | None = None
        self.ready = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Go on with every federation, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for ident, standing in await load_all(self._db):
                self._start(ident, standing)
            self.ready.set()
            task_status.started()
            await trio.sleep_forever()

    def _start(self, ident: bytes, standing: Standing) -> Federation:
        assert self._nursery is not None
        federation = Federation(
            ident, standing, self._store(ident), self._mesh, self._post, self._env, self._offload,
            lambda told: self._tell(ident.hex()[:32], told), self._note,
        )  # fmt: skip
        self._live[ident] = federation
        self._nursery.start_soon(federation.run)
        return federation

    def _store(self, ident: bytes) -> FederationStore:
        return FederationStore(self._db, self._folder, ident, self._offload)

    async def _note(
        self, standing: Standing, setting: Setting, seat: RoundSeat, began: float
    ) -> None:
        report = report_of(
            self._env, setting, seat, began, kind="model", name=standing.name,
            group=standing.group, ident=sha256(setting.federation + standing.root).hexdigest()[:32],
        )  # fmt: skip
        await self._history.add(report)

    # ---- for trainers

    def all(self) -> list[Federation]:
        """Every federation here, by name."""
        return sorted(self._live.values(), key=lambda one: one.standing.name)

    def find(self, group: GroupId | None, name: str) -> Federation:
        """The federation of this name in this group.

        Raises:
            RoundError: `unknown`.
        """
        found = self._live.get(model_federation(group or b"", name))
        if found is None:
            raise RoundError("unknown", f"this machine is no member of {name!r}: join it first")
        return found

    async def join(
        self, group: GroupId | None, name: str, policy: Policy, path: str, *, expected: int,
        wait_s: float,
    ) -> Federation:  # fmt: skip
        """Take part in a federation: found it with others, or go on where they are.

        Args:
            group: whose machines; None: our own.
            name: of the model.
            policy: how rounds are run, equal at all members.
            path: a safetensors file with the first state, equal at all members.
            expected: members to found it with; 0: when nobody new comes.
            wait_s: how long to wait for them.

        Raises:
            UsageError: the state cannot be used.
            RoundError: why not.
        """
        ident = model_federation(group or b"", name)
        if ident in self._live:
            return self._live[ident]
        self._check(group, name, policy)
        state = await self._offload.run(lambda: load_state(Path(path)))
        schema = tensors.schema_of(state)
        await self._offload.run(lambda: tensors.check(schema, state))
        standing = Standing(
            group=group or b"", name=name, policy=policy, schema=schema.encode(), round=0,
            root=tensors.genesis_root(schema, state), state_sha=tensors.genesis_root(schema, state),
            circle=(), rule=resolved_rule(policy),
        )  # fmt: skip
        found = await self._go_on_where_others_are(ident, standing, schema)
        if found is None:
            found = await self._found(ident, standing, state, expected, wait_s)
        if found is None:
            raise RoundError("nobody", "no other machine joined")
        standing, first = found
        await self._store(ident).save(standing, schema, first, {})
        return self._start(ident, standing)

    def _check(self, group: GroupId | None, name: str, policy: Policy) -> None:
        if not 0 < len(name) <= NAME_CHARACTERS_MAX:
            raise UsageError(f"a model's name has 1 to {NAME_CHARACTERS_MAX} characters")
        if len(self._live) >= FEDERATIONS_MAX:
            raise RoundError(
                "busy", f"this machine is in {FEDERATIONS_MAX} federations: leave one first"
            )
        members = [self._mesh.id, *self._mesh.members(group)]
        owners = {self._mesh.owner(peer, group) for peer in members}
        if len(owners) > 1 and not policy.allow_plain:
            raise RoundError(
                "plain_refused",
                f"this group has {len(owners)} owners, and who merges a part sees it of every"
                " member: nothing was sent. Set allow_plain in every member's policy, or train on"
                " your own machines alone",
            )

    async def _go_on_where_others_are(
        self, ident: bytes, standing: Standing, schema: tensors.Schema
    ) -> tuple[Standing, Mapping[str, Array]] | None:
        others = tuple(bytes(peer) for peer in self._mesh.members(standing.group or None))
        answers = await ask_where(self._mesh, ident, others)
        if not answers:
            return None
        where = max(answers.values(), key=lambda one: (_votes(answers, one), one.round))
        if where.policy != standing.policy.digest():
            raise RoundError("differs", "the others run this federation with another policy")
        if where.schema != sha256(standing.schema).digest():
            raise RoundError("differs", "the others' model has other tensors")
        holders = [peer for peer, one in answers.items() if one == where]
        state = await fetch_state(self._post, self._offload, ident, schema, where, holders)
        if state is None:
            raise RoundError("nobody", "no member gives its state now: try again")
        fresh = msgspec.structs.replace(
            standing, round=where.round, root=where.root, state_sha=where.state_sha,
            circle=where.circle, clip=where.clip,
        )  # fmt: skip
        return fresh, state

    async def _found(
        self, ident: bytes, standing: Standing, state: Mapping[str, Array], expected: int,
        wait_s: float,
    ) -> tuple[Standing, Mapping[str, Array]]:  # fmt: skip
        parts = (ident, standing.policy.digest(), standing.schema, standing.root)
        call = sha256(b"covey/fed/found/1\0" + b"".join(sha256(one).digest() for one in parts))
        circle = await self._meetings.meet(
            standing.group or None, call.digest(), standing.policy, expected=expected,
            wait_s=wait_s,
        )  # fmt: skip
        return msgspec.structs.replace(standing, circle=circle.peers), state

    async def leave(self, group: GroupId | None, name: str) -> None:
        """Take part no longer; the states here go."""
        federation = self.find(group, name)
        federation.scope.cancel()
        del self._live[federation.ident]
        await federation.store.forget()

    # ---- others

    def where(self, peer: PeerId, knock: Knock) -> Where:
        """Where a federation is here, for a member that asks."""
        federation = self._live.get(knock.federation)
        if federation is None:
            return NOWHERE
        group = federation.standing.group or None
        if self._mesh.trust(peer, group) == "none":
            return NOWHERE
        return federation.where(bytes(peer))


def _votes(answers: Mapping[bytes, Where], wanted: Where) -> int:
    return sum(one == wanted for one in answers.values())
