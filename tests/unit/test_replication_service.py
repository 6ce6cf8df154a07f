"""What people and the daemon do with groups: found, own, sync, verify, repair."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import trio

from p2p.identity import Identity, PeerId
from p2p.replication import session
from p2p.replication.config import ReplicationConfig
from p2p.replication.events import GroupError
from p2p.replication.ops import Kind, Role
from p2p.replication.runner import GRACE_S
from tests.helpers.hostile import Liar
from tests.helpers.mesh import Mesh, Peer, nodes, pair_up, play, wait_until

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
