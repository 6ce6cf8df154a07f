"""Roles, removal with a new key, leaving, coming back, closing invites: between running nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from p2p.replication import liveness
from p2p.replication.events import GroupError
from p2p.replication.groups import HOLD_JUDGE
from p2p.replication.messages import Have
from p2p.replication.ops import Grant, Kind, Role, encode_payload
from p2p.replication.push import PROTOCOL as PUSH
from p2p.replication.record import Envelope, Record
from p2p.replication.sealing import ControlDraft, Place, sign_record
from p2p.replication.state import Change
from p2p.replication.talk import FramedTalk
from tests.helpers.mesh import Mesh, nodes, pair_up, play, roles, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.groups import Group
    from p2p.replication.store import LocalRow
    from p2p.replication.supports import Op
    from tests.helpers.mesh import Peer


async def agree(group: bytes, *peers: Peer) -> None:
    """Until all hold the same records."""
    await wait_until(lambda: len({peer.roots(group) for peer in peers}) == 1)


async def three(alice: Peer, bob: Peer, carol: Peer, role: Role = Role.WRITE) -> bytes:
    """Alice founds; Bob (with the role) and Carol (write) join."""
    group = await pair_up(alice, bob, role=role)
    invite = await alice.replication.create_invite(group)
    await carol.replication.join(invite.ticket)
    await agree(group, alice, bob, carol)
    return group


async def part(peer: Peer, *others: Peer) -> None:
    """Take a node off the network."""
    peer.node.pause()
    await wait_until(lambda: all(peer.id not in o.node.fabric.peers() for o in others))


def test_a_removed_member_reads_nothing_that_is_written_afterwards() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            await alice.write(group, "before")
            await agree(group, alice, bob, carol)
            former = alice.sealer.current_epoch(group)
            done = await alice.replication.membership.remove(group, bob.id)
            assert (done.role, done.voided, done.readers) == (Role.WRITE, 0, 2)
            await agree(group, alice, carol)
            assert roles(carol, group) == {alice.id: Role.ADMIN, carol.id: Role.WRITE}
            await carol.write(group, "after")
            await agree(group, alice, carol)
            assert alice.texts(group) == ["after", "before"]
            assert "after" not in bob.texts(group)
            # Not even with the bytes in hand: the key is another, and he does not have it.
            secret = next(r for r in alice.disk.rows.values() if r.plain == b"after")
            assert secret.envelope is not None
            assert secret.envelope.epoch == alice.sealer.current_epoch(group) != former
            assert secret.envelope.epoch not in bob.sealer.epochs(group)

    play(scene)


def test_what_another_member_writes_in_knowledge_of_a_removal_is_under_the_new_key() -> None:
    """Also what it writes while the removal is on its way to its disk, or just there."""

    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            former = bob.sealer.current_epoch(group)
            admit = bob.store.admit

            async def slowly(*what: Any, **more: Any) -> object:
                await trio.sleep(0.1)
                verdicts = await admit(*what, **more)
                await trio.sleep(0.1)
                return verdicts

            bob.store.admit = slowly  # type: ignore[method-assign, assignment]
            written = [await bob.write(group, "before")]
            await alice.replication.membership.remove(group, carol.id)
            while bob.sealer.current_epoch(group) == former:
                written.append(await bob.write(group, "meanwhile"))
                await trio.sleep(0.01)
            written.append(await bob.write(group, "after"))
            here = view_of(bob, group)
            removal = sum(1 << i for i, op in enumerate(here.standing._book.ops) if is_limit(op))
            rows = [bob.disk.rows[ident] for ident in written]
            knew = [
                bool((here.standing.closure(row.record.head.auth) or 0) & removal) for row in rows
            ]
            assert len(knew) > 10
            assert (knew[0], knew[-1]) == (False, True)
            for row, knows in zip(rows, knew, strict=True):
                assert row.envelope is not None
                assert not (knows and row.envelope.epoch == former)

    play(scene)


def view_of(peer: Peer, group: bytes) -> Group:
    """The group as a node's parts hold it."""
    found = peer.replication._core.groups.get(group)
    assert found is not None
    return found


def is_limit(op: Op) -> bool:
    """Whether an operation takes somebody out."""
    return op.head.kind == Kind.LIMIT


def test_what_a_removed_member_writes_afterwards_counts_nowhere() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            await bob.write(group, "kept")
            await agree(group, alice, bob, carol)
            await part(bob, alice, carol)
            await bob.write(group, "late")
            late = next(r.id for r in bob.disk.rows.values() if r.plain == b"late")
            await alice.replication.membership.remove(group, bob.id)
            await agree(group, alice, carol)
            # Somebody carries it in all the same.
            record = bob.disk.rows[late].record
            assert isinstance(record, Record)
            held = alice.replication._core.groups.get(group)
            assert held is not None
            async with alice.replication._core.keeper.turn(held):
                await alice.replication._core.admission.admit(held, [record.wire()], carol.id)
            assert alice.texts(group) == ["kept"]

    play(scene)


@pytest.mark.parametrize("cut", ["between", "in the middle"])
def test_a_crash_after_a_removal_came_leaves_nothing_that_it_cuts_off(
    cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at who wrote the removal, and not at who was told of it."""

    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob, carol = (mesh.peer(name) for name in ("alice", "bob", "carol"))
        async with alice.running(), bob.running(), carol.running():
            group = await three(alice, bob, carol)
            for n in range(4):
                await bob.write(group, f"bad {n}")
            await agree(group, alice, bob, carol)
        monkeypatch.setattr(liveness, "RESCAN_BYTES", 1)  # a record a transaction
        async with alice.running():
            die_while_voiding(alice, 0 if cut == "between" else 2)
            with pytest.raises(OSError, match="power"):
                await alice.replication.membership.remove(group, bob.id, 0)
        assert alice.texts(group), "it died before it had voided all"
        async with alice.running(), carol.running():
            assert alice.texts(group) == []
            dead = die_while_voiding(carol, 0 if cut == "between" else 2)
            await wait_until(lambda: bool(dead))
        assert carol.texts(group)
        async with carol.running():
            assert carol.texts(group) == []
            assert not await held(carol, HOLD_JUDGE)

    play(scene)


def die_while_voiding(peer: Peer, after: int) -> list[object]:
    """The disk takes so many more transactions that void, and nothing after; what failed."""
    store = peer.store
    failed: list[object] = []
    settle, admit = store.settle, store.admit
    left = after

    async def dying(group: bytes, **what: Any) -> int:
        nonlocal left
        left -= bool(what.get("void"))
        if left < 0:
            failed.append(what)
            raise OSError("no power")
        return await settle(group, **what)

    async def dead(*what: Any) -> Sequence[object]:
        if failed:
            raise OSError("no power")
        return await admit(*what)

    store.settle = dying  # type: ignore[method-assign]
    store.admit = dead  # type: ignore[method-assign, assignment]
    return failed


async def held(peer: Peer, reason: str) -> list[LocalRow]:
    """Rows of a reason that wait at a node."""
    return [row for row in await peer.store.local("hold") if row[1][2] == reason]


def test_a_removal_may_take_back_what_was_written_since_a_time() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            await bob.write(group, "good")
            await agree(group, alice, bob, carol)
            since = alice.env.wall_ms()
            await wait_until(lambda: alice.env.wall_ms() > since + 5)
            for n in range(3):
                await bob.write(group, f"bad {n}")
            await agree(group, alice, bob, carol)
            plan = await alice.replication.membership.plan_removal(group, bob.id, since)
            assert (plan.records, plan.voided) == (4, 3)
            assert roles(alice, group)[bob.id] == Role.WRITE, "a plan changes nothing"
            await alice.replication.membership.remove(group, bob.id, since)
            await agree(group, alice, carol)
            assert alice.texts(group) == carol.texts(group) == ["good"]
            assert (await alice.replication.membership.plan_removal(group, carol.id, 0)).voided == 0

    play(scene)


def test_who_was_removed_comes_back_by_a_new_invite_with_all_it_wrote() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            await bob.write(group, "early")
            await agree(group, alice, bob, carol)
            await part(bob, alice, carol)
            await bob.write(group, "while he did not know")
            await alice.replication.membership.remove(group, bob.id)
            await alice.write(group, "not for bob")
            bob.node.resume()
            invite = await alice.replication.create_invite(group)
            joined = await bob.replication.join(invite.ticket)
            assert joined.state == "member"
            await bob.write(group, "back")
            await agree(group, alice, bob, carol)
            # A newcomer is handed all keys, and so is who comes back.
            for peer in (alice, bob, carol):
                assert peer.texts(group) == [
                    "back",
                    "early",
                    "not for bob",
                    "while he did not know",
                ]
            assert roles(carol, group)[bob.id] == Role.WRITE

    play(scene)


def test_nobody_removes_who_ranks_as_high() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol, role=Role.ADMIN)
            for who, whom in ((bob, alice.id), (carol, bob.id), (carol, alice.id)):
                with pytest.raises(GroupError) as refused:
                    await who.replication.membership.remove(group, whom)
                assert refused.value.reason == "not_permitted"
            with pytest.raises(GroupError, match="leave"):
                await alice.replication.membership.remove(group, alice.id)
            assert bob.replication.membership.rank(group, bob.id) == 2
            await bob.replication.membership.remove(group, carol.id)
            await agree(group, alice, bob)
            await alice.replication.membership.remove(group, bob.id)
            assert roles(alice, group) == {alice.id: Role.ADMIN}

    play(scene)


def test_roles_go_up_and_down() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            change = alice.replication.membership.set_role
            await change(group, bob.id, Role.ADMIN)
            await agree(group, alice, bob, carol)
            assert roles(carol, group)[bob.id] == Role.ADMIN
            await bob.write(group, "as an admin")
            await agree(group, alice, bob, carol)
            await change(group, bob.id, Role.READ)
            await agree(group, alice, bob, carol)
            assert roles(bob, group)[bob.id] == Role.READ
            assert carol.texts(group) == ["as an admin"]
            with pytest.raises(GroupError, match="already"):
                await change(group, bob.id, Role.READ)
            epoch = alice.sealer.current_epoch(group)
            await change(group, bob.id, Role.RELAY)
            assert alice.sealer.current_epoch(group) != epoch, "a relay holds no key"

    play(scene)


def test_who_leaves_is_out_and_the_admin_changes_the_key() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            await bob.write(group, "mine")
            await agree(group, alice, bob, carol)
            epoch = alice.sealer.current_epoch(group)
            await bob.replication.membership.leave(group)
            await wait_until(lambda: bob.id not in roles(alice, group))
            await wait_until(lambda: alice.sealer.current_epoch(group) != epoch)
            await agree(group, alice, carol)
            assert carol.sealer.current_epoch(group) == alice.sealer.current_epoch(group)
            assert carol.texts(group) == ["mine"]
            with pytest.raises(GroupError, match="last admin"):
                await alice.replication.membership.leave(group)

    play(scene)


def test_an_admin_that_leaves_changes_the_key_itself() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol, role=Role.ADMIN)
            epoch = alice.sealer.current_epoch(group)
            commits: list[int] = []
            bob.store.on_commit(lambda _, ids: commits.append(len(ids)))
            await bob.replication.membership.leave(group)
            assert commits == [2]  # or a crash between would leave a key and nobody gone
            await wait_until(lambda: bob.id not in roles(alice, group))
            await agree(group, alice, carol)
            assert alice.sealer.current_epoch(group) != epoch
            assert roles(carol, group) == {alice.id: Role.ADMIN, carol.id: Role.WRITE}

    play(scene)


def test_a_rotation_gives_every_reader_a_new_key() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            await agree(group, alice, bob)
            epoch = alice.sealer.current_epoch(group)
            assert await alice.replication.membership.rotate(group) == 2
            await agree(group, alice, bob)
            assert bob.sealer.current_epoch(group) == alice.sealer.current_epoch(group) != epoch
            with pytest.raises(GroupError, match="only an admin"):
                await bob.replication.membership.rotate(group)

    play(scene)


def test_a_newcomer_is_handed_the_key_that_was_made_while_it_came_in() -> None:
    """One admin lets it in, another changes the key, and neither knows of the other."""

    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob, role=Role.ADMIN)
            await agree(group, alice, bob)
            await part(bob, alice)
            await bob.replication.membership.rotate(group)
            ident = await bob.write(group, "under a key that only Bob knows")
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            await part(carol, alice)
            bob.node.resume()
            carol.node.resume()
            await agree(group, alice, bob, carol)
            assert ident in carol.disk.rows
            await wait_until(lambda: len(carol.texts(group)) == 1)
            shares = [r for r in alice.disk.rows.values() if r.record.kind == Kind.KEY_SHARE]
            assert len(shares) == 3
            await trio.sleep(300)
            again = [r for r in alice.disk.rows.values() if r.record.kind == Kind.KEY_SHARE]
            assert len(again) == 3

    play(scene)


@pytest.mark.parametrize("away", [False, True])
def test_who_is_taken_out_hears_of_it_and_of_nothing_younger(*, away: bool) -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            await trio.sleep(10)
            if away:
                await part(bob, alice, carol)
            await alice.replication.membership.remove(group, bob.id)
            if away:
                await alice.replication.create_invite(group)
                await alice.write(group, "younger")
                await agree(group, alice, carol)
                assert not bob.named("group.left")
                bob.node.resume()
            await wait_until(lambda: bool(bob.named("group.left")))
            (view,) = bob.replication.groups()
            assert (view.state, view.role) == ("left", None)
            assert bob.id not in roles(bob, group)
            assert bob.texts(group) == []
            kinds = [r.record.kind for r in bob.disk.rows.values()]
            shown = [r.record.kind for r in alice.disk.rows.values()]
            assert kinds.count(Kind.LIMIT) == 1
            assert kinds.count(Kind.EPOCH) == 1 == shown.count(Kind.EPOCH) - 1
            assert kinds.count(Kind.INVITE) == 2
            assert shown.count(Kind.INVITE) == (3 if away else 2)
            before = len(bob.disk.rows)
            await alice.write(group, "later")
            await trio.sleep(300)
            assert len(bob.disk.rows) == before
            assert len(bob.named("group.left")) == 1
            invite = await alice.replication.create_invite(group)
            assert (await bob.replication.join(invite.ticket)).state == "member"
            await agree(group, alice, bob, carol)
            assert "later" in bob.texts(group)

    play(scene)


def test_a_stranger_is_told_nothing() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            await alice.replication.membership.remove(group, bob.id)
            await carol.node.fabric.connect(alice.identity.id, [alice.addr])
            stream = await carol.node.fabric.open(alice.identity.id, PUSH)
            async with stream:
                await FramedTalk(stream).send(Have(group, (bytes(32),)))
                await trio.sleep(60)
            assert not carol.disk.rows

    play(scene)


def test_a_closed_invite_lets_nobody_in() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            invite = await alice.replication.create_invite(group)
            (row,) = alice.replication.membership.invites(group)
            assert (row.id, row.open, row.used) == (invite.invite_id, True, 0)
            await alice.replication.membership.close_invite(group, invite.invite_id)
            assert not alice.replication.membership.invites(group)[0].open
            with pytest.raises(GroupError, match="closed"):
                await bob.replication.join(invite.ticket)
            with pytest.raises(GroupError, match="no such invite"):
                await alice.replication.membership.close_invite(group, bytes(32))

    play(scene)


# --- what a hostile or a demoted member may not bring about -----------------------------------


def test_a_demoted_member_goes_on_writing() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol, role=Role.ADMIN)
            await bob.write(group, "as an admin")
            await agree(group, alice, bob, carol)
            await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
            await agree(group, alice, bob, carol)
            await bob.write(group, "as a writer")
            await agree(group, alice, bob, carol)
            assert carol.texts(group) == bob.texts(group) == ["as a writer", "as an admin"]

    play(scene)


def test_a_relay_that_may_read_gets_the_keys() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob, role=Role.RELAY)
            await alice.write(group, "sealed")
            await agree(group, alice, bob)
            assert bob.texts(group) == []
            await alice.replication.membership.set_role(group, bob.id, Role.WRITE)
            await agree(group, alice, bob)
            assert bob.texts(group) == ["sealed"]

    play(scene)


def test_what_was_taken_back_on_purpose_stays_away_when_its_author_returns() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            await bob.write(group, "good")
            await agree(group, alice, bob, carol)
            since = alice.env.wall_ms()
            await wait_until(lambda: alice.env.wall_ms() > since + 5)
            await bob.write(group, "bad")
            await agree(group, alice, bob, carol)
            await alice.replication.membership.remove(group, bob.id, since)
            invite = await alice.replication.create_invite(group)
            await bob.replication.join(invite.ticket)
            await agree(group, alice, bob, carol)
            assert alice.texts(group) == bob.texts(group) == ["good"]

    play(scene)


def test_a_counter_does_not_count_twice_when_a_member_returns() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            step = Change("counter", ("n",), "incr", 5)
            await bob.replication.cells.change(group, step)
            await agree(group, alice, bob, carol)
            await part(bob, alice, carol)
            await bob.replication.cells.change(group, Change("counter", ("n",), "incr", 3))
            await alice.replication.membership.remove(group, bob.id)
            bob.node.resume()
            invite = await alice.replication.create_invite(group)
            await bob.replication.join(invite.ticket)
            await agree(group, alice, bob, carol)
            for peer in (alice, bob, carol):
                folded = await peer.replication.cells.get(group, "counter", ("n",))
                assert folded.value == 5

    play(scene)


def test_who_falls_with_a_removed_admin_does_not_get_the_new_key() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob, role=Role.ADMIN)
            invite = await bob.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            await agree(group, alice, bob, carol)
            await alice.replication.membership.remove(group, bob.id, 0)
            assert roles(alice, group) == {alice.id: Role.ADMIN}
            held = alice.replication._core.groups.get(group)
            assert held is not None
            newest = held.standing.epochs()[0]
            assert [who for who, _ in newest.payload.shares] == [alice.id]

    play(scene)


def test_many_heads_do_not_make_an_admin_write_keys_for_ever() -> None:
    """A member that signs in many logs at once keeps an epoch from citing all operations."""

    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await three(alice, bob, carol)
            held = bob.replication._core.groups.get(group)
            assert held is not None
            auth = held.authority.heads(bob.id)
            logs = [(group, bob.id, 9_000_000 + n, 0) for n in range(9)]
            payload = encode_payload(Grant(carol.id, Role.READ))
            ahead = (bob.env.wall_ms() + 300_000) << 16
            forged = []
            for n, log in enumerate(logs):
                envelope = Envelope(bytes([n]) * 16, None, None, payload)
                draft = ControlDraft(Kind.GRANT, payload)
                place = Place(log, 1, None, 0)
                forged.append(
                    sign_record(bob.identity, group, draft, place, ahead + n, auth, envelope)
                )
            here = alice.replication._core.groups.get(group)
            assert here is not None
            core = alice.replication._core
            async with core.keeper.turn(here):
                _, admitted = await core.admission.admit(here, [r.wire() for r in forged], bob.id)
                await core.keeper.after(here, admitted)
            assert len(here.authority.heads(alice.id)) == 8
            await carol.replication.membership.leave(group)
            await wait_until(lambda: carol.id not in roles(alice, group))
            await trio.sleep(400)
            assert len(here.standing.epochs()) <= 4

    play(scene)
