"""What follows from new control records: keys, voids, forks, owners; and what we write ourselves.

After each batch of control records the keeper brings the store in line with what the authority now
says, tells subscribers, and does this device's duties (hand keys on, vouch for own devices, publish
the owner). Duties write control records, which are followed up in turn until nothing is left.
Callers hold the group's turn. Source: docs/specs/sync.md s.7; docs/specs/authority.md.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from p2p.replication.again import MAX_SEQ, Again
from p2p.replication.epoch import next_epoch
from p2p.replication.erasing import Erasing
from p2p.replication.events import GroupError
from p2p.replication.groups import STATE_MEMBER, STATE_PENDING, Group, load_authority
from p2p.replication.hlc import next_incarnation
from p2p.replication.invites import invites_to_close, make_close
from p2p.replication.liveness import Liveness, unjudged_rows
from p2p.replication.ops import (
    EraseAck,
    ForkProof,
    Kind,
    Role,
    encode_payload,
    verify_fork_proof,
)
from p2p.replication.owners import Owners
from p2p.replication.record import (
    LANE_CONTROL,
    Record,
    decode_header_untrusted,
)
from p2p.replication.sealing import ControlDraft
from p2p.replication.shares import Shares, payload_of, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from p2p.env import Env
    from p2p.identity import Signer, Verifier
    from p2p.replication.again import Readdress
    from p2p.replication.events import Emit
    from p2p.replication.groups import Groups
    from p2p.replication.ops import Payload
    from p2p.replication.sealing import GroupSealer
    from p2p.replication.store import LocalRow, LogKey, RecordStore


class Keeper:
    """Follows up on control records and writes our own.

    Args:
        signer: this device.
        store: records.
        sealer: keys and our logs.
        verify: signature check.
        env: clocks and random numbers.
        groups: all groups.
        emit: events.
        checkpoint: lets other tasks run.
        readdress: changes the ids that a body names.
    """

    def __init__(
        self,
        *,
        signer: Signer,
        store: RecordStore,
        sealer: GroupSealer,
        verify: Verifier,
        env: Env,
        groups: Groups,
        emit: Emit,
        checkpoint: Callable[[], Awaitable[None]],
        readdress: Readdress,
    ) -> None:
        self._me = signer.id
        self._store = store
        self._sealer = sealer
        self._verify = verify
        self._env = env
        self._groups = groups
        self._emit = emit
        self.shares = Shares(signer.id, store, sealer, env, checkpoint)
        self._owners = Owners(signer, store, env, groups)
        self.again = Again(signer.id, store, self.shares.open_row, readdress)
        self.erasing = Erasing(signer.id, store, env, emit)
        self._liveness = Liveness(store, self.erasing, checkpoint)
        self.members_changed: Callable[[Group], None] = lambda group: None  # noqa: ARG005 - a hook

    # --- turns --------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, group: Group) -> AsyncIterator[None]:
        """Hold a group alone, to judge, store and follow up.

        A turn that breaks off (cancelled, disk full) may leave on disk what is not in memory, or
        the other way round, and its follow-up undone; the next turn then begins by reading the
        group anew. A refusal is a proper end.
        """
        async with group.lock:
            if group.stale:
                await self._refresh(group)
            group.stale = True
            try:
                yield
            except GroupError:
                group.stale = False
                raise
            group.stale = False

    async def _refresh(self, group: Group) -> None:
        await load_authority(group, self._store, self._verify)
        self.load_sealer(group)
        if not group.founded:
            return
        for row in await self._store.control(group.id):
            self.shares.note(group, record_of(row))
        await self.shares.open(group)
        self._sealer.advance(group.id)
        await self.shares.open_waiting(group)
        await self.settle_forks(group)
        group.void_ops = group.standing.void_ops()
        await self.rescan(group)
        await self.erasing.settle_all(group, sorted(group.erasures))
        await self._tell_members(group)
        await self._tell_owners(group)
        await self._liveness.judged(group)

    # --- own control records ------------------------------------------------------------------

    async def write(
        self, group: Group, payloads: Sequence[tuple[Kind, Payload]], local: Sequence[LocalRow] = ()
    ) -> list[Record]:
        """Write control records of ours in one transaction and follow up on them.

        Args:
            group: whose lock the caller holds.
            payloads: kind and payload, each citing the operations before it.
            local: rows written in the same transaction.
        """
        records = await self.write_only(group, payloads, local)
        await self.after(group, records)
        return records

    async def write_only(
        self, group: Group, payloads: Sequence[tuple[Kind, Payload]], local: Sequence[LocalRow] = ()
    ) -> list[Record]:
        """As `write`, without following up."""
        await self.begin_control_log(group)
        log = self._sealer.log(group.id, LANE_CONTROL)
        seq, prev, hlc = 0, None, 0
        for state in await self._store.logs(group.id):
            if state.key == log and state.max_seq:
                last = await self._store.at(log, state.max_seq)
                assert last is not None, "our own log has no gap at its end"
                header = decode_header_untrusted(last.header)
                seq, prev, hlc = state.max_seq, last.id, header.hlc
        drafts = [ControlDraft(kind, encode_payload(payload)) for kind, payload in payloads]
        records = self._sealer.seal_batch(group.id, drafts, seq + 1, prev, hlc)
        await self._store.admit(group.id, records, [*local, *unjudged_rows(group, records)])
        for record, (_, payload) in zip(records, payloads, strict=True):
            group.authority.add(record.id, record.head, payload)
        self.shares.use_own(group, records)
        self._sealer.advance(group.id)
        group.note_stored({self._groups.me: len(records)})
        return records

    async def begin_control_log(self, group: Group) -> None:
        """The first control record after a start opens a new log unless a member has the old one.

        If this database is an old copy, going on with the old log would fork it, and a fork of the
        control log would void the invitations above it.
        """
        if group.control_confirmed:
            return
        await self.renew(group, control=True, data=False)
        group.control_confirmed = True

    async def renew(self, group: Group, *, control: bool = True, data: bool = True) -> None:
        """Begin new incarnations of our logs."""
        used = [s.key[2] for s in await self._store.logs(group.id) if s.key[1] == self._me]
        number = next_incarnation(max([*used, 0]), self._env.wall_ms())
        if used or control:
            group.incarnations = [
                number if control and used else group.incarnations[0],
                number if data and used else group.incarnations[1],
            ]
        self.load_sealer(group)

    async def follow_limits(self, group: Group) -> None:
        """Write in new logs where a limit that spares us a role asks for that (a demotion)."""
        if not group.founded or group.role(self._me) is None:
            return
        limits = group.standing.limits_on(self._me)
        needed = max((limit.next_incarnation for limit in limits), default=0)
        if min(group.incarnations) >= needed:
            return
        used = [s.key[2] for s in await self._store.logs(group.id) if s.key[1] == self._me]
        if next_incarnation(max([*used, 0]), self._env.wall_ms()) >= needed:
            await self.renew(group)
            # What was sealed in the old logs is on disk when this returns, to be judged.
            await self._store.admit(group.id, [])

    def load_sealer(self, group: Group) -> None:
        """Tell the sealer the group's authority, incarnations and keys."""
        control, data = group.incarnations
        self._sealer.load_group(
            group.id, group.authority, incarnation=control, data_incarnation=data
        )
        self.shares.use_epochs(group)
        if group.founded:
            self._sealer.set_owner(group.id, group.standing.owner(self._me))

    # --- follow up ----------------------------------------------------------------------------

    async def heard(self, group: Group, records: Sequence[Record]) -> None:
        """As `after`, for records that a peer brought.

        One of ours among them that we lacked proves that our database is an old copy: nothing less
        than its signature does. The logs in force are not continued then, or they would fork.
        """
        if any(
            record.author == self._me and record.incarnation >= group.incarnations[record.lane]
            for record in records
        ):
            await self.renew(group)
            self._emit("own_log.restored", {"group": group.id, "why": "behind"})
        await self.after(group, records)

    async def after(self, group: Group, records: Sequence[Record]) -> None:
        """Bring everything in line with new records of a group, own or foreign."""
        control = [record for record in records if record.lane == LANE_CONTROL]
        # Bodies left out already; this remembers for ever that they are not to be taken.
        await self.settle_erasures(group, [r.id for r in records if r.id in group.erasures])
        while control:
            await self._apply_forks(group, control)
            for record in control:
                payload = payload_of(record)
                group.erase_index.note(record.id, record.head, payload)
                if isinstance(payload, EraseAck):
                    self._emit(
                        "erasure.confirmed",
                        {
                            "group": group.id,
                            "member": record.author,
                            "erasures": len(payload.erased),
                        },
                    )
            await self.shares.take(group, control)
            self._sealer.advance(group.id)
            # First, or what is written meanwhile in the log that a limit ends is judged by nobody.
            await self.follow_limits(group)
            await self._liveness.judge_anew(group, control)
            await self.again.plan_cut(group)
            await self._tell_members(group)
            await self._tell_owners(group)
            await self.erasing.follow(group, control)
            control = await self._duties(group)
            await self._sign_again(group)
        await self._liveness.judged(group)

    async def _sign_again(self, group: Group) -> None:
        """Go on with that, if we have a key to write under; the next upkeep tries it else."""
        if (
            group.again
            and group.id in self._groups
            and self._sealer.current_epoch(group.id) is not None
        ):
            await self.again.go_on(group)

    async def _apply_forks(self, group: Group, records: Sequence[Record]) -> None:
        """Void the logs that proofs among the records are about."""
        forks = await self._settle_forks(group, records)
        for log, seq in forks:
            self._emit(
                "fork.detected",
                {
                    "group": group.id,
                    "author": log[1],
                    "incarnation": log[2],
                    "lane": log[3],
                    "seq": seq,
                },
            )
        own = [(log, seq) for log, seq in forks if log[1] == self._me]
        if own:
            group.unpublished_erasures = True
            await self.renew(group)
            self._emit("own_log.restored", {"group": group.id, "why": "fork"})

    async def settle_forks(self, group: Group) -> None:
        """Tell the store of every fork that is proven: a crash may have come between."""
        control = map(record_of, await self._store.control(group.id))
        proofs = [record for record in control if record.kind == Kind.FORK_PROOF]
        forks = await self._settle_forks(group, proofs)
        ours = [log for log, _ in forks if log[1] == self._me]
        if any(group.incarnations[log[3]] == log[2] for log in ours):
            await self.renew(group)

    async def _settle_forks(
        self, group: Group, records: Sequence[Record]
    ) -> list[tuple[LogKey, int]]:
        """Tell the store of proven forks; the logs, and from where they are void."""
        forks: list[tuple[LogKey, int, bytes, bytes]] = []
        for record in records:
            payload = payload_of(record)
            if not isinstance(payload, ForkProof):
                continue
            fork = verify_fork_proof(payload, group.id, self._verify)
            log = (group.id, fork.author, fork.incarnation, fork.lane)
            forks.append((log, fork.seq, fork.id_a, fork.id_b))
            evidence = group.evidence.get(log)
            if evidence is not None and evidence.seq >= fork.seq:
                del group.evidence[log]
        if forks:
            # Remembered first: a log that is settled is never looked at again.
            for log, seq in await self._fresh_own(group, [fork[:2] for fork in forks]):
                await self.again.plan(group, log, seq)
            await self._store.settle(group.id, fork=forks)
        return [(log, seq) for log, seq, *_ in forks]

    async def _fresh_own(
        self, group: Group, forks: Sequence[tuple[LogKey, int]]
    ) -> list[tuple[LogKey, int]]:
        """Those forks of our own logs that the store has not heard of, or only higher up."""
        own = [fork for fork in forks if fork[0][1] == self._me]
        known = {log.key: log.fork_seq for log in await self._store.logs(group.id)} if own else {}
        return [(log, seq) for log, seq in own if seq < (known.get(log) or MAX_SEQ)]

    async def prove(self, group: Group, *, all_of_it: bool = False) -> int:
        """Write fork proofs from the evidence at hand; how many.

        Args:
            group: whose lock the caller holds.
            all_of_it: also where the first difference was not found.
        """
        ready = []
        for log in sorted(group.evidence):
            evidence = group.evidence[log]
            known = group.authority.fork_seq(log[1], log[2], log[3])
            if known is not None and known <= evidence.seq:
                del group.evidence[log]
            elif evidence.first or all_of_it:
                ready.append(log)
        if group.role(self._me) is None or not ready:
            return 0
        proofs = [group.evidence.pop(log) for log in ready]
        await self.write(
            group,
            [
                (
                    Kind.FORK_PROOF,
                    ForkProof(e.header_a, e.signature_a, e.header_b, e.signature_b),
                )
                for e in proofs
            ],
        )
        return len(proofs)

    # --- erasure ------------------------------------------------------------------------------

    async def settle_erasures(self, group: Group, targets: Sequence[bytes]) -> int:
        """Carry out erase records about data that is here; how many records lost their content.

        Args:
            group: whose lock the caller holds.
            targets: ids that erase records name; those not here wait for their header.
        """
        return await self.erasing.settle_all(group, targets) if targets else 0

    async def close_invites(self, group: Group) -> None:
        """Close own invites that are used up or expired: then no late or backdated admit counts.

        An expired one that somebody waits on stays open for the person who was asked.
        """
        if group.role(self._me) != Role.ADMIN:
            return
        awaited = {
            one.invite_id
            for one in group.standing.pending_joins()
            if one.join_id not in group.rejected
        }
        wall_ms = self._env.wall_ms()
        due = [i for i in invites_to_close(group.standing, self._me, wall_ms) if i not in awaited]
        if due:
            await self.write(group, [(Kind.INVITE_CLOSE, make_close(i)) for i in due])

    # --- liveness -----------------------------------------------------------------------------

    async def rescan(self, group: Group) -> int:
        """Judge every record of the group against the standing; how many changed."""
        return await self._liveness.rescan(group)

    async def catch_up(self, group: Group) -> None:
        """After a start: what a run that ended in the middle left undone."""
        if not group.founded:
            return
        await self._note_own_state(group, dict(group.standing.members()))
        if group.unjudged:
            await self.rescan(group)
            await self._tell_owners(group)
            await self._liveness.judged(group)
        await self.again.plan_cut(group)

    # --- members and owners -------------------------------------------------------------------

    async def _tell_members(self, group: Group) -> None:
        if not group.founded:
            return
        members = dict(group.standing.members())
        before = group.known_members
        if members == before:
            return
        group.known_members = members
        for member in sorted(members.keys() - before.keys()):
            self._emit(
                "group.member_joined",
                {"group": group.id, "member": member, "role": int(members[member])},
            )
        for member in sorted(before.keys() - members.keys()):
            self._emit("group.member_removed", {"group": group.id, "member": member})
        if self._me in before and self._me not in members:
            self._emit("group.left", {"group": group.id})
        await self._note_own_state(group, members)
        self._emit("group.changed", {"group": group.id})
        self.members_changed(group)

    async def _note_own_state(self, group: Group, members: dict[bytes, Role]) -> None:
        if self._me in members and group.state == STATE_PENDING:
            group.state = STATE_MEMBER
            await self._store.admit(
                group.id, [], [("grp", (group.id, group.name, int(group.home), group.state))]
            )
            self._emit("group.joined", {"group": group.id})

    async def _tell_owners(self, group: Group) -> None:
        """Owners and relations of authors may have changed, here and where a home counts."""
        touched = self._groups.all() if group.home else [group]
        for other in touched:
            changes = self._owners.changes(other)
            if changes:
                await self._store.settle(other.id, owners=changes)
            if other.founded and other.id in self._groups:
                self._sealer.set_owner(other.id, other.standing.owner(self._me))

    async def do_duties(self, group: Group) -> None:
        """Do what our position obliges us to now, and follow up on it."""
        await self.erasing.settle_all(group, [])  # admins' words whose time has come
        await self.erasing.walk(group)
        await self._sign_again(group)
        await self.after(group, await self._duties(group))
        # These not in the turn that calls for them: at most one new key, many words in one record.
        if group.state == STATE_MEMBER and group.role(self._me) is not None:
            rotation = self._rotation(group)
            if rotation:
                await self.write(group, rotation)
            owed = self.shares.owed(group)
            if owed:
                await self.write(group, [(Kind.KEY_SHARE, share) for share in owed])
        await self._confirm_erasures(group)

    async def _confirm_erasures(self, group: Group) -> None:
        """Say which erase records were carried out here."""
        if group.state != STATE_MEMBER or group.role(self._me) is None:
            return
        words = await self.erasing.confirmations(group)
        if words:
            await self.write(group, words)

    async def _duties(self, group: Group) -> list[Record]:
        """Write what our position obliges us to; the records written."""
        if group.state != STATE_MEMBER or group.role(self._me) is None:
            return []
        payloads, local = await self._owners.duties(group)
        payloads = [*payloads, *await self.erasing.unpublished(group)]
        if not payloads:
            return []
        return await self.write_only(group, payloads, local)

    def _rotation(self, group: Group) -> list[tuple[Kind, Payload]]:
        """A new key where the present one is older than a removal, such as a member's own leaving.

        The first of the admins does it, so that not all do; any of them can at once by hand.
        """
        members = group.standing.members()
        first = next((m for m, role in members.items() if role == Role.ADMIN), None)
        if first != self._me or not group.epochs or not group.standing.rotation_due():
            return []
        return [(Kind.EPOCH, next_epoch(group, self._env.rng))]
