"""What hostile members of the simulation do: one deed at a time, by hand, with real keys.

Their nodes run Covey's own code besides, over stores that may lie (`parts.SimStore`). A deed that
the network or a ban prevents is no deed: only what was sent is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import P2pError
from p2p.identity import Identity, PeerId
from p2p.replication import session
from p2p.replication.messages import Heads, State
from p2p.replication.ops import Grant, Kind, Limit, Role, encode_payload
from p2p.replication.wires import wire_of
from tests.helpers.hostile import (
    Impostor,
    Liar,
    Pen,
    altered,
    forged,
    push_records,
    with_equal_xor,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from p2p.replication.record import Record, RecordWire
    from tests.sim.parts import SimPeer
    from tests.sim.world import World

HOSTILE: Final = b"hostile"
YEARS_MS: Final = 10 * 365 * 86_400_000
FLOOD: Final = 450
BY_HAND: Final = 10_000
"""Incarnation of the first log written by hand: far below those that begin with the clock."""
COLLIDE_S: Final = 50.0
"""Long enough for cut connections to be given up, so that nothing waits for the other side."""


def pen_of(world: World, villain: SimPeer, identity: Identity | None = None) -> Pen:
    """A pen that begins a log nobody has used."""
    incarnation = BY_HAND + len(villain.by_hand)
    villain.by_hand.add(incarnation)
    return Pen(villain, world.group, identity=identity, incarnation=incarnation)


async def send(
    world: World, villain: SimPeer, target: SimPeer, records: Sequence[Record | RecordWire]
) -> bool:
    """Push records; whether they were taken from our hands."""
    with trio.move_on_after(20) as limit:
        try:
            return await push_records(villain, target, world.group, records)
        except P2pError:
            return False
    return not limit.cancelled_caught


async def forge(world: World, villain: SimPeer) -> bool:
    """A record in an honest member's name, with the wrong signature."""
    victim, target = world.two_honest()
    pen = pen_of(world, villain, Impostor(victim.id, villain.identity))
    heads = pen.authority().heads(victim.id)
    return await send(world, villain, target, [pen.write(body=HOSTILE, auth=heads)])


async def forge_blank(world: World, villain: SimPeer) -> bool:
    """A record with a signature of zeros."""
    _, target = world.two_honest()
    return await send(world, villain, target, [forged(pen_of(world, villain).write())])


async def fork(world: World, villain: SimPeer) -> bool:
    """Two histories of one log, one for each of two members."""
    a, b = world.two_honest()
    pen = pen_of(world, villain)
    common = [pen.write(body=HOSTILE) for _ in range(world.rng.randint(0, 2))]
    twin = pen.twin()
    count = world.rng.randint(1, 4)
    left = [pen.write(body=b"hostile left") for _ in range(count)]
    right = [twin.write(body=b"hostile right") for _ in range(count)]
    first = await send(world, villain, a, [*common, *left])
    return await send(world, villain, b, [*common, *right]) and first


async def backdate(world: World, villain: SimPeer) -> bool:
    """What claims to have been written before anything else was known."""
    _, target = world.two_honest()
    accomplice = Identity.generate(villain.env.rng)
    world.book.accomplices.add(accomplice.id)
    pen = pen_of(world, villain)
    grant = encode_payload(Grant(accomplice.id, Role.ADMIN))
    early = pen.write(Kind.GRANT, grant, auth=(world.group,), hlc=world.genesis_hlc + 1)
    entry = pen.write(body=HOSTILE, auth=(world.group,), hlc=world.genesis_hlc + 2)
    return await send(world, villain, target, [early, entry])


async def ahead(world: World, villain: SimPeer) -> bool:
    """Records from an hour, and from ten years, ahead."""
    _, target = world.two_honest()
    by_ms = world.rng.choice([3_600_000, YEARS_MS])
    pen = pen_of(world, villain)
    hlc = (world.wall_ms_max() + by_ms) << 16
    records = [pen.write(body=HOSTILE, hlc=hlc + n) for n in range(5)]
    return await send(world, villain, target, records)


async def echo(world: World, villain: SimPeer) -> bool:
    """Claim to hold the same set, by saying the other's roots back."""
    _, target = world.two_honest()
    with trio.move_on_after(20):
        try:
            stream = await villain.node.fabric.open(PeerId(target.id), session.PROTOCOL)
            liar = Liar(stream)
            tag, state = await liar.greet()
            await liar.send(State(tag, state.control_root, state.data_root))
            await liar.receive(Heads)
            await stream.aclose()
        except (P2pError, AssertionError, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True
    return False


async def flood(world: World, villain: SimPeer) -> bool:
    """More records than a member may bring at once."""
    _, target = world.two_honest()
    pen = pen_of(world, villain)
    sent = await send(world, villain, target, [pen.write(body=HOSTILE) for _ in range(FLOOD)])
    quota = target.replication._core.quota
    if target.up and not quota.may_ask(villain.id, target.env.now()):
        world.sometimes("throttled")
    return sent


async def replay(world: World, villain: SimPeer) -> bool:
    """Old membership, and whatever else was ever heard, once more and in any order."""
    _, target = world.two_honest()
    rows = [row for row in villain.disk.rows.values() if row.record.group == world.group]
    wires = [wire_of(row) for row in rows]
    world.rng.shuffle(wires)
    return bool(wires) and await send(world, villain, target, wires[:64])


async def mutate(world: World, villain: SimPeer) -> bool:
    """An honest record with one bit changed on the way."""
    _, target = world.two_honest()
    rows = [
        row
        for row in villain.disk.rows.values()
        if row.record.group == world.group and row.envelope is not None
    ]
    if not rows:
        return False
    wire = wire_of(world.rng.choice(rows))
    return await send(world, villain, target, [altered(wire, world.rng)])


async def coup(world: World, villain: SimPeer) -> bool:
    """Take out the founder, and let an accomplice in; after an expulsion as if it had not been."""
    _, target = world.two_honest()
    accomplice = Identity.generate(villain.env.rng)
    world.book.accomplices.add(accomplice.id)
    pen = pen_of(world, villain)
    old = world.old_heads.get(villain.id) or pen.heads()
    auth = old if villain.id in world.book.expelled else pen.heads()
    world.old_heads.setdefault(villain.id, auth)
    limit = encode_payload(Limit(world.founder.id, (), 1, 0))
    grant = encode_payload(Grant(accomplice.id, Role.ADMIN))
    hlc = pen.authority().hlc_max + 1
    records = [
        pen.write(Kind.LIMIT, limit, auth=auth, hlc=hlc),
        pen.write(Kind.GRANT, grant, auth=auth, hlc=hlc + 1),
    ]
    done = await send(world, villain, target, records)
    if done and villain.id in world.book.expelled:
        world.sometimes("coup_after_expulsion")
    return done


async def collide(world: World, villain: SimPeer) -> bool:
    """Two sets of own records, equal in number and in the XOR of their ids: one to each side."""
    honest = [p for p in world.honest if p.up]
    if len(honest) < 2 or villain.id in world.collided:
        return False
    world.collided.add(villain.id)
    villain.habits.forgets = True
    side = honest[: len(honest) // 2]
    other = [p for p in honest if p not in side]
    world.mesh.net.split([p.ip for p in side], [p.ip for p in other])
    pen = pen_of(world, villain)
    one, two = with_equal_xor(lambda: pen.write(body=HOSTILE))
    await trio.sleep(COLLIDE_S)
    world.mesh.net.heal(villain.ip)
    first = await send(world, villain, side[0], one)
    second = await send(world, villain, other[0], two)
    return first and second


DEEDS: dict[str, Callable[[World, SimPeer], Awaitable[bool]]] = {
    "forge": forge,
    "forge_blank": forge_blank,
    "fork": fork,
    "backdate": backdate,
    "ahead": ahead,
    "echo": echo,
    "flood": flood,
    "replay": replay,
    "mutate": mutate,
    "coup": coup,
    "collide": collide,
}


async def act(world: World, villain: SimPeer) -> None:
    """A hostile member does one of its deeds."""
    deeds = [kind for kind in villain_deeds(world, villain) if kind in DEEDS]
    if not (deeds and villain.up and villain.knows(world.group)):
        return
    if villain.sealer.current_epoch(world.group) is None:
        return
    kind = world.rng.choice(deeds)
    if await DEEDS[kind](world, villain):
        world.sometimes(f"villain_{kind}")


def villain_deeds(world: World, villain: SimPeer) -> tuple[str, ...]:
    """What this one does."""
    return world.plan.villains[world.villains.index(villain)]
