"""What a node still knows after a restart, an old image of its disk, or a wrong clock."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import trio

from p2p.net.memory_fabric import MemFabric
from p2p.net.seam import PeerUp
from p2p.replication import again
from p2p.replication.groups import HOLD_AGAIN
from tests.helpers.det import run_seeded
from tests.helpers.mesh import Mesh, Peer, pair_up, play, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2p.replication.store import LocalRow


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
