"""What people and the daemon do with groups: found, invite, join, accept, restart, sync."""

from __future__ import annotations

import contextlib
import copy
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from p2p.errors import DecodeError, Unreachable
from p2p.identity import Identity, PeerId
from p2p.net.memory_fabric import MemFabric
from p2p.net.seam import PeerUp
from p2p.replication import again, session
from p2p.replication.config import ReplicationConfig
from p2p.replication.events import GroupError
from p2p.replication.groups import HOLD_AGAIN
from p2p.replication.ops import Kind, Role
from p2p.replication.runner import GRACE_S
from p2p.replication.ticket import decode_ticket_untrusted, encode_ticket
from tests.helpers.det import run_seeded
from tests.helpers.hostile import Liar
from tests.helpers.mesh import Mesh, Peer, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from p2p.replication.store import LocalRow


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene under virtual time."""
    run_seeded(scene, seed=1)


@asynccontextmanager
async def nodes(*names: str, config: ReplicationConfig | None = None) -> AsyncIterator[list[Peer]]:
    """Running nodes."""
    mesh = Mesh(5, config)
    peers = [mesh.peer(name) for name in names]
    async with AsyncExitStack() as stack:
        for peer in peers:
            await stack.enter_async_context(peer.running())
        yield peers


async def pair_up(a: Peer, b: Peer, *, name: str = "team", role: Role = Role.WRITE) -> bytes:
    """A founds, B joins; the group."""
    group = (await a.replication.create_group(name)).group
    invite = await a.replication.create_invite(group, role=role)
    joined = await b.replication.join(invite.ticket)
    assert joined.state == "member"
    return group


def roles(peer: Peer, group: bytes) -> dict[bytes, Role]:
    """Members and roles as the peer sees them."""
    return {m.member: m.role for m in peer.replication.members(group)}


# --- groups -----------------------------------------------------------------------------------


def test_inviter_and_invited_trust_each_other_alike() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            team = await pair_up(alice, bob)
            for me, them in ((alice, bob), (bob, alice)):
                seen = {v.member: v.relation for v in me.replication.members(team)}
                assert seen[them.id] == "invited"

    play(scene)


async def test_a_founder_is_admin_and_can_write_at_once() -> None:
    alice = Mesh().peer("alice")
    alice.build()
    await alice.replication.load()
    made = await alice.replication.create_group("home", home=True)
    (view,) = alice.replication.groups()
    assert (view.group, view.name, view.home, view.state) == (made.group, "home", True, "member")
    assert (view.role, view.members) == (Role.ADMIN, 1)
    assert view.epoch is not None
    await alice.write(made.group, "first")
    assert alice.texts(made.group) == ["first"]


async def test_the_recovery_seed_is_the_key_the_genesis_names() -> None:
    alice = Mesh().peer("alice")
    alice.build()
    await alice.replication.load()
    with_key = await alice.replication.create_group("a")
    without = await alice.replication.create_group("b", recovery=False)
    core = alice.replication._core
    assert with_key.recovery_seed is not None
    genesis = core.groups.get(with_key.group)
    assert genesis is not None
    assert genesis.standing.recovery_key == Identity.from_seed(with_key.recovery_seed).id
    assert without.recovery_seed is None


async def test_the_recovery_seed_is_kept_before_the_group_and_nowhere_else() -> None:
    alice = Mesh().peer("alice")
    alice.build()
    await alice.replication.load()
    kept: list[tuple[bytes, bytes, int]] = []

    def keep(group: bytes, seed: bytes) -> None:
        kept.append((group, seed, len(alice.disk.rows)))

    made = await alice.replication.create_group("a", keep_seed=keep)
    assert kept == [(made.group, made.recovery_seed, 0)]
    assert made.recovery_seed not in {
        cell for row in await alice.store.local("secret") for cell in row[1]
    }


async def test_a_seed_that_cannot_be_kept_founds_nothing() -> None:
    alice = Mesh().peer("alice")
    alice.build()
    await alice.replication.load()

    def full(_group: bytes, _seed: bytes) -> None:
        raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"):
        await alice.replication.create_group("a", keep_seed=full)
    assert alice.replication.groups() == []
    assert not alice.disk.rows


async def test_a_local_name_is_unique_and_can_be_changed() -> None:
    alice = Mesh().peer("alice")
    alice.build()
    await alice.replication.load()
    group = (await alice.replication.create_group("home")).group
    with pytest.raises(GroupError) as caught:
        await alice.replication.create_group("home")
    assert caught.value.reason == "expect_failed"
    other = (await alice.replication.create_group("other")).group
    with pytest.raises(GroupError):
        await alice.replication.rename_group(other, "home")
    await alice.replication.rename_group(group, "home-old")
    await alice.replication.rename_group(other, "home")
    assert [v.name for v in alice.replication.groups()] == ["home", "home-old"]
    alice.build()
    await alice.replication.load()
    assert [v.name for v in alice.replication.groups()] == ["home", "home-old"]


async def test_an_unknown_group_is_an_error_with_a_reason() -> None:
    alice = Mesh().peer("alice")
    alice.build()
    await alice.replication.load()
    for request in (
        lambda: alice.replication.rename_group(b"x" * 32, "name"),
        lambda: alice.replication.create_invite(b"x" * 32),
        lambda: alice.replication.sync_now(b"x" * 32),
    ):
        with pytest.raises(GroupError) as caught:
            await request()
        assert caught.value.reason == "unknown_group"
    with pytest.raises(GroupError):
        alice.replication.members(b"x" * 32)
    with pytest.raises(GroupError) as caught:
        await alice.replication.accept(b"x" * 32)
    assert caught.value.reason == "unknown_join"


# --- joining ----------------------------------------------------------------------------------


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


# --- homes and owners -------------------------------------------------------------------------


def test_devices_of_a_home_have_one_owner_everywhere() -> None:
    async def scene() -> None:
        async with nodes("alice", "phone", "bob") as (alice, phone, bob):
            home = (await alice.replication.create_group("home", home=True)).group
            invite = await alice.replication.create_invite(home)
            joined = await phone.replication.join(invite.ticket)
            assert joined.home
            team = await pair_up(alice, bob, name="team")
            ticket = (await alice.replication.create_invite(team)).ticket
            await phone.replication.join(ticket)

            def owners(peer: Peer) -> set[bytes]:
                views = peer.replication.members(team)
                return {v.owner for v in views if v.member in {alice.id, phone.id}}

            await wait_until(lambda: all(len(owners(p)) == 1 for p in (alice, phone, bob)))
            assert owners(bob).isdisjoint({alice.id, phone.id})
            relations = {v.member: v.relation for v in phone.replication.members(team)}
            assert relations[alice.id] == "own_device"
            assert relations[phone.id] == "own"
            assert relations[bob.id] == "invited"
            seen = {v.member: v.relation for v in bob.replication.members(team)}
            assert seen[alice.id] == "invited"
            # And the records of the phone carry the owner at Bob's.
            await phone.write(team, "from the phone")
            await wait_until(lambda: "from the phone" in bob.texts(team))
            (row,) = [r for r in bob.disk.rows.values() if r.plain == b"from the phone"]
            assert {row.owner} == owners(bob)

    play(scene)


def test_an_admin_of_the_home_gets_the_owner_key() -> None:
    async def scene() -> None:
        async with nodes("alice", "desk", "phone") as (alice, desk, phone):
            home = (await alice.replication.create_group("home", home=True)).group
            invite = await alice.replication.create_invite(home, role=Role.ADMIN)
            await desk.replication.join(invite.ticket)

            def has_seed(peer: Peer) -> bool:
                return any(
                    columns[1] == "owner"
                    for (table, _), (_, columns) in peer.disk.local.items()
                    if table == "secret"
                )

            await wait_until(lambda: has_seed(desk))
            alice.node.pause()
            invite = await desk.replication.create_invite(home)
            await phone.replication.join(invite.ticket)

            def owned() -> bool:
                owners = {v.member: v.owner for v in desk.replication.members(home)}
                return owners.get(phone.id) == owners[desk.id] != desk.id

            await wait_until(owned)

    play(scene)


# --- sync and push ----------------------------------------------------------------------------


def test_a_write_made_alone_arrives_when_the_other_comes_back() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            bob.node.pause()
            for n in range(300):
                await alice.write(group, f"{n}")
            bob.node.resume()
            await wait_until(lambda: len(bob.texts(group)) == 300, 60)

    play(scene)


def test_records_hop_over_a_member_in_the_middle() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob", "carol") as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            alice.net.partition(bob.ip, carol.ip)
            await trio.sleep(60)
            before = trio.current_time()
            await bob.write(group, "hop")
            await wait_until(lambda: "hop" in carol.texts(group))
            assert trio.current_time() - before < 1

    play(scene)


def test_a_session_with_a_silent_peer_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            await pair_up(alice, bob)
            await trio.sleep(5)
            stream = await bob.node.fabric.open(PeerId(alice.id), session.PROTOCOL)
            with trio.fail_after(alice.config.session_idle_s + 2 * GRACE_S):
                await Liar(stream).greet()
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while await stream.receive_some():
                        pass
            await trio.sleep(GRACE_S)
            assert alice.id in bob.node.fabric.peers()

    with caplog.at_level("ERROR"):
        play(scene)
    assert not caplog.records


def test_without_push_the_next_session_brings_it() -> None:
    async def scene() -> None:
        config = replace(ReplicationConfig.test(), push=False)
        async with nodes("alice", "bob", config=config) as (alice, bob):
            group = await pair_up(alice, bob)
            await trio.sleep(10)
            await alice.write(group, "slow")
            await trio.sleep(0.5)
            assert bob.texts(group) == []
            await wait_until(lambda: bob.texts(group) == ["slow"], 60)

    play(scene)


def test_sync_now_reports_what_it_found() -> None:
    async def scene() -> None:
        config = replace(ReplicationConfig.test(), push=False, sync_interval_s=100_000)
        async with nodes("alice", "bob", config=config) as (alice, bob):
            group = await pair_up(alice, bob)
            await trio.sleep(60)
            for n in range(5):
                await bob.write(group, f"{n}")
            (result,) = await alice.replication.sync_now(group)
            assert (result.peer, result.group, result.equal) == (bob.id, group, True)
            assert (result.received, result.missing, result.why) == (5, 0, "")
            assert result.bytes > 0
            assert alice.replication.status() == [result]
            (again,) = await alice.replication.sync_now(peer=bob.id)
            assert (again.received, again.rounds, again.equal) == (0, 0, True)
            assert again.bytes <= 300

    play(scene)


def test_every_sixteenth_session_is_followed_by_one_with_another_member() -> None:
    async def scene() -> None:
        config = replace(ReplicationConfig.test(), sync_interval_s=100_000)
        async with nodes("alice", "bob", "carol", config=config) as (alice, bob, carol):
            group = await pair_up(alice, bob)
            invite = await alice.replication.create_invite(group)
            await carol.replication.join(invite.ticket)
            await trio.sleep(120)

            def others() -> int:
                return sum(1 for e in alice.named("sync.finished") if e.data["peer"] == carol.id)

            driver, before = alice.replication._driver, others()
            driver._scheduled_sessions = 0
            for _ in range(15):
                await driver._sync_with_third(bob.id)
            assert others() == before
            await driver._sync_with_third(bob.id)
            assert others() == before + 1

    play(scene)


def test_verifying_fetches_nothing_and_repairing_brings_it() -> None:
    async def scene() -> None:
        config = replace(ReplicationConfig.test(), push=False, sync_interval_s=100_000)
        async with nodes("alice", "bob", config=config) as (alice, bob):
            group = await pair_up(alice, bob)
            await trio.sleep(60)
            await alice.replication.sync_now(group)
            (same,) = await alice.replication.verify(group)
            assert (same.verified, same.equal) == (True, True)
            here = [await alice.write(group, "mine")]
            for n in range(3):
                await bob.write(group, f"{n}")
            (found,) = await alice.replication.verify(group, bob.id)
            assert (found.verified, found.equal, found.received) == (True, False, 0)
            assert (found.only_here, found.only_there, list(found.here)) == (1, 3, here)
            (record,) = await alice.replication.describe(found.here)
            assert (record.author, record.kind) == (alice.id, 32)
            assert bob.texts(group) == ["0", "1", "2"]
            (done,) = await alice.replication.repair(group)
            assert (done.equal, done.received, done.sent) == (True, 3, 1)
            assert alice.roots(group) == bob.roots(group)

    play(scene)


def test_a_full_disk_ends_sessions_not_replication_and_is_made_up_for() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = await pair_up(alice, bob)
            await trio.sleep(20)
            admit = bob.store.admit

            async def full(*_args: object, **_kwargs: object) -> None:
                raise OSError("no space left on device")

            bob.store.admit = full  # type: ignore[method-assign,assignment]
            for n in range(5):
                await alice.write(group, f"{n}")
            await trio.sleep(90)
            assert bob.texts(group) == []
            assert bob.replication._driver.failures > 0
            bob.store.admit = admit  # type: ignore[method-assign]
            await wait_until(lambda: len(bob.texts(group)) == 5)
            assert alice.roots(group) == bob.roots(group)

    play(scene)


def test_in_a_large_group_most_get_ids_and_ask() -> None:
    async def scene() -> None:
        config = replace(
            ReplicationConfig.test(), push_full_max=1, push_sample=1, sync_interval_s=100_000
        )
        names = ("alice", "bob", "carol", "dave")
        async with nodes(*names, config=config) as peers:
            alice = peers[0]
            group = (await alice.replication.create_group("team")).group
            for peer in peers[1:]:
                invite = await alice.replication.create_invite(group)
                await peer.replication.join(invite.ticket)
            await trio.sleep(60)
            before = trio.current_time()
            await alice.write(group, "wide")
            await wait_until(lambda: all("wide" in p.texts(group) for p in peers))
            assert trio.current_time() - before < 5

    play(scene)


def test_a_slow_peer_loses_the_oldest_push_and_a_session_brings_it() -> None:
    async def scene() -> None:
        config = replace(ReplicationConfig.test(), push_queue_records_max=10)
        async with nodes("alice", "bob", config=config) as (alice, bob):
            group = await pair_up(alice, bob)
            await trio.sleep(20)
            alice.net.clog(alice.ip, bob.ip, duration_s=3)
            for n in range(60):
                # Large ones, so that the stream's own buffer is soon full.
                await alice.write(group, f"{n} " + "x" * 30_000)
                await trio.sleep(0.03)
            await wait_until(lambda: len(bob.texts(group)) == 60)
            assert alice.named("sync.lagging")

    play(scene)


def test_bodies_that_come_before_their_key_are_opened_when_it_comes() -> None:
    async def scene() -> None:
        async with nodes("alice", "bob") as (alice, bob):
            group = (await alice.replication.create_group("team")).group
            invite = await alice.replication.create_invite(group)
            # The share is lost on its way: Bob joins without a key.
            keeper = alice.replication._core.keeper
            held = dict(alice_group(alice, group).epochs)
            alice_group(alice, group).epochs.clear()
            await bob.replication.join(invite.ticket)
            alice_group(alice, group).epochs.update(held)
            await alice.write(group, "sealed")
            await wait_until(lambda: any(r.state == "sealed" for r in bob.disk.rows.values()))
            assert bob.named("key.missing")
            assert bob.texts(group) == []
            key = alice_group(alice, group).standing.exchange_key(bob.id)
            assert key is not None
            async with alice_group(alice, group).lock:
                share = keeper.shares.key_share(alice_group(alice, group), bob.id, key)
                await keeper.write(alice_group(alice, group), [(Kind.KEY_SHARE, share)])
            await wait_until(lambda: bob.texts(group) == ["sealed"])
            await bob.write(group, "now I can")
            await wait_until(lambda: len(alice.texts(group)) == 2)

    play(scene)


def test_a_body_whose_key_came_before_a_crash_is_opened_at_the_next_start() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            ident = await alice.write(group, "waited for its key")
            await wait_until(lambda: bob.texts(group) == ["waited for its key"])
        # A disk on which the key's transaction is the last one.
        row = bob.disk.rows[ident]
        row.state, row.plain = "sealed", None
        async with bob.running():
            assert bob.texts(group) == ["waited for its key"]

    play(scene)


def alice_group(peer: Peer, group: bytes):  # type: ignore[no-untyped-def]
    """The group as the peer's parts hold it."""
    found = peer.replication._core.groups.get(group)
    assert found is not None
    return found


# --- restarts and incarnations ----------------------------------------------------------------


def test_everything_needed_survives_a_restart() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            await alice.write(group, "one")
            await wait_until(lambda: bob.texts(group) == ["one"])
            views = alice.replication.groups(), alice.replication.members(group)
        async with alice.running(), bob.running():
            assert (alice.replication.groups(), alice.replication.members(group)) == views
            await bob.write(group, "two")
            await wait_until(lambda: len(alice.texts(group)) == 2)
            ours = {k for k in alice.disk.logs if k[1] == alice.id and k[3] == 1}
            await alice.write(group, "three")
            assert {k for k in alice.disk.logs if k[1] == alice.id and k[3] == 1} == ours

    play(scene)


def control_logs(peer: Peer, group: bytes) -> set[int]:
    """Incarnations of the peer's own control logs."""
    return {k[2] for k in peer.disk.logs if k[0] == group and k[1] == peer.id and k[3] == 0}


def test_the_first_control_record_after_a_start_begins_a_log_unless_a_member_has_the_old() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            await wait_until(lambda: alice.roots(group) == bob.roots(group))
            assert len(control_logs(alice, group)) == 1
        async with alice.running():
            await alice.replication.create_invite(group)
            assert len(control_logs(alice, group)) == 2
        async with alice.running(), bob.running():
            await wait_until(lambda: bool(alice.named("sync.finished")))
            await wait_until(lambda: alice.roots(group) == bob.roots(group))
            await alice.replication.sync_now(group)
            await alice.replication.create_invite(group)
            assert len(control_logs(alice, group)) == 2

    play(scene)


def test_an_old_image_of_the_disk_forks_nothing() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            await alice.write(group, "old")
            await wait_until(lambda: bob.texts(group) == ["old"])
            image = copy.deepcopy(alice.disk)
            await alice.write(group, "lost here, held by bob")
            await wait_until(lambda: len(bob.texts(group)) == 2)
        alice.disk = image
        async with bob.running(), alice.running():
            await wait_until(lambda: len(alice.texts(group)) == 2)
            assert alice.named("own_log.restored")
            await alice.write(group, "new")
            await wait_until(lambda: len(bob.texts(group)) == 3)
            assert not bob.named("fork.detected")
            assert alice.roots(group) == bob.roots(group)

    play(scene)


def test_what_an_old_image_wrote_alone_is_signed_again_after_the_fork() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            await alice.write(group, "old")
            await wait_until(lambda: bob.texts(group) == ["old"])
            image = copy.deepcopy(alice.disk)
            await alice.write(group, "branch held by bob")
            await wait_until(lambda: len(bob.texts(group)) == 2)
        alice.disk = image
        async with alice.running():
            await alice.write(group, "branch written alone")
        async with bob.running(), alice.running():
            await wait_until(lambda: bool(bob.named("fork.detected")))
            await wait_until(lambda: "branch written alone" in bob.texts(group))
            await wait_until(lambda: alice.roots(group) == bob.roots(group))
            assert alice.texts(group) == bob.texts(group)

    play(scene)


def test_signing_again_goes_on_where_a_crash_cut_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, and nothing is there twice."""

    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            await alice.write(group, "old")
            await wait_until(lambda: bob.texts(group) == ["old"])
            image = copy.deepcopy(alice.disk)
            await alice.write(group, "branch held by bob")
            await wait_until(lambda: len(bob.texts(group)) == 2)
        alice.disk = image
        wanted = [f"alone {n}" for n in range(6)]
        monkeypatch.setattr(again, "PART_BYTES", 1)  # a record a transaction
        async with alice.running():
            for text in wanted:
                await alice.write(group, text)
            append = alice.store.append
            parts: list[object] = []

            async def failing(*what: Any) -> object:
                parts.append(what[1])
                if len(parts) > 3:
                    raise OSError("disk full")
                return await append(*what)

            alice.store.append = failing  # type: ignore[method-assign, assignment]
            async with bob.running():
                await wait_until(lambda: len(parts) > 3)
        kept = [text for text in alice.texts(group) if text.startswith("alone")]
        assert len(kept) == 3
        async with bob.running(), alice.running():
            await wait_until(lambda: len(bob.texts(group)) == 1 + len(wanted))
            await wait_until(lambda: alice.roots(group) == bob.roots(group))
            assert alice.texts(group) == bob.texts(group) == sorted(["old", *wanted])
            assert not any(columns[2] == HOLD_AGAIN for _, columns in await hold_rows(alice))
        async with bob.running(), alice.running():
            await trio.sleep(300)
            assert alice.texts(group) == bob.texts(group) == sorted(["old", *wanted])

    play(scene)


async def hold_rows(peer: Peer) -> Sequence[LocalRow]:
    """What waits at a node."""
    return await peer.store.local("hold")


def test_a_clock_that_was_wrong_once_does_not_bind_the_device() -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running(), bob.running():
            group = await pair_up(alice, bob)
            alice.env.offset_ms = 3_600_000
            await alice.write(group, "from tomorrow")
            await wait_until(lambda: bool(bob.named("clock.skew")))
        alice.env.offset_ms = 0
        async with alice.running(), bob.running():
            ident = await alice.write(group, "from today")
            await wait_until(lambda: "from today" in bob.texts(group))
            row = alice.disk.rows[ident]
            assert row.record.hlc >> 16 <= alice.env.wall_ms() + 1000
            await trio.sleep(3_100)
            await wait_until(lambda: "from tomorrow" in bob.texts(group))

    play(scene)


@pytest.mark.parametrize("seed", range(8))
def test_a_peer_that_comes_while_we_stop_ends_nothing_badly(seed: int) -> None:
    async def scene() -> None:
        mesh = Mesh(5)
        alice, bob = mesh.peer("alice"), mesh.peer("bob")
        async with alice.running():
            async with bob.running():
                await pair_up(alice, bob)
            fabric = alice.node.fabric
            assert isinstance(fabric, MemFabric)
            await wait_until(lambda: bob.id not in alice.replication._driver._peers)
            # The event wakes the driver in the very step in which it is cancelled.
            for channel in fabric._events:
                channel.send_nowait(PeerUp(bob.identity.id))

    run_seeded(scene, seed=seed)
