"""Groups, invites and sync for the parts above: the public face of `p2p.replication`.

    replication = Replication(node, store, sealer, env, config)
    await replication.load()                 # before any write
    await nursery.start(replication.run)     # beside node.run

Requests that cannot be fulfilled raise `GroupError` with a reason and what to do.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import TimedOut, Unreachable
from p2p.identity import Identity, PeerId
from p2p.identity import verify as verify_signature
from p2p.replication import join as door
from p2p.replication.admission import Admission
from p2p.replication.authority import Authority
from p2p.replication.cells import Cells
from p2p.replication.checkwords import check_words
from p2p.replication.core import Core
from p2p.replication.driver import Driver
from p2p.replication.erasures import views as erasure_views
from p2p.replication.events import Events, GroupError
from p2p.replication.founding import found_group
from p2p.replication.groups import (
    HOLD_REJECTED,
    STATE_LEFT,
    STATE_MEMBER,
    STATE_REFUSED,
    Group,
    Groups,
)
from p2p.replication.hlc import ms_of
from p2p.replication.invites import (
    can_admit,
    find_invite,
    invite_identity,
    make_close,
    make_invite,
)
from p2p.replication.keeper import Keeper
from p2p.replication.loading import load_group
from p2p.replication.membership import Membership
from p2p.replication.ops import Kind, Role
from p2p.replication.quota import Quota
from p2p.replication.record import LANE_CONTROL, LANE_DATA, decode_header_untrusted
from p2p.replication.talk import FramedTalk
from p2p.replication.ticket import decode_ticket_untrusted, encode_ticket
from p2p.replication.views import (
    CreatedGroup,
    GroupView,
    Invite,
    Joined,
    MemberView,
    PeerSync,
    PendingView,
    RecordView,
    SyncResult,
)
from p2p.wire.multiaddr import decode_addr_untrusted, encode_addr, ip_of, scope_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.env import Env
    from p2p.identity import Verifier
    from p2p.net.seam import Addr
    from p2p.node import Node
    from p2p.replication.config import ReplicationConfig
    from p2p.replication.erasures import ErasureView
    from p2p.replication.events import ReplicationEvent
    from p2p.replication.sealing import GroupSealer
    from p2p.replication.standing import PendingJoin
    from p2p.replication.store import RecordStore
    from p2p.replication.ticket import Ticket


_LOOPBACK: Final = 3

REPAIR_SESSIONS_MAX: Final = 8
"""Sessions of one repair; each brings up to 65,536 records a lane. Source: a guess."""

FOUND_S: Final = 30.0
"""Longest founding of a group: one transaction behind a full queue takes .2 s."""


def _reach(addr: Addr) -> int:
    """How far an address reaches: 0 everywhere, 1 a name, 2 this network, 3 this machine."""
    ip = ip_of(addr)
    if ip is None:
        return 1
    return {"public": 0, "private": 2}.get(scope_of(ip), _LOOPBACK)


def _shown_state(group: Group, role: Role | None) -> str:
    return STATE_LEFT if group.state == STATE_MEMBER and role is None else group.state


def _added(before: SyncResult | None, result: SyncResult) -> SyncResult:
    """The later of two results with what both carried."""
    if before is None:
        return result
    return replace(
        result, received=before.received + result.received, sent=before.sent + result.sent
    )


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


class Replication:
    """Replicated groups over a node and a store.

    Args:
        node: the mesh; not yet running.
        store: durable records.
        sealer: the same one the store seals with.
        env: clocks and random numbers.
        config: limits and intervals.
        verify: signature check.
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

    def _group(self, group: bytes) -> Group:
        found = self._core.groups.get(group)
        if found is None or found.state == STATE_REFUSED:
            raise GroupError("unknown_group", "this device is in no such group")
        return found

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

    # --- invites and joins --------------------------------------------------------------------

    def invite_of(self, group: bytes, member: bytes) -> tuple[bytes, tuple[str, ...]] | None:
        """By which invite a member came in, and the check words of that join; None without one.

        Raises:
            GroupError: unknown group.
        """
        standing = self._group(group).standing
        invites = standing.invites()
        for support in standing.supports(member):
            view = invites.get(support.op_ids[0])
            if view is not None:
                words = check_words(member, view.author, view.invite.invite_key)
                return view.id, tuple(words)
        return None

    async def create_invite(
        self,
        group: bytes,
        *,
        role: Role = Role.WRITE,
        uses: int = 1,
        expires_s: int = 600,
        confirm: bool = False,
    ) -> Invite:
        """Make a ticket with which a device joins.

        Args:
            group: to which group.
            role: what it may do there.
            uses: how many devices; more than one always waits for an accept.
            expires_s: seconds from now.
            confirm: whether each join waits for an accept.

        Raises:
            GroupError: unknown group, or we are no admin of it.
        """
        found = self._group(group)
        if found.role(self._core.me) != Role.ADMIN:
            raise GroupError("not_permitted", "only an admin of the group can invite to it")
        not_after = self._core.env.wall_ms() // 1000 + expires_s
        ticket, payload = make_invite(
            group,
            self._core.me,
            role=role,
            uses=uses,
            not_after_s=not_after,
            confirm=confirm,
            addrs=self._own_addrs(),
            name=found.name,
            rng=self._core.env.rng,
        )
        async with self._core.keeper.turn(found):
            (record,) = await self._core.keeper.write(found, [(Kind.INVITE, payload)])
        return Invite(ticket=encode_ticket(ticket), invite_id=record.id, not_after=not_after)

    def _own_addrs(self) -> list[bytes]:
        """Addresses for a ticket: wide ones first, loopback only if there is no other."""
        ranked = sorted(self._node.fabric.addrs(), key=_reach)
        wide = [addr for addr in ranked if _reach(addr) < _LOOPBACK]
        return [encode_addr(addr) for addr in wide or ranked]

    async def join(self, ticket: str) -> Joined:
        """Enter a group with a ticket.

        Raises:
            GroupError: the ticket is damaged, too old or used, or the group refused.
            Unreachable: the inviter does not answer.
            PeerError: it broke the protocol.
        """
        read = decode_ticket_untrusted(ticket)
        if read.expired(self._core.env.wall_ms()):
            raise GroupError("ticket_expired", "the ticket is too old: ask for a new one")
        if read.inviter == self._core.me:
            raise GroupError("already_member", "this ticket was made on this device")
        known = self._core.groups.get(read.group)
        me = self._core.me
        if known is not None and known.state == STATE_MEMBER and known.role(me) is not None:
            # Whoever was taken out does not know it, but does not know the new invite either.
            key = invite_identity(read.seed, read.group).id
            if find_invite(known.standing, key) is not None:
                raise GroupError("already_member", f"this device is in {known.name} already")
        inviter = PeerId(read.inviter)
        self._node.learn(inviter, [decode_addr_untrusted(addr) for addr in read.addrs])
        group = await self._enter(inviter, read)
        invite_key = invite_identity(read.seed, read.group).id
        self._driver.members_changed(group)
        return Joined(
            group=group.id,
            name=group.name,
            inviter=read.inviter,
            state=group.state,
            check_words=tuple(check_words(self._core.me, read.inviter, invite_key)),
            home=group.home,
        )

    async def _enter(self, inviter: PeerId, ticket: Ticket) -> Group:
        try:
            with trio.fail_after(self._core.config.join_s):
                try:
                    return await self._ask_in(inviter, ticket)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    # The connection may be one that ended with the inviter's last start, unnoticed
                    # here until now. Asking again repeats nothing: our join is on disk.
                    return await self._ask_in(inviter, ticket)
        except trio.TooSlowError:
            raise Unreachable(
                "the inviting device did not finish in time: see that it runs, and try again"
            ) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Unreachable(
                "the inviting device ended the exchange: ask there, then try again"
            ) from None

    async def _ask_in(self, inviter: PeerId, ticket: Ticket) -> Group:
        stream = await self._node.fabric.open(inviter, door.PROTOCOL)
        async with stream:
            return await door.enter_group(self._core, FramedTalk(stream), ticket)

    def pending(self) -> list[PendingView]:
        """Devices that wait to be let in, oldest first."""
        found = []
        for group in self._core.groups.all():
            if group.state != STATE_MEMBER or not group.founded:
                continue
            found += [
                self._pending_view(group, one)
                for one in group.standing.pending_joins()
                if one.join_id not in group.rejected
            ]
        return sorted(found, key=lambda view: (view.at_ms, view.join_id))

    def _pending_view(self, group: Group, one: PendingJoin) -> PendingView:
        view = group.standing.invites()[one.invite_id]
        words = check_words(one.member, view.author, view.invite.invite_key)
        return PendingView(
            join_id=one.join_id,
            group=group.id,
            member=one.member,
            role=view.invite.role,
            at_ms=ms_of(one.hlc),
            check_words=tuple(words),
        )

    def _find_pending(self, join_id: bytes) -> tuple[Group, PendingJoin]:
        for group in self._core.groups.all():
            if group.state == STATE_MEMBER and group.founded:
                found = door.find_pending(group, join_id)
                if found is not None:
                    return group, found
        raise GroupError("unknown_join", "no such device waits: see `covey peers pending`")

    async def accept(self, join_id: bytes) -> None:
        """Let a waiting device in.

        Raises:
            GroupError: nobody waits under that id, or we may not admit.
        """
        group, one = self._find_pending(join_id)
        view = group.standing.invites()[one.invite_id]
        if not can_admit(group.standing, self._core.me, view.invite):
            raise GroupError("not_permitted", "only an admin of the group can accept this device")
        async with self._core.keeper.turn(group):
            if door.find_pending(group, join_id) is None:
                return
            await door.admit_join(self._core, group, one)

    async def reject(self, join_id: bytes) -> None:
        """Turn a waiting device away; an invite for one is closed with it.

        Raises:
            GroupError: nobody waits under that id.
        """
        group, one = self._find_pending(join_id)
        view = group.standing.invites()[one.invite_id]
        row = ("hold", (join_id, group.id, HOLD_REJECTED, 0, b""))
        async with self._core.keeper.turn(group):
            group.rejected.add(join_id)
            if view.invite.uses == 1 and group.role(self._core.me) == Role.ADMIN:
                close = [(Kind.INVITE_CLOSE, make_close(view.id))]
                await self._core.keeper.write(group, close, [row])
            else:
                await self._core.store.admit(group.id, [], [row])

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

    # --- sync ---------------------------------------------------------------------------------

    async def sync_now(
        self, group: bytes | None = None, peer: bytes | None = None
    ) -> list[SyncResult]:
        """Compare with connected members now.

        Args:
            group: one group only; its members are asked.
            peer: one member only; it is dialled if it is not connected.

        Raises:
            GroupError: unknown group.
        """
        results: list[SyncResult] = []
        for one in self._peers_of(group, peer):
            found = await self._driver.sync_with(one)
            results += [r for r in found if group is None or r.group == group]
        return results

    async def repair(
        self, group: bytes | None = None, peer: bytes | None = None
    ) -> list[SyncResult]:
        """Synchronise with connected members until the sets are equal or no session helps.

        Returns:
            A result a group and peer, with the records received and sent of all its sessions.

        Raises:
            GroupError: unknown group.
        """
        results: dict[tuple[bytes, bytes], SyncResult] = {}
        for one in self._peers_of(group, peer):
            for _ in range(REPAIR_SESSIONS_MAX):
                found = await self._driver.sync_with(one)
                asked = [r for r in found if group is None or r.group == group]
                for result in asked:
                    key = result.group, result.peer
                    results[key] = _added(results.get(key), result)
                if not any(r for r in asked if not r.equal and r.received + r.sent):
                    break
        return list(results.values())

    async def verify(
        self, group: bytes | None = None, peer: bytes | None = None
    ) -> list[SyncResult]:
        """Compare sets with connected members to the last record, and fetch nothing.

        Args:
            group: one group only.
            peer: one member only; it is dialled if it is not connected.

        Returns:
            A result a group and peer; `verified` tells whether there is a verdict. None for a peer
            that could not be reached.

        Raises:
            GroupError: unknown group.
        """
        results: list[SyncResult] = []
        for one in self._peers_of(group, peer):
            found = await self._driver.verify_with(one)
            results += [r for r in found if group is None or r.group == group]
        return results

    async def describe(self, ids: Sequence[bytes]) -> list[RecordView]:
        """What the headers of records say, of those that are here."""
        views = []
        for row in await self._core.store.fetch(ids, bodies=False):
            header = decode_header_untrusted(row.header)
            views.append(
                RecordView(
                    id=row.id, author=header.author, kind=header.kind, at_ms=ms_of(header.hlc)
                )
            )
        return views

    def _peers_of(self, group: bytes | None, peer: bytes | None) -> list[bytes]:
        """The members meant: one, or those connected; of one group, or any."""
        asked = None if group is None else self._group(group)
        connected = self._node.fabric.peers()
        peers = [p for p in self._core.groups.peers() if p in connected] if peer is None else [peer]
        return [one for one in peers if asked is None or asked.role(one) is not None]

    async def digest(self, group: bytes) -> tuple[int, bytes]:
        """One hash over what a group holds here: equal on two devices, equal sets.

        Returns:
            How many records count in both lanes, and SHA-256 over their (hlc, id) pairs.

        Raises:
            GroupError: unknown group.
        """
        found = self._group(group)
        hashed, records = hashlib.sha256(), 0
        for lane in (LANE_CONTROL, LANE_DATA):
            index = await self._core.store.index(found.id, lane)
            records += len(index)
            hashed.update(len(index).to_bytes(8, "big") + index.packed)
        return records, hashed.digest()

    def status(self) -> list[PeerSync]:
        """How the last session with each peer ended, per group."""
        return self._driver.status()

    @property
    def records_refused(self) -> int:
        """Records that peers brought and should have refused themselves, since the start."""
        return self._core.quota.refused_in_all
