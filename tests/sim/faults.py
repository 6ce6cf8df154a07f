"""What happens to the simulation's nodes: cuts, crashes, wrong clocks, old images, full disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.sim import operations
from tests.sim.parts import copy_disk
from tests.sim.plan import HOUR_MS, YEAR_MS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.sim.parts import SimPeer
    from tests.sim.world import World

CLOCK_FAST = 0.6
"""Share of clock faults that put a clock ahead; the others step it back."""


async def cut(world: World) -> None:
    """Two nodes do not hear each other."""
    a, b = world.rng.sample(world.peers, 2)
    world.mesh.net.partition(a.ip, b.ip)
    world.sometimes("cut")


async def one_way(world: World) -> None:
    """One node hears another that does not hear it."""
    a, b = world.rng.sample(world.peers, 2)
    world.mesh.net.partition(a.ip, b.ip, symmetric=False)
    world.sometimes("one_way")


async def isolate(world: World) -> None:
    """A node hears nobody."""
    world.mesh.net.isolate(world.rng.choice(world.peers).ip)
    world.sometimes("isolate")


async def heal(world: World) -> None:
    """A node hears everybody again."""
    world.mesh.net.heal(world.rng.choice(world.peers).ip)
    world.sometimes("heal")


async def hang_up(world: World) -> None:
    """A connection ends in the middle of whatever went over it."""
    connected = [p for p in world.peers if p.up and p.node.fabric.peers()]
    if not connected:
        return
    peer = world.rng.choice(connected)
    other = world.rng.choice(sorted(peer.node.fabric.peers()))
    await peer.node.fabric.disconnect(other)
    world.sometimes("hang_up")


async def restart(world: World) -> None:
    """A node is stopped and started."""
    peer = world.some_up()
    if peer is not None:
        world.sometimes("restart")
        await down_and_up(world, peer)


async def crash(world: World) -> None:
    """A node dies in the middle of what it does; what was on its way to the disk is gone."""
    busy = [p for p in world.peers if p.up and p.busy]
    peer = world.rng.choice(busy) if busy else world.some_up()
    if peer is None:
        return
    peer.crashing = True
    world.sometimes("crash")
    await down_and_up(world, peer)


async def power(world: World) -> None:
    """A node loses its power: nobody is told."""
    peer = world.some_up()
    if peer is None:
        return
    peer.crashing = True
    world.mesh.net.isolate(peer.ip)
    world.sometimes("power")
    await down_and_up(world, peer)
    world.mesh.net.heal(peer.ip)


async def down_and_up(
    world: World, peer: SimPeer, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Stop a node's process, wait, start it again."""
    await peer.stop()
    meanwhile()
    await trio.sleep(world.rng.uniform(0.1, 20))
    await world.nursery.start(peer.live)


async def clock(world: World) -> None:
    """A clock is wrong by up to an hour, or steps back."""
    peer = world.rng.choice(world.peers)
    peer.look_at_clock()
    if world.rng.random() < CLOCK_FAST:
        peer.env.offset_ms = world.years_ms + world.rng.randint(0, HOUR_MS)
        world.sometimes("clock_ahead")
    else:
        peer.env.offset_ms -= world.rng.randint(0, HOUR_MS)
        world.sometimes("clock_back")
    peer.look_at_clock()
    world.offset_ms_max = max(world.offset_ms_max, peer.env.offset_ms)


async def year(world: World) -> None:
    """A node goes to sleep, and a year passes; it wakes when faults stop."""
    peer = world.some_up()
    if peer is None or world.years_ms or peer is world.founder:
        return

    world.sometimes("year")
    await peer.stop()
    pass_a_year(world)


def pass_a_year(world: World) -> None:
    """Every clock shows a year more."""
    for one in world.peers:
        one.env.offset_ms += YEAR_MS
        one.look_at_clock()
    world.years_ms = YEAR_MS
    world.offset_ms_max += YEAR_MS


async def image(world: World) -> None:
    """Somebody copies a node's disk."""
    peer = world.rng.choice(world.honest)
    world.images[peer.name] = copy_disk(peer.disk)
    world.sometimes("image")


async def restore(world: World) -> None:
    """A node's disk is replaced by the older copy."""
    peers = [p for p in world.honest if p.up and p.name in world.images]
    if not peers:
        return
    peer = world.rng.choice(peers)

    def put_back() -> None:
        old = world.images[peer.name]
        others = [p for p in world.honest if p is not peer]
        world.book.note_restore(peer, set(old.rows), others)
        if peer is world.founder:
            # It may be the only one that knew of the expulsion.
            views = [p.group_of(world.group) for p in others if p.is_member(world.group)]
            world.book.expelled = {
                out for out in world.book.expelled if any(v.role(out) is None for v in views)
            }
        peer.disk = copy_disk(old)

    world.sometimes("restore")
    alone = world.rng.random() < 0.6
    if alone:
        world.mesh.net.isolate(peer.ip)
    await down_and_up(world, peer, put_back)
    if alone and peer.is_member(world.group):
        # It goes on with a log of which the others have more: a fork, and an honest one.
        operations.write_as(world, peer, 2)


async def full(world: World) -> None:
    """A disk takes nothing for a while."""
    peer = world.rng.choice(world.peers)
    peer.habits.full = True
    world.sometimes("full")
    await trio.sleep(world.rng.uniform(1, 40))
    peer.habits.full = False


TABLE: dict[str, Callable[[World], Awaitable[None]]] = {
    "cut": cut,
    "one_way": one_way,
    "isolate": isolate,
    "heal": heal,
    "hang_up": hang_up,
    "restart": restart,
    "crash": crash,
    "power": power,
    "clock": clock,
    "image": image,
    "restore": restore,
    "full": full,
    "year": year,
}
