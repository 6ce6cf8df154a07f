"""Coming into a group: tickets, a person's word, cut and repeated joins, closed invites."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from p2p.errors import DecodeError, Unreachable
from p2p.identity import PeerId
from p2p.replication.config import ReplicationConfig
from p2p.replication.events import GroupError
from p2p.replication.ops import Role
from p2p.replication.ticket import decode_ticket_untrusted, encode_ticket
from tests.helpers.mesh import Mesh, Peer, nodes, pair_up, play, roles, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2p.replication.store import LocalRow


def test_a_ticket_brings_a_device_in_with_everything_written_before() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            await alice.write(group, "before")
            invite = await alice.replication.create_invite(group)
            joined = await bob.replication.join(invite.ticket)
            assert (joined.group, joined.name, joined.home) == (group, "team", False)
            assert (joined.inviter, joined.state) == (alice.id, "member")
            assert len(joined.check_words) == 6
            await wait_until(lambda: bob.texts(group) == ["before"])
            assert roles(alice, group) == roles(bob, group)
            (event,) = [e for e in alice.named("group.member_joined") if e.data["member"] == bob.id]
            assert event.topic == "group"

    play(scene)


def test_writes_travel_both_ways_within_a_fraction_of_a_second() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            await trio.sleep(20)
            for writer, reader in ((alice, bob), (bob, alice)):
                before = trio.current_time()
                await writer.write(group, f"by {writer.name}")
                await wait_until(lambda r=reader, w=writer: f"by {w.name}" in r.texts(group))
                assert trio.current_time() - before < 0.2

    play(scene)


def test_both_screens_show_the_same_words_when_a_person_decides() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            invite = await alice.replication.create_invite(group, confirm=True)
            joined = await bob.replication.join(invite.ticket)
            assert joined.state == "pending"
            (waiting,) = alice.replication.pending()
            assert waiting.check_words == joined.check_words
            assert (waiting.member, waiting.group, waiting.role) == (bob.id, group, Role.WRITE)
            assert alice.named("group.join_pending")
            assert bob.id not in roles(alice, group)
            await alice.write(group, "secret until accepted")
            await trio.sleep(60)
            assert bob.texts(group) == []
            await alice.replication.accept(waiting.join_id)
            await wait_until(lambda: bob.texts(group) == ["secret until accepted"])
            assert bob.replication.groups()[0].state == "member"
            assert bob.named("group.joined")
            assert alice.replication.pending() == []

    play(scene)


def test_a_device_that_was_turned_away_stays_outside() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            invite = await alice.replication.create_invite(group, confirm=True)
            await bob.replication.join(invite.ticket)
            (waiting,) = alice.replication.pending()
            await alice.replication.reject(waiting.join_id)
            assert alice.replication.pending() == []
            await trio.sleep(100)
            assert bob.id not in roles(alice, group)
            with pytest.raises(GroupError):
                await alice.replication.accept(waiting.join_id)

    play(scene)


def test_a_rejection_survives_a_restart_when_the_invite_goes_on() -> None:
    async def scene() -> None:
        async with nodes("bob") as (bob,):
            alice = bob_mesh(bob).peer("alice")
            async with alice.running():
                group = (await alice.replication.create_group("team")).group
                invite = await alice.replication.create_invite(group, uses=3)
                await bob.replication.join(invite.ticket)
                (waiting,) = alice.replication.pending()
                await alice.replication.reject(waiting.join_id)
            async with alice.running():
                assert alice.replication.pending() == []

    play(scene)


def bob_mesh(peer: Peer) -> Mesh:
    """A mesh over the same network, to add a node that starts and stops by itself."""
    mesh = Mesh(5)
    mesh.net = peer.net
    return mesh


def test_a_waiting_device_is_let_in_after_both_restarted() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = (await alice.replication.create_group("team")).group
            await alice.write(group, "text")
            invite = await alice.replication.create_invite(group, confirm=True)
            await bob.replication.join(invite.ticket)
        async with alice.running(), bob.running():
            assert bob.replication.groups()[0].state == "pending"
            (waiting,) = alice.replication.pending()
            await alice.replication.accept(waiting.join_id)
            await wait_until(lambda: bob.texts(group) == ["text"])

    play(scene)


def test_a_device_killed_as_it_was_let_in_knows_it_after_the_start() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running():
            group = (await alice.replication.create_group("team")).group
            async with bob.running():
                invite = await alice.replication.create_invite(group, confirm=True)
                await bob.replication.join(invite.ticket)
                (waiting,) = alice.replication.pending()
                admit, failed = bob.store.admit, []

                async def dying(to: bytes, batch: Any, local: Sequence[LocalRow] = ()) -> object:
                    if failed or any(table == "grp" for table, _ in local):
                        failed.append(local)
                        raise OSError("no power")
                    return await admit(to, batch, local)

                bob.store.admit = dying  # type: ignore[method-assign, assignment]
                await alice.replication.accept(waiting.join_id)
                await wait_until(lambda: bool(failed))
            async with bob.running():
                assert bob.replication.groups()[0].state == "member"
                await alice.write(group, "text")
                await wait_until(lambda: bob.texts(group) == ["text"])

    play(scene)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: replace_ticket(t, role=Role.ADMIN), "bad_ticket"),
        (lambda t: replace_ticket(t, seed=b"s" * 32), "invite_closed"),
        (lambda t: replace_ticket(t, group=b"g" * 32), "unknown_group"),
        (lambda t: replace_ticket(t, not_after_s=1_600_000_000), "ticket_expired"),
    ],
    ids=["role", "seed", "group", "time"],
)
def test_a_changed_ticket_is_refused_with_a_reason_and_leaves_nothing(
    spoil: Callable[[str], str], reason: str
) -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            invite = await alice.replication.create_invite(group)
            with pytest.raises(GroupError) as caught:
                await bob.replication.join(spoil(invite.ticket))
            assert caught.value.reason == reason
            assert bob.replication.groups() == []
            # The true one still works.
            assert (await bob.replication.join(invite.ticket)).state == "member"

    play(scene)


def replace_ticket(text: str, **changes: object) -> str:
    """The ticket with other fields and a right checksum."""
    import msgspec

    ticket = decode_ticket_untrusted(text)
    return encode_ticket(msgspec.structs.replace(ticket, **changes))


def test_a_damaged_ticket_is_refused_offline() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            ticket = (await alice.replication.create_invite(group)).ticket
            for bad in (
                "",
                "hello",
                ticket[:-3],
                ticket[:-1] + ("A" if ticket[-1] != "A" else "B"),
            ):
                with pytest.raises(DecodeError):
                    await bob.replication.join(bad)

    play(scene)


def test_joining_twice_or_by_the_own_ticket_is_refused() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            again = await alice.replication.create_invite(group)
            for peer in (alice, bob):
                with pytest.raises(GroupError) as caught:
                    await peer.replication.join(again.ticket)
                assert caught.value.reason == "already_member"

    play(scene)


def test_two_tickets_taken_at_once_make_one_member_and_no_fork() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            on_disk = bob.store.admit

            async def admit(*args: object, **kwargs: object) -> object:
                await trio.sleep(0.2)  # so that both tickets are under way
                return await on_disk(*args, **kwargs)  # type: ignore[arg-type]

            bob.store.admit = admit  # type: ignore[assignment,method-assign]

            async def enter(ticket: str) -> None:
                with contextlib.suppress(GroupError):  # the later one may hear that it is in
                    await bob.replication.join(ticket)

            tickets = [await alice.replication.create_invite(group) for _ in range(2)]
            async with trio.open_nursery() as nursery:
                for one in tickets:
                    nursery.start_soon(enter, one.ticket)
            await bob.write(group, "in")
            await wait_until(lambda: alice.texts(group) == ["in"])
            await wait_until(lambda: alice.roots(group) == bob.roots(group))
            assert not alice.named("fork.detected")
            assert roles(alice, group)[bob.id] == Role.WRITE
            # One state of the group, with one key: two of them would begin the same log.
            secrets = await bob.store.local("secret", group)
            assert [columns[1] for _, columns in secrets] == ["x25519"]

    play(scene)


def test_an_inviter_that_is_away_is_unreachable_and_a_second_try_works() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            ticket = (await alice.replication.create_invite(group)).ticket
            alice.node.pause()
            with pytest.raises(Unreachable):
                await bob.replication.join(ticket)
            alice.node.resume()
            assert (await bob.replication.join(ticket)).state == "member"

    play(scene)


def test_a_join_over_a_connection_that_ended_unnoticed_asks_once_more() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with bob.running():
            async with alice.running():
                await pair_up(alice, bob)
            async with alice.running():
                # The end of the first connection is still on its way to Bob.
                other = (await alice.replication.create_group("other")).group
                ticket = (await alice.replication.create_invite(other)).ticket
                assert alice.id in bob.node.fabric.peers()
                assert (await bob.replication.join(ticket)).state == "member"

    play(scene)


def test_a_wrong_clock_of_the_inviter_does_not_become_the_newcomers() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            alice.env.offset_ms = 3_600_000
            group = (await alice.replication.create_group("team")).group
            ticket = (await alice.replication.create_invite(group)).ticket
            with pytest.raises(GroupError, match="dated after this machine's clock"):
                await bob.replication.join(ticket)
            assert bob.sealer.hlc >> 16 <= bob.env.wall_ms()
            assert not bob.disk.rows
            bob.env.offset_ms = 3_600_000
            assert (await bob.replication.join(ticket)).state == "member"

    play(scene)


def test_a_join_cut_at_any_moment_is_repaired_by_asking_again() -> None:
    async def scene() -> None:
        for delay_ms in (1, 21, 41, 61, 81, 101):
            async with nodes("alice", "bob") as (alice, bob):
                alice.net.link(alice.ip, bob.ip, latency_s=0.02)
                group = (await alice.replication.create_group("team")).group
                await alice.write(group, "text")
                ticket = (await alice.replication.create_invite(group)).ticket
                with trio.move_on_after(delay_ms / 1000):
                    await bob.replication.join(ticket)
                await trio.sleep(1)
                known = {v.state for v in bob.replication.groups()}
                if "member" not in known:
                    joined = await bob.replication.join(ticket)
                    assert joined.state == "member"
                await wait_until(lambda b=bob, g=group: b.texts(g) == ["text"])
                assert sum(r is not None for r in roles(alice, group).values()) == 2

    play(scene)


def test_any_member_may_let_a_device_in_when_the_inviter_is_away() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await wait_until(lambda: alice.roots(group) == bob.roots(group))
            alice.node.pause()
            # Carol reaches Bob instead: same ticket, another member.
            ticket = decode_ticket_untrusted(invite.ticket)
            carol.node.learn(PeerId(bob.id), [bob.addr])
            group_found = await carol.replication._enter(PeerId(bob.id), ticket)
            assert group_found.state == "member"
            alice.node.resume()
            await wait_until(lambda: carol.id in roles(alice, group))

    play(scene)


def test_a_newcomer_introduces_itself_to_a_member_that_has_not_heard_of_it() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            alice.net.partition(alice.ip, bob.ip)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            await carol.write(group, "by carol")
            alice.node.pause()
            carol.node.pin(PeerId(bob.id), [bob.addr])
            await wait_until(lambda: "by carol" in bob.texts(group))
            assert carol.id in roles(bob, group)

    play(scene)


def test_members_find_each_other_through_the_one_they_both_know() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            await wait_until(lambda: carol.id in bob.node.fabric.peers())

    play(scene)


def test_expired_and_used_invites_are_closed_by_their_author() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            await alice.replication.create_invite(group, expires_s=30)
            await trio.sleep(60)
            core = alice.replication._core.groups.get(group)
            assert core is not None
            views = core.standing.invites().values()
            assert [v.closed for v in views] == [True, True]

    play(scene)


def test_only_admins_invite_and_a_full_group_admits_nobody() -> None:
    async def scene() -> None:
        config = replace(ReplicationConfig.test(), members_max=2)
        async with nodes("alice", "bob", "carol", config=config) as (alice, bob, carol):
            group = await pair_up(alice, bob)
            with pytest.raises(GroupError) as caught:
                await bob.replication.create_invite(group)
            assert caught.value.reason == "not_permitted"
            invite = await alice.replication.create_invite(group)
            with pytest.raises(GroupError) as caught:
                await carol.replication.join(invite.ticket)
            assert caught.value.reason == "over_quota"

    play(scene)
