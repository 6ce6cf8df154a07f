"""Groups, invites and sync for the parts above: the public face of `p2p.replication`.

    replication = Replication(node, store, sealer, env, config)
    await replication.load()                 # before any write
    await nursery.start(replication.run)     # beside node.run

Requests that cannot be fulfilled raise `GroupError` with a reason and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import TimedOut
from p2p.identity import Identity, PeerId
from p2p.identity import verify as verify_signature
from p2p.replication.admission import Admission
from p2p.replication.again import as_it_is
from p2p.replication.authority import Authority
from p2p.replication.cells import Cells
from p2p.replication.core import Core
from p2p.replication.driver import Driver
from p2p.replication.erasures import views as erasure_views
from p2p.replication.events import Events, GroupError
from p2p.replication.founding import found_group
from p2p.replication.groups import (
    STATE_LEFT,
    STATE_MEMBER,
    STATE_REFUSED,
    Group,
    Groups,
)
from p2p.replication.keeper import Keeper
from p2p.replication.loading import load_group
from p2p.replication.membership import Membership
from p2p.replication.ops import Role
from p2p.replication.quota import Quota
from p2p.replication.service_joins import JoinService
from p2p.replication.service_sync import SyncService
from p2p.replication.views import (
    CreatedGroup,
    GroupView,
    MemberView,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.env import Env
    from p2p.identity import Verifier
    from p2p.node import Node
    from p2p.replication.again import Readdress
    from p2p.replication.config import ReplicationConfig
    from p2p.replication.erasures import ErasureView
    from p2p.replication.events import ReplicationEvent
    from p2p.replication.sealing import GroupSealer
    from p2p.replication.store import RecordStore


FOUND_S: Final = 30.0
"""Longest founding of a group: one transaction behind a full queue takes .2 s."""


def _shown_state(group: Group, role: Role | None) -> str:
    return STATE_LEFT if group.state == STATE_MEMBER and role is None else group.state


class _Signer:
    """The node's key as a `Signer`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def id(self) -> PeerId:
        """Our peer id."""
        return self._node.id

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Signature over `domain + body`."""
        return self._node.sign(domain, body)


class Replication(JoinService, SyncService):
    """Replicated groups over a node and a store.

    Args:
        node: the mesh; not yet running.
        store: durable records.
        sealer: the same one the store seals with.
        env: clocks and random numbers.
        config: limits and intervals.
        verify: signature check.
        readdress: gives a plain body of an entry other ids for the records it names: what is
            signed anew has a new id.
    """

    def __init__(
        self,
        node: Node,
        store: RecordStore,
        sealer: GroupSealer,
        env: Env,
        config: ReplicationConfig,
        *,
        verify: Verifier = verify_signature,
        readdress: Readdress = as_it_is,
    ) -> None:
        self._node = node
        self._events = Events()
        groups = Groups(node.id)
        quota = Quota(config)
        signer = _Signer(node)
        admission = Admission(
            store=store,
            sealer=sealer,
            verify=verify,
            env=env,
            config=config,
            groups=groups,
            quota=quota,
            emit=self._events.emit,
            checkpoint=trio.lowlevel.checkpoint,
        )
        keeper = Keeper(
            signer=signer,
            store=store,
            sealer=sealer,
            verify=verify,
            env=env,
            groups=groups,
            emit=self._events.emit,
            checkpoint=trio.lowlevel.checkpoint,
            readdress=readdress,
        )
        self._core = Core(
            signer=signer,
            verify=verify,
            store=store,
            sealer=sealer,
            env=env,
            config=config,
            groups=groups,
            quota=quota,
            events=self._events,
            admission=admission,
            keeper=keeper,
            new_lock=trio.Lock,
            checkpoint=trio.lowlevel.checkpoint,
        )
        self._driver = Driver(self._core, node)
        self.cells = Cells(self._core, node)
        admission.on_opened = self.cells.expect
        """State that agents share: values folded from records."""
        self.membership = Membership(self._core)
        """Roles, removal, leaving, invites."""
        self._loaded = False

    # --- life ---------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read groups, keys and authority from the store. Call before any write."""
        core = self._core
        for _, columns in await core.store.local("grp"):
            group_id, name, home, state = columns[:4]
            assert isinstance(group_id, bytes), "we wrote it"
            group = Group(
                group_id,
                core.groups.free_name(str(name)),
                bool(home),
                str(state),
                Authority(group_id, core.verify),
                core.new_lock(),
            )
            await load_group(core, group)
            core.groups.add(group)
            await core.keeper.follow_limits(group)
            if group.founded:
                await core.keeper.settle_forks(group)
                # Of a run that ended between an erase record and what it asks for.
                await core.keeper.settle_erasures(group, sorted(group.erasures))
        for group in core.groups.all():  # whose device is ours, all groups say together
            await core.keeper.catch_up(group)
        self._loaded = True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sync, push and keep house until cancelled."""
        assert self._loaded, "load() comes before run()"
        for group in self._core.groups.all():
            if group.shares and group.founded:
                async with self._core.keeper.turn(group):
                    await self._core.keeper.shares.open(group)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.cells.run)
            await self._driver.run(task_status=task_status)

    def subscribe(self, fn: Callable[[ReplicationEvent], None]) -> None:
        """Call `fn` for each event; it must not block."""
        self._events.subscribe(fn)

    # --- groups -------------------------------------------------------------------------------

    async def create_group(
        self,
        name: str,
        *,
        home: bool = False,
        recovery: bool = True,
        keep_seed: Callable[[bytes, bytes], None] | None = None,
    ) -> CreatedGroup:
        """Found a group.

        Args:
            name: local name.
            home: whether it holds one person's devices.
            recovery: whether to make a key that outranks the founder, for a lost or stolen device.
            keep_seed: given (group, recovery seed) before anything of the group is stored; it must
                have put the seed in a safe place when it returns, for no other copy is made. What
                it raises ends the founding, and nothing was stored.

        Raises:
            GroupError: the name is taken.
        """
        self._check_name(name)
        seed = self._core.env.rng.randbytes(32) if recovery else None
        key = None if seed is None else Identity.from_seed(seed)

        def before_commit(group: bytes) -> None:
            if seed is not None and keep_seed is not None:
                keep_seed(group, seed)

        # A commit that nobody waits for is a commit all the same: the group would be on disk and
        # unknown here until the next start. So the founding goes on when its caller is cancelled.
        with trio.move_on_after(FOUND_S, shield=True) as limit:
            group = await found_group(
                self._core, name, home=home, recovery=key, before_commit=before_commit
            )
        if limit.cancelled_caught:
            raise TimedOut("the store did not take the new group in time: try again")
        return CreatedGroup(group=group.id, recovery_seed=seed)

    async def rename_group(self, group: bytes, name: str, *, home: bool | None = None) -> None:
        """Change a local name.

        Args:
            group: which.
            name: the new name.
            home: False makes a former home an ordinary group here, when another takes its place:
                its other devices no longer count as ours by it.

        Raises:
            GroupError: unknown group, or the name is taken.
        """
        found = self._group(group)
        is_home = found.home if home is None else home
        if (found.name, found.home) == (name, is_home):
            return
        if found.name != name:
            self._check_name(name)
        row = ("grp", (found.id, name, int(is_home), found.state))
        await self._core.store.admit(found.id, [], [row])
        found.name = name
        found.home = is_home
        self._events.emit("group.changed", {"group": group})

    def _check_name(self, name: str) -> None:
        if self._core.groups.free_name(name) != name:
            raise GroupError("expect_failed", f"a group named {name} exists: choose another name")

    def groups(self) -> list[GroupView]:
        """Our groups, by name."""
        views = []
        for group in self._core.groups.all():
            if group.state == STATE_REFUSED or not group.founded:
                continue
            standing = group.standing
            views.append(
                GroupView(
                    group=group.id,
                    name=group.name,
                    home=group.home,
                    state=_shown_state(group, standing.role(self._core.me)),
                    role=standing.role(self._core.me),
                    members=len(standing.members()),
                    epoch=self._core.sealer.current_epoch(group.id),
                    upgrade_needed=standing.upgrade_needed,
                )
            )
        return sorted(views, key=lambda view: view.name)

    def members(self, group: bytes) -> list[MemberView]:
        """Members of a group, by key.

        Raises:
            GroupError: unknown group.
        """
        found = self._group(group)
        standing = found.standing
        own = self._core.groups.own_devices()
        return [
            MemberView(
                group=group,
                member=member,
                role=role,
                owner=standing.owner(member),
                relation=self._core.groups.relation(found, member, own),
                invited_by=standing.invited_by(member),
            )
            for member, role in standing.members().items()
        ]

    def may_read(self, group: bytes | None, peer: PeerId) -> bool:
        """Whether what a group shares is for `peer`; None: what our own devices share."""
        if group is None:
            return peer in self._core.groups.own_devices()
        found = self._core.groups.get(group)
        if found is None or found.state == STATE_REFUSED or not found.founded:
            return False
        # Neither for those who left nor by us when we left: relays carry sealed records only.
        roles = found.standing.members()
        return all(roles.get(one, Role.RELAY) >= Role.READ for one in (self._core.me, peer))

    # --- erasure ------------------------------------------------------------------------------

    async def publish_erasures(self, group: bytes) -> list[bytes]:
        """Tell a group's members what of ours was erased on this device.

        Also called without need it does no harm: what an erase record of ours names is not named
        again, and upkeep does the same later.

        Returns:
            The members that may hold the bodies: every one but us.

        Raises:
            GroupError: unknown group.
        """
        found = self._group(group)
        if found.founded:
            async with self._core.keeper.turn(found):
                found.unpublished_erasures = True
                await self._core.keeper.do_duties(found)
        return self.others(group)

    def erasures(self, group: bytes) -> list[ErasureView]:
        """What was erased in a group by word to its members, and who confirmed it; newest first.

        Raises:
            GroupError: unknown group.
        """
        found = self._group(group)
        return erasure_views(found) if found.founded else []

    def others(self, group: bytes) -> list[bytes]:
        """Members of a group other than us: who may hold what was written there.

        Raises:
            GroupError: unknown group.
        """
        found = self._group(group)
        members = found.standing.members() if found.founded else {}
        return sorted(member for member in members if member != self._core.me)
