"""Federations of this node: join, submit, wait, leave; each runs until it is left."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import msgspec
import trio

from federated.errors import RoundError, UsageError
from federated.rounds.catching_up import ask_where, fetch_state, owner_in
from federated.rounds.federation import Federation
from federated.rounds.federation_store import FederationStore, Standing, load_all
from federated.rounds.knocking import NOWHERE, believed
from federated.rounds.numeric import rules, tensors
from federated.rounds.owners import admits, owners_among
from federated.rounds.protocol.policy import check_for_models, federation_id
from federated.rounds.reports import report_of
from federated.rounds.statefile import load_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from federated.rounds.history import History
    from federated.rounds.knocking import Answer, Knock, Where
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
ASK_S: Final = 1.0
"""How often a machine that joins asks the members again while it cannot believe them."""


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
        self._locks: dict[bytes, trio.Lock] = {}
        """Of federations that are being joined or left."""
        self._nursery: trio.Nursery | None = None
        self.ready = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Go on with every federation, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for kept in await load_all(self._db):
                if kept.fault:
                    log.error("kept_model_unreadable", extra={"f": {"why": kept.fault}})
                self._start(kept.ident, kept.standing, fault=kept.fault)
            self.ready.set()
            task_status.started()
            await trio.sleep_forever()

    def _start(self, ident: bytes, standing: Standing, *, fault: str = "") -> Federation:
        assert self._nursery is not None
        federation = Federation(
            ident, standing, self._store(ident), self._mesh, self._post, self._env, self._offload,
            lambda told: self._tell(ident.hex()[:32], told), self._note, fault=fault,
        )  # fmt: skip
        self._live[ident] = federation
        if fault:
            federation.left.set()
        else:
            self._nursery.start_soon(federation.run)
        return federation

    @asynccontextmanager
    async def _alone(self, ident: bytes) -> AsyncIterator[None]:
        """Let nobody else join or leave this federation meanwhile: it has one loop and one row."""
        lock = self._locks.setdefault(ident, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._locks.get(ident) is lock:
                del self._locks[ident]

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
            UsageError: the state, or the policy's rule or codec, cannot be used.
            RoundError: why not.
        """
        check_for_models(policy)
        ident = model_federation(group or b"", name)
        if ident not in self._live:
            self._check(name, ident)
        async with self._alone(ident):
            known = self._live.get(ident)
            if known is None:
                return await self._join(group, name, policy, Path(path), ident, expected, wait_s)
            known.check_running()
            return known

    async def _join(
        self, group: GroupId | None, name: str, policy: Policy, path: Path, ident: bytes,
        expected: int, wait_s: float,
    ) -> Federation:  # fmt: skip
        self._check_owners(group, policy, map(bytes, self._mesh.members(group)))

        def read() -> tuple[tensors.Schema, Mapping[str, Array], bytes]:
            state = load_state(path)
            schema = tensors.schema_of(state)
            tensors.check(schema, state)
            return schema, state, tensors.genesis_root(schema, state)

        schema, state, root = await self._offload.run(read)
        standing = Standing(
            group=group or b"", name=name, policy=policy, schema=schema.encode(), round=0,
            root=root, state_sha=root, circle=(), rule=resolved_rule(policy),
        )  # fmt: skip
        found = await self._go_on_where_others_are(ident, standing, schema, wait_s)
        if found is None:
            found = await self._found(ident, standing, state, expected, wait_s)
        standing, first = found
        store = self._store(ident)
        # Not cut in two: what is kept runs.
        with trio.CancelScope(shield=True):
            await store.save(standing, schema, first, {})
            await store.sweep(standing)
        return self._start(ident, standing)

    def _check(self, name: str, ident: bytes) -> None:
        if not 0 < len(name) <= NAME_CHARACTERS_MAX:
            raise UsageError(f"a model's name has 1 to {NAME_CHARACTERS_MAX} characters")
        if len((self._live.keys() | self._locks.keys()) - {ident}) >= FEDERATIONS_MAX:
            raise RoundError(
                "busy", f"this machine is in {FEDERATIONS_MAX} federations: leave one first"
            )

    def _check_owners(self, group: GroupId | None, policy: Policy, peers: Iterable[bytes]) -> None:
        """Refuse before anything leaves what would show one owner's updates to another.

        Raises:
            RoundError: `plain_refused`.
        """
        owners = owners_among(self._mesh, group, peers)
        if len(owners) > 1 and not policy.allow_plain:
            raise RoundError(
                "plain_refused",
                f"this group has {len(owners)} owners, and who merges a part sees it of every"
                " member: nothing was sent. Set allow_plain in every member's policy, or train on"
                " your own machines alone",
            )

    # ---- joining

    async def _go_on_where_others_are(
        self, ident: bytes, standing: Standing, schema: tensors.Schema, wait_s: float
    ) -> tuple[Standing, Mapping[str, Array]] | None:
        """Where the others are, and their state; None: there is no such federation yet.

        Members learn of a round one after the other, so they are asked until a quorum agrees.
        """
        until = self._env.now() + wait_s
        owner = owner_in(self._mesh, standing.group or None)
        while True:
            answers = await ask_where(self._mesh, ident, self._admitted(standing))
            if not answers:
                return None
            found = believed(answers, bytes(self._mesh.id), standing.policy, owner)
            if found is not None:
                gone_on = await self._go_on(ident, standing, schema, *found)
                if gone_on is not None:
                    return gone_on
            if self._env.now() >= until:
                raise RoundError(
                    "nobody",
                    f"{len(answers)} machines are in this federation, but "
                    + ("too few agree where it is" if found is None else "none gives its state")
                    + ": try again when more of them are up",
                )
            await trio.sleep(ASK_S)

    def _admitted(self, standing: Standing) -> list[bytes]:
        group, several = standing.group or None, standing.policy.allow_plain
        members = map(bytes, self._mesh.members(group))
        return [peer for peer in members if admits(self._mesh, group, peer, several=several)]

    async def _go_on(
        self, ident: bytes, standing: Standing, schema: tensors.Schema, where: Where,
        holders: tuple[bytes, ...],
    ) -> tuple[Standing, Mapping[str, Array]] | None:  # fmt: skip
        if where.policy != standing.policy.digest():
            raise RoundError("differs", "the others run this federation with another policy")
        if where.schema != sha256(standing.schema).digest():
            raise RoundError("differs", "the others' model has other tensors")
        self._check_owners(standing.group or None, standing.policy, where.circle)
        state = await fetch_state(self._post, self._offload, ident, schema, where, holders)
        if state is None:
            return None
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
        # Asked again: another owner may have come to the group while we waited.
        self._check_owners(standing.group or None, standing.policy, circle.peers)
        return msgspec.structs.replace(standing, circle=circle.peers), state

    # ---- leaving

    async def leave(self, group: GroupId | None, name: str) -> None:
        """Take part no longer; the states here go, and what this machine promised stays.

        Raises:
            RoundError: `unknown`.
        """
        federation = self.find(group, name)
        async with self._alone(federation.ident):
            if self._live.get(federation.ident) is not federation:
                return  # somebody else was faster
            federation.scope.cancel()
            with trio.CancelScope(shield=True):
                # It may be writing a round: what is forgotten before that would come back.
                await federation.left.wait()
                await federation.store.forget()
                del self._live[federation.ident]

    # ---- others

    def where(self, peer: PeerId, knock: Knock) -> Answer:
        """Where a federation is here, for a member that asks."""
        federation = self._live.get(knock.federation)
        return NOWHERE if federation is None else federation.where(bytes(peer))


def model_federation(group: bytes, name: str) -> bytes:
    """Id of a model's federation."""
    return federation_id(group, name)


def resolved_rule(policy: Policy) -> str:
    """The rule that all rounds of a federation use."""
    return rules.resolve(cast("rules.Rule", policy.rule), root_data=policy.root_data is not None)
